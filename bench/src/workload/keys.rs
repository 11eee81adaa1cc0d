//! Which key comes next, and what keys are called.

use super::{Invalid, decimal, serialize_as_written, zipf::Zipf};
use kv_proto::limits::MAX_KEY_BYTES;
use rand::{RngExt, rngs::SmallRng};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// The exponent that YCSB uses.
const DEFAULT_THETA: f64 = 0.99;
/// Steeper laws take one key and no other.
const MAX_THETA: f64 = 10.0;
/// Digits of a key's number in its name: as many as the largest number has, and two for the eye.
const DIGITS: usize = 12;

/// How the next key is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum KeyChoice {
    /// Every key is as likely.
    Uniform,
    /// After Zipf's law (see [`Zipf`]); the likely keys are scattered over all of them.
    Zipfian { theta: f64 },
    /// After Zipf's law, counted from the newest key back.
    Latest { theta: f64 },
    /// Some keys, in percent, share some of the operations, in percent; within both groups every key is as likely.
    Hotspot { keys: f64, ops: f64 },
    /// One after the other. All units together go through all keys.
    Sequential,
}

impl FromStr for KeyChoice {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let arguments: Vec<_> = words.collect();
        let theta = || match arguments[..] {
            [] => Ok(DEFAULT_THETA),
            [theta] => decimal(theta).filter(|theta| *theta > 0.0 && *theta <= MAX_THETA).ok_or_else(|| {
                Invalid(format!("{theta:?} is no exponent for {name}: write one above 0 and up to {MAX_THETA}"))
            }),
            _ => Err(Invalid(format!("{text:?} has too many numbers; write {name} or {name}:{DEFAULT_THETA}"))),
        };
        match name {
            "zipfian" => Ok(KeyChoice::Zipfian { theta: theta()? }),
            "latest" => Ok(KeyChoice::Latest { theta: theta()? }),
            "hotspot" => {
                let percent = |text| decimal(text).filter(|n| (0.0..=100.0).contains(n));
                let numbers = match arguments[..] {
                    [] => Some((20.0, 80.0)),
                    [keys, ops] => percent(keys).filter(|keys| *keys > 0.0).zip(percent(ops)),
                    _ => None,
                };
                let (keys, ops) = numbers.ok_or_else(|| {
                    Invalid(format!(
                        "{text:?} is no hotspot; write hotspot:20:80 for 20 percent of the keys that get 80 percent of the operations"
                    ))
                })?;
                Ok(KeyChoice::Hotspot { keys, ops })
            }
            "uniform" | "sequential" if !arguments.is_empty() => Err(Invalid(format!("{name} has no numbers"))),
            "uniform" => Ok(KeyChoice::Uniform),
            "sequential" => Ok(KeyChoice::Sequential),
            _ => Err(Invalid(format!(
                "{name:?} is no way to choose keys; there are uniform, zipfian[:THETA], latest[:THETA], \
                 hotspot[:KEYS%:OPERATIONS%], sequential"
            ))),
        }
    }
}

/// As it can be read again.
impl fmt::Display for KeyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyChoice::Uniform => f.write_str("uniform"),
            KeyChoice::Zipfian { theta } => write!(f, "zipfian:{theta}"),
            KeyChoice::Latest { theta } => write!(f, "latest:{theta}"),
            KeyChoice::Hotspot { keys, ops } => write!(f, "hotspot:{keys}:{ops}"),
            KeyChoice::Sequential => f.write_str("sequential"),
        }
    }
}

serialize_as_written!(KeyChoice);

/// The keys of one unit of load.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    count: u32,
    way: Way,
    inserts: Inserts,
}

#[derive(Clone, Debug)]
enum Way {
    Uniform,
    Zipfian { zipf: Zipf, scatter: Scatter },
    Latest { zipf: Zipf },
    Hotspot { hot: u32, share: f64, scatter: Scatter },
    Sequential { next: u32, step: u32 },
}

impl Keys {
    /// Chooses among `count` keys, for unit `unit` of `units`.
    ///
    /// # Errors
    /// When there is no key, no such unit, or no number left for keys that are inserted.
    pub(crate) fn new(choice: KeyChoice, count: u32, unit: u32, units: u32) -> Result<Keys, Invalid> {
        if count == 0 {
            return Err(Invalid("0 keys are too few; one is needed".to_owned()));
        }
        let inserts = Inserts::new(count, unit, units)?;
        let scatter = Scatter::new(count);
        let way = match choice {
            KeyChoice::Uniform => Way::Uniform,
            KeyChoice::Zipfian { theta } => Way::Zipfian { zipf: Zipf::new(count, theta), scatter },
            KeyChoice::Latest { theta } => Way::Latest { zipf: Zipf::new(count, theta) },
            KeyChoice::Hotspot { keys, ops } => {
                let hot = (f64::from(count) * keys / 100.0).round() as u32;
                Way::Hotspot { hot: hot.clamp(1, count), share: ops / 100.0, scatter }
            }
            KeyChoice::Sequential => Way::Sequential { next: unit % count, step: units % count },
        };
        Ok(Keys { count, way, inserts })
    }

