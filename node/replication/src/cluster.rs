//! The cluster as its controller keeps it: the map, and which proposals made it what it is.
//!
//! A [`Command`] is all that ever changes it, and [`Cluster::apply`] is a pure function: whoever replays the same
//! commands over the same beginning has the same cluster. Where it is kept and how commands come to an order is
//! the business of the controller's store.
//!
//! # Invariants
//! * A command changes everything that it stands for or nothing; a change raises the map's version by one.
//! * Configurations change by [`crate::configuration::apply`] alone.
//! * A proposal that was carried out is found to be carried out when it is sent again, until the partition's next
//!   change.
//! * No partition is created while a node is known that holds data of another cluster, unless a person says so: the
//!   controller may have lost its data, and those of the nodes would be forgotten.
//! * A node stays in the shard in which it registered first, and no shard has more nodes than the cluster has replicas.
//!
//! What it lacks: moving nodes and partitions between shards, and leaving the cluster.

use crate::{configuration, placement};
use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, MAX_PARTITIONS, Node, Partition, Shard},
    control::{Change, Proposal},
    ids::{ClusterId, Epoch, HistoryId, MapVersion, Member, NodeId, PartitionId, ShardId},
};

/// Most replicas that a partition can have.
pub const MAX_REPLICAS: u16 = 7;
/// Longest address of a node, in bytes.
const MAX_ADDRESS_BYTES: usize = 255;

/// What is fixed when a cluster is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many shards host the partitions.
    pub shards: u16,
    /// How many nodes each shard has.
    pub replicas: u16,
    /// How many partitions the keys are spread over.
    pub partitions: u16,
    /// What a write waits for before it is acknowledged.
    pub ack: AckMode,
}

/// Numbers that no cluster can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShape {
    /// Too few or too many partitions.
    #[error("a cluster has 1 to {MAX_PARTITIONS} partitions, not {0}")]
    Partitions(u16),
    /// Too few shards, or some without a partition.
    #[error("a cluster has 1 shard to as many as it has partitions ({partitions}), not {shards}")]
    Shards {
        /// How many shards were asked for.
        shards: u16,
        /// How many partitions were asked for.
        partitions: u16,
    },
    /// Too few or too many replicas.
    #[error("a partition has 1 to {MAX_REPLICAS} replicas, not {0}")]
    Replicas(u16),
}

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A node says how it is now.
    Register {
        /// The cluster that the node's data belong to, if any.
        cluster: Option<ClusterId>,
        /// The node.
        node: Node,
    },
    /// Changes of configurations, each by itself.
    Propose(Vec<Proposal>),
    /// A person says that the data of another cluster that nodes came with are not this one's: partitions may be created.
    DisregardStrangers,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The node is known by what it said.
    Registered,
    /// What became of each proposal, in their order; with `None` it was carried out.
    Decided(Vec<Option<ProposalRefusal>>),
    /// Nodes with other data no longer stand in the way.
    StrangersDisregarded,
}

/// Why a proposal is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalRefusal {
    /// The cluster has no such partition.
    #[error("the cluster has no partition {0}")]
    UnknownPartition(PartitionId),
    /// The change is not allowed.
    #[error(transparent)]
    Configuration(#[from] configuration::Refusal),
    /// Who is forced to lead is not there.
    #[error("{member} cannot lead partition {partition}: {why}")]
    CannotLead {
        /// Who was to lead.
        member: Member,
        /// What.
        partition: PartitionId,
        /// Why not.
        why: String,
    },
}

