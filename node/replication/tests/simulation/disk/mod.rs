//! What a node of the simulation keeps: the real log and the real checkpoints over files in memory, used as `kv-node` uses
//! them. Beside them stands what they should hold, as plain lists, to which everything that is read back is compared.

pub(crate) mod expected;
mod harm;
pub(crate) mod incoming;
pub(crate) mod media;
mod upkeep;

use crate::{
    checks::{Verdict, ensure},
    random::Random,
};
use expected::Log;
use incoming::Incoming;
use kv_proto::{
    cluster_map::Configuration,
    ids::{ClusterId, Lsn, Member, OperationId, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};
use kv_storage::{
    checkpoint, copy,
    kept::Kept,
    log::{
        StreamId,
        catalog::Catalog,
        format::{self, BLOCK_BYTES, Content, Identity},
        gather::{Chunk, Gather},
        index::Place,
        writer::{Flushed, StreamOptions, WriteError, Writer},
    },
    operations::{Done, Known, Operations},
    recovery::{self, Recovery, Scanned},
    table::Table,
};
use media::{Fate, Files, Media, Shared};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use upkeep::Upkeep;

const CLUSTER: ClusterId = ClusterId(5);
/// Bytes of entries in one batch: it fits into a segment behind its header and its states.
const MAX_BATCH_BYTES: usize = 3 * BLOCK_BYTES;
/// Batches that are read at a time for who needs old records.
const READ_BATCHES: usize = 2;

/// Rules that whoever keeps a log has to follow, and that can be switched off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskRules {
    /// A batch is told of when its sync was successful.
    pub(crate) sync_first: bool,
    /// What a process finds is synced before it counts.
    pub(crate) sync_at_start: bool,
    /// A checkpoint is published when the log is on disk up to its end.
    pub(crate) publish_when_on_disk: bool,
    /// Segments are let go when copies of what is needed of them are on disk.
    pub(crate) copies_on_disk_first: bool,
    /// Where memory is enough, a configuration or a cut has to be on disk all the same.
    pub(crate) barriers: bool,
}

impl Default for DiskRules {
    fn default() -> Self {
        DiskRules {
            sync_first: true,
            sync_at_start: true,
            publish_when_on_disk: true,
            copies_on_disk_first: true,
            barriers: true,
        }
    }
}

/// What was done to the files while nobody used them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    None,
    /// Nobody can tell the last batch from one that was never whole.
    Cut,
    /// Something else is not what was written. It may be nothing that is still needed.
    Damage,
}

/// A process that uses the files.
pub(crate) struct Process {
    gather: Gather,
    writer: Writer<Media>,
    /// What is handed over, with the entries of the replica in it, and such entries that are not.
    chunks: VecDeque<(Chunk, Vec<LogEntry>)>,
    gathered: Vec<LogEntry>,
    kept: Kept,
    /// Entries that the replica appended, and those that it was told of, where [`Kept`] is not asked.
    appended: u64,
    told: u64,
    catalog: Catalog,
    pub(crate) table: Table,
    pub(crate) operations: Operations,
    pub(crate) applied: Position,
    /// A copy of another replica's table that is not on disk yet.
    incoming: Option<Incoming>,
    /// Chunks that were handed over, and those that are on disk.
    sent: u64,
    flushed: u64,
    upkeep: Upkeep,
}

impl Process {
    /// Equal where the same was applied.
    pub(crate) fn digest(&self) -> u64 {
        copy::digest(&self.table, &self.operations)
    }

    /// Where the write with this operation id stands, if there is one: committed, or pending in this log.
    pub(crate) fn recall(&self, pending: &[Record], id: &OperationId) -> Option<Lsn> {
        let same = |record: &&Record| record.operation_id.is_some_and(|there| there == *id);
        match (pending.iter().find(same), self.operations.find(id)) {
            (Some(record), _) => Some(record.position.lsn),
            (None, Known::Done(Done::Written(lsn))) => Some(lsn),
            (None, Known::New) => None,
            (None, other) => panic!("no write of the simulation: {other:?}"),
        }
    }
}

