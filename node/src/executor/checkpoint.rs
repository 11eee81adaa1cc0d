//! Keeps the log short: one partition at a time is checkpointed, or has its few records copied forward, while everything
//! else goes on.
//!
//! # Invariants
//! * A checkpoint is published only when the log is on disk up to its end.
//! * Of a partition whose log was reset meanwhile nothing is published or copied.
//! * The walk takes a slice, then leaves the executor to others for longer than the slice took.

use super::{
    Executor,
    tasks::{Wake, with},
};
use crate::storage::{CheckpointFile, Job, ReadLog, room_for_checkpoints};
use glommio::timer::sleep;
use kv_proto::{
    ids::{Lsn, PartitionId},
    replication::{Position, Record},
};
use kv_storage::{
    checkpoint::{Encoder, Header},
    kept::Kept,
    log::gather::log_bytes,
    table::Walk,
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Weak,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Bytes of entries that are walked at a time.
const SLICE_BYTES: usize = 64 * 1024;
/// How long the executor is left alone between slices.
const SLICE_PAUSE: Duration = Duration::from_micros(500);
/// Slices that may wait to be written.
const MAX_WAITING: usize = 16;
/// How often something that somebody else does is looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait after something failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// A partition with at most one record in the log for so many keys has its records copied instead of a checkpoint.
const KEYS_PER_COPIED_RECORD: u64 = 8;

/// What the task waits for, and what it heard.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// The records that were read for a copy.
    read: Option<BTreeMap<Lsn, Record>>,
    /// Whether the checkpoint that was asked for is published.
    published: Option<bool>,
}

/// What is to be done.
enum Due {
    Nothing,
    Checkpoint(PartitionId),
    Copy { partition: PartitionId, age: u64, upto: Lsn },
}

/// A checkpoint that is begun.
struct Begun {
    file: CheckpointFile,
    start: Position,
    /// How often the log had been reset.
    resets: u64,
    encoder: Encoder,
    /// Its first piece.
    header: Vec<u8>,
}

/// Where the walk of a checkpoint is. Operations that come while the table is walked are taken before it goes on.
#[derive(Default)]
struct CheckpointWalk {
    /// Up to here operations were taken.
    operations: Lsn,
    table: Walk,
}

/// How a partition is when its walk ends.
struct End {
    lsn: Lsn,
    digest: u64,
    operations_digest: u64,
}

/// Keeps the log of an executor short.
pub(super) async fn keep_log_short(this: Weak<RefCell<Executor>>, wake: Wake) {
    loop {
        let Some(due) = with(&this, Executor::due_checkpoint) else { return };
        let done = match due {
            Due::Nothing => {
                wake.wait().await;
                continue;
            }
            Due::Checkpoint(partition) => checkpoint(&this, partition).await,
            Due::Copy { partition, age, upto } => match copy_forward(&this, partition, age, upto).await {
                // What cannot be read or has no room is in the table too.
                Some(false) => checkpoint(&this, partition).await,
                copied => copied,
            },
        };
        match done {
            Some(true) => sleep(SLICE_PAUSE).await,
            Some(false) => sleep(FAILED_PAUSE).await,
            None => return,
        }
    }
}

/// Writes a checkpoint; whether it is published, or `None` when the executor has ended.
async fn checkpoint(this: &Weak<RefCell<Executor>>, id: PartitionId) -> Option<bool> {
    let Some(Begun { file, start, resets, mut encoder, header }) = with(this, |e| e.begin_checkpoint(id))? else {
        return Some(false);
    };
    with(this, |e| e.shared.storage.ask(Job::Begin(file.clone())))?;
    send(this, &file, header)?;
    let (mut walk, mut bytes) = (CheckpointWalk::default(), 0);
    let end = loop {
        while file.waiting.load(Ordering::Acquire) > MAX_WAITING {
            sleep(LOOK_PAUSE).await;
        }
        let has_failed = with(this, |e| e.checkpoints.published)? == Some(false);
        let walked = if has_failed { None } else { with(this, |e| e.walk(id, resets, &mut walk, &mut encoder))? };
        let Some((piece, end)) = walked else {
            with(this, |e| e.shared.storage.ask(Job::Abandon(file.clone())))?;
            return Some(false);
        };
        bytes += piece.len() as u64;
        send(this, &file, piece)?;
        if let Some(end) = end {
            break end;
        }
        sleep(SLICE_PAUSE).await;
    };
    send(this, &file, encoder.finish(end.lsn, end.digest, end.operations_digest))?;
    while with(this, |e| e.has_kept(id, resets).is_some_and(|kept| kept.last_on_disk < end.lsn))? {
        sleep(LOOK_PAUSE).await;
    }
    let goes_on = with(this, |e| {
        let goes_on = e.has_kept(id, resets).is_some();
        let job = if goes_on { Job::Publish } else { Job::Abandon };
        e.shared.storage.ask(job(file.clone()));
        goes_on
    })?;
    if !goes_on {
        return Some(false);
    }
    let published = loop {
        if let Some(published) = with(this, |e| e.checkpoints.published)? {
            break published;
        }
        sleep(LOOK_PAUSE).await;
    };
    if published {
        with(this, |e| e.handle_checkpointed(id, resets, start, bytes))?;
    } else {
        with(this, |e| e.shared.storage.ask(Job::Abandon(file.clone())))?;
    }
    Some(published)
}

