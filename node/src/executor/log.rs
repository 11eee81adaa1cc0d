//! The executor's side of its log: what its replicas append goes to the stream's thread, and what that brought to disk
//! comes back to them.
//!
//! # Invariants
//! * After `finish`, everything that was appended is on its way.
//! * A value is taken only when it fits into the logs of all members beside what is reserved.

use super::{Executor, Shared};
use crate::{
    clock, fatal,
    kept::partitions,
    storage::{Job, ReadLog, Stream},
};
use kv_proto::{
    cluster_map::AckMode,
    error_code::{ErrorCode, WireError},
    ids::{ExecutorIndex, Lsn, NodeId, PartitionId},
    replication::Record,
};
use kv_replication::replica::Event;
use kv_storage::log::{gather::Gather, writer::Flushed};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// After so many looks (see `SWEEP_INTERVAL`) that found nothing flushed, no writes are taken: 2 s.
const LATE_LOOKS: u32 = 4;
/// After so many the process ends: 10 s.
const LAST_LOOKS: u32 = 20;
/// Batches that are read at a time for who needs records that are not in memory any more.
const READ_BATCHES: usize = 16;

/// An executor's log.
pub(super) struct Log {
    pub(super) gather: Gather,
    pub(super) stream: Stream,
    mode: AckMode,
    /// Sizes of the chunks that are not on disk, the oldest first, and their sum.
    under_way: VecDeque<usize>,
    under_way_bytes: usize,
    /// How many chunks were handed over, and how many are on disk.
    pub(super) sent: u64,
    pub(super) flushed: u64,
    /// `flushed` when it was last looked at, and how often it was found the same with something under way.
    seen: u64,
    unmoved: u32,
}

impl Log {
    pub(super) fn new(stream: Stream) -> Self {
        Log {
            gather: Gather::default(),
            stream,
            mode: AckMode::Durable,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            sent: 0,
            flushed: 0,
            seen: 0,
            unmoved: 0,
        }
    }

    /// Writes wait for what the map says, from now on.
    pub(super) fn set_mode(&mut self, mode: AckMode) {
        if mode != self.mode {
            self.mode = mode;
            self.stream.set_mode(mode);
        }
    }

    /// Hands over what is gathered; which partitions it is of.
    fn hand_over(&mut self) -> Option<Vec<PartitionId>> {
        let chunk = self.gather.take()?;
        let of = partitions(&chunk.parts);
        self.sent += 1;
        self.under_way.push_back(chunk.body.len());
        self.under_way_bytes += chunk.body.len();
        self.stream.write(chunk);
        Some(of)
    }

    fn handle_flushed(&mut self, chunks: u64) {
        self.flushed += chunks;
        for _ in 0..chunks {
            self.under_way_bytes -= self.under_way.pop_front().unwrap_or(0);
        }
    }

    fn room(&self, shared: &Shared) -> u64 {
        let there = self.stream.room() + shared.storage.spare_bytes();
        there.saturating_sub((self.under_way_bytes + self.gather.bytes()) as u64)
    }
}

impl Executor {
    /// Hands over what was appended. Where writes do not wait for the disk, their replicas are told at once.
    pub(super) fn write_log(&mut self) {
        while let Some(partitions) = self.log.hand_over() {
            if self.log.mode == AckMode::Replicated {
                for id in partitions {
                    self.tell_flushed(id);
                }
            }
        }
    }

    fn tell_flushed(&mut self, id: PartitionId) {
        let at_once = self.log.mode == AckMode::Replicated;
        if let Some(entries) = self.partition(id).and_then(|p| p.kept.take_news(at_once)) {
            self.give(clock::now(), id, Event::Flushed { entries });
        }
    }