/// The log of a partition on a node, and its checkpoints.
pub(crate) struct Disk {
    partition: PartitionId,
    identity: Identity,
    rules: DiskRules,
    files: Shared,
    segment_bytes: u64,
    generation: u64,
    pub(crate) process: Option<Process>,
    /// With everything that was appended, and with what is synced.
    pub(crate) live: Log,
    pub(crate) durable: Log,
    /// What was synced before the last batch.
    before: Option<Log>,
    /// The configuration that the checkpoint says; the log may not have it yet.
    published: Option<Configuration>,
    /// The batch that the last process wrote and did not sync.
    in_flight: Vec<LogEntry>,
    harm: Harm,
    /// The log with the batch that was cut off: a checkpoint may have some of it.
    uncut: Option<Log>,
    /// It said that it cannot be read.
    pub(crate) faulty: bool,
    /// The table is that of a copy that is not on disk, so that nothing here can be used.
    pub(crate) void: bool,
    /// The last process was stopped in order.
    clean: bool,
}

impl Disk {
    pub(crate) fn new(partition: PartitionId, member: Member, rules: DiskRules, segment_blocks: usize) -> Self {
        let files = Files { lies: !rules.sync_first, ..Files::default() };
        Disk {
            partition,
            identity: Identity { node: member.node, disk: member.disk },
            rules,
            files: Shared::new(files.into()),
            segment_bytes: (segment_blocks * BLOCK_BYTES) as u64,
            generation: 0,
            process: None,
            live: Log::default(),
            durable: Log::default(),
            before: None,
            published: None,
            in_flight: Vec::new(),
            harm: Harm::None,
            uncut: None,
            faulty: false,
            void: false,
            clean: false,
        }
    }

    /// An empty disk in its place.
    pub(crate) fn replacement(&self, member: Member) -> Self {
        Disk::new(self.partition, member, self.rules, self.segment_bytes as usize / BLOCK_BYTES)
    }

    /// Whether what is on it can be used, and nothing was done to it that may show later.
    pub(crate) fn is_sound(&self) -> bool {
        self.harm == Harm::None && !self.faulty && !self.void
    }

    /// A process starts: what it finds. The error of the inner kind says that it does not, and needs another disk.
    pub(crate) fn open(&mut self) -> Result<Result<Restored, String>, String> {
        if self.rules.sync_at_start {
            self.files.borrow_mut().sync_all();
        }
        self.generation += 1;
        let stream = StreamId { generation: self.generation, executor: (self.generation % 2) as u16 };
        let found = self.read_back();
        self.compare(&found)?;
        let (found, scanned) = match found {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let recovery::Partition { table, operations, mut restored, released, index } = found;
        restored.incomplete = !std::mem::take(&mut self.clean) && restored.configuration.is_some();
        let last = restored.last();
        let mut catalog = Catalog::default();
        catalog.release(self.partition, released.lsn);
        if restored.fault.is_some() {
            catalog.hold(self.partition);
        }
        for scanned in scanned {
            catalog.seal(scanned.sealed, self.segment_bytes, scanned.states);
        }
        let (identity, segment_bytes) = (self.identity, self.segment_bytes);
        let options = StreamOptions { cluster: CLUSTER, identity, stream, segment_bytes };
        let mut writer = Writer::new(Media::new(&self.files), options);
        writer.open().map_err(|error| format!("a new generation: {error}"))?;
        catalog.open(writer.segment().expect("the first"), segment_bytes);
        let mut gather = Gather::default();
        gather.adopt(self.partition, &restored);
        self.process = Some(Process {
            gather,
            writer,
            chunks: VecDeque::new(),
            gathered: Vec::new(),
            kept: Kept::new(released, last.lsn, index),
            appended: 0,
            told: 0,
            catalog,
            table,
            operations,
            applied: restored.applied,
            incoming: None,
            sent: 0,
            flushed: 0,
            upkeep: Upkeep::default(),
        });
        Ok(Ok(restored))
    }

    /// Whether a node does not start with it.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.read_back().is_err()
    }

