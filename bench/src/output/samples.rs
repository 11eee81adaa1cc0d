//! Intervals for tests.

use super::Interval;
use crate::{
    measure::{Ending, Recorder},
    workload::Kind,
};
use std::time::Duration;

/// What an interval borrows.
#[derive(Default)]
pub(super) struct Sample {
    pub(super) second: u64,
    pub(super) recorded: Recorder,
    pub(super) total: Recorder,
    pub(super) done: Option<f64>,
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    pub(super) asked_per_s: Option<f64>,
    pub(super) event: Option<String>,
}

impl Sample {
    /// The twelfth second, in which nothing happened.
    pub(super) fn idle() -> Sample {
        Sample { second: 12, ..Sample::default() }
    }

    /// A second with 1000 operations of two kinds, of 1 to 1000 microseconds, and 12 failures.
    pub(super) fn busy() -> Sample {
        let mut recorded = Recorder::default();
        for us in 1..=1000 {
            let kind = if us % 2 == 0 { Kind::Put } else { Kind::Get };
            let ending = if us % 10 == 1 { Ending::Miss } else { Ending::Done };
            recorded.answered(kind, us * 1000, us * 500, ending);
        }
        (0..8).for_each(|_| recorded.failed(Kind::Put, "not_leader", false));
        (0..2).for_each(|_| recorded.failed(Kind::Put, "deadline_exceeded", true));
        (0..2).for_each(|_| recorded.failed(Kind::Get, "unreachable", false));
        (recorded.due, recorded.late, recorded.late_by_generator, recorded.dropped) = (1013, 7, 2, 1);
        let total = recorded.clone();
        Sample {
            recorded,
            total,
            done: Some(0.4),
            in_flight: 800,
            waiting: 3,
            asked_per_s: Some(1013.0),
            event: Some("killed shard0-leader".to_owned()),
            ..Sample::idle()
        }
    }

    /// Numbers as large as they get, and words from outside that are long and strange.
    pub(super) fn huge() -> Sample {
        let mut sample = Sample::busy();
        for recorder in [&mut sample.recorded, &mut sample.total] {
            for kind in Kind::ALL {
                recorder.answered(kind, u64::MAX, u64::MAX, Ending::Done);
            }
            recorder.failed(Kind::Get, &"\u{1b}[31m\n\u{4e16}\u{754c}".repeat(50), false);
            (recorder.due, recorder.late, recorder.dropped) = (u64::MAX, u64::MAX, u64::MAX);
        }
        Sample {
            second: u64::MAX / 4,
            done: Some(f64::INFINITY),
            in_flight: u64::MAX,
            waiting: u64::MAX,
            asked_per_s: Some(f64::MAX),
            event: Some("\u{7}\u{754c}\r\n".repeat(300)),
            ..sample
        }
    }

    /// A second with every kind of operation.
    pub(super) fn all_kinds() -> Sample {
        let mut sample = Sample::busy();
        for kind in Kind::ALL {
            sample.recorded.answered(kind, 3_000_000, 2_000_000, Ending::Done);
        }
        sample.total = sample.recorded.clone();
        sample
    }

    pub(super) fn interval(&self) -> Interval<'_> {
        Interval {
            phase: "run",
            elapsed: Duration::from_secs(self.second),
            length: Duration::from_secs(1),
            recorded: &self.recorded,
            total: &self.total,
            done: self.done,
            in_flight: self.in_flight,
            waiting: self.waiting,
            asked_per_s: self.asked_per_s,
            event: self.event.as_deref(),
        }
    }
}

/// A minute of a run in an open loop in which the leader is killed, second by second.
#[derive(Default)]
pub(super) struct Story {
    total: Recorder,
    second: u64,
}

impl Story {
    pub(super) fn next(&mut self) -> Sample {
        self.second += 1;
        let second = self.second;
        let mut recorded = Recorder::default();
        // Down for two seconds, then slow until what had waited is done.
        let (ops, slower) = match second {
            30 => (400, 20),
            31 => (0, 1),
            32..=34 => (1300, 60 - (second - 32) * 20),
            _ => (1000 + second * 7 % 90, 1),
        };
        for n in 0..ops {
            let kind = if n % 5 == 0 { Kind::Put } else { Kind::Get };
            let tail = if n % 97 == 0 { 9 + second % 7 } else { 1 };
            let us = (180 + n * 37 % 240) * tail * slower;
            recorded.answered(kind, us * 1000, us * 500, Ending::Done);
        }
        if (30..=31).contains(&second) {
            (0..40 * second)
                .for_each(|n| recorded.failed(Kind::Put, ["unreachable", "not_leader"][n as usize % 2], false));
            recorded.late = 300;
        }
        self.total.merge(&recorded);
        Sample {
            second,
            recorded,
            total: self.total.clone(),
            done: Some(second as f64 / 60.0),
            in_flight: if second == 31 { 800 } else { 12 },
            waiting: if second == 31 { 950 } else { 0 },
            asked_per_s: Some(1050.0),
            event: (second == 30).then(|| "killed shard0-leader".to_owned()),
        }
    }
}
