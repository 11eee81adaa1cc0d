//! The history of one key whose values are unique: what every client asked, what it was answered, and whether one register can
//! have given these answers.
//!
//! Values have numbers, and no two writes of a key have the same. A write whose client does not know what became of it stands
//! in the history without a return ([`History::in_doubt`]); a write that was certainly not applied stays out of it
//! ([`History::refused`]).
//!
//! # A history that is cut off
//! A history takes a bounded number of operations. Let T be the time of the first call that it did not take and that may change
//! the register: then all that it lacks are reads, which nobody else sees, and calls at T or later. What returned before T is
//! judged as it is. Of what returned at T or later, or not at all, reads and refused conditional writes are left out, and
//! everything that changes the register counts as without a return, so that it may have happened or not.
//!
//! That accuses nobody wrongly: let the whole history have an order, with a moment for each operation between its call and its
//! return, and take what has its moment before T, in this order. All of that was recorded but for reads, since what was not is
//! called at T or later. All that returned before T is in it. What else is in it returned at T or later: what changes the
//! register has its place there, with the answer that it gave, conditional writes and deletes too, because nothing before it is
//! missing; reads and refusals can be taken out, because they change nothing. The rest has no return and need not have happened.
//! So the history that is judged has an order. Times that are equal count as overlapping, here by taking a return at T for a late
//! one.

use crate::{
    judged::{self, State},
    linear::{Found, Operation, search},
    offence::Offence,
};

/// The number of the value that a key has; `None` if it has no value.
pub type Held = Option<u64>;

/// What a key has before anything is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// No value.
    Absent,
    /// The value with this number.
    Holds(u64),
    /// An earlier program's value or none: whatever is seen first, but no value of this history.
    Unknown,
}

/// What an operation did and what it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A read found this; so did a delete or a conditional write that was answered that there is nothing.
    Read(Held),
    /// A write of a value that no other write has.
    Write(u64),
    /// A delete, and whether it says that there was something; `None` if it does not say.
    Delete {
        /// Whether there was a value.
        found: Option<bool>,
    },
    /// A conditional write that took the place of the value which its client had read.
    Swap {
        /// The value that it replaced.
        expected: u64,
        /// The value that it wrote, which no other write has.
        new: u64,
    },
    /// A conditional write that was refused, since the key did not have this value.
    Mismatch {
        /// What its client had read.
        expected: u64,
    },
}

impl Action {
    /// The number of the value that it writes.
    pub(crate) fn writes(self) -> Option<u64> {
        match self {
            Action::Write(new) | Action::Swap { new, .. } => Some(new),
            Action::Read(_) | Action::Delete { .. } | Action::Mismatch { .. } => None,
        }
    }

    /// The number of the value that was there, if it says which.
    pub(crate) fn observes(self) -> Option<u64> {
        match self {
            Action::Read(held) => held,
            Action::Swap { expected, .. } => Some(expected),
            Action::Write(_) | Action::Delete { .. } | Action::Mismatch { .. } => None,
        }
    }

    /// Whether it leaves another state than it found.
    pub(crate) fn changes(self) -> bool {
        !matches!(self, Action::Read(_) | Action::Mismatch { .. } | Action::Delete { found: Some(false) })
    }
}

/// An operation of a [`History`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an operation whose ticket is lost counts as in doubt"]
pub struct Ticket(usize);

/// What a check came to that found nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// There is an order.
    Linearizable {
        /// How many operations it has to explain: without those in doubt.
        judged: usize,
    },
    /// The search was given up: so much overlaps that too many orders would have to be tried.
    Undecided,
}

/// What clients asked of one key, and what they were answered. Times are in microseconds, of one clock; a call's is taken
/// before the request is sent, a return's after the answer is there.
#[derive(Clone, Debug)]
pub struct History {
    initial: Initial,
    cap: usize,
    operations: Vec<Recorded>,
    /// The least time of a call that was not taken and that may change the register.
    cut_at: Option<u64>,
    left_out: u64,
}

/// An operation, and whether it is certain that it did nothing.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) operation: Operation<Action>,
    pub(crate) refused: bool,
}

impl History {
    /// Steps of a [`check`](Self::check), each of which may keep about a hundred bytes until it ends.
    pub const STEPS: u64 = 2_000_000;

    /// A history of `cap` operations at most.
    #[must_use]
    pub fn new(initial: Initial, cap: usize) -> Self {
        History { initial, cap, operations: Vec::new(), cut_at: None, left_out: 0 }
    }

