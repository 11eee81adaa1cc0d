//! A node in small: several partitions, one stream or more, and restarts.

use crate::{
    common::{
        self, State, configuration, delete,
        disk::{Disk, Image, Media, Segment, Shared},
        keyless,
        model::Log,
        options, put,
        random::Random,
    },
    upkeep::{Checkpointing, Install},
};
use kv_proto::ids::{Lsn, PartitionId};
use kv_replication::replica::{LogEntry, Restored};
use kv_storage::{
    log::{
        SegmentId,
        catalog::Catalog,
        gather::{Chunk, Gather},
        index::Index,
        writer::{Flushed, WriteError, Writer},
    },
    recovery::Recovered,
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

pub(crate) const SEGMENT_BYTES: u64 = 64 * 1024;
const PARTITIONS: u16 = 5;
const KEYS: u64 = 40;
const MAX_GATHERED_BYTES: usize = 12 * 1024;

#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// A sync does what it says.
    pub(crate) honest: bool,
    /// What is found at the start is synced before it counts.
    pub(crate) sync_at_start: bool,
}

/// How often what was tried.
pub(crate) type Seen = BTreeMap<&'static str, u64>;

pub(crate) struct Stream {
    pub(crate) gather: Gather,
    writer: Writer<Media>,
    chunks: Vec<Chunk>,
    /// Copies that are not written yet: up to which age.
    pub(crate) copying: Vec<(PartitionId, u64)>,
}

impl Stream {
    fn bytes(&self) -> usize {
        self.gather.bytes() + self.chunks.iter().map(|c| c.body.len()).sum::<usize>()
    }
}

pub(crate) struct Partition {
    pub(crate) stream: usize,
    /// With what is gathered.
    pub(crate) next: Log,
    /// With what is acknowledged.
    pub(crate) acked: Log,
    /// As of what is committed.
    pub(crate) state: State,
    pub(crate) index: Index,
    pub(crate) released: Lsn,
    pub(crate) checkpointing: Option<Checkpointing>,
    pub(crate) install: Option<Install>,
}

pub(crate) struct Node {
    pub(crate) random: Random,
    rules: Rules,
    pub(crate) shared: Rc<RefCell<Shared>>,
    pub(crate) generation: u64,
    pub(crate) streams: Vec<Stream>,
    pub(crate) partitions: BTreeMap<PartitionId, Partition>,
    pub(crate) catalog: Catalog,
    /// By segment: its age, as the catalog counts it.
    pub(crate) ages: BTreeMap<SegmentId, u64>,
    pub(crate) seen: Seen,
}

impl Node {
    pub(crate) fn new(seed: u64, rules: Rules) -> Self {
        let shared = Shared { disk: Disk::default(), honest: rules.honest, moments: Vec::new(), full: 0 };
        let mut node = Node {
            random: Random(seed),
            rules,
            shared: Rc::new(RefCell::new(shared)),
            generation: 0,
            streams: Vec::new(),
            partitions: BTreeMap::new(),
            catalog: Catalog::default(),
            ages: BTreeMap::new(),
            seen: Seen::default(),
        };
        node.start(Disk::default(), &mut Recovered::default(), Vec::new()).expect("an empty disk");
        node
    }

    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(crate) fn partition(&mut self, id: PartitionId) -> &mut Partition {
        self.partitions.get_mut(&id).expect("a partition")
    }

