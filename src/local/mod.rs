//! `kv local`: a whole cluster on this machine, each node and router a process of its own, so that one can be
//! stopped, killed and watched.
//!
//! The way of a start: the [plan] says which processes there are, on which ports and processors; the [data
//! directory](data_dir) is locked and must fit the plan; every fixed [port](ports) must be free; then the
//! [supervisor] starts the routers, learns from them where the controllers listen, starts the nodes, writes
//! `cluster.json` ([manifest]) and waits until the API is ready. [`child`] is one running process.
//!
//! # Invariants
//! * Whatever a person did wrong is told before the first process is started.
//! * No child outlives the supervisor, however that ends: it stops them, or the kernel kills them
//!   (`--supervisor-pid`). For that all are started by the main thread, whose end the kernel takes for ours.
//! * What needs no system is pure and tested as such: the plan, the manifest, the sentences.

mod child;
mod data_dir;
mod manifest;
mod plan;
mod ports;
mod supervisor;

use crate::output;
use anyhow::Context;
use data_dir::DataDir;
use kv_node::probe::{self, Verdict};
use kv_proto::cluster_map::AckMode;
use plan::Plan;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use supervisor::{Signals, Supervisor};

/// The name of this process in log lines and in `cluster.json`.
pub(crate) const SUPERVISOR: &str = "supervisor";

/// The cluster that shall run.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Options {
    /// Shards: groups of nodes that host the same share of the keys
    #[arg(long, env = "KV_SHARDS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) shards: u16,
    /// Replicas of each shard: a leader and its followers
    #[arg(long, env = "KV_REPLICAS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=5))]
    pub(crate) replicas: u16,
    /// Routers, each with a controller: with 3, any one of them may be lost. A cluster with 1 can be given 3 later, not the
    /// other way round
    #[arg(long, env = "KV_ROUTERS", default_value_t = 1, value_parser = routers)]
    pub(crate) routers: u16,
    /// Partitions of the keys, spread over the shards; fixed for the life of a cluster
    #[arg(long, env = "KV_PARTITIONS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) partitions: u16,
    /// What a write waits for before it is acknowledged. 'durable': it is flushed to the disk of the leader and of every
    /// in-sync follower. 'replicated': it is in the memory of all of them, and on their disks within 100 ms. Fixed for
    /// the life of a cluster
    #[arg(long, env = "KV_ACK", default_value_t = AckMode::Durable, value_name = "durable|replicated")]
    pub(crate) ack: AckMode,
    /// Executors (threads that share nothing) of each node
    #[arg(long, env = "KV_CORES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) cores: u16,
    /// Where the cluster keeps its files; made if it is not there
    #[arg(long, env = "KV_DATA_DIR", default_value = "./kv-data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where the HTTP API listens [default: 127.0.0.1:5000, or a free port with --ports auto]
    #[arg(long, env = "KV_HTTP", value_name = "ADDRESS:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// How the ports of nodes and controller are chosen
    #[arg(long, env = "KV_PORTS", value_enum, default_value_t = Ports::Fixed)]
    pub(crate) ports: Ports,
    #[command(flatten)]
    pub(crate) failover: kv_node::FailoverOptions,
    /// Start a process again when it dies, with the same flags and at the same address
    #[arg(long, env = "KV_RESTART", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) restart: bool,
}

fn routers(text: &str) -> Result<u16, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3: of two controllers none could be lost".to_owned()),
    }
}

/// How ports are chosen.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Leaders 5001.., followers 6001.., third replicas 7001.., routers 5000, 5010, 5020, their controllers 5100, 5110, 5120
    Fixed,
    /// Any that are free
    Auto,
}

pub(crate) async fn run(options: Options, log_level: &str) -> anyhow::Result<ExitCode> {
    let cores = usize::from(options.cores);
    probe::require(cores)?;
    for finding in probe::check(cores).iter().filter(|f| f.verdict == Verdict::Poor) {
        tracing::warn!("{}: {}. {}", finding.name, finding.seen, finding.cure);
    }
    options.failover.check().map_err(anyhow::Error::msg)?;
    if options.failover.min_in_sync > options.replicas {
        anyhow::bail!(
            "--min-in-sync {} is more than --replicas {}: no write would ever be taken",
            options.failover.min_in_sync,
            options.replicas
        );
    }
    let mut plan = Plan::new(&options, &allowed_processors())?;
    let data = DataDir::open(&options)?;
    ports::require_free(&plan)?;
    ports::settle(&mut plan)?;
    data.begin(&options, plan.processes[..plan.routers()].iter().map(|p| p.name.as_str()))?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    output::line(plan.headline(&options));
    let mut supervisor = Supervisor::new(plan, data, options, log_level)?;

    let served = tokio::select! {
        biased;
        name = signals.recv() => {
            output::line(format!("{SUPERVISOR}: {name}: stopping the cluster; once more kills it"));
            Ok(())
        }
        result = supervisor.serve() => result.map(|never| match never {}),
    };
    let stopped = tokio::select! {
        biased;
        _ = signals.recv() => false,
        () = supervisor.stop() => true,
    };
    if !stopped {
        supervisor.kill().await;
        output::line(format!("{SUPERVISOR}: killed all processes"));
        return Ok(ExitCode::from(EXIT_KILLED));
    }
    served.map(|()| {
        output::line(format!("{SUPERVISOR}: stopped"));
        ExitCode::SUCCESS
    })
}

/// Exit code after a second Ctrl-C: 128 and the number of SIGINT, as a shell reports it.
const EXIT_KILLED: u8 = 130;

/// The processors that this process may use; at least one.
fn allowed_processors() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}
