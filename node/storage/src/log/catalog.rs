//! Which segments there are, and which partitions still need them.
//!
//! # Invariants
//! * A segment is let go only when every record in it is in a published checkpoint or was copied forward, and the state of
//!   every partition in it stands in a younger segment on disk.
//! * Segments of a stream are let go from the oldest on, so that a number that is missing between two others is damage.
//! * What is kept for other replicas is kept on top of that, as far as there is room for it: who does not find it gets a
//!   copy of the table.
//! * A reset stays as long as any record, reset or state that it makes void: a checkpoint says nothing of those, what their
//!   log said to be committed may be of another history, and a state may say that the partition is faulty.

use super::{SegmentId, writer::Sealed};
use kv_proto::ids::{Lsn, PartitionId};
use std::collections::{BTreeMap, BTreeSet};

/// The segments of a node.
#[derive(Debug, Default)]
pub struct Catalog {
    segments: BTreeMap<SegmentId, Segment>,
    needs: BTreeMap<PartitionId, Need>,
    /// How many segments were sealed so far: their age.
    sealed: u64,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: u64,
    /// By partition with records in it: the greatest LSN.
    last: BTreeMap<PartitionId, Lsn>,
    /// The partitions that were reset in it.
    resets: BTreeMap<PartitionId, Lsn>,
    /// Of an earlier generation: partitions whose states stand here, and may stand nowhere else.
    states: BTreeSet<PartitionId>,
    /// When it was sealed; `None` while it is written to.
    age: Option<u64>,
}

#[derive(Debug, Default)]
struct Need {
    /// Records up to here are not needed in the log.
    released: Lsn,
    /// Records that were copied forward, from segments up to and including this age.
    copied: Option<u64>,
    /// Whether its state is on disk in this generation.
    adopted: bool,
    /// It is faulty: what it needs stays, and nobody can make that less.
    held: bool,
    /// Other replicas are to be sent its records from here on.
    sends_from: Option<Lsn>,
}

impl Catalog {
    /// A segment is written to from now on.
    pub fn open(&mut self, id: SegmentId, bytes: u64) {
        self.segments.insert(id, Segment { bytes, ..Segment::default() });
    }

    /// A segment is full, or of an earlier generation. `states` are the partitions whose states may stand nowhere else.
    pub fn seal(&mut self, sealed: Sealed, bytes: u64, states: BTreeSet<PartitionId>) {
        for (partition, base) in &sealed.resets {
            // What was released may be of what is void now, as is everything in older segments.
            let need = self.needs.entry(*partition).or_default();
            (need.released, need.copied) = (need.released.min(*base), need.copied.max(Some(self.sealed)));
        }
        self.sealed += 1;
        let segment = Segment { bytes, last: sealed.last, resets: sealed.resets, states, age: Some(self.sealed) };
        self.segments.insert(sealed.id, segment);
    }

    /// The records of a partition from this one on are void, in all segments: nobody needs them.
    pub fn void(&mut self, partition: PartitionId, from: Lsn) {
        for segment in self.segments.values_mut() {
            if let Some(last) = segment.last.get_mut(&partition) {
                *last = (*last).min(Lsn(from.0.saturating_sub(1)));
            }
        }
    }

    /// The state of a partition is on disk in this generation.
    pub fn adopt(&mut self, partition: PartitionId) {
        self.needs.entry(partition).or_default().adopted = true;
    }

    /// A checkpoint of a partition is published, which holds its records up to `lsn`.
    pub fn release(&mut self, partition: PartitionId, lsn: Lsn) {
        let need = self.needs.entry(partition).or_default();
        need.released = need.released.max(lsn);
    }

    /// A partition was reset, on disk: nothing that stands in the sealed segments is needed, and what it needs from now on
    /// counts, faulty or not before.
    pub fn free(&mut self, partition: PartitionId, base: Lsn) {
        self.void(partition, Lsn(0));
        let need = self.needs.entry(partition).or_default();
        (need.held, need.released) = (false, base);
    }

    /// The records of a partition in the segments up to this age are on disk in younger ones too: all that are not void, and
    /// only what is committed can be copied.
    pub fn copied(&mut self, partition: PartitionId, age: u64) {
        let need = self.needs.entry(partition).or_default();
        need.copied = need.copied.max(Some(age));
    }

