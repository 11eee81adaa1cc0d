//! The executor's side of its log: what its replicas append goes to the stream's thread, and what that brought to disk
//! comes back to them.
//!
//! # Invariants
//! * After `finish`, everything that was appended is on its way.
//! * A value is taken only when it fits into the logs of all members beside what is reserved.

use super::{Executor, Shared};
use crate::{
    clock, fatal,
    storage::{ReadLog, RestoreError, Stream},
};
use kv_proto::{
    cluster_map::AckMode,
    error_code::{ErrorCode, WireError},
    ids::{ExecutorIndex, Lsn, NodeId, PartitionId},
    replication::{Record, TAKES_NOTHING},
    stats::Role,
};
use kv_replication::replica::Event;
use kv_storage::{
    kept::partitions,
    log::{batch_bytes, format::BLOCK_BYTES, gather::Gather, writer::Flushed},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// After so many looks (see `SWEEP_INTERVAL`) that found nothing flushed, no writes are taken: 2 s.
const LATE_LOOKS: u32 = 4;
/// After so many the process ends: 10 s.
const LAST_LOOKS: u32 = 20;
/// Batches that are read at a time for who needs records that are not in memory any more.
const READ_BATCHES: usize = 64;

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
    pub(super) fn new(stream: Stream, segment_bytes: u64) -> Self {
        Log {
            gather: Gather::new(batch_bytes(segment_bytes)),
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

    /// Hands over what is gathered; which partitions it is of, and how many bytes it has.
    fn hand_over(&mut self) -> Option<(Vec<PartitionId>, u64)> {
        let chunk = self.gather.take()?;
        let of = partitions(&chunk.parts);
        self.sent += 1;
        let bytes = chunk.body.len();
        self.under_way.push_back(bytes);
        self.under_way_bytes += bytes;
        self.stream.write(chunk);
        Some((of, bytes as u64))
    }

    /// Bytes that are handed over and not on disk.
    pub(super) fn under_way_bytes(&self) -> usize {
        self.under_way_bytes
    }

    fn handle_flushed(&mut self, chunks: u64) {
        self.flushed += chunks;
        for _ in 0..chunks {
            self.under_way_bytes -= self.under_way.pop_front().unwrap_or(0);
        }
    }

    /// Bytes that can still be appended without another segment.
    fn room(&self) -> u64 {
        self.stream.room().saturating_sub((self.under_way_bytes + self.gather.bytes()) as u64)
    }
}

impl Executor {
    /// Hands over what was appended. Where writes do not wait for the disk, their replicas are told at once.
    pub(super) fn write_log(&mut self) {
        while let Some((partitions, bytes)) = self.log.hand_over() {
            self.shared.storage.reserve_more(self.index, bytes);
            if self.log.mode == AckMode::Replicated {
                for id in partitions {
                    self.tell_flushed(id);
                }
            }
        }
        if self.next_loaded().is_some() {
            self.wakes.checkpoints.wake();
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
            let readable = self.partition(part.partition).map(|p| p.kept.take_readable()).unwrap_or_default();
            readable.into_iter().for_each(|(to, after)| self.read_log(part.partition, to, after));
        }
        if flushed.sealed.is_some() {
            self.wakes.checkpoints.wake();
        }
    }

    /// Looks whether the disk still takes what it is given. Looks are counted, and not time, so that a pause of the whole
    /// process is not taken for one of the disk.
    pub(super) fn watch_log(&mut self) {
        self.reserve_for_checkpoints();
        if self.shared.storage.is_full() {
            // What deletes and checkpoints have made unneeded gives room.
            self.wakes.checkpoints.wake();
        }
        let log = &mut self.log;
        let moved = log.flushed != log.seen || log.under_way.is_empty() || log.stream.waits_for_room();
        log.seen = log.flushed;
        if moved && log.unmoved >= LATE_LOOKS {
            tracing::info!("the disk takes batches of the log again");
        }
        log.unmoved = if moved { 0 } else { log.unmoved + 1 };
        if log.unmoved == LATE_LOOKS {
            tracing::error!(
                "the disk has not taken a batch of the log for 2 s: no writes are taken until it does, and others are to lead"
            );
        }
        if self.log.unmoved >= LATE_LOOKS {
            self.hand_off_all();
        }
        if self.log.unmoved >= LAST_LOOKS {
            fatal::end("the disk has not taken a batch of the log for 10 s");
        }
    }

    /// Why the disk of this node takes nothing, or that of a follower of what is led here, if one does not.
    pub(super) fn log_trouble(&self, id: PartitionId) -> Option<String> {
        let own = (self.log.unmoved >= LATE_LOOKS).then_some(self.shared.me.node);
        let late = own.or_else(|| {
            let leads = self.partitions[usize::from(id.0)].as_ref()?.replica.role() == Role::Leader;
            self.fullest_follower(id).filter(|(_, room)| leads && *room == TAKES_NOTHING).map(|(node, _)| node)
        });
        late.map(|node| format!("the disk of node {node} takes more than 2 s for a batch of its log"))
    }

    /// Whether the logs of all members have room for a write: one that stores so many bytes, or one that deletes, for which
    /// more is reserved.
    pub(super) fn check_log(&self, id: PartitionId, stores: Option<usize>) -> Result<(), WireError> {
        let storage = &self.shared.storage;
        if let Some(why) = self.log_trouble(id) {
            return Err(WireError::new(ErrorCode::NotReady, format!("{why}; nothing was written")));
        }
        let needed = match stores {
            Some(bytes) => storage.reserved_room() + (bytes + 2 * BLOCK_BYTES) as u64,
            None => storage.reserved_room() / 4,
        };
        let full = |node: NodeId| {
            let what = match stores {
                Some(_) => "no more values are taken; reads and deletes go on",
                None => "nothing is written",
            };
            let message = format!("the disk of node {node} is full: {what}, until there is room");
            Err(WireError::new(ErrorCode::DiskFull, message))
        };
        if self.log_room() < needed {
            return full(self.shared.me.node);
        }
        match self.fullest_follower(id) {
            Some((node, room)) if room < needed => full(node),
            _ => Ok(()),
        }
    }

    /// Whether so many bytes can be copied forward, so that deletes have their room yet.
    pub(super) fn has_room_to_copy(&self, bytes: u64) -> bool {
        !self.shared.storage.is_full() || bytes + self.shared.storage.reserved_room() / 2 < self.log.room()
    }

    /// The room that records have here, as peers are told it too: bytes, or that there is no limit. What is left in spare
    /// segments is for deletes only.
    pub(super) fn log_room(&self) -> u64 {
        let storage = &self.shared.storage;
        if self.log.unmoved >= LATE_LOOKS {
            return TAKES_NOTHING;
        }
        if !storage.is_full() {
            return u64::MAX;
        }
        let (room, for_values) = (self.log.room(), storage.reserved_room());
        let room = if room >= for_values { room } else { (room + storage.spare_bytes()).min(for_values - 1) };
        room.max(TAKES_NOTHING + 1)
    }

    /// Has records read that a replica does not hold any more.
    pub(super) fn read_log(&mut self, id: PartitionId, to: NodeId, after: Lsn) {
        let Some(partition) = self.partition(id) else { return };
        if !partition.kept.can_read(after) {
            return partition.kept.wait_for(to, after);
        }
        let places = partition.kept.places(after, READ_BATCHES);
        let read = ReadLog { executor: self.index, partition: id, places, to: Some(to), after };
        self.shared.storage.read_log(read);
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
        let incomplete = self.partitions.iter().flatten().any(|p| p.replica.is_incomplete());
        self.shared.storage.note_stopped(self.view.is_some() && !incomplete);
    }

    /// Segments of the log are gone.
    pub(super) fn handle_segments_gone(&mut self, gone: &[kv_storage::log::SegmentId]) {
        for partition in self.partitions.iter_mut().flatten() {
            partition.kept.index.forget(gone);
        }
    }
}

/// The stream of an executor, started before the executor is.
pub(crate) fn start_stream(shared: &Arc<Shared>, index: ExecutorIndex) -> Result<Stream, RestoreError> {
    let mail = shared.mail[usize::from(index.0)].clone();
    shared.storage.start_stream(index, mail)
}