    /// Begins the next generation on what is on this disk.
    fn start(
        &mut self,
        disk: Disk,
        recovered: &mut Recovered,
        scanned: Vec<kv_storage::recovery::Scanned>,
    ) -> Result<(), String> {
        self.generation += 1;
        {
            let mut shared = self.shared.borrow_mut();
            (shared.disk, shared.full) = (disk, 0);
        }
        (self.catalog, self.ages) = (Catalog::default(), BTreeMap::new());
        for (id, partition) in &recovered.partitions {
            self.catalog.release(*id, partition.released.lsn);
            if partition.restored.fault.is_some() {
                self.catalog.hold(*id);
            }
        }
        for scanned in scanned {
            self.ages.insert(scanned.sealed.id, self.ages.len() as u64 + 1);
            self.catalog.seal(scanned.sealed, SEGMENT_BYTES, scanned.states);
        }
        self.streams.clear();
        let streams = 1 + self.random.below(3) as u16;
        for executor in 0..streams {
            let writer = Writer::new(Media::new(&self.shared), options(self.generation, executor, SEGMENT_BYTES));
            let (chunks, copying) = (Vec::new(), Vec::new());
            self.streams.push(Stream { gather: Gather::default(), writer, chunks, copying });
        }
        let before = std::mem::take(&mut self.partitions);
        for id in (0..PARTITIONS).map(PartitionId) {
            let found = recovered.partitions.remove(&id).unwrap_or_default();
            let stream = self.random.below(u64::from(streams)) as usize;
            self.streams[stream].gather.adopt(id, &found.restored);
            let log = before.get(&id).map(|p| p.acked.clone()).unwrap_or_default();
            let partition = Partition::restored(stream, log, found);
            self.partitions.insert(id, partition);
        }
        for stream in 0..usize::from(streams) {
            self.shared.borrow_mut().moments.clear();
            self.streams[stream].writer.open().map_err(|e| e.to_string())?;
            let segment = self.streams[stream].writer.segment().expect("the first");
            self.catalog.open(segment, SEGMENT_BYTES);
            let moments = std::mem::take(&mut self.shared.borrow_mut().moments);
            for disk in moments {
                let image = disk.image_after_power_loss(&mut self.random);
                self.audit(&disk, &image, None)?;
            }
        }
        Ok(())
    }

    pub(crate) fn step(&mut self) -> Result<(), String> {
        let id = PartitionId(self.random.below(u64::from(PARTITIONS)) as u16);
        let partition = &self.partitions[&id];
        if partition.install.is_some() || partition.next.installing {
            self.step_install(id)?;
        } else if partition.next.configuration.is_none() {
            self.append(id, LogEntry::Configuration(configuration(1, 1)));
        } else {
            match self.random.below(100) {
                0..=44 => self.write(id),
                45..=59 => self.commit(id),
                60..=63 => {
                    let next = self.partition(id).next.next_configuration();
                    self.append(id, LogEntry::Configuration(next));
                }
                64..=69 => self.cut(id),
                70..=77 => self.step_checkpoint(id)?,
                78 if self.random.one_in(3) => self.begin_install(id),
                79..=80 => {
                    let stream = self.random.below(self.streams.len() as u64) as usize;
                    let chunk = self.streams[stream].gather.take();
                    self.streams[stream].chunks.extend(chunk);
                }
                _ => {}
            }
        }
        let stream = self.random.below(self.streams.len() as u64) as usize;
        if self.random.one_in(4) {
            self.flush(stream)?;
            self.shorten()?;
        }
        self.flush_long()
    }

    pub(crate) fn append(&mut self, id: PartitionId, entry: LogEntry) {
        let partition = self.partitions.get_mut(&id).expect("a partition");
        let stream = &mut self.streams[partition.stream];
        stream.gather.append(id, &entry, partition.next.committed());
        match entry {
            LogEntry::Record(record) => {
                let lsn = record.position.lsn;
                partition.next.records.truncate(lsn.0 as usize - 1);
                partition.next.records.push(record);
            }
            LogEntry::Cut { from } => partition.next.records.truncate(from.0 as usize - 1),
            LogEntry::Configuration(configuration) => partition.next.configuration = Some(configuration),
            LogEntry::Reset { .. } => unreachable!("an install makes its own"),
        }
    }

