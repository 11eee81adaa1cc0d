//! Reads back what a node kept: checkpoints first, then the segments of its log in the order of their ids.
//!
//! A partition's entries are taken in the order in which they were written. Records that are known to be committed go into
//! the table at once, so that only the end of each log is held; the rest is the tail that the partition's replica goes on with.
//!
//! # What is damage and what is a torn tail
//!
//! One batch of a stream is under way at a time, so a batch that is not whole, with none behind it, was never acknowledged: a
//! torn tail. A number that is missing before an intact batch is damage. Which partitions had entries in what is
//! missing is told by what stands behind it: a partition that goes on without a gap lost nothing; one with a gap, or
//! with nothing behind the damage, is faulty. The others are not concerned.
//!
//! # Invariants
//! * What is restored is a prefix of what was written, without gap, up to the last entry that is intact; or the partition is
//!   faulty and says why.
//! * A checkpoint counts only if the log behind it reaches its end and the table has its digest there.

use crate::{
    checkpoint,
    log::{
        SegmentId, StreamId,
        format::{self, BLOCK_BYTES, Content, Entry, FormatError, Identity},
        index::{Index, Place},
        writer::Sealed,
    },
    table::{self, Table},
};
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::Restored;
use std::collections::{BTreeMap, BTreeSet};

/// A partition as it was kept.
#[derive(Default)]
pub struct Partition {
    /// Its table, as of `restored.applied`.
    pub table: Table,
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
    pub fn take_checkpoint(&mut self, header: checkpoint::Header, table: Table, footer: checkpoint::Footer) {
        let replay = self.partitions.entry(header.partition).or_default();
        if replay.awaits_copy.is_some_and(|base| header.start.lsn < base) {
            return; // it is older than the copy
        }
        replay.awaits_copy = None;
        replay.table = table;
        (replay.base, replay.applied) = (header.start, header.start);
        replay.claim = replay.claim.max(header.start.lsn);
        // Everything that was in the table when the walk ended was committed.
        replay.committed = replay.committed.max(footer.end);
        replay.configuration.get_or_insert(header.configuration);
        replay.proof = Some(footer);
        replay.pending.retain(|lsn, _| *lsn > header.start.lsn);
        replay.check_proof();
        replay.advance();
    }

    /// Partitions whose checkpoints have to be read again, since the log took back what was read before it.
    #[must_use]
    pub fn awaiting_copies(&self) -> Vec<PartitionId> {
        self.partitions.iter().filter(|(_, p)| p.awaits_copy.is_some()).map(|(id, _)| *id).collect()
    }

    /// A checkpoint is there and cannot be used.
    pub fn refuse_checkpoint(&mut self, partition: PartitionId, why: String) {
        self.damage.push(why.clone());
        self.partitions.insert(partition, Replay { fault: Some(why), ..Replay::default() });
    }

    /// Reads a segment. Segments come in the order of their ids, and none is left out.
    ///
    /// # Errors
    /// When it is of another disk or of a format that is not known here; damage is no error.
    pub fn take_segment(&mut self, id: SegmentId, bytes: &[u8]) -> Result<Scanned, FormatError> {
        let mut scanned =
            Scanned { sealed: Sealed { id, last: BTreeMap::new() }, states: BTreeSet::new(), damage: None };
        let header = format::check_segment_header(bytes, &self.identity, id);
        if let Err(error @ (FormatError::OtherFormat(_) | FormatError::OtherDisk { .. })) = header {
            return Err(error);
        }
        let stream = self.streams.entry(id.stream).or_default();
        let mut expected = match (&header, stream.next_batch) {
            // What is before it was not needed any more.
            (Ok(first), None) => Some(*first),
            (_, expected) => expected,
        };
        let mut offset = BLOCK_BYTES as u64;
        while let Some(rest) = bytes.get(offset as usize..).filter(|rest| !rest.is_empty()) {
            let Some(batch) = format::read_batch(rest, &self.identity, id, offset) else {
                // Nothing, what was left by an earlier use of the segment, or damage: the next intact batch will tell.
                offset += BLOCK_BYTES as u64;
                continue;
            };
            if expected != Some(batch.number) {
                self.note_damage(id, offset, &mut scanned);
            }
            expected = Some(batch.number + 1);
            self.take_batch(id, offset, batch, &mut scanned);
            offset += batch.blocks_bytes();
        }
        self.streams.entry(id.stream).or_default().next_batch = expected;
        Ok(scanned)
    }

