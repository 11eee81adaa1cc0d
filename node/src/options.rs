//! What a node is told at its start.

use clap::{Args, ValueEnum};
use kv_proto::{
    ids::{NodeId, ShardId},
    limits::{DEFAULT_MAX_VALUE_BYTES, HIGHEST_MAX_VALUE_BYTES, Limits},
};
use kv_replication::replica;
use std::{net::SocketAddr, str::FromStr, time::Duration};

/// Runs one node of a cluster, in the foreground, until SIGTERM or SIGINT.
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

    /// Address of the controller (the router's --controller-listen).
    #[arg(long, env = "KV_CONTROLLER", default_value = "127.0.0.1:5100")]
    pub controller: String,

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

    /// Bytes of memory, counted by the node itself, from which on it takes no more values (reads and deletes go on); with
    /// KiB, MiB or GiB behind the number, as in 4GiB. Without it there is no limit.
    #[arg(long, env = "KV_MAX_MEMORY", value_name = "BYTES", value_parser = parse_bytes)]
    pub max_memory: Option<u64>,

    /// Seconds after which a silent client connection is closed.
    #[arg(long, env = "KV_IDLE_TIMEOUT_S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_timeout_s: u64,

    /// Milliseconds between the beacons of a leader to its followers.
    #[arg(long, env = "KV_BEACON_INTERVAL_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub beacon_interval_ms: u64,

    /// Milliseconds of a follower's silence after which its leader takes no writes until it answers again.
    #[arg(long, env = "KV_SUSPECT_AFTER_MS", default_value_t = 1000)]
    pub suspect_after_ms: u64,

    /// How often a connection on which nothing comes is looked at before the kernel is asked to tell; the node
    /// learns how often it pays, up to this. 0 suits a machine that many processes share.
    #[arg(long, env = "KV_SCAN_PASSES", default_value_t = 64)]
    pub scan_passes: u32,
}

/// A number of bytes, as in `1000`, `64KiB`, `1.5 GiB`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "use a number of bytes, as in 1000000, 64KiB, 512MiB or 1.5GiB".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit: u64 = match unit.trim_start() {
        "" | "B" => return number.parse().ok().filter(|n| *n > 0).ok_or_else(wrong),
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
    if (1.0..=u64::MAX as f64).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
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
    pub(crate) controller: String,
    pub(crate) limits: Limits,
    pub(crate) max_connections: usize,
    /// From here on no more values are taken.
    pub(crate) max_memory_bytes: Option<u64>,
    pub(crate) idle_timeout: Duration,
    pub(crate) scan_passes: u32,
    pub(crate) replica: replica::Options,
}

impl NodeOptions {
    /// Checks the options against each other; `bound` is the address that the node listens on.
    ///
    /// # Errors
    /// A sentence that names the flags.
    pub(crate) fn settings(&self, bound: SocketAddr) -> Result<Settings, String> {
        let (beacon, suspect) = (self.beacon_interval_ms, self.suspect_after_ms);
        if suspect < 3 * beacon {
            return Err(format!(
                "--suspect-after-ms {suspect} must be at least three times --beacon-interval-ms {beacon}, \
                 or one late beacon makes a follower suspect"
            ));
        }
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
        let limits = Limits { max_value_bytes: self.max_value_bytes };
        Ok(Settings {
            shard: ShardId(self.shard),
            prefers_to_lead: self.role == PreferredRole::Leader,
            advertised: self.advertise.clone().unwrap_or_else(|| bound.to_string()),
            controller: self.controller.clone(),
            limits,
            max_connections: self.max_connections,
            max_memory_bytes: self.max_memory,
            idle_timeout: Duration::from_secs(self.idle_timeout_s),
            scan_passes: self.scan_passes,
            replica: replica::Options {
                beacon_interval: Duration::from_millis(beacon),
                suspect_after: Duration::from_millis(suspect),
                max_pending_bytes: (16 * 1024 * 1024).max(limits.max_message_bytes()),
                ..replica::Options::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("1", 1), ("1000 B", 1000), ("64KiB", 65_536), ("1.5 GiB", 3 << 29), ("2MiB", 2 << 20), ("0.5KiB", 512)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "1.5", "1KB", "1M", "GiB", "0GiB", "1..5GiB", "99999999999GiB", "1 KiB "] {
            assert!(parse_bytes(text).is_err(), "{text}");
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
