//! Which connection asks which executor of which node for which keys. Pure.
//!
//! # Invariants
//! * A key is asked only where its partition is led, and on the executor that owns it.
//! * Every key is asked by some connection.

use crate::keyspace;
use kv_client::Address;
use kv_proto::{
    cluster_map::ClusterMap,
    ids::{ExecutorIndex, NodeId, PartitionId},
    routing::partition_of,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Which executor of a leader owns which of its partitions.
pub(crate) type Owners = HashMap<NodeId, HashMap<PartitionId, ExecutorIndex>>;

/// One executor of one node, and the keys that it owns as leader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) node: NodeId,
    pub(crate) executor: ExecutorIndex,
    pub(crate) address: Address,
    /// Indices of keys, ascending; never empty.
    pub(crate) keys: Vec<u32>,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    /// Counted over all connections.
    pub(crate) index: u32,
    pub(crate) target: Arc<Target>,
    /// The connection loads every `of`th key of its target, from the `share`th on.
    pub(crate) share: usize,
    pub(crate) of: usize,
}

impl Lane {
    /// The keys that this connection writes before the measurement.
    pub(crate) fn keys_to_load(&self) -> impl Iterator<Item = u32> + use<> {
        let (target, of) = (Arc::clone(&self.target), self.of);
        (self.share..target.keys.len()).step_by(of).map(move |i| target.keys[i])
    }
}

/// Why the load cannot be shared out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("partition {0} has no leader; wait until the cluster is ready")]
    NoLeader(PartitionId),
    #[error("the cluster map has no usable address for {0}, which leads partitions; wait until it has registered")]
    NoAddress(NodeId),
    #[error(
        "{connections} connections do not reach all {targets} executors that lead; use --connections {targets} or more"
    )]
    TooFewConnections { connections: u32, targets: usize },
}

/// Shares `keys` and `connections` out.
pub(crate) fn plan(map: &ClusterMap, owners: &Owners, keys: u32, connections: u32) -> Result<Vec<Lane>, PlanError> {
    let mut places = Vec::with_capacity(map.partitions.len());
    for (partition, p) in map.partitions() {
        let node = p.configuration.as_ref().ok_or(PlanError::NoLeader(partition))?.leader.node;
        let executor = owners.get(&node).and_then(|o| o.get(&partition)).copied().unwrap_or_default();
        places.push((node, executor));
    }
    let mut keys_of: BTreeMap<(NodeId, ExecutorIndex), Vec<u32>> = BTreeMap::new();
    for index in 0..keys {
        let partition = partition_of(&keyspace::key(index), map.partition_count());
        keys_of.entry(places[usize::from(partition.0)]).or_default().push(index);
    }
    let mut targets = Vec::with_capacity(keys_of.len());
    for ((node, executor), keys) in keys_of {
        let address = map.node(node).and_then(|n| n.address.parse().ok()).ok_or(PlanError::NoAddress(node))?;
        targets.push(Arc::new(Target { node, executor, address, keys }));
    }
    if (connections as usize) < targets.len() {
        return Err(PlanError::TooFewConnections { connections, targets: targets.len() });
    }
    let lanes = (0..connections).map(|index| {
        let (share, target) = (index as usize / targets.len(), index as usize % targets.len());
        let of = (connections as usize - target).div_ceil(targets.len());
        Lane { index, target: Arc::clone(&targets[target]), share, of }
    });
    Ok(lanes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Configuration, Node, Partition, Shard},
        ids::{ClusterId, DiskId, Epoch, HistoryId, MapVersion, Member, ShardId},
    };
    use std::collections::HashSet;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    /// A map whose partitions are led by these nodes in turn.
    fn map(partitions: u16, leaders: &[&str]) -> ClusterMap {
        let nodes = leaders.iter().map(|name| Node {
            id: node(name),
            disk: DiskId(1),
            shard: ShardId(0),
            prefers_to_lead: true,
            address: format!("{name}:1"),
            executors: 2,
        });
        let partition = |i: u16| {
            let leader = Member { node: node(leaders[usize::from(i) % leaders.len()]), disk: DiskId(1) };
            let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync: vec![] };
            Partition { shard: ShardId(0), configuration: Some(configuration) }
        };
        ClusterMap {
            cluster: ClusterId(1),
            version: MapVersion(1),
            replicas: 1,
            ack: AckMode::Durable,
            shards: vec![Shard::default()],
            nodes: nodes.collect(),
            partitions: (0..partitions).map(partition).collect(),
        }
    }

    #[test]
    fn every_key_is_loaded_once_and_only_where_its_partition_lives() {
        let map = map(8, &["a", "b", "c"]);
        // Node a has told its owners, b and c have not.
        let owners = Owners::from([(node("a"), HashMap::from([(PartitionId(3), ExecutorIndex(1))]))]);
        for connections in [4, 5, 7, 50] {
            let lanes = plan(&map, &owners, 10_000, connections).expect("possible");
            assert_eq!(lanes.len(), connections as usize);
            let mut seen = HashSet::new();
            for lane in &lanes {
                for index in lane.keys_to_load() {
                    assert!(seen.insert(index), "key {index} is loaded twice");
                    let partition = partition_of(&keyspace::key(index), 8);
                    assert_eq!(map.configuration(partition).expect("led").leader.node, lane.target.node);
                    assert_eq!(lane.target.executor, ExecutorIndex(u16::from(partition.0 == 3)));
                }
            }
            assert_eq!(seen.len(), 10_000);
        }
    }

    #[test]
    fn connections_are_shared_out_evenly() {
        let lanes = plan(&map(64, &["a", "b", "c"]), &Owners::new(), 10_000, 50).expect("possible");
        let count = |name| lanes.iter().filter(|l| l.target.node == node(name)).count();
        assert_eq!([count("a"), count("b"), count("c")], [17, 17, 16]);
    }

    #[test]
    fn what_is_impossible_is_said() {
        let error = plan(&map(8, &["a", "b", "c"]), &Owners::new(), 1000, 2).expect_err("too few");
        assert_eq!(error, PlanError::TooFewConnections { connections: 2, targets: 3 });
        let mut headless = map(8, &["a"]);
        headless.partitions[5].configuration = None;
        assert_eq!(plan(&headless, &Owners::new(), 1, 1).expect_err("no leader"), PlanError::NoLeader(PartitionId(5)));
        let mut homeless = map(8, &["a"]);
        homeless.nodes.clear();
        assert_eq!(plan(&homeless, &Owners::new(), 1, 1).expect_err("no address"), PlanError::NoAddress(node("a")));
    }
}
