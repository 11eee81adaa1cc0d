//! Whether operations of which only calls and returns were seen can have happened one after the other, each at a moment between
//! its call and its return: linearizability, by the search of Wing and Gong with Lowe's memo.
//!
//! Wing, Gong: *Testing and Verifying Concurrent Objects*, 1993. Lowe: *Testing for Linearizability*, 2017.
//!
//! The search is fast where few operations overlap; one that never returned overlaps everything after its call. So histories
//! are checked key by key, and who knows that an operation without a return cannot matter leaves it out. Those that stay are
//! tried last, where nothing that returned fits: so an order is found quickly if there is one.

use std::{
    collections::{BTreeSet, HashSet},
    hash::Hash,
};

/// An operation as who called it saw it. Times need only be comparable; equal ones overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<T> {
    /// When it was called.
    pub called: u64,
    /// `None` if that was never seen: it may have happened at any time since, or not at all.
    pub returned: Option<u64>,
    /// What it did and what it returned.
    pub what: T,
}

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is an order.
    Order,
    /// There is none. This is the operation before whose return no order was found in the longest attempt.
    Stuck(usize),
    /// Too many steps.
    Undecided,
}

/// Finds an order in which `step` allows all operations that returned, and any of the others: it makes of a state and an
/// operation the next state, or `None` if the operation cannot have returned what it did. It is fastest if the operations come
/// in the order of their calls.
///
/// # Errors
/// The operation before whose return no order was found in the longest attempt.
pub fn linearizable<T, S: Clone + Eq + Hash>(
    initial: S,
    operations: &[Operation<T>],
    step: impl Fn(&S, &T) -> Option<S>,
) -> Result<(), usize> {
    match search(initial, operations, u64::MAX, step) {
        Found::Stuck(operation) => Err(operation),
        Found::Order | Found::Undecided => Ok(()),
    }
}

/// As [`linearizable`], with so many calls of `step` at most.
pub fn search<T, S: Clone + Eq + Hash>(
    initial: S,
    operations: &[Operation<T>],
    steps: u64,
    step: impl Fn(&S, &T) -> Option<S>,
) -> Found {
    let mut events = Events::of(operations);
    let mut optional: Vec<usize> = (0..operations.len()).filter(|at| operations[*at].returned.is_none()).collect();
    optional.sort_by_key(|at| operations[*at].called);
    let (mut state, mut done, mut seen) = (initial, Done::new(operations.len()), HashSet::new());
    let mut taken: Vec<(Candidate, S)> = Vec::new();
    let (mut left, mut steps_left) = (operations.len() - optional.len(), steps);
    let (mut least, mut stuck) = (usize::MAX, 0);
    let mut next = Candidate::Event(events.first());
    while left > 0 {
        let (operation, is_optional) = match next {
            Candidate::Event(at) => match events.events[at] {
                (_, true) => {
                    next = Candidate::Optional(0);
                    continue;
                }
                (operation, false) => (operation, false),
            },
            Candidate::Optional(at) => {
                let first_return = events.first_return();
                let before = |o: &&usize| Some(operations[**o].called) <= operations[first_return].returned;
                let Some(operation) = optional.get(at).filter(before) else {
                    if left < least {
                        (least, stuck) = (left, first_return);
                    }
                    let Some((last, before)) = taken.pop() else { return Found::Stuck(stuck) };
                    state = before;
                    next = match last {
                        Candidate::Event(at) => {
                            let operation = events.events[at].0;
                            done.remove(operation, true);
                            left += 1;
                            Candidate::Event(events.put_back(operation))
                        }
                        Candidate::Optional(at) => {
                            done.remove(optional[at], false);
                            Candidate::Optional(at + 1)
                        }
                    };
                    continue;
                };
                if done.unreturned.contains(operation) {
                    next = Candidate::Optional(at + 1);
                    continue;
                }
                (*operation, true)
            }
        };
        let Some(fewer) = steps_left.checked_sub(1) else { return Found::Undecided };
        steps_left = fewer;
        if let Some(after) = step(&state, &operations[operation].what) {
            done.insert(operation, !is_optional);
            if seen.insert((done.key(), after.clone())) {
                taken.push((next, std::mem::replace(&mut state, after)));
                if !is_optional {
                    left -= 1;
                    events.take_out(operation);
                }
                next = Candidate::Event(events.first());
                continue;
            }
            done.remove(operation, !is_optional);
        }
        next = match next {
            Candidate::Event(at) => Candidate::Event(events.next[at]),
            Candidate::Optional(at) => Candidate::Optional(at + 1),
        };
    }
    Found::Order
}

