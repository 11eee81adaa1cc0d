//! What was measured in a stretch of time, by one thread or by all of them.

use crate::workload::Kind;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const MAX_LATENCY_US: u64 = 600_000_000;
/// Most different errors that are told apart: their words come from outside.
const MAX_ERRORS: usize = 100;

/// Counts and latencies of a stretch of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder {
    /// By [`Kind`]; `None` where there was nothing of it.
    pub(super) kinds: [Option<Box<KindRecorder>>; Kind::ALL.len()],
    /// Failures of operations by their codes.
    pub(crate) errors: BTreeMap<String, Failure>,
    /// Failed attempts to connect anew.
    pub(crate) failed_connects: u64,
    /// Operations of an open loop whose intended start came; more than those that ended by what is still under way.
    pub(crate) due: u64,
    /// Operations that were sent more than a millisecond after their intended start.
    pub(crate) late: u64,
    /// Those of them for which this tool was too slow itself, and not because all connections were full.
    pub(crate) late_by_generator: u64,
    /// Writes that were sent again under the same id, since nobody knew what had become of them.
    pub(crate) retried: u64,
    /// Operations that this tool never began, since it could not keep up; they are among the dropped.
    pub(crate) not_begun: u64,
    /// Operations that could not be sent before their deadline and never were.
    pub(crate) dropped: u64,
}

/// How often something failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) count: u64,
    /// How many of them may have been applied in spite of it.
    pub(crate) unknown: u64,
}

/// What was measured of one kind of operation.
#[derive(Clone, Debug)]
pub(crate) struct KindRecorder {
    /// From the intended start to the answer, in microseconds.
    pub(crate) response: Histogram<u64>,
    /// From the sending to the answer, in microseconds.
    pub(crate) service: Histogram<u64>,
    /// Operations that were answered well.
    pub(crate) ops: u64,
    /// Those of them that found no value.
    pub(crate) misses: u64,
    /// Those of them whose condition did not hold.
    pub(crate) conflicts: u64,
    pub(crate) errors: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p95: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
    pub(crate) mean: f64,
}

/// A histogram of latencies in microseconds, as all of them are.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are valid")
}

impl Default for KindRecorder {
    fn default() -> Self {
        KindRecorder { response: histogram(), service: histogram(), ops: 0, misses: 0, conflicts: 0, errors: 0 }
    }
}

impl KindRecorder {
    fn merge(&mut self, other: &KindRecorder) {
        self.response.add(&other.response).expect("all have the same bounds");
        self.service.add(&other.service).expect("all have the same bounds");
        self.ops += other.ops;
        self.misses += other.misses;
        self.conflicts += other.conflicts;
        self.errors += other.errors;
    }
}

/// How an operation ended that was answered well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Miss,
    Conflict,
}

/// An operation that was answered well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    /// From the intended start to the answer.
    pub(crate) response_ns: u64,
    /// From the sending to the answer.
    pub(crate) service_ns: u64,
    pub(crate) ending: Ending,
    pub(crate) is_in_time: bool,
}

impl Recorder {
    /// One operation was answered well.
    #[cfg(test)]
    pub(crate) fn answered(&mut self, kind: Kind, response_ns: u64, service_ns: u64, ending: Ending) {
        self.all_answered(Answer { kind, response_ns, service_ns, ending, is_in_time: true }, 1);
    }

    /// So many operations were answered well, in the same time and words: those of one batch mostly are. Those that were answered after
    /// the end of a phase are timed, and not counted.
    pub(crate) fn all_answered(&mut self, answer: Answer, count: u64) {
        let Answer { kind, response_ns, service_ns, ending, is_in_time } = answer;
        let kind = self.of_mut(kind);
        kind.response.saturating_record_n(response_ns / 1000, count);
        kind.service.saturating_record_n(service_ns / 1000, count);
        let count = if is_in_time { count } else { 0 };
        kind.ops += count;
        kind.misses += if ending == Ending::Miss { count } else { 0 };
        kind.conflicts += if ending == Ending::Conflict { count } else { 0 };
    }

    /// An operation failed.
    pub(crate) fn failed(&mut self, kind: Kind, code: &str, unknown: bool) {
        self.of_mut(kind).errors += 1;
        self.count_failure(code, Failure { count: 1, unknown: u64::from(unknown) });
    }

