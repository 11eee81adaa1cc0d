//! The async face: routes a request to the leader of its key, and asks again where that is safe.

use crate::{
    Address, ClientBuilder, Entry, Error, Written,
    answer::Answer,
    builder::Settings,
    link::{Link, SharedTable, read, write},
    operation_ids::OperationIds,
    refresh::Refresher,
    retry::{Attempts, Decision, MAX_ATTEMPTS, REQUEST_BACKOFF, RetryBudget, decide},
    routing_table::{NoRoute, Route, RoutingTable},
};
use kv_proto::{
    cluster_map::ClusterMap,
    error_code::{ErrorCode, Outcome, WireError},
    ids::{ExecutorIndex, NodeId, OperationId},
    limits::{HIGHEST_MAX_VALUE_BYTES, Limits, MAX_TTL_MS},
    request::{AdminCommand, Condition, Operation},
    response::Answered,
    stats::NodeStats,
};
use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// What a client is told whose operation ids are always too old.
const TOO_FAST: &str =
    "the partition is written to so fast that it forgets operations before this client has heard of them";
/// Who answered a request for a key, in errors.
const LEADER: &str = "the leader of the key's partition";

/// A client of one cluster. Cheap to clone; clones share connections, map and retry budget.
///
/// All methods are cancel-safe in that a dropped future leaves nothing behind; whether a dropped write was applied
/// is then unknown. A write is applied at most once, however often it has to be sent: see the crate's introduction.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

/// How to write: see [`Client::put_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions<'a> {
    /// The value's media type; empty says nothing about it.
    pub content_type: &'a str,
    /// When to write.
    pub condition: Condition,
    /// How long the value lives from when its leader decides the write; `None` is for ever. Counted in milliseconds,
    /// begun ones in full; at least one, at most ten years ([`MAX_TTL_MS`]).
    pub ttl: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    table: SharedTable,
    links: RwLock<HashMap<(NodeId, ExecutorIndex), Arc<Link>>>,
    refresher: Arc<Refresher>,
    budget: RetryBudget,
    operation_ids: OperationIds,
    settings: Settings,
}

impl Client {
    /// Starts to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(crate) fn new(seeds: Vec<Address>, map: Option<ClusterMap>, settings: Settings) -> Result<Client, Error> {
        let table = SharedTable::default();
        if let Some(map) = map {
            write(&table, |t| t.merge_map(map)).map_err(|e| Error::NoMap { cause: e.to_string() })?;
        }
        let refresher = Refresher::new(seeds, Arc::clone(&table), settings);
        let (links, budget) = (RwLock::default(), RetryBudget::new());
        let operation_ids = OperationIds::of_new_client();
        Ok(Client { inner: Arc::new(Inner { table, links, refresher, budget, operation_ids, settings }) })
    }

    /// The value of a key; `None` if it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>, Error> {
        match self.inner.execute(key, Operation::Get { key }).await? {
            Answer::Value(entry) => Ok(Some(entry)),
            Answer::Missing => Ok(None),
            other => Err(not_an_answer(LEADER.to_owned(), &other, Outcome::NotApplied)),
        }
    }

    /// Sets a key, whatever is there.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says whether the write may have been applied.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<Written, Error> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::ConditionFailed`] when the condition does not hold.
    pub async fn put_with(&self, key: &[u8], value: &[u8], options: PutOptions<'_>) -> Result<Written, Error> {
        let PutOptions { content_type, condition, ttl } = options;
        let ttl_ms = ttl.map(ttl_ms);
        match self.inner.execute(key, Operation::Put { key, value, content_type, condition, ttl_ms }).await? {
            Answer::Written(written) => Ok(written),
            other => Err(not_an_answer(LEADER.to_owned(), &other, Outcome::Unknown)),
        }
    }

    /// Removes a key; `None` if it had no value.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(&self, key: &[u8]) -> Result<Option<Written>, Error> {
        self.delete_with(key, Condition::Any).await
    }

    /// Removes a key on a condition; `None` if it had no value.
    ///
    /// # Errors
    /// As [`Client::put_with`].
    pub async fn delete_with(&self, key: &[u8], condition: Condition) -> Result<Option<Written>, Error> {
        match self.inner.execute(key, Operation::Delete { key, condition }).await? {
            Answer::Written(written) => Ok(Some(written)),
            Answer::Missing => Ok(None),
            other => Err(not_an_answer(LEADER.to_owned(), &other, Outcome::Unknown)),
        }
    }

    /// How a node and its replicas are. Asked once, without retries.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; else see [`Error`].
    pub async fn node_stats(&self, node: NodeId) -> Result<NodeStats, Error> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.settings.deadline;
        if read(&inner.table, |t| t.map().is_none()) {
            inner.refresher.first_map(deadline).await?;
        }
        if read(&inner.table, |t| t.address(node).is_none()) {
            return Err(Error::UnknownNode { node });
        }
        let connection = inner.link(node, ExecutorIndex(0)).connection(deadline).await?;
        match connection.call(Operation::Stats, None, deadline).await? {
            Answer::Stats(stats) => Ok(*stats),
            Answer::Error(e) => Err(Error::Rejected(e)),
            other => Err(not_an_answer(node.to_string(), &other, Outcome::NotApplied)),
        }
    }

    /// Has the leader of a partition carry out a command, and says in which epoch it accepted it. It is asked once,
    /// without retries; whether the command was carried out then, the cluster map shows.
    ///
    /// # Errors
    /// See [`Error`]; with the code [`ErrorCode::NotInSync`] when the partition has not the follower that it needs.
    pub async fn admin(&self, command: AdminCommand) -> Result<Answered, Error> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.settings.deadline;
        let route = inner.find(|t| t.route_of(command.partition()), deadline).await?;
        match inner.attempt(route, Operation::Admin(command), None, deadline).await? {
            Answer::Accepted { at } => Ok(at),
            other => Err(not_an_answer(route.node.to_string(), &other, Outcome::Unknown)),
        }
    }

    /// The cluster map as the client knows it; `None` until someone has told it.
    #[must_use]
    pub fn map(&self) -> Option<Arc<ClusterMap>> {
        read(&self.inner.table, |t| t.map().cloned())
    }

    /// Takes from a map whatever is newer than what the client knows: configurations by their epochs, the nodes by
    /// the version of the map. A map of another cluster is left alone and a warning logged.
    pub fn update_map(&self, map: ClusterMap) {
        if let Err(e) = write(&self.inner.table, |t| t.merge_map(map)) {
            tracing::warn!("the map was not taken: {e}");
        }
    }
}