    pub(crate) fn record(&mut self, epoch: u64, lsn: u64) -> kv_proto::replication::Record {
        let key = self.random.below(KEYS).to_le_bytes();
        let at = common::at(epoch, lsn);
        if self.random.one_in(3) {
            return delete(at, &key);
        }
        if self.random.one_in(8) {
            return keyless(at);
        }
        let long = self.random.one_in(20);
        let mut value = vec![0; self.random.below(if long { 6000 } else { 300 }) as usize];
        value.iter_mut().for_each(|byte| *byte = self.random.next() as u8);
        if long {
            // What looks like batches, at any alignment.
            value.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(b"kvB\x01"));
            value.drain(..self.random.below(4) as usize % value.len().max(1));
        }
        put(at, &key, &value)
    }

    fn write(&mut self, id: PartitionId) {
        for _ in 0..1 + self.random.below(4) {
            let next = &self.partitions[&id].next;
            let (epoch, lsn) = (next.epoch(), next.last().0 + 1);
            let record = self.record(epoch, lsn);
            self.append(id, LogEntry::Record(record));
        }
    }

    /// What is on disk becomes committed, as far as it was not cut since.
    fn commit(&mut self, id: PartitionId) {
        let partition = self.partitions.get_mut(&id).expect("a partition");
        let same = partition.acked.records.iter().zip(&partition.next.records).take_while(|(a, n)| a == n).count();
        let committed = partition.next.committed().0;
        let more = self.random.below(same as u64 - committed + 1);
        partition.commit(Lsn(committed + more));
    }

    /// A new leader's word: what this replica has more than the others is void.
    fn cut(&mut self, id: PartitionId) {
        let next = &self.partitions[&id].next;
        let uncommitted = next.last().0 - next.committed().0;
        if uncommitted == 0 {
            return;
        }
        let from = next.last().0 - self.random.below(uncommitted);
        let configuration = next.next_configuration();
        self.append(id, LogEntry::Configuration(configuration));
        if !self.random.one_in(4) {
            self.append(id, LogEntry::Cut { from: Lsn(from) });
            if self.random.one_in(3) {
                return;
            }
        }
        let epoch = self.partitions[&id].next.epoch();
        let record = self.record(epoch, from);
        self.append(id, LogEntry::Record(record));
        self.saw("cuts");
    }

    /// No batch is longer than a segment.
    pub(crate) fn flush_long(&mut self) -> Result<(), String> {
        while let Some(stream) = self.streams.iter().position(|s| s.bytes() > MAX_GATHERED_BYTES) {
            self.flush(stream)?;
        }
        Ok(())
    }

    /// Writes what a stream has gathered.
    pub(crate) fn flush(&mut self, at: usize) -> Result<(), String> {
        let stream = &mut self.streams[at];
        stream.chunks.extend(stream.gather.take());
        let mut chunks = std::mem::take(&mut stream.chunks);
        if chunks.is_empty() {
            return Ok(());
        }
        {
            let mut shared = self.shared.borrow_mut();
            shared.moments.clear();
            shared.full = if self.random.one_in(3) { 2 } else { 0 };
        }
        let flushed = loop {
            match self.streams[at].writer.write(chunks) {
                Ok(flushed) => break flushed,
                Err(WriteError::Full(back)) => {
                    *self.seen.entry("full").or_default() += 1;
                    chunks = back;
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        let moments = std::mem::take(&mut self.shared.borrow_mut().moments);
        for disk in moments {
            let image = disk.image_after_power_loss(&mut self.random);
            self.audit(&disk, &image, Some(at))?;
            if self.random.one_in(40) {
                return self.restart(disk, image, Some(at));
            }
            if self.random.one_in(40) {
                self.saw("kills");
                let image = disk.image_of_cache();
                return self.restart(disk, image, Some(at));
            }
        }
        self.acknowledge(at, &flushed);
        let disk = self.shared.borrow().disk.clone();
        let image = disk.image_after_power_loss(&mut self.random);
        self.audit(&disk, &image, None)?;
        if self.random.one_in(60) {
            return self.restart(disk, image, None);
        }
        Ok(())
    }

    fn acknowledge(&mut self, at: usize, flushed: &Flushed) {
        self.saw("acknowledged");
        let segment = self.streams[at].writer.segment().expect("one was written to");
        if let Some(sealed) = &flushed.sealed {
            self.ages.insert(sealed.id, self.ages.len() as u64 + 1);
            self.catalog.seal(sealed.clone(), SEGMENT_BYTES, Default::default());
            self.catalog.open(segment, SEGMENT_BYTES);
        }
        for part in &flushed.parts {
            let partition = self.partitions.get_mut(&part.partition).expect("a partition");
            if let Some(from) = part.voids {
                partition.index.void(from);
            }
            if part.configuration.is_some() {
                self.catalog.adopt(part.partition);
            }
            if let Some(base) = part.reset {
                self.catalog.free(part.partition, base);
            }
        }
        for (id, place) in &flushed.places {
            self.partitions.get_mut(id).expect("a partition").index.push(*place);
        }
        for partition in self.partitions.values_mut().filter(|p| p.stream == at) {
            partition.acked = partition.next.clone();
        }
        for (id, age) in std::mem::take(&mut self.streams[at].copying) {
            self.catalog.copied(id, age);
        }
    }

    /// Reads back files as they may be at this moment; `writing` is the stream that has a batch under way.
    pub(crate) fn audit(&mut self, disk: &Disk, image: &Image, writing: Option<usize>) -> Result<(), String> {
        let audited = self.check(disk, image, writing);
        if audited.is_err() && std::env::var_os("KV_POWER_DUMP").is_some() {
            for id in self.partitions.keys() {
                let checkpoints: Vec<_> = disk.checkpoints.keys().filter(|(p, _)| p == id).collect();
                eprintln!("partition {id}, checkpoints {checkpoints:?}\n{}", common::dump(image, *id));
            }
        }
        audited
    }

    fn check(&mut self, disk: &Disk, image: &Image, writing: Option<usize>) -> Result<(), String> {
        self.saw("images");
        let (recovered, _) = common::recover(&disk.checkpoints, image).map_err(|e| e.to_string())?;
        if let Some(damage) = recovered.damage.first() {
            return Err(format!("a torn tail is taken for damage: {damage}"));
        }
        let (mut without, mut with) = (Ok(()), Ok(()));
        for (id, partition) in &self.partitions {
            let found = recovered.partitions.get(id);
            let as_acked = partition.acked.check(*id, found);
            if writing == Some(partition.stream) {
                with = with.and(partition.next.check(*id, found));
                without = without.and(as_acked);
            } else {
                as_acked?;
            }
        }
        let whole = with.is_ok();
        match (with, without) {
            (Err(with), Err(without)) => {
                return Err(format!("neither with the batch under way ({with}) nor without ({without})"));
            }
            (Err(_), Ok(())) => self.saw("torn"),
            _ => {}
        }
        for (id, partition) in &self.partitions {
            let log = if writing == Some(partition.stream) && whole { &partition.next } else { &partition.acked };
            if let Some(found) = recovered.partitions.get(id)
                && !log.installing
            {
                log.check_index(*id, found, image)?;
                log.check_values(*id, &found.table, found.restored.applied.lsn)?;
            }
        }
        Ok(())
    }

    /// The process ends, and the next one finds these files.
    fn restart(&mut self, mut disk: Disk, image: Image, writing: Option<usize>) -> Result<(), String> {
        self.saw("restarts");
        self.audit(&disk, &image, writing)?;
        let (mut recovered, scanned) = common::recover(&disk.checkpoints, &image).map_err(|e| e.to_string())?;
        for (id, partition) in &mut self.partitions {
            let found = recovered.partitions.get(id);
            if writing == Some(partition.stream) && partition.next.check(*id, found).is_ok() {
                partition.acked = partition.next.clone();
            }
        }
        let cached = disk.image_of_cache();
        for (id, bytes) in image {
            let segment = disk.segments.get_mut(&id).expect("it is of this disk");
            // A process that was killed leaves what it wrote, on disk or not.
            if self.rules.sync_at_start || bytes != cached[&id] {
                *segment = Segment { durable: bytes, unsynced: Vec::new() };
            }
        }
        self.start(disk, &mut recovered, scanned)
    }
}

impl Partition {
    fn restored(stream: usize, mut log: Log, found: kv_storage::recovery::Partition) -> Self {
        let Restored { applied, fault, .. } = found.restored;
        assert!(fault.is_none() || log.installing, "it was audited");
        log.installing = fault.is_some();
        if !log.installing {
            // What is committed is not known any more beyond what is in the table.
            log.digests.truncate(applied.lsn.0 as usize + 1);
        }
        Partition {
            stream,
            next: log.clone(),
            acked: log,
            state: State { table: found.table, operations: found.operations },
            index: found.index,
            released: found.released.lsn,
            checkpointing: None,
            install: None,
        }
    }

    pub(crate) fn commit(&mut self, to: Lsn) {
        for lsn in self.next.committed().0..to.0 {
            let record = &self.next.records[lsn as usize];
            self.state.apply(record);
            self.next.digests.push(self.state.digest());
            self.acked.digests.push(self.state.digest());
        }
    }
}