    /// Reads the files back, as a node does at its start.
    fn read_back(&self) -> Result<(recovery::Partition, Vec<Scanned>), String> {
        let files = self.files.borrow();
        let mut recovery = Recovery::new(self.identity);
        let take_checkpoint = |recovery: &mut Recovery| {
            let Some((start, bytes)) = files.checkpoints.last_key_value() else { return };
            match checkpoint::read(&mut &bytes[..], &self.identity) {
                Ok(checkpoint) => recovery.take_checkpoint(checkpoint),
                Err(error) => {
                    recovery.refuse_checkpoint(self.partition, format!("its checkpoint from {start}: {error}"));
                }
            }
        };
        take_checkpoint(&mut recovery);
        let mut scanned = Vec::new();
        for (id, bytes) in &files.segments {
            scanned.push(recovery.take_segment(*id, bytes).map_err(|error| format!("{id}: {error}"))?);
            if !recovery.awaiting_copies().is_empty() {
                take_checkpoint(&mut recovery);
            }
        }
        let mut recovered = recovery.finish();
        let mut partition = recovered.partitions.remove(&self.partition).unwrap_or_default();
        if partition.restored.configuration.is_none() && partition.restored.fault.is_none() {
            partition.restored.fault = recovered.damage.pop();
        }
        Ok((partition, scanned))
    }

