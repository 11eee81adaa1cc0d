//! Whether operations of which only calls and returns were seen can have happened one after the other, each at a moment between
//! its call and its return: linearizability, by the search of Wing and Gong with Lowe's memo. And a cheap check beside it, for
//! whatever has versions.
//!
//! Wing, Gong: *Testing and Verifying Concurrent Objects*, 1993. Lowe: *Testing for Linearizability*, 2017.
//!
//! The search is fast where few operations overlap; one that never returned overlaps everything after its call. So histories
//! are checked key by key, and who knows that an operation without a return cannot matter leaves it out.

use std::{
    collections::{BTreeSet, HashSet},
    hash::Hash,
};

/// An operation as who called it saw it. Times need only be comparable; equal ones overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation<T> {
    pub(crate) called: u64,
    /// `None` if that was never seen: it may have happened at any time since, or not at all.
    pub(crate) returned: Option<u64>,
    /// What it did and what it returned.
    pub(crate) what: T,
}

/// Finds an order in which `step` allows all operations that returned, and any of the others: it makes of a state and an
/// operation the next state, or `None` if the operation cannot have returned what it did. The error is the operation before
/// whose return no order was found in the longest attempt. It is fastest if the operations come in the order of their calls.
pub(crate) fn linearizable<T, S: Clone + Eq + Hash>(
    initial: S,
    operations: &[Operation<T>],
    step: impl Fn(&S, &T) -> Option<S>,
) -> Result<(), usize> {
    let mut events = Events::of(operations);
    let (mut state, mut done, mut seen) = (initial, Done::new(operations.len()), HashSet::new());
    let mut taken: Vec<(usize, S)> = Vec::new();
    let mut left = operations.iter().filter(|o| o.returned.is_some()).count();
    let (mut least, mut stuck) = (usize::MAX, 0);
    let mut at = events.first();
    while left > 0 {
        let (operation, returns) = events.events[at];
        if returns {
            if left < least {
                (least, stuck) = (left, operation);
            }
            let Some((last, before)) = taken.pop() else { return Err(stuck) };
            state = before;
            done.remove(last, operations[last].returned.is_some());
            left += usize::from(operations[last].returned.is_some());
            at = events.put_back(last);
            continue;
        }
        let has_returned = operations[operation].returned.is_some();
        if let Some(after) = step(&state, &operations[operation].what) {
            done.insert(operation, has_returned);
            if seen.insert((done.key(), after.clone())) {
                taken.push((operation, std::mem::replace(&mut state, after)));
                left -= usize::from(has_returned);
                events.take_out(operation);
                at = events.first();
                continue;
            }
            done.remove(operation, has_returned);
        }
        at = events.next[at];
    }
    Ok(())
}

/// Calls and returns in the order of their times, as a list from which operations are taken out and put back in reverse order.
struct Events {
    /// The operation, and whether it is its return; the first is none.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the call and the return of each operation stand; 0 if it has none.
    places: Vec<[usize; 2]>,
}

impl Events {
    fn of<T>(operations: &[Operation<T>]) -> Self {
        let both = operations.iter().enumerate().flat_map(|(at, operation)| {
            let returned = operation.returned.map(|time| (time, true, at));
            [Some((operation.called, false, at)), returned].into_iter().flatten()
        });
        let mut sorted: Vec<_> = both.collect();
        sorted.sort_unstable();
        let mut places = vec![[0; 2]; operations.len()];
        let mut events = vec![(usize::MAX, false)];
        for (_, returns, operation) in sorted {
            places[operation][usize::from(returns)] = events.len();
            events.push((operation, returns));
        }
        let (length, last) = (events.len(), events.len() - 1);
        let next = (1..=length).map(|n| n % length).collect();
        let previous = (0..length).map(|n| n.checked_sub(1).unwrap_or(last)).collect();
        Events { events, next, previous, places }
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn take_out(&mut self, operation: usize) {
        for at in self.places[operation].into_iter().filter(|at| *at > 0) {
            let (previous, next) = (self.previous[at], self.next[at]);
            (self.next[previous], self.previous[next]) = (next, previous);
        }
    }

    /// What follows its call.
    fn put_back(&mut self, operation: usize) -> usize {
        for at in self.places[operation].into_iter().rev().filter(|at| *at > 0) {
            let (previous, next) = (self.previous[at], self.next[at]);
            (self.next[previous], self.previous[next]) = (at, at);
        }
        self.next[self.places[operation][0]]
    }
}

/// Which operations are in the order that is tried: as bits those that returned, nearly all of which up to some point are.
struct Done {
    words: Vec<u64>,
    /// Words before this one are full.
    low: usize,
    /// Words behind this one are empty.
    high: usize,
    unreturned: BTreeSet<usize>,
}

impl Done {
    fn new(operations: usize) -> Self {
        Done { words: vec![0; operations / 64 + 1], low: 0, high: 0, unreturned: BTreeSet::new() }
    }

    fn insert(&mut self, operation: usize, returned: bool) {
        if !returned {
            self.unreturned.insert(operation);
            return;
        }
        self.words[operation / 64] |= 1 << (operation % 64);
        self.high = self.high.max(operation / 64);
        while self.words[self.low] == u64::MAX {
            self.low += 1;
        }
    }

