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

#[cfg(test)]
mod tests {
    use super::super::StreamId;
    use super::*;

    fn segment(number: u64) -> SegmentId {
        SegmentId { stream: StreamId { generation: 1, executor: 0 }, number }
    }

    fn place(number: u64, first: u64, last: u64) -> Place {
        Place { segment: segment(number), offset: 4096, first: Lsn(first), last: Lsn(last) }
    }

    fn index(places: &[(u64, u64, u64)]) -> Index {
        let mut index = Index::default();
        places.iter().for_each(|(number, first, last)| index.push(place(*number, *first, *last)));
        index
    }

    fn found(index: &Index, from: u64) -> Vec<(u64, u64, u64)> {
        let found = index.find(Lsn(from), usize::MAX);
        found.iter().map(|p| (p.segment.number, p.first.0, p.last.0)).collect()
    }

    #[test]
    fn leads_to_the_batches_by_their_records() {
        let index = index(&[(1, 1, 5), (2, 6, 9), (3, 10, 10), (4, 2, 3)]);
        assert_eq!(found(&index, 1), [(1, 1, 5), (4, 2, 3), (2, 6, 9), (3, 10, 10)]);
        assert_eq!(found(&index, 5), [(1, 1, 5), (2, 6, 9), (3, 10, 10)]);
        assert_eq!(found(&index, 11), []);
        assert_eq!(index.find(Lsn(4), 2), [place(1, 1, 5), place(2, 6, 9)]);
    }

    #[test]
    fn forgets_what_is_void_released_or_gone() {
        let mut index = index(&[(1, 1, 5), (2, 6, 9), (3, 10, 12)]);
        index.void(Lsn(8));
        assert_eq!(found(&index, 1), [(1, 1, 5), (2, 6, 7)]);
        index.push(place(4, 8, 9));
        index.release(Lsn(5));
        assert_eq!(found(&index, 1), [(2, 6, 7), (4, 8, 9)]);
        index.forget(&[segment(2), segment(3)]);
        assert_eq!((found(&index, 1), index.len()), (vec![(4, 8, 9)], 1));
        index.void(Lsn(0));
        assert!(index.is_empty());
    }

    #[test]
    fn records_of_a_batch_are_one_place_unless_others_are_void_between() {
        let mut index = Index::default();
        for lsn in [4, 5, 6] {
            index.add(segment(1), 4096, Lsn(lsn));
        }
        index.void(Lsn(5));
        index.add(segment(1), 4096, Lsn(5));
        index.add(segment(1), 8192, Lsn(6));
        assert_eq!(found(&index, 1), [(1, 4, 5), (1, 6, 6)]);
        index.void(Lsn(4));
        index.add(segment(1), 8192, Lsn(4));
        assert_eq!(found(&index, 1), [(1, 4, 4)]);
    }
}
