//! A cluster as JSON: in the controllers' logs and snapshots, on the wire between them, and in files.
//!
//! ```json
//! {"map": {…}, "carried_out": ["00…2a", null, …]}
//! ```
//!
//! # Invariants
//! * What contradicts itself is an error and never a cluster.

use kv_proto::{
    cluster_map::{ClusterMap, Partition},
    ids::{ClientId, ClusterId, NodeId, PartitionId},
};
use kv_replication::cluster::{Cluster, Strangers};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A cluster that can be written and was checked when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Unchecked")]
pub(crate) struct Kept(pub(crate) Arc<Cluster>);

/// Ids of proposals are written like the other 128-bit ids: JSON numbers of that size are lost on most readers.
#[derive(Serialize)]
struct Borrowed<'a> {
    map: &'a ClusterMap,
    carried_out: Vec<Option<ClientId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strangers: Option<&'a [(NodeId, ClusterId)]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disregarded: Option<bool>,
}

/// What is not there is as it was before there was such a thing.
#[derive(Deserialize)]
struct Unchecked {
    map: ClusterMap,
    carried_out: Vec<Option<ClientId>>,
    #[serde(default)]
    strangers: Vec<(NodeId, ClusterId)>,
    #[serde(default)]
    disregarded: bool,
}

impl From<Cluster> for Kept {
    fn from(cluster: Cluster) -> Self {
        Kept(Arc::new(cluster))
    }
}

impl Serialize for Kept {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let carried_out = self.0.carried_out.iter().map(|id| id.map(ClientId)).collect();
        let Strangers { nodes, disregarded } = &self.0.strangers;
        let strangers = Some(nodes.as_slice()).filter(|nodes| !nodes.is_empty());
        let disregarded = Some(*disregarded).filter(|disregarded| *disregarded);
        Borrowed { map: &self.0.map, carried_out, strangers, disregarded }.serialize(serializer)
    }
}

impl TryFrom<Unchecked> for Kept {
    type Error = String;

    fn try_from(read: Unchecked) -> Result<Self, String> {
        let carried_out = read.carried_out.into_iter().map(|id| id.map(|id| id.0)).collect();
        let strangers = Strangers { nodes: read.strangers, disregarded: read.disregarded };
        let cluster = Cluster { map: read.map, carried_out, strangers };
        check(&cluster)?;
        Ok(cluster.into())
    }
}

/// What the rest of the program takes for granted of a cluster.
fn check(cluster: &Cluster) -> Result<(), String> {
    let map = &cluster.map;
    if cluster.carried_out.len() != map.partitions.len() || map.partitions.is_empty() {
        return Err("it has another number of partitions than of proposals".to_string());
    }
    let unplaced = |(id, p): (PartitionId, &Partition)| (usize::from(p.shard.0) >= map.shards.len()).then_some(id);
    if let Some(partition) = map.partitions().find_map(unplaced) {
        return Err(format!("partition {partition} is in a shard that does not exist"));
    }
    match map.shards.iter().flat_map(|s| &s.nodes).find(|node| map.node(**node).is_none()) {
        Some(node) => Err(format!("a shard names node {node}, which has not registered")),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{DiskId, ShardId},
    };
    use kv_replication::cluster::{Command, Shape};

    /// A cluster with everything in it that can be lost on the way.
    pub(crate) fn cluster() -> Cluster {
        let shape = Shape { shards: 1, replicas: 1, partitions: 3, ack: AckMode::Replicated };
        let mut cluster = Cluster::new(ClusterId(u128::MAX), shape).expect("possible");
        let node = Node {
            id: NodeId::new("n").expect("a node id"),
            disk: DiskId(7),
            shard: ShardId(0),
            prefers_to_lead: true,
            address: "127.0.0.1:1".to_string(),
            executors: 2,
        };
        cluster.apply(&Command::Register { cluster: None, node }).expect("registered");
        cluster.carried_out[1] = Some(u128::MAX - 1);
        cluster.strangers.nodes.push((NodeId::new("m").expect("a node id"), ClusterId(5)));
        cluster.strangers.disregarded = true;
        cluster
    }

    #[test]
    fn what_was_written_is_read() {
        let kept = Kept::from(cluster());
        let text = serde_json::to_string(&kept).expect("JSON");
        assert_eq!(serde_json::from_str::<Kept>(&text).expect("read"), kept);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (what, change) in [
            ("number of partitions", (|c| c.carried_out.truncate(1)) as fn(&mut Cluster)),
            ("number of partitions", |c| {
                c.carried_out.clear();
                c.map.partitions.clear();
            }),
            ("a shard that does not exist", |c| c.map.partitions[2].shard = ShardId(1)),
            ("which has not registered", |c| c.map.nodes.clear()),
        ] {
            let mut cluster = cluster();
            change(&mut cluster);
            let text = serde_json::to_string(&Kept::from(cluster)).expect("JSON");
            let error = serde_json::from_str::<Kept>(&text).expect_err(what);
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
