//! What a node is told at its start.

use crate::{byte_size::ByteSize, failover_options::FailoverOptions};
use clap::{Args, ValueEnum};
use kv_proto::{
    ids::{NodeId, ShardId},
    limits::{DEFAULT_MAX_VALUE_BYTES, HIGHEST_MAX_VALUE_BYTES, Limits},
};
use kv_replication::replica;
use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

/// What a segment has beside two of the longest values: headers, keys and what fills up its sectors.
const SEGMENT_OVERHEAD_BYTES: u64 = 1 << 20;
/// The log is written in whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;
/// How many segments an executor's log gets before its oldest go, unless told otherwise.
const DEFAULT_LOG_SEGMENTS: u64 = 4;
/// One that is written, one that is prepared, and one that a checkpoint lets go.
const FEWEST_LOG_SEGMENTS: u64 = 3;

/// Runs one node of a cluster, in the foreground, until SIGTERM, at which others lead first what it led, or SIGINT, for when
/// everything stops.
#[derive(Args, Clone, Debug)]
pub struct NodeOptions {
    /// Name of the node: 1 to 31 letters, digits, '-', '_' or '.'; the controller knows the node by it.
    #[arg(long, env = "KV_ID")]
    pub id: NodeId,

    /// The shard that the node belongs to, counted from 0. The nodes of a shard host the same partitions.
    #[arg(long, env = "KV_SHARD", default_value_t = 0)]
    pub shard: u16,

    /// What the node is by preference when its partitions are made.
    #[arg(long, env = "KV_ROLE", value_enum, default_value_t = PreferredRole::Leader)]
    pub role: PreferredRole,

    /// Address that clients and other nodes connect to. Port 0 takes a free one.
    #[arg(long, env = "KV_LISTEN", default_value = "127.0.0.1:5001")]
    pub listen: SocketAddr,

    /// Address that clients and other nodes are told, host:port. Needed where --listen is one that nobody can connect
    /// to, such as 0.0.0.0:5001; otherwise it is --listen itself.
    #[arg(long, env = "KV_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// Addresses of the controllers (the routers' --controller-listen), separated by commas; any one that answers will do.
    #[arg(
        long,
        env = "KV_CONTROLLER",
        default_value = "127.0.0.1:5100",
        value_name = "HOST:PORT,…",
        value_delimiter = ','
    )]
    pub controller: Vec<String>,

    /// How many executors (threads, each with its own partitions) the node runs.
    #[arg(long, env = "KV_CORES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: u16,

    /// Which CPU each executor stays on: 'auto' pins only if the node has as many executors as it may use CPUs,
    /// 'always' takes the first CPUs, 'never' leaves it to the kernel, and a list such as 0,2 names them.
    #[arg(long, env = "KV_PIN", default_value = "auto")]
    pub pin: Pin,

    /// How many connections the node takes.
    #[arg(long, env = "KV_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Longest value that the node takes, in bytes; the same on every node of a cluster.
    #[arg(long, env = "KV_MAX_VALUE_BYTES", default_value_t = DEFAULT_MAX_VALUE_BYTES as u32,
          value_parser = clap::value_parser!(u32).range(1..=HIGHEST_MAX_VALUE_BYTES as i64))]
    pub max_value_bytes: u32,

    /// Memory, counted by the node itself, from which on it takes no more values (reads and deletes go on); in bytes or
    /// with KiB, MiB or GiB behind the number. Without it there is no limit.
    #[arg(long, env = "KV_MAX_MEMORY", value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,

    /// Folder of the node's log and checkpoints; made if it is missing [default: ./kv-data/nodes/ID].
    #[arg(long, env = "KV_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Size of a file of the log, in bytes or with KiB, MiB or GiB behind the number. It must hold two of the longest
    /// values (--max-value-bytes) and 1MiB.
    #[arg(long, env = "KV_SEGMENT_BYTES", default_value_t = ByteSize::mib(64), value_name = "SIZE")]
    pub segment_bytes: ByteSize,

    /// How large the log of an executor gets before checkpoints take the place of its oldest files; at least three
    /// times --segment-bytes [default: four times --segment-bytes].
    #[arg(long, env = "KV_MAX_LOG_BYTES", value_name = "SIZE")]
    pub max_log_bytes: Option<ByteSize>,

    /// Seconds after which a silent client connection is closed.
    #[arg(long, env = "KV_IDLE_TIMEOUT_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_timeout_s: u64,

    #[command(flatten)]
    /// When leadership passes on.
    pub failover: FailoverOptions,

    /// How often a connection on which nothing comes is looked at before the kernel is asked to tell; the node
    /// learns how often it pays, up to this. 0 suits a machine that many processes share.
    #[arg(long, env = "KV_SCAN_PASSES", default_value_t = 64)]
    pub scan_passes: u32,
}

