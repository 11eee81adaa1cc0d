//! The replica's log: what it has its embedder keep, what it is told of it after a restart, and what it knows of it
//! in between.
//!
//! # Invariants
//! * What is appended here is appended there: every change goes through [`Log`], which emits the entry for it.
//! * A record is cut only above the commit point.

use super::{Action, Actions, flush::FlushQueue, tail::Tail};
use kv_proto::{
    cluster_map::Configuration,
    ids::{Epoch, Lsn},
    replication::{Position, Record},
};

/// An entry of a partition's log, in the order in which the replica appended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// The record that follows the last one that is not void.
    Record(Record),
    /// Everything before this entry with this LSN or a greater one is void.
    Cut {
        /// The LSN of the first record that is void.
        from: Lsn,
    },
    /// The replica takes part in this configuration from now on.
    Configuration(Configuration),
    /// Everything before this entry is void, the table too; the log goes on from `base`, with a copy of another replica's
    /// table.
    Reset {
        /// The configuration that the replica takes part in.
        configuration: Configuration,
        /// The last record that the copy has.
        base: Position,
    },
}

/// What disk and table hold of a partition when its replica is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The newest configuration that the replica took part in; `None` if it never took part in any.
    pub configuration: Option<Configuration>,
    /// The last record that is in the table; everything up to it is committed.
    pub applied: Position,
    /// The records after it, dense, all on disk; which of them are committed is not known.
    pub tail: Vec<Record>,
    /// Why the log cannot be trusted, in a sentence, if it cannot.
    pub fault: Option<String>,
    /// Whether records that this replica said it had may be missing: it was not stopped in order, and committed records
    /// need not have been on its disk; or it was, and was [incomplete](super::Replica::is_incomplete) then.
    pub incomplete: bool,
}

impl Restored {
    /// The last record that is on disk, in the table or behind it.
    #[must_use]
    pub fn last(&self) -> Position {
        self.tail.last().map_or(self.applied, |record| record.position)
    }
}

/// The end of the log that is held in memory, and what of the log is on disk.
#[derive(Debug)]
pub(super) struct Log {
    tail: Tail,
    flush: FlushQueue,
    /// The newest epoch that was appended, on disk or not.
    newest: Epoch,
}

/// What came of records that another replica sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Some were appended.
    Appended,
    /// All of them were here already.
    Nothing,
    /// What they follow is not here, or they do not follow each other.
    Gap,
    /// Another record is here for good at this LSN: whoever sent them is not to be believed.
    Contradiction(Lsn),
}

impl Log {
    pub(super) fn new(restored: Restored) -> Self {
        let mut tail = Tail::new(restored.applied);
        restored.tail.into_iter().for_each(|record| tail.push(record));
        let newest = restored.configuration.map(|c| c.epoch).unwrap_or_default();
        Log { flush: FlushQueue::new(tail.last().lsn, newest), tail, newest }
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The position of the last record.
    pub(super) fn last(&self) -> Position {
        self.tail.last()
    }

    /// Every record up to here is on disk.
    pub(super) fn flushed(&self) -> Lsn {
        self.flush.flushed()
    }

    /// The newest epoch that is on disk.
    pub(super) fn epoch_on_disk(&self) -> Epoch {
        self.flush.epoch()
    }

    /// The newest epoch that was appended; greater than the one on disk until that is flushed.
    pub(super) fn newest_epoch(&self) -> Epoch {
        self.newest
    }

    pub(super) fn handle_flushed(&mut self, entries: u64) {
        self.flush.handle_flushed(entries);
    }

    /// Lets go of the records up to `lsn`.
    pub(super) fn release(&mut self, lsn: Lsn) {
        self.tail.release(lsn);
    }

    /// Appends the record that follows the last.
    pub(super) fn push(&mut self, record: Record, out: &mut Actions) {
        out.push(Action::Append(LogEntry::Record(record.clone())));
        self.flush.push_record(record.position.lsn);
        self.tail.push(record);
    }

    /// Appends that the replica takes part in a configuration.
    pub(super) fn begin(&mut self, configuration: Configuration, out: &mut Actions) {
        assert!(configuration.epoch > self.newest, "epoch {} is begun after {}", configuration.epoch, self.newest);
        self.newest = configuration.epoch;
        self.flush.push_epoch(configuration.epoch);
        out.push(Action::Append(LogEntry::Configuration(configuration)));
    }

    /// Appends that everything so far is void, and that a copy of the table up to `base` takes its place.
    pub(super) fn reset(&mut self, configuration: Configuration, base: Position, out: &mut Actions) {
        let newer = (configuration.epoch > self.newest).then_some(configuration.epoch);
        self.newest = configuration.epoch;
        self.flush.push_reset(base.lsn, newer);
        self.tail = Tail::new(base);
        out.push(Action::Append(LogEntry::Reset { configuration, base }));
    }

    /// Makes void what stands at `from` and behind it.
    fn cut(&mut self, from: Lsn, settled: Lsn, out: &mut Actions) {
        assert!(from > settled, "a cut at {from}, with everything up to {settled} there for good");
        self.tail.cut(from);
        self.flush.push_cut(from);
        out.push(Action::Append(LogEntry::Cut { from }));
    }

    /// Takes records of another replica, which follow `previous` there: what is here already is skipped, what stands
    /// in their way is cut, the rest is appended. Everything up to `settled` is here for good, be it that it is committed, or
    /// that it is of the same sender; and so is every record of `epoch`, than which none of them is newer.
    pub(super) fn take(
        &mut self,
        epoch: Epoch,
        previous: Position,
        records: Vec<Record>,
        settled: Lsn,
        match_epochs: bool,
        out: &mut Actions,
    ) -> Taken {
        let base = self.tail.base();
        let known = match self.tail.position_at(previous.lsn) {
            Some(here) if here == previous || !match_epochs => true,
            Some(_) if previous.lsn <= settled => return Taken::Contradiction(previous.lsn),
            Some(_) => false,
            None => previous.lsn < base.lsn,
        };
        let follows = |(at, record): (usize, &Record)| {
            let before = if at == 0 { previous } else { records[at - 1].position };
            before.lsn.0.checked_add(1) == Some(record.position.lsn.0)
                && (before.epoch..=epoch).contains(&record.position.epoch)
        };
        if !known || !records.iter().enumerate().all(follows) {
            return Taken::Gap;
        }
        let mut taken = Taken::Nothing;
        for record in records {
            let at = record.position;
            match self.tail.position_at(at.lsn) {
                None if at.lsn < base.lsn => continue,
                Some(here) if here == at => continue,
                Some(here) if at.lsn <= settled || here.epoch == epoch => return Taken::Contradiction(at.lsn),
                Some(_) => self.cut(at.lsn, settled, out),
                None => {}
            }
            if at.epoch < self.last().epoch {
                return Taken::Gap;
            }
            self.push(record, out);
            taken = Taken::Appended;
        }
        taken
    }
}
