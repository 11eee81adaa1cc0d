//! What the live view remembers of a run: the last second, the phase so far, and two minutes of seconds. `draw` turns it into
//! lines; nothing here knows a terminal.

mod draw;

use super::{Interval, lines::clean, per_second};
use crate::{
    measure::{KindRecorder, Latency, Recorder},
    workload::Kind,
};
use std::{collections::VecDeque, time::Duration};

/// Seconds that are kept for the curves.
const SECONDS: usize = 120;
/// Most kinds of errors that are shown.
const ERRORS: usize = 4;
/// Longest word or sentence from outside that is kept, in characters.
const LONGEST: usize = 200;

/// The live view.
#[derive(Debug)]
pub(super) struct Live {
    title: String,
    phase: &'static str,
    what: String,
    second: Option<Second>,
    /// The newest last.
    points: VecDeque<Point>,
    event: Option<Event>,
}

/// What is shown of the last second and of the phase up to it.
#[derive(Debug)]
struct Second {
    elapsed: Duration,
    done: Option<f64>,
    now: Numbers,
    kinds: Vec<Numbers>,
    so_far: Numbers,
    /// Of the phase, the most frequent first.
    errors: Vec<(String, u64)>,
    /// Of the phase, codes that are not shown included.
    error_codes: usize,
    asked_per_s: Option<f64>,
    in_flight: u64,
    waiting: u64,
    /// Of the phase.
    late: u64,
    late_by_generator: u64,
    dropped: u64,
}

/// A row of the table.
#[derive(Debug)]
struct Numbers {
    name: &'static str,
    ops_per_s: f64,
    latency: Option<Latency>,
    errors: u64,
    misses: u64,
}

/// A second of the curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    ops_per_s: u64,
    p99_us: Option<u64>,
    errors: bool,
    event: bool,
}

/// The last thing that happened to the cluster.
#[derive(Debug)]
struct Event {
    at: Duration,
    what: String,
}

impl Live {
    pub(super) fn new(title: String) -> Live {
        Live { title, phase: "", what: String::new(), second: None, points: VecDeque::new(), event: None }
    }

    /// A phase begins: what was before it is forgotten.
    pub(super) fn begin(&mut self, phase: &'static str, what: String) {
        *self = Live { phase, what, ..Live::new(std::mem::take(&mut self.title)) };
    }

    pub(super) fn interval(&mut self, interval: &Interval<'_>) {
        self.phase = interval.phase;
        let (recorded, total) = (interval.recorded, interval.total);
        let now = Numbers::of("now", &recorded.all(), recorded.error_count(), interval.length);
        if self.points.len() == SECONDS {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            ops_per_s: now.ops_per_s.round() as u64,
            p99_us: now.latency.map(|latency| latency.p99),
            errors: now.errors > 0,
            event: interval.event.is_some(),
        });
        if let Some(what) = interval.event {
            self.event = Some(Event { at: interval.elapsed, what: short(what) });
        }
        let kind = |(kind, of): (Kind, &KindRecorder)| Numbers::of(kind.name(), of, of.errors, interval.length);
        self.second = Some(Second {
            elapsed: interval.elapsed,
            done: interval.done,
            now,
            kinds: recorded.kinds().map(kind).collect(),
            so_far: Numbers::of("so far", &total.all(), total.error_count(), interval.elapsed),
            errors: most_frequent(total),
            error_codes: total.errors.len(),
            asked_per_s: interval.asked_per_s,
            in_flight: interval.in_flight,
            waiting: interval.waiting,
            late: total.late,
            late_by_generator: total.late_by_generator,
            dropped: total.dropped,
        });
    }
}

impl Numbers {
    fn of(name: &'static str, recorder: &KindRecorder, errors: u64, time: Duration) -> Numbers {
        let latency = Latency::of(&recorder.response);
        Numbers { name, ops_per_s: per_second(recorder.ops, time), latency, errors, misses: recorder.misses }
    }
}

fn most_frequent(recorder: &Recorder) -> Vec<(String, u64)> {
    let mut errors: Vec<_> = recorder.errors.iter().map(|(code, failure)| (code.as_str(), failure.count)).collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    errors.into_iter().take(ERRORS).map(|(code, count)| (short(code), count)).collect()
}

fn short(text: &str) -> String {
    clean(text).chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::samples::Sample, *};

    #[test]
    fn a_second_leaves_a_point_and_the_most_frequent_errors() {
        let mut live = Live::new("title".to_owned());
        live.begin("run", "puts".to_owned());
        live.interval(&Sample::busy().interval());
        assert_eq!(live.points, [Point { ops_per_s: 1000, p99_us: Some(990), errors: true, event: true }]);
        let second = live.second.as_ref().expect("a second");
        assert_eq!(
            second.errors.iter().map(|(code, n)| (code.as_str(), *n)).collect::<Vec<_>>(),
            [("not_leader", 8), ("deadline_exceeded", 2), ("unreachable", 2)]
        );
        assert_eq!((second.so_far.ops_per_s.round(), second.kinds.len()), (83.0, 2));
        assert_eq!(live.event.as_ref().map(|event| event.what.as_str()), Some("killed shard0-leader"));
    }

    #[test]
    fn a_long_run_takes_no_more_memory_than_a_short_one_and_a_phase_begins_anew() {
        let mut live = Live::new("title".to_owned());
        for second in 0..3 * SECONDS as u64 {
            live.interval(&Sample { second, ..Sample::idle() }.interval());
        }
        live.interval(&Sample::huge().interval());
        assert_eq!((live.points.len(), live.points.back().map(|p| p.errors)), (SECONDS, Some(true)));
        assert!(live.event.as_ref().is_some_and(|event| event.what.chars().count() == LONGEST));
        live.begin("run", String::new());
        assert!(live.points.is_empty() && live.event.is_none() && live.second.is_none());
        assert_eq!(live.title, "title");
    }
}
