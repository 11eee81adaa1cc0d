//! When operations are due, and how long users think.
//!
//! A schedule maps a steady count through the inverse of the rate's integral: the n-th operation is due when the rate, summed up since
//! the start, has come to n. The count is n itself for constant arrivals, so that nothing drifts and units interleave; for Poisson
//! arrivals it grows by exponential gaps (the time change theorem: Çınlar, "Introduction to Stochastic Processes", 1975, chapter
//! 4.7). Ramps and steps need no code of their own.

use super::{Invalid, decimal, rng, serialize_as_written};
use clap::ValueEnum;
use rand::{RngExt, rngs::SmallRng};
use rand_distr::Exp1;
use serde::Serialize;
use std::{fmt, str::FromStr, time::Duration};

/// Highest rate, in operations a second.
const MAX_RATE: f64 = 100e6;
/// Most steps of a rate.
const MAX_STEPS: usize = 1000;

/// Operations a second that are asked for, over a phase: `50000`, `1000..50000`, `1000,2000,5000`; also with `k` and `M`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rate {
    /// Steps of equal length, one after the other; mostly one.
    Steps(Vec<f64>),
    /// From the first to the second, linear over the phase.
    Ramp(f64, f64),
}

impl Rate {
    /// Operations a second, some time into a phase that lasts `duration`.
    pub(crate) fn at(&self, elapsed: Duration, duration: Duration) -> f64 {
        let part = elapsed.as_secs_f64() / duration.as_secs_f64().max(f64::MIN_POSITIVE);
        match self {
            Rate::Ramp(from, to) => from + (to - from) * part.clamp(0.0, 1.0),
            Rate::Steps(steps) => steps[((part * steps.len() as f64) as usize).min(steps.len() - 1)],
        }
    }

    /// Operations a second, on average over a phase.
    pub(crate) fn mean(&self) -> f64 {
        match self {
            Rate::Ramp(from, to) => (from + to) / 2.0,
            Rate::Steps(steps) => steps.iter().sum::<f64>() / steps.len() as f64,
        }
    }

    /// The stretches of a phase in each of which the rate is linear.
    fn segments(&self, duration: Duration) -> Vec<Segment> {
        let whole = duration.as_secs_f64();
        if let Rate::Ramp(from, to) = *self {
            return vec![Segment { start: 0.0, length: whole, from, to, before: 0.0 }];
        }
        let Rate::Steps(steps) = self else { unreachable!("a rate is steps or a ramp") };
        let length = whole / steps.len() as f64;
        let mut before = 0.0;
        let segment = |(i, rate): (usize, &f64)| {
            let segment = Segment { start: i as f64 * length, length, from: *rate, to: *rate, before };
            before = segment.end();
            segment
        };
        steps.iter().enumerate().map(segment).collect()
    }
}

fn check_rate(per_s: f64) -> Result<f64, Invalid> {
    if per_s > 0.0 && per_s <= MAX_RATE {
        return Ok(per_s);
    }
    Err(Invalid(format!("{per_s} operations a second are impossible; ask for more than 0 and at most 100M")))
}

fn rate(text: &str) -> Result<f64, Invalid> {
    let text = text.trim();
    let units = [("k", 1e3), ("K", 1e3), ("M", 1e6), ("m", 1e6)];
    let of_unit = |(name, unit): &(&str, f64)| Some((text.strip_suffix(name)?, *unit));
    let (number, unit) = units.iter().find_map(of_unit).unwrap_or((text, 1.0));
    let number = decimal(number).ok_or_else(|| {
        Invalid(format!(
            "{text:?} is no rate; write operations a second as 50000 or 50k, a ramp as 1k..50k, steps as 1k,2k,5k"
        ))
    })?;
    check_rate(number * unit)
}

impl FromStr for Rate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some((from, to)) = text.split_once("..") {
            return Ok(Rate::Ramp(rate(from)?, rate(to)?));
        }
        let steps = text.split(',').map(rate).collect::<Result<Vec<_>, _>>()?;
        if steps.len() > MAX_STEPS {
            return Err(Invalid(format!("{} steps are too many; give at most {MAX_STEPS}", steps.len())));
        }
        Ok(Rate::Steps(steps))
    }
}

