//! What a router is told when it starts. Every flag is also an environment variable.

use crate::controller::config_store::Consensus;
use clap::builder::FalseyValueParser;
use kv_proto::{
    cluster_map::AckMode,
    ids::NodeId,
    limits::{DEFAULT_MAX_VALUE_BYTES, HIGHEST_MAX_VALUE_BYTES},
};
use kv_replication::cluster::Shape;
use std::{net::SocketAddr, path::PathBuf};

/// Options of a router and its controller.
#[derive(Clone, Debug, clap::Args)]
pub struct RouterOptions {
    /// Name of this router, as nodes and logs show it
    #[arg(long, env = "KV_ID", default_value = "router")]
    pub id: NodeId,

    /// Where the HTTP API listens. Anyone who reaches this address can read and change everything: there is no
    /// authentication
    #[arg(long, env = "KV_HTTP", default_value = "127.0.0.1:5000", value_name = "HOST:PORT")]
    pub http: SocketAddr,

    /// Where the controller listens for nodes (binary protocol); nodes are pointed here by their --controller
    #[arg(long, env = "KV_CONTROLLER_LISTEN", default_value = "127.0.0.1:5100", value_name = "HOST:PORT")]
    pub controller_listen: SocketAddr,

    /// The --controller-listen addresses of all controllers of the cluster, this one's among them, separated by commas; the
    /// same list at each. An odd number, mostly three: the cluster map can change as long as a majority of them runs.
    /// Without it, this is the only one
    #[arg(long, env = "KV_CONTROLLER_PEERS", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub controller_peers: Vec<String>,

    /// How often the leading controller tells the others that it is there, in milliseconds
    #[arg(long, env = "KV_CONTROLLER_HEARTBEAT_MS", default_value_t = 250, value_name = "MS",
          value_parser = clap::value_parser!(u64).range(10..=10_000))]
    pub controller_heartbeat_ms: u64,

    /// After how long of silence another controller wants to lead, in milliseconds: this to twice as long. At least four times
    /// --controller-heartbeat-ms
    #[arg(long, env = "KV_CONTROLLER_ELECTION_MS", default_value_t = 1000, value_name = "MS",
          value_parser = clap::value_parser!(u64).range(40..=100_000))]
    pub controller_election_ms: u64,

    /// Folder of the cluster map; made if it is missing, and locked while the router runs
    #[arg(long, env = "KV_DATA_DIR", default_value = "./kv-data/router", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// How many shards host the partitions; fixed when the cluster is made
    #[arg(long, env = "KV_SHARDS", default_value_t = 3, value_name = "N")]
    pub shards: u16,

    /// How many nodes each shard has: a leader and its followers; fixed when the cluster is made
    #[arg(long, env = "KV_REPLICAS", default_value_t = 2, value_name = "N")]
    pub replicas: u16,

    /// How many partitions the keys are spread over; fixed when the cluster is made
    #[arg(long, env = "KV_PARTITIONS", default_value_t = 64, value_name = "N")]
    pub partitions: u16,

    /// What a write waits for before it is acknowledged. 'durable': it is flushed to the disk of the leader and of every
    /// in-sync follower. 'replicated': it is in the memory of all of them, and on their disks within 100 ms, so that
    /// losing all of them at once can cost what was acknowledged last. Fixed when the cluster is made
    #[arg(long, env = "KV_ACK", default_value_t = AckMode::Durable, value_name = "durable|replicated")]
    pub ack: AckMode,

    /// Create partitions although nodes have come that hold data of another cluster: those data are given up as far as this
    /// cluster is concerned. Without it, a controller that has lost its data folder begins nothing new beside them
    #[arg(long, env = "KV_NEW_CLUSTER", value_parser = FalseyValueParser::new(), num_args = 0, action = clap::ArgAction::SetTrue)]
    pub new_cluster: bool,

    /// How long a request may take before it is answered by an error, in milliseconds
    #[arg(long, env = "KV_DEADLINE_MS", default_value_t = 2000, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(10..=600_000))]
    pub deadline_ms: u32,

    /// Longest value, in bytes, after decoding; the nodes' own limit counts too
    #[arg(long, env = "KV_MAX_VALUE_BYTES", default_value_t = DEFAULT_MAX_VALUE_BYTES as u32, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1..=HIGHEST_MAX_VALUE_BYTES as i64))]
    pub max_value_bytes: u32,

    /// Most HTTP connections at a time; further ones are answered by 503 and closed
    #[arg(long, env = "KV_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Refuse GET on /delete, which a link or a crawler can follow by accident
    #[arg(long, env = "KV_NO_GET_DELETE", value_parser = FalseyValueParser::new(), num_args = 0, action = clap::ArgAction::SetTrue)]
    pub no_get_delete: bool,
}

impl RouterOptions {
    /// What is fixed when the cluster is made.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape { shards: self.shards, replicas: self.replicas, partitions: self.partitions, ack: self.ack }
    }

    /// How the controllers agree.
    ///
    /// # Errors
    /// When the options cannot go together; a sentence that says what to change.
    pub fn consensus(&self) -> Result<Consensus, String> {
        let (heartbeat_ms, election_ms) = (self.controller_heartbeat_ms, self.controller_election_ms);
        if election_ms < 4 * heartbeat_ms {
            return Err(format!(
                "--controller-election-ms {election_ms} is less than four times --controller-heartbeat-ms {heartbeat_ms}, so \
                 that one late heartbeat could begin an election: raise the one or lower the other"
            ));
        }
        // One that lists only itself is an only one.
        let peers = if self.controller_peers.len() < 2 { Vec::new() } else { self.controller_peers.clone() };
        Ok(Consensus { peers, heartbeat_ms, election_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: RouterOptions,
    }

    #[test]
    fn defaults_and_bounds() {
        let options = Cli::try_parse_from(["router"]).expect("defaults").options;
        assert_eq!(options.http.to_string(), "127.0.0.1:5000");
        assert_eq!(options.controller_listen.to_string(), "127.0.0.1:5100");
        assert_eq!(options.shape(), Shape { shards: 3, replicas: 2, partitions: 64, ack: AckMode::Durable });
        assert!(!options.no_get_delete);
        for bad in [
            ["--id", "a b"],
            ["--http", "nowhere"],
            ["--deadline-ms", "0"],
            ["--max-value-bytes", "16777217"],
            ["--max-connections", "0"],
            ["--ack", "never"],
        ] {
            assert!(Cli::try_parse_from(["router"].into_iter().chain(bad)).is_err(), "{bad:?}");
        }
        let options = Cli::try_parse_from(["router", "--no-get-delete", "--shards", "1", "--ack", "replicated"])
            .expect("flags")
            .options;
        assert!(options.no_get_delete && options.shards == 1 && options.ack == AckMode::Replicated);
    }
}
