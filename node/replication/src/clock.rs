//! Points in time as the core sees them: numbers that somebody else read from a clock.

use std::{ops::Add, time::Duration};

/// Nanoseconds of a clock that never goes back and counts while the machine sleeps (CLOCK_BOOTTIME in production).
/// Only differences mean something, and only within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant64(pub u64);

impl Instant64 {
    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Instant64) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant64 {
    type Output = Instant64;

    fn add(self, duration: Duration) -> Instant64 {
        Instant64(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}
