//! The command line.

use crate::{
    echo::{self, EchoOptions},
    engine::Paces,
    output::{ViewChoice, is_same_place},
    target::Target,
    workload::{
        Arrivals, KeyChoice, KeyNames, Kind, Mix, Preset, Rate, STAMP_BYTES, Sizes, SizesSource, Think, Workload,
    },
};
use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use std::{path::PathBuf, time::Duration};

/// Most bytes of values that may be in flight over all connections.
const MAX_BYTES_IN_FLIGHT: u64 = 1024 * 1024 * 1024;
/// Most keys, so that a number of 12 digits and 32 bits has room for the inserts of a run.
const MAX_KEYS: i64 = 1_000_000_000;
/// Longest time of anything.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most keys that are verified: what is known of each is kept in memory.
const MAX_VERIFIED_KEYS: u32 = 10_000_000;

const EXAMPLES: &str = "\
Examples:
  kvbench run                                           reads of a local cluster, 10 seconds
  kvbench run --op put --value-size 1024                writes of 1 KiB
  kvbench run --pipeline 1 --connections 1              the latency of a single request
  kvbench run --workload ycsb-a --rate 50000            half reads, half writes, 50,000/s whatever comes of it
  kvbench run --workload ycsb-a --verify                and every answer is checked
  kvbench run --op put --verify --kill-leader-at 10s --duration 30s   what a dead leader costs
  kvbench run --target redis://127.0.0.1:6379           the same work for another store
  kvbench versus --target kv://127.0.0.1:5001 --target redis://127.0.0.1:6379 --op get

Targets:
  kv://HOST:PORT            a node; it tells who leads what, and every leader is loaded
  kv+one://HOST:PORT        only this node, and only what it leads
  http://HOST:PORT          /put, /get and /delete of a router; http://HOST:PORT/v1 its /v1/kv/KEY
  redis://HOST:PORT         with ?wait=1 a write is done when one replica has it (WAIT after each
                            write; &wait-per=batch: one WAIT after each batch)
  memcached://HOST:PORT

Exit code: 0 done, 1 done with errors or violations, 2 could not run.";

/// A time of a command line.
fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| format!("{e}; write 10s, 500ms or 2m"))?;
    if time > LONGEST { Err("it is longer than 30 days".to_owned()) } else { Ok(time) }
}

/// Load for key-value stores, how they bore it, and whether they kept what they promised
#[derive(Debug, Parser)]
#[command(name = "kvbench", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a load and reports throughput, latency and errors
    #[command(after_help = EXAMPLES)]
    Run(Box<RunOptions>),
    /// Runs the same load on several targets in turn, round by round, and reports their ratios
    #[command(after_help = EXAMPLES)]
    Versus(Box<VersusOptions>),
    /// Serves known answers at a known speed, to measure this tool itself by
    #[command(after_help = echo::EXAMPLES)]
    Echo(EchoOptions),
}

