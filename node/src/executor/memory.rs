//! The memory that a node takes, as it counts it: its tables, and the records on their way. Past the limit that it
//! was given it takes no more values; reads and deletes go on.
//!
//! Each executor adds what has changed with it to the sum of all once a batch, and counts what has changed since by
//! itself.

use super::Executor;
use kv_proto::error_code::{ErrorCode, WireError};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that all executors take.
#[derive(Debug, Default)]
pub(crate) struct Memory(AtomicU64);

impl Memory {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn change(&self, before: u64, after: u64) {
        self.0.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }
}

/// Bytes that one executor takes.
#[derive(Debug, Default)]
pub(super) struct OwnMemory {
    /// Its tables.
    tables: u64,
    /// Its part of the sum of all.
    told: u64,
}

impl Executor {
    /// One of the tables takes `after` bytes where it took `before`.
    pub(super) fn count_table(&mut self, before: u64, after: u64) {
        self.memory.tables = self.memory.tables + after - before;
    }

    fn own_memory_bytes(&self) -> u64 {
        self.memory.tables + self.held_bytes as u64
    }

    /// Brings the sum of all executors up to date.
    pub(super) fn tell_memory(&mut self) {
        let bytes = self.own_memory_bytes();
        if bytes != self.memory.told {
            self.shared.memory.change(self.memory.told, bytes);
            self.memory.told = bytes;
        }
    }

    /// Whether the node may take one more value.
    pub(super) fn check_memory(&self) -> Result<(), WireError> {
        let Some(max) = self.shared.settings.max_memory_bytes else { return Ok(()) };
        let others = self.shared.memory.bytes().wrapping_sub(self.memory.told);
        let bytes = others.wrapping_add(self.own_memory_bytes());
        if bytes < max {
            return Ok(());
        }
        let node = self.shared.me.node;
        let message = format!(
            "node {node} holds {bytes} bytes and takes no more values, since its --max-memory is {max}; reads and deletes \
             go on"
        );
        Err(WireError::new(ErrorCode::MemoryFull, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_follows_each_part_up_and_down() {
        let memory = Memory::default();
        memory.change(0, 70);
        memory.change(0, 30);
        memory.change(70, 10);
        assert_eq!(memory.bytes(), 40);
        memory.change(30, 0);
        assert_eq!(memory.bytes(), 10);
    }
}
