//! Reads back what a node kept: checkpoints first, then the segments of its log in the order of their ids.
//!
//! A partition's entries are taken in the order in which they were written. Records that are known to be committed go into
//! the table at once, so that only the end of each log is held; the rest is the tail that the partition's replica goes on with.
//!
//! # What is damage and what is a torn tail
//!
//! One batch of a stream is under way at a time, so a batch that is not whole, with nothing behind it that was written later,
//! was never acknowledged: a torn tail. A number that is missing before a batch that was begun later is damage.
//!
//! Which partitions had entries in what is missing is told by what stands behind it. The entry that follows names what it
//! stands on: a state the position of the last record and the configuration; a record, if it is of the epoch that its
//! partition was in, the configuration, and the record before it if that is of the same epoch. If that record is there, so is everything before it, since a log that has a record at an (epoch, LSN) has all that the
//! leader of that epoch had before it. What went into the table before the damage is there too: it was committed. A partition
//! whose next entry says less, or that has none, may have lost something and is faulty: an LSN that follows is not enough,
//! since a cut may be missing together with what was written in the place of what it removed.
//!
//! # Invariants
//! * What is restored is a prefix of what was written, without gap, up to the last entry that is intact; or the partition is
//!   faulty and says why.
//! * A checkpoint counts only if the log behind it reaches its end, and table and operations have its digests there.
//! * Nothing is applied that was not committed as of the place where the log was read to.

mod replay;
#[cfg(test)]
mod tests;

use crate::{
    checkpoint::Checkpoint,
    log::{
        SegmentId, StreamId,
        format::{self, BLOCK_BYTES, Content, FormatError, Found, Identity},
        index::Index,
        writer::Sealed,
    },
    operations::Operations,
    table::Table,
};
use kv_proto::{ids::PartitionId, replication::Position};
use kv_replication::replica::Restored;
use replay::Replay;
use std::collections::{BTreeMap, BTreeSet};

/// A partition as it was kept.
#[derive(Default)]
pub struct Partition {
    /// Its table, as of `restored.applied`.
    pub table: Table,
    /// Its operations, as of `restored.applied`.
    pub operations: Operations,
    /// What its replica goes on with.
    pub restored: Restored,
    /// Records up to here are in a published checkpoint.
    pub released: Position,
    /// Where its records stand.
    pub index: Index,
}

/// A segment as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Scanned {
    /// What partitions need it for.
    pub sealed: Sealed,
    /// Partitions whose states stand in it.
    pub states: BTreeSet<PartitionId>,
    /// Something in it, or before it, is not what was written.
    pub damage: Option<String>,
}

/// All that was kept.
#[derive(Default)]
pub struct Recovered {
    /// The partitions that have anything.
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// What was found damaged. Of a partition that is not among those above nobody can say any more whether it had anything.
    pub damage: Vec<String>,
}

/// Reads back.
pub struct Recovery {
    identity: Identity,
    partitions: BTreeMap<PartitionId, Replay>,
    streams: BTreeMap<StreamId, Stream>,
    damage: Vec<String>,
    records: u64,
}

#[derive(Default)]
struct Stream {
    /// The number that the next batch has.
    next_batch: Option<u64>,
}

