//! Random numbers from a seed: SplitMix64 (Steele, Lea, Flood: *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014).

#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end - 1`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// The seeds of a test: those of its variable, as a number of seeds or as `=SEED`, or the first few.
pub(crate) fn seeds(variable: &str, default: u64) -> Vec<u64> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_string());
    match text.strip_prefix('=') {
        Some(seed) => vec![seed.parse().expect("a seed")],
        None => (0..text.parse().expect("a number of seeds")).collect(),
    }
}