/// As it can be read again.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Ramp(from, to) => write!(f, "{from}..{to}"),
            Rate::Steps(steps) => {
                let steps: Vec<_> = steps.iter().map(f64::to_string).collect();
                f.write_str(&steps.join(","))
            }
        }
    }
}

/// How operations are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arrivals {
    /// At random, as those of many users who know nothing of each other
    #[default]
    Poisson,
    /// Evenly
    Constant,
}

/// When the operations of one unit are due.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    segments: Vec<Segment>,
    /// The one that the next operation is in, or an earlier one.
    current: usize,
    count: Count,
}

/// A stretch of time in which the rate goes from one value to another.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// In seconds since the phase began.
    start: f64,
    length: f64,
    from: f64,
    to: f64,
    /// Operations of all units that are due before it.
    before: f64,
}

/// Where a unit's next operation stands in the count of all units' operations.
#[derive(Clone, Debug)]
enum Count {
    Constant { next: u64, units: u64 },
    Poisson { last: f64, units: f64, rng: SmallRng },
}

impl Schedule {
    /// For unit `unit` of `units`, which come to `rate` together.
    pub(crate) fn new(
        rate: &Rate,
        arrivals: Arrivals,
        duration: Duration,
        seed: u64,
        unit: u32,
        units: u32,
    ) -> Schedule {
        let count = match arrivals {
            Arrivals::Constant => Count::Constant { next: u64::from(unit), units: u64::from(units.max(1)) },
            // Another seed than that of what is drawn: a gap says nothing about its operation.
            Arrivals::Poisson => Count::Poisson { last: 0.0, units: f64::from(units.max(1)), rng: rng(!seed, unit) },
        };
        Schedule { segments: rate.segments(duration), current: 0, count }
    }
}

/// Since the phase began, ascending; `None` for good once it is over.
impl Iterator for Schedule {
    type Item = Duration;

    #[inline]
    fn next(&mut self) -> Option<Duration> {
        let count = self.count.next();
        while self.segments.get(self.current)?.end() <= count {
            self.current += 1;
        }
        let due = self.segments[self.current].time_of(count);
        Duration::try_from_secs_f64(due).ok()
    }
}

impl Segment {
    /// Operations of all units that are due before its end.
    fn end(&self) -> f64 {
        self.before + (self.from + self.to) / 2.0 * self.length
    }

    /// When the operations that are due have come to `count`, in seconds since the phase began.
    fn time_of(&self, count: f64) -> f64 {
        let count = count - self.before;
        let gain = (self.to - self.from) / self.length;
        // The root of from·t + gain/2·t² = count, in the form that subtracts nothing: exact also where the gain is 0.
        self.start + 2.0 * count / (self.from + (self.from * self.from + 2.0 * gain * count).max(0.0).sqrt())
    }
}

impl Count {
    fn next(&mut self) -> f64 {
        match self {
            Count::Constant { next, units } => {
                let count = *next;
                *next += *units;
                count as f64
            }
            Count::Poisson { last, units, rng } => {
                *last += rng.sample::<f64, _>(Exp1) * *units;
                *last
            }
        }
    }
}

/// How long a user waits between an answer and the next request: `1s`, or `1s-3s` with every time as likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Think {
    min: Duration,
    max: Duration,
}

impl Think {
    /// Every time between these two; the longer may be the first.
    pub(crate) fn between(a: Duration, b: Duration) -> Think {
        Think { min: a.min(b), max: a.max(b) }
    }

    pub(crate) fn mean(self) -> Duration {
        self.min + (self.max - self.min) / 2
    }

    pub(crate) fn draw(self, rng: &mut SmallRng) -> Duration {
        let spread = u64::try_from((self.max - self.min).as_nanos()).unwrap_or(u64::MAX);
        self.min + Duration::from_nanos(rng.random_range(0..=spread))
    }
}

