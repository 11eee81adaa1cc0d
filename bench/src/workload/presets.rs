//! Workloads with a name. A preset only says what holds where no flag says otherwise.
//!
//! `ycsb-a` to `ycsb-f` are the core workloads of Cooper, Silberstein, Tam, Ramakrishnan and Sears, "Benchmarking Cloud Serving Systems
//! with YCSB", SoCC 2010, with the values that YCSB writes by default: 10 fields of 100 bytes. Two things differ from its code: likely keys
//! are scattered by a bijection instead of a hash (see `keys`), and a value is written whole, never one field of it.

use super::{KeyChoice, KeyNames, Kind, Mix, Sizes, Think};
use clap::ValueEnum;
use serde::Serialize;
use std::time::Duration;

/// Bytes of a value that YCSB writes.
const YCSB_VALUE_BYTES: u32 = 1000;
const ZIPFIAN: KeyChoice = KeyChoice::Zipfian { theta: 0.99 };
const LATEST: KeyChoice = KeyChoice::Latest { theta: 0.99 };

/// A workload with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// A session store: half reads, half writes; some keys far more often than others
    YcsbA,
    /// Tags of photos: 95 percent reads, 5 percent writes; some keys far more often than others
    YcsbB,
    /// A cache of profiles: reads alone; some keys far more often than others
    YcsbC,
    /// News: 95 percent reads, mostly of the newest keys, 5 percent inserts
    YcsbD,
    /// Threads of a conversation: 95 percent scans of 1 to 100 keys, 5 percent inserts
    YcsbE,
    /// A user database: half reads, half reads with a write of the same key behind them
    YcsbF,
    /// 100 users of one key, each of whom reads or writes and then thinks for 1 to 3 seconds
    Original,
}

/// What a preset says; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) mix: Option<Mix>,
    pub(crate) keys: Option<KeyChoice>,
    pub(crate) count: Option<u32>,
    pub(crate) names: Option<KeyNames>,
    pub(crate) sizes: Option<Sizes>,
    pub(crate) scan_length: Option<(u32, u32)>,
    pub(crate) connections: Option<u32>,
    pub(crate) pipeline: Option<u32>,
    pub(crate) think: Option<Think>,
}

impl Preset {
    pub(crate) fn defaults(self) -> Defaults {
        match self {
            Preset::YcsbA => ycsb(&[(Kind::Get, 50.0), (Kind::Put, 50.0)], ZIPFIAN),
            Preset::YcsbB => ycsb(&[(Kind::Get, 95.0), (Kind::Put, 5.0)], ZIPFIAN),
            Preset::YcsbC => ycsb(&[(Kind::Get, 100.0)], ZIPFIAN),
            Preset::YcsbD => ycsb(&[(Kind::Get, 95.0), (Kind::Insert, 5.0)], LATEST),
            Preset::YcsbE => {
                Defaults { scan_length: Some((1, 100)), ..ycsb(&[(Kind::Scan, 95.0), (Kind::Insert, 5.0)], ZIPFIAN) }
            }
            Preset::YcsbF => ycsb(&[(Kind::Get, 50.0), (Kind::Rmw, 50.0)], ZIPFIAN),
            Preset::Original => Defaults {
                mix: Some(mix(&[(Kind::Get, 2.0), (Kind::Put, 1.0)])),
                keys: Some(KeyChoice::Uniform),
                count: Some(1),
                names: Some(KeyNames::Single("sample_key".to_owned())),
                sizes: Some(Sizes::fixed("sample_value".len() as u32)),
                scan_length: None,
                connections: Some(100),
                pipeline: Some(1),
                think: Some(Think::between(Duration::from_secs(1), Duration::from_secs(3))),
            },
        }
    }
}

fn ycsb(weights: &[(Kind, f64)], keys: KeyChoice) -> Defaults {
    Defaults {
        mix: Some(mix(weights)),
        keys: Some(keys),
        sizes: Some(Sizes::fixed(YCSB_VALUE_BYTES)),
        ..Defaults::default()
    }
}

fn mix(weights: &[(Kind, f64)]) -> Mix {
    Mix::new(weights).expect("each kind once, weights above 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_what_their_sources_say() {
        for (name, mix, keys, size) in [
            ("ycsb-a", "get=50,put=50", "zipfian:0.99", 1000),
            ("ycsb-b", "get=95,put=5", "zipfian:0.99", 1000),
            ("ycsb-c", "get", "zipfian:0.99", 1000),
            ("ycsb-d", "get=95,insert=5", "latest:0.99", 1000),
            ("ycsb-e", "insert=5,scan=95", "zipfian:0.99", 1000),
            ("ycsb-f", "get=50,rmw=50", "zipfian:0.99", 1000),
            ("original", "get=2,put=1", "uniform", 12),
        ] {
            let preset = Preset::from_str(name, false).expect(name);
            assert_eq!(serde_json::to_value(preset).expect("JSON"), name);
            let defaults = preset.defaults();
            assert_eq!(defaults.mix.expect("a mix").to_string(), mix, "{name}");
            assert_eq!(defaults.keys.expect("keys").to_string(), keys, "{name}");
            assert_eq!(defaults.sizes.expect("sizes").max(), size, "{name}");
        }
        let original = Preset::Original.defaults();
        assert_eq!((original.connections, original.pipeline, original.count), (Some(100), Some(1), Some(1)));
        assert_eq!(original.think.expect("think time").to_string(), "1s-3s");
    }
}
