//! What the load costs its own threads: processor time, and time that they waited for a processor.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    ops::Add,
    time::{Duration, Instant},
};

/// Of one thread or several, over a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Ready to run, and not running: others had the processors. Zero where the kernel does not tell.
    pub(crate) waited: Duration,
    /// The time that they were at it, of all threads together.
    pub(crate) wall: Duration,
}

/// A thread at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    cpu: Duration,
    waited: Duration,
    at: Instant,
}

impl Usage {
    pub(crate) fn of_thread() -> Reading {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let cpu = Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32);
        Reading { cpu, waited: waited().unwrap_or_default(), at: Instant::now() }
    }

    /// How much of their time the threads were busy or would have been: 1 is all of it.
    pub(crate) fn busy(&self) -> f64 {
        self.share(self.cpu + self.waited)
    }

    /// How much of it they waited for a processor.
    pub(crate) fn waits(&self) -> f64 {
        self.share(self.waited)
    }

    fn share(&self, time: Duration) -> f64 {
        if self.wall.is_zero() { 0.0 } else { time.as_secs_f64() / self.wall.as_secs_f64() }
    }
}

/// What this thread has used since then.
pub(crate) fn since(before: Reading) -> Usage {
    let now = Usage::of_thread();
    Usage {
        cpu: now.cpu.saturating_sub(before.cpu),
        waited: now.waited.saturating_sub(before.waited),
        wall: now.at.duration_since(before.at),
    }
}

/// The second figure of `schedstat`: nanoseconds in the queue of a processor (Documentation/scheduler/sched-stats.rst).
fn waited() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_whitespace().nth(1)?.parse().ok()?))
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage { cpu: self.cpu + other.cpu, waited: self.waited + other.waited, wall: self.wall + other.wall }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_seen_to_be_busy_and_an_idle_one_is_not() {
        let before = Usage::of_thread();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(50) {}
        let busy = since(before);
        assert!(busy.busy() > 0.5, "{busy:?}");
        let before = Usage::of_thread();
        std::thread::sleep(Duration::from_millis(50));
        assert!(since(before).busy() < busy.busy(), "{busy:?}");
    }
}
