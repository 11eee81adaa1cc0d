//! [`History`], beside a search of all orders, and with what a register did.

use crate::turns::{Fate, Shape, Turns, after, shapes};
use kv_checker::register::{Action, Checked, Held, History, Initial};
use proptest::prelude::*;

/// A call, its return if there was an answer, and what was done.
type Op = (u64, Option<u64>, Action);

fn history(initial: Initial, operations: &[Op], cap: usize) -> History {
    let mut history = History::new(initial, cap);
    for (called, returned, action) in operations {
        let Some(ticket) = history.call(*called, *action) else { continue };
        match returned {
            Some(returned) => history.returned(ticket, *returned, *action),
            None => history.in_doubt(ticket),
        }
    }
    history
}

/// Whether any order explains all that returned, by trying all of them.
fn any_order(held: Held, operations: &[Op], done: u32) -> bool {
    let left = || operations.iter().enumerate().filter(|(at, _)| done & 1 << at == 0);
    let Some(first_return) = left().filter_map(|(_, (_, returned, _))| *returned).min() else { return true };
    left()
        .filter(|(_, (called, ..))| *called <= first_return)
        .any(|(at, (.., action))| after(held, *action).is_some_and(|next| any_order(next, operations, done | 1 << at)))
}

/// A few operations as they come: most of these cannot have happened.
fn anything() -> impl Strategy<Value = Vec<Op>> {
    let one = (0..12u64, prop::option::weighted(0.6, 0..6u64), 0..8u8, 0..6u64);
    prop::collection::vec(one, 1..8).prop_map(|drawn| {
        let operation = |(at, (called, length, kind, value)): (usize, (u64, Option<u64>, u8, u64))| {
            // Writes have the values 1, 2, 3 and so on, by their places; what is read or expected is drawn.
            let (new, expected) = (at as u64 + 1, value.max(1));
            let action = match kind {
                0 | 1 => Action::Write(new),
                2 => Action::Read((value > 0).then_some(value)),
                3 => Action::Delete { found: length.map(|_| value % 2 == 0) },
                4 => Action::Delete { found: None },
                5 => Action::Swap { expected, new },
                6 => Action::Mismatch { expected },
                _ => Action::Read(None),
            };
            (called, length.map(|length| called + length), action)
        };
        drawn.into_iter().enumerate().map(operation).collect()
    })
}

fn refuses(operations: &[Op], which: impl Fn(u64) -> bool) -> bool {
    operations.iter().any(|(.., action)| matches!(action, Action::Mismatch { expected } if which(*expected)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    /// What is left out and put together before the search changes no verdict; where a refusal names a value that nobody read,
    /// more may be accepted. And what is accepted is so wherever it is cut off.
    #[test]
    fn small_histories_are_judged_as_by_trying_all_orders(operations in anything(), held in 0..4u64) {
        let (initial, held) = if held == 0 { (Initial::Absent, None) } else { (Initial::Holds(100), Some(100)) };
        let possible = any_order(held, &operations, 0);
        let checked = history(initial, &operations, 100).check();
        let read = |value| operations.iter().any(|(_, r, a)| r.is_some() && *a == Action::Read(Some(value)));
        if possible || !refuses(&operations, |value| !read(value)) {
            prop_assert_eq!(checked.is_ok(), possible, "{:?}", checked);
        }
        for cap in 0..if possible { operations.len() } else { 0 } {
            let cut = history(initial, &operations, cap).check();
            prop_assert!(cut.is_ok(), "cut off at {}: {:?}", cap, cut);
        }
    }

    #[test]
    fn an_unknown_beginning_is_any_beginning(operations in anything()) {
        let writes = |value| operations.iter().any(|(.., action)| match action {
            Action::Write(new) | Action::Swap { new, .. } => *new == value,
            _ => false,
        });
        let mut beginnings = (1..8).filter(|value| !writes(*value)).map(Some).chain([None, Some(100)]);
        let possible = beginnings.any(|held| any_order(held, &operations, 0));
        let checked = history(Initial::Unknown, &operations, 100).check();
        if possible || !refuses(&operations, |_| true) {
            prop_assert_eq!(checked.is_ok(), possible, "{:?}", checked);
        }
    }
}

/// Takes the first read that can be given a value that was overwritten before it was called; says whether there is one.
fn read_what_is_overwritten(turns: &mut Turns) -> bool {
    let all = turns.turns.clone();
    let writes = || {
        all.iter().filter_map(|turn| match (turn.fate, turn.action) {
            (Fate::Returned(at), Action::Write(value)) => Some((turn.called, at, value)),
            _ => None,
        })
    };
    for turn in turns.turns.iter_mut().filter(|turn| matches!(turn.action, Action::Read(_))) {
        let overwritten = |returned: u64| writes().any(|(called, by, _)| called > returned && by < turn.called);
        if let Some((.., value)) = writes().find(|(_, returned, _)| overwritten(*returned)) {
            turn.action = Action::Read(Some(value));
            return true;
        }
    }
    false
}

proptest! {
    #[test]
    fn what_a_register_did_is_accepted_wherever_it_is_cut_off(shape in shapes(1..150), unknown: bool) {
        let turns = Turns::of(shape);
        let initial = if unknown { Initial::Unknown } else { Initial::Absent };
        for cap in (0..turns.turns.len()).step_by(11).chain([usize::MAX]) {
            let checked = turns.history(initial, cap).check();
            prop_assert!(matches!(checked, Ok(Checked::Linearizable { .. })), "cap {}: {:?}", cap, checked);
        }
    }

    #[test]
    fn a_read_of_an_overwritten_value_is_noticed(shape in shapes(20..150)) {
        let mut turns = Turns::of(shape);
        prop_assume!(read_what_is_overwritten(&mut turns));
        prop_assert!(turns.history(Initial::Absent, usize::MAX).check().is_err());
    }

    /// At the end something else is there than the last write: what was there before it, nothing, or an earlier write's value.
    #[test]
    fn a_lost_write_and_one_applied_again_are_noticed(shape in shapes(1..100), earlier: prop::sample::Index, kind in 0..3) {
        let mut turns = Turns::of(shape);
        let found = match (kind, earlier.get(&turns.turns).action) {
            (0, _) => turns.held,
            (1, Action::Write(value) | Action::Swap { new: value, .. }) => Some(value),
            _ => None,
        };
        if turns.may_yet_be(found) {
            return Ok(());
        }
        turns.then(Action::Write(10_000), None);
        turns.then(Action::Read(Some(10_000)), None);
        prop_assert!(turns.history(Initial::Absent, usize::MAX).check().is_ok());
        turns.then(Action::Read(found), None);
        prop_assert!(turns.history(Initial::Absent, usize::MAX).check().is_err());
    }
}

/// A sampled key of a long run in which much was in doubt, and then something is lost: the first is decided, the second ends.
#[test]
fn many_in_doubt_do_not_keep_the_search() {
    for seed in 0..5 {
        let mut turns = Turns::of(Shape { seed, length: 3_000, overlap: 40, doubts: 30 });
        let checked = turns.history(Initial::Absent, usize::MAX).check();
        assert!(matches!(checked, Ok(Checked::Linearizable { .. })), "seed {seed}: {checked:?}");
        assert!(read_what_is_overwritten(&mut turns));
        let checked = turns.history(Initial::Absent, usize::MAX).check_within(100_000);
        assert!(!matches!(checked, Ok(Checked::Linearizable { .. })), "seed {seed}: {checked:?}");
    }
}
