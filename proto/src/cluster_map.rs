//! The cluster map: who hosts, leads and follows each partition.
//!
//! The controller alone changes it, one partition at a time and never backwards; everyone else holds a copy
//! that may be old, and merges newer parts by their epoch.

use crate::ids::{ClusterId, DiskId, Epoch, HistoryId, MapVersion, Member, NodeId, PartitionId, ShardId};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

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
    /// What a write waits for before it is acknowledged.
    #[serde(default)]
    pub ack: AckMode,
    /// The shards, by their id.
    pub shards: Vec<Shard>,
    /// The nodes that have registered, ordered by id.
    pub nodes: Vec<Node>,
    /// The partitions, by their id.
    pub partitions: Vec<Partition>,
}

/// What a write waits for before it is acknowledged; fixed when a cluster is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// For the disks of the leader and of every in-sync follower.
    #[default]
    Durable,
    /// For the memory of all of them; their disks follow within 100 ms.
    Replicated,
}

impl AckMode {
    /// The text that stands for it in flags and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AckMode::Durable => "durable",
            AckMode::Replicated => "replicated",
        }
    }
}

impl fmt::Display for AckMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no [`AckMode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither durable nor replicated")]
pub struct UnknownAckMode(pub String);

impl FromStr for AckMode {
    type Err = UnknownAckMode;

    fn from_str(text: &str) -> Result<Self, UnknownAckMode> {
        let known = [AckMode::Durable, AckMode::Replicated].into_iter().find(|mode| mode.as_str() == text);
        known.ok_or_else(|| UnknownAckMode(text.to_owned()))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// In flags, in files and on the wire.
    #[test]
    fn what_a_write_waits_for_is_the_same_word_everywhere() {
        for (mode, word, byte) in [(AckMode::Durable, "durable", 0), (AckMode::Replicated, "replicated", 1)] {
            assert_eq!((mode.to_string().as_str(), word.parse()), (word, Ok(mode)));
            assert_eq!(serde_json::to_value(mode).expect("a text"), word);
            assert_eq!(codec::encode(&mode), [byte, 0, 0, 0]);
        }
        let refused = "Durable".parse::<AckMode>().expect_err("another word").to_string();
        assert_eq!(refused, "\"Durable\" is neither durable nor replicated");
    }
}