    /// Lets `latest` pass over so many of the newest keys that this unit inserts.
    pub(super) fn pass_over(&mut self, unsettled: u32) {
        self.inserts.unsettled = unsettled;
    }

    /// The key of an operation on one that is there.
    #[inline]
    pub(crate) fn draw(&mut self, rng: &mut SmallRng) -> u32 {
        let count = self.count;
        match &mut self.way {
            Way::Uniform => rng.random_range(0..count),
            Way::Zipfian { zipf, scatter } => scatter.key(zipf.draw(rng)),
            Way::Latest { zipf } => self.inserts.newest(zipf.draw(rng)),
            Way::Hotspot { hot, share, scatter } => {
                let in_hot = *hot == count || rng.random::<f64>() < *share;
                scatter.key(if in_hot { rng.random_range(0..*hot) } else { rng.random_range(*hot..count) })
            }
            Way::Sequential { next, step } => {
                let key = *next;
                *next = ((u64::from(key) + u64::from(*step)) % u64::from(count)) as u32;
                key
            }
        }
    }

    /// The next key that is not there yet.
    #[inline]
    pub(crate) fn insert(&mut self) -> u32 {
        self.inserts.next()
    }
}

/// Puts ranks in another order, so that likely keys are not neighbours: rank times a number that has no divisor in common with the
/// count of keys. A bijection, unlike the hash that YCSB takes, by which some keys get the load of several and others none.
#[derive(Clone, Copy, Debug)]
struct Scatter {
    count: u64,
    factor: u64,
}

impl Scatter {
    fn new(count: u32) -> Scatter {
        let count = u64::from(count.max(1));
        // Multiples of the golden ratio lie as far from each other as can be, however many of them there are.
        let mut factor = ((count as f64 * 0.618_033_988_749_894_9) as u64).max(1);
        while gcd(factor, count) != 1 {
            factor += 1;
        }
        Scatter { count, factor }
    }

