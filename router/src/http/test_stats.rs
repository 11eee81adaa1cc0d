//! What a node answers that has little to tell, for tests.

use kv_proto::{
    ids::{DiskId, Epoch, ExecutorIndex, Lsn, NodeId, PartitionId},
    stats::{NodeStats, ReplicaStats, Role},
};

/// A node whose replicas of these partitions are all alike.
pub(super) fn node_stats(
    (node, disk): (NodeId, DiskId),
    partitions: &[u16],
    role: Role,
    epoch: u64,
    trouble: Option<&str>,
) -> NodeStats {
    let replica = |partition: &u16| ReplicaStats {
        partition: PartitionId(*partition),
        executor: ExecutorIndex(0),
        epoch: Epoch(epoch),
        role,
        trouble: trouble.map(str::to_string),
        prepared_lsn: Lsn(0),
        flushed_lsn: Lsn(0),
        committed_lsn: Lsn(0),
        applied_lsn: Lsn(0),
        keys: 0,
        bytes: 0,
        memory_bytes: 0,
        digest: "0".repeat(16),
    };
    NodeStats {
        node,
        disk,
        uptime_s: 1,
        connections: 1,
        requests: 1,
        memory_bytes: 0,
        max_memory_bytes: None,
        generation: 1,
        log_bytes: 0,
        disk_full: false,
        replicas: partitions.iter().map(replica).collect(),
    }
}
