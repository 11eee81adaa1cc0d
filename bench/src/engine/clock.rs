//! The time of a load.

use super::operation::Ns;
use std::time::{Duration, Instant};

/// Counts from when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> Ns {
        self.0.elapsed().as_nanos() as Ns
    }

    pub(crate) fn instant(self, at: Ns) -> Instant {
        self.0 + Duration::from_nanos(at)
    }
}
