//! A partition as an executor owns it: the replica of the core, its table, the operations that it remembers, and what
//! its pending writes will make of both.
//!
//! Decides what a client's operation comes to; does no I/O.
//!
//! # Operation ids
//!
//! A write with an id is decided once. Its record says what became of it, also where it changes nothing, so that every
//! later leader knows; whoever asks again is answered the same, once that record is committed. A leader serves when
//! everything that it did not propose itself is applied or cut, so what is remembered and what is pending are together
//! everything there is.
//!
//! # Expiry
//!
//! An entry that has expired by the leader's wall clock is none to everybody who asks. But clocks differ, and that of
//! the next leader may be behind: so nobody is told before a record says it too. Whoever finds an expired entry proposes
//! its delete, and is answered when that is committed.

use crate::{
    executor::nobody,
    fatal,
    pending::{Current, Pending},
    storage::checkpoint_bytes,
};
use kv_proto::{
    cluster_map::Configuration,
    effect::{Effect, Unchanged},
    ids::{HistoryId, Lsn, Member, OperationId, PartitionId, Version},
    replication::{Position, Record},
    request::Condition,
    stats::ReplicaStats,
};
use kv_replication::{
    clock::Instant64,
    replica::{self, Action, Actions, Event, LogEntry, ReadCheck, Refusal, Replica, Token},
};
use kv_storage::{
    copy::{self, CopyWalk},
    kept::Kept,
    log::format::FormatError,
    operations::{Done, Known, Operations},
    recovery,
    table::{Entry, Table, Walk},
};
use std::sync::Arc;

/// A partition's replica and what it holds.
pub(crate) struct Partition {
    pub(crate) replica: Replica,
    /// Whether it waits for its turn to send to its followers.
    pub(crate) queued: bool,
    /// What the log has of it.
    pub(crate) kept: Kept,
    applied: Position,
    table: Table,
    operations: Operations,
    pending: Pending,
    /// Where the table comes from, if it is a copy of another replica's that is not on disk yet.
    copy: Option<Copy>,
}

/// A copy of another replica's table and operations on its way here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    /// Parts are missing.
    Loading,
    /// A part could not be read: it will not be whole.
    Failed,
    /// All parts are here; with the records up to `end` they have this digest.
    Loaded { end: Lsn, digest: u64 },
    /// It was proved to be what the other replica has.
    Whole,
}

/// What a key's committed entry is to who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read<'a> {
    /// It is this.
    Value(Entry<'a>),
    /// There is none.
    Missing,
    /// There is one that has expired: see [`Partition::read_later`].
    Expired,
    /// The replica has to make sure first that it leads: see [`Partition::read_later`].
    Unsure,
}

/// What a write will be answered once the token that was given with it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It was proposed, and gives this version to the key.
    Proposed(Version),
    /// Its condition does not hold; the key has this version.
    ConditionFailed(Option<Version>),
    /// There is nothing to delete.
    Missing,
    /// Whether an earlier attempt of it was done cannot be told any more; this one is not.
    TooOld,
}

impl Partition {
    /// A partition with what was restored of it.
    pub(crate) fn new(
        id: PartitionId,
        me: Member,
        configuration: Configuration,
        restored: recovery::Partition,
        options: replica::Options,
        now: Instant64,
        out: &mut Actions,
    ) -> Self {
        let recovery::Partition { table, operations, restored, released, index } = restored;
        let applied = restored.applied;
        let last = restored.last();
        let kept = Kept::new(released, last.lsn, index);
        let replica = Replica::new(id, me, configuration, restored, options, now, out);
        Partition { replica, queued: false, kept, applied, table, operations, pending: Pending::default(), copy: None }
    }

    /// Gives an event to the replica.
    pub(crate) fn handle(&mut self, now: Instant64, event: Event, out: &mut Actions) {
        let before = out.len();
        self.replica.handle(now, event, out);
        for action in &out[before..] {
            match action {
                Action::Append(LogEntry::Cut { from }) => self.pending.cut(*from),
                Action::Append(LogEntry::Reset { base, .. }) => {
                    (self.applied, self.pending) = (*base, Pending::default());
                }
                _ => {}
            }
        }
    }

