//! How a node and its replicas are, for people and for the router.

use crate::ids::{DiskId, Epoch, ExecutorIndex, Lsn, NodeId, PartitionId};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct NodeStats {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests answered since the start.
    pub requests: u64,
    /// Bytes of memory that its tables and the records on their way take, as it counts them.
    pub memory_bytes: u64,
    /// What these may be before it takes no more values; `None` is no limit.
    pub max_memory_bytes: Option<u64>,
    /// How often the node was started on its data.
    pub generation: u64,
    /// Bytes of the files of its log.
    pub log_bytes: u64,
    /// Whether there was no room on its disk when it last wanted some.
    pub disk_full: bool,
    /// Its replicas, ordered by partition.
    pub replicas: Vec<ReplicaStats>,
}

/// How a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ReplicaStats {
    /// The partition.
    pub partition: PartitionId,
    /// The executor that owns it.
    pub executor: ExecutorIndex,
    /// The epoch that the replica is in.
    pub epoch: Epoch,
    /// What it does there.
    pub role: Role,
    /// Why it cannot do what its role is for, in a sentence; `None` when it can.
    pub trouble: Option<String>,
    /// The last record that it has.
    pub prepared_lsn: Lsn,
    /// Everything up to here is on its disk.
    pub flushed_lsn: Lsn,
    /// Everything up to here is known to be committed.
    pub committed_lsn: Lsn,
    /// Everything up to here is in its table.
    pub applied_lsn: Lsn,
    /// Keys in its table.
    pub keys: u64,
    /// Bytes of keys and values in its table.
    pub bytes: u64,
    /// Bytes of memory that its table takes.
    pub memory_bytes: u64,
    /// Sum of the hashes of all entries, as 16 hexadecimal digits: equal tables have equal digests.
    pub digest: String,
}

/// What a replica does in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes writes and serves reads.
    Leader,
    /// Holds what the leader sends.
    Follower,
    /// Catches up with the leader, to become a follower.
    Learner,
    /// Refuses its part: it has not the data that made it a member.
    Refused,
}

impl Role {
    /// The name, as people read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Learner => "learner",
            Role::Refused => "refused",
        }
    }
}
