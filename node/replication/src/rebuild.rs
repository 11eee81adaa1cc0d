//! The cluster map made anew from what the nodes have, after every controller has lost it.
//!
//! # What is taken
//! For each partition the configuration with the greatest epoch E that any node of its shard has on its disk or was told. Its
//! members stay; its epoch becomes E + [`JUMP`].
//!
//! # Why this loses nothing
//! *Nobody has acted in an epoch e > E.* Who leads in e, and whoever acknowledges anything in it, has the configuration of
//! e on its disk before it does so. Members of a partition are nodes of its shard, and a shard never has more nodes than the
//! cluster has replicas. So if **all nodes of the shard** have reported, with the disks that they had, then whoever acted
//! in e has reported e, and E was not the greatest. (That every member of E has reported is not enough: E may be a leader
//! alone that did not live to see its own `Add` decided; the learner, a member of E + 1, may then have taken over as E + 2, alone,
//! and acknowledged writes that no member of E ever saw.)
//!
//! *Nobody will.* A node learns of configurations from a controller alone. Nodes that report have no connection to one, and
//! whatever came on the last one was taken in before it was seen to end.
//!
//! *What was decided and never acted on is void.* The lost controller may have decided epochs after E of which nobody knows. To
//! go back to E would do, since nobody who reported can tell the difference. The jump is for those who did not report: a
//! node that was declared gone (`without`) and comes back speaks in an epoch that is over, names it in its proposals, and is no
//! member; whatever it acknowledged alone is given up, which is what the declaration says.
//!
//! A node whose disk has nothing of a partition of its shard may have had another disk, of which nobody knows how far it came:
//! it has to be declared gone, too, as far as that disk is concerned.
//!
//! # Invariants
//! * Where one report that matters is missing, the map is not made.

use crate::cluster::{Cluster, InvalidShape, Shape, Strangers};
use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition},
    ids::{ClusterId, DiskId, Epoch, MapVersion, Member, NodeId, PartitionId, ShardId},
    report::NodeReport,
};
use std::collections::{BTreeMap, BTreeSet};

/// More changes than one partition ever went through without any of its nodes knowing of one; likewise of the map.
pub const JUMP: u64 = 1 << 20;

/// What the person who asks knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// How many shards there are; needed only if no node remembers the map, as the next three.
    pub shards: Option<u16>,
    /// How many nodes each shard has.
    pub replicas: Option<u16>,
    /// How many partitions there are.
    pub partitions: Option<u16>,
    /// What a write waits for.
    pub ack: Option<AckMode>,
    /// Nodes that are gone for good, or have lost their disks: what only they knew is given up.
    pub without: BTreeSet<NodeId>,
}