/// What a node is by preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PreferredRole {
    /// It leads its share of the shard's partitions.
    Leader,
    /// It follows.
    Follower,
}

/// Which CPU each executor stays on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Pinned if there are as many executors as CPUs.
    Auto,
    /// The first CPUs.
    Always,
    /// Wherever the kernel puts it.
    Never,
    /// These, in order.
    Cpus(Vec<usize>),
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        Ok(match text {
            "auto" => Pin::Auto,
            "always" => Pin::Always,
            "never" => Pin::Never,
            list => {
                let cpus: Result<Vec<usize>, _> = list.split(',').map(|cpu| cpu.trim().parse()).collect();
                Pin::Cpus(cpus.map_err(|_| "use auto, always, never, or a list of CPUs such as 0,2".to_owned())?)
            }
        })
    }
}

impl Pin {
    /// The CPU of each executor; `allowed` are the CPUs that the process may use.
    ///
    /// # Errors
    /// When there are not enough CPUs, or one that the process may not use is named.
    pub(crate) fn plan(&self, executors: usize, allowed: &[usize]) -> Result<Vec<Option<usize>>, String> {
        let first = || allowed.iter().copied().map(Some).take(executors).collect();
        match self {
            Pin::Never => Ok(vec![None; executors]),
            Pin::Auto if executors == allowed.len() => Ok(first()),
            Pin::Auto => Ok(vec![None; executors]),
            Pin::Always if executors <= allowed.len() => Ok(first()),
            Pin::Always => Err(format!(
                "cannot pin {executors} executors to {} CPUs; give fewer --cores, or --pin never",
                allowed.len()
            )),
            Pin::Cpus(cpus) if cpus.len() != executors => {
                Err(format!("--pin names {} CPUs for {executors} executors (--cores)", cpus.len()))
            }
            Pin::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                Some(cpu) => Err(format!("--pin names CPU {cpu}, but the process may use only {allowed:?}")),
                None => Ok(cpus.iter().copied().map(Some).collect()),
            },
        }
    }
}

/// The options in the form in which the executors use them.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) shard: ShardId,
    pub(crate) prefers_to_lead: bool,
    /// Where others reach the node.
    pub(crate) advertised: String,
    /// Where the controllers are; at least one.
    pub(crate) controllers: Vec<String>,
    pub(crate) limits: Limits,
    pub(crate) max_connections: usize,
    /// From here on no more values are taken.
    pub(crate) max_memory_bytes: Option<u64>,
    pub(crate) idle_timeout: Duration,
    pub(crate) scan_passes: u32,
    /// How long a preferred leader is in sync before it leads again; never with `None`.
    pub(crate) rebalance_after: Option<Duration>,
    pub(crate) replica: replica::Options,
    pub(crate) storage: StorageSettings,
}

/// Where a node keeps its data, and in what sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorageSettings {
    /// The node's own folder.
    pub(crate) dir: PathBuf,
    /// Size of a file of the log: whole blocks.
    pub(crate) segment_bytes: u64,
    /// How large the log of an executor gets before its oldest segments go.
    pub(crate) max_log_bytes: u64,
}