/// What may come next in the order that is tried.
#[derive(Clone, Copy)]
enum Candidate {
    /// The operation that is called by this event.
    Event(usize),
    /// One of those without a return.
    Optional(usize),
}

/// Calls and returns in the order of their times, of all operations that returned, as a list from which operations are taken out
/// and put back in reverse order.
struct Events {
    /// The operation, and whether it is its return; the first is none.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the call and the return of each operation stand.
    places: Vec<[usize; 2]>,
}

impl Events {
    fn of<T>(operations: &[Operation<T>]) -> Self {
        let both = operations.iter().enumerate().flat_map(|(at, operation)| {
            let both = operation.returned.map(|returned| [(operation.called, false, at), (returned, true, at)]);
            both.into_iter().flatten()
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

    /// The operation that returns first of those that are left.
    fn first_return(&self) -> usize {
        let mut at = self.first();
        while !self.events[at].1 {
            at = self.next[at];
        }
        self.events[at].0
    }

    fn take_out(&mut self, operation: usize) {
        for at in self.places[operation] {
            let (previous, next) = (self.previous[at], self.next[at]);
            (self.next[previous], self.previous[next]) = (next, previous);
        }
    }

    /// What follows its call.
    fn put_back(&mut self, operation: usize) -> usize {
        for at in self.places[operation].into_iter().rev() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Register {
        Write(u64),
        Read(u64),
    }
    use Register::{Read, Write};

    fn op(called: u64, returned: u64, what: Register) -> Operation<Register> {
        Operation { called, returned: (returned < NEVER).then_some(returned), what }
    }

    fn step(state: &u64, what: &Register) -> Option<u64> {
        match what {
            Write(value) => Some(*value),
            Read(value) => (state == value).then_some(*state),
        }
    }

    fn check(history: &[(u64, u64, Register)]) -> Result<(), usize> {
        let operations: Vec<_> = history.iter().map(|(called, returned, what)| op(*called, *returned, *what)).collect();
        linearizable(0, &operations, step)
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
    fn long_history(operations: u64) {
        let mut random = 7u64;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let (mut history, mut value) = (Vec::new(), 0);
        for turn in 0..operations {
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
    fn long_histories_are_checked_in_time() {
        long_history(20_000);
    }

    /// `cargo test --release -p kv-checker -- --ignored` says how long it takes.
    #[test]
    #[ignore = "for release builds"]
    fn very_long_histories_are_checked_in_time() {
        let began = std::time::Instant::now();
        long_history(100_000);
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "two searches of 100,000 operations took {took:?}");
    }

    #[test]
    fn a_search_ends_when_its_steps_are_used_up() {
        // All overlap, and the read fits nowhere: every subset of the writes is tried.
        let mut history: Vec<_> = (0..40).map(|n| (0, 100, Write(n))).collect();
        history.push((0, 100, Read(1_000)));
        let operations: Vec<_> = history.iter().map(|(called, returned, what)| op(*called, *returned, *what)).collect();
        assert_eq!(search(0, &operations, 100_000, step), Found::Undecided);
        assert_eq!(search(0, &operations[..40], 1_000, step), Found::Order);
    }
}