/// Why a node cannot take part; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationRefusal {
    /// The node has data of another cluster.
    #[error(
        "node {node} holds data of cluster {theirs}, but this controller keeps cluster {ours}: point --controller at the \
         controller of {theirs}, or start the node without its data"
    )]
    OtherCluster {
        /// The node.
        node: NodeId,
        /// The cluster of its data.
        theirs: ClusterId,
        /// The cluster that is kept here.
        ours: ClusterId,
    },
    /// The node has data, and the controller's cluster has none.
    #[error(
        "node {node} holds data of cluster {theirs}, but the cluster of this controller, {ours}, is a new one that holds \
         nothing: if the controller lost its data folder, stop it and put back a copy, or have `kv rebuild-map` make the map \
         from the nodes; if the node is at the wrong controller, point its --controller at its own. Until then no \
         partition is created here, unless the router is started with --new-cluster"
    )]
    NewCluster {
        /// The node.
        node: NodeId,
        /// The cluster of its data.
        theirs: ClusterId,
        /// The cluster that is kept here.
        ours: ClusterId,
    },
    /// The shard does not exist.
    #[error(
        "node {node} wants to be in shard {shard}, but the cluster has only shards 0 to {last}: change its --shard"
    )]
    UnknownShard {
        /// The node.
        node: NodeId,
        /// The shard that it named.
        shard: ShardId,
        /// The last shard that exists.
        last: u16,
    },
    /// The node belongs to another shard.
    #[error(
        "node {node} registered in shard {registered} before and cannot move to shard {shard}: start it with \
         --shard {registered}, or give this one another --id"
    )]
    OtherShard {
        /// The node.
        node: NodeId,
        /// The shard that it belongs to.
        registered: ShardId,
        /// The shard that it named.
        shard: ShardId,
    },
    /// The shard has all the nodes that it can have.
    #[error(
        "shard {shard} has its {replicas} replicas already ({nodes}), so node {node} cannot join it: start it with the \
         --id of one of them, or in another --shard"
    )]
    ShardFull {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
        /// How many nodes a shard has.
        replicas: u16,
        /// Who they are.
        nodes: String,
    },
    /// What the node says of itself cannot be.
    #[error("node {node} registers with {what}")]
    Implausible {
        /// The node.
        node: NodeId,
        /// What is wrong.
        what: String,
    },
}

/// Most nodes with other data that are remembered; one is enough to create nothing.
const MAX_STRANGERS: usize = 64;

/// Who is in the way of the creation of partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// The nodes that came with data of another cluster while this one had none, and its id.
    pub nodes: Vec<(NodeId, ClusterId)>,
    /// A person has said that they are to be disregarded.
    pub disregarded: bool,
}

/// A cluster: its map, and the last proposal that was carried out on each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The map, as everyone may see it.
    pub map: ClusterMap,
    /// By partition: the id of the proposal that made its configuration.
    pub carried_out: Vec<Option<u128>>,
    /// Nodes that may be what is left of an older cluster.
    pub strangers: Strangers,
}

