//! Where the records of each partition stand, so that reading them does not read those of others.

use super::SegmentId;
use kv_proto::ids::Lsn;
use std::collections::VecDeque;

/// A batch that has records of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// Where the batch begins in it.
    pub offset: u64,
    /// The least LSN of the partition's records in it.
    pub first: Lsn,
    /// The greatest.
    pub last: Lsn,
}

/// The batches that have records of one partition, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    places: VecDeque<Place>,
}

impl Index {
    /// A batch with records was written.
    pub fn push(&mut self, place: Place) {
        self.places.push_back(place);
    }

    /// A batch has this record.
    pub fn add(&mut self, segment: SegmentId, offset: u64, lsn: Lsn) {
        match self.places.back_mut() {
            Some(place) if (place.segment, place.offset) == (segment, offset) => {
                (place.first, place.last) = (place.first.min(lsn), place.last.max(lsn));
            }
            _ => self.places.push_back(Place { segment, offset, first: lsn, last: lsn }),
        }
    }

    /// What was written before with this LSN or a greater one is void.
    pub fn void(&mut self, from: Lsn) {
        self.places.retain_mut(|place| {
            place.last = place.last.min(Lsn(from.0.saturating_sub(1)));
            place.first <= place.last
        });
    }

    /// Records up to `lsn` are not needed any more.
    pub fn release(&mut self, lsn: Lsn) {
        self.places.retain(|place| place.last > lsn);
    }

    /// These segments are gone.
    pub fn forget(&mut self, segments: &[SegmentId]) {
        self.places.retain(|place| !segments.contains(&place.segment));
    }

    /// The first `batches` of those that have records from `from` on, by their records.
    #[must_use]
    pub fn find(&self, from: Lsn, batches: usize) -> Vec<Place> {
        let mut found: Vec<Place> = self.places.iter().filter(|p| p.last >= from).copied().collect();
        // What was copied forward stands behind what follows it.
        found.sort_by_key(|p| p.first);
        found.truncate(batches);
        found
    }

    /// How many batches have records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
