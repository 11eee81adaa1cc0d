//! What an executor has for its log: entries as they will stand there, until they are handed over.
//!
//! # Invariants
//! * Every state says the position of the last record before it, so that records of a log that was cut elsewhere are told
//!   from those that it means.
//! * A partition that was found faulty stays so in its log until it is reset.

use super::{
    epochs::Epochs,
    format::{self, BATCH_HEADER_BYTES},
};
use kv_proto::{
    cluster_map::Configuration,
    ids::{Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};

/// Entries on their way to the log, in order.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The encoded entries.
    pub body: Vec<u8>,
    /// How many there are.
    pub entries: u32,
    /// What they are to each partition that has any.
    pub parts: Vec<Part>,
}

/// What the entries of a chunk are to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The partition.
    pub partition: PartitionId,
    /// How many of its replica's entries there are; states, copies and resets that the node itself writes do not count.
    pub entries: u64,
    /// The LSNs of its records that are not void, if there are any: the least and the greatest.
    pub records: Option<(Lsn, Lsn)>,
    /// The LSN from which earlier records are void, if there is a cut, a reset or a record that stands where another stood.
    pub voids: Option<Lsn>,
    /// The last record after these entries.
    pub last: Position,
    /// What was known to be committed.
    pub committed: Lsn,
    /// Its configuration, if it changed.
    pub configuration: Option<Configuration>,
    /// What is before these entries is damaged, and was not reset.
    pub faulty: bool,
    /// It was reset, and goes on from here: nothing that stood before is needed any more.
    pub reset: Option<Lsn>,
}

/// Gathers entries.
#[derive(Debug, Default)]
pub struct Gather {
    chunk: Chunk,
    /// By partition.
    logs: Vec<Log>,
}

/// What is known of a partition's log.
#[derive(Debug, Default)]
struct Log {
    /// The place of its part in the chunk, plus one.
    place: u32,
    /// Its end.
    end: Epochs,
    /// It was found damaged, and not reset since.
    faulty: bool,
}

impl Gather {
    fn part(&mut self, partition: PartitionId, committed: Lsn) -> (&mut Part, &mut Log, &mut Vec<u8>) {
        let at = usize::from(partition.0);
        if self.logs.len() <= at {
            self.logs.resize_with(at + 1, Log::default);
        }
        let log = &mut self.logs[at];
        if log.place == 0 {
            self.chunk.parts.push(Part {
                partition,
                entries: 0,
                records: None,
                voids: None,
                last: log.end.last(),
                committed,
                configuration: None,
                faulty: log.faulty,
                reset: None,
            });
            log.place = self.chunk.parts.len() as u32;
        }
        let part = &mut self.chunk.parts[log.place as usize - 1];
        part.committed = part.committed.max(committed);
        self.chunk.entries += 1;
        (part, log, &mut self.chunk.body)
    }

    /// The partition belongs to this executor from now on, as it was restored: its state comes first. Nothing is written of
    /// one that never took part in anything; what is faulty stays so.
    pub fn adopt(&mut self, partition: PartitionId, restored: &Restored) {
        let mut end = Epochs::at(restored.applied);
        restored.tail.iter().for_each(|record| end.push(record.position));
        let (last, faulty, committed) = (end.last(), restored.fault.is_some(), restored.applied.lsn);
        if let Some(configuration) = &restored.configuration {
            let (part, _, body) = self.part(partition, committed);
            (part.last, part.configuration, part.faulty) = (last, Some(configuration.clone()), faulty);
            format::put_state(body, partition, configuration, last, committed, faulty);
        } else {
            assert!(last.lsn == Lsn(0), "partition {partition} has records and no configuration");
        }
        let at = usize::from(partition.0);
        if self.logs.len() <= at {
            self.logs.resize_with(at + 1, Log::default);
        }
        (self.logs[at].end, self.logs[at].faulty) = (end, faulty);
    }

    /// Takes what a replica wants kept; `committed` is what it knows to be committed now.
    ///
    /// # Panics
    /// At a record or cut of a partition that is faulty: it can only be reset.
    pub fn append(&mut self, partition: PartitionId, entry: &LogEntry, committed: Lsn) {
        let (part, log, body) = self.part(partition, committed);
        part.entries += 1;
        assert!(
            !log.faulty || matches!(entry, LogEntry::Configuration(_)),
            "partition {partition} is faulty, and nothing is added to its log before it is reset"
        );
        match entry {
            LogEntry::Record(record) => {
                let lsn = record.position.lsn;
                if lsn <= log.end.last_lsn() {
                    part.void(lsn);
                }
                part.take(lsn);
                log.end.push(record.position);
                format::put_record(body, partition, record, committed, false);
            }
            LogEntry::Cut { from } => {
                part.void(*from);
                log.end.cut(*from);
                format::put_cut(body, partition, *from, committed);
            }
            LogEntry::Configuration(configuration) => {
                part.configuration = Some(configuration.clone());
                format::put_state(body, partition, configuration, log.end.last(), committed, log.faulty);
            }
        }
        // What is committed is never cut.
        log.end.forget_before(committed);
        part.last = log.end.last();
    }

    /// Everything that stands before is void: the table is that of a checkpoint of `base`, which is put in place when this is on
    /// disk, and the log goes on from there.
    pub fn reset(&mut self, partition: PartitionId, configuration: &Configuration, base: Position) {
        let (part, log, body) = self.part(partition, base.lsn);
        part.void(Lsn(0));
        (part.last, part.committed, part.configuration) = (base, base.lsn, Some(configuration.clone()));
        (part.faulty, part.reset) = (false, Some(base.lsn));
        (log.end, log.faulty) = (Epochs::at(base), false);
        format::put_reset(body, partition, configuration, base);
    }

    /// Takes a record that stands in an older segment, so that it is not needed there any more.
    ///
    /// # Panics
    /// When it is not committed: it could be void by now, and would come back.
    pub fn copy(&mut self, partition: PartitionId, record: &Record, committed: Lsn) {
        assert!(record.position.lsn <= committed, "record {} of {partition} is not committed", record.position);
        let (part, _, body) = self.part(partition, committed);
        part.take(record.position.lsn);
        format::put_record(body, partition, record, committed, true);
    }

    /// Bytes of what is gathered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunk.body.len()
    }

    /// Hands over what is gathered, if there is anything.
    pub fn take(&mut self) -> Option<Chunk> {
        if self.chunk.entries == 0 {
            return None;
        }
        for part in &self.chunk.parts {
            self.logs[usize::from(part.partition.0)].place = 0;
        }
        Some(std::mem::take(&mut self.chunk))
    }
}

impl Part {
    fn take(&mut self, lsn: Lsn) {
        let (first, last) = self.records.unwrap_or((lsn, lsn));
        self.records = Some((first.min(lsn), last.max(lsn)));
    }

    fn void(&mut self, from: Lsn) {
        self.voids = Some(self.voids.map_or(from, |v| v.min(from)));
        let left = self.records.map(|(first, last)| (first, last.min(Lsn(from.0.saturating_sub(1)))));
        self.records = left.filter(|(first, last)| first <= last);
    }
}

/// Bytes that a record takes of a segment, its share of a batch's header included.
#[must_use]
pub fn log_bytes(record: &Record) -> usize {
    format::record_bytes(record) + BATCH_HEADER_BYTES
}