impl FromStr for Think {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let time = |text: &str| {
            humantime::parse_duration(text.trim())
                .map_err(|e| Invalid(format!("{text:?} is no time ({e}); write 1s, 500ms, or 1s-3s")))
        };
        let (min, max) = match text.split_once('-') {
            Some((min, max)) => (time(min)?, time(max)?),
            None => (time(text)?, time(text)?),
        };
        if min > max {
            return Err(Invalid(format!("{text:?} ends before it begins; write the shorter time first")));
        }
        Ok(Think { min, max })
    }
}

/// As it can be read again.
impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, max] = [self.min, self.max].map(humantime::format_duration);
        if self.min == self.max { write!(f, "{min}") } else { write!(f, "{min}-{max}") }
    }
}

serialize_as_written!(Rate, Think);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn rates_are_read_and_written() {
        for (text, written, mean) in [
            ("50000", "50000", 50e3),
            ("0.5", "0.5", 0.5),
            ("1.5k", "1500", 1500.0),
            ("100M", "100000000", 100e6),
            ("1000..50000", "1000..50000", 25_500.0),
            ("50K .. 1k", "50000..1000", 25_500.0),
            ("1k,2k, 6k", "1000,2000,6000", 3000.0),
        ] {
            let rate: Rate = text.parse().expect(text);
            assert_eq!((rate.to_string().as_str(), rate.mean()), (written, mean), "{text}");
            assert_eq!(written.parse(), Ok(rate));
        }
        for (text, said) in [
            ("", "\"\" is no rate"),
            ("0", "more than 0"),
            ("101M", "at most 100M"),
            ("fast", "\"fast\" is no rate"),
            ("-5", "no rate"),
            ("1..2..3", "\"2..3\" is no rate"),
            ("0..100", "more than 0"),
            ("1,,2", "\"\" is no rate"),
            ("inf", "no rate"),
        ] {
            let error = text.parse::<Rate>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!("1,".repeat(1000).trim_end_matches(',').parse::<Rate>().is_ok());
        assert!("1,".repeat(1001).trim_end_matches(',').parse::<Rate>().is_err());
    }

    #[test]
    fn a_rate_is_known_at_every_time() {
        for (rate, at) in
            [("100", [100.0; 4]), ("100..200", [100.0, 150.0, 200.0, 200.0]), ("1,5", [1.0, 5.0, 5.0, 5.0])]
        {
            let rate: Rate = rate.parse().expect(rate);
            assert_eq!([0, 5, 10, 99].map(|s| rate.at(s * SECOND, 10 * SECOND)), at, "{rate}");
        }
    }

    fn schedule(rate: &str, arrivals: Arrivals, seconds: u32, unit: u32, units: u32) -> Vec<Duration> {
        Schedule::new(&rate.parse().expect(rate), arrivals, seconds * SECOND, 1, unit, units).collect()
    }

    #[test]
    fn constant_arrivals_are_even_and_units_interleave() {
        let all: Vec<_> = (0..4).map(|unit| schedule("1000", Arrivals::Constant, 2, unit, 4)).collect();
        for n in 0..2000_u32 {
            assert_eq!(all[n as usize % 4][n as usize / 4], Duration::from_millis(n.into()));
        }
        assert!(all.iter().all(|unit| unit.len() == 500));
    }

    #[test]
    fn constant_arrivals_do_not_drift_in_hours() {
        // 333,333 a second: the gap is no whole number of nanoseconds.
        let rate = "333333".parse().expect("valid");
        let mut schedule = Schedule::new(&rate, Arrivals::Constant, 10 * 3600 * SECOND, 1, 0, 1);
        let Count::Constant { next, .. } = &mut schedule.count else { unreachable!("constant") };
        *next = 333_333 * 36_000 - 1;
        let last = schedule.next().expect("the last");
        assert!((36_000.0 - last.as_secs_f64() - 1.0 / 333_333.0).abs() < 2e-9, "{last:?}");
        assert_eq!((schedule.next(), schedule.next()), (None, None));
    }

    #[test]
    fn rates_come_out_as_asked_in_each_part_of_the_time() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            for (rate, parts) in [
                ("3000", [10_000.0, 10_000.0, 10_000.0]),
                ("1000..4000", [15_000.0, 25_000.0, 35_000.0]),
                ("4000..1000", [35_000.0, 25_000.0, 15_000.0]),
                ("1000,9000,2000", [10_000.0, 90_000.0, 20_000.0]),
            ] {
                let seconds: u32 = if rate == "3000" { 10 } else { 30 };
                let mut seen = [0.0; 3];
                for unit in 0..3 {
                    let due = schedule(rate, arrivals, seconds, unit, 3);
                    assert!(due.is_sorted() && *due.last().expect("some") < seconds * SECOND);
                    for at in due {
                        seen[(at.as_secs_f64() / f64::from(seconds) * 3.0) as usize] += 1.0;
                    }
                }
                for (seen, expected) in seen.into_iter().zip(parts) {
                    // Four deviations of a Poisson count; constant arrivals may be off by one for each unit.
                    let bound = if arrivals == Arrivals::Poisson { 4.0 * f64::sqrt(expected) } else { 3.0 };
                    assert!(f64::abs(seen - expected) <= bound, "{rate} {arrivals:?}: {seen} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        for (unit, units) in [(0, 1), (2, 4)] {
            let due = schedule("10000", Arrivals::Poisson, 10, unit, units);
            let per_s = 10_000.0 / f64::from(units);
            let mut gaps: Vec<_> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * per_s).collect();
            gaps.sort_unstable_by(f64::total_cmp);
            // Kolmogorov and Smirnov: the distance exceeds 1.95 / root n once in a thousand samples.
            let n = gaps.len() as f64;
            let distance = |(i, gap): (usize, &f64)| (1.0 - (-gap).exp() - i as f64 / n).abs();
            let worst = gaps.iter().enumerate().map(distance).fold(0.0, f64::max);
            assert!(worst < 1.95 / n.sqrt(), "{worst} of {n}");
        }
    }

    #[test]
    fn the_seed_and_the_unit_decide_when() {
        let of = |seed, unit| {
            Schedule::new(&Rate::Steps(vec![1000.0]), Arrivals::Poisson, SECOND, seed, unit, 2).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(1, 1));
        assert_ne!(of(1, 0), of(2, 0));
    }

    #[test]
    fn a_phase_of_no_time_has_no_operations() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            for rate in ["1000", "1..5", "1,2"] {
                let rate = rate.parse().expect(rate);
                assert_eq!(Schedule::new(&rate, arrivals, Duration::ZERO, 1, 0, 1).next(), None);
                let endless = Schedule::new(&rate, arrivals, Duration::MAX, 1, 0, 1).take(10);
                assert_eq!(endless.count(), 10);
            }
        }
    }

    #[test]
    fn users_think_as_long_as_they_are_told() {
        for (text, written, mean) in
            [("1s", "1s", 1000), ("1s-3s", "1s-3s", 2000), ("500ms - 1500ms", "500ms-1s 500ms", 1000), ("0s", "0s", 0)]
        {
            let think: Think = text.parse().expect(text);
            assert_eq!((think.to_string().as_str(), think.mean()), (written, Duration::from_millis(mean)));
            assert_eq!(written.parse(), Ok(think));
            let mut rng = rng(1, 0);
            let drawn: Vec<_> = (0..10_000).map(|_| think.draw(&mut rng)).collect();
            assert!(drawn.iter().all(|t| (think.min..=think.max).contains(t)));
            let sum: Duration = drawn.iter().sum();
            assert!((sum / 10_000).abs_diff(think.mean()) <= think.mean() / 50, "{text}");
        }
        for (text, said) in
            [("", "no time"), ("soon", "\"soon\" is no time"), ("3s-1s", "shorter time first"), ("1s-", "no time")]
        {
            let error = text.parse::<Think>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