    #[inline]
    fn key(self, rank: u32) -> u32 {
        (u64::from(rank) * self.factor % self.count) as u32
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Keys that a unit inserts. Unit u of U makes the keys count + n·U + u for n = 0, 1, 2, …: no two units make the same, and none
/// needs to know how far the others are. When the numbers end it begins anew and replaces its oldest ones.
#[derive(Clone, Copy, Debug)]
struct Inserts {
    count: u32,
    unit: u32,
    units: u32,
    /// How many this unit has made, and after how many it begins anew.
    made: u64,
    room: u64,
    /// How many of the newest are passed over, since they may be on their way.
    unsettled: u32,
}

impl Inserts {
    fn new(count: u32, unit: u32, units: u32) -> Result<Inserts, Invalid> {
        if unit >= units {
            return Err(Invalid(format!("unit {unit} of {units} is none of them; they are counted from 0")));
        }
        let left = u32::MAX - count;
        if units > left {
            return Err(Invalid(format!(
                "{count} keys leave no number for those that {units} units of load insert; use fewer keys"
            )));
        }
        Ok(Inserts { count, unit, units, made: 0, room: u64::from((left - unit) / units) + 1, unsettled: 0 })
    }

    fn next(&mut self) -> u32 {
        self.made += 1;
        self.nth(self.made - 1)
    }

    fn nth(&self, n: u64) -> u32 {
        // At most u32::MAX: n % room is at most (u32::MAX - count - unit) / units.
        self.count + (n % self.room) as u32 * self.units + self.unit
    }

    /// The key that is `back` keys older than the newest that is not passed over, `back` below the count of keys: this unit's own
    /// inserts, then the keys that were there before. Of what others insert it knows nothing.
    fn newest(&self, back: u32) -> u32 {
        let own = self.made.min(self.room);
        let back = u64::from(back) + own.min(self.unsettled.into());
        match back.checked_sub(own) {
            None => self.nth(self.made - 1 - back),
            Some(back) => self.count - 1 - back as u32,
        }
    }
}

/// What keys are called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyNames {
    /// The prefix and the key's number in 12 digits: `key:000000000042`.
    Numbered { prefix: String },
    /// All keys are this one.
    Single(String),
}

impl Default for KeyNames {
    fn default() -> Self {
        KeyNames::Numbered { prefix: "key:".to_owned() }
    }
}

impl KeyNames {
    /// # Errors
    /// When names would be longer than what every target takes, or empty.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        match self.bytes() {
            0 => Err(Invalid("the key is empty; a key has 1 to 4096 bytes".to_owned())),
            1..=MAX_KEY_BYTES => Ok(()),
            n => Err(Invalid(format!("keys would have {n} bytes, more than {MAX_KEY_BYTES}; use a shorter prefix"))),
        }
    }

    /// Bytes of a name: all have as many.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            KeyNames::Numbered { prefix } => prefix.len() + DIGITS,
            KeyNames::Single(name) => name.len(),
        }
    }

    /// Replaces what is in `out` by the name of a key.
    #[inline]
    pub(crate) fn key(&self, index: u32, out: &mut Vec<u8>) {
        out.clear();
        match self {
            KeyNames::Single(name) => out.extend_from_slice(name.as_bytes()),
            KeyNames::Numbered { prefix } => {
                let mut digits = [b'0'; DIGITS];
                let mut rest = index;
                for digit in digits.iter_mut().rev() {
                    if rest == 0 {
                        break;
                    }
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
                out.extend_from_slice(prefix.as_bytes());
                out.extend_from_slice(&digits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::rng;

    #[test]
    fn choices_are_read_and_written() {
        for (text, written) in [
            ("uniform", "uniform"),
            ("zipfian", "zipfian:0.99"),
            ("zipfian:1.2", "zipfian:1.2"),
            ("latest", "latest:0.99"),
            ("latest:0.50", "latest:0.5"),
            ("hotspot", "hotspot:20:80"),
            ("hotspot:0.1:99.9", "hotspot:0.1:99.9"),
            ("sequential", "sequential"),
        ] {
            let choice: KeyChoice = text.parse().expect(text);
            assert_eq!(choice.to_string(), written);
            assert_eq!(written.parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).expect("JSON"), written);
        }
        for (text, said) in [
            ("", "there are uniform, zipfian"),
            ("zipf", "\"zipf\" is no way to choose keys"),
            ("zipfian:0", "\"0\" is no exponent for zipfian"),
            ("zipfian:11", "up to 10"),
            ("latest:x", "\"x\" is no exponent for latest"),
            ("zipfian:1:2", "too many numbers"),
            ("hotspot:20", "write hotspot:20:80"),
            ("hotspot:0:80", "write hotspot:20:80"),
            ("hotspot:20:101", "write hotspot:20:80"),
            ("uniform:3", "uniform has no numbers"),
        ] {
            let error = text.parse::<KeyChoice>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn every_rank_has_a_key_of_its_own() {
        for count in [1, 2, 3, 4, 5, 7, 8, 10, 64, 97, 1000, 1024, 7919, 65_536, 65_537, 100_000] {
            let (scatter, mut taken) = (Scatter::new(count), vec![false; count as usize]);
            for rank in 0..count {
                let key = scatter.key(rank);
                assert!(!std::mem::replace(&mut taken[key as usize], true), "{count}: {key} twice");
            }
        }
        for count in [4_294_967_291, u32::MAX] {
            let scatter = Scatter::new(count);
            assert_eq!(gcd(scatter.factor, scatter.count), 1);
            assert!(scatter.key(count - 1) < count);
        }
    }

    #[test]
    fn likely_keys_are_no_neighbours() {
        let scatter = Scatter::new(1_000_000);
        let mut hot: Vec<_> = (0..100).map(|rank| scatter.key(rank)).collect();
        hot.sort_unstable();
        assert!(hot.windows(2).all(|pair| pair[1] - pair[0] > 3_000), "{hot:?}");
    }

    fn draws(choice: &str, count: u32, n: usize) -> Vec<u32> {
        let mut keys = Keys::new(choice.parse().expect(choice), count, 0, 1).expect("valid");
        let (mut rng, mut drawn) = (rng(1, 0), vec![0; count as usize]);
        (0..n).for_each(|_| drawn[keys.draw(&mut rng) as usize] += 1);
        drawn
    }

    #[test]
    fn uniform_takes_all_alike() {
        let drawn = draws("uniform", 1000, 1_000_000);
        assert!(drawn.iter().all(|n| (800..1200).contains(n)), "{drawn:?}");
    }

    #[test]
    fn a_hotspot_has_its_share() {
        for (choice, hot, share) in
            [("hotspot:20:80", 200, 0.8), ("hotspot:0.1:50", 1, 0.5), ("hotspot:100:10", 1000, 1.0)]
        {
            let mut drawn = draws(choice, 1000, 1_000_000);
            drawn.sort_unstable_by(|a, b| b.cmp(a));
            let in_hot: u32 = drawn[..hot].iter().sum();
            assert!((f64::from(in_hot) / 1e6 - share).abs() < 0.01, "{choice}: {in_hot}");
        }
    }

    #[test]
    fn units_go_through_all_keys_together() {
        let mut keys: Vec<_> =
            (0..3).map(|unit| Keys::new(KeyChoice::Sequential, 10, unit, 3).expect("valid")).collect();
        let mut rng = rng(1, 0);
        let drawn: Vec<_> = (0..20).map(|n| keys[n % 3].draw(&mut rng)).collect();
        assert_eq!(drawn, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let mut one = Keys::new(KeyChoice::Sequential, 1, 4, 5).expect("valid");
        assert_eq!((one.draw(&mut rng), one.draw(&mut rng)), (0, 0));
    }

    #[test]
    fn no_two_units_insert_the_same_key() {
        let mut inserts: Vec<_> = (0..3).map(|unit| Inserts::new(100, unit, 3).expect("valid")).collect();
        let made: Vec<_> = (0..9).map(|n| inserts[n % 3].next()).collect();
        assert_eq!(made, [100, 101, 102, 103, 104, 105, 106, 107, 108]);
    }

    #[test]
    fn numbers_that_end_begin_anew() {
        let count = u32::MAX - 4;
        // 4 units, 5 numbers: the first unit has two of them.
        let mut first = Inserts::new(count, 0, 4).expect("valid");
        assert_eq!([first.next(), first.next(), first.next()], [count, u32::MAX, count]);
        assert_eq!([first.newest(0), first.newest(1), first.newest(2)], [count, u32::MAX, count - 1]);
        let mut last = Inserts::new(count, 3, 4).expect("valid");
        assert_eq!([last.next(), last.next()], [u32::MAX - 1; 2]);
    }

    #[test]
    fn the_newest_are_the_own_inserts_and_then_the_common_keys() {
        let mut inserts = Inserts::new(5, 1, 2).expect("valid");
        assert_eq!([inserts.newest(0), inserts.newest(4)], [4, 0]);
        (0..2).for_each(|_| _ = inserts.next());
        assert_eq!([0, 1, 2, 3, 4].map(|back| inserts.newest(back)), [8, 6, 4, 3, 2]);
        let late = |unsettled| Inserts { unsettled, ..inserts };
        assert_eq!([0, 1, 2, 3].map(|back| late(1).newest(back)), [6, 4, 3, 2]);
        assert_eq!(
            [0, 1, 2, 3].map(|back| late(10).newest(back)),
            [3, 2, 1, 0].map(|key| key + inserts.count - 4),
            "no insert is settled"
        );

        let mut keys = Keys::new("latest".parse().expect("valid"), 1000, 0, 1).expect("valid");
        let mut rng = rng(1, 0);
        let newest = (0..2000).map(|_| keys.insert()).last().expect("some");
        let drawn: Vec<_> = (0..10_000).map(|_| keys.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|key| (newest - 999..=newest).contains(key)));
        let at_head = drawn.iter().filter(|key| **key == newest).count();
        assert!((1200..1500).contains(&at_head), "{at_head}");
    }

    #[test]
    fn what_has_no_keys_or_numbers_is_refused() {
        for (count, unit, units, said) in [
            (0, 0, 1, "one is needed"),
            (u32::MAX - 3, 0, 4, "use fewer keys"),
            (10, 2, 2, "none of them"),
            (10, 0, 0, "none"),
        ] {
            let error = Keys::new(KeyChoice::Uniform, count, unit, units).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn names_have_the_number_in_them() {
        let mut name = b"old".to_vec();
        for index in [0, 7, 10, 1_000_000, u32::MAX] {
            KeyNames::default().key(index, &mut name);
            assert_eq!(name, format!("key:{index:012}").as_bytes());
            assert_eq!(name.len(), KeyNames::default().bytes());
        }
        let single = KeyNames::Single("sample_key".to_owned());
        single.key(9, &mut name);
        assert_eq!((name.as_slice(), single.bytes()), (b"sample_key".as_slice(), 10));
        for (names, valid) in [
            (KeyNames::Single(String::new()), false),
            (KeyNames::Numbered { prefix: String::new() }, true),
            (KeyNames::Numbered { prefix: "x".repeat(4084) }, true),
            (KeyNames::Numbered { prefix: "x".repeat(4085) }, false),
        ] {
            assert_eq!(names.check().is_ok(), valid, "{} bytes", names.bytes());
        }
    }
}