impl NodeOptions {
    /// Checks the options against each other; `bound` is the address that the node listens on.
    ///
    /// # Errors
    /// A sentence that names the flags.
    pub(crate) fn settings(&self, bound: SocketAddr) -> Result<Settings, String> {
        self.failover.check()?;
        if self.advertise.is_none() && bound.ip().is_unspecified() {
            return Err(format!(
                "--listen {bound} is no address that others can connect to: say by --advertise HOST:PORT which one is"
            ));
        }
        if let Some(address) = &self.advertise
            && !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(format!("--advertise {address} is not HOST:PORT"));
        }
        if self.max_connections == 0 {
            return Err("--max-connections must be at least 1".to_owned());
        }
        if self.controller.is_empty() {
            return Err("--controller must name a controller".to_owned());
        }
        let limits = Limits { max_value_bytes: self.max_value_bytes };
        Ok(Settings {
            shard: ShardId(self.shard),
            prefers_to_lead: self.role == PreferredRole::Leader,
            advertised: self.advertise.clone().unwrap_or_else(|| bound.to_string()),
            controllers: self.controller.clone(),
            limits,
            max_connections: self.max_connections,
            max_memory_bytes: self.max_memory.map(|max| max.0),
            idle_timeout: Duration::from_secs(self.idle_timeout_s),
            scan_passes: self.scan_passes,
            rebalance_after: self.failover.rebalance_after(),
            replica: replica::Options {
                max_pending_bytes: (16 * 1024 * 1024).max(limits.max_message_bytes()),
                ..self.failover.replica()
            },
            storage: self.storage()?,
        })
    }

    fn storage(&self) -> Result<StorageSettings, String> {
        let (segment, value) = (self.segment_bytes, self.max_value_bytes);
        let least = ByteSize((2 * u64::from(value) + SEGMENT_OVERHEAD_BYTES).next_multiple_of(BLOCK_BYTES));
        if segment < least {
            return Err(format!(
                "--segment-bytes {segment} must hold two values of --max-value-bytes {value} and 1MiB: give at least \
                 --segment-bytes {least}, or a smaller --max-value-bytes"
            ));
        }
        let Some(segment_bytes) = segment.0.checked_next_multiple_of(BLOCK_BYTES) else {
            return Err(format!("--segment-bytes {segment} is more than any disk has"));
        };
        let log = self.max_log_bytes.unwrap_or(ByteSize(segment_bytes.saturating_mul(DEFAULT_LOG_SEGMENTS)));
        let least = ByteSize(segment_bytes.saturating_mul(FEWEST_LOG_SEGMENTS));
        if log < least {
            return Err(format!(
                "--max-log-bytes {log} must hold {FEWEST_LOG_SEGMENTS} segments of --segment-bytes {segment}: give at least \
                 --max-log-bytes {least}, or a smaller --segment-bytes"
            ));
        }
        let default_dir = || ["./kv-data/nodes", self.id.as_str()].iter().collect();
        let dir = self.data_dir.clone().unwrap_or_else(default_dir);
        Ok(StorageSettings { dir, segment_bytes, max_log_bytes: log.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: NodeOptions,
    }

    fn storage(flags: &str) -> Result<StorageSettings, String> {
        let line = ["node", "--id", "a"].into_iter().chain(flags.split_whitespace());
        let options = Line::try_parse_from(line).map_err(|e| e.to_string())?.options;
        options.settings("127.0.0.1:1".parse().expect("an address")).map(|s| s.storage)
    }

    #[test]
    fn what_is_kept_where_and_in_what_sizes() {
        let kept = |dir: &str, segment_bytes, max_log_bytes| {
            Ok(StorageSettings { dir: dir.into(), segment_bytes, max_log_bytes })
        };
        assert_eq!(storage(""), kept("./kv-data/nodes/a", 64 << 20, 256 << 20));
        assert_eq!(storage("--data-dir d --segment-bytes 8MiB"), kept("d", 8 << 20, 32 << 20));
        assert_eq!(storage("--data-dir d --segment-bytes 3MiB --max-log-bytes 9MiB"), kept("d", 3 << 20, 9 << 20));
        assert_eq!(
            storage("--data-dir d --max-value-bytes 65536 --segment-bytes 1179649"),
            kept("d", 1_183_744, 4 * 1_183_744),
            "whole blocks"
        );
    }

    #[test]
    fn sizes_that_do_not_go_together_are_told_with_the_least_that_does() {
        for (flags, told) in [
            (
                "--segment-bytes 2MiB",
                "two values of --max-value-bytes 1048576 and 1MiB: give at least --segment-bytes 3MiB",
            ),
            ("--max-value-bytes 16777216 --segment-bytes 32MiB", "give at least --segment-bytes 33MiB"),
            ("--max-value-bytes 1 --segment-bytes 1MiB", "give at least --segment-bytes 1028KiB"),
            ("--max-log-bytes 191MiB", "3 segments of --segment-bytes 64MiB: give at least --max-log-bytes 192MiB"),
            ("--segment-bytes 18446744073709551615", "more than any disk has"),
            ("--segment-bytes many", "\"many\" is no size"),
            ("--max-log-bytes 1GB", "\"1GB\" is no size"),
        ] {
            let refused = storage(flags).expect_err(flags);
            assert!(refused.contains(told), "{flags}: {refused}");
        }
    }

    #[test]
    fn pins() {
        let plan = |pin: &str, executors| pin.parse::<Pin>().and_then(|p| p.plan(executors, &[1, 3]));
        assert_eq!(plan("auto", 2), Ok(vec![Some(1), Some(3)]));
        assert_eq!(plan("auto", 1), Ok(vec![None]));
        assert_eq!(plan("always", 1), Ok(vec![Some(1)]));
        assert_eq!(plan("never", 3), Ok(vec![None; 3]));
        assert_eq!(plan("3", 1), Ok(vec![Some(3)]));
        assert_eq!(plan("3, 3", 2), Ok(vec![Some(3), Some(3)]));
        for (pin, executors) in [("always", 3), ("0", 1), ("1,3", 1), ("1,", 1), ("some", 1), ("", 1)] {
            assert!(plan(pin, executors).is_err(), "{pin:?}");
        }
    }
}
