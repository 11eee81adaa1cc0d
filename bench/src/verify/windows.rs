//! How long each partition was without a successful write.

use crate::{engine::Ns, lock::lock};
use kv_client::proto::ids::PartitionId;
use serde::Serialize;
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// One partition's longest time between two successful writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Window {
    pub(crate) partition: u16,
    pub(crate) ms: u64,
    /// Whether nothing was written after it.
    pub(crate) is_open: bool,
}

/// Of all partitions, from when it is told to begin.
pub(crate) struct Windows {
    began: AtomicBool,
    /// By partition: when it was written last, or 0.
    last: Vec<AtomicU64>,
    longest: Vec<Mutex<Ns>>,
}

impl Windows {
    pub(crate) fn new(partitions: u16) -> Windows {
        let each = 0..partitions;
        Windows {
            began: AtomicBool::new(false),
            last: each.clone().map(|_| AtomicU64::new(0)).collect(),
            longest: each.map(|_| Mutex::new(0)).collect(),
        }
    }

    /// A write was answered well.
    pub(crate) fn written(&self, partition: PartitionId, at: Ns) {
        let Some(last) = self.last.get(usize::from(partition.0)) else { return };
        // Other threads may have been later.
        let before = last.fetch_max(at, Relaxed);
        if self.began.load(Relaxed) && before > 0 {
            let mut longest = lock(&self.longest[usize::from(partition.0)]);
            *longest = (*longest).max(at.saturating_sub(before));
        }
    }

    /// Windows that end from now on count.
    pub(crate) fn begin(&self) {
        self.began.store(true, Relaxed);
    }

    /// The windows when the last write could have been answered at `end`. Partitions that were never written have none.
    pub(crate) fn close(&self, end: Ns) -> Vec<Window> {
        let window = |(partition, last): (usize, &AtomicU64)| {
            let last = last.load(Relaxed);
            let (longest, open) = (*lock(&self.longest[partition]), end.saturating_sub(last));
            let ms = longest.max(open) / 1_000_000;
            (last > 0).then_some(Window { partition: partition as u16, ms, is_open: open > longest })
        };
        self.last.iter().enumerate().filter_map(window).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Ns = 1_000_000;

    #[test]
    fn the_longest_time_without_a_write_counts_once_it_has_begun() {
        let windows = Windows::new(3);
        let written = |partition, ms: u64| windows.written(PartitionId(partition), ms * MS);
        written(0, 1);
        written(1, 1);
        written(0, 500);
        windows.begin();
        for ms in [520, 700, 690, 710] {
            written(0, ms);
        }
        written(9, 1);
        let window = |partition, ms, is_open| Window { partition, ms, is_open };
        assert_eq!(windows.close(720 * MS), [window(0, 180, false), window(1, 719, true)]);
    }
}
