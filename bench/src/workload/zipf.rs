//! Ranks after Zipf's law: rank k of n comes with a probability proportional to (k + 1)^-theta.
//!
//! Exact, for every theta above 0, by rejection from a staircase (Devroye, "Non-Uniform Random Variate Generation", 1986, chapter
//! II.3). The first ranks are steps of their own; each further step has 1/64 more ranks than all before it, which are nearly
//! equally likely. An alias table picks the step, a uniform number the rank in it, and at most 1 in 64 of those (for theta up to 1)
//! needs a power to decide whether it is kept.
//!
//! Not the method of Gray et al. (SIGMOD 1994) that YCSB uses: it is only close to the law, and only for theta below 1. Not
//! `rand_distr::Zipf`: it is exact, but takes up to three powers an attempt, about ten times as long as this.

use rand::{RngExt, rngs::SmallRng};
use rand_distr::{Distribution, weighted::WeightedAliasIndex};

/// Ranks that are steps of their own.
const SINGLE: u32 = 256;
/// A step holds this part of the number of ranks before it.
const GROWTH: u32 = 64;

#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    theta: f64,
    steps: Vec<Step>,
    pick: WeightedAliasIndex<f64>,
}

/// Ranks that are first taken for as likely as the first of them.
#[derive(Clone, Copy, Debug)]
struct Step {
    first: u32,
    ranks: u32,
    /// Below this a random number keeps every rank of the step.
    sure: f64,
}

impl Zipf {
    /// Over `n` ranks, at least one; `theta` from 0 to 10.
    pub(crate) fn new(n: u32, theta: f64) -> Zipf {
        let n = n.max(1);
        let (mut steps, mut weights, mut first) = (Vec::new(), Vec::new(), 0);
        while first < n {
            let ranks = if first < SINGLE { 1 } else { (first / GROWTH).min(n - first) };
            let likely = |rank: u32| (f64::from(rank) + 1.0).powf(-theta);
            let sure = likely(first + (ranks - 1)) / likely(first);
            steps.push(Step { first, ranks, sure });
            weights.push(likely(first) * f64::from(ranks));
            first += ranks;
        }
        let pick = WeightedAliasIndex::new(weights).expect("weights of 0 to 2^32, the first of them 1");
        Zipf { theta, steps, pick }
    }

    /// A rank: 0 is the most likely.
    #[inline]
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> u32 {
        loop {
            let Step { first, ranks, sure } = self.steps[self.pick.sample(rng)];
            if ranks == 1 {
                return first;
            }
            let rank = first + rng.random_range(0..ranks);
            let random: f64 = rng.random();
            if random < sure || random < self.ratio(first, rank) {
                return rank;
            }
        }
    }

    /// How likely a rank is, measured by an earlier one.
    #[cold]
    fn ratio(&self, first: u32, rank: u32) -> f64 {
        ((f64::from(first) + 1.0) / (f64::from(rank) + 1.0)).powf(self.theta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::rng;

    /// Pearson's statistic over groups of ranks, each of which is expected at least 100 times.
    fn chi_square(n: u32, theta: f64, draws: u32) -> (f64, usize) {
        let zipf = Zipf::new(n, theta);
        let (mut rng, mut drawn) = (rng(7, 0), vec![0_u32; n as usize]);
        (0..draws).for_each(|_| drawn[zipf.draw(&mut rng) as usize] += 1);
        let likely = |rank: usize| (rank as f64 + 1.0).powf(-theta);
        let sum: f64 = (0..drawn.len()).map(likely).sum();
        let (mut statistic, mut groups, mut seen, mut expected) = (0.0, 0, 0.0, 0.0);
        for (rank, count) in drawn.iter().enumerate() {
            seen += f64::from(*count);
            expected += likely(rank) / sum * f64::from(draws);
            if expected >= 100.0 {
                statistic += (seen - expected) * (seen - expected) / expected;
                (groups, seen, expected) = (groups + 1, 0.0, 0.0);
            }
        }
        (statistic, groups)
    }

    #[test]
    fn frequencies_are_those_of_the_law() {
        for (n, theta) in [(1, 0.99), (2, 0.5), (100, 0.99), (1000, 0.99), (1000, 1.0), (100_000, 0.5), (100_000, 1.5)]
        {
            let (statistic, groups) = chi_square(n, theta, 1_000_000);
            // The mean is one less than the groups, the deviation the root of twice as much; 5 deviations are never by chance.
            let bound = groups as f64 + 5.0 * (2.0 * groups as f64).sqrt();
            assert!(groups > 0 && statistic < bound, "n {n}, theta {theta}: {statistic} for {groups} groups");
        }
    }

    #[test]
    fn the_head_of_a_thousand_has_its_share() {
        let (zipf, mut rng) = (Zipf::new(1000, 0.99), rng(1, 0));
        let draws = 1_000_000;
        let mut drawn = [0_u32; 1000];
        (0..draws).for_each(|_| drawn[zipf.draw(&mut rng) as usize] += 1);
        let sum: f64 = (1..=1000).map(|k| f64::from(k).powf(-0.99)).sum();
        for (rank, count) in (1..=10).zip(drawn) {
            let (share, law) = (f64::from(count) / f64::from(draws), f64::from(rank).powf(-0.99) / sum);
            assert!((share / law - 1.0).abs() < 0.03, "rank {rank}: {share} is not {law}");
        }
    }

    #[test]
    fn steps_cover_every_rank_once_and_stay_few() {
        for n in [1, 2, 255, 256, 257, 1000, 65_536, 100_000_007, u32::MAX] {
            let zipf = Zipf::new(n, 0.99);
            let mut next = 0;
            for step in &zipf.steps {
                assert_eq!(step.first, next);
                next += step.ranks;
            }
            assert_eq!(next, n);
            assert!(zipf.steps.len() < 2000, "{n}: {} steps", zipf.steps.len());
        }
    }

    #[test]
    fn a_steep_law_ends_too() {
        let (zipf, mut rng) = (Zipf::new(u32::MAX, 10.0), rng(1, 0));
        let first = (0..10_000).filter(|_| zipf.draw(&mut rng) == 0).count();
        assert!(first > 9_900, "{first}");
    }
}
