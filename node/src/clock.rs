//! The clocks of a node.

use kv_replication::clock::Instant64;
use rustix::time::{ClockId, clock_gettime};

/// Now, by CLOCK_BOOTTIME: it never goes back and counts while the machine sleeps, so that a lease never outlives
/// a pause. Read it after the bytes that it is to date were read.
pub(crate) fn now() -> Instant64 {
    let time = clock_gettime(ClockId::Boottime);
    Instant64(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The wall clock, in milliseconds since the Unix epoch. Only expiry goes by it, and what it says is doubted by who reads
/// it: it may jump, and no two machines agree on it.
pub(crate) fn wall_ms() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + time.tv_nsec as u64 / 1_000_000
}
