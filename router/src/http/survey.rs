//! How the cluster is: the map, what each node says of itself, and what follows from both. `/readyz` and `/v1/topology`
//! tell it.

use super::health::Health;
use kv_client::Client;
use kv_proto::{cluster_map::ClusterMap, ids::NodeId, stats::NodeStats};
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

/// The cluster as `/v1/topology` tells it.
#[derive(Serialize)]
pub(super) struct Topology<'a> {
    /// The router that answers.
    pub(super) router: NodeId,
    /// What it all comes to.
    pub(super) health: Health,
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
    pub(super) fn new(router: NodeId, health: Health, map: &'a ClusterMap, answers: &'a Answers) -> Self {
        let state = |(node, answer): (&NodeId, &'a Result<NodeStats, String>)| NodeState {
            node: *node,
            stats: answer.as_ref().ok(),
            error: answer.as_ref().err().map(String::as_str),
        };
        Topology { router, health, map, nodes: answers.iter().map(state).collect() }
    }
}
