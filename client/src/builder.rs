//! Settings of a client.

use crate::{Address, Client, Error, connection::Heartbeat};
use kv_proto::cluster_map::ClusterMap;
use std::time::Duration;

/// What [`ClientBuilder`] collects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) heartbeat: Heartbeat,
}

/// Makes a [`Client`]; from [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    seeds: Vec<String>,
    map: Option<ClusterMap>,
    settings: Settings,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        let settings = Settings {
            deadline: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            max_in_flight: 1024,
            heartbeat: Heartbeat { quiet: Duration::from_secs(1), answer_within: Duration::from_secs(1) },
        };
        ClientBuilder { seeds: Vec::new(), map: None, settings }
    }

    /// A node to ask for the cluster map, as `host:port` or `kv://host:port`. Any number; one that answers is
    /// enough.
    pub fn seed(mut self, address: impl Into<String>) -> Self {
        self.seeds.push(address.into());
        self
    }

    /// The map to start with, so that no seed is needed.
    pub fn map(mut self, map: ClusterMap) -> Self {
        self.map = Some(map);
        self
    }

    /// How long a request may take in all, its retries included. 2 seconds unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// How long one attempt to connect to a node may take. 1 second unless told otherwise.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// How many requests may wait for their answers on one connection, 1 to 65,536; 1,024 unless told otherwise.
    /// Further ones wait for a place until their deadlines.
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.settings.max_in_flight = requests.clamp(1, 1 << 16);
        self
    }

    /// After how long without a byte from a node it is asked whether it is there, and how long it may take to
    /// answer before the connection is given up. 1 second each unless told otherwise. Keep the first below the
    /// nodes' idle timeout (60 seconds), after which they close a connection.
    pub fn heartbeat(mut self, quiet: Duration, answer_within: Duration) -> Self {
        self.settings.heartbeat = Heartbeat { quiet, answer_within };
        self
    }

    /// The client. Connects to nothing: connections are made when they are needed, on the tokio runtime on which
    /// requests are then made.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`] for a seed that is none; [`Error::NoMap`] for a map that cannot be one.
    pub fn build(self) -> Result<Client, Error> {
        let seeds = self.seeds.iter().map(|s| s.parse()).collect::<Result<Vec<Address>, _>>()?;
        Client::new(seeds, self.map, self.settings)
    }
}
