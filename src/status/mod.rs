//! `kv status`: asks the router for the topology and prints it, once or again and again.
//!
//! [`render`] makes it a table, [`events`] tells what has changed from one to the next, [`watch`] shows both.

mod events;
mod render;
#[cfg(test)]
pub(crate) mod samples;
mod table;
mod watch;

pub(crate) use table::table;

use crate::{
    http::{Api, ClusterOptions},
    output,
};
use anyhow::Context;
use hyper::{Method, body::Bytes};
use kv_proto::{cluster_map::ClusterMap, ids::NodeId, stats::NodeStats};
use serde::Deserialize;
use std::{process::ExitCode, time::Duration};

/// Exit code that says that something is not as it should be.
const EXIT_NOT_READY: u8 = 1;
/// Shortest pause between two looks: each asks every node.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// For the end of `kv status --help`.
pub(crate) const EXPLANATION: &str = "\
The line below the first says how the cluster is:
  ready        every partition takes writes and has its in-sync followers
  DEGRADED     every partition takes writes, but one more failure may stop some: a leader is ALONE (no in-sync \
follower), or a node is full
  UNAVAILABLE  some partitions take no writes now, and why
LAG is how many records the farthest in-sync follower has yet to bring to its disk; LEARNERS catch up, to become followers; DIGESTS \
are sums over whole tables, which are equal where replicas hold the same.

With --watch, every change is told in a line with its time (UTC), below the table on a terminal and alone elsewhere, as in
  12:03:04Z shard 0: 22 partitions now led by shard0-follower (epoch 5), shard0-leader is gone

Exit code: 0 ready, 1 degraded or unavailable, 2 an error. docs/failures.md says what to do about each failure.";

/// What to show.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The router's answer as it is, for programs
    #[arg(long)]
    json: bool,
    /// Go on showing it, and every change, until Ctrl-C or until nobody reads it any more
    #[arg(long)]
    watch: bool,
    /// How often to look with --watch, as in 500ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// A line for each partition too
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("the shortest is {SHORTEST_INTERVAL:?}, since every node is asked each time"));
    }
    Ok(interval)
}

/// The router's answer to `GET /v1/topology`.
#[derive(Debug, Deserialize)]
pub(crate) struct Topology {
    pub(crate) health: Health,
    pub(crate) map: ClusterMap,
    pub(crate) nodes: Vec<NodeReport>,
}

/// How the cluster is, as the router judges it.
#[derive(Debug, Deserialize)]
pub(crate) struct Health {
    pub(crate) status: Status,
    /// Sentences, the worst first.
    pub(crate) problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ready,
    Degraded,
    Unavailable,
}

/// What the router could learn of one node.
#[derive(Debug, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) node: NodeId,
    pub(crate) stats: Option<NodeStats>,
    /// Why there are no statistics.
    pub(crate) error: Option<String>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let api = Api::new(&options.cluster)?;
    match (options.watch, options.json) {
        (true, false) => watch::run(&api, &options).await,
        (true, true) => watch::run_json(&api, &options).await,
        (false, json) => {
            let body = ask(&api).await?;
            let topology = decode(&body)?;
            print(&if json { text(&body) } else { render::render(&topology, options.partitions) })?;
            Ok(if topology.health.status == Status::Ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_READY) })
        }
    }
}

/// The cluster as its router sees it.
pub(crate) async fn topology(api: &Api) -> anyhow::Result<Topology> {
    decode(&ask(api).await?)
}

async fn ask(api: &Api) -> anyhow::Result<Bytes> {
    let answer = api.send(Method::GET, "/v1/topology", None, Bytes::new()).await?;
    if answer.status.is_success() { Ok(answer.body) } else { Err(answer.failure()) }
}

fn decode(body: &[u8]) -> anyhow::Result<Topology> {
    serde_json::from_slice(body).context("the router's topology is not what this version of kv knows")
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// Whether somebody reads it.
fn print(text: &str) -> anyhow::Result<bool> {
    output::bytes(format!("{text}\n").as_bytes()).context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_times_that_the_nodes_can_bear() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "1", "99ms", "-1s"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
