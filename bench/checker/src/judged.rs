//! What of a [history](crate::register) is judged, and by which rules: the register, and what may be left out so that the search
//! stays small.
//!
//! An operation without a return overlaps everything after its call, so each one may double what has to be tried. Three things
//! make that less, and none changes the verdict:
//!
//! * A write in doubt whose value was observed did happen, before the first return of what observed it: that is its return.
//! * Any other one explains at most an answer that does not say which value was there: a delete that found something, a refused
//!   conditional write, and where it is a delete also that there was nothing. It is left out if there is no such answer after its
//!   call. In an order that has it, nothing else between it and the next change depends on it.
//! * Those that stay are alike, as nobody saw their values: if one may have happened, so may any that was called earlier. So they
//!   happen in the order of their calls, and how many have happened says which. Of conditional writes in doubt that expect the
//!   same value, which is there at most once, the first called stands for all.

use crate::{
    linear::Operation,
    register::{Action, Initial, Recorded},
};
use std::collections::{HashMap, HashSet};

/// What the search is given.
pub(crate) struct Judged {
    pub(crate) operations: Vec<Operation<Step>>,
    /// Whom to blame, of what was recorded, if the search is stuck at an operation.
    pub(crate) blames: Vec<usize>,
    /// How many answers have to be explained.
    pub(crate) must: usize,
}

/// A step of the register.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Named(Action),
    /// The write in doubt that is this one in the order of their calls, and whose value nobody saw.
    UnseenWrite(u32),
    /// The delete in doubt that is this one in the order of their calls.
    UnseenDelete(u32),
    /// A conditional write in doubt that expects this value, and whose own nobody saw.
    UnseenSwap(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Value {
    /// Whatever was there at first.
    Unknown,
    Nothing,
    Number(u64),
    /// A value that nobody saw.
    Unseen,
}

/// The register, and how many of the writes and deletes in doubt have happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    value: Value,
    writes: u32,
    deletes: u32,
}

impl State {
    pub(crate) fn of(initial: Initial) -> Self {
        let value = match initial {
            Initial::Absent => Value::Nothing,
            Initial::Holds(number) => Value::Number(number),
            Initial::Unknown => Value::Unknown,
        };
        State { value, writes: 0, deletes: 0 }
    }

    /// What a step makes of it; `own` are the values that this history writes, none of which was there at first.
    pub(crate) fn after(&self, step: &Step, own: &HashSet<u64>) -> Option<State> {
        let with = |value| State { value, ..*self };
        let held = |number: u64| match self.value {
            Value::Number(there) => there == number,
            Value::Unknown => !own.contains(&number),
            Value::Nothing | Value::Unseen => false,
        };
        let may_be_nothing = matches!(self.value, Value::Nothing | Value::Unknown);
        match *step {
            Step::Named(action) => match action {
                Action::Read(Some(number)) => held(number).then(|| with(Value::Number(number))),
                Action::Read(None) | Action::Delete { found: Some(false) } => {
                    may_be_nothing.then(|| with(Value::Nothing))
                }
                Action::Write(new) => Some(with(Value::Number(new))),
                Action::Delete { found: None } => Some(with(Value::Nothing)),
                Action::Delete { found: Some(true) } => (self.value != Value::Nothing).then(|| with(Value::Nothing)),
                Action::Swap { expected, new } => held(expected).then(|| with(Value::Number(new))),
                Action::Mismatch { expected } => (self.value != Value::Number(expected)).then(|| self.clone()),
            },
            Step::UnseenWrite(n) => (n == self.writes).then(|| State { value: Value::Unseen, writes: n + 1, ..*self }),
            Step::UnseenDelete(n) => {
                (n == self.deletes).then(|| State { value: Value::Nothing, deletes: n + 1, ..*self })
            }
            Step::UnseenSwap(expected) => held(expected).then(|| with(Value::Unseen)),
        }
    }
}

/// The values that a history writes, those that were refused too: nothing else may have them.
pub(crate) fn own_values(recorded: &[Recorded]) -> HashSet<u64> {
    recorded.iter().filter_map(|r| r.operation.what.writes()).collect()
}