    /// A request is about to be sent. `asked` is what it does if it is carried out and no answer comes: a delete with `found:
    /// None`, a conditional write as `Swap`; any `Read` for a read. `None` once the history is full: then all later calls are not
    /// taken either.
    pub fn call(&mut self, at: u64, asked: Action) -> Option<Ticket> {
        if self.operations.len() >= self.cap {
            self.left_out += 1;
            if asked.changes() {
                self.cut_at = Some(self.cut_at.map_or(at, |before| before.min(at)));
            }
            return None;
        }
        self.operations
            .push(Recorded { operation: Operation { called: at, returned: None, what: asked }, refused: false });
        Some(Ticket(self.operations.len() - 1))
    }

    /// It was answered.
    pub fn returned(&mut self, ticket: Ticket, at: u64, action: Action) {
        if let Some(recorded) = self.operations.get_mut(ticket.0) {
            recorded.operation.returned = Some(at);
            recorded.operation.what = action;
        }
    }

    /// It may have been applied, or may be yet.
    pub fn in_doubt(&mut self, ticket: Ticket) {
        // It stands so since its call.
        let Ticket(_) = ticket;
    }

    /// It was certainly not applied, and says nothing of what is there.
    pub fn refused(&mut self, ticket: Ticket) {
        if let Some(recorded) = self.operations.get_mut(ticket.0) {
            recorded.refused = true;
        }
    }

    /// How many operations were taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// How many calls it did not take, as it was full.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether one register can have given these answers.
    ///
    /// # Errors
    /// What cannot have happened.
    pub fn check(&self) -> Result<Checked, Offence> {
        self.check_within(Self::STEPS)
    }

