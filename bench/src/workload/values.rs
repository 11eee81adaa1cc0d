//! The bytes of values.
//!
//! All are slices of one pool of random letters, so that a value costs no randomness: printable, and without repetitions that a
//! compressor could use within a value (a letter has 6 bits of chance in its 8). The values of a long run do share slices of the pool;
//! a store that looks for equal parts in *different* values finds some.
//!
//! A *stamped* value says in its first bytes who wrote it, so that a later read knows which write it sees, and the rest of it
//! is known from the stamp and the length: a value that was cut, mixed with another or changed is told from a whole one.

use super::rng;
use rand::Rng;

/// Bytes of a stamp; stamped values are at least as long.
pub(crate) const STAMP_BYTES: usize = 32;
/// How many offsets slices of the pool begin at.
const OFFSETS: usize = 64 * 1024;
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The pool.
#[derive(Debug)]
pub(crate) struct Values {
    pool: Vec<u8>,
    max_len: usize,
}

/// Which write a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    /// Tells runs apart.
    pub(crate) run: u32,
    pub(crate) key: u32,
    /// Unique in the run.
    pub(crate) number: u64,
}

/// Why a value is not one that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("the value does not begin with a stamp: this tool did not write it, or its first bytes are damaged")]
    NotStamped,
    #[error("the value differs at byte {at} from what was written with its stamp and in its length")]
    Altered { at: usize },
}

impl Values {
    /// Values of up to `max_len` bytes. Those of the same seed are the same whatever `max_len` is.
    pub(crate) fn new(seed: u64, max_len: usize) -> Values {
        let mut rng = rng(seed, u32::MAX);
        let mut pool = Vec::with_capacity(max_len + OFFSETS + 10);
        while pool.len() < max_len + OFFSETS {
            let random = rng.next_u64();
            pool.extend((0..10).map(|i| LETTERS[(random >> (6 * i)) as usize % LETTERS.len()]));
        }
        Values { pool, max_len }
    }

    /// A value that depends on `n`.
    #[inline]
    pub(crate) fn plain(&self, n: u64, len: usize) -> &[u8] {
        let offset = mix(n) as usize % OFFSETS;
        &self.pool[offset..offset + len.min(self.max_len)]
    }

    /// Replaces what is in `out` by a value with a stamp. It has `len` bytes, or as many as the stamp if that is more.
    #[inline]
    pub(crate) fn stamped(&self, stamp: Stamp, len: usize, out: &mut Vec<u8>) {
        out.clear();
        let mut digits = [0; STAMP_BYTES];
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = HEX[(stamp.bits() >> (4 * (STAMP_BYTES - 1 - i))) as usize % HEX.len()];
        }
        out.extend_from_slice(&digits);
        out.extend_from_slice(self.rest(stamp, len.min(self.max_len).saturating_sub(STAMP_BYTES)));
    }

    /// What follows a stamp. Its place in the pool depends on the length, so that a shorter value is no beginning of a longer one.
    fn rest(&self, stamp: Stamp, len: usize) -> &[u8] {
        let offset = mix(mix(stamp.number) ^ (stamp.bits() >> 64) as u64 ^ (len as u64).rotate_left(32)) as usize;
        let offset = offset % OFFSETS;
        &self.pool[offset..offset + len]
    }

    /// Which write a value comes from, if every byte of it is what was written. Values of other seeds are altered ones to this.
    ///
    /// # Errors
    /// When it has no stamp, or other bytes.
    #[inline]
    pub(crate) fn read_stamp(&self, bytes: &[u8]) -> Result<Stamp, Damage> {
        let (stamp, found) = Stamp::of(bytes).ok_or(Damage::NotStamped)?;
        if found.len() > self.max_len.saturating_sub(STAMP_BYTES) {
            return Err(Damage::Altered { at: self.max_len.max(STAMP_BYTES) });
        }
        let written = self.rest(stamp, found.len());
        if found == written {
            return Ok(stamp);
        }
        let same = found.iter().zip(written).take_while(|(found, written)| found == written).count();
        Err(Damage::Altered { at: STAMP_BYTES + same })
    }
}

impl Stamp {
    fn bits(self) -> u128 {
        u128::from(self.run) << 96 | u128::from(self.key) << 64 | u128::from(self.number)
    }

    /// The stamp at the beginning of a value, and what follows it, unchecked: who claims to have written it.
    pub(crate) fn of(bytes: &[u8]) -> Option<(Stamp, &[u8])> {
        let (digits, rest) = bytes.split_first_chunk::<STAMP_BYTES>()?;
        let mut bits = 0_u128;
        for digit in digits {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            bits = bits << 4 | u128::from(value);
        }
        Some((Stamp { run: (bits >> 96) as u32, key: (bits >> 64) as u32, number: bits as u64 }, rest))
    }
}

