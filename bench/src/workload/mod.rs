//! What is asked for: kinds of operations, keys, values, and when. Pure: the same seed gives the same sequence.
//!
//! `mix` which kind · `keys` which key, and what keys are called (`zipf`: some far more often than others) · `sizes` how long
//! values are · `values` their bytes, and stamps by which they are known again · `draw` all of it together: the sequence of
//! operations of one unit of load · `pace` when each is due, and how long users think · `presets` workloads with a name.
//!
//! A *unit* of load is whatever draws by itself, mostly a thread. Units share nothing: what one of them draws depends on the seed,
//! its number and how many there are, never on how fast the others are.

mod draw;
mod keys;
mod mix;
mod pace;
mod presets;
mod sizes;
mod values;
mod zipf;

pub(crate) use draw::{Draw, Drawn, Workload};
pub(crate) use keys::{KeyChoice, KeyNames};
pub(crate) use mix::Mix;
pub(crate) use pace::{Arrivals, Rate, Schedule, Think};
pub(crate) use presets::Preset;
pub(crate) use sizes::{Sizes, SizesSource};
pub(crate) use values::{STAMP_BYTES, Stamp, Values};

use rand::{SeedableRng, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A kind of operation, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Reads a key.
    Get,
    /// Writes a key, whatever is there.
    Put,
    /// Writes a key that was not there yet: the next number.
    Insert,
    /// Removes a key.
    Delete,
    /// Reads a key and writes it if nobody else has meanwhile.
    Cas,
    /// Reads a key and writes it, whoever has meanwhile.
    Rmw,
    /// Adds 1 to a counter.
    Incr,
    /// Reads several keys with successive numbers.
    Scan,
    /// Writes several keys.
    Batch,
}

impl Kind {
    pub(crate) const ALL: [Kind; 9] =
        [Kind::Get, Kind::Put, Kind::Insert, Kind::Delete, Kind::Cas, Kind::Rmw, Kind::Incr, Kind::Scan, Kind::Batch];

    /// As it is written on the command line and in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put => "put",
            Kind::Insert => "insert",
            Kind::Delete => "delete",
            Kind::Cas => "cas",
            Kind::Rmw => "rmw",
            Kind::Incr => "incr",
            Kind::Scan => "scan",
            Kind::Batch => "batch",
        }
    }

    /// Whether it writes values, which have a length.
    pub(crate) fn writes_values(self) -> bool {
        matches!(self, Kind::Put | Kind::Insert | Kind::Cas | Kind::Rmw | Kind::Batch)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            Invalid(format!("{text:?} is no kind of operation; there are {names}"))
        })
    }
}

/// Why a text, or a workload of several, does not say what is to be done: a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

/// The randomness of one unit of load.
pub(crate) fn rng(seed: u64, unit: u32) -> SmallRng {
    // SplitMix64's increment: neighbouring units get distant states.
    SmallRng::seed_from_u64(seed ^ u64::from(unit).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A number as people write it: digits, perhaps with a fraction; no sign, no exponent, no infinity.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    // 20 digits hold every number that is allowed anywhere.
    (plain && text.len() <= 20).then(|| text.parse().ok()).flatten()
}

/// Results name settings as the command line does.
macro_rules! serialize_as_written {
    ($($type:ty),+) => {
        $(impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        })+
    };
}
use serialize_as_written;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn kinds_are_read_by_the_names_that_results_have() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).expect("JSON"), kind.name());
        }
        let error = "gets".parse::<Kind>().expect_err("no kind").to_string();
        assert!(error.contains("\"gets\"") && error.contains("get, put, insert"), "{error}");
    }

    #[test]
    fn the_seed_and_the_unit_decide() {
        let draw = |seed, unit| rng(seed, unit).random::<u64>();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn numbers_are_plain_ones() {
        for (text, number) in [("0", Some(0.0)), ("12.5", Some(12.5)), (".5", Some(0.5)), ("100000000", Some(1e8))] {
            assert_eq!(decimal(text), number, "{text}");
        }
        for text in ["", ".", "-1", "+1", "1e3", "inf", "NaN", " 1", "1_000", "1.2.3", "123456789012345678901"] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }
}