    /// What was read back is what is known to be on the disk: everything that was synced, and perhaps the batch that was not.
    fn compare(&mut self, found: &Result<(recovery::Partition, Vec<Scanned>), String>) -> Verdict {
        let node = self.identity.node;
        let restored = match found {
            Ok((partition, _)) => &partition.restored,
            Err(why) => {
                self.faulty = true;
                return ensure(self.harm == Harm::Damage, || format!("{node} does not start any more: {why}"));
            }
        };
        let in_flight = std::mem::take(&mut self.in_flight);
        if let Some(fault) = &restored.fault {
            self.faulty = true;
            let harmed = self.harm != Harm::None || self.void;
            if !harmed {
                self.show("what is taken for damaged");
            }
            self.durable = Log { configuration: restored.configuration.clone(), ..Log::default() };
            self.live = self.durable.clone();
            return ensure(harmed, || format!("{node} is taken for damaged, and is not: {fault}"));
        }
        if let Some(uncut) = self.uncut.take_if(|_| restored.tail.is_empty()) {
            // The checkpoint has more of it than the log.
            let start = self.files.borrow().checkpoints.last_key_value().map_or(Lsn(0), |(start, _)| *start);
            let uncut = uncut.up_to(start);
            if start > self.durable.last().lsn && uncut.check(restored, &self.published).is_ok() {
                self.durable = uncut;
            }
        }
        let without = self.durable.check(restored, &self.published);
        if let Err(without) = without {
            self.before = Some(self.durable.clone());
            in_flight.iter().for_each(|entry| self.durable.bring(entry));
            self.durable.check(restored, &self.published).map_err(|with| {
                self.show("what it came back with");
                format!("{node} came back ({:?}) with {with}; or without its last batch: {without}", self.harm)
            })?;
        }
        self.durable.configuration.clone_from(&restored.configuration);
        self.live = self.durable.clone();
        // No reset is on disk, and no checkpoint was needed.
        self.void = false;
        if self.harm == Harm::Cut {
            self.harm = Harm::None; // It stays as it was read now.
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, entry: LogEntry, committed: Lsn) {
        let process = self.process.as_mut().expect("who appends has opened the log");
        self.live.bring(&entry);
        if let LogEntry::Reset { base, .. } = &entry {
            process.applied = *base;
        }
        process.kept.handle_append(&entry);
        process.appended += 1;
        process.gather.append(self.partition, &entry, committed);
        process.gathered.push(entry);
    }

    /// Hands over what is gathered.
    pub(crate) fn hand_over(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Some(chunk) = process.gather.take() {
            process.sent += 1;
            process.chunks.push_back((chunk, std::mem::take(&mut process.gathered)));
        }
    }

    /// Chunks that are not synced.
    pub(crate) fn unsynced(&mut self) -> usize {
        self.hand_over();
        self.process.as_ref().map_or(0, |p| p.chunks.len())
    }

    /// Writes the next chunks as a batch and syncs it; false if the process has to end.
    pub(crate) fn write(&mut self, count: usize, fate: Fate) -> bool {
        self.hand_over();
        let Some(process) = &mut self.process else { return true };
        let (mut chunks, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        while chunks.len() < count
            && let Some((chunk, of)) = process.chunks.pop_front_if(|(c, _)| bytes + c.body.len() <= MAX_BATCH_BYTES)
        {
            bytes += chunk.body.len();
            chunks.push(chunk);
            entries.push(of);
        }
        if chunks.is_empty() {
            assert!(count == 0 || process.chunks.is_empty(), "a chunk that fits into no segment");
            return true;
        }
        self.files.borrow_mut().fate = fate;
        let written = process.writer.write(chunks);
        self.files.borrow_mut().fate = Fate::Well;
        match written {
            Ok(flushed) => {
                self.before = Some(self.durable.clone());
                entries.iter().flatten().for_each(|entry| self.durable.bring(entry));
                self.handle_flushed(&flushed);
                true
            }
            Err(WriteError::Full(back)) => {
                back.into_iter().zip(entries).rev().for_each(|chunk| process.chunks.push_front(chunk));
                true
            }
            Err(WriteError::Failed { .. }) => {
                self.in_flight = entries.concat();
                false
            }
        }
    }

    fn handle_flushed(&mut self, flushed: &Flushed) {
        let process = self.process.as_mut().expect("it is running");
        process.flushed += flushed.chunks;
        if let Some(sealed) = &flushed.sealed {
            process.catalog.seal(sealed.clone(), self.segment_bytes, BTreeSet::new());
            process.catalog.open(process.writer.segment().expect("another"), self.segment_bytes);
        }
        for part in &flushed.parts {
            process.kept.handle_flushed(part);
            if let Some(base) = part.reset {
                // What was there before can be neither harmed nor needed any more.
                (self.faulty, self.harm) = (false, Harm::None);
                self.files.borrow_mut().checkpoints.clear();
                process.catalog.free(self.partition, base);
            }
            if part.configuration.is_some() && !std::mem::replace(&mut process.kept.adopted, true) {
                process.catalog.adopt(self.partition);
            }
        }
        for (_, place) in &flushed.places {
            process.kept.handle_place(*place);
        }
        self.upkeep_after_flush();
    }

    /// A copy of the table is begun for another replica: where it starts.
    pub(crate) fn begin_copy(&mut self) -> Position {
        let process = self.process.as_mut().expect("it is running");
        process.kept.copied = process.applied;
        process.applied
    }

    /// How many entries the replica can be told of, if it was not yet.
    pub(crate) fn take_news(&mut self, at_once: bool) -> Option<u64> {
        let barriers = self.rules.barriers;
        let process = self.process.as_mut()?;
        let told = process.kept.take_news(at_once);
        if at_once && !barriers {
            let all = process.appended;
            return (std::mem::replace(&mut process.told, all) < all).then_some(all);
        }
        told
    }

    /// The process ends in order, with everything on disk, and its replica, if it had one, `complete`.
    pub(crate) fn stop(&mut self, complete: bool) {
        while self.unsynced() > 0 {
            if !self.write(usize::MAX, Fate::Well) {
                return;
            }
        }
        if self.process.take().is_some() {
            self.clean = complete;
        }
    }

    /// The process ends; and if the power is lost, so is any part of what was not synced.
    pub(crate) fn crash(&mut self, power: bool, random: &mut Random) {
        self.process = None;
        if power {
            self.files.borrow_mut().lose_power(random);
        }
    }

    pub(crate) fn can_read(&self, after: Lsn) -> bool {
        self.process.as_ref().is_some_and(|p| p.kept.can_read(after))
    }

    /// The committed records after `after`, or some of them, and the position that they follow.
    pub(crate) fn read(&self, after: Lsn) -> (Position, Vec<Record>) {
        let kept = &self.process.as_ref().expect("it is running").kept;
        let records = self.read_places(&kept.places(after, READ_BATCHES));
        kept.following(after, records)
    }

    fn read_places(&self, places: &[Place]) -> BTreeMap<Lsn, Record> {
        let files = self.files.borrow();
        let mut records = BTreeMap::new();
        for place in places {
            let Some(bytes) = files.segments.get(&place.segment) else { continue };
            let bytes = &bytes[place.offset as usize..];
            let Some(batch) = format::read_batch(bytes, &self.identity, place.segment, place.offset) else { continue };
            let mut body = &*batch.body;
            while !body.is_empty() {
                let entry = format::read_entry(&mut body).expect("an entry");
                if let Content::Record { record, .. } = entry.content
                    && (place.first..=place.last).contains(&record.position.lsn)
                {
                    records.insert(record.position.lsn, record);
                }
            }
        }
        records
    }
}