impl Inner {
    /// Sends a request to the leader of `key`; again where [`decide`] says so.
    async fn execute(&self, key: &[u8], operation: Operation<'_>) -> Result<Answer, Error> {
        // Whatever the nodes are told to take, they take no more than this.
        let highest = Limits { max_value_bytes: HIGHEST_MAX_VALUE_BYTES as u32 };
        check(highest, operation)?;
        let deadline = Instant::now() + self.settings.deadline;
        let mut attempts = Attempts::default();
        let mut operation_id = None;
        // The failure of the last attempt that may have been applied: until somebody knows better, that of the write.
        let mut open = None;
        loop {
            attempts.all += 1;
            let route = match self.find(|t| t.route(key), deadline).await {
                Ok(route) => route,
                Err(error) => return Err(open.unwrap_or(error)),
            };
            if operation_id.is_none() && is_write(operation) {
                let partitions = read(&self.table, RoutingTable::partitions);
                operation_id = Some(self.operation_ids.next(route.partition, partitions));
            }
            let error = match self.attempt(route, operation, operation_id, deadline).await {
                Ok(Answer::TooOld { committed }) => {
                    self.operation_ids.begin_anew(route.partition, committed);
                    if let Some(open) = open {
                        return Err(open);
                    }
                    // Nothing was applied under this id.
                    operation_id = None;
                    if attempts.all >= MAX_ATTEMPTS {
                        return Err(WireError::new(ErrorCode::Overloaded, TOO_FAST).into());
                    }
                    continue;
                }
                Ok(answer) => {
                    if let Answer::Written(written) = &answer {
                        self.operation_ids.learn(route.partition, written.version);
                    }
                    if attempts.all == 1 {
                        self.budget.deposit();
                    }
                    return Ok(answer);
                }
                // That is an answer: whatever became of earlier attempts, the write is decided.
                Err(error @ Error::ConditionFailed { .. }) => return Err(error),
                Err(error) => error,
            };
            let redirected = self.learn(route, key, &error);
            attempts.unknown += u32::from(error.outcome() == Outcome::Unknown);
            let decision = decide(&error, attempts, redirected);
            let error = if error.outcome() == Outcome::Unknown { error } else { open.unwrap_or(error) };
            match decision {
                Decision::GiveUp => return Err(error),
                Decision::Redirect => {}
                Decision::Wait => {
                    let delay = REQUEST_BACKOFF.delay(attempts.all, rand::random());
                    let is_paid = attempts.unknown > 0 || self.budget.withdraw();
                    if Instant::now() + delay >= deadline || !is_paid {
                        return Err(error);
                    }
                    sleep(delay).await;
                }
            }
            open = (error.outcome() == Outcome::Unknown).then_some(error);
        }
    }