    /// As [`check`](Self::check), with so many steps of the search at most.
    ///
    /// # Errors
    /// What cannot have happened.
    pub fn check_within(&self, steps: u64) -> Result<Checked, Offence> {
        let judged = judged::of(&self.operations, self.cut_at);
        let initial = State::of(self.initial);
        let own = judged::own_values(&self.operations);
        match search(initial, &judged.operations, steps, |state, what| state.after(what, &own)) {
            Found::Order => Ok(Checked::Linearizable { judged: judged.must }),
            Found::Undecided => Ok(Checked::Undecided),
            Found::Stuck(at) => Err(Offence::of(&self.operations, judged.blames[at], self.initial)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Delete, Mismatch, Read, Swap, Write};

    /// What the key has at first; then calls, returns, and what was done.
    type Case<'a> = (Initial, &'a [(u64, u64, Action)]);

    /// A time at which nothing returns.
    const NEVER: u64 = u64::MAX;

    fn history(initial: Initial, cap: usize, operations: &[(u64, u64, Action)]) -> History {
        let mut history = History::new(initial, cap);
        for (called, returned, action) in operations {
            match history.call(*called, *action) {
                Some(ticket) if *returned == NEVER => history.in_doubt(ticket),
                Some(ticket) => history.returned(ticket, *returned, *action),
                None => {}
            }
        }
        history
    }

    const DELETED: Action = Delete { found: Some(true) };
    const NOT_THERE: Action = Delete { found: Some(false) };
    const DELETE: Action = Delete { found: None };

    #[test]
    fn what_one_register_can_have_answered_is_accepted() {
        let good: &[Case<'_>] = &[
            (Initial::Absent, &[]),
            (Initial::Holds(7), &[(1, 2, Read(Some(7))), (3, 4, DELETED), (5, 6, NOT_THERE), (7, 8, Read(None))]),
            (Initial::Unknown, &[(1, 2, Read(Some(99))), (3, 4, Swap { expected: 99, new: 1 }), (5, 6, Read(Some(1)))]),
            (Initial::Unknown, &[(1, 2, DELETED), (3, 4, Read(None))]),
            (Initial::Unknown, &[(1, 2, NOT_THERE), (3, 4, Read(None))]),
            // In doubt, and seen by one of these: a read, a conditional write, a refusal, a delete.
            (Initial::Absent, &[(1, NEVER, Write(1)), (5, 6, Read(None)), (7, 8, Read(Some(1)))]),
            (Initial::Absent, &[(1, NEVER, Write(1)), (5, 6, Swap { expected: 1, new: 2 })]),
            (Initial::Holds(7), &[(1, NEVER, Swap { expected: 7, new: 1 }), (5, 6, Mismatch { expected: 7 })]),
            (Initial::Holds(7), &[(1, NEVER, Write(1)), (5, 6, Mismatch { expected: 7 })]),
            (Initial::Holds(7), &[(1, NEVER, DELETE), (5, 6, Mismatch { expected: 7 })]),
            (Initial::Absent, &[(1, NEVER, Write(1)), (5, 6, DELETED)]),
            (Initial::Holds(7), &[(1, NEVER, DELETE), (5, 6, NOT_THERE), (7, 8, Read(None))]),
            // A chain of conditional writes in doubt, the last of which is seen.
            (
                Initial::Holds(7),
                &[
                    (1, NEVER, Swap { expected: 7, new: 1 }),
                    (2, NEVER, Swap { expected: 1, new: 2 }),
                    (5, 6, Read(Some(7))),
                    (7, 8, Read(Some(2))),
                ],
            ),
        ];
        for (initial, operations) in good {
            let judged = operations.iter().filter(|(_, returned, _)| *returned < NEVER).count();
            let checked = history(*initial, 100, operations).check();
            assert_eq!(checked, Ok(Checked::Linearizable { judged }), "{operations:?}");
        }
    }

    #[test]
    fn what_no_register_can_have_answered_is_not() {
        // The last operation is the one that fits nowhere.
        let bad: &[Case<'_>] = &[
            (Initial::Absent, &[(1, 2, Read(Some(1)))]),
            (Initial::Unknown, &[(1, 2, Write(1)), (3, 4, Read(Some(99)))]),
            (Initial::Unknown, &[(1, 2, Read(None)), (3, 4, Read(Some(99)))]),
            (Initial::Absent, &[(1, 2, Write(1)), (3, 4, Write(2)), (5, 6, Read(Some(1)))]),
            (Initial::Absent, &[(1, 2, Write(1)), (3, 4, NOT_THERE)]),
            (Initial::Absent, &[(1, 2, Write(1)), (3, 4, DELETED), (5, 6, DELETED)]),
            // Both replace the same value.
            (Initial::Holds(7), &[(1, 9, Swap { expected: 7, new: 1 }), (2, 10, Swap { expected: 7, new: 2 })]),
            (Initial::Holds(7), &[(1, 2, Mismatch { expected: 7 })]),
            // One delete in doubt happens once.
            (Initial::Holds(7), &[(1, NEVER, DELETE), (2, 3, NOT_THERE), (4, 5, Write(1)), (6, 7, NOT_THERE)]),
            // A write in doubt happens once, not before its call, and not again.
            (Initial::Absent, &[(1, NEVER, Write(1)), (2, 3, Read(Some(1))), (4, 5, Write(2)), (6, 7, Read(Some(1)))]),
            (Initial::Absent, &[(9, NEVER, Write(1)), (2, 3, Read(Some(1)))]),
            (Initial::Absent, &[(9, NEVER, Write(1)), (2, 3, DELETED)]),
        ];
        for (initial, operations) in bad {
            let offence = history(*initial, 100, operations).check().expect_err("impossible");
            let (called, returned, what) = *operations.last().expect("some");
            let expected = Operation { called, returned: Some(returned), what };
            assert_eq!(offence.operation(), Some(&expected), "{operations:?}");
        }
    }

    /// An operation that returned after the first write that was not taken may have seen it.
    #[test]
    fn what_a_history_lacks_is_held_against_nobody() {
        let operations =
            [(1, 2, Write(1)), (3, 20, Read(Some(2))), (4, 20, DELETED), (5, 6, Write(2)), (7, 20, NOT_THERE)];
        assert!(history(Initial::Absent, 100, &operations).check().is_ok());
        let cut = history(Initial::Absent, 3, &operations);
        assert_eq!(cut.left_out(), 2);
        assert_eq!(cut.check(), Ok(Checked::Linearizable { judged: 1 }));
        let before = [(1, 2, Write(1)), (3, 4, Read(Some(2))), (5, 6, Write(2))];
        assert!(history(Initial::Absent, 2, &before).check().is_err(), "it returned before anything is missing");
        let reads = [(1, 20, Write(1)), (3, 21, Read(None)), (5, 6, Read(None))];
        assert_eq!(history(Initial::Absent, 2, &reads).check(), Ok(Checked::Linearizable { judged: 2 }));
    }

    #[test]
    fn a_refused_write_is_never_seen() {
        for initial in [Initial::Absent, Initial::Unknown] {
            let mut history = History::new(initial, 100);
            let ticket = history.call(1, Write(1)).expect("room");
            history.refused(ticket);
            let ticket = history.call(3, Read(None)).expect("room");
            history.returned(ticket, 4, Read(Some(1)));
            let offence = history.check().expect_err("it was not applied");
            assert!(offence.to_string().contains("not applied  write of value 1"), "{offence}");
        }
    }
}
