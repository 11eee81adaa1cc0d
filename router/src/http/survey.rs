//! How the cluster is: the map, and what each node says of itself. `/readyz` and `/v1/topology` tell it.

use kv_client::Client;
use kv_proto::{
    cluster_map::{ClusterMap, Configuration},
    ids::{NodeId, PartitionId},
    stats::{NodeStats, Role},
};
use serde::Serialize;
use std::collections::BTreeMap;
use tokio::task::JoinSet;

/// What each node says of itself, or why it says nothing.
pub(super) type Answers = BTreeMap<NodeId, Result<NodeStats, String>>;

/// Asks all nodes of a map at once.
pub(super) async fn ask(client: &Client, map: &ClusterMap) -> Answers {
    let mut asked = JoinSet::new();
    for node in map.nodes.iter().map(|n| n.id) {
        let client = client.clone();
        asked.spawn(async move { (node, client.node_stats(node).await.map_err(|e| e.to_string())) });
    }
    asked.join_all().await.into_iter().collect()
}

/// Why some keys cannot be written now; `None` when all can.
pub(super) fn why_not_ready(map: &ClusterMap, answers: &Answers) -> Option<String> {
    if !map.is_complete() {
        let lacking: Vec<String> = map
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| shard.nodes.len() < usize::from(map.replicas))
            .map(|(id, shard)| format!("shard {id} has {} of {}", shard.nodes.len(), map.replicas))
            .collect();
        return Some(format!("not all nodes have registered: {}", lacking.join(", ")));
    }
    let troubles: Vec<(PartitionId, String)> = map
        .partitions()
        .filter_map(|(id, partition)| Some((id, trouble(id, partition.configuration.as_ref()?, answers)?)))
        .collect();
    let (partition, why) = troubles.first()?;
    let of = (troubles.len(), map.partition_count());
    Some(format!("{} of {} partitions take no writes now; partition {partition}: {why}", of.0, of.1))
}

fn trouble(partition: PartitionId, configuration: &Configuration, answers: &Answers) -> Option<String> {
    let leader = configuration.leader.node;
    let stats = match answers.get(&leader) {
        Some(Ok(stats)) => stats,
        Some(Err(error)) => return Some(format!("its leader {leader} does not answer: {error}")),
        None => return Some(format!("its leader {leader} was not asked")),
    };
    let Some(replica) = stats.replicas.iter().find(|r| r.partition == partition) else {
        return Some(format!("{leader} does not know yet that it leads it"));
    };
    if let Some(trouble) = &replica.trouble {
        return Some(format!("{leader}: {trouble}"));
    }
    if replica.role != Role::Leader || replica.epoch != configuration.epoch {
        let (role, epoch) = (replica.role.as_str(), replica.epoch);
        return Some(format!(
            "{leader} is its {role} in epoch {epoch}, not its leader in epoch {}",
            configuration.epoch
        ));
    }
    None
}

/// The cluster as `/v1/topology` tells it.
#[derive(Serialize)]
pub(super) struct Topology<'a> {
    /// The router that answers.
    pub(super) router: NodeId,
    /// The map.
    pub(super) map: &'a ClusterMap,
    /// Its nodes, ordered by id.
    pub(super) nodes: Vec<NodeState<'a>>,
}

/// One node: its statistics, or why there are none.
#[derive(Serialize)]
pub(super) struct NodeState<'a> {
    node: NodeId,
    stats: Option<&'a NodeStats>,
    error: Option<&'a str>,
}

impl<'a> Topology<'a> {
    pub(super) fn new(router: NodeId, map: &'a ClusterMap, answers: &'a Answers) -> Self {
        let state = |(node, answer): (&NodeId, &'a Result<NodeStats, String>)| NodeState {
            node: *node,
            stats: answer.as_ref().ok(),
            error: answer.as_ref().err().map(String::as_str),
        };
        Topology { router, map, nodes: answers.iter().map(state).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{ClusterId, DiskId, Epoch, ExecutorIndex, Lsn, ShardId},
        stats::ReplicaStats,
    };
    use kv_replication::cluster::{Cluster, Command, Shape};

    fn map(nodes: &[&str]) -> ClusterMap {
        let shape = Shape { shards: 1, replicas: 2, partitions: 2, ack: AckMode::Durable };
        let mut cluster = Cluster::new(ClusterId(1), shape).expect("possible");
        for name in nodes {
            let node = Node {
                id: NodeId::new(name).expect("a node id"),
                disk: DiskId(1),
                shard: ShardId(0),
                prefers_to_lead: *name == "a",
                address: "127.0.0.1:1".to_string(),
                executors: 1,
            };
            cluster.apply(&Command::Register { cluster: None, node }).expect("registered");
        }
        cluster.map
    }

    fn stats(role: Role, epoch: u64, trouble: Option<&str>) -> NodeStats {
        let replica = |partition| ReplicaStats {
            partition: PartitionId(partition),
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
            node: NodeId::new("a").expect("a node id"),
            disk: DiskId(1),
            uptime_s: 1,
            connections: 1,
            requests: 1,
            memory_bytes: 0,
            max_memory_bytes: None,
            generation: 1,
            log_bytes: 0,
            disk_full: false,
            replicas: vec![replica(0), replica(1)],
        }
    }

    #[test]
    fn ready_is_when_every_leader_says_so() {
        let mut half = stats(Role::Leader, 1, None);
        half.replicas.pop();
        for (answer, expected) in [
            (Ok(stats(Role::Leader, 1, None)), None),
            (
                Ok(stats(Role::Leader, 1, Some("follower b cannot be reached"))),
                Some("2 of 2 partitions take no writes now; partition 0: a: follower b cannot be reached"),
            ),
            (Ok(stats(Role::Leader, 2, None)), Some("a is its leader in epoch 2, not its leader in epoch 1")),
            (Ok(stats(Role::Follower, 1, None)), Some("a is its follower in epoch 1")),
            (Ok(half), Some("1 of 2 partitions take no writes now; partition 1: a does not know yet")),
            (Err("refused".to_string()), Some("its leader a does not answer: refused")),
        ] {
            let answers = Answers::from([(NodeId::new("a").expect("a node id"), answer)]);
            let why = why_not_ready(&map(&["a", "b"]), &answers);
            match (&why, expected) {
                (Some(why), Some(expected)) => assert!(why.contains(expected), "{why}"),
                (why, expected) => assert_eq!(why.as_deref(), expected),
            }
        }
    }

    #[test]
    fn a_cluster_whose_nodes_have_not_come_is_not_ready() {
        let why = why_not_ready(&map(&["b"]), &Answers::new()).expect("not ready");
        assert_eq!(why, "not all nodes have registered: shard 0 has 1 of 2");
    }
}
