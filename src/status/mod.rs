//! `kv status`: asks the router for the topology and prints it, once or each second.

mod render;

use crate::{
    http::{Api, ClusterOptions},
    output,
};
use anyhow::Context;
use hyper::{Method, body::Bytes};
use kv_proto::{cluster_map::ClusterMap, ids::NodeId, stats::NodeStats};
use serde::Deserialize;
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

/// What to show.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The router's answer as it is, for programs
    #[arg(long)]
    json: bool,
    /// Show it again each second, until Ctrl-C or until nobody reads it any more
    #[arg(long)]
    watch: bool,
    /// A line for each partition too
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// The router's answer to `GET /v1/topology`.
#[derive(Debug, Deserialize)]
struct Topology {
    map: ClusterMap,
    nodes: Vec<NodeReport>,
}

/// What the router could learn of one node.
#[derive(Debug, Deserialize)]
struct NodeReport {
    node: NodeId,
    stats: Option<NodeStats>,
    /// Why there are no statistics.
    error: Option<String>,
}

const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = Api::new(&options.cluster)?;
    if !options.watch {
        print(text(&api, &options).await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let clear = if io::stdout().is_terminal() && !options.json { CLEAR_SCREEN } else { "" };
    let mut ticks = tokio::time::interval(INTERVAL);
    let redraw = async {
        loop {
            ticks.tick().await;
            // A router that is gone may come back: that is what one watches for.
            let text = text(&api, &options).await.unwrap_or_else(|error| format!("{error:#}"));
            if !print(format!("{clear}{text}"))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    };
    tokio::select! {
        result = redraw => result,
        result = tokio::signal::ctrl_c() => result.map(|()| ExitCode::SUCCESS).context("cannot listen for Ctrl-C"),
    }
}

/// Whether somebody reads it.
fn print(text: String) -> anyhow::Result<bool> {
    output::bytes(format!("{text}\n").as_bytes()).context("cannot write to stdout")
}

async fn text(api: &Api, options: &Options) -> anyhow::Result<String> {
    let answer = api.send(Method::GET, "/v1/topology", None, Bytes::new()).await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    if options.json {
        return Ok(String::from_utf8_lossy(&answer.body).into_owned());
    }
    let topology: Topology =
        serde_json::from_slice(&answer.body).context("the router's topology is not what this version of kv knows")?;
    Ok(render::render(&topology, options.partitions))
}