    async fn find(
        &self,
        route: impl Fn(&RoutingTable) -> Result<Route, NoRoute>,
        deadline: Instant,
    ) -> Result<Route, Error> {
        let mut found = read(&self.table, &route);
        if found == Err(NoRoute::NoMap) {
            self.refresher.first_map(deadline).await?;
            found = read(&self.table, &route);
        }
        found.map_err(|e| match e {
            NoRoute::NoMap => Error::NoMap { cause: "nobody has told it".to_owned() },
            NoRoute::NoLeader(partition) => {
                self.refresher.start();
                Error::NoLeader { partition }
            }
        })
    }

    async fn attempt(
        &self,
        route: Route,
        operation: Operation<'_>,
        operation_id: Option<OperationId>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        // A node's first executor is always there, and forwards what is another's.
        let link = self.link(route.node, route.executor.unwrap_or_default());
        let connection = link.connection(deadline).await?;
        if route.executor.is_none() {
            link.maybe_ask_for_owners(&connection);
        }
        check(connection.limits(), operation)?;
        match connection.call(operation, operation_id, deadline).await? {
            Answer::Error(e) => Err(Error::Rejected(e)),
            Answer::ConditionFailed { at, current } => Err(Error::ConditionFailed { at, current }),
            answer => Ok(answer),
        }
    }

    /// Learns from a failure; says whether the request would go to another node now.
    fn learn(&self, route: Route, key: &[u8], error: &Error) -> bool {
        match error {
            Error::Rejected(e) if e.code == ErrorCode::NotLeader => {
                if let Some((partition, configuration)) = e.configuration.as_deref() {
                    write(&self.table, |t| t.merge_configuration(*partition, configuration));
                }
            }
            Error::Rejected(e) if !matches!(e.code, ErrorCode::NotReady | ErrorCode::ShuttingDown) => return false,
            Error::Rejected(_) | Error::Unreachable { .. } | Error::ConnectionLost { .. } => {}
            _ => return false,
        }
        let redirected = read(&self.table, |t| t.route(key)).is_ok_and(|now| now.node != route.node);
        if !redirected {
            self.refresher.start();
        }
        redirected
    }

    fn link(&self, node: NodeId, executor: ExecutorIndex) -> Arc<Link> {
        let key = (node, executor);
        if let Some(link) = self.links.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(link);
        }
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let link =
            links.entry(key).or_insert_with(|| Link::new(node, executor, Arc::clone(&self.table), self.settings));
        Arc::clone(link)
    }
}

fn is_write(operation: Operation<'_>) -> bool {
    matches!(operation, Operation::Put { .. } | Operation::Delete { .. })
}

/// Checks what the node would refuse, before a byte is sent: a message over its limit costs the connection.
fn check(limits: Limits, operation: Operation<'_>) -> Result<(), Error> {
    if let Some(key) = operation.key() {
        limits.check_key(key)?;
    }
    if let Operation::Put { value, content_type, .. } = operation {
        limits.check_value(content_type, value)?;
    }
    Ok(())
}

/// A life as it travels.
fn ttl_ms(ttl: Duration) -> NonZeroU64 {
    let ms = ttl.as_nanos().div_ceil(1_000_000).clamp(1, MAX_TTL_MS.into());
    NonZeroU64::new(ms as u64).expect("at least 1")
}

fn not_an_answer(node: String, answer: &Answer, outcome: Outcome) -> Error {
    let text = match answer {
        Answer::Value(_) => "a value",
        Answer::Missing => "no value",
        Answer::Written(_) => "a write",
        Answer::ConditionFailed { .. } => "a failed condition",
        Answer::TooOld { .. } => "an operation id that is too old",
        Answer::Map(_) => "a map",
        Answer::Stats(_) => "stats",
        Answer::Pong => "a pong",
        Answer::Accepted { .. } => "an accepted command",
        Answer::Report(_) => "a report",
        Answer::Error(_) => "an error",
    };
    Error::Protocol { node, cause: format!("it answered with {text}, which is no answer to the request"), outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_rounded_up_and_bounded() {
        for (ttl, ms) in [
            (Duration::ZERO, 1),
            (Duration::from_micros(1), 1),
            (Duration::from_millis(2), 2),
            (Duration::from_micros(2_001), 3),
            (Duration::MAX, MAX_TTL_MS),
        ] {
            assert_eq!(ttl_ms(ttl).get(), ms, "{ttl:?}");
        }
    }
}
