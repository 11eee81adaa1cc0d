//! What a partition should be, and whether what was read back is that.

use super::{configuration, digest, disk::Image, read_index};
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_storage::{recovery, table::Table};
use std::collections::BTreeMap;

/// A partition's log as it should be read back.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// Those that are not void, from LSN 1 on.
    pub(crate) records: Vec<Record>,
    /// The digest of table and operations after so many records, as far as they are committed.
    pub(crate) digests: Vec<u64>,
    pub(crate) configuration: Option<Configuration>,
    /// A reset was written, and the table of another replica is not in place.
    pub(crate) installing: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log { records: Vec::new(), digests: vec![0], configuration: None, installing: false }
    }
}

impl Log {
    pub(crate) fn committed(&self) -> Lsn {
        Lsn(self.digests.len() as u64 - 1)
    }

    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.records.len() as u64)
    }

    pub(crate) fn position(&self, lsn: Lsn) -> Position {
        lsn.0.checked_sub(1).map_or_else(Position::default, |at| self.records[at as usize].position)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.configuration.as_ref().map_or(0, |c| c.epoch.0)
    }

    pub(crate) fn history(&self) -> u32 {
        self.configuration.as_ref().map_or(1, |c| c.history.0)
    }

    pub(crate) fn next_configuration(&self) -> Configuration {
        configuration(self.epoch() + 1, self.history())
    }

    /// Whether `found` is this log, and nothing else.
    pub(crate) fn check(&self, id: PartitionId, found: Option<&recovery::Partition>) -> Result<(), String> {
        let none = recovery::Partition::default();
        let found = found.unwrap_or(&none);
        let restored = &found.restored;
        if restored.configuration != self.configuration {
            return Err(format!("partition {id}: {:?} instead of {:?}", restored.configuration, self.configuration));
        }
        if self.installing && restored.fault.is_some() {
            let nothing = found.table.keys() == 0 && found.operations.count() == 0 && restored.tail.is_empty();
            return if nothing { Ok(()) } else { Err(format!("partition {id} is faulty and has something")) };
        }
        // A checkpoint that was there already can be the very table that is on its way.
        if let Some(fault) = &restored.fault {
            return Err(format!("partition {id} is faulty: {fault}"));
        }
        let applied = restored.applied.lsn;
        if applied > self.committed() {
            return Err(format!("partition {id}: applied {applied}, of which {} are committed", self.committed()));
        }
        if self.position(applied) != restored.applied || self.records[applied.0 as usize..] != restored.tail {
            let tail = restored.tail.iter().map(|r| r.position).collect::<Vec<_>>();
            return Err(format!("partition {id}: {} and {tail:?}, instead of up to {}", restored.applied, self.last()));
        }
        if digest(&found.table, &found.operations) != self.digests[applied.0 as usize] {
            return Err(format!("partition {id}: not the table or the operations of LSN {applied}"));
        }
        Ok(())
    }

    /// The same by values: what was put last is there, and what was deleted is not.
    pub(crate) fn check_values(&self, id: PartitionId, table: &Table, applied: Lsn) -> Result<(), String> {
        let mut keys: BTreeMap<Vec<u8>, Option<(Lsn, Vec<u8>)>> = BTreeMap::new();
        for record in &self.records[..applied.0 as usize] {
            let (key, value) = match Effect::decode(&record.payload).expect("an effect") {
                Effect::Put { key, value, .. } => (key, Some((record.position.lsn, value.to_vec()))),
                Effect::Delete { key } => (key, None),
                Effect::Outcome(_) | Effect::Nothing => continue,
            };
            keys.insert(key.to_vec(), value);
        }
        for (key, expected) in &keys {
            let found = table.get(key).map(|entry| (entry.lsn, entry.value.to_vec()));
            if found != *expected {
                return Err(format!("partition {id}, key {key:?}: {found:?} instead of {expected:?}"));
            }
        }
        let live = keys.values().filter(|v| v.is_some()).count() as u64;
        if table.keys() == live { Ok(()) } else { Err(format!("partition {id}: {} keys, not {live}", table.keys())) }
    }

    /// Whether what the index leads to is of this log.
    pub(crate) fn check_index(
        &self,
        id: PartitionId,
        found: &recovery::Partition,
        image: &Image,
    ) -> Result<(), String> {
        let records = read_index(&found.index, id, image)?;
        for record in &found.restored.tail {
            if !records.contains_key(&record.position.lsn) {
                return Err(format!("partition {id}: nothing leads to {}", record.position));
            }
        }
        for (lsn, record) in records {
            if self.records.get(lsn.0 as usize - 1) != Some(&record) {
                return Err(format!("partition {id}: its index leads to {} at LSN {lsn}", record.position));
            }
        }
        Ok(())
    }
}
