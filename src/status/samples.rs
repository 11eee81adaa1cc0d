//! Topologies for tests.

use super::{Health, NodeReport, Status, Topology};
use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    ids::{ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, MapVersion, Member, NodeId, PartitionId, ShardId},
    stats::{NodeStats, ReplicaStats, Role},
};

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().expect("a node id")
}

pub(crate) fn replica(partition: u16, role: Role, applied: u64, digest: &str) -> ReplicaStats {
    ReplicaStats {
        partition: PartitionId(partition),
        executor: ExecutorIndex(0),
        epoch: Epoch(1),
        role,
        trouble: None,
        prepared_lsn: Lsn(applied),
        flushed_lsn: Lsn(applied),
        committed_lsn: Lsn(applied),
        applied_lsn: Lsn(applied),
        keys: 10,
        bytes: 1000,
        memory_bytes: 1000,
        digest: digest.to_owned(),
    }
}

/// A shard of a leader and a follower, with two partitions, of which the follower holds these replicas.
pub(crate) fn topology(followers: Option<Vec<ReplicaStats>>) -> Topology {
    let (leader, follower) = (node("shard0-leader"), node("shard0-follower"));
    let member = |node, disk| Member { node, disk: DiskId(disk) };
    let partition = |configured: bool| Partition {
        shard: ShardId(0),
        configuration: configured.then(|| Configuration {
            epoch: Epoch(1),
            history: HistoryId(0),
            leader: member(leader, 1),
            in_sync: vec![member(follower, 2)],
        }),
    };
    let registered = |id, disk, address: &str| Node {
        id,
        disk: DiskId(disk),
        shard: ShardId(0),
        prefers_to_lead: disk == 1,
        address: address.to_owned(),
        executors: 1,
    };
    let stats = |node, disk, replicas| NodeStats {
        node,
        disk: DiskId(disk),
        uptime_s: 75,
        connections: 3,
        requests: 99,
        memory_bytes: 4096,
        max_memory_bytes: (disk == 1).then_some(1 << 30),
        generation: 1,
        log_bytes: 64 << 20,
        disk_full: false,
        replicas,
    };
    let leaders = vec![replica(0, Role::Leader, 7, "aa"), replica(1, Role::Leader, 5, "bb")];
    let error = followers.is_none().then(|| "connection refused".to_owned());
    Topology {
        health: Health { status: Status::Ready, problems: Vec::new() },
        map: ClusterMap {
            cluster: ClusterId(0xc),
            version: MapVersion(4),
            replicas: 2,
            ack: AckMode::Durable,
            shards: vec![Shard { nodes: vec![leader, follower] }],
            nodes: vec![registered(follower, 2, "127.0.0.1:6001"), registered(leader, 1, "127.0.0.1:5001")],
            partitions: vec![partition(true), partition(true)],
        },
        nodes: vec![
            NodeReport { node: follower, stats: followers.map(|r| stats(follower, 2, r)), error },
            NodeReport { node: leader, stats: Some(stats(leader, 1, leaders)), error: None },
        ],
    }
}
