//! A disk that keeps a partition's log, as a node of the simulation has one.
//!
//! Entries are kept in the order in which they were appended, each with the LSN that was known to be committed then. A
//! crash loses any number of the last ones that were not synced. What is left is read back by the rules of the log: a
//! record or a cut at n voids everything before it at n or above.

use kv_proto::{
    ids::{Epoch, Lsn},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};

#[derive(Default)]
pub(crate) struct Disk {
    entries: Vec<(LogEntry, Lsn)>,
    synced: usize,
    /// Entries that were here when the process started that runs now.
    before: usize,
    /// The records that are not void, by all entries and by those that are synced.
    live: Vec<Record>,
    durable: Vec<Record>,
}

fn bring(log: &mut Vec<Record>, entry: &LogEntry) {
    match entry {
        LogEntry::Record(record) => {
            log.truncate(record.position.lsn.0 as usize - 1);
            assert_eq!(log.len() as u64 + 1, record.position.lsn.0, "a gap in the log");
            log.push(record.clone());
        }
        LogEntry::Cut { from } => log.truncate(from.0 as usize - 1),
        LogEntry::Configuration(_) => {}
    }
}

impl Disk {
    pub(crate) fn append(&mut self, entry: LogEntry, committed: Lsn) {
        bring(&mut self.live, &entry);
        self.entries.push((entry, committed));
    }

    /// Entries that are not synced.
    pub(crate) fn unsynced(&self) -> usize {
        self.entries.len() - self.synced
    }

    /// Makes the next entries durable.
    pub(crate) fn sync(&mut self, count: usize) {
        for (entry, _) in &self.entries[self.synced..self.synced + count] {
            bring(&mut self.durable, entry);
        }
        self.synced += count;
    }

    /// Entries of the process that runs now which are synced.
    pub(crate) fn flushed_entries(&self) -> u64 {
        (self.synced - self.before) as u64
    }

    /// Entries of the process that runs now before the first configuration that is not synced.
    pub(crate) fn replicated_entries(&self) -> u64 {
        let unsynced = self.entries[self.synced..].iter();
        let ahead = unsynced.take_while(|(entry, _)| !matches!(entry, LogEntry::Configuration(_))).count();
        (self.synced + ahead - self.before) as u64
    }

    /// Loses the last `lost` entries, which must not be synced.
    pub(crate) fn crash(&mut self, lost: usize) {
        assert!(lost <= self.unsynced());
        self.entries.truncate(self.entries.len() - lost);
        self.sync(self.unsynced());
        self.live.clone_from(&self.durable);
        self.before = self.entries.len();
    }

    /// The newest epoch that no crash loses.
    pub(crate) fn epoch(&self) -> Epoch {
        let epochs = self.entries[..self.synced].iter().rev().find_map(|(entry, _)| match entry {
            LogEntry::Configuration(configuration) => Some(configuration.epoch),
            _ => None,
        });
        epochs.unwrap_or_default()
    }

    /// What a process that starts finds.
    pub(crate) fn restore(&self) -> Restored {
        let configuration = self.entries.iter().rev().find_map(|(entry, _)| match entry {
            LogEntry::Configuration(configuration) => Some(configuration.clone()),
            _ => None,
        });
        let committed = self.entries.iter().map(|(_, committed)| committed.0).max().unwrap_or(0) as usize;
        let applied = committed.checked_sub(1).map(|at| self.durable[at].position).unwrap_or_default();
        Restored { configuration, applied, tail: self.durable[committed..].to_vec(), fault: None }
    }

    /// Some of the records after `after`, and the position that they follow.
    pub(crate) fn read(&self, after: Lsn, count: usize) -> (Position, Vec<Record>) {
        let at = after.0 as usize;
        let previous = at.checked_sub(1).map(|at| self.live[at].position).unwrap_or_default();
        (previous, self.live[at..].iter().take(count).cloned().collect())
    }

    /// The log with all that was appended.
    pub(crate) fn live(&self) -> &[Record] {
        &self.live
    }

    /// The log as it is after the worst crash.
    pub(crate) fn durable(&self) -> &[Record] {
        &self.durable
    }
}
