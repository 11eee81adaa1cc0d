//! What of a replica's appended entries is on disk.
//!
//! The log flushes entries in the order in which they were appended and says how many. What that means for the
//! records depends on the cuts among them: a record that was flushed and is void by now counts for nothing.
//!
//! # Invariants
//! * `flushed` is never more than the last record that is not void.
//! * The epoch on disk never goes back.

use kv_proto::ids::{Epoch, Lsn};
use std::collections::VecDeque;

/// Appended entries that are not on disk, and what is there.
#[derive(Debug)]
pub(super) struct FlushQueue {
    /// Entries appended since the replica was made, and how many of them are on disk.
    appended: u64,
    done: u64,
    /// What the entries that are not on disk will bring, by the entry's number.
    marks: VecDeque<(u64, Mark)>,
    flushed: Lsn,
    epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Record(Lsn),
    Epoch(Epoch),
}

impl FlushQueue {
    /// With everything up to `flushed` on disk, and `epoch` as the newest that is.
    pub(super) fn new(flushed: Lsn, epoch: Epoch) -> Self {
        FlushQueue { appended: 0, done: 0, marks: VecDeque::new(), flushed, epoch }
    }

    /// Every record up to here is on disk and not void.
    pub(super) fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// The newest epoch that is on disk.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A record was appended.
    pub(super) fn push_record(&mut self, lsn: Lsn) {
        self.appended += 1;
        self.marks.push_back((self.appended, Mark::Record(lsn)));
    }

    /// An epoch was appended.
    pub(super) fn push_epoch(&mut self, epoch: Epoch) {
        self.appended += 1;
        self.marks.push_back((self.appended, Mark::Epoch(epoch)));
    }

    /// A cut was appended. What it makes void counts for nothing from now on; what is flushed behind it implies that
    /// the cut is flushed too, so it needs no mark.
    pub(super) fn push_cut(&mut self, from: Lsn) {
        self.appended += 1;
        self.marks.retain(|(_, mark)| !matches!(mark, Mark::Record(lsn) if *lsn >= from));
        self.flushed = self.flushed.min(Lsn(from.0 - 1));
    }

    /// A reset was appended, with the epoch that it names if that is a new one. What follows `base` counts on disk as soon
    /// as it is flushed, which the reset is before; whether the table up to `base` is on disk is not said here.
    pub(super) fn push_reset(&mut self, base: Lsn, new_epoch: Option<Epoch>) {
        self.push_cut(Lsn(0).next());
        self.flushed = base;
        self.marks.extend(new_epoch.map(|epoch| (self.appended, Mark::Epoch(epoch))));
    }

    /// The first `entries` entries are on disk.
    ///
    /// # Panics
    /// When these are more than were appended, or fewer than before.
    pub(super) fn handle_flushed(&mut self, entries: u64) {
        assert!(
            self.done <= entries && entries <= self.appended,
            "the log flushed {entries} entries after {}, with {} appended",
            self.done,
            self.appended
        );
        self.done = entries;
        while let Some((_, mark)) = self.marks.pop_front_if(|(entry, _)| *entry <= entries) {
            match mark {
                Mark::Record(lsn) => {
                    assert_eq!(lsn, self.flushed.next(), "records are flushed in their order");
                    self.flushed = lsn;
                }
                Mark::Epoch(epoch) => {
                    assert!(epoch > self.epoch, "epoch {epoch} was written after {}", self.epoch);
                    self.epoch = epoch;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_cut_before_it_was_flushed_raises_nothing() {
        let mut queue = FlushQueue::new(Lsn(2), Epoch(1));
        for lsn in 3..=5 {
            queue.push_record(Lsn(lsn));
        }
        queue.push_epoch(Epoch(2));
        queue.handle_flushed(1);
        assert_eq!((queue.flushed(), queue.epoch()), (Lsn(3), Epoch(1)));
        queue.push_cut(Lsn(3));
        assert_eq!(queue.flushed(), Lsn(2));
        queue.push_record(Lsn(3));
        queue.handle_flushed(3);
        assert_eq!((queue.flushed(), queue.epoch()), (Lsn(2), Epoch(1)));
        queue.handle_flushed(4);
        assert_eq!((queue.flushed(), queue.epoch()), (Lsn(2), Epoch(2)));
        queue.handle_flushed(5);
        assert_eq!(queue.flushed(), Lsn(2), "the cut alone is on disk");
        queue.handle_flushed(6);
        assert_eq!(queue.flushed(), Lsn(3));
    }

    #[test]
    #[should_panic(expected = "flushed 2 entries after 0, with 1 appended")]
    fn what_was_not_appended_is_not_flushed() {
        let mut queue = FlushQueue::new(Lsn(0), Epoch(0));
        queue.push_record(Lsn(1));
        queue.handle_flushed(2);
    }
}
