//! What clients ask, and who waits for an answer.
//!
//! # Invariants
//! * Every request is answered once: at once, when the core says so, or at its deadline.
//! * A write that was proposed and is not known to be committed by its deadline is answered as unknown; one that
//!   was not proposed never is.

use super::{Executor, Mail, lines::LineKey, token};
use crate::{
    clock,
    executor::forward::Collection,
    partition::{Decision, Partition, Read},
};
use kv_proto::{
    codec,
    effect::{Effect, Expiry},
    error_code::{ErrorCode, WireError},
    frame::{self, Kind},
    ids::{ExecutorIndex, HistoryId, Lsn, PartitionId, Version},
    request::{AdminCommand, Condition, Operation, Request},
    response::{Answered, NodeView, Response},
    routing::partition_of,
    stats::ReplicaStats,
};
use kv_replication::{
    clock::Instant64,
    replica::{Event, Outcome, Refusal},
};
use std::{num::NonZeroU64, sync::Arc};

/// How many requests of an executor may wait for an answer.
const MAX_WAITING: usize = 256 * 1024;
/// Bytes of records that may wait to be replicated, over all partitions of an executor.
const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;

slotmap::new_key_type! {
    /// Names who waits.
    pub(crate) struct WaitingKey;
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The executor that has the connection.
    pub(super) executor: ExecutorIndex,
    /// The connection.
    pub(super) line: LineKey,
    /// The frame's id.
    pub(super) id: u64,
    /// How long the encoded request is, in bytes.
    pub(super) bytes: usize,
}

/// A request whose answer depends on what is not committed yet.
pub(super) struct Waiting {
    /// Whom to answer; `None` once the deadline has passed and the answer was given.
    pub(super) origin: Option<Origin>,
    pub(super) deadline: Instant64,
    pub(super) partition: PartitionId,
    pub(super) awaited: Awaited,
}

/// What is answered once what it depends on is committed.
pub(super) enum Awaited {
    /// What was decided.
    Write(Decision),
    /// What this key has then.
    Read(Box<[u8]>),
}

impl Awaited {
    /// Whether there is a write that may have happened, or may still, when nobody waits any more.
    fn is_proposed(&self) -> bool {
        matches!(self, Awaited::Write(Decision::Proposed(_)))
    }
}

/// Where a partition is.
enum Place {
    /// Owned by this executor.
    Here(PartitionId),
    /// Owned by another executor of the node.
    At(ExecutorIndex),
}

/// Appends a response.
pub(super) fn append_response(out: &mut Vec<u8>, id: u64, response: &Response<'_>) {
    frame::append_message(out, Kind::Response, id, |body| codec::encode_into(body, response));
}

fn error(code: ErrorCode, message: impl Into<String>) -> Response<'static> {
    Response::Error(WireError::new(code, message))
}

impl Executor {
    /// Runs a client's request; `body` is its encoded form. An answer that is there at once goes to `out`, the
    /// output of the connection that it came from; any other is sent when it is known.
    pub(super) fn handle_request(
        &mut self,
        now: Instant64,
        origin: Origin,
        deadline: Instant64,
        request: &Request<'_>,
        body: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.requests += 1;
        let answer = match request.operation {
            operation if self.draining => Some(self.refuse_when_stopping(operation)),
            _ if deadline <= now => Some(error(ErrorCode::Expired, "the deadline passed before the request was run")),
            Operation::Ping => Some(Response::Pong),
            _ if self.lines.output_is_full() => Some(error(
                ErrorCode::Overloaded,
                "too many answers of this node wait for clients that do not read them",
            )),
            Operation::Map => Some(Response::Map(Box::new(self.node_view()))),
            Operation::Stats => {
                self.collect_stats(origin);
                None
            }
            Operation::Report => {
                self.collect_report(origin);
                None
            }
            Operation::Get { key } => match self.locate(key) {
                Ok(Place::Here(id)) => {
                    let partition = self.partitions[usize::from(id.0)].as_deref().expect("an owner has its partition");
                    match partition.read(now, key, clock::wall_ms) {
                        Ok(Read::Expired | Read::Unsure) => self.read_later(now, origin, deadline, id, key),
                        Ok(found) => {
                            // Encoded while the entry is borrowed, straight into the connection's output.
                            append_response(out, origin.id, &got(partition, id, &found));
                            None
                        }
                        Err(refusal) => Some(Response::Error(self.refuse(id, refusal))),
                    }
                }
                Ok(Place::At(owner)) => self.forward(owner, origin, deadline, body).err().map(Response::Error),
                Err(error) => Some(Response::Error(error)),
            },
            Operation::Put { key, value, content_type, condition, ttl_ms } => {
                match self.shared.settings.limits.check_value(content_type, value) {
                    Ok(()) => {
                        let expires = ttl_ms.map(|ttl_ms| Expiry::after(clock::wall_ms(), ttl_ms));
                        let effect = Effect::Put { key, content_type, value, expires };
                        self.write(now, origin, deadline, request, effect, condition, body)
                    }
                    Err(error) => Some(Response::Error(error)),
                }
            }
            Operation::Admin(command) => self.carry_out_admin(now, origin, deadline, command, body),
            Operation::Delete { key, condition } => {
                self.write(now, origin, deadline, request, Effect::Delete { key }, condition, body)
            }
        };
        if let Some(answer) = answer {
            append_response(out, origin.id, &answer);
        }
    }

