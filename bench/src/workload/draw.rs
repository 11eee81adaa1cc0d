//! The sequence of operations that one unit of load asks for.

use super::{
    Invalid, Kind,
    keys::{KeyChoice, KeyNames, Keys},
    mix::Mix,
    rng,
    sizes::Sizes,
};
use rand::{RngExt, rngs::SmallRng};
use serde::Serialize;
use std::sync::Arc;

/// Most keys that one scan or batch has.
pub(crate) const MAX_SPAN: u32 = 100_000;

/// What all units draw from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) mix: Mix,
    pub(crate) keys: KeyChoice,
    /// How many keys there are before anything is inserted.
    pub(crate) count: u32,
    pub(crate) names: KeyNames,
    pub(crate) sizes: Sizes,
    /// Least and most keys that a scan reads.
    pub(crate) scan_length: (u32, u32),
    /// How many keys a batch writes.
    pub(crate) batch_size: u32,
    pub(crate) seed: u64,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) kind: Kind,
    /// The first one, where there are several; see [`Workload::span`].
    pub(crate) key: u32,
    /// Bytes of each value that is written; 0 where none is.
    pub(crate) length: u32,
    /// How many keys a scan reads or a batch writes; else 1.
    pub(crate) span: u32,
    /// Counts what the unit draws, from 0.
    pub(crate) number: u64,
}

impl Workload {
    /// Checks what each part alone cannot know.
    ///
    /// # Errors
    /// With a sentence.
    pub(crate) fn check(&self, units: u32) -> Result<(), Invalid> {
        self.names.check()?;
        let (least, most) = self.scan_length;
        if !(1..=MAX_SPAN).contains(&least) || !(least..=MAX_SPAN).contains(&most) {
            return Err(Invalid(format!(
                "scans cannot have {least} to {most} keys; have 1 to {MAX_SPAN}, least first"
            )));
        }
        if !(1..=MAX_SPAN).contains(&self.batch_size) {
            return Err(Invalid(format!("batches cannot have {} keys; have 1 to {MAX_SPAN}", self.batch_size)));
        }
        Keys::new(self.keys, self.count, 0, units).map(drop)
    }

    /// The keys of an operation: successive numbers, and after the last key the first.
    #[inline]
    pub(crate) fn span(&self, drawn: &Drawn) -> impl Iterator<Item = u32> + use<> {
        let (key, count) = (u64::from(drawn.key), u64::from(self.count));
        // An inserted key lies beyond the count and is alone.
        (0..u64::from(drawn.span)).map(move |i| if i == 0 { key as u32 } else { ((key + i) % count) as u32 })
    }
}

/// What one unit draws: the same for the same workload, unit and number of units.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    workload: Arc<Workload>,
    keys: Keys,
    rng: SmallRng,
    number: u64,
}

impl Draw {
    /// For unit `unit` of `units`, which has at most `slots` operations under way: so many of the newest inserts may not be there yet, and
    /// are not asked for. (YCSB asks for what was acknowledged, which depends on the time.)
    ///
    /// # Errors
    /// As of [`Workload::check`], which is to be asked first; and if there is no such unit.
    pub(crate) fn new(workload: Arc<Workload>, unit: u32, units: u32, slots: u32) -> Result<Draw, Invalid> {
        workload.check(units)?;
        let mut keys = Keys::new(workload.keys, workload.count, unit, units)?;
        keys.pass_over(slots);
        let rng = rng(workload.seed, unit);
        Ok(Draw { workload, keys, rng, number: 0 })
    }

