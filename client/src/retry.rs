//! When to ask again, and how long to wait before. Pure: randomness is an argument.
//!
//! | what failed | what the client does |
//! |---|---|
//! | not leader, leader not ready, node shutting down | waits, asks again: leadership may be passing to another node |
//! | connection lost | waits, asks again over a new connection; a write that was sent has an operation id |
//! | a write's outcome unknown to the node | waits, asks again, with the same operation id |
//! | no connection | tells the caller at once: it was tried, and mostly lasts |
//! | one of these, and the map names another leader by now | asks there at once |
//! | follower unreachable, overloaded | tells the caller: it lasts, or asking again makes it worse |
//! | everything else | tells the caller |
//!
//! A request is sent at most [`MAX_ATTEMPTS`] times, within its deadline. Every wait is paid for from a budget that
//! requests without trouble fill, so that retries never outgrow a tenth of the requests for long.
//!
//! Once an attempt of a write may have been applied, the write is *open*, and only an answer closes it. It is worth more
//! then: where the caller would be told of what mostly lasts, the client waits too, as long as the deadline lasts and
//! for nothing; what is counted are the attempts that may have been applied, since what costs a connection once may do
//! so again.

use crate::Error;
use kv_proto::error_code::ErrorCode;
use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// How often a request is sent, the first time included; and how often a write with an unknown outcome.
pub(crate) const MAX_ATTEMPTS: u32 = 5;

/// Waits between the attempts of one request.
pub(crate) const REQUEST_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(10), cap: Duration::from_millis(200) };
/// Waits between the attempts to connect to one node.
pub(crate) const CONNECT_BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(1) };

/// Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a wait is drawn evenly
/// between nothing and a bound that doubles with every failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
}

impl Backoff {
    /// The wait after the `failures`th failure in a row, counted from 1. `random` is even over 0..1.
    pub(crate) fn delay(self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let bound = self.base.saturating_mul(1 << doublings).min(self.cap);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// A bucket of tokens: a retry takes one, a request without trouble brings a tenth of one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tenths: AtomicU32,
}

impl RetryBudget {
    const FULL: u32 = 1000;
    const RETRY: u32 = 10;
    const SUCCESS: u32 = 1;

    pub(crate) fn new() -> Self {
        RetryBudget { tenths: AtomicU32::new(Self::FULL) }
    }

    /// A request was answered at its first attempt.
    pub(crate) fn deposit(&self) {
        // Almost always full: a look costs less than a write that all cores share.
        if self.tenths.load(Relaxed) < Self::FULL {
            let _ = self.tenths.fetch_update(Relaxed, Relaxed, |n| Some((n + Self::SUCCESS).min(Self::FULL)));
        }
    }

    /// Pays for a retry; false when there is nothing to pay with.
    pub(crate) fn withdraw(&self) -> bool {
        self.tenths.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(Self::RETRY)).is_ok()
    }
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Tell the caller.
    GiveUp,
    /// Ask another node at once.
    Redirect,
    /// Wait, then ask again.
    Wait,
}

/// The attempts of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts {
    /// How many there were.
    pub(crate) all: u32,
    /// How many of them may have been applied.
    pub(crate) unknown: u32,
}

/// What to do about `error`, that of the last of these attempts. `redirected` says that the request would go to another
/// node now.
pub(crate) fn decide(error: &Error, attempts: Attempts, redirected: bool) -> Decision {
    let is_open = attempts.unknown > 0;
    if (if is_open { attempts.unknown } else { attempts.all }) >= MAX_ATTEMPTS {
        return Decision::GiveUp;
    }
    let (elsewhere, later) = match error {
        Error::Rejected(e) => match e.code {
            ErrorCode::NotLeader | ErrorCode::NotReady | ErrorCode::ShuttingDown | ErrorCode::OutcomeUnknown => {
                (true, true)
            }
            ErrorCode::FollowerUnreachable | ErrorCode::Overloaded | ErrorCode::TooManyConnections => (false, is_open),
            _ => (false, false),
        },
        Error::ConnectionLost { .. } => (true, true),
        Error::Unreachable { .. } => (true, is_open),
        _ => (false, false),
    };
    if redirected && elsewhere {
        Decision::Redirect
    } else if later {
        Decision::Wait
    } else {
        Decision::GiveUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::error_code::{Outcome, WireError};

    #[test]
    fn waits_double_up_to_their_cap_and_are_spread_over_all_of_it() {
        let backoff = Backoff { base: Duration::from_millis(10), cap: Duration::from_millis(100) };
        for (failures, bound_ms) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (6, 100), (u32::MAX, 100)] {
            assert_eq!(backoff.delay(failures, 0.0), Duration::ZERO);
            assert_eq!(backoff.delay(failures, 0.5), Duration::from_millis(bound_ms) / 2);
            assert_eq!(backoff.delay(failures, 1.0), Duration::from_millis(bound_ms));
        }
    }

    #[test]
    fn retries_are_a_tenth_of_the_requests_once_the_reserve_is_gone() {
        let budget = RetryBudget::new();
        assert_eq!((0..1000).filter(|_| budget.withdraw()).count(), 100);
        for _ in 0..100 {
            budget.deposit();
        }
        assert_eq!((0..1000).filter(|_| budget.withdraw()).count(), 10);
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| budget.withdraw()).count(), 100);
    }

    #[test]
    fn decisions() {
        let rejected = |code| Error::from(WireError::new(code, "why"));
        let lost = |outcome| Error::ConnectionLost { node: "n".into(), cause: "x".into(), outcome };
        let unreachable = || Error::Unreachable { node: "n".into(), cause: "x".into() };
        // What is done while the leader stays the same, and when the map names another one; and if the write is open.
        let (wait, redirect, give_up) = (Decision::Wait, Decision::Redirect, Decision::GiveUp);
        let cases = [
            (rejected(ErrorCode::NotLeader), wait, redirect, wait),
            (rejected(ErrorCode::NotReady), wait, redirect, wait),
            (rejected(ErrorCode::ShuttingDown), wait, redirect, wait),
            (lost(Outcome::NotApplied), wait, redirect, wait),
            (unreachable(), give_up, redirect, wait),
            (lost(Outcome::Unknown), wait, redirect, wait),
            (rejected(ErrorCode::OutcomeUnknown), wait, redirect, wait),
            (rejected(ErrorCode::FollowerUnreachable), give_up, give_up, wait),
            (rejected(ErrorCode::Overloaded), give_up, give_up, wait),
            (rejected(ErrorCode::KeyEmpty), give_up, give_up, give_up),
            (rejected(ErrorCode::MemoryFull), give_up, give_up, give_up),
        ];
        for (error, same, other, open) in cases {
            let attempts = |all, unknown| Attempts { all, unknown };
            assert_eq!(decide(&error, attempts(1, 0), false), same, "{error:?}");
            assert_eq!(decide(&error, attempts(1, 0), true), other, "{error:?}");
            assert_eq!(decide(&error, attempts(MAX_ATTEMPTS, 0), true), give_up, "{error:?}");
            assert_eq!(decide(&error, attempts(MAX_ATTEMPTS, 1), false), open, "{error:?}");
            assert_eq!(decide(&error, attempts(MAX_ATTEMPTS, MAX_ATTEMPTS), true), give_up, "{error:?}");
        }
    }
}
