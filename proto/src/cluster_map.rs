//! The cluster map: who hosts, leads and follows each partition.
//!
//! The controller alone changes it, one partition at a time and never backwards; everyone else holds a copy
//! that may be old, and merges newer parts by their epoch.

use crate::ids::{ClusterId, DiskId, Epoch, HistoryId, MapVersion, Member, NodeId, PartitionId, ShardId};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Most partitions that a cluster can have.
pub const MAX_PARTITIONS: u16 = 4096;

/// The whole map.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The cluster.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub version: MapVersion,
    /// How many replicas a partition has when nothing is wrong.
    pub replicas: u16,
    /// The shards, by their id.
    pub shards: Vec<Shard>,
    /// The nodes that have registered, ordered by id.
    pub nodes: Vec<Node>,
    /// The partitions, by their id.
    pub partitions: Vec<Partition>,
}

/// The nodes that host the same partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Shard {
    /// The nodes, those first that prefer to lead.
    pub nodes: Vec<NodeId>,
}

/// A node as it last registered.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// The disk that it has now.
    pub disk: DiskId,
    /// The shard that it belongs to.
    pub shard: ShardId,
    /// Whether it leads when all is well.
    pub prefers_to_lead: bool,
    /// Where clients and peers reach it, `host:port`.
    pub address: String,
    /// How many executors it has.
    pub executors: u16,
}

/// A partition: where it lives, and its configuration once it was created.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Partition {
    /// The shard that hosts it.
    pub shard: ShardId,
    /// Who leads and who follows; `None` until all nodes of the shard have registered for the first time.
    pub configuration: Option<Configuration>,
}

/// Who leads and who follows in one epoch of a partition. Leader and in-sync followers are its members.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Configuration {
    /// Version of this configuration.
    pub epoch: Epoch,
    /// The history in which its LSNs count.
    pub history: HistoryId,
    /// The leader.
    pub leader: Member,
    /// The followers that must have a record on disk before it commits.
    pub in_sync: Vec<Member>,
}

impl Configuration {
    /// Leader and in-sync followers, the leader first.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        std::iter::once(self.leader).chain(self.in_sync.iter().copied())
    }

    /// Whether this very node with this very disk is a member.
    #[must_use]
    pub fn is_member(&self, member: Member) -> bool {
        self.members().any(|m| m == member)
    }
}

impl ClusterMap {
    /// How many partitions there are.
    #[must_use]
    pub fn partition_count(&self) -> u16 {
        self.partitions.len() as u16
    }

    /// The partitions with their ids.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.partitions.iter().enumerate().map(|(i, p)| (PartitionId(i as u16), p))
    }

    /// A partition's configuration, once it has one.
    #[must_use]
    pub fn configuration(&self, partition: PartitionId) -> Option<&Configuration> {
        self.partitions.get(usize::from(partition.0))?.configuration.as_ref()
    }

    /// A node that has registered.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// Whether every partition has been created.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.partitions.iter().all(|p| p.configuration.is_some())
    }
}
