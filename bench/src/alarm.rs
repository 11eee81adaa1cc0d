//! Waits that end on time: the timer of the runtime counts whole milliseconds, which is too coarse for a delay that figures are
//! compared with.

use rustix::{
    fd::OwnedFd,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::io::unix::AsyncFd;

/// A timer of the operating system.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Alarm> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the descriptor is owned by what is registered, stays the same, and is closed only when that is dropped.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(Alarm { timer })
    }

    /// Waits until then, never less. Cancel-safe.
    pub(crate) async fn until(&self, then: Instant) -> io::Result<()> {
        loop {
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.set(left)?;
            let mut expirations = [0_u8; 8];
            let mut ready = self.timer.readable().await?;
            // An expiration may be that of an earlier wait that was given up: the clock decides.
            match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?)) {
                Ok(read) => _ = read?,
                Err(_would_block) => {}
            }
        }
    }

    fn set(&self, left: Duration) -> io::Result<()> {
        let it_value =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
