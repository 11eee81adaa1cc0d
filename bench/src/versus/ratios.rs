//! Rounds of several series compared with those of the first one. Pure.
//!
//! The rounds are interleaved: round `n` of every series ran within the same minutes, so that what slows the machine for a
//! while slows all of them. Ratios are therefore taken round by round and only then summed up; a ratio of two medians
//! would bring the machine's moods back in.
//!
//! Nothing is assumed of how the numbers are spread: the interval of a median comes from order statistics alone (David and
//! Nagaraja, "Order Statistics", 7.1). No outlier is thrown away.

use serde::Serialize;

/// Rounds from which on an interval of the median is told; of fewer, even their extremes say less than 90 %.
const ROUNDS_FOR_CONFIDENCE: usize = 5;
/// What the interval should reach; where the rounds are too few for it, their extremes are told with the level they have.
const WANTED_LEVEL: f64 = 0.95;

/// All rounds of one thing that is compared.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Round>,
}

/// What one round came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) ops_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) errors: u64,
    /// CPU time of the generator for each operation.
    pub(crate) cpu_us_per_op: f64,
}

/// All series, and how they stand to the first one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// Of each series.
    pub(crate) rounds: usize,
    /// The first is the baseline.
    pub(crate) series: Vec<Compared>,
}

/// One series. What was not measured, or came to no finite number in any round, is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Compared {
    pub(crate) name: String,
    pub(crate) ops_per_s: Option<Spread>,
    pub(crate) p50_us: Option<Spread>,
    pub(crate) p99_us: Option<Spread>,
    pub(crate) p999_us: Option<Spread>,
    pub(crate) errors: Option<Spread>,
    /// Of all rounds together.
    pub(crate) errors_total: u64,
    pub(crate) cpu_us_per_op: Option<Spread>,
    /// `None` for the baseline.
    pub(crate) ratios: Option<Ratios>,
}

/// This series divided by the baseline, round by round. `None` where a round has nothing to divide by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ratios {
    pub(crate) ops_per_s: Option<Ratio>,
    pub(crate) p50_us: Option<Ratio>,
    pub(crate) p99_us: Option<Ratio>,
    pub(crate) p999_us: Option<Ratio>,
    pub(crate) cpu_us_per_op: Option<Ratio>,
}

/// Where the rounds' numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Where the rounds' ratios lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    #[serde(flatten)]
    pub(crate) spread: Spread,
    /// Of the median; `None` for fewer than five rounds.
    pub(crate) confidence: Option<Confidence>,
}

/// An interval that holds the true median with a probability of `level` (0 to 1), however the numbers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Confidence {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) level: f64,
}

/// Compares all series with the first one. All have the same number of rounds; rounds that only some have are left out.
pub(crate) fn compare(series: &[Series]) -> Comparison {
    let rounds = series.iter().map(|s| s.rounds.len()).min().unwrap_or(0);
    let baseline = series.first().map_or(&[][..], |s| &s.rounds[..rounds]);
    let compared = |(index, series): (usize, &Series)| {
        let these = &series.rounds[..rounds];
        let spread = |of: fn(&Round) -> f64| Spread::of(these.iter().map(of).collect());
        let ratio = |of: fn(&Round) -> f64| Ratio::of(these.iter().zip(baseline).map(|(a, b)| of(a) / of(b)).collect());
        Compared {
            name: series.name.clone(),
            ops_per_s: spread(ops_per_s),
            p50_us: spread(p50_us),
            p99_us: spread(p99_us),
            p999_us: spread(p999_us),
            errors: spread(|round| round.errors as f64),
            errors_total: these.iter().map(|round| round.errors).sum(),
            cpu_us_per_op: spread(cpu_us_per_op),
            ratios: (index > 0).then(|| Ratios {
                ops_per_s: ratio(ops_per_s),
                p50_us: ratio(p50_us),
                p99_us: ratio(p99_us),
                p999_us: ratio(p999_us),
                cpu_us_per_op: ratio(cpu_us_per_op),
            }),
        }
    };
    Comparison { rounds, series: series.iter().enumerate().map(compared).collect() }
}

