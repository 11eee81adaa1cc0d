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
    ids::{Epoch, Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};
use std::collections::VecDeque;

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
    /// How many of its replica's entries there are; states and copies that the node itself writes do not count.
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
#[derive(Debug)]
pub struct Gather {
    /// Bytes from which on a chunk takes nothing more.
    chunk_bytes: usize,
    chunk: Chunk,
    /// Chunks that take nothing more, the oldest first, and their bytes.
    closed: VecDeque<Chunk>,
    closed_bytes: usize,
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
    /// The epoch that it is in.
    epoch: Epoch,
    /// It was found damaged, and not reset since.
    faulty: bool,
}

impl Default for Gather {
    /// Chunks without a bound.
    fn default() -> Self {
        Gather::new(usize::MAX)
    }
}

impl Gather {
    /// Nothing is gathered yet. A chunk takes nothing more from `chunk_bytes` bytes on.
    #[must_use]
    pub fn new(chunk_bytes: usize) -> Self {
        let (chunk, closed, closed_bytes) = (Chunk::default(), VecDeque::new(), 0);
        Gather { chunk_bytes, chunk, closed, closed_bytes, logs: Vec::new() }
    }

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
        let epoch = restored.configuration.as_ref().map_or(Epoch(0), |c| c.epoch);
        self.logs[at] = Log { end, epoch, faulty, ..self.logs[at] };
        self.close_if_long();
    }

    /// Takes what a replica wants kept; `committed` is what it knows to be committed now.
    ///
    /// # Panics
    /// At a record or cut of a partition that is faulty: it has to be reset before.
    pub fn append(&mut self, partition: PartitionId, entry: &LogEntry, committed: Lsn) {
        let (part, log, body) = self.part(partition, committed);
        part.entries += 1;
        assert!(
            !log.faulty || matches!(entry, LogEntry::Configuration(_) | LogEntry::Reset { .. }),
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
                format::put_record(body, partition, record, committed, log.epoch);
            }
            LogEntry::Cut { from } => {
                part.void(*from);
                log.end.cut(*from);
                format::put_cut(body, partition, *from, committed);
            }
            LogEntry::Configuration(configuration) => {
                part.configuration = Some(configuration.clone());
                log.epoch = configuration.epoch;
                format::put_state(body, partition, configuration, log.end.last(), committed, log.faulty);
            }
            LogEntry::Reset { configuration, base } => {
                part.void(Lsn(0));
                (part.committed, part.configuration) = (base.lsn, Some(configuration.clone()));
                (part.faulty, part.reset) = (false, Some(base.lsn));
                (log.end, log.epoch, log.faulty) = (Epochs::at(*base), configuration.epoch, false);
                format::put_reset(body, partition, configuration, *base);
            }
        }
        // What is committed is never cut.
        log.end.forget_before(committed);
        part.last = log.end.last();
        self.close_if_long();
    }

    /// Takes a record that stands in an older segment, so that it is not needed there any more.
    ///
    /// # Panics
    /// When it is not committed: it could be void by now, and would come back.
    pub fn copy(&mut self, partition: PartitionId, record: &Record, committed: Lsn) {
        assert!(record.position.lsn <= committed, "record {} of {partition} is not committed", record.position);
        let (part, _, body) = self.part(partition, committed);
        part.take(record.position.lsn);
        format::put_copy(body, partition, record, committed);
        self.close_if_long();
    }

    /// Bytes of what is gathered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.closed_bytes + self.chunk.body.len()
    }

    /// Hands over the oldest of what is gathered, if there is anything.
    pub fn take(&mut self) -> Option<Chunk> {
        let Some(chunk) = self.closed.pop_front() else { return self.close() };
        self.closed_bytes -= chunk.body.len();
        Some(chunk)
    }

    fn close_if_long(&mut self) {
        if self.chunk.body.len() >= self.chunk_bytes
            && let Some(chunk) = self.close()
        {
            self.closed_bytes += chunk.body.len();
            self.closed.push_back(chunk);
        }
    }

    fn close(&mut self) -> Option<Chunk> {
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

#[cfg(test)]
mod tests {
    use super::super::format::{Content, read_entry};
    use super::*;
    use kv_proto::{
        effect::Effect,
        ids::{ClientId, DiskId, HistoryId, Member, NodeId, OperationId},
    };

    const P: PartitionId = PartitionId(2);

    fn at(epoch: u64, lsn: u64) -> Position {
        Position { epoch: Epoch(epoch), lsn: Lsn(lsn) }
    }

    fn configuration(epoch: u64) -> Configuration {
        let leader = Member { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
        Configuration { epoch: Epoch(epoch), history: HistoryId(1), leader, in_sync: vec![] }
    }

    fn record(epoch: u64, lsn: u64) -> Record {
        let payload = Effect::Delete { key: b"k" }.encode().into();
        Record { position: at(epoch, lsn), operation_id: None, payload }
    }

    fn entry(epoch: u64, lsn: u64) -> LogEntry {
        LogEntry::Record(record(epoch, lsn))
    }

    /// What the states in a chunk say to be the last record.
    fn states(chunk: &Chunk) -> Vec<(Position, bool)> {
        let (mut body, mut states) = (&chunk.body[..], Vec::new());
        while !body.is_empty() {
            if let Content::State { last, faulty, .. } = read_entry(&mut body).expect("an entry").content {
                states.push((last, faulty));
            }
        }
        states
    }

    #[test]
    fn a_part_says_what_is_left_of_its_entries() {
        type Case<'a> = (&'a [LogEntry], Option<(u64, u64)>, Option<u64>, Position);
        let cases: &[Case<'_>] = &[
            (&[entry(1, 4), entry(1, 5)], Some((4, 5)), None, at(1, 5)),
            (&[entry(1, 4), entry(1, 5), LogEntry::Cut { from: Lsn(5) }], Some((4, 4)), Some(5), at(1, 4)),
            (&[entry(1, 4), entry(1, 5), LogEntry::Cut { from: Lsn(4) }], None, Some(4), at(1, 3)),
            (&[entry(1, 4), entry(1, 5), entry(2, 4)], Some((4, 4)), Some(4), at(2, 4)),
            (&[LogEntry::Cut { from: Lsn(2) }, entry(2, 2)], Some((2, 2)), Some(2), at(2, 2)),
            (&[LogEntry::Cut { from: Lsn(3) }, LogEntry::Cut { from: Lsn(2) }], None, Some(2), at(1, 1)),
        ];
        for (entries, records, voids, last) in cases {
            let mut gather = Gather::default();
            let tail = vec![record(1, 2), record(1, 3)];
            let (configuration, applied) = (Some(configuration(1)), at(1, 1));
            gather.adopt(P, &Restored { configuration, applied, tail, ..Restored::default() });
            let adopted = gather.take().expect("a state");
            assert_eq!((states(&adopted), adopted.parts[0].entries), (vec![(at(1, 3), false)], 0));
            entries.iter().for_each(|entry| gather.append(P, entry, Lsn(1)));
            let chunk = gather.take().expect("entries");
            let part = &chunk.parts[0];
            assert_eq!(part.records, records.map(|(first, last)| (Lsn(first), Lsn(last))), "{entries:?}");
            assert_eq!((part.voids, part.last), (voids.map(Lsn), *last), "{entries:?}");
            assert_eq!((part.entries, chunk.entries as usize), (entries.len() as u64, entries.len()));
            assert!(gather.take().is_none());
            gather.append(P, &LogEntry::Configuration(self::configuration(3)), Lsn(1));
            assert_eq!(states(&gather.take().expect("a state")), [(*last, false)], "{entries:?}");
        }
    }

    #[test]
    fn partitions_have_parts_of_their_own() {
        let mut gather = Gather::default();
        for lsn in 1..=3 {
            gather.append(P, &entry(1, lsn), Lsn(lsn - 1));
            gather.append(PartitionId(9), &entry(4, lsn), Lsn(0));
        }
        gather.copy(P, &record(1, 1), Lsn(2));
        let chunk = gather.take().expect("entries");
        let parts: Vec<_> = chunk.parts.iter().map(|p| (p.partition.0, p.entries, p.last, p.committed.0)).collect();
        assert_eq!(parts, [(2, 3, at(1, 3), 2), (9, 3, at(4, 3), 0)]);
        assert_eq!(chunk.entries, 7);
    }

    #[test]
    fn a_faulty_partition_says_so_and_takes_nothing_but_configurations_and_a_reset() {
        let mut gather = Gather::default();
        let fault = Some("damaged".to_owned());
        gather.adopt(P, &Restored { configuration: Some(configuration(1)), fault, ..Restored::default() });
        gather.append(P, &LogEntry::Configuration(configuration(2)), Lsn(0));
        let chunk = gather.take().expect("states");
        assert_eq!((states(&chunk), chunk.parts[0].faulty), (vec![(at(0, 0), true), (at(0, 0), true)], true));
        gather.append(P, &LogEntry::Reset { configuration: configuration(3), base: at(2, 7) }, Lsn(7));
        gather.append(P, &entry(3, 8), Lsn(7));
        gather.append(P, &LogEntry::Configuration(configuration(4)), Lsn(7));
        let chunk = gather.take().expect("entries");
        let part = &chunk.parts[0];
        assert_eq!((part.faulty, part.reset, part.voids, part.entries), (false, Some(Lsn(7)), Some(Lsn(0)), 3));
        assert_eq!(states(&chunk), [(at(3, 8), false)]);
    }

    #[test]
    #[should_panic(expected = "nothing is added to its log")]
    fn nothing_is_appended_to_a_faulty_log() {
        let mut gather = Gather::default();
        gather.adopt(P, &Restored { fault: Some("damaged".to_owned()), ..Restored::default() });
        gather.append(P, &entry(1, 1), Lsn(0));
    }

    #[test]
    #[should_panic(expected = "is not committed")]
    fn only_what_is_committed_is_copied() {
        Gather::default().copy(P, &record(1, 5), Lsn(4));
    }

    #[test]
    fn the_bytes_of_a_record_are_known_before() {
        let id = OperationId { client: ClientId(1), sequence: 2, known_lsn: Lsn(3) };
        for operation_id in [None, Some(id)] {
            let mut gather = Gather::default();
            let record = Record { operation_id, ..record(1, 1) };
            gather.append(P, &LogEntry::Record(record.clone()), Lsn(0));
            assert_eq!(gather.bytes() + BATCH_HEADER_BYTES, log_bytes(&record));
        }
    }

    #[test]
    fn what_was_gathered_at_once_is_no_longer_than_a_chunk_and_a_record() {
        let record = |lsn: u64| {
            let payload = vec![0; 400].into();
            LogEntry::Record(Record { position: at(1, lsn), operation_id: None, payload })
        };
        let mut gather = Gather::new(1000);
        for lsn in 1..=20 {
            gather.append(PartitionId(lsn as u16 % 3), &record(lsn), Lsn(0));
        }
        let bytes = gather.bytes();
        let chunks: Vec<Chunk> = std::iter::from_fn(|| gather.take()).collect();
        assert_eq!(chunks.iter().map(|c| c.body.len()).sum::<usize>(), bytes);
        assert!(chunks.iter().all(|c| c.body.len() < 1500), "{chunks:?}");
        let of = |p: u16| chunks.iter().flat_map(|c| &c.parts).filter(move |part| part.partition == PartitionId(p));
        assert_eq!(of(0).map(|p| p.entries).sum::<u64>(), 6);
        assert_eq!(of(0).filter_map(|p| p.records).next_back(), Some((Lsn(18), Lsn(18))));
        assert_eq!(gather.bytes(), 0);
    }
}
