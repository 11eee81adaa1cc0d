//! Writes the batches of a stream.
//!
//! # Invariants
//! * What is said to be flushed was written and synced without an error.
//! * After an error nothing is written any more: what became of the bytes is not known, and a second sync is not believed.
//! * One batch is under way at a time. What begins a segment, its header and the states of all partitions of the stream, is no
//!   exception: the states are the first entries of its first batch, since of two batches of one write the second alone may
//!   be on disk after a loss of power, and would look like damage.

use super::{
    SegmentId, StreamId,
    format::{self, BATCH_HEADER_BYTES, BLOCK_BYTES, Identity},
    gather::{Chunk, Part},
    index::Place,
};
use kv_proto::{
    cluster_map::Configuration,
    ids::{ClusterId, Lsn, PartitionId},
    replication::Position,
};
use std::{collections::BTreeMap, io};

/// Where segments are kept: files, or what a test has instead.
pub trait Media {
    /// Makes a segment of `bytes` bytes that will be there under its name after a crash, whatever its content; nothing that
    /// was not written to it since will look valid.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is no room for it: it may be asked for again. Everything else is final.
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()>;

    /// Writes whole blocks of the segment that was created last.
    ///
    /// # Errors
    /// Final.
    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()>;

    /// Returns when everything written to the segment that was created last is on disk.
    ///
    /// # Errors
    /// Final.
    fn sync(&mut self) -> io::Result<()>;
}

/// What all segments of a stream have in common.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node and its disk.
    pub identity: Identity,
    /// The stream.
    pub stream: StreamId,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

/// What a batch brought to disk.
#[derive(Debug, Default)]
pub struct Flushed {
    /// How many chunks it had.
    pub chunks: u64,
    /// By partition: what it was.
    pub parts: Vec<Part>,
    /// By partition: where its records stand.
    pub places: Vec<(PartitionId, Place)>,
    /// The segment that this batch no longer fitted into, and what stands in it.
    pub sealed: Option<Sealed>,
}

/// A segment that is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which.
    pub id: SegmentId,
    /// By partition that has records in it: the greatest LSN.
    pub last: BTreeMap<PartitionId, Lsn>,
    /// By partition that was reset in it: where its log goes on from.
    pub resets: BTreeMap<PartitionId, Lsn>,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no room for another segment; nothing was written, and the same may be tried again.
    #[error("no room for another segment of the log")]
    Full(Vec<Chunk>),
    /// It may be on disk or not.
    #[error("cannot {what} segment {segment} of the log: {source}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// To which segment.
        segment: SegmentId,
        /// What the kernel said.
        source: io::Error,
    },
}

#[derive(Clone, Debug)]
struct State {
    configuration: Configuration,
    last: Position,
    committed: Lsn,
    faulty: bool,
}

#[derive(Debug)]
struct Current {
    id: SegmentId,
    /// Where the next batch begins.
    offset: u64,
    last: BTreeMap<PartitionId, Lsn>,
    resets: BTreeMap<PartitionId, Lsn>,
}

/// Writes a stream.
#[derive(Debug)]
pub struct Writer<M> {
    media: M,
    options: StreamOptions,
    current: Option<Current>,
    next_batch: u64,
    states: BTreeMap<PartitionId, State>,
    buffer: Buffer,
    failed: bool,
}

impl<M: Media> Writer<M> {
    /// The writer of a new stream; nothing is written yet.
    pub fn new(media: M, options: StreamOptions) -> Self {
        let states = BTreeMap::new();
        Writer { media, options, current: None, next_batch: 1, states, buffer: Buffer::default(), failed: false }
    }

    /// Where the segments are kept.
    pub fn media(&mut self) -> &mut M {
        &mut self.media
    }

