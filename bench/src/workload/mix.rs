//! Which kinds of operations there are, and how often each.

use super::{Invalid, Kind, decimal, serialize_as_written};
use rand::{RngExt, rngs::SmallRng};
use std::{fmt, str::FromStr};

/// Largest weight: sums stay exact enough.
const MAX_WEIGHT: f64 = 1e9;

/// Kinds of operations with their weights: `get`, or `get=95,put=5`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mix {
    /// In the order of [`Kind::ALL`], each once, weights above 0: the same mix draws the same, however it was written.
    weights: Vec<(Kind, f64)>,
    /// By kind: random 32-bit numbers below this, and not below the one before, draw it. The last has no need of one.
    bounds: Vec<u32>,
}

impl Mix {
    /// # Errors
    /// When nothing has a weight, a kind stands twice, or a weight is none.
    pub(crate) fn new(weights: &[(Kind, f64)]) -> Result<Mix, Invalid> {
        let mut weights = weights.to_vec();
        weights.sort_by_key(|(kind, _)| *kind);
        if let Some(pair) = weights.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Invalid(format!("{} stands twice; give each kind one weight", pair[0].0)));
        }
        if let Some((kind, weight)) = weights.iter().find(|(_, weight)| !(0.0..=MAX_WEIGHT).contains(weight)) {
            return Err(Invalid(format!("{weight} is no weight of {kind}; weights are 0 to {MAX_WEIGHT}")));
        }
        weights.retain(|(_, weight)| *weight > 0.0);
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let Some((_, but_last)) = weights.split_last() else {
            return Err(Invalid("no kind has a weight above 0; try get=95,put=5".to_owned()));
        };
        let mut below = 0.0;
        let bound = |(_, weight): &(Kind, f64)| {
            below += weight;
            // Saturates; a share is off by less than 2^-31.
            (below / sum * 2f64.powi(32)) as u32
        };
        let bounds = but_last.iter().map(bound).collect();
        Ok(Mix { weights, bounds })
    }

    /// One kind alone.
    pub(crate) fn only(kind: Kind) -> Mix {
        Mix { weights: vec![(kind, 1.0)], bounds: Vec::new() }
    }

    /// The kinds that there are.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.weights.iter().map(|(kind, _)| *kind)
    }

    pub(crate) fn contains(&self, kind: Kind) -> bool {
        self.kinds().any(|k| k == kind)
    }

    #[cfg(test)]
    /// How much of all operations are of this kind, 0 to 1.
    pub(crate) fn share(&self, kind: Kind) -> f64 {
        let sum: f64 = self.weights.iter().map(|(_, weight)| weight).sum();
        self.weights.iter().find(|(k, _)| *k == kind).map_or(0.0, |(_, weight)| weight / sum)
    }

    #[inline]
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> Kind {
        if self.bounds.is_empty() {
            return self.weights[0].0;
        }
        let random: u32 = rng.random();
        let at = self.bounds.iter().position(|bound| random < *bound).unwrap_or(self.bounds.len());
        self.weights[at].0
    }
}

impl FromStr for Mix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut weights = Vec::new();
        for part in text.split(',') {
            let (kind, weight) = part.split_once(['=', ':']).unwrap_or((part, "1"));
            let kind: Kind = kind.trim().parse()?;
            let weight = decimal(weight.trim())
                .ok_or_else(|| Invalid(format!("{weight:?} is no weight of {kind}; write a number, as in {kind}=5")))?;
            weights.push((kind, weight));
        }
        Mix::new(&weights)
    }
}

/// As it can be read again.
impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(kind, _)] = self.weights[..] {
            return kind.fmt(f);
        }
        for (i, (kind, weight)) in self.weights.iter().enumerate() {
            write!(f, "{}{kind}={weight}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

serialize_as_written!(Mix);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::rng;

    #[test]
    fn mixes_are_read_and_written() {
        for (text, written) in [
            ("get", "get"),
            ("get=95,put=5", "get=95,put=5"),
            ("put:5,get:95", "get=95,put=5"),
            ("get, put = 0.5", "get=1,put=0.5"),
            ("insert=3,scan=0", "insert"),
            ("batch=1,cas=1,rmw=1,incr=1,delete=1", "delete=1,cas=1,rmw=1,incr=1,batch=1"),
        ] {
            let mix: Mix = text.parse().expect(text);
            assert_eq!(mix.to_string(), written, "{text}");
            assert_eq!(serde_json::to_value(&mix).expect("JSON"), written);
            assert_eq!(written.parse::<Mix>().expect(written).to_string(), written);
        }
    }

    #[test]
    fn what_is_no_mix_is_told_why() {
        for (text, said) in [
            ("", "\"\" is no kind"),
            ("get=95,push=5", "\"push\" is no kind of operation; there are get, put, insert"),
            ("get=x", "\"x\" is no weight of get"),
            ("get=-1", "\"-1\" is no weight of get"),
            ("get=1e5", "no weight"),
            ("get=10000000000", "weights are 0 to 1000000000"),
            ("get=1,get=2", "get stands twice"),
            ("get=0,put=0", "no kind has a weight above 0"),
            ("get=95,", "\"\" is no kind"),
        ] {
            let error = text.parse::<Mix>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn every_kind_comes_as_often_as_its_weight_says() {
        let mix: Mix = "get=94,put=5,incr=1".parse().expect("valid");
        let (mut rng, mut drawn) = (rng(1, 0), [0_u32; Kind::ALL.len()]);
        let draws = 1_000_000;
        (0..draws).for_each(|_| drawn[mix.draw(&mut rng) as usize] += 1);
        for kind in Kind::ALL {
            let (share, expected) = (f64::from(drawn[kind as usize]) / f64::from(draws), mix.share(kind));
            assert!((share - expected).abs() <= expected * 0.03, "{kind}: {share} is not {expected}");
        }
    }
}
