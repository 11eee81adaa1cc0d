//! The log of an executor, shared by its partitions.
//!
//! The seam between the pure core and durability: entries go in by [`Wal::append`], and a batch later
//! [`Wal::take_flushed`] says how many of each partition are flushed. This log has no disk under it: what it was given
//! counts as flushed when it is asked next, and nothing of it survives the process.

use kv_proto::ids::PartitionId;
use kv_replication::replica::LogEntry;
use std::collections::HashMap;

/// What was appended, by partition.
#[derive(Debug, Default)]
pub(crate) struct Wal {
    /// Entries since the start.
    appended: HashMap<PartitionId, u64>,
    /// Partitions with entries that are not flushed, each once, and how many entries they have.
    unflushed: Vec<(PartitionId, u64)>,
}

impl Wal {
    /// Takes the next entry of a partition.
    pub(crate) fn append(&mut self, partition: PartitionId, _: &LogEntry) {
        let entries = self.appended.entry(partition).or_default();
        *entries += 1;
        match self.unflushed.iter_mut().rfind(|(p, _)| *p == partition) {
            Some((_, last)) => *last = *entries,
            None => self.unflushed.push((partition, *entries)),
        }
    }

    /// How many entries of each partition are flushed, of those that had fewer before.
    pub(crate) fn take_flushed(&mut self) -> Vec<(PartitionId, u64)> {
        std::mem::take(&mut self.unflushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::Lsn;

    #[test]
    fn each_partition_is_flushed_once_up_to_its_last_entry() {
        let mut wal = Wal::default();
        for partition in [1, 2, 1, 2, 1] {
            wal.append(PartitionId(partition), &LogEntry::Cut { from: Lsn(1) });
        }
        assert_eq!(wal.take_flushed(), [(PartitionId(1), 3), (PartitionId(2), 2)]);
        assert_eq!(wal.take_flushed(), []);
        wal.append(PartitionId(2), &LogEntry::Cut { from: Lsn(1) });
        assert_eq!(wal.take_flushed(), [(PartitionId(2), 3)]);
    }
}