fn ops_per_s(round: &Round) -> f64 {
    round.ops_per_s
}

fn p50_us(round: &Round) -> f64 {
    round.p50_us as f64
}

fn p99_us(round: &Round) -> f64 {
    round.p99_us as f64
}

fn p999_us(round: &Round) -> f64 {
    round.p999_us as f64
}

fn cpu_us_per_op(round: &Round) -> f64 {
    round.cpu_us_per_op
}

impl Spread {
    /// `None` if there is nothing, or something that is no finite number: leaving it out would flatter the rest.
    fn of(mut numbers: Vec<f64>) -> Option<Spread> {
        Spread::of_sorted(sort(&mut numbers)?)
    }

    fn of_sorted(sorted: &[f64]) -> Option<Spread> {
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: f64::midpoint(below, above), min, max })
    }
}

impl Ratio {
    fn of(mut ratios: Vec<f64>) -> Option<Ratio> {
        let sorted = sort(&mut ratios)?;
        Some(Ratio { spread: Spread::of_sorted(sorted)?, confidence: Confidence::of_sorted(sorted) })
    }

    /// Where the ratio may well lie: the interval of its median, or all of it if there is no such interval.
    pub(crate) fn interval(&self) -> (f64, f64) {
        self.confidence.map_or((self.spread.min, self.spread.max), |c| (c.low, c.high))
    }

    /// Whether the two may as well be equal.
    pub(crate) fn says_little(&self) -> bool {
        let (low, high) = self.interval();
        low <= 1.0 && 1.0 <= high
    }
}

impl Confidence {
    /// The narrowest interval from the `k`-th smallest to the `k`-th largest number that reaches [`WANTED_LEVEL`]. The true
    /// median lies outside if fewer than `k` numbers lie on one side of it, each side having the chance of a coin.
    fn of_sorted(sorted: &[f64]) -> Option<Confidence> {
        let n = sorted.len();
        if n < ROUNDS_FOR_CONFIDENCE {
            return None;
        }
        let level = |outside: f64| 1.0 - 2.0 * outside;
        // The logarithm of P(X = i) for X of Binomial(n, 1/2), beginning with 0: the number itself is 0 for a double from
        // a thousand rounds on.
        let mut exactly = n as f64 * 0.5_f64.ln();
        let (mut k, mut outside) = (1, exactly.exp());
        while 2 * (k + 1) <= n {
            exactly += ((n - k + 1) as f64 / k as f64).ln();
            if level(outside + exactly.exp()) < WANTED_LEVEL {
                break;
            }
            outside += exactly.exp();
            k += 1;
        }
        Some(Confidence { low: sorted[k - 1], high: sorted[n - k], level: level(outside) })
    }
}