impl Cluster {
    /// A cluster without nodes: partitions are placed, none is created.
    ///
    /// # Errors
    /// When `shape` has a number that no cluster can have.
    pub fn new(id: ClusterId, shape: Shape) -> Result<Self, InvalidShape> {
        let Shape { shards, replicas, partitions, ack } = shape;
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(InvalidShape::Partitions(partitions));
        }
        if !(1..=partitions).contains(&shards) {
            return Err(InvalidShape::Shards { shards, partitions });
        }
        if !(1..=MAX_REPLICAS).contains(&replicas) {
            return Err(InvalidShape::Replicas(replicas));
        }
        let mut map = ClusterMap {
            cluster: id,
            version: MapVersion(1),
            replicas,
            ack,
            shards: vec![Shard::default(); usize::from(shards)],
            nodes: Vec::new(),
            partitions: vec![Partition { shard: ShardId(0), configuration: None }; usize::from(partitions)],
        };
        for step in placement::plan(&map, shards) {
            map.partitions[usize::from(step.partition.0)].shard = step.to;
        }
        Ok(Cluster { map, carried_out: vec![None; usize::from(partitions)], strangers: Strangers::default() })
    }

    /// What it was made with.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            shards: self.map.shards.len() as u16,
            replicas: self.map.replicas,
            partitions: self.map.partition_count(),
            ack: self.map.ack,
        }
    }

    /// Carries out a command. The version of the map tells whether anything changed.
    ///
    /// # Errors
    /// When a node cannot register; nothing has changed then, but that a node with other data may be remembered. Refused
    /// proposals are no error of their command.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, RegistrationRefusal> {
        match command {
            Command::Register { cluster, node } => self.register(*cluster, node).map(|()| Applied::Registered),
            Command::Propose(proposals) => Ok(Applied::Decided(self.propose(proposals))),
            Command::DisregardStrangers => {
                if !self.strangers.disregarded {
                    self.strangers = Strangers { nodes: Vec::new(), disregarded: true };
                    self.create_what_is_due();
                    self.map.version = MapVersion(self.map.version.0 + 1);
                }
                Ok(Applied::StrangersDisregarded)
            }
        }
    }

    fn register(&mut self, cluster: Option<ClusterId>, node: &Node) -> Result<(), RegistrationRefusal> {
        let checked = self.check_registration(cluster, node);
        let known = self.strangers.nodes.iter().position(|(id, _)| *id == node.id);
        match (&checked, known) {
            (Err(RegistrationRefusal::NewCluster { theirs, .. }), None)
                if self.strangers.nodes.len() < MAX_STRANGERS =>
            {
                self.strangers.nodes.push((node.id, *theirs));
                self.map.version = MapVersion(self.map.version.0 + 1);
            }
            // It was emptied, or is another one of the same name.
            (Ok(()), Some(at)) => {
                self.strangers.nodes.swap_remove(at);
            }
            _ => {}
        }
        checked?;
        if self.map.node(node.id) == Some(node) && known.is_none() {
            return Ok(());
        }
        let nodes = &mut self.map.nodes;
        nodes.retain(|n| n.id != node.id);
        let at = nodes.partition_point(|n| n.id < node.id);
        nodes.insert(at, node.clone());
        let mut of_shard: Vec<&Node> = nodes.iter().filter(|n| n.shard == node.shard).collect();
        of_shard.sort_by_key(|n| (!n.prefers_to_lead, n.id));
        self.map.shards[usize::from(node.shard.0)].nodes = of_shard.iter().map(|n| n.id).collect();
        self.map.version = MapVersion(self.map.version.0 + 1);
        self.create_what_is_due();
        Ok(())
    }

    fn create_what_is_due(&mut self) {
        for proposal in self.due_creations() {
            let next = configuration::apply(None, &proposal).expect("a partition without configuration can be created");
            self.adopt(&proposal, next);
        }
    }

    /// Why partitions are not created although nodes may have registered; nothing if nobody is in the way.
    #[must_use]
    pub fn held_back(&self) -> Option<String> {
        let (node, theirs) = self.strangers.nodes.first()?;
        Some(format!(
            "no partition is created, since node {node} holds data of cluster {theirs} and this controller may have lost \
             its own: see `kv rebuild-map`, or start the router with --new-cluster to begin without those data"
        ))
    }

    fn is_empty(&self) -> bool {
        self.map.partitions.iter().all(|p| p.configuration.is_none())
    }

    fn check_registration(&self, cluster: Option<ClusterId>, node: &Node) -> Result<(), RegistrationRefusal> {
        let (id, shard, ours) = (node.id, node.shard, self.map.cluster);
        if let Some(theirs) = cluster.filter(|theirs| *theirs != ours) {
            return Err(if self.is_empty() && !self.strangers.disregarded {
                RegistrationRefusal::NewCluster { node: id, theirs, ours }
            } else {
                RegistrationRefusal::OtherCluster { node: id, theirs, ours }
            });
        }
        let Some(members) = self.map.shards.get(usize::from(shard.0)) else {
            let last = self.map.shards.len() as u16 - 1;
            return Err(RegistrationRefusal::UnknownShard { node: id, shard, last });
        };
        match self.map.node(id) {
            Some(known) if known.shard != shard => {
                return Err(RegistrationRefusal::OtherShard { node: id, registered: known.shard, shard });
            }
            None if members.nodes.len() >= usize::from(self.map.replicas) => {
                let nodes: Vec<&str> = members.nodes.iter().map(NodeId::as_str).collect();
                let (replicas, nodes) = (self.map.replicas, nodes.join(", "));
                return Err(RegistrationRefusal::ShardFull { node: id, shard, replicas, nodes });
            }
            _ => {}
        }
        let port = node.address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        let implausible = |what: String| Err(RegistrationRefusal::Implausible { node: id, what });
        match port {
            _ if node.executors == 0 => implausible("no executors".to_string()),
            _ if node.address.len() > MAX_ADDRESS_BYTES => {
                implausible(format!("an address of {} bytes, more than {MAX_ADDRESS_BYTES}", node.address.len()))
            }
            Some((host, Ok(1..))) if !host.is_empty() => Ok(()),
            _ => implausible(format!("the address {:?}, which is not HOST:PORT", node.address)),
        }
    }

    /// The creations of partitions that nothing stands in the way of: once every shard has its nodes, and no node is known that
    /// holds data of another cluster, those of all partitions without a configuration.
    #[must_use]
    pub fn due_creations(&self) -> Vec<Proposal> {
        let map = &self.map;
        if !self.strangers.nodes.is_empty()
            || map.is_complete()
            || map.shards.iter().any(|s| s.nodes.len() < usize::from(map.replicas))
        {
            return Vec::new();
        }
        let history = first_history(map.cluster);
        let missing = map.partitions().zip(placement::all_roles(map)).filter(|((_, p), _)| p.configuration.is_none());
        let create = missing.filter_map(|((partition, _), roles)| {
            let (leader, in_sync) = roles?;
            let change = Change::Create { history, leader, in_sync };
            Some(Proposal { id: u128::from(partition.0), partition, epoch: Epoch(0), change })
        });
        create.collect()
    }

    fn propose(&mut self, proposals: &[Proposal]) -> Vec<Option<ProposalRefusal>> {
        let mut changed = false;
        let decided = proposals
            .iter()
            .map(|proposal| {
                if proposal.partition.0 >= self.map.partition_count() {
                    return Some(ProposalRefusal::UnknownPartition(proposal.partition));
                }
                if self.was_carried_out(proposal) {
                    return None;
                }
                let next = configuration::apply(self.map.configuration(proposal.partition), proposal);
                match next.map_err(ProposalRefusal::from).and_then(|next| self.check_forced(proposal).map(|()| next)) {
                    Err(refusal) => Some(refusal),
                    Ok(next) => {
                        self.adopt(proposal, next);
                        changed = true;
                        None
                    }
                }
            })
            .collect();
        if changed {
            self.map.version = MapVersion(self.map.version.0 + 1);
        }
        decided
    }

    /// All other changes name members, who were admitted; who is forced to lead can be anybody.
    fn check_forced(&self, proposal: &Proposal) -> Result<(), ProposalRefusal> {
        let Change::ForceRecover { leader, .. } = proposal.change else { return Ok(()) };
        let shard = self.map.partitions[usize::from(proposal.partition.0)].shard;
        let why = match self.map.node(leader.node) {
            None => "no node of this name has ever registered".to_string(),
            Some(node) if node.shard != shard => {
                format!("the node is of shard {}, but the partition of shard {shard}", node.shard)
            }
            Some(node) if node.disk != leader.disk => format!("the node has registered with disk {}", node.disk),
            Some(_) => return Ok(()),
        };
        Err(ProposalRefusal::CannotLead { member: leader, partition: proposal.partition, why })
    }

    fn was_carried_out(&self, proposal: &Proposal) -> bool {
        let made_by = self.carried_out.get(usize::from(proposal.partition.0)).copied().flatten();
        let replaced = self.map.configuration(proposal.partition).and_then(|c| c.epoch.0.checked_sub(1));
        made_by == Some(proposal.id) && replaced == Some(proposal.epoch.0)
    }

    fn adopt(&mut self, proposal: &Proposal, next: Configuration) {
        let at = usize::from(proposal.partition.0);
        self.map.partitions[at].configuration = Some(next);
        self.carried_out[at] = Some(proposal.id);
    }
}

