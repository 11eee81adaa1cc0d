//! Cluster maps for tests.

use kv_client::proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    ids::{ClusterId, DiskId, Epoch, HistoryId, MapVersion, Member, NodeId, ShardId},
};
use std::collections::BTreeSet;

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

/// A map with so many replicas of partitions that have these members, the leader first. Node `a` listens at `a:1`.
pub(crate) fn map(replicas: u16, partitions: &[&[&str]]) -> ClusterMap {
    let names: BTreeSet<&str> = partitions.iter().copied().flatten().copied().collect();
    let nodes = names.into_iter().map(|name| Node {
        id: node(name),
        disk: DiskId(1),
        shard: ShardId(0),
        prefers_to_lead: true,
        address: format!("{name}:1"),
        executors: 2,
    });
    let member = |name: &&str| Member { node: node(name), disk: DiskId(1) };
    let partition = |members: &&[&str]| {
        let (leader, in_sync) = (member(&members[0]), members[1..].iter().map(member).collect());
        let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync };
        Partition { shard: ShardId(0), configuration: Some(configuration) }
    };
    ClusterMap {
        cluster: ClusterId(1),
        version: MapVersion(1),
        replicas,
        ack: AckMode::Durable,
        shards: vec![Shard::default()],
        nodes: nodes.collect(),
        partitions: partitions.iter().map(partition).collect(),
    }
}

/// A map of so many partitions that these nodes lead in turn, each alone.
pub(crate) fn led_in_turn(partitions: usize, leaders: &[&str]) -> ClusterMap {
    let members: Vec<&[&str]> = (0..partitions).map(|i| std::slice::from_ref(&leaders[i % leaders.len()])).collect();
    map(1, &members)
}