/// What is asked, and how much of it.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadOptions {
    /// What is asked: get, put, delete, cas, rmw, incr, scan, batch or insert; or several with weights, as get=95,put=5
    #[arg(long, value_name = "MIX", conflicts_with = "workload", visible_alias = "mix")]
    op: Option<Mix>,

    /// A workload that others know: ycsb-a to ycsb-f, or original (100 users of one key who think for 1 to 3 s); flags beside it override its parts
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<Preset>,

    /// How many keys there are [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_KEYS))]
    keys: Option<u32>,

    // As an attribute: in a comment rustdoc would take the brackets for links.
    #[arg(
        long,
        value_name = "CHOICE",
        help = "Which of them is next: uniform, zipfian[:THETA], latest[:THETA], hotspot[:KEYS%:OPS%] or sequential [default: uniform]"
    )]
    key_choice: Option<KeyChoice>,

    /// What stands before the 12 digits of a key
    #[arg(long, value_name = "TEXT", default_value = "key:")]
    key_prefix: String,

    /// Bytes of a value: 64, 64-1024 (uniform), 64=70,1024=30 (by weights) or @FILE with a line "BYTES WEIGHT" for each [default: 64]
    #[arg(long, value_name = "SIZES")]
    value_size: Option<SizesSource>,

    /// How many keys a batch writes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    batch_size: u32,

    /// How many connections, shared out over the threads and over all leaders [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,

    /// How many requests each connection may have in flight [default: 16; 1 over HTTP]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pipeline: Option<u32>,

    /// Open loop: so many operations a second, whatever becomes of those before; timed from when they should have started. 5000, 1k..50k (a ramp over the run) or 1000,2000,5000 (steps of equal length)
    #[arg(long, value_name = "RATE", conflicts_with = "think")]
    rate: Option<Rate>,

    /// How the starts of an open loop lie: poisson (at random, as strangers come) or constant
    #[arg(long, value_name = "HOW", default_value = "poisson", requires = "rate")]
    arrivals: Arrivals,

    /// Closed loop of users who think before each operation, one for each slot of a connection: 1s or 1s-3s
    #[arg(long, value_name = "TIME")]
    think: Option<Think>,

    /// How long to measure, as 10s, 500ms or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(crate) duration: Duration,

    /// How long to load before that without measuring
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = time)]
    pub(crate) warmup: Duration,

    /// How many threads send; they share out the connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: u32,

    /// The deadline of a request, and how long a connection may be silent before it is made anew
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    pub(crate) deadline: Duration,

    /// Write every key once before the measurement, which is done unless nothing is read
    #[arg(long, conflicts_with = "no_load")]
    load: bool,

    /// Do not write the keys before the measurement
    #[arg(long)]
    no_load: bool,

    /// Decides which operations come in which order, and the bytes of the values
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Give writes the ids by which a cluster applies none twice, as its clients do; --verify always does
    #[arg(long)]
    pub(crate) operation_ids: bool,

    /// What is shown meanwhile
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) view: ViewChoice,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    /// What is loaded: see the list of targets below
    #[arg(long, value_name = "URL", default_value = "kv://127.0.0.1:5001")]
    pub(crate) target: Target,

    #[command(flatten)]
    pub(crate) load: LoadOptions,

    /// How many processes send, each with --threads threads; they share out the connections, and their results are put together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,

    /// Check every answer: values are unique, every acknowledged write is looked for at the end, versions must agree with real time, and the histories of some keys must be linearizable
    #[arg(long)]
    pub(crate) verify: bool,

    /// The histories of how many keys are kept and checked whole
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "verify")]
    pub(crate) verify_keys: u32,

    /// Kill the leader of most partitions of a local cluster (kill -9) this long after the measurement began, and report how long partitions went without a write
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) kill_leader_at: Option<Duration>,

    /// What `kv local` has written about the cluster whose leader is killed
    #[arg(long, value_name = "FILE", default_value = "kv-data/cluster.json", requires = "kill_leader_at")]
    pub(crate) cluster: PathBuf,

    /// Where to write the result as JSON (schema "kvbench/2"); - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Where to write a line for every second and kind of operation as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,

    /// Where to write the latencies of every second as an HdrHistogram log
    #[arg(long, value_name = "FILE")]
    pub(crate) hdr_log: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct VersusOptions {
    /// What is loaded; twice or more, and the first is what the others are measured by
    #[arg(long = "target", value_name = "URL", required = true)]
    pub(crate) targets: Vec<Target>,

    #[command(flatten)]
    pub(crate) load: LoadOptions,

    /// How often each target has its turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Where to write the result as JSON (schema "kvbench-versus/1"); - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// A load with nothing left open.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) workload: Workload,
    pub(crate) connections: u32,
    pub(crate) pipeline: u32,
    pub(crate) paces: Paces,
    pub(crate) loads: bool,
}

impl LoadOptions {
    /// What these flags come to for a target.
    ///
    /// # Errors
    /// When they do not fit each other, or the target.
    pub(crate) fn resolve(&self, target: &Target) -> anyhow::Result<Load> {
        let defaults = self.workload.map(Preset::defaults).unwrap_or_default();
        let sizes = match &self.value_size {
            Some(source) => source.clone().read()?,
            None => defaults.sizes.unwrap_or_else(|| Sizes::fixed(64)),
        };
        let numbered = || KeyNames::Numbered { prefix: self.key_prefix.clone() };
        let is_single = matches!(defaults.names, Some(KeyNames::Single(_)));
        ensure!(!is_single || self.keys.is_none(), "this --workload has one key; leave --keys out");
        let workload = Workload {
            mix: self.op.clone().or(defaults.mix).unwrap_or_else(|| Mix::only(Kind::Get)),
            keys: self.key_choice.or(defaults.keys).unwrap_or(KeyChoice::Uniform),
            count: if is_single { 1 } else { self.keys.or(defaults.count).unwrap_or(1_000_000) },
            names: defaults.names.unwrap_or_else(numbered),
            sizes,
            scan_length: defaults.scan_length.unwrap_or((1, 100)),
            batch_size: self.batch_size,
            seed: self.seed,
        };
        workload.check(self.threads)?;
        let connections = self.connections.or(defaults.connections).unwrap_or(50);
        let pipeline = self.pipeline.or(defaults.pipeline).unwrap_or_else(|| target.default_pipeline());
        let paces = match (&self.rate, self.think.or(defaults.think)) {
            (Some(rate), _) => Paces::Open { rate: rate.clone(), arrivals: self.arrivals, duration: self.duration },
            (None, Some(think)) => Paces::Users(think),
            (None, None) => Paces::Saturated,
        };
        let reads =
            workload.mix.kinds().any(|kind| !matches!(kind, Kind::Put | Kind::Insert | Kind::Batch | Kind::Incr));
        let loads = self.load || (reads && !self.no_load);
        let load = Load { workload, connections, pipeline, paces, loads };
        self.check(&load, target)?;
        Ok(load)
    }

