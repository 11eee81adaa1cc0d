//! What a partition holds: the table of its committed entries, and what its pending writes will make of it.

pub(crate) mod pending;
pub(crate) mod table;

/// Hash of a key within one partition's tables. All keys of a partition agree in their routing hash modulo the
/// number of partitions, so this one is seeded apart from it.
fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, 0x6b76_7461_626c_6521)
}