    fn note_damage(&mut self, id: SegmentId, offset: u64, scanned: &mut Scanned) {
        let what = format!("batches before byte {offset} of {id} are damaged or missing");
        self.damage.push(what.clone());
        scanned.damage = Some(what.clone());
        // What is missing may have been of any partition but those that belonged to another stream by then.
        for replay in self.partitions.values_mut() {
            let elsewhere = replay.stream.is_some_and(|s| s.generation == id.stream.generation && s != id.stream);
            if !elsewhere {
                replay.uncertain = Some(what.clone());
            }
        }
    }

    fn take_batch(&mut self, id: SegmentId, offset: u64, batch: format::Batch<'_>, scanned: &mut Scanned) {
        let mut body = batch.body;
        let mut ranges: BTreeMap<PartitionId, (Lsn, Lsn)> = BTreeMap::new();
        while !body.is_empty() {
            let entry = match format::read_entry(&mut body) {
                Ok(entry) => entry,
                Err(error) => {
                    // The checksum holds, so this is what was written: by another version, or by a fault of this one.
                    scanned.damage = Some(format!("{id}, batch {}: {error}", batch.number));
                    self.damage.extend(scanned.damage.clone());
                    self.partitions.values_mut().for_each(|p| p.uncertain.clone_from(&scanned.damage));
                    break;
                }
            };
            let partition = entry.partition;
            match &entry.content {
                Content::Record { record, .. } => {
                    self.records += 1;
                    let lsn = record.position.lsn;
                    let (first, last) = ranges.get(&partition).copied().unwrap_or((lsn, lsn));
                    ranges.insert(partition, (first.min(lsn), last.max(lsn)));
                }
                Content::State { .. } => {
                    scanned.states.insert(partition);
                }
                Content::Cut { .. } | Content::Reset { .. } => {}
            }
            let replay = self.partitions.entry(partition).or_default();
            replay.stream = Some(id.stream);
            replay.take(entry);
        }
        for (partition, (first, last)) in ranges {
            let greatest = scanned.sealed.last.entry(partition).or_default();
            *greatest = last.max(*greatest);
            let place = Place { segment: id, offset, first, last };
            self.partitions.entry(partition).or_default().index.push(place);
        }
    }

    /// What was kept, once everything was read.
    #[must_use]
    pub fn finish(self) -> Recovered {
        let partitions = self.partitions.into_iter().map(|(id, replay)| (id, replay.finish())).collect();
        Recovered { partitions, damage: self.damage }
    }
}

/// A partition while its entries are read.
#[derive(Default)]
struct Replay {
    table: Table,
    /// Where its checkpoint starts.
    base: Position,
    /// The last record in the table.
    applied: Position,
    /// The greatest LSN that is known to be committed.
    committed: Lsn,
    /// The records after `applied` that are not void; a copy can come before what it stands before.
    pending: BTreeMap<Lsn, Record>,
    /// The last record that the log says there is.
    claim: Lsn,
    configuration: Option<Configuration>,
    /// What the checkpoint says of the table at its end, until it was compared.
    proof: Option<checkpoint::Footer>,
    index: Index,
    /// Where its last entry stood.
    stream: Option<StreamId>,
    /// Something is missing that may have been of this partition; what comes next tells.
    uncertain: Option<String>,
    fault: Option<String>,
    /// A reset was read: the table is that of a checkpoint that starts here or later, as it was before any record.
    awaits_copy: Option<Lsn>,
}

