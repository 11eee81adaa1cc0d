//! What a node of the simulation keeps: the real log and the real checkpoints over files in memory, used as `kv-node` uses
//! them. Beside them stands what they should hold, as plain lists, to which everything that is read back is compared.

use crate::{
    checks::{Verdict, ensure},
    media::{Fate, Files, Media, Shared},
    random::Random,
    upkeep::Upkeep,
    writes,
};
use kv_proto::{
    cluster_map::Configuration,
    ids::{ClusterId, Epoch, Lsn, Member, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Restored};
use kv_storage::{
    checkpoint,
    kept::Kept,
    log::{
        SegmentId, StreamId,
        catalog::Catalog,
        format::{self, BLOCK_BYTES, Content, Found, Identity},
        gather::{Chunk, Gather},
        index::Place,
        writer::{Flushed, StreamOptions, WriteError, Writer},
    },
    operations::Operations,
    recovery::{self, Recovery, Scanned},
    table::Table,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const PARTITION: PartitionId = PartitionId(3);
pub(crate) const CLUSTER: ClusterId = ClusterId(5);
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

/// A log as a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    pub(crate) configuration: Option<Configuration>,
}

impl Log {
    fn bring(&mut self, entry: &LogEntry) {
        match entry {
            LogEntry::Record(record) => {
                self.records.truncate(record.position.lsn.0 as usize - 1);
                assert_eq!(self.records.len() as u64 + 1, record.position.lsn.0, "a gap in the log");
                self.records.push(record.clone());
            }
            LogEntry::Cut { from } => self.records.truncate(from.0 as usize - 1),
            LogEntry::Configuration(configuration) => self.configuration = Some(configuration.clone()),
        }
    }

    /// Brings the entries of a batch, and says what takes them back.
    fn bring_batch(&mut self, entries: &[LogEntry]) -> Undo {
        let below = |entry: &LogEntry| match entry {
            LogEntry::Record(record) => record.position.lsn.0 as usize - 1,
            LogEntry::Cut { from } => from.0 as usize - 1,
            LogEntry::Configuration(_) => usize::MAX,
        };
        let keeps = entries.iter().map(below).fold(self.records.len(), usize::min);
        let undo = Undo { keeps, voided: self.records[keeps..].to_vec(), configuration: self.configuration.clone() };
        entries.iter().for_each(|entry| self.bring(entry));
        undo
    }

    fn take_back(&mut self, undo: Undo) {
        self.records.truncate(undo.keeps);
        self.records.extend(undo.voided);
        self.configuration = undo.configuration;
    }

    pub(crate) fn last(&self) -> Position {
        self.records.last().map(|r| r.position).unwrap_or_default()
    }

    /// Whether this is what was read back.
    fn check(&self, found: &Restored, published: &Option<Configuration>) -> Verdict {
        let applied = found.applied.lsn.0 as usize;
        let here = self.records.get(..applied).map(|r| r.last().map(|r| r.position).unwrap_or_default());
        let same = here == Some(found.applied) && self.records[applied..] == found.tail[..];
        ensure(same, || {
            let end = found.last();
            format!("applied {}, then {} to {end}; it was {}", found.applied, found.tail.len(), self.last())
        })?;
        let epoch = |c: &Option<Configuration>| c.as_ref().map(|c| c.epoch);
        let was = if epoch(published) > epoch(&self.configuration) { published } else { &self.configuration };
        let found = &found.configuration;
        ensure(found == was, || format!("epoch {:?}; it was {:?}", epoch(found), epoch(was)))
    }
}

/// What takes a batch back.
#[derive(Debug)]
struct Undo {
    keeps: usize,
    voided: Vec<Record>,
    configuration: Option<Configuration>,
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
    pub(crate) gather: Gather,
    writer: Writer<Media>,
    /// What is handed over, with the entries of the replica in it, and such entries that are not.
    chunks: VecDeque<(Chunk, Vec<LogEntry>)>,
    gathered: Vec<LogEntry>,
    pub(crate) kept: Kept,
    /// Entries that the replica appended, and those that it was told of, where [`Kept`] is not asked.
    appended: u64,
    told: u64,
    pub(crate) catalog: Catalog,
    pub(crate) table: Table,
    pub(crate) operations: Operations,
    pub(crate) applied: Position,
    /// Chunks that were handed over, and those that are on disk.
    pub(crate) sent: u64,
    pub(crate) flushed: u64,
    pub(crate) upkeep: Upkeep,
}

impl Process {
    /// Equal where the same was applied.
    pub(crate) fn digest(&self) -> u64 {
        self.table.digest().wrapping_add(self.operations.digest().rotate_left(1))
    }
}

pub(crate) struct Disk {
    pub(crate) identity: Identity,
    pub(crate) rules: DiskRules,
    pub(crate) files: Shared,
    segment_bytes: u64,
    generation: u64,
    pub(crate) process: Option<Process>,
    /// With everything that was appended, and with what is synced.
    live: Log,
    durable: Log,
    /// What takes back the last batch that is synced.
    last: Option<Undo>,
    /// The configuration that the checkpoint says; the log may not have it yet.
    pub(crate) published: Option<Configuration>,
    /// The batch that the last process wrote and did not sync.
    in_flight: Vec<LogEntry>,
    harm: Harm,
    /// The log with the batch that was cut off: a checkpoint may have some of it.
    uncut: Option<Log>,
    /// It said that it cannot be read.
    pub(crate) faulty: bool,
}

/// An intact batch of a log.
struct Batch {
    segment: SegmentId,
    place: std::ops::Range<usize>,
    entries: u32,
    has_state: bool,
    only_copies: bool,
}

impl Disk {
    pub(crate) fn new(member: Member, rules: DiskRules, segment_blocks: usize) -> Self {
        let mut files = Files::default();
        files.lies = !rules.sync_first;
        Disk {
            identity: Identity { node: member.node, disk: member.disk },
            rules,
            files: Shared::new(files.into()),
            segment_bytes: (segment_blocks * BLOCK_BYTES) as u64,
            generation: 0,
            process: None,
            live: Log::default(),
            durable: Log::default(),
            last: None,
            published: None,
            in_flight: Vec::new(),
            harm: Harm::None,
            uncut: None,
            faulty: false,
        }
    }

    /// An empty disk in its place.
    pub(crate) fn replacement(&self, member: Member) -> Self {
        Disk::new(member, self.rules, self.segment_bytes as usize / BLOCK_BYTES)
    }

    /// The log with all that was appended.
    pub(crate) fn live(&self) -> &[Record] {
        &self.live.records
    }

    /// The log as it is after the worst crash.
    pub(crate) fn durable(&self) -> &[Record] {
        &self.durable.records
    }

    /// The newest epoch that no crash loses.
    pub(crate) fn epoch(&self) -> Epoch {
        self.durable.configuration.as_ref().map(|c| c.epoch).unwrap_or_default()
    }

    /// Whether nothing was done to it that may show later.
    pub(crate) fn is_whole(&self) -> bool {
        self.harm == Harm::None
    }

    pub(crate) fn configuration(&self) -> Option<&Configuration> {
        self.durable.configuration.as_ref()
    }

    /// A process starts: what it finds.
    pub(crate) fn open(&mut self) -> Result<Restored, String> {
        if self.rules.sync_at_start {
            self.files.borrow_mut().sync_all();
        }
        self.generation += 1;
        let stream = StreamId { generation: self.generation, executor: (self.generation % 2) as u16 };
        let found = self.read_back();
        self.compare(&found)?;
        let (found, scanned) = found.unwrap_or_else(|why| {
            let restored = Restored { fault: Some(why), ..Restored::default() };
            (recovery::Partition { restored, ..recovery::Partition::default() }, Vec::new())
        });
        let recovery::Partition { table, operations, restored, released, index } = found;
        let last = restored.last();
        let mut catalog = Catalog::default();
        catalog.release(PARTITION, released.lsn);
        if restored.fault.is_some() {
            catalog.hold(PARTITION);
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
        gather.adopt(PARTITION, &restored);
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
            sent: 0,
            flushed: 0,
            upkeep: Upkeep::default(),
        });
        Ok(restored)
    }

    /// Reads the files back, as a node does at its start.
    fn read_back(&self) -> Result<(recovery::Partition, Vec<Scanned>), String> {
        let files = self.files.borrow();
        let mut recovery = Recovery::new(self.identity);
        if let Some((start, bytes)) = files.checkpoints.last_key_value() {
            match checkpoint::read(&mut &bytes[..], &self.identity) {
                Ok(checkpoint) => recovery.take_checkpoint(checkpoint),
                Err(error) => {
                    recovery.refuse_checkpoint(PARTITION, format!("its checkpoint from {start}: {error}"));
                }
            }
        }
        let mut scanned = Vec::new();
        for (id, bytes) in &files.segments {
            scanned.push(recovery.take_segment(*id, bytes).map_err(|error| format!("{id}: {error}"))?);
        }
        let mut recovered = recovery.finish();
        let mut partition = recovered.partitions.remove(&PARTITION).unwrap_or_default();
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
        if let Some(fault) = &restored.fault {
            self.faulty = true;
            if self.harm == Harm::None {
                self.show("what is taken for damaged");
            }
            return ensure(self.harm != Harm::None, || format!("{node} is taken for damaged, and is not: {fault}"));
        }
        let in_flight = std::mem::take(&mut self.in_flight);
        if let Some(mut uncut) = self.uncut.take_if(|_| restored.tail.is_empty()) {
            // The checkpoint has more of it than the log.
            let start = self.files.borrow().checkpoints.last_key_value().map_or(0, |(start, _)| start.0 as usize);
            uncut.records.truncate(start);
            if start > self.durable.records.len() && uncut.check(restored, &self.published).is_ok() {
                self.durable = uncut;
            }
        }
        let without = self.durable.check(restored, &self.published);
        if let Err(without) = without {
            self.last = Some(self.durable.bring_batch(&in_flight));
            self.durable.check(restored, &self.published).map_err(|with| {
                self.show("what it came back with");
                format!("{node} came back ({:?}) with {with}; or without its last batch: {without}", self.harm)
            })?;
        }
        self.durable.configuration.clone_from(&restored.configuration);
        self.live = self.durable.clone();
        if self.harm == Harm::Cut {
            self.harm = Harm::None; // It stays as it was read now.
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, entry: LogEntry, committed: Lsn) {
        let process = self.process.as_mut().expect("who appends has opened the log");
        self.live.bring(&entry);
        process.kept.handle_append(&entry);
        process.appended += 1;
        process.gather.append(PARTITION, &entry, committed);
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
                self.last = Some(self.durable.bring_batch(&entries.concat()));
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

    /// Writes everything.
    pub(crate) fn write_all(&mut self) {
        while self.unsynced() > 0 {
            assert!(self.write(usize::MAX, Fate::Well), "nothing was to fail");
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
            if part.configuration.is_some() && !std::mem::replace(&mut process.kept.adopted, true) {
                process.catalog.adopt(PARTITION);
            }
        }
        for (_, place) in &flushed.places {
            process.kept.handle_place(*place);
        }
        self.upkeep_after_flush();
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

    pub(crate) fn read_places(&self, places: &[Place]) -> BTreeMap<Lsn, Record> {
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

    pub(crate) fn apply(&mut self, record: &Record) -> u64 {
        let process = self.process.as_mut().expect("it is running");
        writes::apply(&mut process.table, &mut process.operations, record);
        process.applied = record.position;
        process.digest()
    }

    /// Prints what the files have, if somebody wants to look at it.
    fn show(&self, why: &str) {
        if std::env::var_os("KV_SIM_DUMP").is_none() {
            return;
        }
        let mut out = String::new();
        for start in self.files.borrow().checkpoints.keys() {
            out += &format!("{}: checkpoint from {start}\n", self.identity.node);
        }
        for batch in self.batches() {
            let (files, at) = (self.files.borrow(), batch.place.start);
            let bytes = &files.segments[&batch.segment][at..];
            let found = format::read_batch(bytes, &self.identity, batch.segment, at as u64).expect("an intact batch");
            let mut body = &*found.body;
            out += &format!("{} at {}\n", batch.segment, batch.place.start);
            while !body.is_empty() {
                let entry = format::read_entry(&mut body).expect("an entry");
                let what = match entry.content {
                    Content::Record { record, copy, .. } => format!("record {} copy {copy}", record.position),
                    Content::State { configuration, last, faulty } => {
                        format!("state epoch {} last {last} faulty {faulty}", configuration.epoch)
                    }
                    other => format!("{other:?}"),
                };
                out += &format!("    committed {}: {what}\n", entry.committed);
            }
        }
        println!("{out}{why}\n");
    }

    /// All batches that are intact, in their order.
    fn batches(&self) -> Vec<Batch> {
        let (files, mut batches) = (self.files.borrow(), Vec::new());
        for (id, bytes) in &files.segments {
            let mut offset = BLOCK_BYTES;
            while offset < bytes.len() {
                let (found, length) = format::find_batch(&bytes[offset..], &self.identity, *id, offset as u64);
                let at = offset;
                offset += length as usize;
                let Found::Batch(batch) = found else { continue };
                let (mut body, mut has_state, mut only_copies) = (&*batch.body, false, true);
                while !body.is_empty() {
                    let entry = format::read_entry(&mut body).expect("an entry");
                    has_state |= matches!(entry.content, Content::State { .. });
                    only_copies &= matches!(entry.content, Content::Record { copy: true, .. });
                }
                let place = at..at + format::BATCH_HEADER_BYTES + batch.body.len();
                batches.push(Batch { segment: *id, place, entries: batch.entries, has_state, only_copies });
            }
        }
        batches
    }

    /// Turns a bit around, while no process uses the files; what that may be taken for.
    ///
    /// The last batch is left alone if it has a configuration: without it the log looks as if the replica had never been in
    /// that epoch, and nothing here can tell.
    pub(crate) fn damage(&mut self, random: &mut Random) -> Result<Harm, String> {
        assert!(self.process.is_none() && self.harm == Harm::None && !self.faulty, "it is down, and not harmed yet");
        self.files.borrow_mut().sync_all(); // The kernel has had the time for it.
        let found = self.read_back();
        self.compare(&found)?;
        if random.one_in(12)
            && let Some(mut checkpoint) = self.files.borrow_mut().checkpoints.last_entry()
        {
            let at = random.below(checkpoint.get().len() as u64) as usize;
            checkpoint.get_mut()[at] ^= 1 << random.below(8);
            self.harm = Harm::Damage;
            return Ok(self.harm);
        }
        let batches = self.batches();
        let segments: Vec<_> = self.files.borrow().segments.keys().copied().collect();
        if batches.is_empty() {
            return Ok(Harm::None);
        }
        let segment = segments[random.below(segments.len() as u64) as usize];
        let (segment, at) = match random.below(8) {
            0 => (segment, random.below(BLOCK_BYTES as u64) as usize),
            1 => (segment, random.below(self.segment_bytes) as usize),
            what => {
                let last = [1, 3, batches.len()][what as usize % 3].min(batches.len());
                let batch = &batches[batches.len() - 1 - random.below(last as u64) as usize];
                let bytes = (batch.place.end - batch.place.start) as u64;
                (batch.segment, batch.place.start + random.below(bytes) as usize)
            }
        };
        let hit = batches.iter().position(|b| b.segment == segment && b.place.contains(&at));
        self.harm = match hit {
            None if at < BLOCK_BYTES => Harm::Damage,
            None => Harm::None,
            Some(hit) if batches[hit..].iter().all(|b| b.entries == 0) => Harm::Damage,
            // The log says elsewhere which records there are.
            Some(hit) if batches[hit].only_copies => Harm::Damage,
            Some(hit) if batches[hit + 1..].iter().all(|b| b.entries == 0) => {
                let Some(undo) = self.last.take_if(|_| !batches[hit].has_state) else { return Ok(Harm::None) };
                self.uncut = Some(self.durable.clone());
                self.durable.take_back(undo);
                Harm::Cut
            }
            Some(_) => Harm::Damage,
        };
        self.show(&format!("a bit of byte {at} of {segment} is turned around: {:?}", self.harm));
        self.files.borrow_mut().segments.get_mut(&segment).expect("it is there")[at] ^= 1 << random.below(8);
        Ok(self.harm)
    }
}
