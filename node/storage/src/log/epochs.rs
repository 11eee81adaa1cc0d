//! Where the log of a partition ends, and of which epochs its last records are.
//!
//! An LSN alone does not say which record is meant: one that was cut has its LSN again in another epoch. A position does, and all
//! records before it: one record stands at each (epoch, LSN), and what a log has before it is the same wherever it stands.
//!
//! # Invariants
//! * Runs of an epoch are kept by the LSN of their first record, and both grow.

use kv_proto::{
    ids::{Epoch, Lsn},
    replication::Position,
};

/// The end of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    last: Lsn,
    /// By the first record of each run: its epoch.
    runs: Vec<Position>,
}

impl Epochs {
    /// A log whose last record is this one; of those before it nothing is known.
    #[must_use]
    pub fn at(last: Position) -> Self {
        let runs = if last.lsn == Lsn(0) { Vec::new() } else { vec![last] };
        Epochs { last: last.lsn, runs }
    }

    /// The last record's LSN.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// The last record; in epoch 0 if its epoch is not known.
    #[must_use]
    pub fn last(&self) -> Position {
        Position { epoch: self.epoch_at(self.last).unwrap_or_default(), lsn: self.last }
    }

    /// The epoch of a record, if it is known. Before the first record it is 0.
    #[must_use]
    pub fn epoch_at(&self, lsn: Lsn) -> Option<Epoch> {
        if lsn == Lsn(0) {
            return Some(Epoch(0));
        }
        let run = self.runs.iter().rev().find(|run| run.lsn <= lsn);
        run.filter(|_| lsn <= self.last).map(|run| run.epoch)
    }

    /// A record is appended; what stood at its LSN and behind is void.
    pub fn push(&mut self, position: Position) {
        self.cut(position.lsn);
        if self.runs.last().is_none_or(|run| run.epoch != position.epoch) {
            self.runs.push(position);
        }
        self.last = position.lsn;
    }

    /// What stands at `from` and behind is void.
    pub fn cut(&mut self, from: Lsn) {
        while self.runs.pop_if(|run| run.lsn >= from).is_some() {}
        self.last = self.last.min(Lsn(from.0.saturating_sub(1)));
    }

    /// The epochs of records before `lsn` are not needed any more: nothing is cut there.
    pub fn forget_before(&mut self, lsn: Lsn) {
        let needed = self.runs.iter().rposition(|run| run.lsn <= lsn).unwrap_or(0);
        self.runs.drain(..needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, lsn: u64) -> Position {
        Position { epoch: Epoch(epoch), lsn: Lsn(lsn) }
    }

    #[test]
    fn knows_the_epochs_of_what_is_not_void() {
        let mut epochs = Epochs::default();
        assert_eq!((epochs.last(), epochs.epoch_at(Lsn(0)), epochs.epoch_at(Lsn(1))), (at(0, 0), Some(Epoch(0)), None));
        for position in [at(1, 1), at(1, 2), at(2, 3), at(2, 4), at(3, 4)] {
            epochs.push(position);
        }
        assert_eq!(epochs.last(), at(3, 4));
        let found = [1, 2, 3, 4, 5].map(|lsn| epochs.epoch_at(Lsn(lsn)).map(|e| e.0));
        assert_eq!(found, [Some(1), Some(1), Some(2), Some(3), None]);
        epochs.cut(Lsn(3));
        assert_eq!(epochs.last(), at(1, 2));
        epochs.cut(Lsn(9));
        assert_eq!(epochs.last(), at(1, 2));
        epochs.push(at(4, 3));
        epochs.forget_before(Lsn(2));
        assert_eq!((epochs.epoch_at(Lsn(2)), epochs.epoch_at(Lsn(3))), (Some(Epoch(1)), Some(Epoch(4))));
        epochs.forget_before(Lsn(3));
        assert_eq!((epochs.epoch_at(Lsn(2)), epochs.last()), (None, at(4, 3)));
    }

    #[test]
    fn what_was_not_seen_has_no_known_epoch() {
        let mut epochs = Epochs::at(at(2, 10));
        assert_eq!((epochs.epoch_at(Lsn(9)), epochs.last()), (None, at(2, 10)));
        epochs.cut(Lsn(10));
        assert_eq!(epochs.last(), at(0, 9));
        epochs.cut(Lsn(1));
        assert_eq!(epochs.last(), at(0, 0));
    }
}