impl Replay {
    fn take(&mut self, entry: Entry) {
        if self.fault.is_some() {
            return;
        }
        self.committed = self.committed.max(entry.committed);
        match entry.content {
            Content::Record { record, copy } => {
                let lsn = record.position.lsn;
                if !copy {
                    if lsn <= self.claim {
                        self.void(lsn);
                    }
                    self.claim = lsn;
                    self.uncertain = None;
                }
                if lsn > self.applied.lsn {
                    // A copy is of a record that was not void when it was made, and so is not where another stands.
                    self.pending.entry(lsn).or_insert(record);
                }
            }
            Content::Cut { from } => {
                self.void(from);
                self.claim = self.claim.min(Lsn(from.0.saturating_sub(1)));
            }
            Content::State { configuration, last } => {
                if self.configuration.as_ref().is_none_or(|c| c.epoch <= configuration.epoch) {
                    self.configuration = Some(configuration);
                }
                if last < self.claim {
                    self.void(last.next());
                }
                self.claim = last;
                self.uncertain = None;
            }
            Content::Reset { base } => {
                self.index.void(Lsn(0));
                *self = Replay {
                    configuration: self.configuration.take(),
                    claim: base.lsn,
                    awaits_copy: Some(base.lsn),
                    stream: self.stream,
                    ..Replay::default()
                };
            }
        }
        self.advance();
    }

    fn void(&mut self, from: Lsn) {
        if self.pending.last_key_value().is_some_and(|(last, _)| *last >= from) {
            self.pending.split_off(&from);
        }
        self.index.void(from);
        if from <= self.applied.lsn && from > self.base.lsn {
            self.fault = Some(format!(
                "its log takes back the record with LSN {from}, which it said was committed: the log is not to be trusted"
            ));
        }
    }

    /// Brings what is known to be committed into the table.
    fn advance(&mut self) {
        while self.awaits_copy.is_none()
            && self.applied.lsn < self.committed
            && let Some(record) = self.pending.remove(&self.applied.lsn.next())
        {
            let lsn = record.position.lsn;
            match Effect::decode(&record.payload).expect("effects are checked when an entry is read") {
                Effect::Put { key, content_type, value, expires } => {
                    self.table.put_if_newer(key, table::Entry { lsn, expires, content_type, value });
                }
                Effect::Delete { key } => self.table.remove_if_older(lsn, key),
            }
            self.applied = record.position;
            self.check_proof();
        }
    }

    /// At the end of its checkpoint the table has the digest that the checkpoint says.
    fn check_proof(&mut self) {
        if let Some(proof) = self.proof.take_if(|p| p.end <= self.applied.lsn)
            && self.table.digest() != proof.digest
        {
            self.fault = Some("its checkpoint and log do not make the table that they say".to_owned());
        }
    }

    fn finish(mut self) -> Partition {
        self.check_proof();
        let mut tail: Vec<Record> = Vec::new();
        let mut last = self.applied;
        while let Some(record) = self.pending.remove(&last.lsn.next()) {
            last = record.position;
            tail.push(record);
        }
        let sentence = |what: String| format!("{what}; nothing was removed, and nothing of it is served");
        let fault = match (self.fault, self.proof) {
            (Some(fault), _) => Some(fault),
            _ if self.awaits_copy.is_some() => {
                Some(sentence("the copy of its table from another replica was not completed".to_owned()))
            }
            (None, Some(proof)) => Some(sentence(format!(
                "its log ends at LSN {} and does not reach LSN {}, the end of its checkpoint",
                last.lsn, proof.end
            ))),
            _ if last.lsn < self.claim || !self.pending.is_empty() => Some(sentence(format!(
                "its log has a gap behind LSN {}, though records up to LSN {} were written",
                last.lsn, self.claim
            ))),
            _ if self.configuration.as_ref().is_none_or(|c| c.epoch < last.epoch) => {
                Some(sentence("its log has records of an epoch without the configuration of it".to_owned()))
            }
            _ => self.uncertain.map(|what| sentence(format!("{what}, and may have been its own"))),
        };
        if fault.is_some() {
            (self.table, tail) = (Table::default(), Vec::new());
        }
        let restored = Restored { configuration: self.configuration, applied: self.applied, tail, fault };
        Partition { table: self.table, restored, released: self.base, index: self.index }
    }
}
