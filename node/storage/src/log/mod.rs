//! The log of a node: one *stream* of batches for each executor of each *generation* (start of the process), in segments of
//! fixed size.
//!
//! # How a record gets to disk
//!
//! An executor appends what its replicas want kept to a [`gather::Gather`] and hands it over as a [`gather::Chunk`]. The
//! stream's [`writer::Writer`] makes one batch of all chunks that are there, writes it and syncs it, and says how many
//! entries of each partition are on disk. One batch is under way at a time, the next gathers meanwhile: so a batch that is not
//! whole is the last one, or something has damaged it later.
//!
//! # How it is read back
//!
//! [`crate::recovery`] reads the segments of all streams in the order of (generation, stream, number) and has each partition's
//! entries in the order in which they were written, since within a generation a partition belongs to one executor. Batches
//! are numbered without gaps: a number that is missing before an intact batch is damage, what is missing behind the last
//! one was never acknowledged.
//!
//! # How it stays short
//!
//! Everything up to the start of a partition's checkpoint is not needed any more; [`catalog`] knows which partitions still
//! need which segment. Each segment begins with the states of all partitions of its stream, so that no configuration keeps an
//! older one alive; the few records of a partition that is hardly written are copied forward instead of checkpointing
//! all of it.

pub mod catalog;
pub mod epochs;
pub mod format;
pub mod gather;
pub mod index;
pub mod writer;

use std::fmt;

/// Bytes from which on a chunk, and a batch, takes nothing more. A batch is at most two of these and a record longer, and so
/// fits into every segment that holds two of the longest records and a MiB.
#[must_use]
pub fn batch_bytes(segment_bytes: u64) -> usize {
    (segment_bytes / 8).min(1024 * 1024) as usize
}

/// The batches that one executor wrote between a start of the process and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// How many times the node had been started, this one included.
    pub generation: u64,
    /// The executor.
    pub executor: u16,
}

/// A segment of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The stream.
    pub stream: StreamId,
    /// Grows by one from segment to segment; the first has 1.
    pub number: u64,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format::segment_name(*self))
    }
}
