//! The controller of the simulation: the real cluster with its check of proposals. What travels to it and from it is late, lost
//! and repeated (see `network.rs`).

use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node},
    control::{Change, Proposal},
    ids::{ClusterId, Member, PartitionId, ShardId},
};
use kv_replication::cluster::{Cluster, Command, Shape};
use std::rc::Rc;

pub(crate) struct Controller {
    cluster: Cluster,
    /// Every map that there was; the last is the current one.
    pub(crate) maps: Vec<Rc<ClusterMap>>,
    /// Does not check who is a member.
    lenient: bool,
    /// Until when nobody reaches it.
    pub(crate) away_until: u64,
}

impl Controller {
    pub(crate) fn new(nodes: u16, partitions: u16, ack: AckMode, lenient: bool) -> Self {
        let shape = Shape { shards: 1, replicas: nodes, partitions, ack };
        let cluster = Cluster::new(ClusterId(5), shape).expect("a possible shape");
        let maps = vec![Rc::new(cluster.map.clone())];
        Controller { cluster, maps, lenient, away_until: 0 }
    }

    pub(crate) fn map(&self) -> &Rc<ClusterMap> {
        self.maps.last().expect("there is always one")
    }

    /// A partition's configuration; there is one once all nodes have registered.
    pub(crate) fn configuration(&self, partition: usize) -> Option<&Configuration> {
        self.map().configuration(PartitionId(partition as u16))
    }

    pub(crate) fn register(&mut self, member: Member) {
        let node = Node {
            id: member.node,
            disk: member.disk,
            shard: ShardId(0),
            prefers_to_lead: member.node.as_str() == "n0",
            address: "127.0.0.1:5001".to_owned(),
            executors: 2,
        };
        let command = Command::Register { cluster: None, node };
        self.cluster.apply(&command).expect("a node of the cluster");
        self.keep();
    }

    /// Decides; whether something changed.
    pub(crate) fn propose(&mut self, proposal: &Proposal) -> bool {
        self.cluster.apply(&Command::Propose(vec![proposal.clone()])).expect("proposals are no registrations");
        if self.lenient
            && let Some(next) = self.without_check(proposal)
        {
            self.cluster.map.partitions[usize::from(proposal.partition.0)].configuration = Some(next);
            self.cluster.map.version.0 += 1;
        }
        self.keep()
    }

    fn keep(&mut self) -> bool {
        let changed = self.map().version != self.cluster.map.version;
        if changed {
            self.maps.push(Rc::new(self.cluster.map.clone()));
        }
        changed
    }

    /// What a takeover comes to where nobody checks who asks.
    fn without_check(&self, proposal: &Proposal) -> Option<Configuration> {
        let current = self.cluster.map.configuration(proposal.partition)?;
        let (leader, in_sync) = match &proposal.change {
            Change::Takeover { follower, in_sync } => (*follower, in_sync.clone()),
            Change::Handoff { to, in_sync, .. } => (*to, in_sync.clone()),
            _ => return None,
        };
        let next = Configuration { epoch: current.epoch.next(), history: current.history, leader, in_sync };
        (proposal.epoch == current.epoch).then_some(next)
    }
}