/// Sorts, if all are finite numbers.
fn sort(numbers: &mut [f64]) -> Option<&[f64]> {
    if !numbers.iter().all(|number| number.is_finite()) {
        return None;
    }
    numbers.sort_by(f64::total_cmp);
    Some(numbers)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A series whose rounds differ in their rates alone.
    pub(crate) fn series(name: &str, rates: &[f64]) -> Series {
        let round = |rate: &f64| Round {
            ops_per_s: *rate,
            p50_us: 200,
            p99_us: 1500,
            p999_us: 3000,
            errors: 1,
            cpu_us_per_op: 2.5,
        };
        Series { name: name.to_owned(), rounds: rates.iter().map(round).collect() }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine became three times slower on the way: the medians' ratio would be 1, that of the rounds is 2 throughout.
        let comparison = compare(&[series("a", &[300.0, 200.0, 100.0]), series("b", &[600.0, 400.0, 200.0])]);
        assert_eq!((comparison.rounds, &comparison.series[0].ratios), (3, &None));
        let b = &comparison.series[1];
        assert_eq!(b.ops_per_s, Some(Spread { median: 400.0, min: 200.0, max: 600.0 }));
        let ratios = b.ratios.as_ref().expect("not the baseline");
        let two = Spread { median: 2.0, min: 2.0, max: 2.0 };
        assert_eq!(ratios.ops_per_s, Some(Ratio { spread: two, confidence: None }));
        assert_eq!(ratios.p99_us.expect("measured").spread.median, 1.0);
        assert_eq!(b.errors_total, 3);
    }

    #[test]
    fn the_interval_of_a_median_has_the_level_that_tables_give() {
        for (rounds, k, level) in [
            (5, 1, 0.9375),
            (6, 1, 0.968_75),
            (8, 1, 0.992_187_5),
            (9, 2, 0.960_937_5),
            (20, 6, 0.958_61),
            (100, 40, 0.9648),
        ] {
            let sorted: Vec<f64> = (1..=rounds).map(f64::from).collect();
            let confidence = Confidence::of_sorted(&sorted).expect("enough rounds");
            assert_eq!((confidence.low, confidence.high), (f64::from(k), f64::from(rounds + 1 - k)), "{rounds} rounds");
            assert!((confidence.level - level).abs() < 1e-4, "{rounds} rounds: {}", confidence.level);
        }
        assert_eq!(Confidence::of_sorted(&[1.0; 4]), None);
        let many: Vec<f64> = (1..=10_000).map(f64::from).collect();
        let confidence = Confidence::of_sorted(&many).expect("enough rounds");
        assert!((4900.0..4905.0).contains(&confidence.low) && confidence.level < 0.96, "{confidence:?}");
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        for (numbers, median) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 3.0], 2.5), (vec![7.0], 7.0)] {
            assert_eq!(Spread::of(numbers.clone()).map(|s| s.median), Some(median), "{numbers:?}");
        }
        for numbers in [vec![], vec![1.0, f64::NAN], vec![f64::INFINITY]] {
            assert_eq!(Spread::of(numbers), None);
        }
    }

    #[test]
    fn nothing_to_compare_and_nothing_to_divide_by_are_no_numbers() {
        assert_eq!(compare(&[]), Comparison { rounds: 0, series: vec![] });
        let none = compare(&[series("a", &[]), series("b", &[])]);
        assert_eq!((none.series[1].ops_per_s, none.series[1].ratios.as_ref().expect("b").ops_per_s), (None, None));
        let dead = compare(&[series("a", &[0.0, 5.0]), series("b", &[5.0, 5.0])]);
        assert_eq!(dead.series[1].ratios.as_ref().expect("b").ops_per_s, None);
        // Rounds that only one has are no pairs.
        assert_eq!(compare(&[series("a", &[1.0]), series("b", &[2.0, 9.0])]).rounds, 1);
    }

    #[test]
    fn a_comparison_is_json_with_the_level_beside_the_interval() {
        let comparison = compare(&[series("a", &[1.0; 6]), series("b", &[1.5; 6])]);
        let json = serde_json::to_value(&comparison).expect("JSON");
        let ratio = &json["series"][1]["ratios"]["ops_per_s"];
        assert_eq!((&ratio["median"], &ratio["confidence"]["level"]), (&1.5.into(), &0.968_75.into()));
    }

    #[test]
    fn a_ratio_says_little_when_its_interval_holds_one() {
        for (rates, little) in [
            (&[1.1, 1.2, 1.3][..], false),
            (&[0.9, 1.2, 1.3], true),
            (&[1.0, 1.0], true),
            (&[0.8, 0.9], false),
            // One odd round among nine does not count.
            (&[0.5, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1], false),
        ] {
            let ratio = Ratio::of(rates.to_vec()).expect("numbers");
            assert_eq!(ratio.says_little(), little, "{rates:?}");
        }
    }
}
