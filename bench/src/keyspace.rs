//! Keys and values. Pure: the same seed gives the same.

use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;
/// Most keys: their indices are held in memory, 4 bytes each.
pub(crate) const MAX_KEYS: u32 = 100_000_000;

const PREFIX: &[u8; 4] = b"key:";

/// The key with this index: `key:` and its number in 12 digits.
pub(crate) fn key(index: u32) -> [u8; KEY_BYTES] {
    let mut key = [b'0'; KEY_BYTES];
    key[..PREFIX.len()].copy_from_slice(PREFIX);
    let mut rest = index;
    for digit in key.iter_mut().rev() {
        if rest == 0 {
            break;
        }
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// A value: bytes that do not compress.
pub(crate) fn value(length: usize, seed: u64) -> Vec<u8> {
    let mut value = vec![0; length];
    rng(seed, u64::MAX).fill(value.as_mut_slice());
    value
}

/// The randomness of one connection.
pub(crate) fn rng(seed: u64, connection: u64) -> SmallRng {
    // SplitMix64's increment: neighbouring connections get distant states.
    SmallRng::seed_from_u64(seed ^ connection.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_16_bytes_and_their_number_in_them() {
        for index in [0, 7, 10, 1_000_000, MAX_KEYS, u32::MAX] {
            assert_eq!(key(index), format!("key:{index:012}").as_bytes());
        }
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(value(100, 1), value(100, 1));
        assert_ne!(value(100, 1), value(100, 2));
        let draw = |seed, connection| rng(seed, connection).random::<u64>();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