    /// A partition is faulty: its segments stay, and count no more.
    pub fn hold(&mut self, partition: PartitionId) {
        self.needs.entry(partition).or_default().held = true;
    }

    /// Other replicas are to be sent the records of a partition from here on, or none.
    pub fn keep_from(&mut self, partition: PartitionId, from: Option<Lsn>) {
        if from.is_some() || self.needs.contains_key(&partition) {
            self.needs.entry(partition).or_default().sends_from = from;
        }
    }

    /// Bytes of all segments, without those that stay for faulty partitions or only for other replicas.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let sent: u64 = self.sent().map(|(_, s)| s.bytes).sum();
        self.segments.values().filter(|s| !self.is_held(s)).map(|s| s.bytes).sum::<u64>() - sent
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum()
    }

    fn is_held(&self, segment: &Segment) -> bool {
        self.pins(segment).any(|(id, _)| self.needs.get(&id).is_some_and(|n| n.held))
    }

    /// Who needs a segment, and up to which record.
    fn pins(&self, segment: &Segment) -> impl Iterator<Item = (PartitionId, Lsn)> {
        let need = |partition: &PartitionId| self.needs.get(partition);
        let records = segment.last.iter().filter(move |(partition, last)| {
            need(partition).is_none_or(|n| n.released < **last && n.copied < segment.age)
        });
        let states = segment.states.iter().filter(move |partition| need(partition).is_none_or(|n| !n.adopted));
        records.map(|(partition, last)| (*partition, *last)).chain(states.map(|partition| (*partition, Lsn(0))))
    }

    /// Whether it has a reset, and an older one has what this makes void.
    fn is_shield(&self, id: SegmentId, segment: &Segment) -> bool {
        let has = |s: &Segment, partition| {
            s.last.contains_key(partition) || s.resets.contains_key(partition) || s.states.contains(partition)
        };
        let older = |partition| self.segments.range(..id).any(|(_, s)| has(s, partition));
        segment.resets.keys().any(older)
    }

    /// Whether nobody here needs a sealed segment.
    fn is_free(&self, id: SegmentId, segment: &Segment) -> bool {
        segment.age.is_some() && self.pins(segment).next().is_none() && !self.is_shield(id, segment)
    }

    /// Whether other replicas are to be sent something of it.
    fn is_to_be_sent(&self, segment: &Segment) -> bool {
        let from = |partition| self.needs.get(partition)?.sends_from;
        segment.last.iter().any(|(partition, last)| from(partition).is_some_and(|from| *last >= from))
    }

    /// The segments at the beginning of each stream that nobody here needs: once the others are let go, those that are kept for
    /// other replicas, and what is younger in their streams.
    fn sent(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        let mut needed = None;
        self.segments.iter().filter_map(move |(id, segment)| {
            let free = needed != Some(id.stream) && self.is_free(*id, segment);
            if !free {
                needed = Some(id.stream);
            }
            free.then_some((*id, segment))
        })
    }

    /// The oldest sealed segment of each stream, of those behind what is kept only for other replicas.
    fn fronts(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        let mut stream = None;
        self.segments.iter().filter_map(move |(id, segment)| {
            let front = stream != Some(id.stream) && !self.is_free(*id, segment);
            if front {
                stream = Some(id.stream);
            }
            (front && segment.age.is_some()).then_some((*id, segment))
        })
    }

    /// The oldest sealed segment that somebody needs who can do something about it: its age, and who needs it, up to
    /// which record.
    #[must_use]
    pub fn oldest(&self) -> Option<(u64, Vec<(PartitionId, Lsn)>)> {
        let (_, oldest) = self.fronts().filter(|(_, s)| !self.is_held(s)).min_by_key(|(_, s)| s.age)?;
        Some((oldest.age?, self.pins(oldest).collect()))
    }

    /// Lets go of the segments that nobody needs. Of those that are kept only for other replicas, as many stay as have
    /// `max_sent` bytes in all, the youngest.
    pub fn take_unneeded(&mut self, max_sent: u64) -> Vec<(SegmentId, u64)> {
        let mut unneeded = Vec::new();
        loop {
            let next = self.unneeded(max_sent);
            if next.is_empty() {
                return unneeded;
            }
            // A reset may have stayed for the sake of one of these.
            next.iter().for_each(|(id, _)| drop(self.segments.remove(id)));
            unneeded.extend(next);
        }
    }

    fn unneeded(&self, max_sent: u64) -> Vec<(SegmentId, u64)> {
        let (mut unneeded, mut stream) = (Vec::new(), None);
        let mut kept: Vec<(Option<u64>, SegmentId, u64)> = Vec::new();
        for (id, segment) in self.sent() {
            if stream != Some(id.stream) && !self.is_to_be_sent(segment) {
                unneeded.push((id, segment.bytes));
            } else {
                stream = Some(id.stream);
                kept.push((segment.age, id, segment.bytes));
            }
        }
        kept.sort_unstable();
        let mut bytes: u64 = kept.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, id, of) in kept {
            if bytes > max_sent {
                bytes -= of;
                unneeded.push((id, of));
            }
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use super::super::StreamId;
    use super::*;

    fn id(generation: u64, executor: u16, number: u64) -> SegmentId {
        SegmentId { stream: StreamId { generation, executor }, number }
    }

    fn sealed(id: SegmentId, last: &[(u16, u64)]) -> Sealed {
        let last = last.iter().map(|(p, l)| (PartitionId(*p), Lsn(*l))).collect();
        Sealed { id, last, resets: BTreeMap::new() }
    }

    #[test]
    fn what_a_faulty_partition_needs_stays_and_stands_in_nobodys_way() {
        let mut catalog = Catalog::default();
        catalog.seal(sealed(id(1, 0, 1), &[(0, 5), (1, 2)]), 10, BTreeSet::new());
        catalog.seal(sealed(id(2, 0, 1), &[(0, 9)]), 10, BTreeSet::new());
        catalog.hold(PartitionId(1));
        assert_eq!(catalog.bytes(), 10);
        assert_eq!(catalog.oldest(), Some((2, vec![(PartitionId(0), Lsn(9))])));
        catalog.release(PartitionId(0), Lsn(9));
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(2, 0, 1), 10)]);
    }

    #[test]
    fn segments_go_from_the_oldest_on_when_nobody_needs_them() {
        let mut catalog = Catalog::default();
        catalog.seal(sealed(id(1, 0, 1), &[(0, 5), (1, 2)]), 10, BTreeSet::from([PartitionId(2)]));
        catalog.seal(sealed(id(2, 0, 1), &[(0, 9)]), 10, BTreeSet::new());
        catalog.seal(sealed(id(2, 0, 2), &[]), 10, BTreeSet::new());
        catalog.open(id(2, 0, 3), 10);
        assert_eq!(catalog.bytes(), 40);
        let needed = [(0, 5), (1, 2), (2, 0)].map(|(p, l)| (PartitionId(p), Lsn(l)));
        assert_eq!(catalog.oldest(), Some((1, needed.to_vec())));
        catalog.release(PartitionId(0), Lsn(5));
        catalog.copied(PartitionId(1), 1);
        assert_eq!(catalog.take_unneeded(u64::MAX), [], "partition 2 has its state nowhere else");
        catalog.adopt(PartitionId(2));
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(1, 0, 1), 10)]);
        catalog.release(PartitionId(0), Lsn(8));
        assert_eq!(catalog.take_unneeded(u64::MAX), [], "nothing of a stream goes before what is older");
        catalog.release(PartitionId(0), Lsn(9));
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(2, 0, 1), 10), (id(2, 0, 2), 10)]);
        assert_eq!(catalog.bytes(), 10, "what is written to stays");
        assert_eq!(catalog.oldest(), None);
    }

    #[test]
    fn what_others_are_to_be_sent_stays_as_long_as_there_is_room_for_it() {
        let mut catalog = Catalog::default();
        catalog.seal(sealed(id(1, 0, 1), &[(0, 5)]), 10, BTreeSet::new());
        catalog.seal(sealed(id(1, 1, 1), &[(1, 5)]), 10, BTreeSet::new());
        catalog.seal(sealed(id(1, 0, 2), &[(0, 9)]), 10, BTreeSet::new());
        catalog.seal(sealed(id(1, 0, 3), &[(2, 7)]), 10, BTreeSet::new());
        catalog.keep_from(PartitionId(0), Some(Lsn(6)));
        catalog.keep_from(PartitionId(1), Some(Lsn(5)));
        catalog.release(PartitionId(0), Lsn(9));
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(1, 0, 1), 10)]);
        assert_eq!(catalog.bytes(), 20, "what is kept for others does not count");
        catalog.release(PartitionId(1), Lsn(5));
        assert_eq!((catalog.take_unneeded(20), catalog.bytes()), (vec![], 10));
        let needed = Some((4, vec![(PartitionId(2), Lsn(7))]));
        assert_eq!(catalog.oldest(), needed, "nobody here can do anything about the older ones");
        catalog.keep_from(PartitionId(0), None);
        assert_eq!(catalog.take_unneeded(20), [(id(1, 0, 2), 10)]);
        catalog.release(PartitionId(2), Lsn(7));
        catalog.keep_from(PartitionId(2), Some(Lsn(1)));
        assert_eq!(catalog.take_unneeded(19), [(id(1, 1, 1), 10)], "the oldest go first");
        assert_eq!((catalog.take_unneeded(0), catalog.bytes()), (vec![(id(1, 0, 3), 10)], 0));
    }

    #[test]
    fn what_was_reset_needs_nothing_older_faulty_or_not() {
        let mut catalog = Catalog::default();
        catalog.hold(PartitionId(0));
        catalog.release(PartitionId(0), Lsn(2));
        catalog.seal(sealed(id(1, 0, 1), &[(0, 5)]), 10, BTreeSet::new());
        assert_eq!(catalog.take_unneeded(0), []);
        catalog.free(PartitionId(0), Lsn(3));
        catalog.seal(sealed(id(1, 0, 2), &[(0, 4)]), 10, BTreeSet::new());
        assert_eq!(catalog.take_unneeded(0), [(id(1, 0, 1), 10)]);
        assert_eq!(catalog.oldest(), Some((2, vec![(PartitionId(0), Lsn(4))])));
    }

    #[test]
    fn nobody_needs_what_is_void() {
        let mut catalog = Catalog::default();
        catalog.seal(sealed(id(1, 0, 1), &[(0, 9)]), 10, BTreeSet::new());
        catalog.release(PartitionId(0), Lsn(5));
        assert_eq!(catalog.take_unneeded(u64::MAX), []);
        catalog.void(PartitionId(0), Lsn(6));
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(1, 0, 1), 10)]);
    }

    #[test]
    fn a_reset_stays_as_long_as_what_it_makes_void() {
        let mut catalog = Catalog::default();
        catalog.release(PartitionId(0), Lsn(200));
        catalog.seal(sealed(id(1, 0, 1), &[(0, 300), (1, 2)]), 10, BTreeSet::new());
        catalog.open(id(2, 0, 1), 10);
        let resets = BTreeMap::from([(PartitionId(0), Lsn(100))]);
        catalog.seal(Sealed { resets, ..sealed(id(2, 0, 1), &[(0, 150)]) }, 10, BTreeSet::new());
        catalog.open(id(2, 0, 2), 10);
        assert_eq!(catalog.oldest(), Some((1, vec![(PartitionId(1), Lsn(2))])), "what was reset needs nothing older");
        catalog.release(PartitionId(0), Lsn(160));
        assert_eq!(catalog.take_unneeded(u64::MAX), []);
        catalog.copied(PartitionId(1), 1);
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(1, 0, 1), 10), (id(2, 0, 1), 10)]);
    }

    /// Without the reset, a state that says that the partition is faulty would count again.
    #[test]
    fn a_reset_stays_as_long_as_a_state_that_it_makes_void() {
        let mut catalog = Catalog::default();
        catalog.seal(sealed(id(1, 0, 1), &[(1, 2)]), 10, BTreeSet::from([PartitionId(0)]));
        catalog.adopt(PartitionId(0));
        let resets = BTreeMap::from([(PartitionId(0), Lsn(100))]);
        catalog.seal(Sealed { resets, ..sealed(id(2, 0, 1), &[]) }, 10, BTreeSet::new());
        assert_eq!(catalog.take_unneeded(u64::MAX), []);
        catalog.copied(PartitionId(1), 1);
        assert_eq!(catalog.take_unneeded(u64::MAX), [(id(1, 0, 1), 10), (id(2, 0, 1), 10)]);
    }
}
