//! What an executor has for its log: entries as they will stand there, until they are handed over.

use super::format::{self, BATCH_HEADER_BYTES};
use kv_proto::{
    cluster_map::Configuration,
    ids::{Lsn, PartitionId},
    replication::Record,
};
use kv_replication::replica::LogEntry;
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
    /// The LSNs of its records, if there are any: the least and the greatest.
    pub records: Option<(Lsn, Lsn)>,
    /// The LSN from which earlier records are void, if there is a cut or a record that stands where another stood.
    pub voids: Option<Lsn>,
    /// The last record after these entries.
    pub last: Lsn,
    /// What was known to be committed.
    pub committed: Lsn,
    /// Its configuration, if it changed.
    pub configuration: Option<Configuration>,
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
    /// By partition: the place of its part in the chunk, plus one.
    places: Vec<u32>,
    /// By partition: its last record.
    last: Vec<Lsn>,
}

impl Gather {
    /// Nothing is gathered yet. A chunk takes nothing more from `chunk_bytes` bytes on.
    #[must_use]
    pub fn new(chunk_bytes: usize) -> Self {
        let (chunk, closed, closed_bytes) = (Chunk::default(), VecDeque::new(), 0);
        Gather { chunk_bytes, chunk, closed, closed_bytes, places: Vec::new(), last: Vec::new() }
    }

    fn part(&mut self, partition: PartitionId, committed: Lsn) -> &mut Part {
        let at = usize::from(partition.0);
        if self.places.len() <= at {
            self.places.resize(at + 1, 0);
            self.last.resize(at + 1, Lsn(0));
        }
        if self.places[at] == 0 {
            self.chunk.parts.push(Part {
                partition,
                entries: 0,
                records: None,
                voids: None,
                last: self.last[at],
                committed,
                configuration: None,
            });
            self.places[at] = self.chunk.parts.len() as u32;
        }
        let part = &mut self.chunk.parts[self.places[at] as usize - 1];
        part.committed = part.committed.max(committed);
        self.chunk.entries += 1;
        part
    }

    /// The partition belongs to this executor from now on, as it was in earlier generations: its state comes first.
    pub fn adopt(&mut self, partition: PartitionId, configuration: &Configuration, last: Lsn, committed: Lsn) {
        let part = self.part(partition, committed);
        (part.last, part.configuration) = (last, Some(configuration.clone()));
        format::put_state(&mut self.chunk.body, partition, configuration, last, committed);
        self.last[usize::from(partition.0)] = last;
        self.close_if_long();
    }

    /// Takes what a replica wants kept; `committed` is what it knows to be committed now.
    pub fn append(&mut self, partition: PartitionId, entry: &LogEntry, committed: Lsn) {
        let part = self.part(partition, committed);
        part.entries += 1;
        match entry {
            LogEntry::Record(record) => {
                let lsn = record.position.lsn;
                if lsn <= part.last {
                    part.void(lsn);
                }
                part.take(lsn);
                part.last = lsn;
            }
            LogEntry::Cut { from } => {
                part.void(*from);
                part.last = part.last.min(Lsn(from.0.saturating_sub(1)));
            }
            LogEntry::Configuration(configuration) => part.configuration = Some(configuration.clone()),
        }
        let last = part.last;
        self.last[usize::from(partition.0)] = last;
        let body = &mut self.chunk.body;
        match entry {
            LogEntry::Record(record) => format::put_record(body, partition, record, committed, false),
            LogEntry::Cut { from } => format::put_cut(body, partition, *from, committed),
            LogEntry::Configuration(configuration) => {
                format::put_state(body, partition, configuration, last, committed);
            }
        }
        self.close_if_long();
    }

    /// Takes a record that stands in an older segment, so that it is not needed there any more.
    pub fn copy(&mut self, partition: PartitionId, record: &Record, committed: Lsn) {
        let part = self.part(partition, committed);
        part.take(record.position.lsn);
        format::put_record(&mut self.chunk.body, partition, record, committed, true);
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
            self.places[usize::from(part.partition.0)] = 0;
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
    }
}

/// Bytes that a record takes of a segment, its share of a batch's header included.
#[must_use]
pub fn log_bytes(record: &Record) -> usize {
    format::record_bytes(record) + BATCH_HEADER_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lsn: u64, bytes: usize) -> LogEntry {
        let position = kv_proto::replication::Position { lsn: Lsn(lsn), ..Default::default() };
        LogEntry::Record(Record { position, operation_id: None, payload: vec![0; bytes].into() })
    }

    #[test]
    fn what_was_gathered_at_once_is_no_longer_than_a_chunk_and_a_record() {
        let mut gather = Gather::new(1000);
        for lsn in 1..=20 {
            gather.append(PartitionId(lsn as u16 % 3), &record(lsn, 400), Lsn(0));
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