    fn check(&self, load: &Load, target: &Target) -> anyhow::Result<()> {
        let Load { workload, connections, pipeline, .. } = load;
        let (value, offers) = (workload.sizes.max(), target.offers());
        let in_flight = u64::from(*connections) * u64::from(*pipeline) * u64::from(value);
        ensure!(
            in_flight <= MAX_BYTES_IN_FLIGHT,
            "{connections} connections with {pipeline} requests of {value} bytes each would hold {} MiB in flight; keep it \
             under {} MiB",
            in_flight >> 20,
            MAX_BYTES_IN_FLIGHT >> 20
        );
        ensure!(
            self.threads <= *connections,
            "{} threads cannot share out {connections} connections; use at least one connection a thread",
            self.threads
        );
        if let Paces::Users(think) = load.paces {
            ensure!(think.mean() <= LONGEST, "--think is longer than 30 days; users would never come back");
        }
        ensure!(!self.duration.is_zero(), "a --duration of nothing measures nothing; try 10s");
        let deadline_ms = self.deadline.as_millis();
        ensure!(
            (1..=u128::from(u32::MAX)).contains(&deadline_ms),
            "a --deadline of {deadline_ms} ms is impossible; try 2s"
        );
        for (kind, offered, offers_it) in [
            (Kind::Cas, offers.conditions, "kv://, http://…/v1 and memcached:// do"),
            (Kind::Incr, offers.increment, "redis:// and memcached:// do"),
        ] {
            ensure!(
                offered || !workload.mix.contains(kind),
                "{} offers no {}, but {offers_it}; take it out of --op",
                target.name(),
                kind.name()
            );
        }
        Ok(())
    }
}

impl RunOptions {
    /// What these flags come to.
    ///
    /// # Errors
    /// When they do not fit each other, or the target.
    pub(crate) fn resolve(&self) -> anyhow::Result<Load> {
        let mut load = self.load.resolve(&self.target)?;
        if let Some(at) = self.kill_leader_at {
            ensure!(
                matches!(self.target, Target::Kv { .. } | Target::Http { .. }),
                "--kill-leader-at kills a node of the cluster that is loaded, and {} is none",
                self.target
            );
            ensure!(
                at < self.load.duration,
                "--kill-leader-at {at:?} is not within the --duration of {:?}; kill earlier or measure longer",
                self.load.duration
            );
            ensure!(
                self.workers == 1,
                "--kill-leader-at needs all answers in one process; use --threads in place of --workers"
            );
            let writes = load.workload.mix.kinds().any(|kind| !matches!(kind, Kind::Get | Kind::Scan));
            ensure!(writes, "--kill-leader-at reports how long nothing could be written; add writes, as --op put");
        }
        if self.verify {
            ensure!(
                self.workers == 1,
                "--verify needs all answers in one process; use --threads in place of --workers"
            );
            ensure!(
                !self.load.no_load,
                "--verify must know what every key has, so that it has to write them; leave --no-load out"
            );
            ensure!(!load.workload.mix.contains(Kind::Incr), "--verify does not judge counters; take incr out of --op");
            ensure!(
                load.workload.count <= MAX_VERIFIED_KEYS,
                "--verify keeps in memory what every key may have; use --keys {MAX_VERIFIED_KEYS} or less"
            );
            let least = load.workload.sizes.min();
            ensure!(
                least as usize >= STAMP_BYTES,
                "--verify makes every value unique, which takes {STAMP_BYTES} bytes; values of {least} are too short, use \
                 --value-size {STAMP_BYTES} or more"
            );
            load.loads = true;
        }
        ensure!(
            self.workers * self.load.threads <= load.connections,
            "{} workers with {} threads each cannot share out {} connections; use at least one connection a thread",
            self.workers,
            self.load.threads,
            load.connections
        );
        Ok(load)
    }

    /// Checks that no two results go to one place.
    pub(crate) fn check_files(&self) -> anyhow::Result<()> {
        let files: Vec<_> = [&self.json, &self.csv, &self.hdr_log].into_iter().flatten().collect();
        for (i, file) in files.iter().enumerate() {
            let is_taken = files[..i].iter().any(|other| is_same_place(other, file));
            ensure!(!is_taken, "two results cannot both be written to {}", file.display());
        }
        Ok(())
    }
}

impl VersusOptions {
    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<Load>> {
        ensure!(self.targets.len() > 1, "one --target has nothing to be compared with; give two or more");
        let resolve = |target| self.load.resolve(target).with_context(|| format!("{target}"));
        self.targets.iter().map(resolve).collect()
    }
}
