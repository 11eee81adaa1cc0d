//! Asks the nodes of a cluster who leads what, before a load and while it goes on.

use super::plan::Owners;
use anyhow::{Context, bail};
use kv_client::{
    Address, ConnectOptions, Pipeline,
    proto::{cluster_map::ClusterMap, ids::NodeId, limits::Limits, response::NodeView},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::{task::JoinSet, time::timeout};

/// How long a node may take to say what it knows, before the load.
const PATIENCE: Duration = Duration::from_secs(5);
/// And while the load goes on: some of them may be dead.
const SHORT_PATIENCE: Duration = Duration::from_millis(300);

/// What the nodes said.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) map: ClusterMap,
    pub(crate) owners: Owners,
}

/// Asks `seed` for the map, and every leader in it for its owners; checks that all take values of `value_bytes`. Also says who
/// `seed` is.
pub(crate) async fn ask(seed: &Address, value_bytes: u32) -> anyhow::Result<(NodeId, Cluster)> {
    let (node, view) = view(seed, value_bytes, PATIENCE).await?;
    let Some(map) = view.map else {
        bail!("{seed} does not know the cluster yet: its controller has told it no map; check that the router runs");
    };
    if map.partitions.is_empty() {
        bail!("{seed} told a map without partitions");
    }
    let mut owners = Owners::new();
    for leader in leaders(&map) {
        let address = map.node(leader).with_context(|| format!("{leader} leads, but is not in the map's nodes"))?;
        let address = address.address.parse().with_context(|| format!("the map's address of {leader}"))?;
        let (node, view) = self::view(&address, value_bytes, PATIENCE).await?;
        if node != leader {
            bail!("{address} should be {leader}, but says that it is {node}; the cluster map is old");
        }
        owners.insert(leader, view.owners.into_iter().collect());
    }
    Ok((node, Cluster { map, owners }))
}

/// Asks all these addresses at once. The newest map of those that answer, if it is not older than the one that is known, and who
/// owns what as far as its leaders told, now or before. Waits no longer than it must: for a map that is newer, and its leaders.
pub(crate) async fn ask_all(addresses: BTreeSet<Address>, known: Option<&Cluster>) -> Option<Cluster> {
    let mut questions = JoinSet::new();
    for address in addresses {
        questions.spawn(async move { view(&address, 0, SHORT_PATIENCE).await });
    }
    let mut newest: Option<ClusterMap> = None;
    let mut owners = known.map(|known| known.owners.clone()).unwrap_or_default();
    let mut told = BTreeSet::new();
    while let Some(answer) = questions.join_next().await {
        let Ok(Ok((node, view))) = answer else { continue };
        owners.insert(node, view.owners.into_iter().collect());
        told.insert(node);
        let follows = |map: &ClusterMap| {
            known.is_none_or(|Cluster { map: known, .. }| {
                map.cluster == known.cluster
                    && map.partitions.len() == known.partitions.len()
                    && map.version >= known.version
            })
        };
        if let Some(map) = view.map.filter(follows)
            && newest.as_ref().is_none_or(|newest| newest.version < map.version)
        {
            newest = Some(map);
        }
        let is_enough = |map: &ClusterMap| {
            known.is_some_and(|known| known.map.version < map.version) && leaders(map).is_subset(&told)
        };
        if newest.as_ref().is_some_and(is_enough) {
            break;
        }
    }
    newest.map(|map| Cluster { map, owners })
}

fn leaders(map: &ClusterMap) -> BTreeSet<NodeId> {
    map.partitions.iter().flat_map(|p| &p.configuration).map(|c| c.leader.node).collect()
}

/// Who listens at `address`, and what it knows.
async fn view(address: &Address, value_bytes: u32, patience: Duration) -> anyhow::Result<(NodeId, NodeView)> {
    let options = ConnectOptions { timeout: patience, ..ConnectOptions::default() };
    let mut pipeline = Pipeline::connect(address, &options).await?;
    let Limits { max_value_bytes } = pipeline.welcome().limits;
    if value_bytes > max_value_bytes {
        bail!("values of {value_bytes} bytes are more than {address} takes, which is {max_value_bytes}");
    }
    let silent = || format!("{address} does not say what it knows of the cluster");
    let view = timeout(patience, pipeline.node_view()).await.with_context(silent)??;
    Ok((pipeline.welcome().node, view))
}