/// Why the map cannot be made; each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody has reported that has data.
    #[error("none of these nodes has data of a cluster: name all nodes by --node")]
    NoData,
    /// A controller runs.
    #[error(
        "node {0} is connected to a controller, from which it may learn what is not in its report: stop all routers first"
    )]
    HasController(NodeId),
    /// Two reports of one node.
    #[error("node {0} has reported twice: name each node once")]
    Twice(NodeId),
    /// Nodes of different clusters.
    #[error(
        "node {node} has data of cluster {theirs}, but others of cluster {ours}: name the nodes of one cluster only"
    )]
    OtherCluster {
        /// The node.
        node: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// That of the others.
        ours: ClusterId,
    },
    /// Nobody remembers a number of the map.
    #[error("no node remembers the map: say by --{0} how the cluster was made")]
    Unknown(&'static str),
    /// A flag says something else than the nodes know.
    #[error("--{flag} {asked} was given, but the cluster was made with {known}: leave the flag away")]
    Differs {
        /// The flag.
        flag: &'static str,
        /// Its value.
        asked: String,
        /// What the nodes know.
        known: String,
    },
    /// No cluster can have these numbers.
    #[error(transparent)]
    Shape(#[from] InvalidShape),
    /// A node is in a shard, or has a partition, beyond the cluster's.
    #[error("node {node} has {what}, which is more than the cluster was made with: correct --shards or --partitions")]
    Beyond {
        /// The node.
        node: NodeId,
        /// What.
        what: String,
    },
    /// A node is known and has not reported.
    #[error(
        "node {node} of shard {shard} has not reported: start it and name it by --node. If it is gone for good, --without \
         {node} goes on without what only it knew, which may be acknowledged writes"
    )]
    Missing {
        /// The node.
        node: NodeId,
        /// Its shard.
        shard: ShardId,
    },
    /// A shard has more nodes than have reported, whoever they are.
    #[error(
        "{reported} of the {replicas} nodes of shard {shard} have reported: name all of them by --node, and those that are \
         gone for good by --without"
    )]
    TooFew {
        /// The shard.
        shard: ShardId,
        /// How many have reported.
        reported: usize,
        /// How many there are.
        replicas: u16,
    },
    /// A member came back with another disk.
    #[error(
        "{member} is a member of partition {partition}, but the node has disk {has} now: if the old disk is gone for good, \
         --without {} goes on without what only it knew, which may be acknowledged writes", member.node
    )]
    OtherDisk {
        /// The partition.
        partition: PartitionId,
        /// The member.
        member: Member,
        /// The disk that the node has.
        has: DiskId,
    },
    /// A node of the shard has never had the partition on this disk.
    #[error(
        "node {node} has nothing of partition {partition} of its shard, so that it may have had another disk: if it had and that \
         is gone for good, or if it never had any, --without {node} goes on without what only that disk knew"
    )]
    NothingOf {
        /// The node.
        node: NodeId,
        /// The partition.
        partition: PartitionId,
    },
    /// Members of one partition in different shards.
    #[error("the members of partition {0} are in different shards: a node was started with another --shard")]
    Scattered(PartitionId),
    /// All members of the newest configuration are gone.
    #[error("no member of partition {0} has reported: its data are nowhere")]
    NobodyHas(PartitionId),
    /// Other partitions are there.
    #[error(
        "no node has ever had partition {0}, though others are there: its nodes are missing, or --partitions is wrong"
    )]
    Nowhere(PartitionId),
    /// Two configurations of one epoch.
    #[error("two nodes know different configurations of epoch {epoch} of partition {partition}, which cannot be")]
    Contradiction {
        /// The partition.
        partition: PartitionId,
        /// The epoch.
        epoch: Epoch,
    },
}

