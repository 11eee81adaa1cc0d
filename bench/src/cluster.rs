//! Asks the cluster who leads what, before the load.

use crate::plan::Owners;
use anyhow::{Context, bail};
use kv_client::{Address, ConnectOptions, Pipeline};
use kv_proto::{cluster_map::ClusterMap, ids::NodeId, limits::Limits, response::NodeView};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;

/// How long a node may take to say what it knows.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the nodes said.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) map: ClusterMap,
    pub(crate) owners: Owners,
}

/// Asks `seed` for the map, and every leader in it for its owners; checks that all take values of `value_bytes`.
pub(crate) async fn ask(seed: &Address, value_bytes: u32) -> anyhow::Result<Cluster> {
    let Some(map) = view(seed, value_bytes).await?.1.map else {
        bail!("{seed} does not know the cluster yet: its controller has told it no map; check that the router runs");
    };
    if map.partitions.is_empty() {
        bail!("{seed} told a map without partitions");
    }
    let leaders: BTreeSet<_> = map.partitions.iter().flat_map(|p| &p.configuration).map(|c| c.leader.node).collect();
    let mut owners = Owners::new();
    for leader in leaders {
        let address = map.node(leader).with_context(|| format!("{leader} leads, but is not in the map's nodes"))?;
        let address = address.address.parse().with_context(|| format!("the map's address of {leader}"))?;
        let (node, view) = view(&address, value_bytes).await?;
        if node != leader {
            bail!("{address} should be {leader}, but says that it is {node}; the cluster map is old");
        }
        owners.insert(leader, view.owners.into_iter().collect());
    }
    Ok(Cluster { map, owners })
}

/// Who listens at `address`, and what it knows.
async fn view(address: &Address, value_bytes: u32) -> anyhow::Result<(NodeId, NodeView)> {
    let options = ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() };
    let mut pipeline = Pipeline::connect(address, &options).await?;
    let Limits { max_value_bytes } = pipeline.welcome().limits;
    if value_bytes > max_value_bytes {
        bail!("values of {value_bytes} bytes are more than {address} takes, which is {max_value_bytes}");
    }
    let silent = || format!("{address} does not say what it knows of the cluster");
    let view = timeout(PATIENCE, pipeline.node_view()).await.with_context(silent)??;
    Ok((pipeline.welcome().node, view))
}
