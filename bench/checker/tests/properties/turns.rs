//! A register that takes turns, and clients that see each turn some time before and after it.

use kv_checker::register::{Action, Held, History, Initial};
use kv_proto::ids::{HistoryId, Lsn, Version};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Returned(u64),
    InDoubt,
    Refused,
}

/// An operation as its client saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) called: u64,
    pub(crate) fate: Fate,
    pub(crate) action: Action,
    /// The version that it saw or made.
    pub(crate) version: Option<Version>,
}

#[derive(Clone, Debug)]
pub(crate) struct Turns {
    pub(crate) turns: Vec<Turn>,
    /// What is there at the end, the version of that, and when the end is.
    pub(crate) held: Held,
    pub(crate) version: Option<Version>,
    pub(crate) end: u64,
}

/// How turns are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) seed: u64,
    pub(crate) length: usize,
    /// How long before and after its turn an operation is called and returns, at most; a turn comes after 10 on average.
    pub(crate) overlap: u64,
    /// One in so many is in doubt; 0 for none.
    pub(crate) doubts: u32,
}

pub(crate) fn shapes(length: std::ops::Range<usize>) -> impl Strategy<Value = Shape> {
    (any::<u64>(), length, 0..60u64, prop_oneof![Just(0), 4..20u32]).prop_map(|(seed, length, overlap, doubts)| Shape {
        seed,
        length,
        overlap,
        doubts,
    })
}

pub(crate) fn version(lsn: u64) -> Version {
    Version { history: HistoryId(1), lsn: Lsn(lsn) }
}

/// What the register has after an action; `None` if that cannot be.
pub(crate) fn after(held: Held, action: Action) -> Option<Held> {
    match action {
        Action::Read(found) => (found == held).then_some(held),
        Action::Write(new) => Some(Some(new)),
        Action::Delete { found } => found.is_none_or(|found| found == held.is_some()).then_some(None),
        Action::Swap { expected, new } => (held == Some(expected)).then_some(Some(new)),
        Action::Mismatch { expected } => (held != Some(expected)).then_some(held),
    }
}

/// What an operation does if nobody says what became of it.
fn unanswered(action: Action, new: u64) -> Option<Action> {
    match action {
        Action::Read(_) => None,
        Action::Delete { .. } => Some(Action::Delete { found: None }),
        Action::Mismatch { expected } => Some(Action::Swap { expected, new }),
        Action::Write(_) | Action::Swap { .. } => Some(action),
    }
}

impl Turns {
    pub(crate) fn of(shape: Shape) -> Self {
        let mut random = SmallRng::seed_from_u64(shape.seed);
        let mut all = Turns { turns: Vec::new(), held: None, version: None, end: 0 };
        let (mut read, mut late, mut lsn, mut now) = (Vec::new(), Vec::new(), 0, 1_000);
        for number in 1..=shape.length as u64 {
            now += random.random_range(1..20);
            if !late.is_empty() && random.random_range(0..5) == 0 {
                // What was in doubt happens after all, or it cannot any more.
                let action = late.swap_remove(random.random_range(0..late.len()));
                all.take(action, &mut lsn);
            }
            let held = all.held;
            let expected = if random.random_range(0..3) > 0 { held } else { read.last().copied() };
            let action = match (random.random_range(0..10), expected) {
                (0..3, _) => Action::Write(number),
                (3, _) => Action::Delete { found: Some(held.is_some()) },
                (4, _) => Action::Delete { found: None },
                (5..7, Some(expected)) if held == Some(expected) => Action::Swap { expected, new: number },
                (5..7, Some(expected)) => Action::Mismatch { expected },
                _ => Action::Read(held),
            };
            let called = now - random.random_range(0..=shape.overlap);
            let doubtful = shape.doubts > 0 && random.random_ratio(1, shape.doubts);
            let unanswered = unanswered(action, number).filter(|_| doubtful);
            let Some(asked) = unanswered else {
                let before = all.version;
                all.take(action, &mut lsn);
                let version =
                    if action == Action::Read(held) { before.filter(|_| held.is_some()) } else { all.version };
                if let Action::Read(Some(found)) = action {
                    read.push(found);
                }
                let fate = Fate::Returned(now + random.random_range(0..=shape.overlap));
                all.turns.push(Turn { called, fate, action, version });
                continue;
            };
            let fate = match random.random_range(0..4) {
                0 => Fate::Refused,
                1 => Fate::InDoubt,
                2 => {
                    late.push(asked);
                    Fate::InDoubt
                }
                _ => {
                    all.take(asked, &mut lsn);
                    Fate::InDoubt
                }
            };
            all.turns.push(Turn { called, fate, action: asked, version: None });
        }
        all.end = now + 100 + shape.overlap;
        all.turns.sort_by_key(|turn| turn.called);
        all
    }

    fn take(&mut self, action: Action, lsn: &mut u64) {
        let Some(next) = after(self.held, action) else { return };
        let changes = matches!(action, Action::Write(_) | Action::Swap { .. });
        let deletes = matches!(action, Action::Delete { .. }) && self.held.is_some();
        if changes || deletes {
            *lsn += 1;
            self.version = Some(version(*lsn));
        }
        self.held = next;
    }

    /// Something happens after everything else, and at once.
    pub(crate) fn then(&mut self, action: Action, version: Option<Version>) {
        self.turns.push(Turn { called: self.end, fate: Fate::Returned(self.end + 1), action, version });
        self.end += 2;
    }

    /// Whether what may have happened, and may yet, leaves this.
    pub(crate) fn may_yet_be(&self, held: Held) -> bool {
        self.turns.iter().filter(|turn| turn.fate == Fate::InDoubt).any(|turn| match turn.action {
            Action::Write(new) | Action::Swap { new, .. } => held == Some(new),
            Action::Delete { .. } => held.is_none(),
            Action::Read(_) | Action::Mismatch { .. } => false,
        })
    }

    pub(crate) fn history(&self, initial: Initial, cap: usize) -> History {
        let mut history = History::new(initial, cap);
        for turn in &self.turns {
            let Some(ticket) = history.call(turn.called, turn.action) else { continue };
            match turn.fate {
                Fate::Returned(at) => history.returned(ticket, at, turn.action),
                Fate::InDoubt => history.in_doubt(ticket),
                Fate::Refused => history.refused(ticket),
            }
        }
        history
    }
}
