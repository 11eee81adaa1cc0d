//! The command line.

use crate::keyspace::MAX_KEYS;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kv_client::Address;
use kv_proto::limits::HIGHEST_MAX_VALUE_BYTES;
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Most bytes of values that may be in flight over all connections.
const MAX_BYTES_IN_FLIGHT: u64 = 1024 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  kvbench run                                       reads of a local cluster, 10 seconds
  kvbench run --op put --value-size 1024            writes of 1 KiB
  kvbench run --pipeline 1 --connections 1          the latency of a single request
  kvbench run --no-load --keys 1000000 --json a.json  reads of keys that are there already

Exit code: 0 done, 1 done with errors, 2 could not run.";

/// Load for the key-value store, and how the store bore it
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
    Run(RunOptions),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// Reads of random keys
    Get,
    /// Writes of random keys
    Put,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    /// A node of the cluster, as kv://HOST:PORT; it tells who leads what, and every leader is loaded
    #[arg(long, value_name = "URL", default_value = "kv://127.0.0.1:5001")]
    pub(crate) target: Address,

    /// What is measured
    #[arg(long, value_enum, default_value = "get")]
    pub(crate) op: Op,

    /// How many keys of 16 bytes there are; each request takes one of them at random
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_KEYS)))]
    pub(crate) keys: u32,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=HIGHEST_MAX_VALUE_BYTES as i64))]
    pub(crate) value_size: u32,

    /// How many connections, shared out evenly over the executors of all leaders
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,

    /// How many requests each connection keeps in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) pipeline: u32,

    /// How long to measure, as 10s, 500ms or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,

    /// How many threads send; they share out the connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: u32,

    /// The deadline of a request, and how long a connection may be silent before it is made anew
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) deadline: Duration,

    /// Write every key once before the measurement, which is what reads do unless told otherwise
    #[arg(long, conflicts_with = "no_load")]
    load: bool,

    /// Do not write the keys before the measurement, which is what writes do unless told otherwise
    #[arg(long)]
    no_load: bool,

    /// Decides which keys are taken in which order, and the bytes of the values
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Where to write the result as JSON (schema "kvbench/1")
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl RunOptions {
    /// Whether the keys are written before the measurement.
    pub(crate) fn loads(&self) -> bool {
        self.load || (self.op == Op::Get && !self.no_load)
    }

    /// Checks the flags against each other.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let in_flight = u64::from(self.connections) * u64::from(self.pipeline) * u64::from(self.value_size);
        anyhow::ensure!(
            in_flight <= MAX_BYTES_IN_FLIGHT,
            "{} connections with {} requests of {} bytes each would hold {} MiB in flight; keep it under {} MiB",
            self.connections,
            self.pipeline,
            self.value_size,
            in_flight >> 20,
            MAX_BYTES_IN_FLIGHT >> 20
        );
        anyhow::ensure!(
            self.threads <= self.connections,
            "{} threads cannot share out {} connections; use at least one connection a thread",
            self.threads,
            self.connections
        );
        anyhow::ensure!(!self.duration.is_zero(), "a --duration of nothing measures nothing; try 10s");
        let deadline_ms = self.deadline.as_millis();
        anyhow::ensure!(
            (1..=u128::from(u32::MAX)).contains(&deadline_ms),
            "a --deadline of {deadline_ms} ms is impossible; try 2s"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Result<RunOptions, String> {
        let words = ["kvbench", "run"].into_iter().chain(flags.split_whitespace());
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Some(Command::Run(options)) => options.check().map(|()| options).map_err(|e| e.to_string()),
            None => unreachable!("a subcommand was given"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_load_their_keys_and_writes_do_not_unless_told_otherwise() {
        for (flags, loads) in
            [("--op get", true), ("--op get --no-load", false), ("--op put", false), ("--op put --load", true)]
        {
            assert_eq!(parse(flags).expect(flags).loads(), loads, "{flags}");
        }
    }

    #[test]
    fn impossible_flags_are_refused_with_a_reason() {
        for (flags, said) in [
            ("--target http://127.0.0.1:5000", "kv://host:port"),
            ("--target 127.0.0.1", "kv://host:port"),
            ("--keys 0", "--keys"),
            ("--keys 4294967295", "--keys"),
            ("--value-size 16777217", "--value-size"),
            ("--pipeline 0", "--pipeline"),
            ("--connections 0", "--connections"),
            ("--duration 0s", "measures nothing"),
            ("--duration ten", "--duration"),
            ("--deadline 0ms", "--deadline"),
            ("--op incr", "--op"),
            ("--load --no-load", "--no-load"),
            ("--connections 2 --threads 3", "at least one connection a thread"),
            ("--connections 10000 --pipeline 4096 --value-size 1048576", "MiB in flight"),
        ] {
            let error = parse(flags).expect_err(flags);
            assert!(error.contains(said), "{flags}: {error}");
        }
    }
}