/// Makes the map from the reports of all nodes.
///
/// # Errors
/// When a report that matters is missing, or they do not fit together.
pub fn rebuild(reports: &[NodeReport], asked: &Asked) -> Result<Cluster, Refusal> {
    if let Some(report) = reports.iter().find(|r| r.has_controller) {
        return Err(Refusal::HasController(report.node.id));
    }
    let mut ids = BTreeSet::new();
    if let Some(twice) = reports.iter().find(|r| !ids.insert(r.node.id)) {
        return Err(Refusal::Twice(twice.node.id));
    }
    let ours = reports.iter().find_map(|r| r.cluster).ok_or(Refusal::NoData)?;
    if let Some((node, theirs)) = reports.iter().find_map(|r| Some((r.node.id, r.cluster.filter(|c| *c != ours)?))) {
        return Err(Refusal::OtherCluster { node, theirs, ours });
    }
    let maps = || reports.iter().filter_map(|r| r.map.as_ref()).filter(|m| m.cluster == ours);
    let newest = maps().max_by_key(|m| m.version);
    let shape = shape(newest, asked)?;
    let mut cluster = Cluster::new(ours, shape)?;
    let mut known = known_nodes(reports, newest, shape)?;

    let mut newest_of = Vec::new();
    for partition in (0..shape.partitions).map(PartitionId) {
        let told = maps().filter_map(|m| m.configuration(partition));
        let kept = reports.iter().flat_map(|r| &r.replicas).filter(|r| r.partition == partition);
        newest_of.push(newest_configuration(partition, told.chain(kept.filter_map(|r| r.configuration.as_ref())))?);
    }
    let lacking = newest_of.iter().position(Option::is_none).map(|at| PartitionId(at as u16));
    if let Some(partition) = lacking {
        return Err(if newest_of.iter().all(Option::is_none) { Refusal::NoData } else { Refusal::Nowhere(partition) });
    }
    let shard_of: BTreeMap<NodeId, &NodeReport> = reports.iter().map(|r| (r.node.id, r)).collect();
    let mut partitions = Vec::new();
    for (partition, configuration) in (0..).map(PartitionId).zip(newest_of.into_iter().flatten()) {
        let shard = check_members(partition, &configuration, &shard_of, asked)?;
        known[usize::from(shard.0)].extend(configuration.members().map(|m| m.node));
        let epoch = Epoch(configuration.epoch.0 + JUMP);
        partitions.push(Partition { shard, configuration: Some(Configuration { epoch, ..configuration }) });
    }
    check_shards(&known, reports, &partitions, shape, asked)?;

    let map = &mut cluster.map;
    map.version = MapVersion(maps().map(|m| m.version.0).max().unwrap_or(0) + JUMP);
    map.partitions = partitions;
    map.nodes = reports.iter().filter(|r| r.cluster.is_some()).map(|r| r.node.clone()).collect();
    map.nodes.sort_by_key(|n| n.id);
    for (shard, at) in map.shards.iter_mut().zip(0..) {
        let mut of_shard: Vec<&Node> = map.nodes.iter().filter(|n| n.shard == ShardId(at)).collect();
        of_shard.sort_by_key(|n| (!n.prefers_to_lead, n.id));
        shard.nodes = of_shard.iter().map(|n| n.id).collect();
    }
    cluster.strangers = Strangers::default();
    Ok(cluster)
}

/// How the cluster was made.
fn shape(map: Option<&ClusterMap>, asked: &Asked) -> Result<Shape, Refusal> {
    fn one<T: Copy + PartialEq + ToString>(
        flag: &'static str,
        known: Option<T>,
        asked: Option<T>,
    ) -> Result<T, Refusal> {
        match (known, asked) {
            (Some(known), Some(asked)) if known != asked => {
                Err(Refusal::Differs { flag, asked: asked.to_string(), known: known.to_string() })
            }
            (Some(value), _) | (None, Some(value)) => Ok(value),
            (None, None) => Err(Refusal::Unknown(flag)),
        }
    }
    Ok(Shape {
        shards: one("shards", map.map(|m| m.shards.len() as u16), asked.shards)?,
        replicas: one("replicas", map.map(|m| m.replicas), asked.replicas)?,
        partitions: one("partitions", map.map(ClusterMap::partition_count), asked.partitions)?,
        ack: one("ack", map.map(|m| m.ack), asked.ack)?,
    })
}

/// The nodes of each shard that have reported or are in the map.
fn known_nodes(
    reports: &[NodeReport],
    map: Option<&ClusterMap>,
    shape: Shape,
) -> Result<Vec<BTreeSet<NodeId>>, Refusal> {
    let mut known = vec![BTreeSet::new(); usize::from(shape.shards)];
    if let Some(map) = map {
        for (known, shard) in known.iter_mut().zip(&map.shards) {
            known.extend(&shard.nodes);
        }
    }
    for report in reports {
        let (node, shard) = (report.node.id, report.node.shard);
        let Some(known) = known.get_mut(usize::from(shard.0)) else {
            return Err(Refusal::Beyond { node, what: format!("shard {shard}") });
        };
        known.insert(node);
        if let Some(beyond) = report.replicas.iter().find(|r| r.partition.0 >= shape.partitions) {
            return Err(Refusal::Beyond { node, what: format!("partition {}", beyond.partition) });
        }
    }
    Ok(known)
}

