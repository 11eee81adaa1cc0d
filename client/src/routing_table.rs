//! Who leads the partition of a key, and which of its executors owns it: what the client knows of the cluster.
//! Pure.
//!
//! # Invariants
//! * A partition's configuration never goes back to an older epoch; the list of nodes never to an older version.
//! * The table knows one cluster; what another one says changes nothing.

use kv_proto::{
    cluster_map::{ClusterMap, Configuration, MAX_PARTITIONS, Partition},
    ids::{ClusterId, ExecutorIndex, NodeId, PartitionId},
    response::NodeView,
    routing::partition_of,
};
use std::{collections::HashMap, sync::Arc};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The key's partition.
    pub(crate) partition: PartitionId,
    /// Its leader.
    pub(crate) node: NodeId,
    /// The leader's executor that owns it, if the leader has told.
    pub(crate) executor: Option<ExecutorIndex>,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// There is no map.
    NoMap,
    /// The partition has no configuration.
    NoLeader(PartitionId),
}

/// What a merge was refused for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    #[error("a map of cluster {told} was told to a client of cluster {known}; make a new client for the other cluster")]
    OtherCluster { known: ClusterId, told: ClusterId },
    #[error("a map with {told} partitions was told to a client that knows {known}; their number never changes")]
    OtherPartitionCount { known: u16, told: u16 },
    #[error("a map with {0} partitions was told; a cluster has 1 to {MAX_PARTITIONS}")]
    BadPartitionCount(usize),
}

#[derive(Debug, Default)]
pub(crate) struct RoutingTable {
    map: Option<Arc<ClusterMap>>,
    owners: HashMap<NodeId, HashMap<PartitionId, ExecutorIndex>>,
    /// The answer for every partition, so that a request costs one look.
    routes: Vec<Option<Route>>,
}

impl RoutingTable {
    pub(crate) fn map(&self) -> Option<&Arc<ClusterMap>> {
        self.map.as_ref()
    }

    /// The cluster, once it is known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.map.as_ref().map(|m| m.cluster)
    }

    /// How many partitions there are, once that is known.
    pub(crate) fn partitions(&self) -> u16 {
        self.routes.len() as u16
    }

    /// Where a node listens.
    pub(crate) fn address(&self, node: NodeId) -> Option<&str> {
        self.map.as_ref()?.node(node).map(|n| n.address.as_str())
    }

    /// Where a request for this key goes.
    pub(crate) fn route(&self, key: &[u8]) -> Result<Route, NoRoute> {
        if self.routes.is_empty() {
            return Err(NoRoute::NoMap);
        }
        self.route_of(partition_of(key, self.routes.len() as u16))
    }

    /// Where a request for this partition goes; one that the cluster has not has no leader.
    pub(crate) fn route_of(&self, partition: PartitionId) -> Result<Route, NoRoute> {
        let route = self.routes.get(usize::from(partition.0)).copied().flatten();
        route.ok_or(if self.routes.is_empty() { NoRoute::NoMap } else { NoRoute::NoLeader(partition) })
    }

    /// Takes from `told` whatever is newer than what is known.
    pub(crate) fn merge_map(&mut self, told: ClusterMap) -> Result<(), MergeError> {
        let count = told.partitions.len();
        if count == 0 || count > usize::from(MAX_PARTITIONS) {
            return Err(MergeError::BadPartitionCount(count));
        }
        let Some(known) = &mut self.map else {
            self.map = Some(Arc::new(told));
            self.rebuild();
            return Ok(());
        };
        if told.cluster != known.cluster {
            return Err(MergeError::OtherCluster { known: known.cluster, told: told.cluster });
        }
        if told.partition_count() != known.partition_count() {
            let (known, told) = (known.partition_count(), told.partition_count());
            return Err(MergeError::OtherPartitionCount { known, told });
        }
        if told == **known {
            return Ok(());
        }
        let newer_list = told.version > known.version;
        let known = Arc::make_mut(known);
        let mut partitions = Vec::with_capacity(told.partitions.len());
        for (mine, theirs) in known.partitions.iter().zip(&told.partitions) {
            let shard = if newer_list { theirs.shard } else { mine.shard };
            let configuration = newer(mine.configuration.as_ref(), theirs.configuration.as_ref()).cloned();
            partitions.push(Partition { shard, configuration });
        }
        if newer_list {
            *known = told;
        }
        known.partitions = partitions;
        self.rebuild();
        Ok(())
    }

    /// Takes one partition's configuration if it is newer; says whether it was.
    pub(crate) fn merge_configuration(&mut self, partition: PartitionId, told: &Configuration) -> bool {
        let Some(map) = &mut self.map else { return false };
        let index = usize::from(partition.0);
        let is_newer = match map.partitions.get(index) {
            Some(known) => known.configuration.as_ref().is_none_or(|known| told.epoch > known.epoch),
            None => false,
        };
        if is_newer {
            Arc::make_mut(map).partitions[index].configuration = Some(told.clone());
            self.rebuild();
        }
        is_newer
    }

    /// Takes what a node said about the cluster and about itself.
    pub(crate) fn merge_view(&mut self, node: NodeId, view: NodeView) -> Result<(), MergeError> {
        if let Some(map) = view.map {
            self.merge_map(map)?;
        }
        self.owners.insert(node, view.owners.into_iter().collect());
        self.rebuild();
        Ok(())
    }

    /// Forgets which executors of a node own what.
    pub(crate) fn forget_owners(&mut self, node: NodeId) {
        if self.owners.remove(&node).is_some() {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let Some(map) = &self.map else { return };
        let route = |partition, configuration: &Configuration| {
            let node = configuration.leader.node;
            let executor = self.owners.get(&node).and_then(|owners| owners.get(&partition).copied());
            Route { partition, node, executor }
        };
        self.routes = map.partitions().map(|(id, p)| p.configuration.as_ref().map(|c| route(id, c))).collect();
    }
}

