//! What a node keeps of its partitions, in memory and as bytes on disk.
//!
//! The table of a partition's entries ([`table`]), the log and the checkpoints as they are written, how all of it is
//! read back, and a partition as another replica is sent it ([`copy`]). The files themselves are the node's: it hands bytes in and takes bytes out.
//!
//! # Invariants
//! * No async, no I/O, no clock, no randomness.

pub mod checkpoint;
pub mod copy;
pub mod kept;
pub mod log;
pub mod operations;
pub mod recovery;
pub mod table;

/// Hash of a key within one partition's tables. All keys of a partition agree in their routing hash modulo the
/// number of partitions, so this one is seeded apart from it.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, 0x6b76_7461_626c_6521)
}
