//! The way to one executor of one node: its connection, made when it is first needed and again when it was lost.
//!
//! All callers share one attempt to connect; while a node cannot be reached they are told so at once, and the
//! next attempt waits for a backoff that grows. With every new connection the node is asked for the map and for
//! its owners, since it may have been restarted.

use crate::{
    Address, ConnectOptions, Error, Pipeline, answer::Answer, builder::Settings, connection::Connection,
    retry::CONNECT_BACKOFF, routing_table::RoutingTable,
};
use kv_proto::{
    error_code::Outcome,
    ids::{ExecutorIndex, NodeId},
    request::Operation,
    response::NodeView,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

/// How often a node may be asked anew which of its executors own what.
const OWNERS_PAUSE: Duration = Duration::from_secs(1);

/// The routing table, shared by everything in a client.
pub(crate) type SharedTable = Arc<RwLock<RoutingTable>>;

/// Reads the shared table.
pub(crate) fn read<T>(table: &RwLock<RoutingTable>, f: impl FnOnce(&RoutingTable) -> T) -> T {
    f(&table.read().unwrap_or_else(PoisonError::into_inner))
}

/// Changes the shared table.
pub(crate) fn write<T>(table: &RwLock<RoutingTable>, f: impl FnOnce(&mut RoutingTable) -> T) -> T {
    f(&mut table.write().unwrap_or_else(PoisonError::into_inner))
}

#[derive(Debug)]
pub(crate) struct Link {
    node: NodeId,
    executor: ExecutorIndex,
    table: SharedTable,
    settings: Settings,
    state: watch::Sender<State>,
    owners_asked: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum State {
    /// Never tried.
    New,
    Connecting {
        failures: u32,
    },
    Up(Arc<Connection>),
    Down {
        failures: u32,
        until: Instant,
        error: Error,
    },
}

impl Link {
    pub(crate) fn new(node: NodeId, executor: ExecutorIndex, table: SharedTable, settings: Settings) -> Arc<Link> {
        let state = watch::Sender::new(State::New);
        Arc::new(Link { node, executor, table, settings, state, owners_asked: Mutex::default() })
    }

    /// The connection; made if there is none. Waits for it until `deadline`.
    pub(crate) async fn connection(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Connection>, Error> {
        if let State::Up(connection) = &*self.state.borrow()
            && !connection.is_closed()
        {
            return Ok(Arc::clone(connection));
        }
        let mut receiver = self.state.subscribe();
        self.maybe_connect();
        let settled = timeout_at(deadline, receiver.wait_for(|s| !matches!(s, State::Connecting { .. }))).await;
        let state = settled
            .map_err(|_| Error::DeadlineExceeded { node: self.node.to_string(), outcome: Outcome::NotApplied })?
            .expect("the sender lives in self");
        match &*state {
            State::Up(connection) => Ok(Arc::clone(connection)),
            State::Down { error, .. } => Err(error.clone()),
            State::New | State::Connecting { .. } => unreachable!("neither is waited for"),
        }
    }

    /// Asks the node again who owns what, if it was not asked just now: the table lacks the owner of a partition
    /// that the node leads.
    pub(crate) fn maybe_ask_for_owners(self: &Arc<Self>, connection: &Arc<Connection>) {
        let due = {
            let (now, mut asked) = (Instant::now(), self.owners_asked());
            let due = asked.is_none_or(|at| now >= at + OWNERS_PAUSE);
            if due {
                *asked = Some(now);
            }
            due
        };
        if due {
            let (link, connection) = (Arc::clone(self), Arc::clone(connection));
            tokio::spawn(async move {
                let deadline = Instant::now() + link.settings.connect_timeout;
                match connection.call(Operation::Map, None, deadline).await {
                    Ok(Answer::Map(view)) => link.merge(*view),
                    other => tracing::debug!(node = %link.node, ?other, "the node did not tell its map"),
                }
            });
        }
    }

    /// Starts an attempt to connect, unless one is under way, a connection stands, or it is too early for one.
    fn maybe_connect(self: &Arc<Self>) {
        let now = Instant::now();
        let started = self.state.send_if_modified(|state| {
            let failures = match state {
                State::New => 0,
                State::Up(connection) if connection.is_closed() => 0,
                State::Down { failures, until, .. } if now >= *until => *failures,
                State::Connecting { .. } | State::Up(_) | State::Down { .. } => return false,
            };
            *state = State::Connecting { failures };
            true
        });
        if started {
            let attempt = Attempt { link: Arc::clone(self), finished: false };
            // A task of its own: whoever asked for the connection may go away, others wait for it too.
            tokio::spawn(attempt.run());
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let (address, cluster) = read(&self.table, |t| (t.address(self.node).map(str::to_owned), t.cluster()));
        let unlisted = || Error::Unreachable {
            node: self.node.to_string(),
            cause: "the cluster map has no address for it; it gets one when the node registers".to_owned(),
        };
        let address: Address = address.ok_or_else(unlisted)?.parse()?;
        let limit = self.settings.connect_timeout;
        let options = ConnectOptions { cluster, executor: Some(self.executor), timeout: limit };
        let silent = |_| Error::Unreachable {
            node: format!("{} at {address}", self.node),
            cause: format!("no answer to a question for its map within {} ms", limit.as_millis()),
        };
        let greeted = async {
            let mut pipeline = Pipeline::connect(&address, &options).await.inspect_err(|e| {
                // The node may have fewer executors since its last start; its first one is always there.
                if matches!(e, Error::Rejected(_)) {
                    write(&self.table, |t| t.forget_owners(self.node));
                }
            })?;
            let answered = pipeline.welcome().node;
            if answered != self.node {
                let cause = format!("{address} is the address of {answered}; the cluster map is old");
                return Err(Error::Unreachable { node: self.node.to_string(), cause });
            }
            match pipeline.node_view().await {
                Ok(view) => self.merge(view),
                Err(Error::Rejected(e)) => tracing::debug!(node = %self.node, error = %e, "the node tells no map"),
                Err(e) => {
                    return Err(Error::Unreachable {
                        node: format!("{} at {address}", self.node),
                        cause: e.to_string(),
                    });
                }
            }
            Ok(pipeline)
        };
        let pipeline = timeout(2 * limit, greeted).await.map_err(silent)??;
        *self.owners_asked() = Some(Instant::now());
        let (socket, welcome) = pipeline.into_socket();
        Ok(Connection::start(socket, welcome, self.settings.max_in_flight, self.settings.heartbeat))
    }

    fn owners_asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.owners_asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn merge(&self, view: NodeView) {
        if let Err(e) = write(&self.table, |t| t.merge_view(self.node, view)) {
            tracing::warn!(node = %self.node, "{e}");
        }
    }
}

/// An attempt to connect. It always leaves [`State::Connecting`], whatever becomes of its task.
struct Attempt {
    link: Arc<Link>,
    finished: bool,
}

impl Attempt {
    async fn run(mut self) {
        let result = self.link.connect().await;
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Connection, Error>) {
        self.finished = true;
        self.link.state.send_modify(|state| {
            let failures = match state {
                State::Connecting { failures } => *failures,
                _ => 0,
            };
            *state = match result {
                Ok(connection) => State::Up(Arc::new(connection)),
                Err(error) => {
                    let failures = failures.saturating_add(1);
                    tracing::debug!(node = %self.link.node, failures, %error, "no connection");
                    let until = Instant::now() + CONNECT_BACKOFF.delay(failures, rand::random());
                    State::Down { failures, until, error }
                }
            };
        });
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.finished {
            let node = self.link.node.to_string();
            self.finish(Err(Error::Unreachable { node, cause: "its runtime was shut down".to_owned() }));
        }
    }
}