    fn count_failure(&mut self, code: &str, failure: Failure) {
        let code = if self.errors.contains_key(code) || self.errors.len() < MAX_ERRORS { code } else { "other" };
        let known = match self.errors.get_mut(code) {
            Some(known) => known,
            None => self.errors.entry(code.to_owned()).or_default(),
        };
        known.count += failure.count;
        known.unknown += failure.unknown;
    }

    fn of_mut(&mut self, kind: Kind) -> &mut KindRecorder {
        self.kinds[kind as usize].get_or_insert_default()
    }

    /// What was measured of each kind of operation that there was.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Kind, &KindRecorder)> {
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.kinds[kind as usize].as_deref()?)))
    }

    /// All kinds together.
    pub(crate) fn all(&self) -> KindRecorder {
        let mut all = KindRecorder::default();
        self.kinds().for_each(|(_, kind)| all.merge(kind));
        all
    }

    /// Operations that were answered well.
    pub(crate) fn ops(&self) -> u64 {
        self.kinds().map(|(_, kind)| kind.ops).sum()
    }

    /// All failures.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().map(|failure| failure.count).sum()
    }

    /// Adds what was recorded of one kind.
    pub(crate) fn add_kind(&mut self, kind: Kind, recorder: &KindRecorder) {
        self.of_mut(kind).merge(recorder);
    }

    /// Adds what failed.
    pub(crate) fn add_errors(&mut self, other: &Recorder) {
        for (code, failure) in &other.errors {
            self.count_failure(code, *failure);
        }
    }

    /// Adds what another one recorded.
    pub(crate) fn merge(&mut self, other: &Recorder) {
        other.kinds().for_each(|(kind, recorder)| self.add_kind(kind, recorder));
        self.add_errors(other);
        self.failed_connects += other.failed_connects;
        self.due += other.due;
        self.not_begun += other.not_begun;
        self.late += other.late;
        self.late_by_generator += other.late_by_generator;
        self.dropped += other.dropped;
        self.retried += other.retried;
    }
}

impl Latency {
    /// Of a histogram in microseconds; `None` when it is empty.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Latency> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Latency {
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn recorders_add_up() {
        let mut all = Recorder::default();
        assert_eq!(Latency::of(&all.all().response), None);
        for thread in 0..2 {
            let mut one = Recorder::default();
            for ms in 1..=500 {
                let ending = if ms % 10 == 0 { Ending::Miss } else { Ending::Done };
                let kind = if ms % 2 == 0 { Kind::Get } else { Kind::Put };
                one.answered(kind, (2 * ms - thread) * MS, 0, ending);
            }
            (0..3).for_each(|n| one.failed(Kind::Put, "not_leader", n == 0));
            one.late = 7;
            all.merge(&one);
        }
        assert_eq!((all.ops(), all.all().misses, all.error_count(), all.late), (1000, 100, 6, 14));
        assert_eq!(all.errors, BTreeMap::from([("not_leader".to_owned(), Failure { count: 6, unknown: 2 })]));
        let kinds: Vec<_> = all.kinds().map(|(kind, of)| (kind, of.ops, of.misses, of.errors)).collect();
        assert_eq!(kinds, [(Kind::Get, 500, 100, 0), (Kind::Put, 500, 0, 6)]);
        let latency = Latency::of(&all.all().response).expect("answered");
        for (us, expected) in [(latency.p50, 500_000), (latency.p99, 990_000), (latency.max, 1_000_000)] {
            assert!(us.abs_diff(expected) <= expected / 1000, "{us} is not {expected}");
        }
    }

    #[test]
    fn a_latency_beyond_the_scale_counts_as_its_end() {
        let mut recorder = Recorder::default();
        recorder.answered(Kind::Get, 1_000_000_000 * MS, 0, Ending::Done);
        recorder.answered(Kind::Get, 0, 0, Ending::Done);
        assert!(Latency::of(&recorder.all().response).expect("answered").max >= MAX_LATENCY_US);
    }

    #[test]
    fn words_from_outside_do_not_fill_the_memory() {
        let mut recorder = Recorder::default();
        (0..1000).for_each(|n| recorder.failed(Kind::Get, &format!("error {n}"), false));
        assert_eq!((recorder.errors.len(), recorder.error_count()), (MAX_ERRORS + 1, 1000));
    }
}
