//! What a log should hold, as a plain list, to which everything that is read back is compared.

use crate::checks::{Verdict, ensure};
use kv_proto::{
    cluster_map::Configuration,
    ids::{Epoch, Lsn},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};

/// A log as a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// Up to here a copy of another replica's table stands for the records.
    pub(crate) base: Position,
    pub(crate) records: Vec<Record>,
    pub(crate) configuration: Option<Configuration>,
}

impl Log {
    pub(crate) fn bring(&mut self, entry: &LogEntry) {
        match entry {
            LogEntry::Record(record) => {
                self.cut(record.position.lsn);
                assert_eq!(self.last().lsn.next(), record.position.lsn, "a gap in the log");
                self.records.push(record.clone());
            }
            LogEntry::Cut { from } => self.cut(*from),
            LogEntry::Configuration(configuration) => self.configuration = Some(configuration.clone()),
            LogEntry::Reset { configuration, base } => {
                *self = Log { base: *base, records: Vec::new(), configuration: Some(configuration.clone()) };
            }
        }
    }

    fn cut(&mut self, from: Lsn) {
        assert!(from > self.base.lsn, "what a copy stands for is cut");
        self.records.truncate((from.0 - self.base.lsn.0 - 1) as usize);
    }

    pub(crate) fn last(&self) -> Position {
        self.records.last().map_or(self.base, |r| r.position)
    }

    /// The epoch that its replica takes part in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.configuration.as_ref().map(|c| c.epoch).unwrap_or_default()
    }

    /// Where the record at `lsn` stands, if this is known.
    pub(crate) fn position_at(&self, lsn: Lsn) -> Option<Position> {
        if lsn == self.base.lsn {
            return Some(self.base);
        }
        let index = lsn.0.checked_sub(self.base.lsn.0 + 1)?;
        self.records.get(index as usize).map(|r| r.position)
    }

    /// The records from `lsn` on, of those that it has.
    pub(crate) fn from(&self, lsn: Lsn) -> &[Record] {
        let index = lsn.0.saturating_sub(self.base.lsn.0 + 1) as usize;
        self.records.get(index..).unwrap_or_default()
    }

    /// Without the records behind `lsn`.
    pub(super) fn up_to(mut self, lsn: Lsn) -> Self {
        self.records.truncate(lsn.0.saturating_sub(self.base.lsn.0) as usize);
        self
    }

    /// Whether this is what was read back; a checkpoint may say a newer configuration than the log.
    pub(super) fn check(&self, found: &Restored, published: &Option<Configuration>) -> Verdict {
        let same = self.position_at(found.applied.lsn) == Some(found.applied)
            && self.from(found.applied.lsn.next()) == &found.tail[..];
        ensure(same, || {
            let end = found.last();
            format!(
                "applied {}, then {} to {end}; it was {} to {}",
                found.applied,
                found.tail.len(),
                self.base,
                self.last()
            )
        })?;
        let epoch = |c: &Option<Configuration>| c.as_ref().map(|c| c.epoch);
        let was = if epoch(published) > epoch(&self.configuration) { published } else { &self.configuration };
        let found = &found.configuration;
        ensure(found == was, || format!("epoch {:?}; it was {:?}", epoch(found), epoch(was)))
    }
}