/// The finalizer of SplitMix64: numbers in a row become numbers without an order.
fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const STAMP: Stamp = Stamp { run: 0xfeed_0001, key: 42, number: 0x0123_4567_89ab_cdef };

    fn stamped(values: &Values, stamp: Stamp, len: usize) -> Vec<u8> {
        let mut out = b"old".to_vec();
        values.stamped(stamp, len, &mut out);
        out
    }

    #[test]
    fn plain_values_are_letters_and_the_seed_decides() {
        let (values, other) = (Values::new(1, 1000), Values::new(2, 1000));
        for (n, len) in [(0, 0), (1, 1), (2, 1000), (u64::MAX, 1000)] {
            let value = values.plain(n, len);
            assert_eq!(value.len(), len);
            assert!(value.iter().all(|b| LETTERS.contains(b)));
            assert_eq!(value, Values::new(1, 5000).plain(n, len), "the longest one changes nothing");
            assert!(len < 2 || value != other.plain(n, len));
        }
        let different: HashSet<_> = (0..10_000).map(|n| values.plain(n, 64)).collect();
        assert!(different.len() > 9_000, "{}", different.len());
        assert_eq!(values.plain(1, 5000).len(), 1000);
    }

    #[test]
    fn letters_are_all_as_likely() {
        let mut counts = [0_u32; 256];
        Values::new(1, 1_000_000).plain(0, 1_000_000).iter().for_each(|b| counts[usize::from(*b)] += 1);
        assert!(LETTERS.iter().all(|b| (14_500..16_800).contains(&counts[usize::from(*b)])), "{counts:?}");
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let values = Values::new(1, 1000);
        for len in [0, 31, 32, 33, 100, 1000, 2000] {
            let value = stamped(&values, STAMP, len);
            assert_eq!(value.len(), len.clamp(STAMP_BYTES, 1000));
            assert_eq!(&value[..32], b"feed00010000002a0123456789abcdef");
            assert_eq!(values.read_stamp(&value), Ok(STAMP), "{len}");
        }
        let value = stamped(&Values::new(1, 8), STAMP, 8);
        assert_eq!(Values::new(1, 8).read_stamp(&value), Ok(STAMP), "a stamp has its room always");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let values = Values::new(1, 1000);
        let value = stamped(&values, STAMP, 100);
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            match values.read_stamp(&changed) {
                Err(Damage::Altered { at: said }) => assert!(at < STAMP_BYTES || said == at, "{at}: {said}"),
                other => panic!("{at}: {other:?}"),
            }
            changed[at] = b'F';
            assert!(at >= STAMP_BYTES || values.read_stamp(&changed) == Err(Damage::NotStamped));
        }
    }

    #[test]
    fn values_that_are_cut_or_mixed_are_noticed() {
        let values = Values::new(1, 1000);
        let value = stamped(&values, STAMP, 200);
        for len in 0..STAMP_BYTES {
            assert_eq!(values.read_stamp(&value[..len]), Err(Damage::NotStamped));
        }
        // A few letters may agree by chance.
        for len in STAMP_BYTES + 8..200 {
            assert!(matches!(values.read_stamp(&value[..len]), Err(Damage::Altered { .. })), "{len}");
        }
        let longer = [value.as_slice(), b"x"].concat();
        assert!(matches!(values.read_stamp(&longer), Err(Damage::Altered { .. })));
        let other = stamped(&values, Stamp { number: 7, ..STAMP }, 200);
        let mixed = [&value[..100], &other[100..]].concat();
        assert_eq!(values.read_stamp(&mixed), Err(Damage::Altered { at: 100 }));
        assert!(matches!(values.read_stamp(&[value.as_slice(); 10].concat()), Err(Damage::Altered { .. })));
        let (found, _) = Stamp::of(&mixed).expect("a stamp");
        assert_eq!(found, STAMP);
        assert!(matches!(Values::new(2, 1000).read_stamp(&value), Err(Damage::Altered { .. })));
        assert_eq!(Damage::Altered { at: 9 }.to_string().find("byte 9"), Some(21));
    }

    #[test]
    fn garbage_is_no_stamp() {
        let values = Values::new(1, 100);
        for bytes in [b"".as_slice(), b"sample_value", &[0; 40], &[0xff; 100], values.plain(3, 100)] {
            assert_eq!(values.read_stamp(bytes), Err(Damage::NotStamped));
        }
    }
}