    /// A batch is on disk.
    pub(super) fn handle_flushed(&mut self, flushed: &Flushed) {
        self.log.handle_flushed(flushed.chunks);
        for part in &flushed.parts {
            let Some(partition) = self.partition(part.partition) else { continue };
            partition.kept.handle_flushed(part);
            if part.configuration.is_some() && !std::mem::replace(&mut partition.kept.adopted, true) {
                self.shared.storage.catalog().adopt(part.partition);
            }
        }
        for (id, place) in &flushed.places {
            if let Some(partition) = self.partition(*id) {
                partition.kept.handle_place(*place);
            }
        }
        for part in &flushed.parts {
            self.tell_flushed(part.partition);
        }
        if flushed.sealed.is_some() {
            self.wakes.checkpoints.wake();
        }
    }

    /// Looks whether the disk still takes what it is given. Looks are counted, and not time, so that a pause of the whole
    /// process is not taken for one of the disk.
    pub(super) fn watch_log(&mut self) {
        let log = &mut self.log;
        let moved = log.flushed != log.seen || log.under_way.is_empty() || self.shared.storage.is_full();
        log.seen = log.flushed;
        log.unmoved = if moved { 0 } else { log.unmoved + 1 };
        if log.unmoved == LATE_LOOKS {
            tracing::error!("the disk has not taken a batch of the log for 2 s: no writes are taken until it does");
        }
        if log.unmoved >= LAST_LOOKS {
            fatal::end("the disk has not taken a batch of the log for 10 s");
        }
    }

    /// Whether the logs of all members have room for a write; what deletes has more than what stores.
    pub(super) fn check_log(&self, id: PartitionId, stores: bool) -> Result<(), WireError> {
        let storage = &self.shared.storage;
        if self.log.unmoved >= LATE_LOOKS {
            let node = self.shared.me.node;
            let message =
                format!("the disk of node {node} takes more than 2 s for a batch of its log; nothing was written");
            return Err(WireError::new(ErrorCode::NotReady, message));
        }
        let reserved = if stores { storage.reserved_room() } else { storage.reserved_room() / 4 };
        let full = |node: NodeId| {
            let what = if stores { "no more values are taken; reads and deletes go on" } else { "nothing is written" };
            let message = format!("the disk of node {node} is full: {what}, until there is room");
            Err(WireError::new(ErrorCode::DiskFull, message))
        };
        if storage.is_full() && self.log.room(&self.shared) < reserved {
            return full(self.shared.me.node);
        }
        match self.fullest_follower(id) {
            Some((node, room)) if room < reserved => full(node),
            _ => Ok(()),
        }
    }

    /// What a peer is told of the room that its records have here: bytes, or that there is no limit.
    pub(super) fn log_room(&self) -> u64 {
        if self.shared.storage.is_full() { self.log.room(&self.shared) } else { u64::MAX }
    }

    /// Has records read that a replica does not hold any more.
    pub(super) fn read_log(&mut self, id: PartitionId, to: NodeId, after: Lsn) {
        let Some(partition) = self.partition(id) else { return };
        let places = partition.kept.places(after, READ_BATCHES);
        let read = ReadLog { executor: self.index, partition: id, places, to: Some(to), after };
        self.shared.storage.ask(Job::Read(read));
    }

    /// Records were read.
    pub(super) fn handle_log_read(&mut self, read: &ReadLog, to: NodeId, records: BTreeMap<Lsn, Record>) {
        let Some(partition) = self.partition(read.partition) else { return };
        let (previous, records) = partition.kept.following(read.after, records);
        let id = read.partition;
        self.give(clock::now(), id, Event::LogRead { to, previous, records });
        self.touch(id);
    }

    /// Everything that was appended is on disk when this returns: the executor ends. Blocks.
    pub(super) fn close_log(&mut self) {
        self.write_log();
        self.log.stream.finish();
    }

    /// Segments of the log are gone.
    pub(super) fn handle_segments_gone(&mut self, gone: &[kv_storage::log::SegmentId]) {
        for partition in self.partitions.iter_mut().flatten() {
            partition.kept.index.forget(gone);
        }
    }
}

/// The stream of an executor, started before the executor is.
pub(crate) fn start_stream(shared: &Arc<Shared>, index: ExecutorIndex) -> std::io::Result<Stream> {
    let mail = shared.mail[usize::from(index.0)].clone();
    shared.storage.start_stream(index, mail)
}