    /// The last record that is in the table.
    pub(crate) fn applied(&self) -> Position {
        self.applied
    }

    /// Bytes that a checkpoint takes at most.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        checkpoint_bytes(&self.table, &self.operations)
    }

    /// The operations that are remembered.
    pub(crate) fn operations(&self) -> &Operations {
        &self.operations
    }

    /// How many keys have a value.
    pub(crate) fn keys(&self) -> u64 {
        self.table.keys()
    }

    /// Equal tables have equal digests.
    pub(crate) fn digest(&self) -> u64 {
        self.table.digest()
    }

    /// Walks a slice of the table; whether it was the last.
    pub(crate) fn walk(&self, walk: &mut Walk, max_bytes: usize, visit: &mut impl FnMut(&[u8], Entry<'_>)) -> bool {
        walk.next_chunk(&self.table, max_bytes, visit)
    }

    /// The next part of a copy for another replica, and whether it is the last.
    pub(crate) fn next_part(&self, walk: &mut CopyWalk, max_bytes: usize) -> (Vec<u8>, bool) {
        walk.next_part(&self.table, &self.operations, max_bytes)
    }

    /// Replicas that have applied the same records have the same.
    pub(crate) fn copy_digest(&self) -> u64 {
        copy::digest(&self.table, &self.operations)
    }

    /// Table and operations are void: a copy comes.
    pub(crate) fn reset_table(&mut self) {
        (self.table, self.operations) = (Table::default(), Operations::default());
        self.copy = Some(Copy::Loading);
    }

    /// Takes a part of the copy.
    ///
    /// # Errors
    /// When it cannot be read. Nothing comes of the copy then.
    pub(crate) fn load_part(&mut self, part: &[u8]) -> Result<(), FormatError> {
        if self.copy != Some(Copy::Loading) {
            return Ok(());
        }
        let taken = copy::take_part(part, &mut self.table, &mut self.operations);
        if taken.is_err() {
            self.copy = Some(Copy::Failed);
        }
        taken
    }

    /// All parts are here, and with the records up to `end` they are what has this digest. Whether they are.
    ///
    /// # Errors
    /// When they are not.
    pub(crate) fn end_copy(&mut self, end: Lsn, digest: u64) -> Result<(), String> {
        if self.copy == Some(Copy::Loading) {
            self.copy = Some(Copy::Loaded { end, digest });
        }
        self.prove_copy()
    }

    fn prove_copy(&mut self) -> Result<(), String> {
        let Some(Copy::Loaded { end, digest }) = self.copy else { return Ok(()) };
        if self.applied.lsn < end {
            return Ok(());
        }
        let (here, found) = (self.applied.lsn, self.copy_digest());
        if here > end || found != digest {
            let id = self.replica.partition();
            return Err(format!(
                "the copy of the table of partition {id} has digest {found:016x} at LSN {here}, and the leader's had \
                 {digest:016x} at LSN {end}"
            ));
        }
        self.copy = Some(Copy::Whole);
        Ok(())
    }

    /// Whether the table is a copy that is whole, and not on disk yet.
    pub(crate) fn is_whole_copy(&self) -> bool {
        self.copy == Some(Copy::Whole)
    }

    /// Whether the table is that of the log here, and not what comes of a copy.
    pub(crate) fn has_own_table(&self) -> bool {
        self.copy.is_none()
    }

    /// The copy is on disk.
    pub(crate) fn handle_copy_kept(&mut self) {
        self.copy = None;
    }

    /// The version that an LSN is.
    pub(crate) fn version(&self, lsn: Lsn) -> Version {
        Version { history: self.history(), lsn }
    }

    fn history(&self) -> HistoryId {
        self.replica.configuration().history
    }

    /// A key's committed entry; `wall_ms` is the wall clock.
    ///
    /// # Errors
    /// When the table here may not be read.
    pub(crate) fn read(&self, now: Instant64, key: &[u8], wall_ms: impl FnOnce() -> u64) -> Result<Read<'_>, Refusal> {
        Ok(match self.replica.check_read(now)? {
            ReadCheck::Now => self.look(key, wall_ms),
            ReadCheck::AfterBarrier => Read::Unsure,
        })
    }

    /// A key's committed entry, for who knows that the table may be read.
    pub(crate) fn look(&self, key: &[u8], wall_ms: impl FnOnce() -> u64) -> Read<'_> {
        match self.table.get(key) {
            None => Read::Missing,
            Some(entry) if entry.expires.is_some_and(|e| e.is_due(wall_ms())) => Read::Expired,
            Some(entry) => Read::Value(entry),
        }
    }

    /// Whether a read of the key has to write first that it has expired.
    pub(crate) fn has_expired(&self, key: &[u8], wall_ms: u64) -> bool {
        self.current(key).is_some_and(|c| c.has_expired(wall_ms))
    }

    /// Lets `token` know when a key can be looked at: once the replica is sure that it leads, everything prepared is committed, and
    /// if the entry has expired, its delete. With an error nothing happened, and `token` will not be answered.
    ///
    /// # Errors
    /// When the delete cannot be proposed, or the table may not be read.
    pub(crate) fn read_later(
        &mut self,
        now: Instant64,
        wall_ms: u64,
        key: &[u8],
        token: Token,
        out: &mut Actions,
    ) -> Result<(), Refusal> {
        self.replica.check_read(now)?;
        if self.has_expired(key, wall_ms) {
            self.propose(now, &Effect::Delete { key }, None, nobody(), out)?;
        }
        self.replica.handle(now, Event::ClientBarrier { token }, out);
        Ok(())
    }

    /// Proposes deletes of entries that have expired, at most about `max`, if writes are taken. Says whether there may
    /// be more.
    pub(crate) fn sweep(&mut self, now: Instant64, wall_ms: u64, max: usize, out: &mut Actions) -> bool {
        if self.replica.check_write(now).is_err() {
            return false;
        }
        let expired = self.table.expired(wall_ms, max);
        for key in &expired {
            // What is pending has taken the entry's place, or is its delete.
            if self.pending.get(key).is_none()
                && self.propose(now, &Effect::Delete { key }, None, nobody(), out).is_err()
            {
                break;
            }
        }
        expired.len() >= max
    }

    /// What a key will have once everything prepared is committed.
    fn current(&self, key: &[u8]) -> Option<Current> {
        match self.pending.get(key) {
            Some(pending) => pending,
            None => self.table.get(key).map(|e| Current { lsn: e.lsn, expires: e.expires }),
        }
    }

    /// What was decided of a write that was asked for before, or may have been.
    pub(crate) fn recall(&self, id: &OperationId) -> Option<Decision> {
        let done = match self.pending.operation(id) {
            Some(done) => done,
            None => match self.operations.find(id) {
                Known::Done(done) => done,
                // A client knows only what is committed, unless it is of a history that was given up.
                Known::New if id.known_lsn <= self.replica.committed() => return None,
                Known::New | Known::TooOld => return Some(Decision::TooOld),
            },
        };
        Some(match done {
            Done::Written(lsn) => Decision::Proposed(self.version(lsn)),
            Done::Unchanged(Unchanged::Missing) => Decision::Missing,
            Done::Unchanged(Unchanged::ConditionFailed { current }) => {
                Decision::ConditionFailed((current > Lsn(0)).then(|| self.version(current)))
            }
        })
    }

    /// Decides a write, against everything prepared; limits were checked before, and `wall_ms` is the wall clock. With
    /// an error it was not done, and `token` will not be answered.
    ///
    /// # Errors
    /// When the replica does not take writes.
    #[expect(clippy::too_many_arguments, reason = "two clocks and the parts of one request")]
    pub(crate) fn write(
        &mut self,
        now: Instant64,
        wall_ms: u64,
        effect: Effect<'_>,
        condition: Condition,
        operation_id: Option<OperationId>,
        token: Token,
        out: &mut Actions,
    ) -> Result<Decision, Refusal> {
        self.replica.check_read(now)?;
        if let Some(decision) = operation_id.and_then(|id| self.recall(&id)) {
            self.replica.handle(now, Event::ClientBarrier { token }, out);
            return Ok(decision);
        }
        let key = effect.key().expect("what clients write has a key");
        let there = self.current(key);
        let expired = there.is_some_and(|c| c.has_expired(wall_ms));
        let current = there.filter(|_| !expired).map(|c| self.version(c.lsn));
        let holds = match condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Version(version) => current == Some(version),
        };
        if holds && (current.is_some() || matches!(effect, Effect::Put { .. })) {
            let lsn = self.propose(now, &effect, operation_id, token, out)?;
            return Ok(Decision::Proposed(self.version(lsn)));
        }
        let unchanged = if holds {
            Unchanged::Missing
        } else {
            Unchanged::ConditionFailed { current: current.map_or(Lsn(0), |version| version.lsn) }
        };
        match (operation_id, expired) {
            (Some(_), expired) => {
                if expired {
                    self.propose(now, &Effect::Delete { key }, None, nobody(), out)?;
                }
                self.propose(now, &Effect::Outcome(unchanged), operation_id, token, out)?;
            }
            (None, true) => {
                self.propose(now, &Effect::Delete { key }, None, token, out)?;
            }
            (None, false) => self.replica.handle(now, Event::ClientBarrier { token }, out),
        }
        Ok(if holds { Decision::Missing } else { Decision::ConditionFailed(current) })
    }

    /// Gives an effect to the replica, and says which LSN it has.
    fn propose(
        &mut self,
        now: Instant64,
        effect: &Effect<'_>,
        operation_id: Option<OperationId>,
        token: Token,
        out: &mut Actions,
    ) -> Result<Lsn, Refusal> {
        self.replica.check_write(now)?;
        let payload: Arc<[u8]> = effect.encode().into();
        self.replica.handle(now, Event::ClientWrite { payload: payload.clone(), operation_id, token }, out);
        let lsn = self.replica.prepared().lsn;
        if let (Some(id), Some(done)) = (operation_id, Done::of(lsn, effect)) {
            self.pending.insert_operation(lsn, id, done);
        }
        self.pending.insert(lsn, payload);
        Ok(lsn)
    }

    /// Brings a committed record into the table, and its operation among those that are remembered.
    pub(crate) fn apply(&mut self, record: &Record) {
        let lsn = record.position.lsn;
        let effect = Effect::decode(&record.payload).expect("effects are checked when they come in");
        self.operations.apply(record, &effect);
        match effect {
            // A copy has some of what was written after its start.
            Effect::Put { key, content_type, value, expires } if self.copy.is_some() => {
                self.table.put_if_newer(key, Entry { lsn, expires, content_type, value });
            }
            Effect::Delete { key } if self.copy.is_some() => self.table.remove_if_older(lsn, key),
            Effect::Put { key, content_type, value, expires } => {
                self.table.put(key, Entry { lsn, expires, content_type, value });
            }
            Effect::Delete { key } => self.table.remove(key),
            Effect::Outcome(_) | Effect::Nothing => {}
        }
        self.applied = record.position;
        if let Some(key) = effect.key() {
            self.pending.remove(lsn, key);
        }
        if let Some(id) = &record.operation_id {
            self.pending.remove_operation(id);
        }
        if let Err(why) = self.prove_copy() {
            fatal::end(&why);
        }
    }

    /// Bytes of memory that its table and its operations take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.table.memory_bytes() + self.operations.memory_bytes()
    }

    /// How it is; `executor` is filled in by who owns it.
    pub(crate) fn stats(&self, now: Instant64, executor: kv_proto::ids::ExecutorIndex) -> ReplicaStats {
        ReplicaStats {
            partition: self.replica.partition(),
            executor,
            epoch: self.replica.configuration().epoch,
            role: self.replica.role(),
            trouble: self.replica.trouble(now),
            prepared_lsn: self.replica.prepared().lsn,
            flushed_lsn: self.replica.flushed(),
            committed_lsn: self.replica.committed(),
            applied_lsn: self.replica.committed(),
            keys: self.table.keys(),
            bytes: self.table.bytes(),
            memory_bytes: self.memory_bytes(),
            digest: format!("{:016x}", self.table.digest()),
        }
    }
}