/// The history that the partitions of a cluster begin with: part of its random id, so that an ETag of one cluster is
/// none of the next.
fn first_history(cluster: ClusterId) -> HistoryId {
    HistoryId(cluster.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::DiskId;

    const OURS: ClusterId = ClusterId(1);

    fn cluster(shards: u16, replicas: u16, partitions: u16) -> Cluster {
        Cluster::new(OURS, Shape { shards, replicas, partitions, ack: AckMode::Durable }).expect("a possible shape")
    }

    fn node(name: &str, disk: u128, shard: u16) -> Node {
        Node {
            id: NodeId::new(name).expect("a node id"),
            disk: DiskId(disk),
            shard: ShardId(shard),
            prefers_to_lead: name.ends_with("leader"),
            address: "127.0.0.1:5001".to_string(),
            executors: 1,
        }
    }

    fn register(cluster: &mut Cluster, node: Node) -> Result<Applied, RegistrationRefusal> {
        cluster.apply(&Command::Register { cluster: None, node })
    }

    /// Two shards of two, complete.
    fn complete() -> Cluster {
        let mut cluster = cluster(2, 2, 8);
        for (name, shard) in [("s0-follower", 0), ("s1-leader", 1), ("s0-leader", 0), ("s1-follower", 1)] {
            register(&mut cluster, node(name, 1, shard)).expect(name);
        }
        cluster
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let ack = AckMode::Durable;
        let new = |shards, replicas, partitions| Cluster::new(OURS, Shape { shards, replicas, partitions, ack });
        for (shards, replicas, partitions, expected) in [
            (3, 2, 0, Some(InvalidShape::Partitions(0))),
            (3, 2, 4097, Some(InvalidShape::Partitions(4097))),
            (0, 2, 64, Some(InvalidShape::Shards { shards: 0, partitions: 64 })),
            (65, 2, 64, Some(InvalidShape::Shards { shards: 65, partitions: 64 })),
            (3, 0, 64, Some(InvalidShape::Replicas(0))),
            (3, 8, 64, Some(InvalidShape::Replicas(8))),
            (1, 1, 1, None),
            (64, 7, 64, None),
        ] {
            assert_eq!(new(shards, replicas, partitions).err(), expected, "{shards} {replicas} {partitions}");
        }
    }

    #[test]
    fn a_new_cluster_is_placed_evenly_and_nothing_is_created() {
        let cluster = cluster(3, 2, 64);
        let on = |shard| cluster.map.partitions.iter().filter(|p| p.shard == ShardId(shard)).count();
        assert_eq!([on(0), on(1), on(2)].iter().sum::<usize>(), 64);
        assert!((0..3).all(|s| (21..=22).contains(&on(s))));
        assert!(cluster.map.partitions.iter().all(|p| p.configuration.is_none()));
        assert_eq!(cluster.due_creations(), []);
    }

    #[test]
    fn partitions_are_created_when_the_last_node_of_the_last_shard_has_come_and_not_before() {
        let mut cluster = cluster(2, 2, 8);
        for (version, (name, shard)) in (2..).zip([("s0-leader", 0), ("s1-follower", 1), ("s1-leader", 1)]) {
            register(&mut cluster, node(name, 1, shard)).expect(name);
            assert!(cluster.map.partitions.iter().all(|p| p.configuration.is_none()), "after {name}");
            assert_eq!(cluster.map.version, MapVersion(version));
        }
        register(&mut cluster, node("s0-follower", 1, 0)).expect("the last");
        assert_eq!(cluster.map.version, MapVersion(5), "the last registration and the creations are one change");
        assert_eq!(cluster, complete(), "the order in which nodes come makes no difference");
        for (_, partition) in cluster.map.partitions() {
            let c = partition.configuration.as_ref().expect("created");
            assert_eq!(
                (c.epoch, c.leader.node.as_str()),
                (Epoch(1), ["s0-leader", "s1-leader"][usize::from(partition.shard.0)])
            );
            assert_eq!(c.in_sync.len(), 1);
        }
    }

    #[test]
    fn a_node_that_comes_again_changes_its_record_and_no_configuration() {
        let mut cluster = complete();
        let before = cluster.clone();
        register(&mut cluster, node("s0-leader", 1, 0)).expect("again");
        assert_eq!(cluster, before, "nothing new, no new version");
        let mut moved = node("s0-leader", 2, 0);
        moved.address = "[::1]:7001".to_string();
        register(&mut cluster, moved.clone()).expect("with another disk");
        assert_eq!(cluster.map.node(moved.id), Some(&moved));
        assert_eq!(cluster.map.partitions, before.map.partitions, "the configurations name the disk that was lost");
        assert_eq!(cluster.map.version, MapVersion(before.map.version.0 + 1));
        let by_id = cluster.map.nodes.is_sorted_by_key(|n| n.id);
        assert!(by_id && cluster.map.nodes.len() == 4);
    }

    #[test]
    fn nodes_that_cannot_take_part_are_told_why_and_what_to_do() {
        let mut address = node("new", 1, 0);
        address.address = "somewhere".to_string();
        let mut executors = node("s0-leader", 1, 0);
        executors.executors = 0;
        let cases = [
            (Some(ClusterId(2)), node("s0-leader", 1, 0), "holds data of cluster 00000000000000000000000000000002"),
            (None, node("new", 1, 2), "the cluster has only shards 0 to 1: change its --shard"),
            (None, node("s0-leader", 1, 1), "registered in shard 0 before and cannot move to shard 1"),
            (None, node("new", 1, 0), "shard 0 has its 2 replicas already (s0-leader, s0-follower)"),
            (None, executors, "registers with no executors"),
        ];
        let mut cluster = complete();
        let before = cluster.clone();
        for (theirs, node, expected) in cases {
            let refusal = cluster.apply(&Command::Register { cluster: theirs, node }).expect_err(expected);
            assert!(refusal.to_string().contains(expected), "{refusal}");
        }
        assert_eq!(cluster, before);
        let mut empty = self::cluster(1, 2, 1);
        let refusal = register(&mut empty, address.clone()).expect_err("no port");
        assert_eq!(refusal.to_string(), "node new registers with the address \"somewhere\", which is not HOST:PORT");
        for bad in ["", ":1", "a:", "a:0", "a:65536", &format!("{}:1", "a".repeat(300))] {
            address.address = bad.to_string();
            assert!(register(&mut empty, address.clone()).is_err(), "{bad:?}");
        }
        assert!(empty.apply(&Command::Register { cluster: Some(OURS), node: node("new", 1, 0) }).is_ok());
    }

    #[test]
    fn nothing_is_created_beside_nodes_that_hold_other_data() {
        let mut cluster = cluster(1, 2, 4);
        let with_data = |name| Command::Register { cluster: Some(ClusterId(2)), node: node(name, 1, 0) };
        let refusal = cluster.apply(&with_data("old")).expect_err("other data").to_string();
        assert!(refusal.contains("kv rebuild-map") && refusal.contains("--new-cluster"), "{refusal}");
        let remembered = cluster.clone();
        cluster.apply(&with_data("old")).expect_err("again");
        assert_eq!(cluster, remembered, "one is remembered once");
        for name in ["new", "other"] {
            register(&mut cluster, node(name, 1, 0)).expect(name);
        }
        assert!(cluster.is_empty() && cluster.held_back().is_some_and(|why| why.contains("node old holds data")));

        let mut disregarding = cluster.clone();
        let version = disregarding.map.version;
        assert_eq!(disregarding.apply(&Command::DisregardStrangers), Ok(Applied::StrangersDisregarded));
        assert!(disregarding.map.is_complete() && disregarding.held_back().is_none());
        assert!(disregarding.map.version > version);
        let refusal = disregarding.apply(&with_data("old")).expect_err("still not its cluster").to_string();
        assert!(refusal.contains("point --controller at the controller of"), "{refusal}");

        // The one that had data comes without, where there is room for it.
        let mut emptied = self::cluster(1, 2, 4);
        emptied.apply(&with_data("old")).expect_err("other data");
        for name in ["new", "old"] {
            assert!(emptied.is_empty());
            register(&mut emptied, node(name, 1, 0)).expect(name);
        }
        assert!(emptied.map.is_complete());
    }

    #[test]
    fn proposals_are_carried_out_once_and_found_again_until_the_next_change() {
        let mut cluster = complete();
        let leader = cluster.map.configuration(PartitionId(3)).expect("created").leader;
        let reopen = |id, epoch, leader| Proposal {
            id,
            partition: PartitionId(3),
            epoch: Epoch(epoch),
            change: Change::Reopen { leader },
        };
        let stranger = Member { node: NodeId::new("x").expect("a node id"), disk: DiskId(1) };
        let nowhere = Proposal { partition: PartitionId(8), ..reopen(9, 1, leader) };
        let mut propose = |proposals: Vec<Proposal>| match cluster.apply(&Command::Propose(proposals)) {
            Ok(Applied::Decided(decided)) => {
                let texts: Vec<_> = decided.into_iter().map(|d| d.map(|r| r.to_string())).collect();
                (texts, cluster.map.version.0)
            }
            other => panic!("{other:?}"),
        };
        let (first, version) = propose(vec![reopen(7, 1, leader), nowhere, reopen(8, 2, stranger)]);
        assert_eq!(first[0], None);
        assert_eq!(first[1].as_deref(), Some("the cluster has no partition 8"));
        assert!(first[2].as_deref().is_some_and(|r| r.contains("only the leader may")), "{first:?}");
        assert_eq!(propose(vec![reopen(7, 1, leader)]), (vec![None], version), "found to be carried out");
        let late = "the proposal replaces epoch 1, but the partition is in epoch 2".to_string();
        assert_eq!(propose(vec![reopen(10, 1, leader)]), (vec![Some(late)], version));
        assert_eq!(propose(vec![reopen(10, 2, leader)]), (vec![None], version + 1));
        let late = "the proposal replaces epoch 1, but the partition is in epoch 3".to_string();
        assert_eq!(propose(vec![reopen(7, 1, leader)]), (vec![Some(late)], version + 1));
        assert!(propose(vec![reopen(7, u64::MAX, leader)]).0[0].is_some());
    }

    #[test]
    fn only_a_node_of_the_shard_with_the_disk_that_it_registered_is_forced_to_lead() {
        let mut cluster = complete();
        let partition = PartitionId(3);
        let shard = cluster.map.partitions[3].shard.0;
        let member = |node: &str, disk| Member { node: NodeId::new(node).expect("a node id"), disk: DiskId(disk) };
        let force = |epoch, leader| Proposal {
            id: 7,
            partition,
            epoch: Epoch(epoch),
            change: Change::ForceRecover { leader, history: HistoryId(99) },
        };
        let (own, other) = (format!("s{shard}-follower"), format!("s{}-follower", 1 - shard));
        let before = cluster.clone();
        for (leader, why) in [
            (member("x", 1), "no node of this name has ever registered".to_string()),
            (member(&other, 1), format!("the node is of shard {}, but the partition of shard {shard}", 1 - shard)),
            (member(&own, 2), format!("the node has registered with disk {}", DiskId(1))),
        ] {
            let refused = Some(ProposalRefusal::CannotLead { member: leader, partition, why });
            assert_eq!(cluster.apply(&Command::Propose(vec![force(1, leader)])), Ok(Applied::Decided(vec![refused])));
        }
        assert_eq!(cluster, before);
        // With a disk that it has now, but that was never a member's.
        register(&mut cluster, node(&own, 2, shard)).expect("registered again");
        let forced = cluster.apply(&Command::Propose(vec![force(1, member(&own, 2))]));
        assert_eq!(forced, Ok(Applied::Decided(vec![None])));
        let next = cluster.map.configuration(partition).expect("created");
        assert_eq!((next.epoch, next.history, next.leader), (Epoch(2), HistoryId(99), member(&own, 2)));
    }
}