fn newest_configuration<'a>(
    partition: PartitionId,
    configurations: impl Iterator<Item = &'a Configuration>,
) -> Result<Option<Configuration>, Refusal> {
    let mut newest: Option<&Configuration> = None;
    for configuration in configurations {
        match newest {
            Some(n) if n.epoch > configuration.epoch => {}
            Some(n) if n.epoch == configuration.epoch && n != configuration => {
                return Err(Refusal::Contradiction { partition, epoch: n.epoch });
            }
            _ => newest = Some(configuration),
        }
    }
    Ok(newest.cloned())
}

/// The shard of a partition whose members are all there, with their disks, or declared gone.
fn check_members(
    partition: PartitionId,
    configuration: &Configuration,
    reports: &BTreeMap<NodeId, &NodeReport>,
    asked: &Asked,
) -> Result<ShardId, Refusal> {
    let mut shard = None;
    let mut lost = None;
    for member in configuration.members() {
        match reports.get(&member.node) {
            Some(report) if report.node.disk == member.disk => {
                if shard.replace(report.node.shard).is_some_and(|before| before != report.node.shard) {
                    return Err(Refusal::Scattered(partition));
                }
            }
            _ if asked.without.contains(&member.node) => {}
            Some(report) => return Err(Refusal::OtherDisk { partition, member, has: report.node.disk }),
            None => lost = Some(member.node),
        }
    }
    match (shard, lost) {
        (Some(shard), Some(node)) => Err(Refusal::Missing { node, shard }),
        (Some(shard), None) => Ok(shard),
        (None, _) => Err(Refusal::NobodyHas(partition)),
    }
}