    /// The segment that is written to.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentId> {
        self.current.as_ref().map(|c| c.id)
    }

    /// Bytes of the current segment that are not written yet.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.current.as_ref().map_or(0, |c| self.options.segment_bytes - c.offset)
    }

    /// Makes the first segment, so that it is there before anything is promised.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn open(&mut self) -> Result<(), WriteError> {
        self.write(Vec::new()).map(drop)
    }

    /// Makes the chunks one batch, writes and syncs it; without any, only what begins a segment is in it.
    ///
    /// # Errors
    /// When they are not on disk, or it is not known whether they are.
    pub fn write(&mut self, chunks: Vec<Chunk>) -> Result<Flushed, WriteError> {
        assert!(!self.failed, "after an error nothing is written any more");
        let body: usize = chunks.iter().map(|c| c.body.len()).sum();
        let needed = (BATCH_HEADER_BYTES + body).next_multiple_of(BLOCK_BYTES) as u64;
        self.buffer.clear();
        let mut flushed = Flushed { chunks: chunks.len() as u64, ..Flushed::default() };
        let (mut start, mut entries) = (0, 0);
        match &self.current {
            Some(current) if current.offset + needed <= self.options.segment_bytes => start = current.offset,
            _ => match self.begin_segment() {
                Ok(sealed) => {
                    flushed.sealed = sealed;
                    entries = self.states.len() as u32;
                }
                Err(WriteError::Full(_)) => return Err(WriteError::Full(chunks)),
                Err(error) => return Err(error),
            },
        }
        let bytes = self.buffer.bytes();
        let current = self.current.as_mut().expect("there is a segment");
        let (id, offset) = (current.id, current.offset);
        let from = (offset - start) as usize;
        bytes.resize(bytes.len().max(from + BATCH_HEADER_BYTES), 0);
        for chunk in chunks {
            entries += chunk.entries;
            bytes.extend_from_slice(&chunk.body);
            for part in chunk.parts {
                if let Some(base) = part.reset {
                    current.last.remove(&part.partition);
                    current.resets.insert(part.partition, base);
                }
                if let (Some(from), Some(last)) = (part.voids, current.last.get_mut(&part.partition)) {
                    *last = (*last).min(Lsn(from.0.saturating_sub(1)));
                }
                if let Some((first, last)) = part.records {
                    let place = Place { segment: id, offset, first, last };
                    flushed.places.push((part.partition, place));
                    let greatest = current.last.entry(part.partition).or_default();
                    *greatest = last.max(*greatest);
                }
                let (last, committed, faulty) = (part.last, part.committed, part.faulty);
                if let Some(configuration) = &part.configuration {
                    let state = State { configuration: configuration.clone(), last, committed, faulty };
                    self.states.insert(part.partition, state);
                } else if let Some(state) = self.states.get_mut(&part.partition) {
                    (state.last, state.committed) = (last, committed.max(state.committed));
                }
                flushed.parts.push(part);
            }
        }
        format::seal_batch(bytes, from, &self.options.identity, id, offset, self.next_batch, entries);
        self.next_batch += 1;
        current.offset = start + bytes.len() as u64;
        assert!(
            current.offset <= self.options.segment_bytes,
            "a batch of {needed} bytes does not fit into a segment with the states of {} partitions",
            self.states.len()
        );
        let failed = |what| move |source| WriteError::Failed { what, segment: id, source };
        self.failed = true;
        self.media.write(start, self.buffer.blocks()).map_err(failed("write to"))?;
        self.media.sync().map_err(failed("sync"))?;
        self.failed = false;
        Ok(flushed)
    }

    /// Begins the next segment: its header is in the buffer afterwards, and the states as the first entries of a batch.
    fn begin_segment(&mut self) -> Result<Option<Sealed>, WriteError> {
        let number = self.current.as_ref().map_or(1, |c| c.id.number + 1);
        let id = SegmentId { stream: self.options.stream, number };
        if let Err(source) = self.media.create(id, self.options.segment_bytes) {
            if source.kind() == io::ErrorKind::StorageFull {
                return Err(WriteError::Full(Vec::new()));
            }
            self.failed = true;
            return Err(WriteError::Failed { what: "make", segment: id, source });
        }
        let StreamOptions { cluster, identity, segment_bytes, .. } = &self.options;
        let bytes = self.buffer.bytes();
        bytes.extend_from_slice(&format::segment_header(*cluster, identity, id, *segment_bytes, self.next_batch));
        let offset = bytes.len() as u64;
        bytes.resize(bytes.len() + BATCH_HEADER_BYTES, 0);
        for (partition, state) in &self.states {
            let State { configuration, last, committed, faulty } = state;
            format::put_state(bytes, *partition, configuration, *last, *committed, *faulty);
        }
        let current = Current { id, offset, last: BTreeMap::new(), resets: BTreeMap::new() };
        let before = self.current.replace(current);
        Ok(before.map(|c| Sealed { id: c.id, last: c.last, resets: c.resets }))
    }
}

/// A buffer whose blocks begin at multiples of a block in memory too, as direct I/O asks.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// What was last written is copied here, aligned.
    aligned: Vec<u8>,
}

/// A buffer that grew past this is given back, in bytes.
const KEEP_BYTES: usize = 2 * 1024 * 1024;

impl Buffer {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.aligned.clear();
        self.aligned.shrink_to(KEEP_BYTES);
    }

    fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What was put into it, at an aligned address.
    fn blocks(&mut self) -> &[u8] {
        self.aligned.reserve(self.bytes.len() + BLOCK_BYTES);
        let padding = self.aligned.as_ptr().align_offset(BLOCK_BYTES);
        self.aligned.resize(padding, 0);
        self.aligned.extend_from_slice(&self.bytes);
        &self.aligned[padding..]
    }
}

#[cfg(test)]
mod tests;
