//! What a node keeps on its disk: the shell around `kv-storage`, with files and threads.
//!
//! * `data_dir`: the node's folder, its lock, whose it is
//! * `files`: the log's segments as files
//! * `reserve`: room on the disk that is taken in advance
//! * `stream`: the thread that writes an executor's stream of the log
//! * `restore`: reading everything back at the start
//! * `log_reader`: the thread that reads from it
//! * `worker`: the thread for everything else that blocks: checkpoints, making and removing files
//!
//! # Invariants
//! * No executor waits for a disk.
//! * Nothing of a log is removed before what makes it unneeded is on disk.

mod data_dir;
mod files;
mod log_reader;
mod reserve;
mod restore;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use data_dir::DataDir;
pub use data_dir::DataDirError;
pub(crate) use files::preallocated;
pub(crate) use log_reader::ReadLog;
pub use restore::RestoreError;
pub(crate) use stream::Stream;
pub(crate) use worker::{CheckpointFile, Job};

use crate::{executor::Mail, mailbox::Sender, options::StorageSettings};
use files::SegmentFiles;
use kv_proto::{
    ids::{ClusterId, ExecutorIndex, Lsn, PartitionId},
    report::ReplicaReport,
};
use kv_storage::{
    checkpoint,
    log::{SegmentId, StreamId, catalog::Catalog, format::Identity, writer::StreamOptions},
    operations::Operations,
    recovery,
    table::Table,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

/// A disk that is nearly full takes values until a segment has less room than this part of it: the rest is for deletes and
/// for what replicas note.
const RESERVED_PART: u64 = 4;
/// Bytes of the log that are kept at most for nothing but nodes that are behind: one that needs more gets a copy of the table.
const MAX_SENT_BYTES: u64 = 1024 * 1024 * 1024;
/// What a checkpoint has beside its entries, in bytes.
const CHECKPOINT_BYTES: u64 = 16 * 1024;

/// What the executors of a node share of its disk.
pub(crate) struct Storage {
    pub(crate) settings: StorageSettings,
    pub(crate) identity: Identity,
    /// How often the node was started.
    pub(crate) generation: u64,
    /// Partitions of which nothing was found while something was damaged: nobody can say whether they had anything.
    pub(crate) damage: Option<String>,
    /// Whether everything was on disk when the process before this one ended.
    stopped_cleanly: bool,
    /// How many executors have stopped with everything that their replicas ever said they have.
    complete: AtomicUsize,
    files: Arc<SegmentFiles>,
    executors: usize,
    dir: Mutex<DataDir>,
    catalog: Mutex<Catalog>,
    /// What was restored and has no owner yet.
    restored: Mutex<BTreeMap<PartitionId, recovery::Partition>>,
    /// Bytes of the checkpoints that were restored.
    checkpoints: BTreeMap<PartitionId, u64>,
    worker: mpsc::Sender<Job>,
    log_reader: mpsc::Sender<ReadLog>,
}

/// Bytes that a checkpoint of table and operations takes at most.
pub(crate) fn checkpoint_bytes(table: &Table, operations: &Operations) -> u64 {
    let entries = table.bytes() + table.keys() * checkpoint::ENTRY_BYTES;
    let bytes = entries + operations.encoded_bytes() + CHECKPOINT_BYTES;
    bytes + bytes / 8
}

/// Bytes that must be free so that all these can be checkpointed, one after another, and the log be let go: what each
/// checkpoint takes at most, and what the one before it takes.
pub(crate) fn room_for_checkpoints(tables: impl Iterator<Item = (u64, u64)>) -> u64 {
    let (more, largest) = tables.fold((0, 0), |(more, largest), (next, before)| {
        (more + next.saturating_sub(before), next.min(before).max(largest))
    });
    more + largest
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Storage {
    /// Reads back what is in the folder, begins a new generation, and starts the worker. Blocks as long as that takes.
    pub(crate) fn open(
        settings: StorageSettings,
        mut dir: DataDir,
        mail: Vec<Sender<Mail>>,
    ) -> Result<Arc<Self>, RestoreError> {
        let executors = mail.len();
        let identity = Identity { node: dir.file().node, disk: dir.file().disk };
        let files = SegmentFiles::open(&settings.dir.join("log"), settings.segment_bytes, executors)
            .map_err(restore::io_error("open the log in", &settings.dir))?;
        let restored = restore::restore(&settings.dir, &files, dir.file(), &identity)?;
        let stopped_cleanly = dir.file().clean;
        dir.change(|file| {
            file.generation += 1;
            file.clean = false;
        })?;
        let mut catalog = Catalog::default();
        for (id, partition) in &restored.recovered.partitions {
            catalog.release(*id, partition.released.lsn);
            if partition.restored.fault.is_some() {
                catalog.hold(*id);
            }
        }
        for (scanned, bytes) in restored.segments {
            catalog.seal(scanned.sealed, bytes, scanned.states);
        }
        for (id, partition) in &restored.recovered.partitions {
            if partition.restored.fault.is_none() {
                catalog.void(*id, partition.restored.last().lsn.next());
            }
        }
        let tables = restored.recovered.partitions.iter().map(|(id, p)| {
            (checkpoint_bytes(&p.table, &p.operations), restored.checkpoints.get(id).copied().unwrap_or(0))
        });
        files.reserve(0, room_for_checkpoints(tables));
        let damage = restored.recovered.damage.first().cloned();
        let files = Arc::new(files);
        let cannot_start = restore::io_error("start a thread for", &settings.dir);
        let threads = worker::start(&settings.dir, files.clone(), mail.clone())
            .and_then(|worker| Ok((worker, log_reader::start(identity, files.clone(), mail)?)));
        let (worker, log_reader) = threads.map_err(cannot_start)?;
        Ok(Arc::new(Storage {
            settings,
            identity,
            generation: dir.file().generation,
            damage,
            stopped_cleanly,
            complete: AtomicUsize::new(0),
            files,
            executors,
            dir: Mutex::new(dir),
            catalog: Mutex::new(catalog),
            restored: Mutex::new(restored.recovered.partitions),
            checkpoints: restored.checkpoints,
            worker,
            log_reader,
        }))
    }

    /// Starts the stream of an executor.
    pub(crate) fn start_stream(
        self: &Arc<Self>,
        executor: ExecutorIndex,
        mail: Sender<Mail>,
    ) -> Result<Stream, RestoreError> {
        let options = StreamOptions {
            cluster: self.cluster().unwrap_or_default(),
            identity: self.identity,
            stream: StreamId { generation: self.generation, executor: executor.0 },
            segment_bytes: self.settings.segment_bytes,
        };
        Stream::start(self, options, mail)
    }

    /// Every stream of this generation is on disk.
    pub(crate) fn begin(&self) -> Result<(), DataDirError> {
        self.prepare_segment();
        let executors = self.executors as u16;
        lock(&self.dir).change(|file| (file.begun, file.executors) = (file.generation, executors))
    }

    /// The cluster that the data belong to.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        lock(&self.dir).file().cluster
    }

    /// The data belong to this cluster from now on; on disk when this returns.
    pub(crate) fn join(&self, cluster: ClusterId) -> Result<(), DataDirError> {
        let mut dir = lock(&self.dir);
        if dir.file().cluster == Some(cluster) { Ok(()) } else { dir.change(|file| file.cluster = Some(cluster)) }
    }

    /// An executor has stopped, and everything of it is on disk; `complete` says that its replicas have all that they ever
    /// said they have.
    pub(crate) fn note_stopped(&self, complete: bool) {
        if complete {
            self.complete.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Everything is on disk, and the process ends. What an earlier process may have lost stays known until it is there again.
    pub(crate) fn close(&self) -> Result<(), DataDirError> {
        let complete = self.complete.load(Ordering::Relaxed) == self.executors;
        let clean = self.stopped_cleanly || complete && lock(&self.restored).is_empty();
        lock(&self.dir).change(|file| file.clean = clean)
    }

    /// Which segments there are, and who needs them. Held only for a moment.
    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        lock(&self.catalog)
    }

    /// What was restored of a partition, for who owns it from now on. A partition of which nothing was found was never
    /// here, or was in what is damaged. Where writes do not wait for the disk, a process that did not stop in order may have lost
    /// some that it had told of, of a partition too of which nothing was found.
    pub(crate) fn take_restored(&self, id: PartitionId) -> recovery::Partition {
        let mut restored = lock(&self.restored).remove(&id).unwrap_or_default();
        let nothing = restored.restored.configuration.is_none();
        if nothing && restored.restored.fault.is_none() {
            let fault = |what: &String| format!("{what}, and nothing else of this partition was found");
            restored.restored.fault = self.damage.as_ref().map(fault);
        }
        restored.restored.incomplete = !self.stopped_cleanly;
        restored
    }

    /// What was restored and has no owner.
    pub(crate) fn report_restored(&self) -> Vec<ReplicaReport> {
        let restored = lock(&self.restored);
        let report = |(partition, p): (&PartitionId, &recovery::Partition)| ReplicaReport {
            partition: *partition,
            configuration: p.restored.configuration.clone(),
            last: p.restored.last(),
            fault: p.restored.fault.clone(),
        };
        restored.iter().map(report).collect()
    }

    /// Gives the worker something to do.
    pub(crate) fn ask(&self, job: Job) {
        // The worker ends only with the process.
        let _ = self.worker.send(job);
    }

    /// Has records read from the log.
    pub(crate) fn read_log(&self, read: ReadLog) {
        // The reader ends only with the process.
        let _ = self.log_reader.send(read);
    }

    /// Has a segment ready before one is needed.
    pub(crate) fn prepare_segment(&self) {
        self.ask(Job::Prepare);
    }

    /// Whether there was no room for another segment when one was last made.
    pub(crate) fn is_full(&self) -> bool {
        self.files.is_full()
    }

    /// Bytes of the checkpoint that a partition had at the start.
    pub(crate) fn checkpoint_bytes(&self, id: PartitionId) -> u64 {
        self.checkpoints.get(&id).copied().unwrap_or(0)
    }

    /// Leaves room on the disk for the checkpoints of an executor, from now on.
    pub(crate) fn reserve(&self, executor: ExecutorIndex, bytes: u64) {
        self.files.reserve(usize::from(executor.0), bytes);
    }

    /// Room in a stream below which it takes no more values.
    pub(crate) fn reserved_room(&self) -> u64 {
        self.settings.segment_bytes / RESERVED_PART
    }

    /// Bytes that each stream may write to spare segments and leave those that the next start needs.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.files.spare_bytes()
    }

    /// So many bytes were appended, which may be in its checkpoints some day.
    pub(crate) fn reserve_more(&self, executor: ExecutorIndex, bytes: u64) {
        self.files.reserve_more(usize::from(executor.0), bytes);
    }

    /// Has the segments removed that nobody needs. A disk that is full keeps none for other nodes.
    pub(crate) fn let_go(&self) {
        let max_sent = if self.is_full() { 0 } else { MAX_SENT_BYTES };
        let unneeded = self.catalog().take_unneeded(max_sent);
        if !unneeded.is_empty() {
            self.ask(Job::LetGo(unneeded));
        }
    }

    /// If the log has grown past what it should, or the disk is full: the age of its oldest segment, a partition that needs
    /// it and is able to do something about it, and up to which record it does.
    pub(crate) fn overdue(
        &self,
        table_bytes: u64,
        able: impl Fn(PartitionId, Lsn) -> bool,
    ) -> Option<(u64, PartitionId, Lsn)> {
        let budget = self.settings.max_log_bytes.max(table_bytes);
        let catalog = self.catalog();
        if catalog.bytes() <= budget && !self.is_full() {
            return None;
        }
        let (age, needed) = catalog.oldest()?;
        needed.into_iter().find(|(id, upto)| able(*id, *upto)).map(|(id, last)| (age, id, last))
    }
}

/// The segments of a stream that are gone.
pub(crate) type Gone = Arc<Vec<SegmentId>>;