/// All nodes of every shard have reported, and each has something of every partition of its shard, or is declared gone.
fn check_shards(
    known: &[BTreeSet<NodeId>],
    reports: &[NodeReport],
    partitions: &[Partition],
    shape: Shape,
    asked: &Asked,
) -> Result<(), Refusal> {
    // Gone, and in no report: of whichever shard.
    let unknown = asked.without.iter().filter(|n| !known.iter().any(|k| k.contains(*n))).count();
    for (shard, known) in (0..).map(ShardId).zip(known) {
        let here: Vec<&NodeReport> = reports.iter().filter(|r| r.node.shard == shard).collect();
        let missing = known.iter().find(|n| !here.iter().any(|r| r.node.id == **n) && !asked.without.contains(*n));
        if let Some(node) = missing {
            return Err(Refusal::Missing { node: *node, shard });
        }
        let gone = known.iter().filter(|n| !here.iter().any(|r| r.node.id == **n)).count();
        if here.len() + gone + unknown < usize::from(shape.replicas) {
            return Err(Refusal::TooFew { shard, reported: here.len(), replicas: shape.replicas });
        }
        for report in here.into_iter().filter(|r| !asked.without.contains(&r.node.id)) {
            let has = |p: PartitionId| report.replicas.iter().any(|r| r.partition == p && r.configuration.is_some());
            let of_shard = (0..).map(PartitionId).zip(partitions).filter(|(_, p)| p.shard == shard);
            if let Some((partition, _)) = of_shard.into_iter().find(|(id, _)| !has(*id)) {
                return Err(Refusal::NothingOf { node: report.node.id, partition });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Command;
    use kv_proto::{
        control::{Change, Proposal},
        ids::HistoryId,
        replication::Position,
        report::ReplicaReport,
    };

    const OURS: ClusterId = ClusterId(7);
    const SHAPE: Shape = Shape { shards: 2, replicas: 2, partitions: 6, ack: AckMode::Durable };
    const NODES: [(&str, u16); 4] = [("a0", 0), ("b0", 0), ("a1", 1), ("b1", 1)];

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("a node id")
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new(OURS, SHAPE).expect("possible");
        for (disk, (name, shard)) in (1..).zip(NODES) {
            let node = Node {
                id: id(name),
                disk: DiskId(disk),
                shard: ShardId(shard),
                prefers_to_lead: name.starts_with('a'),
                address: "127.0.0.1:1".to_owned(),
                executors: 1,
            };
            cluster.apply(&Command::Register { cluster: None, node }).expect(name);
        }
        cluster
    }

    fn propose(cluster: &mut Cluster, partition: u16, change: Change) {
        let partition = PartitionId(partition);
        let epoch = cluster.map.configuration(partition).expect("created").epoch;
        cluster.apply(&Command::Propose(vec![Proposal { id: 1, partition, epoch, change }])).expect("decided");
        let next = cluster.map.configuration(partition).expect("created").epoch;
        assert_eq!(next, epoch.next(), "it was carried out");
    }

    /// What the nodes of a cluster have if all know of everything; with a map only if it was not restarted.
    fn reports(cluster: &Cluster, with_map: bool) -> Vec<NodeReport> {
        let report = |node: &Node| NodeReport {
            cluster: Some(cluster.map.cluster),
            node: node.clone(),
            has_controller: false,
            map: with_map.then(|| cluster.map.clone()),
            replicas: cluster
                .map
                .partitions()
                .filter(|(_, p)| p.shard == node.shard)
                .map(|(partition, p)| ReplicaReport {
                    partition,
                    configuration: p.configuration.clone(),
                    last: Position::default(),
                    fault: None,
                })
                .collect(),
        };
        cluster.map.nodes.iter().map(report).collect()
    }

    fn flags() -> Asked {
        let Shape { shards, replicas, partitions, ack } = SHAPE;
        let without = BTreeSet::new();
        Asked { shards: Some(shards), replicas: Some(replicas), partitions: Some(partitions), ack: Some(ack), without }
    }

    #[test]
    fn the_map_is_what_it_was_in_later_epochs() {
        let mut lost = cluster();
        let leader = lost.map.configuration(PartitionId(2)).expect("created").leader;
        propose(&mut lost, 2, Change::Reopen { leader });
        for (with_map, asked) in [(true, Asked::default()), (true, flags()), (false, flags())] {
            let made = rebuild(&reports(&lost, with_map), &asked).expect("complete");
            assert_eq!((made.shape(), &made.map.nodes, &made.map.shards), (SHAPE, &lost.map.nodes, &lost.map.shards));
            assert!(made.map.version.0 >= lost.map.version.0 * u64::from(with_map) + JUMP);
            for (was, is) in lost.map.partitions.iter().zip(&made.map.partitions) {
                let (was_c, is_c) = (was.configuration.as_ref().expect("was"), is.configuration.as_ref().expect("is"));
                assert_eq!(is_c.epoch, Epoch(was_c.epoch.0 + JUMP));
                assert_eq!((is.shard, is_c.leader, &is_c.in_sync), (was.shard, was_c.leader, &was_c.in_sync));
            }
        }
    }

    /// The case for which the members of the newest configuration that is known are not enough.
    #[test]
    fn who_took_over_unseen_by_the_last_leader_is_not_forgotten() {
        let mut lost = cluster();
        let Configuration { leader, in_sync, .. } = lost.map.configuration(PartitionId(0)).expect("created").clone();
        let other = in_sync[0];
        propose(&mut lost, 0, Change::Drop { leader, followers: vec![other] });
        let of_leader = reports(&lost, false);
        propose(&mut lost, 0, Change::Add { leader, learner: other });
        propose(&mut lost, 0, Change::Takeover { follower: other, in_sync: vec![] });
        let all = reports(&lost, false);
        let seen_by = |node: &NodeReport| if node.node.id == other.node { &all } else { &of_leader };
        let known: Vec<NodeReport> = all
            .iter()
            .map(|r| seen_by(r).iter().find(|s| s.node.id == r.node.id).expect("the same nodes").clone())
            .collect();
        let made = rebuild(&known, &flags()).expect("complete");
        let configuration = made.map.configuration(PartitionId(0)).expect("is");
        assert_eq!((configuration.leader, configuration.epoch), (other, Epoch(4 + JUMP)));

        let alone: Vec<_> = known.into_iter().filter(|r| r.node.id != other.node).collect();
        let refusal = rebuild(&alone, &flags()).expect_err("one is missing");
        assert!(matches!(refusal, Refusal::TooFew { .. } | Refusal::Missing { .. }), "{refusal}");
    }

    #[test]
    fn where_a_report_is_missing_the_map_is_not_made() {
        let lost = cluster();
        type Change = fn(&mut Vec<NodeReport>, &mut Asked);
        let cases: [(&str, Change); 13] = [
            ("none of these nodes has data", |r, _| r.clear()),
            ("none of these nodes has data", |r, _| r.iter_mut().for_each(|r| r.replicas.clear())),
            ("node b1 is connected to a controller", |r, _| r[3].has_controller = true),
            ("node a0 has reported twice", |r, _| r.push(r[0].clone())),
            ("b1 has data of cluster", |r, _| r[3].cluster = Some(ClusterId(8))),
            ("say by --partitions", |_, a| a.partitions = None),
            ("has partition 5, which is more", |_, a| a.partitions = Some(5)),
            ("has shard 1, which is more", |_, a| a.shards = Some(1)),
            ("node b0 of shard 0 has not reported", |r, _| drop(r.remove(2))),
            ("2 of the 3 nodes of shard 0", |_, a| a.replicas = Some(3)),
            ("but the node has disk", |r, _| r[0].node.disk = DiskId(99)),
            ("has nothing of partition", |r, _| drop(r[0].replicas.pop())),
            ("two nodes know different configurations of epoch 1", |r, _| {
                let configuration = r[0].replicas[0].configuration.as_mut().expect("created");
                configuration.history = HistoryId(99);
            }),
        ];
        for (expected, change) in cases {
            let (mut reports, mut asked) = (reports(&lost, false), flags());
            reports.sort_by_key(|r| r.node.shard);
            reports.sort_by_key(|r| r.node.id);
            change(&mut reports, &mut asked);
            let refusal = rebuild(&reports, &asked).expect_err(expected).to_string();
            assert!(refusal.contains(expected), "{expected}: {refusal}");
        }
        let refusal = rebuild(&reports(&lost, true), &Asked { replicas: Some(3), ..flags() }).expect_err("differs");
        assert!(refusal.to_string().contains("--replicas 3 was given, but the cluster was made with 2"), "{refusal}");
    }

    #[test]
    fn who_is_declared_gone_need_not_report() {
        let lost = cluster();
        let mut asked = flags();
        asked.without = BTreeSet::from([id("b0"), id("a1")]);
        let left: Vec<_> = reports(&lost, false).into_iter().filter(|r| !asked.without.contains(&r.node.id)).collect();
        let made = rebuild(&left, &asked).expect("the others are there");
        assert_eq!(made.map.shards[0].nodes, [id("a0")]);
        let shard_one = made.map.partitions.iter().find(|p| p.shard == ShardId(1)).expect("placed");
        let leader = shard_one.configuration.as_ref().expect("created").leader;
        assert_eq!(leader.node, id("a1"), "whom its follower replaces as always");
        // With both copies gone there is nothing to go on with.
        asked.without.insert(id("b1"));
        let left: Vec<_> = left.into_iter().filter(|r| r.node.id != id("b1")).collect();
        let refusal = rebuild(&left, &asked).expect_err("nobody has it");
        assert!(matches!(refusal, Refusal::Nowhere(_)), "{refusal}");
        let told: Vec<_> = reports(&lost, true).into_iter().filter(|r| r.node.id == id("a0")).collect();
        assert!(matches!(rebuild(&told, &asked), Err(Refusal::NobodyHas(_))));
    }
}