/// The configuration with the greater epoch.
fn newer<'a>(known: Option<&'a Configuration>, told: Option<&'a Configuration>) -> Option<&'a Configuration> {
    match (known, told) {
        (Some(known), Some(told)) if told.epoch > known.epoch => Some(told),
        (None, told) => told,
        (known, _) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Node, Shard},
        ids::{DiskId, Epoch, HistoryId, MapVersion, Member, ShardId},
    };

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn configuration(epoch: u64, leader: &str) -> Configuration {
        let leader = Member { node: node(leader), disk: DiskId(1) };
        Configuration { epoch: Epoch(epoch), history: HistoryId(0), leader, in_sync: Vec::new() }
    }

    /// A map whose nodes `a` and `b` listen on `host:version`; partitions as given.
    fn map(version: u64, partitions: &[Option<(u64, &str)>]) -> ClusterMap {
        let node = |name: &str| Node {
            id: node(name),
            disk: DiskId(1),
            shard: ShardId(0),
            prefers_to_lead: true,
            address: format!("host:{version}"),
            executors: 2,
        };
        let partition = |c: &Option<(u64, &str)>| Partition {
            shard: ShardId(0),
            configuration: c.map(|(epoch, leader)| configuration(epoch, leader)),
        };
        ClusterMap {
            cluster: ClusterId(1),
            version: MapVersion(version),
            replicas: 2,
            ack: AckMode::Durable,
            shards: vec![Shard { nodes: vec![] }],
            nodes: vec![node("a"), node("b")],
            partitions: partitions.iter().map(partition).collect(),
        }
    }

    fn leaders(table: &RoutingTable) -> Vec<Option<(u64, String)>> {
        let partitions = &table.map().expect("there is one").partitions;
        let leader = |c: &Configuration| (c.epoch.0, c.leader.node.to_string());
        partitions.iter().map(|p| p.configuration.as_ref().map(leader)).collect()
    }

    #[test]
    fn without_a_map_or_a_configuration_there_is_no_route() {
        let mut table = RoutingTable::default();
        assert_eq!(table.route(b"k"), Err(NoRoute::NoMap));
        table.merge_map(map(1, &[None])).expect("first");
        assert_eq!(table.route(b"k"), Err(NoRoute::NoLeader(PartitionId(0))));
        assert_eq!(table.route_of(PartitionId(1)), Err(NoRoute::NoLeader(PartitionId(1))));
        table.merge_map(map(2, &[None, None])).expect_err("another number of partitions");
    }

    #[test]
    fn a_map_of_no_or_too_many_partitions_is_refused() {
        let mut table = RoutingTable::default();
        for count in [0, usize::from(MAX_PARTITIONS) + 1, 1 << 16] {
            assert_eq!(table.merge_map(map(1, &vec![None; count])), Err(MergeError::BadPartitionCount(count)));
        }
        assert_eq!(table.route(b"k"), Err(NoRoute::NoMap));
    }

    #[test]
    fn partitions_merge_by_epoch_and_the_list_of_nodes_by_version() {
        let mut table = RoutingTable::default();
        table.merge_map(map(5, &[Some((3, "a")), Some((3, "a")), None])).expect("first");
        // An older map may still know a newer epoch, as a node does that has just taken over.
        table.merge_map(map(4, &[Some((4, "b")), Some((2, "b")), Some((1, "b"))])).expect("same cluster");
        let expected = [(4, "b"), (3, "a"), (1, "b")].map(|(e, n)| Some((e, n.to_owned())));
        assert_eq!(leaders(&table), expected);
        assert_eq!(table.address(node("a")), Some("host:5"));
        table.merge_map(map(6, &[Some((1, "a")), None, Some((2, "a"))])).expect("same cluster");
        let expected = [(4, "b"), (3, "a"), (2, "a")].map(|(e, n)| Some((e, n.to_owned())));
        assert_eq!(leaders(&table), expected);
        assert_eq!(table.address(node("a")), Some("host:6"));
        assert_eq!(table.map().expect("there is one").version, MapVersion(6));
    }

    #[test]
    fn another_cluster_changes_nothing() {
        let mut table = RoutingTable::default();
        table.merge_map(map(1, &[Some((1, "a"))])).expect("first");
        let mut other = map(9, &[Some((9, "b"))]);
        other.cluster = ClusterId(2);
        let error = table.merge_map(other).expect_err("another cluster");
        assert_eq!(error, MergeError::OtherCluster { known: ClusterId(1), told: ClusterId(2) });
        assert_eq!(leaders(&table), [Some((1, "a".to_owned()))]);
    }

    #[test]
    fn a_redirect_counts_only_with_a_newer_epoch() {
        let mut table = RoutingTable::default();
        assert!(!table.merge_configuration(PartitionId(0), &configuration(1, "a")), "no map to merge into");
        table.merge_map(map(1, &[Some((2, "a"))])).expect("first");
        for (partition, epoch, taken) in [(0, 1, false), (0, 2, false), (7, 9, false), (0, 3, true), (0, 3, false)] {
            let told = configuration(epoch, "b");
            assert_eq!(table.merge_configuration(PartitionId(partition), &told), taken, "{partition} in {epoch}");
        }
        assert_eq!(table.route(b"k").expect("led").node, node("b"));
        assert_eq!(table.route_of(PartitionId(0)), table.route(b"k"));
    }

    #[test]
    fn the_executor_is_what_the_leader_said_last() {
        let mut table = RoutingTable::default();
        table.merge_map(map(1, &[Some((1, "a"))])).expect("first");
        let executor = |table: &RoutingTable| table.route(b"k").expect("led").executor;
        assert_eq!(executor(&table), None);
        let view = |owners: &[(u16, u16)]| NodeView {
            map: None,
            owners: owners.iter().map(|(p, e)| (PartitionId(*p), ExecutorIndex(*e))).collect(),
        };
        table.merge_view(node("b"), view(&[(0, 3)])).expect("no map");
        assert_eq!(executor(&table), None, "a follower's executors are not the leader's");
        table.merge_view(node("a"), view(&[(0, 1)])).expect("no map");
        assert_eq!(executor(&table), Some(ExecutorIndex(1)));
        table.merge_view(node("a"), view(&[])).expect("no map");
        assert_eq!(executor(&table), None);
        table.merge_view(node("a"), view(&[(0, 1)])).expect("no map");
        table.forget_owners(node("a"));
        assert_eq!(executor(&table), None);
    }
}
