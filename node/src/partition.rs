//! A partition as an executor owns it: the replica of the core, its table, and what its pending writes will make
//! of the table.
//!
//! Decides what a client's operation comes to; does no I/O.

use crate::pending::Pending;
use kv_proto::{
    codec,
    ids::{HistoryId, Lsn, OperationId, Version},
    replication::{Effect, Record},
    request::Condition,
    stats::ReplicaStats,
};
use kv_replication::{
    clock::Instant64,
    replica::{Actions, Event, Refusal, Replica, Token},
};
use kv_storage::table::{Entry, Table};
use std::sync::Arc;

/// A partition's replica and what it holds.
pub(crate) struct Partition {
    pub(crate) replica: Replica,
    /// Whether it waits for its turn to send to its followers.
    pub(crate) queued: bool,
    table: Table,
    pending: Pending,
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
}

impl Partition {
    pub(crate) fn new(replica: Replica) -> Self {
        Partition { replica, queued: false, table: Table::default(), pending: Pending::default() }
    }

    /// The version that an LSN is.
    pub(crate) fn version(&self, lsn: Lsn) -> Version {
        Version { history: self.history(), lsn }
    }

    fn history(&self) -> HistoryId {
        self.replica.configuration().history
    }

    /// A key's committed entry.
    ///
    /// # Errors
    /// When the table here may not be read.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Entry<'_>>, Refusal> {
        self.replica.check_read()?;
        Ok(self.table.get(key))
    }

    /// Decides a write, against everything prepared; limits were checked before. With an error nothing happened,
    /// and `token` will not be answered.
    ///
    /// # Errors
    /// When the replica does not take writes.
    pub(crate) fn write(
        &mut self,
        now: Instant64,
        effect: Effect<'_>,
        condition: Condition,
        operation_id: Option<OperationId>,
        token: Token,
        out: &mut Actions,
    ) -> Result<Decision, Refusal> {
        self.replica.check_read()?;
        let current = match self.pending.get(effect.key()) {
            Some(pending) => pending,
            None => self.table.get(effect.key()).map(|e| e.lsn),
        };
        let current = current.map(|lsn| self.version(lsn));
        let holds = match condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Version(version) => current == Some(version),
        };
        if !holds || (current.is_none() && matches!(effect, Effect::Delete { .. })) {
            self.replica.handle(now, Event::ClientBarrier { token }, out);
            return Ok(if holds { Decision::Missing } else { Decision::ConditionFailed(current) });
        }
        self.replica.check_write(now)?;
        let payload: Arc<[u8]> = codec::encode(&effect).into();
        self.replica.handle(now, Event::ClientWrite { payload: payload.clone(), operation_id, token }, out);
        let lsn = self.replica.prepared().lsn;
        self.pending.insert(lsn, payload);
        Ok(Decision::Proposed(self.version(lsn)))
    }

    /// Brings a committed record into the table.
    pub(crate) fn apply(&mut self, record: &Record) {
        let lsn = record.position.lsn;
        let effect: Effect = codec::decode(&record.payload).expect("effects are checked when they come in");
        match effect {
            Effect::Put { key, content_type, value } => self.table.put(lsn, key, content_type, value),
            Effect::Delete { key } => self.table.remove(key),
        }
        self.pending.remove(lsn, effect.key());
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
            digest: format!("{:016x}", self.table.digest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::Configuration,
        ids::{DiskId, Epoch, Member, NodeId, PartitionId},
    };
    use kv_replication::replica::{Action, Options, Outcome, Restored};

    /// A leader without followers, whose log flushes when the test says so.
    struct Alone {
        partition: Partition,
        out: Actions,
        entries: u64,
        tokens: u64,
    }

    impl Alone {
        fn new() -> Self {
            let me = Member { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
            let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader: me, in_sync: vec![] };
            let (id, restored, mut out) = (PartitionId(0), Restored::default(), Actions::new());
            let options = Options::default();
            let replica = Replica::new(id, me, configuration, restored, options, Instant64(0), &mut out);
            let mut alone = Alone { partition: Partition::new(replica), out, entries: 0, tokens: 0 };
            alone.flush();
            alone
        }

        fn write(&mut self, effect: Effect, condition: Condition) -> Decision {
            self.tokens += 1;
            let token = Token(self.tokens);
            self.partition
                .write(Instant64(0), effect, condition, None, token, &mut self.out)
                .expect("alone takes writes")
        }

        /// Flushes, applies, and says which tokens were answered.
        fn flush(&mut self) -> Vec<u64> {
            self.entries += self.out.iter().filter(|a| matches!(a, Action::Append(_))).count() as u64;
            let event = Event::Flushed { entries: self.entries };
            self.partition.replica.handle(Instant64(0), event, &mut self.out);
            let mut answered = Vec::new();
            for action in std::mem::take(&mut self.out) {
                match action {
                    Action::Apply(record) => self.partition.apply(&record),
                    Action::Reply { token, outcome } => {
                        assert_eq!(outcome, Outcome::Committed);
                        answered.push(token.0);
                    }
                    Action::Append(_) => {}
                    other => panic!("a leader alone has nothing to do with {other:?}"),
                }
            }
            answered
        }

        fn value(&self) -> Option<&[u8]> {
            self.partition.get(b"k").expect("alone serves reads").map(|e| e.value)
        }
    }

    fn put(value: &[u8]) -> Effect<'_> {
        Effect::Put { key: b"k", content_type: "", value }
    }

    const DELETE: Effect<'static> = Effect::Delete { key: b"k" };

    fn version(lsn: u64) -> Version {
        Version { history: HistoryId(0), lsn: Lsn(lsn) }
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
        assert_eq!(alone.flush(), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(alone.value(), None);
        assert_eq!(alone.write(put(b"f"), Absent), Proposed(version(4)));
        alone.flush();
        assert_eq!(alone.value(), Some(&b"f"[..]));
    }
}