    #[inline]
    pub(crate) fn next(&mut self) -> Drawn {
        let workload = &*self.workload;
        let kind = workload.mix.draw(&mut self.rng);
        let key = match kind {
            Kind::Insert => self.keys.insert(),
            // Inserted keys of one unit are no neighbours.
            Kind::Scan | Kind::Batch => self.keys.draw(&mut self.rng) % workload.count,
            _ => self.keys.draw(&mut self.rng),
        };
        let length = if kind.writes_values() { workload.sizes.draw(&mut self.rng) } else { 0 };
        let span = match kind {
            Kind::Scan => self.rng.random_range(workload.scan_length.0..=workload.scan_length.1).min(workload.count),
            Kind::Batch => workload.batch_size.min(workload.count),
            _ => 1,
        };
        let number = self.number;
        self.number += 1;
        Drawn { kind, key, length, span, number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(mix: &str, keys: &str, count: u32) -> Workload {
        Workload {
            mix: mix.parse().expect(mix),
            keys: keys.parse().expect(keys),
            count,
            names: KeyNames::default(),
            sizes: "64-1024".parse().expect("valid"),
            scan_length: (1, 100),
            batch_size: 10,
            seed: 1,
        }
    }

    fn draws(workload: Workload, unit: u32, n: usize) -> Vec<Drawn> {
        let mut draw = Draw::new(Arc::new(workload), unit, 4, 0).expect("valid");
        (0..n).map(|_| draw.next()).collect()
    }

    const ALL: &str = "get=5,put=2,insert=1,delete=1,cas=1,rmw=1,incr=1,scan=1,batch=1";
    const CHOICES: [&str; 5] = ["uniform", "zipfian", "latest", "hotspot", "sequential"];

    #[test]
    fn the_same_unit_draws_the_same_and_another_does_not() {
        for keys in CHOICES {
            let one = draws(workload(ALL, keys, 1000), 1, 1000);
            assert_eq!(one, draws(workload(ALL, keys, 1000), 1, 1000), "{keys}");
            assert_ne!(one, draws(workload(ALL, keys, 1000), 2, 1000), "{keys}");
            assert_ne!(one, draws(Workload { seed: 2, ..workload(ALL, keys, 1000) }, 1, 1000), "{keys}");
        }
    }

    #[test]
    fn operations_have_what_their_kind_needs_and_no_more() {
        for keys in CHOICES {
            for (i, drawn) in draws(workload(ALL, keys, 1000), 3, 10_000).into_iter().enumerate() {
                assert_eq!(drawn.number, i as u64);
                let inserted = drawn.kind == Kind::Insert || keys == "latest" && drawn.span == 1;
                assert!(drawn.key < 1000 || inserted && drawn.key % 4 == 3, "{keys}: {drawn:?}");
                let lengths = if drawn.kind.writes_values() { 64..=1024 } else { 0..=0 };
                assert!(lengths.contains(&drawn.length), "{drawn:?}");
                let spans = match drawn.kind {
                    Kind::Scan => 1..=100,
                    Kind::Batch => 10..=10,
                    _ => 1..=1,
                };
                assert!(spans.contains(&drawn.span), "{drawn:?}");
            }
        }
    }

    #[test]
    fn spans_go_round_and_have_no_key_twice() {
        let workload = Workload { scan_length: (100, 100), ..workload("scan", "uniform", 7) };
        let mut draw = Draw::new(Arc::new(workload.clone()), 0, 1, 0).expect("valid");
        let drawn = draw.next();
        let keys: Vec<_> = workload.span(&drawn).collect();
        let expected: Vec<_> = (0..7).map(|i| (drawn.key + i) % 7).collect();
        assert_eq!(keys, expected);
        let insert = Drawn { kind: Kind::Insert, key: 9, length: 1, span: 1, number: 0 };
        assert_eq!(workload.span(&insert).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        for (workload, said) in [
            (workload("get", "uniform", 0), "one is needed"),
            (workload("insert", "uniform", u32::MAX - 1), "use fewer keys"),
            (Workload { scan_length: (0, 5), ..workload("get", "uniform", 10) }, "scans cannot have 0 to 5"),
            (Workload { scan_length: (5, 4), ..workload("get", "uniform", 10) }, "scans cannot have 5 to 4"),
            (Workload { scan_length: (1, u32::MAX), ..workload("get", "uniform", 10) }, "1 to 100000"),
            (Workload { batch_size: 0, ..workload("get", "uniform", 10) }, "batches cannot have 0"),
            (Workload { names: KeyNames::Single(String::new()), ..workload("get", "uniform", 10) }, "the key is empty"),
        ] {
            let error = Draw::new(Arc::new(workload), 0, 4, 0).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(Draw::new(Arc::new(workload("get", "uniform", 10)), 4, 4, 0).is_err(), "no such unit");
    }

    #[test]
    fn results_say_what_was_drawn_from() {
        let json = serde_json::to_value(workload("get=95,put=5", "zipfian", 10)).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "mix": "get=95,put=5", "keys": "zipfian:0.99", "count": 10, "names": { "numbered": { "prefix": "key:" } },
                "sizes": "64-1024", "scan_length": [1, 100], "batch_size": 10, "seed": 1
            })
        );
    }

    /// What a draw costs: `cargo test --release -p kvbench -- --ignored --nocapture cost_of`.
    #[test]
    #[ignore = "a measurement, of release builds"]
    fn cost_of_a_draw() {
        const DRAWS: u32 = 20_000_000;
        for (mix, keys) in [
            ("get", "uniform"),
            ("get=50,put=50", "uniform"),
            ("get", "zipfian"),
            ("get=95,insert=5", "latest"),
            ("get", "hotspot"),
            ("get", "sequential"),
        ] {
            let workload = Arc::new(workload(mix, keys, 100_000_000));
            let before = std::time::Instant::now();
            let mut draw = Draw::new(workload, 0, 1, 0).expect("valid");
            let setup = before.elapsed();
            let (before, mut sum) = (std::time::Instant::now(), 0_u64);
            (0..DRAWS).for_each(|_| sum = sum.wrapping_add(u64::from(draw.next().key)));
            let each = before.elapsed().as_secs_f64() / f64::from(DRAWS) * 1e9;
            println!("{mix:>16} {keys:>10}: {each:5.1} ns a draw, {setup:?} to begin ({sum})");
        }
        let mut name = Vec::new();
        let (before, names, mut sum) = (std::time::Instant::now(), KeyNames::default(), 0_u64);
        for i in 0..DRAWS {
            names.key(i, &mut name);
            sum += u64::from(name[15]);
        }
        println!("a name: {:.1} ns ({sum})", before.elapsed().as_secs_f64() / f64::from(DRAWS) * 1e9);
    }
}
