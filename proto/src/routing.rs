//! From a key to its partition: the same code in client, router and node.

use crate::ids::PartitionId;
use xxhash_rust::xxh3::xxh3_64;

/// The part of a key that decides its partition: what stands between the first `{` and the next `}` if that is
/// not empty, else the whole key. Keys with the same hash tag share a partition (as in Redis Cluster).
#[must_use]
pub fn hashed_part(key: &[u8]) -> &[u8] {
    let tag = || {
        let open = key.iter().position(|b| *b == b'{')? + 1;
        let length = key[open..].iter().position(|b| *b == b'}')?;
        (length > 0).then(|| &key[open..open + length])
    };
    tag().unwrap_or(key)
}

/// The partition of a key: `xxh3_64(hash tag or key) % partitions`.
///
/// # Panics
/// When `partitions` is 0; a cluster has at least one.
#[must_use]
pub fn partition_of(key: &[u8], partitions: u16) -> PartitionId {
    PartitionId((xxh3_64(hashed_part(key)) % u64::from(partitions)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_tags() {
        let cases: [(&str, &str); 9] = [
            ("plain", "plain"),
            ("{user1}.name", "user1"),
            ("a{user1}b{user2}", "user1"),
            ("{}.x", "{}.x"),
            ("a{}{tag}", "a{}{tag}"),
            ("{open", "{open"),
            ("close}{tag}", "tag"),
            ("{{tag}}", "{tag"),
            ("", ""),
        ];
        for (key, part) in cases {
            assert_eq!(hashed_part(key.as_bytes()), part.as_bytes(), "{key}");
        }
    }

    /// Every client and every node that was ever shipped computes these: they can never change.
    #[test]
    fn fixed_vectors() {
        let cases: [(&str, u64, u16); 6] = [
            ("", 0x2d06_8005_38d3_94c2, 2),
            ("a", 0xe6c6_32b6_1e96_4e1f, 31),
            ("sample_key", 0x8822_7b85_4b9a_5e04, 4),
            ("user:1", 0x3b57_7afd_7fed_9501, 1),
            ("{user:1}.name", 0x3b57_7afd_7fed_9501, 1),
            ("ключ 🔑", 0x067d_6c62_afa1_3320, 32),
        ];
        for (key, hash, partition) in cases {
            let got = (xxh3_64(hashed_part(key.as_bytes())), partition_of(key.as_bytes(), 64).0);
            assert_eq!(got, (hash, partition), "{key:?}: {got:#x?}");
        }
    }

    /// Pearson's chi-square over 64 partitions has 63 degrees of freedom: 103.4 is passed by chance once in 1,000.
    #[test]
    fn a_million_keys_spread_evenly_over_64_partitions() {
        for (name, key) in [
            ("decimal", (|i| format!("{i}")) as fn(u32) -> String),
            ("padded", |i| format!("user{i:012}")),
            ("uuid-like", |i| format!("{:08x}-{:04x}", i.wrapping_mul(2_654_435_761), i >> 16)),
        ] {
            let mut counts = [0u32; 64];
            for i in 0..1_000_000 {
                counts[usize::from(partition_of(key(i).as_bytes(), 64).0)] += 1;
            }
            let expected = 1_000_000.0 / 64.0;
            let chi_square: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            assert!(chi_square < 103.4, "{name}: chi-square {chi_square}, counts {counts:?}");
        }
    }
}