#[cfg(test)]
mod operation_tests;
#[cfg(test)]
mod retry_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::Configuration,
        effect::Expiry,
        ids::{DiskId, Epoch, Member, NodeId, PartitionId},
    };
    use kv_replication::replica::{Action, Options, Outcome};

    /// A leader without followers, whose log flushes when the test says so.
    pub(super) struct Alone {
        pub(super) partition: Partition,
        out: Actions,
        appended: u64,
        tokens: u64,
        pub(super) wall_ms: u64,
    }

    impl Alone {
        pub(super) fn new() -> Self {
            Self::with(recovery::Partition::default())
        }

        pub(super) fn with(restored: recovery::Partition) -> Self {
            let me = Member { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
            let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader: me, in_sync: vec![] };
            let (mut out, options) = (Actions::new(), Options::default());
            let id = PartitionId(0);
            let partition = Partition::new(id, me, configuration, restored, options, Instant64(0), &mut out);
            let mut alone = Alone { partition, out, appended: 0, tokens: 0, wall_ms: 1000 };
            alone.flush();
            alone
        }

        pub(super) fn write(&mut self, effect: Effect, condition: Condition) -> Decision {
            self.ask(effect, condition, None)
        }

        pub(super) fn write_with(&mut self, effect: Effect, condition: Condition, id: OperationId) -> Decision {
            self.ask(effect, condition, Some(id))
        }

        fn ask(&mut self, effect: Effect, condition: Condition, id: Option<OperationId>) -> Decision {
            self.tokens += 1;
            let token = Token(self.tokens);
            self.partition
                .write(Instant64(0), self.wall_ms, effect, condition, id, token, &mut self.out)
                .expect("alone takes writes")
        }

        /// Flushes, applies, and says which tokens were answered.
        pub(super) fn flush(&mut self) -> Vec<u64> {
            self.appended += self.out.iter().filter(|a| matches!(a, Action::Append(_))).count() as u64;
            let flushed = Event::Flushed { entries: self.appended };
            self.partition.replica.handle(Instant64(0), flushed, &mut self.out);
            let mut answered = Vec::new();
            for action in std::mem::take(&mut self.out) {
                match action {
                    Action::Apply(record) => self.partition.apply(&record),
                    Action::Reply { token, outcome } => {
                        assert_eq!(outcome, Outcome::Committed);
                        answered.extend((token != nobody()).then_some(token.0));
                    }
                    Action::Append(_) => {}
                    other => panic!("alone there is nobody for {other:?}"),
                }
            }
            answered
        }

        fn read(&self) -> Read<'_> {
            self.partition.read(Instant64(0), b"k", || self.wall_ms).expect("alone serves reads")
        }

        /// Reads what has expired, to be answered later.
        fn expire(&mut self) {
            assert_eq!(self.read(), Read::Expired);
            self.tokens += 1;
            let token = Token(self.tokens);
            let read = self.partition.read_later(Instant64(0), self.wall_ms, b"k", token, &mut self.out);
            read.expect("alone takes writes");
        }

        pub(super) fn value(&self) -> Option<&[u8]> {
            match self.read() {
                Read::Value(entry) => Some(entry.value),
                Read::Missing => None,
                Read::Expired | Read::Unsure => panic!("it cannot be read now"),
            }
        }
    }

    pub(super) fn put(value: &[u8]) -> Effect<'_> {
        Effect::Put { key: b"k", content_type: "", value, expires: None }
    }

    pub(super) fn put_until(ms: u64, value: &[u8]) -> Effect<'_> {
        Effect::Put { key: b"k", content_type: "", value, expires: Expiry::from_ms(ms) }
    }

    pub(super) const DELETE: Effect<'static> = Effect::Delete { key: b"k" };

    pub(super) fn version(lsn: u64) -> Version {
        Version { history: HistoryId(0), lsn: Lsn(lsn) }
    }

    fn record(lsn: u64, effect: Effect<'_>) -> Record {
        let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
        Record { position, operation_id: None, payload: effect.encode().into() }
    }

    /// A copy that starts at LSN 1 and ends at LSN 3; its parts, its digest, and the records from its start on.
    fn copy_of_three() -> (Vec<Vec<u8>>, u64, Vec<Record>) {
        let mut leader = Alone::new().partition;
        let put_x = Effect::Put { key: b"x", content_type: "", value: b"x", expires: None };
        let records = [record(1, put(b"a")), record(2, put_x), record(3, put(b"b"))];
        leader.apply(&records[0]);
        let mut walk = CopyWalk::default();
        let mut parts = Vec::new();
        for record in &records[1..] {
            leader.apply(record);
        }
        loop {
            let (part, last) = leader.next_part(&mut walk, 1);
            parts.push(part);
            if last {
                return (parts, leader.copy_digest(), records.to_vec());
            }
        }
    }

    #[test]
    fn a_copy_is_whole_when_the_records_up_to_its_end_are_applied() {
        let (parts, digest, records) = copy_of_three();
        let mut learner = Alone::new();
        learner.write(put(b"old"), Condition::Any);
        learner.flush();
        let mut learner = learner.partition;
        learner.reset_table();
        learner.applied = records[0].position;
        assert!(!learner.has_own_table() && learner.keys() == 0);
        for part in &parts {
            learner.load_part(part).expect("a part");
        }
        learner.end_copy(Lsn(3), digest).expect("as far as anybody knows");
        learner.apply(&records[1]);
        assert!(!learner.is_whole_copy());
        learner.apply(&records[2]);
        assert!(learner.is_whole_copy() && !learner.has_own_table());
        assert_eq!((learner.copy_digest(), learner.keys()), (digest, 2));
        learner.handle_copy_kept();
        assert!(learner.has_own_table() && !learner.is_whole_copy());
    }

    #[test]
    fn a_copy_that_cannot_be_used_is_never_whole() {
        let (parts, digest, records) = copy_of_three();
        let begin = || {
            let mut learner = Alone::new().partition;
            learner.reset_table();
            learner.applied = records[2].position;
            learner
        };
        let mut learner = begin();
        learner.load_part(&[9]).expect_err("no part");
        for part in &parts {
            learner.load_part(part).expect("nothing comes of it any more");
        }
        learner.end_copy(Lsn(3), digest).expect("nothing comes of it any more");
        assert!(!learner.is_whole_copy() && !learner.has_own_table() && learner.keys() == 0);
        for (end, digest) in [(3, digest + 1), (2, digest)] {
            let mut learner = begin();
            parts.iter().for_each(|part| learner.load_part(part).expect("a part"));
            let why = learner.end_copy(Lsn(end), digest).expect_err("it is not what the leader has");
            assert!(why.contains("partition 0 has digest"), "{why}");
        }
    }

    #[test]
    fn conditions_are_decided_against_what_is_prepared_and_answered_when_that_is_committed() {
        use Condition::{Absent, Any, Present};
        use Decision::{ConditionFailed, Missing, Proposed};
        let mut alone = Alone::new();
        assert_eq!(alone.write(DELETE, Any), Missing);
        assert_eq!(alone.flush(), [1]);
        assert_eq!(alone.write(put(b"a"), Absent), Proposed(version(1)));
        assert_eq!(alone.write(put(b"b"), Absent), ConditionFailed(Some(version(1))));
        assert_eq!(alone.write(put(b"c"), Condition::Version(version(1))), Proposed(version(2)));
        assert_eq!(alone.write(put(b"d"), Condition::Version(version(1))), ConditionFailed(Some(version(2))));
        assert_eq!(alone.write(DELETE, Present), Proposed(version(3)));
        assert_eq!(alone.write(DELETE, Any), Missing);
        assert_eq!(alone.write(put(b"e"), Present), ConditionFailed(None));
        assert_eq!(alone.value(), None, "nothing is seen before it is committed");
        assert!(
            alone.out.iter().all(|a| !matches!(a, Action::Reply { .. })),
            "nothing is answered before it is committed"
        );
        let mut answered = alone.flush();
        answered.sort_unstable();
        assert_eq!(answered, [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(alone.value(), None);
        assert_eq!(alone.write(put(b"f"), Absent), Proposed(version(4)));
        alone.flush();
        assert_eq!(alone.value(), Some(&b"f"[..]));
    }
    #[test]
    fn what_has_expired_is_gone_only_when_its_delete_is_committed() {
        use Condition::{Absent, Any, Present};
        use Decision::{ConditionFailed, Missing, Proposed};
        let lsn = |alone: &Alone| alone.partition.replica.prepared().lsn.0;
        for (condition, effect, decided) in [
            (Any, DELETE, Missing),
            (Present, DELETE, ConditionFailed(None)),
            (Present, put(b"b"), ConditionFailed(None)),
            (Condition::Version(version(1)), put(b"b"), ConditionFailed(None)),
            (Absent, put(b"b"), Proposed(version(2))),
            (Any, put(b"b"), Proposed(version(2))),
        ] {
            for pending in [false, true] {
                let mut alone = Alone::new();
                alone.write(put_until(2000, b"a"), Any);
                assert!(pending || alone.flush() == [1]);
                assert_eq!(alone.write(put(b"b"), Absent), ConditionFailed(Some(version(1))), "it lives yet");
                assert!(pending || alone.flush() == [2]);
                alone.wall_ms = 2000;
                assert_eq!(alone.write(effect, condition), decided, "{condition:?} {effect:?}");
                assert_eq!(lsn(&alone), 2, "the write or the delete was proposed");
                assert!(pending || alone.read() == Read::Expired);
                assert!(alone.flush().contains(&3));
                assert_eq!(alone.value(), matches!(decided, Proposed(_)).then_some(&b"b"[..]));
            }
        }
    }

    #[test]
    fn who_reads_what_has_expired_waits_for_its_delete_or_for_what_is_pending() {
        let mut alone = Alone::new();
        alone.write(put_until(2000, b"a"), Condition::Any);
        alone.flush();
        assert_eq!(alone.value(), Some(&b"a"[..]));
        alone.wall_ms = 2000;
        alone.expire();
        alone.expire();
        assert_eq!(alone.partition.replica.prepared().lsn, Lsn(2), "it is deleted once");
        assert_eq!((alone.flush(), alone.value()), (vec![2, 3], None));

        alone.write(put_until(3000, b"b"), Condition::Any);
        alone.flush();
        alone.write(put(b"c"), Condition::Present);
        alone.wall_ms = 3000;
        alone.expire();
        assert_eq!(alone.partition.replica.prepared().lsn, Lsn(4), "what is pending is no matter of time");
        alone.flush();
        assert_eq!(alone.value(), Some(&b"c"[..]));
    }

    #[test]
    fn the_sweep_deletes_what_has_expired_a_few_at_a_time() {
        let mut alone = Alone::new();
        for key in 0..5u8 {
            let effect = Effect::Put { key: &[key], content_type: "", value: b"", expires: Expiry::from_ms(2000) };
            alone.write(effect, Condition::Any);
        }
        alone.flush();
        let sweep = |alone: &mut Alone, wall_ms| {
            let more = alone.partition.sweep(Instant64(0), wall_ms, 3, &mut alone.out);
            (more, alone.partition.replica.prepared().lsn.0)
        };
        assert_eq!(sweep(&mut alone, 1999), (false, 5));
        assert_eq!(sweep(&mut alone, 2000), (true, 8));
        assert_eq!(sweep(&mut alone, 2000), (true, 8), "those are on their way");
        alone.flush();
        assert_eq!(sweep(&mut alone, 2000), (false, 10));
        alone.flush();
        assert_eq!(alone.partition.table.keys(), 0);
    }
}