    fn remove(&mut self, operation: usize, returned: bool) {
        if !returned {
            self.unreturned.remove(&operation);
            return;
        }
        self.words[operation / 64] &= !(1 << (operation % 64));
        self.low = self.low.min(operation / 64);
        while self.high > 0 && self.words[self.high] == 0 {
            self.high -= 1;
        }
    }

    fn key(&self) -> (usize, Vec<u64>, Vec<usize>) {
        let words = self.words.get(self.low..=self.high).unwrap_or_default().to_vec();
        (self.low, words, self.unreturned.iter().copied().collect())
    }
}

/// What an operation said of the version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versioned {
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) version: u64,
    /// Whether the operation made this version.
    pub(crate) makes: bool,
}

/// Real time agrees with versions: what is called after a return sees no older version, and makes a newer one. The error is two
/// operations that do not agree.
pub(crate) fn versions_agree(operations: &[Versioned]) -> Result<(), (Versioned, Versioned)> {
    let (mut by_call, mut by_return) = (operations.to_vec(), operations.to_vec());
    by_call.sort_by_key(|o| o.called);
    by_return.sort_by_key(|o| o.returned);
    let mut returned = by_return.into_iter().peekable();
    let mut newest: Option<Versioned> = None;
    for operation in by_call {
        while let Some(before) = returned.next_if(|o| o.returned < operation.called) {
            newest = Some(newest.filter(|n| n.version >= before.version).unwrap_or(before));
        }
        if let Some(newest) = newest
            && (operation.version < newest.version || operation.makes && operation.version == newest.version)
        {
            return Err((newest, operation));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Register {
        Write(u64),
        Read(u64),
    }
    use Register::{Read, Write};

    fn check(history: &[(u64, u64, Register)]) -> Result<(), usize> {
        let operation = |(called, returned, what): &(u64, u64, Register)| Operation {
            called: *called,
            returned: (*returned < u64::MAX).then_some(*returned),
            what: *what,
        };
        let operations: Vec<_> = history.iter().map(operation).collect();
        linearizable(0, &operations, |state, what| match what {
            Write(value) => Some(*value),
            Read(value) => (state == value).then_some(*state),
        })
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn orders_are_found_where_there_are_any() {
        let good: [&[(u64, u64, Register)]; 6] = [
            &[],
            &[(0, 1, Read(0)), (2, 3, Write(1)), (4, 5, Read(1))],
            &[(0, 9, Write(1)), (1, 2, Read(0)), (3, 4, Read(1)), (5, 6, Read(1))],
            &[(0, 9, Write(1)), (0, 9, Write(2)), (1, 2, Read(2)), (3, 4, Read(1))],
            &[(0, NEVER, Write(1)), (1, 2, Read(0)), (3, 4, Read(0)), (50, 60, Read(1))],
            &[(0, NEVER, Write(1)), (0, NEVER, Write(2)), (3, 4, Read(2)), (5, 6, Read(1))],
        ];
        for history in good {
            assert_eq!(check(history), Ok(()), "{history:?}");
        }
        type Bad<'a> = (&'a [(u64, u64, Register)], usize);
        let bad: [Bad<'_>; 6] = [
            (&[(0, 1, Read(1))], 0),
            (&[(0, 1, Write(1)), (2, 3, Read(0))], 1),
            (&[(0, 9, Write(1)), (1, 2, Read(1)), (3, 4, Read(0))], 2),
            (&[(0, 9, Write(1)), (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(1))], 3),
            (&[(5, NEVER, Write(1)), (1, 2, Read(1))], 1),
            (&[(0, NEVER, Write(1)), (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(2)), (7, 8, Read(1))], 4),
        ];
        for (history, stuck) in bad {
            assert_eq!(check(history), Err(stuck), "{history:?}");
        }
    }

    /// Histories that were made by taking turns, with calls and returns drawn apart; then one read is made to see what it cannot.
    #[test]
    fn long_histories_are_checked_in_time() {
        let mut random = 7u64;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let (mut history, mut value) = (Vec::new(), 0);
        for turn in 0..20_000 {
            let at = 10 * turn;
            let (called, returned) = (at - below(30).min(at), at + 1 + below(30));
            if below(2) == 0 {
                value = turn;
                history.push((called, returned, Write(value)));
            } else {
                history.push((called, returned, Read(value)));
            }
        }
        assert_eq!(check(&history), Ok(()));
        let late = history.iter().rposition(|(_, _, what)| matches!(what, Read(_))).expect("a read");
        history[late].2 = Read(value / 2 + 1_000_000);
        assert!(check(&history).is_err());
    }

    #[test]
    fn versions_that_go_back_are_noticed() {
        let operation = |called, returned, version, makes| Versioned { called, returned, version, makes };
        let write = operation(0, 10, 5, true);
        for (next, agrees) in [
            (operation(11, 12, 5, false), true),
            (operation(11, 12, 4, false), false),
            (operation(9, 12, 4, false), true),
            (operation(11, 12, 5, true), false),
            (operation(11, 12, 6, true), true),
        ] {
            assert_eq!(versions_agree(&[write, next]), if agrees { Ok(()) } else { Err((write, next)) });
        }
    }
}
