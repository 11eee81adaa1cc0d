//! What was measured, by one thread or over all of them.

use hdrhistogram::Histogram;
use std::{collections::BTreeMap, time::Duration};

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const MAX_LATENCY_US: u64 = 600_000_000;

/// Counts and latencies of a stretch of time.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    /// In microseconds.
    latencies: Histogram<u64>,
    /// Answers that were good.
    pub(crate) ops: u64,
    /// Those of them that said that there is no value.
    pub(crate) misses: u64,
    /// Failures by their codes.
    pub(crate) errors: BTreeMap<&'static str, u64>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are valid");
        Recorder { latencies, ops: 0, misses: 0, errors: BTreeMap::new() }
    }

    /// A good answer.
    pub(crate) fn answered(&mut self, latency: Duration, miss: bool) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(us);
        self.ops += 1;
        self.misses += u64::from(miss);
    }

    /// `count` failures.
    pub(crate) fn failed(&mut self, code: &'static str, count: u64) {
        if count > 0 {
            *self.errors.entry(code).or_default() += count;
        }
    }

    /// Adds what another one recorded.
    pub(crate) fn merge(&mut self, other: &Recorder) {
        self.latencies.add(&other.latencies).expect("all have the same bounds");
        self.ops += other.ops;
        self.misses += other.misses;
        for (code, count) in &other.errors {
            self.failed(code, *count);
        }
    }

    /// All failures.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The latencies; `None` when nothing was answered.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        (self.ops > 0).then(|| Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.latencies.max(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorders_add_up() {
        let mut all = Recorder::new();
        assert_eq!(all.latency(), None);
        for thread in 0..2 {
            let mut one = Recorder::new();
            for ms in 1..=500 {
                one.answered(Duration::from_millis(2 * ms - thread), ms % 10 == 0);
            }
            one.failed("not_leader", 3);
            one.failed("overloaded", 0);
            all.merge(&one);
        }
        assert_eq!((all.ops, all.misses, all.error_count()), (1000, 100, 6));
        assert_eq!(all.errors, BTreeMap::from([("not_leader", 6)]));
        let latency = all.latency().expect("answered");
        for (us, expected) in [(latency.p50, 500_000), (latency.p99, 990_000), (latency.max, 1_000_000)] {
            assert!(us.abs_diff(expected) <= expected / 1000, "{us} is not {expected}");
        }
    }

    #[test]
    fn a_latency_beyond_the_scale_counts_as_its_end() {
        let mut recorder = Recorder::new();
        recorder.answered(Duration::from_secs(1_000_000), false);
        recorder.answered(Duration::ZERO, false);
        assert!(recorder.latency().expect("answered").max >= MAX_LATENCY_US);
    }
}
