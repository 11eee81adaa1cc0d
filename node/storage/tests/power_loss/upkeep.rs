//! How the log stays short, and how another replica's table is installed.

use crate::{
    common::{CLUSTER, State, configuration, disk::Disk, identity, model::Log},
    node::{Node, SEGMENT_BYTES},
};
use kv_proto::{
    ids::{Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::LogEntry;
use kv_storage::{
    checkpoint::{Encoder, Header},
    table::Walk,
};

/// A log of more bytes is made shorter.
const MAX_LOG_BYTES: u64 = 7 * SEGMENT_BYTES;
/// A partition with more than this is checkpointed instead.
const MAX_COPIED_BYTES: usize = 5000;

/// A checkpoint on its way.
pub(crate) struct Checkpointing {
    start: Position,
    encoder: Encoder,
    bytes: Vec<u8>,
    walk: Walk,
    /// The operations up to here are in it.
    after: Lsn,
}

/// A table of another replica on its way.
pub(crate) struct Install {
    base: Position,
    /// The records behind it, which come while the table does.
    behind: Vec<Record>,
    copy: Option<Checkpointing>,
}

impl Checkpointing {
    fn begin(id: PartitionId, log: &Log, start: Position) -> Self {
        let configuration = log.configuration.clone().expect("it takes part in something");
        let header = Header { cluster: CLUSTER, partition: id, configuration, start };
        let (encoder, bytes) = Encoder::new(identity(), &header);
        Checkpointing { start, encoder, bytes, walk: Walk::new(), after: Lsn(0) }
    }

    /// Walks on; says whether the walk is done.
    fn step(&mut self, state: &State, max_bytes: usize) -> bool {
        if let Some((piece, after)) = self.encoder.take_operations(&state.operations, self.after, max_bytes) {
            self.bytes.extend(piece);
            self.after = after;
            return false;
        }
        let done = self.walk.next_chunk(&state.table, max_bytes, &mut |key, entry| self.encoder.push(key, entry));
        self.bytes.extend(self.encoder.take_chunk());
        done
    }

    fn finish(self, end: Lsn, state: &State) -> (Lsn, Vec<u8>) {
        let mut bytes = self.bytes;
        bytes.extend(self.encoder.finish(end, state.table.digest(), state.operations.digest()));
        (self.start.lsn, bytes)
    }
}

impl Node {
    pub(crate) fn step_checkpoint(&mut self, id: PartitionId) -> Result<(), String> {
        let max_bytes = self.random.below(1500) as usize;
        let partition = self.partition(id);
        let mut checkpointing = match partition.checkpointing.take() {
            Some(checkpointing) => checkpointing,
            None => {
                let start = partition.next.position(partition.next.committed());
                if start.lsn == partition.released || partition.acked.configuration.is_none() {
                    return Ok(());
                }
                // The configuration is one that is on disk already.
                Checkpointing::begin(id, &partition.acked, start)
            }
        };
        if !checkpointing.step(&partition.state, max_bytes) {
            partition.checkpointing = Some(checkpointing);
            return Ok(());
        }
        // What is committed is on disk here, so the log is flushed to the end.
        let (start, bytes) = checkpointing.finish(partition.next.committed(), &partition.state);
        self.publish(id, start, bytes)
    }

    fn publish(&mut self, id: PartitionId, start: Lsn, bytes: Vec<u8>) -> Result<(), String> {
        self.saw("checkpoints");
        let older: Vec<_> =
            self.shared.borrow().disk.checkpoints.range((id, Lsn(0))..(id, start)).map(|c| *c.0).collect();
        self.shared.borrow_mut().disk.checkpoints.insert((id, start), bytes);
        {
            let partition = self.partition(id);
            partition.released = start;
            (partition.next.installing, partition.acked.installing) = (false, false);
        }
        self.catalog.release(id, start);
        self.audit_now()?;
        for name in older {
            if self.random.one_in(5) {
                continue; // it stays until the next start or checkpoint
            }
            self.shared.borrow_mut().disk.checkpoints.remove(&name);
            self.audit_now()?;
        }
        Ok(())
    }

    fn audit_now(&mut self) -> Result<(), String> {
        let disk: Disk = self.shared.borrow().disk.clone();
        let image = disk.image_after_power_loss(&mut self.random);
        self.audit(&disk, &image, None)
    }

    /// Makes the log shorter if it is too long.
    pub(crate) fn shorten(&mut self) -> Result<(), String> {
        if self.catalog.bytes() > MAX_LOG_BYTES
            && let Some((age, needed)) = self.catalog.oldest()
        {
            let generation = self.generation;
            for (id, last) in needed {
                if self.random.one_in(3) || !self.copy(id, age) {
                    self.hasten(id, last)?;
                }
                self.flush_long()?;
                if self.generation != generation {
                    return Ok(()); // ages are others now
                }
            }
        }
        let unneeded = self.catalog.take_unneeded(u64::MAX);
        if unneeded.is_empty() {
            return Ok(());
        }
        let gone: Vec<_> = unneeded.iter().map(|(id, _)| *id).collect();
        self.partitions.values_mut().for_each(|p| p.index.forget(&gone));
        for id in gone {
            self.saw("let go");
            let segment = self.shared.borrow_mut().disk.segments.remove(&id).expect("it is there");
            // The names of those that follow may still be there after a loss of power.
            self.audit_now()?;
            if self.shared.borrow().disk.spares.len() < 3 {
                self.saw("recycled");
                self.shared.borrow_mut().disk.spares.push(segment.cached());
            }
        }
        Ok(())
    }

    /// A checkpoint of a partition, or what it takes that one can be made.
    fn hasten(&mut self, id: PartitionId, needed: Lsn) -> Result<(), String> {
        let partition = self.partition(id);
        if partition.next.installing || partition.install.is_some() || partition.next.configuration.is_none() {
            return Ok(());
        }
        if partition.next.committed() < needed {
            // Some records are of no use to anybody until others stand there.
            let stream = partition.stream;
            let generation = self.generation;
            while self.partition(id).next.last() < needed {
                let (epoch, lsn) = (self.partition(id).next.epoch(), self.partition(id).next.last().next());
                let record = self.record(epoch, lsn.0);
                self.append(id, LogEntry::Record(record));
                self.flush_long()?;
                if self.generation != generation {
                    return Ok(());
                }
            }
            self.flush(stream)?;
            if self.generation != generation {
                return Ok(());
            }
            let partition = self.partition(id);
            let same = partition.acked.last().min(partition.next.last());
            if partition.acked.records[..same.0 as usize] == partition.next.records[..same.0 as usize] {
                partition.commit(same.max(partition.next.committed()));
            }
        }
        if self.partition(id).checkpointing.as_ref().is_some_and(|c| c.start.lsn < needed) {
            self.partition(id).checkpointing = None;
        }
        self.step_checkpoint(id)
    }

    /// Copies forward what a partition has in the segments up to this age, if all of it is committed.
    fn copy(&mut self, id: PartitionId, age: u64) -> bool {
        let partition = &self.partitions[&id];
        let (committed, log) = (partition.next.committed(), &partition.next);
        if log.installing || partition.install.is_some() {
            return false;
        }
        let old = |segment| self.ages.get(&segment).is_some_and(|a| *a <= age);
        let places: Vec<_> = partition
            .index
            .find(partition.released.next(), usize::MAX)
            .into_iter()
            .filter(|p| old(p.segment))
            .collect();
        if places.iter().any(|place| place.last > committed) {
            return false;
        }
        let lsns = places.iter().flat_map(|p| p.first.0.max(partition.released.0 + 1)..=p.last.0);
        let records: Vec<Record> = lsns.map(|lsn| log.records[lsn as usize - 1].clone()).collect();
        if records.iter().map(|r| r.payload.len()).sum::<usize>() > MAX_COPIED_BYTES {
            return false;
        }
        let stream = &mut self.streams[partition.stream];
        records.iter().for_each(|record| stream.gather.copy(id, record, committed));
        stream.copying.push((id, age));
        self.saw("copies");
        true
    }

    /// Another replica's log is longer than what can be caught up with, or of a history that a person chose.
    pub(crate) fn begin_install(&mut self, id: PartitionId) {
        let other = self.random.one_in(2);
        let next = &self.partitions[&id].next;
        let least = if other { 0 } else { next.committed().0 };
        let kept = least + self.random.below(next.last().0 - least + 1);
        let (epoch, history) = (next.epoch() + 1 + self.random.below(2), next.history() + u32::from(other));
        let mut records = next.records[..kept as usize].to_vec();
        for lsn in kept + 1..=kept + self.random.below(30) {
            records.push(self.record(epoch, lsn));
        }
        let base = least + self.random.below(records.len() as u64 - least + 1);
        let behind = records.split_off(base as usize);
        let mut log = Log { configuration: Some(configuration(epoch, history)), installing: true, ..Log::default() };
        let mut state = State::default();
        for record in &records {
            state.apply(record);
            log.digests.push(state.digest());
        }
        log.records = records;
        if other {
            self.saw("other histories");
        }
        let partition = self.partitions.get_mut(&id).expect("a partition");
        let (base, configuration) = (log.position(Lsn(base)), log.configuration.clone().expect("it has one"));
        self.streams[partition.stream].gather.append(id, &LogEntry::Reset { configuration, base }, base.lsn);
        (partition.next, partition.state, partition.checkpointing) = (log, state, None);
        partition.index.void(Lsn(0));
        partition.install = Some(Install { base, behind, copy: None });
    }

    /// The reset is flushed, the old checkpoints go, records come while the table is walked, it is put in place.
    pub(crate) fn step_install(&mut self, id: PartitionId) -> Result<(), String> {
        let max_bytes = self.random.below(2500) as usize;
        let partition = self.partition(id);
        let Some(mut install) = partition.install.take() else {
            // The process ended meanwhile; it begins again.
            self.saw("installs interrupted");
            self.begin_install(id);
            return Ok(());
        };
        let (acked, next) = (&partition.acked, &partition.next);
        let is_flushed = acked.installing && acked.configuration == next.configuration && acked.records == next.records;
        if !is_flushed {
            partition.install = Some(install);
            let stream = partition.stream;
            return if self.random.one_in(3) { self.flush(stream) } else { Ok(()) };
        }
        let Some(copy) = &mut install.copy else {
            install.copy = Some(Checkpointing::begin(id, &partition.next, install.base));
            partition.install = Some(install);
            self.shared.borrow_mut().disk.checkpoints.retain(|(partition, _), _| *partition != id);
            return self.audit_now();
        };
        partition.commit(partition.next.last());
        if !copy.step(&partition.state, max_bytes) {
            let few = install.behind.len().min(3);
            let records: Vec<Record> = install.behind.drain(..few).collect();
            partition.install = Some(install);
            records.into_iter().for_each(|record| self.append(id, LogEntry::Record(record)));
            return Ok(());
        }
        let copy = install.copy.take().expect("it was made");
        let (start, bytes) = copy.finish(partition.next.committed(), &partition.state);
        self.saw("installs");
        self.publish(id, start, bytes)
    }
}
