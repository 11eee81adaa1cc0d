//! Asks nodes for the cluster map: at the start, and when what is known led nowhere.
//!
//! # Invariants
//! * One round at a time, whoever asks for it, and a pause after each: a cluster in trouble is not asked by every
//!   request that fails.

use crate::{
    Address, ConnectOptions, Error, Pipeline,
    builder::Settings,
    link::{SharedTable, read, write},
    routing_table::RoutingTable,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Refresher {
    seeds: Vec<Address>,
    table: SharedTable,
    settings: Settings,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    running: bool,
    finished: Option<Instant>,
    /// Why the last round brought no map.
    failure: Option<String>,
}

impl Refresher {
    pub(crate) fn new(seeds: Vec<Address>, table: SharedTable, settings: Settings) -> Arc<Refresher> {
        Arc::new(Refresher { seeds, table, settings, progress: watch::Sender::default() })
    }

    /// Waits until there is a map: as long as a round takes, at most until `deadline`.
    pub(crate) async fn first_map(self: &Arc<Self>, deadline: Instant) -> Result<(), Error> {
        let mut progress = self.progress.subscribe();
        self.start();
        let round = timeout_at(deadline, progress.wait_for(|p| !p.running)).await;
        if read(&self.table, |t| t.map().is_some()) {
            return Ok(());
        }
        let cause = match round {
            Ok(progress) => progress.ok().and_then(|p| p.failure.clone()),
            Err(_) => Some("the deadline passed before a node told it".to_owned()),
        };
        Err(Error::NoMap { cause: cause.unwrap_or_else(|| "no node was asked".to_owned()) })
    }

    /// Starts a round, unless one is under way or has just been.
    pub(crate) fn start(self: &Arc<Self>) {
        let now = Instant::now();
        let started = self.progress.send_if_modified(|p| {
            let due = !p.running && p.finished.is_none_or(|at| now >= at + PAUSE);
            p.running |= due;
            due
        });
        if started {
            tokio::spawn(Round { refresher: Arc::clone(self), failure: None }.run());
        }
    }

    /// Whom to ask: the seeds until there is a map, then the nodes of the map too.
    fn sources(&self) -> Vec<Address> {
        let mut sources = self.seeds.clone();
        read(&self.table, |table| {
            let nodes = table.map().map(|m| m.nodes.as_slice()).unwrap_or_default();
            for address in nodes.iter().filter_map(|n| n.address.parse().ok()) {
                if !sources.contains(&address) {
                    sources.push(address);
                }
            }
        });
        // Not all clients at the same node first.
        if !sources.is_empty() {
            let first = rand::random_range(0..sources.len());
            sources.rotate_left(first);
        }
        sources
    }

    async fn ask(&self, address: &Address) -> Result<(), Error> {
        let cluster = read(&self.table, RoutingTable::cluster);
        let options = ConnectOptions { cluster, executor: None, timeout: self.settings.connect_timeout };
        let mut pipeline = Pipeline::connect(address, &options).await?;
        let view = timeout(options.timeout, pipeline.node_view())
            .await
            .map_err(|_| Error::Unreachable { node: address.to_string(), cause: "it does not answer".to_owned() })??;
        if view.map.is_none() {
            let cause = format!("{address} has not been told the map by the controller; check that the router runs");
            return Err(Error::NoMap { cause });
        }
        let node = pipeline.welcome().node;
        write(&self.table, |t| t.merge_view(node, view)).map_err(|e| Error::NoMap { cause: e.to_string() })
    }
}

/// A round of questions. It always ends `running`, whatever becomes of its task.
struct Round {
    refresher: Arc<Refresher>,
    failure: Option<String>,
}

impl Round {
    async fn run(mut self) {
        let sources = self.refresher.sources();
        if sources.is_empty() {
            self.failure = Some("the client has neither a seed to ask nor was it given a map".to_owned());
        }
        for address in sources {
            match self.refresher.ask(&address).await {
                Ok(()) => {
                    self.failure = None;
                    return;
                }
                Err(Error::NoMap { cause }) => self.failure = Some(cause),
                Err(e) => self.failure = Some(e.to_string()),
            }
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.refresher.progress.send_modify(|p| {
            *p = Progress { running: false, finished: Some(Instant::now()), failure: self.failure.take() };
        });
    }
}
