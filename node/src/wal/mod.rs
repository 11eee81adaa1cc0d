//! The log of an executor, shared by its partitions.
//!
//! The seam between the pure core and durability: records go in by [`Wal::append`], and a batch later
//! [`Wal::take_flushed`] says how far each partition is flushed. This log has no disk under it: what it was given
//! counts as flushed when it is asked next, and nothing of it survives the process.

use kv_proto::{
    ids::{Lsn, PartitionId},
    replication::Record,
};

/// What was appended since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Wal {
    unflushed: Vec<(PartitionId, Lsn)>,
}

impl Wal {
    /// Takes the next record of a partition.
    pub(crate) fn append(&mut self, partition: PartitionId, record: &Record) {
        let lsn = record.position.lsn;
        match self.unflushed.iter_mut().rfind(|(p, _)| *p == partition) {
            Some((_, last)) => *last = lsn,
            None => self.unflushed.push((partition, lsn)),
        }
    }

    /// How far each partition is flushed that was not flushed so far before.
    pub(crate) fn take_flushed(&mut self) -> Vec<(PartitionId, Lsn)> {
        std::mem::take(&mut self.unflushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{ids::Epoch, replication::Position};

    #[test]
    fn each_partition_is_flushed_once_up_to_its_last_record() {
        let mut wal = Wal::default();
        for (partition, lsn) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)] {
            let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
            wal.append(PartitionId(partition), &Record { position, operation_id: None, payload: [].into() });
        }
        assert_eq!(wal.take_flushed(), [(PartitionId(1), Lsn(3)), (PartitionId(2), Lsn(2))]);
        assert_eq!(wal.take_flushed(), []);
    }
}
