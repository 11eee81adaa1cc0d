//! What ends the process.
//!
//! A panic in a task would kill its executor and leave the others serving, with the partitions of the dead one
//! neither served nor taken over; an executor that hangs would do the same more quietly. Both end the process
//! instead, so that peers and supervisor see a node that died.

use std::{
    process::abort,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How often the watchdog looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How many looks in a row may find an executor where it was.
const PATIENCE: u32 = 20;

/// Makes every panic of any thread end the process, after it was reported.
pub(crate) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        tracing::error!("a thread panicked: the process ends, so that no half of it goes on serving");
        abort();
    }));
}

/// Ends the process.
pub(crate) fn end(why: &str) -> ! {
    tracing::error!("{why}: the process ends");
    abort()
}

/// A counter that an executor moves to show that it makes progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts the looks that found a heartbeat unmoved. Counting looks rather than time makes it immune to pauses of
/// the whole process, during which nobody looks.
#[derive(Debug, Default)]
struct Patience {
    seen: u64,
    unmoved: u32,
}

impl Patience {
    /// Whether it is over.
    fn look(&mut self, heartbeat: u64) -> bool {
        self.unmoved = if heartbeat == self.seen { self.unmoved + 1 } else { 0 };
        self.seen = heartbeat;
        self.unmoved > PATIENCE
    }
}

/// Starts the thread that ends the process when an executor makes no progress for about ten seconds.
pub(crate) fn start_watchdog(heartbeats: Vec<Heartbeat>) -> std::io::Result<()> {
    thread::Builder::new().name("watchdog".into()).spawn(move || {
        let mut patience: Vec<Patience> = heartbeats.iter().map(|_| Patience::default()).collect();
        loop {
            thread::sleep(LOOK_INTERVAL);
            for (executor, (patience, heartbeat)) in patience.iter_mut().zip(&heartbeats).enumerate() {
                if patience.look(heartbeat.0.load(Ordering::Relaxed)) {
                    tracing::error!(
                        executor,
                        "an executor makes no progress: the process ends, so that its peer can take over"
                    );
                    abort();
                }
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_only_when_nothing_moved_look_after_look() {
        let mut patience = Patience::default();
        for heartbeat in 1..100 {
            assert!(!patience.look(heartbeat));
        }
        for _ in 0..PATIENCE {
            assert!(!patience.look(99));
        }
        assert!(!patience.look(100));
        for _ in 0..PATIENCE {
            assert!(!patience.look(100));
        }
        assert!(patience.look(100));
    }
}
