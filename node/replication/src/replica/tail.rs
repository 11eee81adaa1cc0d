//! The end of a partition's log that a replica holds in memory: what is not yet applied, or not yet at every
//! follower.
//!
//! # Invariants
//! * LSNs are dense: the first record follows `base`, each other record its predecessor.
//! * Epochs never decrease from record to record.

use kv_proto::{
    ids::Lsn,
    replication::{Position, Record},
};
use std::collections::VecDeque;

/// Records after a base position that is known but no longer held.
#[derive(Debug, Default)]
pub(super) struct Tail {
    base: Position,
    records: VecDeque<Record>,
    bytes: usize,
}

impl Tail {
    /// Nothing held, after `base`.
    pub(super) fn new(base: Position) -> Self {
        Tail { base, ..Tail::default() }
    }

    /// Position of the last record, held or not.
    pub(super) fn last(&self) -> Position {
        self.records.back().map_or(self.base, |r| r.position)
    }

    /// Position before the first record held.
    pub(super) fn base(&self) -> Position {
        self.base
    }

    /// Records held.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Bytes of the payloads held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the record that follows the last.
    ///
    /// # Panics
    /// When it does not: the caller has to check before.
    pub(super) fn push(&mut self, record: Record) {
        let last = self.last();
        assert!(
            record.position.lsn == last.lsn.next() && record.position.epoch >= last.epoch,
            "record {} does not follow {last}",
            record.position
        );
        self.bytes += record.payload.len();
        self.records.push_back(record);
    }

    /// The record at `lsn`, if it is held.
    pub(super) fn get(&self, lsn: Lsn) -> Option<&Record> {
        let index = lsn.0.checked_sub(self.base.lsn.0 + 1)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    /// The position at `lsn`, if it is known: that of the base or of a record held.
    pub(super) fn position_at(&self, lsn: Lsn) -> Option<Position> {
        if lsn == self.base.lsn { Some(self.base) } else { self.get(lsn).map(|r| r.position) }
    }

    /// The records after `lsn`, which is known, in order.
    pub(super) fn after(&self, lsn: Lsn) -> impl Iterator<Item = &Record> {
        let held = usize::try_from(lsn.0.saturating_sub(self.base.lsn.0)).unwrap_or(usize::MAX);
        self.records.range(held.min(self.records.len())..)
    }

    /// Lets go of the records from `lsn` on, which are void; what is not held stays.
    pub(super) fn cut(&mut self, lsn: Lsn) {
        while self.records.back().is_some_and(|r| r.position.lsn >= lsn) {
            let record = self.records.pop_back().expect("there is a last record");
            self.bytes -= record.payload.len();
        }
    }

    /// Lets go of the records up to `lsn`; of those that are not held, nothing happens.
    pub(super) fn release(&mut self, lsn: Lsn) {
        while self.records.front().is_some_and(|r| r.position.lsn <= lsn) {
            let record = self.records.pop_front().expect("there is a first record");
            self.bytes -= record.payload.len();
            self.base = record.position;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::Epoch;

    fn record(epoch: u64, lsn: u64) -> Record {
        let position = Position { epoch: Epoch(epoch), lsn: Lsn(lsn) };
        Record { position, operation_id: None, payload: vec![0; 10].into() }
    }

    #[test]
    fn positions_outlive_their_records_by_one() {
        let mut tail = Tail::default();
        for (epoch, lsn) in [(1, 1), (1, 2), (3, 3)] {
            tail.push(record(epoch, lsn));
        }
        assert_eq!((tail.len(), tail.bytes()), (3, 30));
        tail.release(Lsn(2));
        assert_eq!(tail.base(), record(1, 2).position);
        assert_eq!(tail.position_at(Lsn(1)), None);
        assert_eq!(tail.position_at(Lsn(2)), Some(record(1, 2).position));
        assert_eq!(tail.get(Lsn(2)), None);
        assert_eq!(tail.get(Lsn(3)), Some(&record(3, 3)));
        tail.release(Lsn(9));
        assert_eq!((tail.len(), tail.bytes(), tail.last()), (0, 0, record(3, 3).position));
    }

    #[test]
    fn what_is_cut_makes_room_for_others() {
        let mut tail = Tail::new(record(1, 4).position);
        for (epoch, lsn) in [(1, 5), (1, 6), (1, 7)] {
            tail.push(record(epoch, lsn));
        }
        tail.cut(Lsn(6));
        tail.push(record(2, 6));
        assert_eq!((tail.bytes(), tail.last()), (20, record(2, 6).position));
        assert_eq!(tail.after(Lsn(5)).collect::<Vec<_>>(), [&record(2, 6)]);
        assert_eq!(tail.after(Lsn(4)).count() + tail.after(Lsn(6)).count() + tail.after(Lsn(9)).count(), 2);
        tail.cut(Lsn(1));
        assert_eq!((tail.bytes(), tail.last()), (0, record(1, 4).position));
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_gap_is_never_stored() {
        Tail::default().push(record(1, 2));
    }
}