/// What is judged of a history that lacks no change that was called before `cut_at`.
pub(crate) fn of(recorded: &[Recorded], cut_at: Option<u64>) -> Judged {
    let taken = |at: usize| {
        let Recorded { operation, refused } = &recorded[at];
        let returned = operation.returned.filter(|returned| cut_at.is_none_or(|cut| *returned < cut));
        (!refused).then_some((operation.called, returned, operation.what))
    };
    let all: Vec<_> = (0..recorded.len()).filter_map(|at| taken(at).map(|of| (at, of))).collect();

    let mut judged: Vec<(usize, usize, Operation<Step>)> = Vec::new();
    let mut writers: HashMap<u64, (usize, u64, Action)> = HashMap::new();
    let mut unseen_deletes: Vec<(u64, usize)> = Vec::new();
    for (at, (called, returned, what)) in all {
        match (returned, what) {
            (Some(_), _) => judged.push((at, at, Operation { called, returned, what: Step::Named(what) })),
            (None, Action::Write(new) | Action::Swap { new, .. }) => {
                writers.insert(new, (at, called, what));
            }
            (None, Action::Delete { .. }) if what.changes() => unseen_deletes.push((called, at)),
            (None, _) => {}
        }
    }
    let must = judged.len();
    observed_writes(&mut judged, &mut writers);

    // What the others may explain: answers that came after their calls.
    let last = |explained: &dyn Fn(Action) -> bool| {
        let returns = judged.iter().filter_map(|(_, _, o)| match o.what {
            Step::Named(action) if explained(action) => o.returned,
            _ => None,
        });
        returns.max()
    };
    let something = last(&|a| matches!(a, Action::Delete { found: Some(true) } | Action::Mismatch { .. }));
    let nothing =
        last(&|a| matches!(a, Action::Read(None) | Action::Delete { found: Some(false) } | Action::Mismatch { .. }));
    let mut mismatches: HashMap<u64, u64> = HashMap::new();
    for (_, _, operation) in &judged {
        if let (Step::Named(Action::Mismatch { expected }), Some(returned)) = (operation.what, operation.returned) {
            let latest = mismatches.entry(expected).or_default();
            *latest = returned.max(*latest);
        }
    }

    let mut unseen_writes: Vec<(u64, usize)> = Vec::new();
    let mut swaps: HashMap<u64, (u64, usize)> = HashMap::new();
    for (at, called, what) in writers.into_values() {
        match what {
            Action::Swap { expected, .. } if mismatches.get(&expected).is_some_and(|last| called <= *last) => {
                let first = swaps.entry(expected).or_insert((called, at));
                *first = (called, at).min(*first);
            }
            Action::Write(_) if Some(called) <= something => unseen_writes.push((called, at)),
            _ => {}
        }
    }
    unseen_deletes.retain(|(called, _)| Some(*called) <= nothing);
    unseen_writes.sort_unstable();
    unseen_deletes.sort_unstable();
    let open = |(called, at): (u64, usize), what| (at, at, Operation { called, returned: None, what });
    judged.extend(unseen_writes.into_iter().zip(0..).map(|(one, n)| open(one, Step::UnseenWrite(n))));
    judged.extend(unseen_deletes.into_iter().zip(0..).map(|(one, n)| open(one, Step::UnseenDelete(n))));
    judged.extend(swaps.into_iter().map(|(expected, one)| open(one, Step::UnseenSwap(expected))));

    judged.sort_by_key(|(at, _, operation)| (operation.called, *at));
    let blames = judged.iter().map(|(_, blamed, _)| *blamed).collect();
    Judged { operations: judged.into_iter().map(|(_, _, operation)| operation).collect(), blames, must }
}

/// Writes in doubt that happened, as their values were observed by what happened: they returned with the first that observed
/// them, which is to blame for them.
fn observed_writes(
    judged: &mut Vec<(usize, usize, Operation<Step>)>,
    writers: &mut HashMap<u64, (usize, u64, Action)>,
) {
    let observes = |operation: &Operation<Step>| match operation.what {
        Step::Named(action) => action.observes(),
        _ => None,
    };
    // The least return of an observer, by the value; a conditional write in doubt hands its own on to what it replaced.
    let mut first: HashMap<u64, (u64, usize)> = HashMap::new();
    let mut open: Vec<(u64, u64, usize)> = Vec::new();
    for (at, _, operation) in judged.iter() {
        if let (Some(value), Some(returned)) = (observes(operation), operation.returned) {
            open.push((value, returned, *at));
        }
    }
    while let Some((value, returned, blamed)) = open.pop() {
        let known = first.get(&value);
        if known.is_some_and(|(before, _)| *before <= returned) {
            continue;
        }
        first.insert(value, (returned, blamed));
        if let Some((_, _, Action::Swap { expected, .. })) = writers.get(&value) {
            open.push((*expected, returned, blamed));
        }
    }
    for (value, (returned, blamed)) in first {
        if let Some((at, called, what)) = writers.remove(&value) {
            // Observed before it was called: there is no order, and the search finds that as well without a return.
            let returned = Some(returned.max(called));
            judged.push((at, blamed, Operation { called, returned, what: Step::Named(what) }));
        }
    }
}