fn send(this: &Weak<RefCell<Executor>>, file: &CheckpointFile, piece: Vec<u8>) -> Option<()> {
    file.waiting.fetch_add(1, Ordering::Relaxed);
    with(this, |e| e.shared.storage.ask(Job::Piece(file.clone(), piece)))
}

/// Writes the records that a partition has in segments up to this age to the current segment.
async fn copy_forward(this: &Weak<RefCell<Executor>>, id: PartitionId, age: u64, upto: Lsn) -> Option<bool> {
    let Some(resets) = with(this, |e| e.read_for_copy(id))? else { return Some(false) };
    let records = loop {
        if let Some(records) = with(this, |e| e.checkpoints.read.take())? {
            break records;
        }
        sleep(LOOK_PAUSE).await;
    };
    let Some(chunk) = with(this, |e| e.copy_records(id, resets, upto, &records))? else { return Some(false) };
    while with(this, |e| e.log.flushed < chunk)? {
        sleep(LOOK_PAUSE).await;
    }
    with(this, |e| {
        e.keep_log_for_others();
        e.shared.storage.catalog().copied(id, age);
        e.shared.storage.let_go();
    })?;
    Some(true)
}

impl Executor {
    fn due_checkpoint(&mut self) -> Due {
        let storage = self.shared.storage.clone();
        self.keep_log_for_others();
        storage.let_go();
        if let Some(id) = self.next_loaded() {
            return Due::Checkpoint(id);
        }
        let table_bytes = self.shared.memory.bytes();
        // A checkpoint is of what is committed, in a configuration that is on disk.
        let able = |id: PartitionId, upto: Lsn| {
            let partition = self.partitions.get(usize::from(id.0)).and_then(Option::as_ref);
            partition.is_some_and(|p| {
                p.kept.adopted
                    && p.kept.is_settled()
                    && p.has_own_table()
                    && p.replica.has_entered()
                    && upto <= p.replica.committed()
            })
        };
        let Some((age, id, upto)) = storage.overdue(table_bytes, able) else { return Due::Nothing };
        let partition = self.partition(id).expect("it was asked for as one that is here");
        let records = partition.replica.committed().0.saturating_sub(partition.kept.released.lsn.0);
        let few = records.saturating_mul(KEYS_PER_COPIED_RECORD) <= partition.keys();
        if few { Due::Copy { partition: id, age, upto } } else { Due::Checkpoint(id) }
    }

    fn begin_checkpoint(&mut self, id: PartitionId) -> Option<Begun> {
        self.checkpoints.published = None;
        let (executor, storage) = (self.index, self.shared.storage.clone());
        let partition = self.partition(id).filter(|p| p.kept.is_settled() && p.replica.has_entered())?;
        let anew = partition.is_whole_copy();
        if !anew && !partition.has_own_table() {
            return None;
        }
        let resets = partition.kept.resets;
        let start: Position = partition.applied();
        let header = Header {
            cluster: storage.cluster().unwrap_or_default(),
            partition: id,
            configuration: partition.replica.configuration().clone(),
            start,
        };
        let (encoder, header) = Encoder::new(storage.identity, &header);
        let waiting = Arc::new(AtomicUsize::new(0));
        let file = CheckpointFile { executor, partition: id, start: start.lsn, anew, waiting };
        Some(Begun { file, start, resets, encoder, header })
    }