    /// Sets about what a person wants, or passes it on.
    fn carry_out_admin(
        &mut self,
        now: Instant64,
        origin: Origin,
        deadline: Instant64,
        command: AdminCommand,
        body: &[u8],
    ) -> Option<Response<'static>> {
        let id = command.partition();
        match self.view.as_ref().and_then(|view| view.owner(id)) {
            Some(owner) if owner == self.index => {}
            Some(owner) => return self.forward(owner, origin, deadline, body).err().map(Response::Error),
            None => return Some(Response::Error(self.refuse(id, Refusal::NotLeader))),
        }
        let replica = &self.partition(id)?.replica;
        if let Err(refusal) = replica.check_read(now) {
            return Some(Response::Error(self.refuse(id, refusal)));
        }
        let in_sync = &replica.configuration().in_sync;
        let (event, wanted) = match command {
            AdminCommand::Handoff { to, .. } => (Event::Handoff { to, leaves: false }, to),
            AdminCommand::Drop { node, .. } => (Event::DropFollower { node }, Some(node)),
        };
        if in_sync.iter().all(|m| wanted.is_some_and(|node| node != m.node)) {
            let who = wanted.map_or_else(|| "nobody".to_owned(), |node| format!("node {node}"));
            let message = format!("partition {id}: {who} is no in-sync follower of it; `kv status` tells who is");
            let message = if wanted.is_none() { format!("partition {id} has no in-sync follower") } else { message };
            return Some(error(ErrorCode::NotInSync, message));
        }
        let at = self.answered(id);
        self.give(now, id, event);
        Some(Response::Accepted { at })
    }

    /// What a node that stops answers: who leads now, if it knows that, so that clients find their way.
    fn refuse_when_stopping(&self, operation: Operation<'_>) -> Response<'static> {
        let key = match operation {
            Operation::Get { key } | Operation::Put { key, .. } | Operation::Delete { key, .. } => Some(key),
            _ => None,
        };
        if let (Some(key), Some(view)) = (key, &self.view) {
            let id = partition_of(key, view.map.partition_count());
            if view.map.configuration(id).is_some_and(|c| c.leader.node != self.shared.me.node) {
                return Response::Error(self.refuse(id, Refusal::NotLeader));
            }
        }
        error(ErrorCode::ShuttingDown, "the node is stopping")
    }

    /// Where the partition of a key is.
    fn locate(&self, key: &[u8]) -> Result<Place, WireError> {
        self.shared.settings.limits.check_key(key)?;
        let Some(view) = &self.view else {
            return Err(WireError::new(ErrorCode::NotReady, "the node has not learned the cluster map yet"));
        };
        let id = partition_of(key, view.map.partition_count());
        match view.owner(id) {
            Some(owner) if owner == self.index => Ok(Place::Here(id)),
            Some(owner) => Ok(Place::At(owner)),
            None => Err(self.refuse(id, Refusal::NotLeader)),
        }
    }

    /// Proposes a write, or passes it on. An answer is returned only if there is one at once.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request, named at its only two callers")]
    fn write(
        &mut self,
        now: Instant64,
        origin: Origin,
        deadline: Instant64,
        request: &Request<'_>,
        effect: Effect<'_>,
        condition: Condition,
        body: &[u8],
    ) -> Option<Response<'static>> {
        let id = match self.locate(effect.key().expect("what clients write has a key")) {
            Ok(Place::Here(id)) => id,
            Ok(Place::At(owner)) => return self.forward(owner, origin, deadline, body).err().map(Response::Error),
            Err(error) => return Some(Response::Error(error)),
        };
        if let Some(refused) = self.refuse_to_wait() {
            return Some(refused);
        }
        let stores = matches!(effect, Effect::Put { .. }).then_some(body.len());
        let full =
            if stores.is_some() { self.check_memory() } else { Ok(()) }.and_then(|()| self.check_log(id, stores)).err();
        let partition = self.partitions[usize::from(id.0)].as_deref_mut().expect("an owner has its partition");
        // Who is not the leader has a better answer, and so has whoever was here before.
        if let Some(full) = full
            && partition.replica.check_read(now).is_ok()
            && request.operation_id.is_none_or(|id| partition.recall(&id).is_none())
        {
            return Some(Response::Error(full));
        }
        let held = partition.replica.held_bytes();
        let (actions, operation_id) = (&mut self.actions, request.operation_id);
        let decided = self.waiting.try_insert_with_key(|key| {
            let decision =
                partition.write(now, clock::wall_ms(), effect, condition, operation_id, token(key), actions)?;
            Ok(Waiting { origin: Some(origin), deadline, partition: id, awaited: Awaited::Write(decision) })
        });
        self.held_bytes += partition.replica.held_bytes() - held;
        match decided {
            Ok(_) => {
                self.carry_out(id);
                None
            }
            Err(refusal) => Some(Response::Error(self.refuse(id, refusal))),
        }
    }

    /// The answer to who would have to wait, while no more may.
    pub(super) fn refuse_to_wait(&self) -> Option<Response<'static>> {
        let full = self.waiting.len() >= MAX_WAITING || self.held_bytes > MAX_HELD_BYTES;
        full.then(|| error(ErrorCode::Overloaded, "too many writes of this node wait to be replicated"))
    }

    /// What a refusal of the core is to a client.
    pub(super) fn refuse(&self, id: PartitionId, refusal: Refusal) -> WireError {
        let code = match refusal {
            Refusal::NotLeader => ErrorCode::NotLeader,
            Refusal::NotReady | Refusal::HandingOff => ErrorCode::NotReady,
            Refusal::FollowerUnreachable(_) | Refusal::TooFewInSync => ErrorCode::FollowerUnreachable,
            Refusal::Overloaded => ErrorCode::Overloaded,
        };
        let mut error = WireError::new(code, format!("partition {id}: {refusal}"));
        let replica = self.partitions.get(usize::from(id.0)).and_then(|p| p.as_ref()).map(|p| &p.replica);
        if refusal == Refusal::NotReady
            && let Some(why) = replica.and_then(|r| r.trouble(clock::now()))
        {
            error.message = format!("partition {id}: {why}");
        }
        if code == ErrorCode::NotLeader {
            let configuration = self.view.as_ref().and_then(|v| v.map.configuration(id)).cloned();
            if configuration.as_ref().is_none_or(|c| c.leader.node == self.shared.me.node) {
                // To ask elsewhere would not help: this is the node that should lead.
                let why = replica.and_then(|r| r.trouble(clock::now()));
                let why = why.unwrap_or_else(|| "the partition has no leader yet".to_owned());
                return WireError::new(ErrorCode::NotReady, format!("partition {id}: {why}"));
            }
            error.configuration = configuration.map(|c| Box::new((id, c)));
        }
        error
    }

    /// Answers who waits under `key`.
    pub(super) fn reply(&mut self, key: WaitingKey, outcome: Outcome) {
        let Some(waiting) = self.waiting.remove(key) else { return };
        let Some(origin) = waiting.origin else { return };
        let id = waiting.partition;
        let answer = match (outcome, waiting.awaited) {
            (Outcome::Refused(refusal), _) => Response::Error(self.refuse(id, refusal)),
            (Outcome::Unknown, Awaited::Read(_)) => Response::Error(self.refuse(id, Refusal::NotLeader)),
            (Outcome::Unknown, awaited) => {
                unknown(id, awaited.is_proposed(), ErrorCode::NotReady, "the leader lost its epoch")
            }
            (Outcome::Committed, Awaited::Write(decision)) => {
                let at = self.answered(id);
                match decision {
                    Decision::Proposed(version) => Response::Written { at, version },
                    Decision::ConditionFailed(current) => Response::ConditionFailed { at, current },
                    Decision::Missing => Response::Missing { at },
                    Decision::TooOld => Response::TooOld { at, committed: self.committed(id) },
                }
            }
            (Outcome::Committed, Awaited::Read(key)) => return self.answer_read(origin, id, &key),
        };
        self.answer(origin, &answer);
    }

    /// Answers a read that has waited.
    fn answer_read(&mut self, origin: Origin, id: PartitionId, key: &[u8]) {
        let mut frames = Vec::new();
        let partition = self.partitions[usize::from(id.0)].as_deref().expect("an owner has its partition");
        match partition.look(key, clock::wall_ms) {
            Read::Expired => {
                let again = format!("partition {id}: a new value of the key has expired while it was read; read again");
                append_response(&mut frames, origin.id, &error(ErrorCode::NotReady, again));
            }
            found => append_response(&mut frames, origin.id, &got(partition, id, &found)),
        }
        self.answer_frames(origin, frames);
    }

    /// The last record of a partition that is committed, as a version.
    fn committed(&self, id: PartitionId) -> Version {
        let partition = self.partitions.get(usize::from(id.0)).and_then(|p| p.as_ref());
        partition.map_or(Version { history: HistoryId(0), lsn: Lsn(0) }, |p| p.version(p.replica.committed()))
    }

    fn answered(&self, id: PartitionId) -> Answered {
        let replica = self.partitions.get(usize::from(id.0)).and_then(|p| p.as_ref()).map(|p| &p.replica);
        Answered { partition: id, epoch: replica.map(|r| r.configuration().epoch).unwrap_or_default() }
    }

    /// Sends an answer to where the request came from.
    pub(super) fn answer(&mut self, origin: Origin, response: &Response<'_>) {
        if origin.executor == self.index {
            self.append_to_line(origin.line, |out| append_response(out, origin.id, response));
        } else {
            let mut frames = Vec::new();
            append_response(&mut frames, origin.id, response);
            self.answer_frames(origin, frames);
        }
    }

    /// Sends an encoded answer to where the request came from.
    fn answer_frames(&mut self, origin: Origin, frames: Vec<u8>) {
        if origin.executor == self.index {
            self.append_to_line(origin.line, |out| out.extend_from_slice(&frames));
        } else {
            self.shared.mail[usize::from(origin.executor.0)].send(Mail::Answer { origin, frames });
        }
    }

    /// Answers whose deadline has passed. What they asked for may still happen.
    pub(super) fn expire_waiting(&mut self, now: Instant64) {
        let mut expired = Vec::new();
        for waiting in self.waiting.values_mut().filter(|w| w.deadline <= now) {
            if let Some(origin) = waiting.origin.take() {
                expired.push((origin, waiting.partition, waiting.awaited.is_proposed()));
            }
        }
        for (origin, id, proposed) in expired {
            let why = "the deadline passed before every in-sync replica had it";
            self.answer(origin, &unknown(id, proposed, ErrorCode::Expired, why));
        }
    }

    fn node_view(&self) -> NodeView {
        match &self.view {
            Some(view) => NodeView { map: Some(view.map.clone()), owners: view.owners().collect() },
            None => NodeView { map: None, owners: Vec::new() },
        }
    }

    fn collect_stats(&mut self, origin: Origin) {
        self.expect_answer(origin.line);
        let collection = Arc::new(Collection::new(origin, self.shared.mail.len()));
        for mail in &self.shared.mail {
            mail.send(Mail::Collect(collection.clone()));
        }
    }

    /// Adds what this executor has to a collection of statistics.
    pub(super) fn add_stats(&mut self, collection: &Arc<Collection>) {
        let now = clock::now();
        let replicas = self.owned.iter().filter_map(|id| self.partitions[usize::from(id.0)].as_ref());
        let stats = |p: &Partition| {
            let stats = p.stats(now, self.index);
            ReplicaStats { trouble: stats.trouble.or_else(|| self.log_trouble(stats.partition)), ..stats }
        };
        let replicas: Vec<_> = replicas.map(|p| stats(p)).collect();
        if collection.add(replicas, self.requests) {
            self.shared.mail[usize::from(collection.origin().executor.0)].send(Mail::Collected(collection.clone()));
        }
    }
}

/// What was read, as it is answered.
fn got<'a>(partition: &Partition, id: PartitionId, read: &Read<'a>) -> Response<'a> {
    let at = Answered { partition: id, epoch: partition.replica.configuration().epoch };
    match read {
        Read::Value(entry) => {
            let version = partition.version(entry.lsn);
            let left = |e: Expiry| NonZeroU64::new(e.ms().saturating_sub(clock::wall_ms()).max(1));
            let expires_in_ms = entry.expires.and_then(left);
            Response::Value { at, version, expires_in_ms, content_type: entry.content_type, value: entry.value }
        }
        Read::Missing => Response::Missing { at },
        Read::Expired | Read::Unsure => unreachable!("it is read later"),
    }
}

/// The answer to who cannot be told more: a write that was proposed may happen, anything else will not, and is answered by
/// this code.
fn unknown(id: PartitionId, proposed: bool, otherwise: ErrorCode, why: &str) -> Response<'static> {
    if proposed {
        error(ErrorCode::OutcomeUnknown, format!("partition {id}: {why}; the write may or may not be applied"))
    } else {
        error(otherwise, format!("partition {id}: {why}"))
    }
}