impl Recovery {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let (partitions, streams) = (BTreeMap::new(), BTreeMap::new());
        Recovery { identity, partitions, streams, damage: Vec::new(), records: 0 }
    }

    /// How many records were read so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// A published checkpoint was read: before any segment, or again for a partition of [`Recovery::awaiting_copies`].
    pub fn take_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.partitions.entry(checkpoint.header.partition).or_default().take_checkpoint(checkpoint);
    }

    /// Partitions whose checkpoints have to be read again, since the log took back what was read before it.
    #[must_use]
    pub fn awaiting_copies(&self) -> Vec<PartitionId> {
        self.partitions.iter().filter(|(_, p)| p.awaits_copy()).map(|(id, _)| *id).collect()
    }

    /// A checkpoint is there and cannot be used.
    pub fn refuse_checkpoint(&mut self, partition: PartitionId, why: String) {
        self.damage.push(why.clone());
        self.partitions.entry(partition).or_default().refuse_checkpoint(why);
    }

    /// Reads a segment. Segments come in the order of their ids, and none is left out.
    ///
    /// # Errors
    /// When it is of another disk or of a format that is not known here; damage is no error.
    pub fn take_segment(&mut self, id: SegmentId, bytes: &[u8]) -> Result<Scanned, FormatError> {
        let sealed = Sealed { id, last: BTreeMap::new(), resets: BTreeMap::new() };
        let mut scanned = Scanned { sealed, states: BTreeSet::new(), damage: None };
        let header = format::check_segment_header(bytes, &self.identity, id);
        if let Err(error @ (FormatError::OtherFormat(_) | FormatError::OtherDisk { .. })) = header {
            return Err(error);
        }
        if let Err(FormatError::OtherSegment(said)) = header
            && (said.stream.generation, said.number) > (id.stream.generation, id.number)
        {
            // A segment that was made and not written to yet has the header of an older one.
            self.suspect(id.stream, format!("{id} has the content of {said}"), &mut scanned);
        }
        let before = self.streams.entry(id.stream).or_default().next_batch;
        // The header may be torn: it is written together with the first batch.
        let mut expected = match (header, before) {
            (Ok(first), Some(expected)) => {
                if first != expected {
                    self.note_damage(id, 0, &mut scanned);
                }
                Some(first)
            }
            // What is before it was not needed any more.
            (Ok(first), None) => Some(first),
            (Err(_), None) if id.number == 1 => Some(1),
            (Err(_), before) => before,
        };
        let mut offset = BLOCK_BYTES as u64;
        while let Some(rest) = bytes.get(offset as usize..).filter(|rest| !rest.is_empty()) {
            let (found, length) = format::find_batch(rest, &self.identity, id, offset);
            let number = match &found {
                // Nothing, what was left by an earlier use of the segment, or damage: the next one will tell.
                Found::Nothing => None,
                Found::Torn { number } => Some(*number),
                Found::Batch(batch) => Some(batch.number),
            };
            if let Some(number) = number {
                // Everything before it was on disk when it was begun; without a header and an older segment, the first is where
                // the first is written.
                let follows = expected.map_or(offset == BLOCK_BYTES as u64, |expected| expected == number);
                if !follows {
                    self.note_damage(id, offset, &mut scanned);
                }
                expected = Some(number);
            }
            if let Found::Batch(batch) = found {
                expected = Some(batch.number + 1);
                self.take_batch(id, offset, &batch, &mut scanned);
            }
            offset += length;
        }
        self.streams.entry(id.stream).or_default().next_batch = expected;
        Ok(scanned)
    }

    fn note_damage(&mut self, id: SegmentId, offset: u64, scanned: &mut Scanned) {
        let what = format!("batches before byte {offset} of {id} are damaged or missing");
        self.suspect(id.stream, what, scanned);
    }

    /// Something of a stream is missing: it may have been of any partition but those that belonged to another one then.
    fn suspect(&mut self, stream: StreamId, what: String, scanned: &mut Scanned) {
        for replay in self.partitions.values_mut() {
            let elsewhere = replay.stream.is_some_and(|s| s.generation == stream.generation && s != stream);
            if !elsewhere {
                replay.suspect(&what);
            }
        }
        self.damage.push(what.clone());
        scanned.damage = Some(what);
    }

    fn take_batch(&mut self, id: SegmentId, offset: u64, batch: &format::Batch<'_>, scanned: &mut Scanned) {
        let mut body = &*batch.body;
        let mut entries = 0;
        while !body.is_empty() {
            let entry = match format::read_entry(&mut body) {
                Ok(entry) => entry,
                Err(error) => {
                    // The checksum holds, so this is what was written: by another version, or by a fault of this one.
                    let what = format!("{id}, batch {}: {error}", batch.number);
                    return self.suspect(id.stream, what, scanned);
                }
            };
            entries += 1;
            let partition = entry.partition;
            match &entry.content {
                Content::Record { record, .. } => {
                    self.records += 1;
                    let greatest = scanned.sealed.last.entry(partition).or_default();
                    *greatest = record.position.lsn.max(*greatest);
                }
                Content::State { .. } => {
                    scanned.states.insert(partition);
                }
                Content::Reset { base, .. } => {
                    scanned.states.insert(partition);
                    scanned.sealed.last.remove(&partition);
                    scanned.sealed.resets.insert(partition, base.lsn);
                }
                Content::Cut { .. } => {}
            }
            let replay = self.partitions.entry(partition).or_default();
            replay.stream = Some(id.stream);
            replay.take(entry, id, offset);
        }
        if entries != batch.entries {
            let what = format!("{id}, batch {}: it has {entries} entries instead of {}", batch.number, batch.entries);
            self.suspect(id.stream, what, scanned);
        }
    }

    /// What was kept, once everything was read.
    #[must_use]
    pub fn finish(self) -> Recovered {
        let partitions = self.partitions.into_iter().map(|(id, replay)| (id, replay.finish())).collect();
        Recovered { partitions, damage: self.damage }
    }
}