    /// What is kept of a partition, if its log was not reset since it had been so often.
    fn has_kept(&self, id: PartitionId, resets: u64) -> Option<&Kept> {
        let partition = self.partitions.get(usize::from(id.0))?.as_ref()?;
        Some(&partition.kept).filter(|kept| kept.resets == resets)
    }

    /// Walks a slice; its bytes, and how everything is when it was the last. Nothing when the partition is not to be
    /// checkpointed any more.
    fn walk(
        &mut self,
        id: PartitionId,
        resets: u64,
        walk: &mut CheckpointWalk,
        encoder: &mut Encoder,
    ) -> Option<(Vec<u8>, Option<End>)> {
        let partition = self.partition(id).filter(|p| p.kept.resets == resets)?;
        if let Some((piece, after)) = encoder.take_operations(partition.operations(), walk.operations, SLICE_BYTES) {
            walk.operations = after;
            return Some((piece, None));
        }
        let done = partition.walk(&mut walk.table, SLICE_BYTES, &mut |key, entry| encoder.push(key, entry));
        let end = done.then(|| End {
            lsn: partition.applied().lsn,
            digest: partition.digest(),
            operations_digest: partition.operations().digest(),
        });
        Some((encoder.take_chunk(), end))
    }

    /// Leaves room for the checkpoints of this executor's partitions.
    pub(super) fn reserve_for_checkpoints(&self) {
        if self.owned.is_empty() {
            return; // what was restored has its room, until somebody owns it
        }
        let tables = self.partitions.iter().flatten().map(|p| (p.checkpoint_bytes(), p.kept.checkpoint_bytes));
        // What is on its way may be in the tables soon.
        let coming = (self.held_bytes + self.log.under_way_bytes()) as u64;
        self.shared.storage.reserve(self.index, room_for_checkpoints(tables) + coming);
    }

    /// A checkpoint is published or has failed.
    pub(super) fn note_checkpoint(&mut self, published: bool) {
        self.checkpoints.published = Some(published);
    }

    fn handle_checkpointed(&mut self, id: PartitionId, resets: u64, start: Position, bytes: u64) {
        let Some(partition) = self.partition(id).filter(|p| p.kept.resets == resets) else { return };
        partition.kept.release(start, bytes);
        self.keep_log_for_others();
        self.shared.storage.catalog().release(id, start.lsn);
        self.reserve_for_checkpoints();
        self.shared.storage.let_go();
        self.handle_copy_kept(id);
    }

    /// Has the records read that no checkpoint has; how often the log was reset so far.
    fn read_for_copy(&mut self, id: PartitionId) -> Option<u64> {
        self.checkpoints.read = None;
        let index = self.index;
        let partition = self.partition(id)?;
        let (places, resets) = (partition.kept.unreleased(), partition.kept.resets);
        let (to, after) = (None, Lsn(0));
        let read = ReadLog { executor: index, partition: id, places, to, after };
        self.shared.storage.read_log(read);
        Some(resets)
    }

    /// What was read for a copy is there.
    pub(super) fn note_read(&mut self, records: BTreeMap<Lsn, Record>) {
        self.checkpoints.read = Some(records);
    }

    /// Appends copies of all records up to `upto`; the chunk that brings them to disk. Nothing if some are not there.
    fn copy_records(
        &mut self,
        id: PartitionId,
        resets: u64,
        upto: Lsn,
        records: &BTreeMap<Lsn, Record>,
    ) -> Option<u64> {
        let partition = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_mut)?;
        let (released, committed) = (partition.kept.released.lsn, partition.replica.committed());
        if partition.kept.resets != resets || upto > committed || upto <= released {
            return None;
        }
        if (released.0 + 1..=upto.0).any(|lsn| !records.contains_key(&Lsn(lsn))) {
            return None;
        }
        let bytes: usize = records.range(released.next()..=upto).map(|(_, record)| log_bytes(record)).sum();
        if !self.has_room_to_copy(bytes as u64) {
            return None;
        }
        for (_, record) in records.range(released.next()..=upto) {
            self.log.gather.copy(id, record, committed);
        }
        self.finish();
        Some(self.log.sent)
    }
}
