//! Copies of a table: to replicas that are too far behind for the log, and from the leader.
//!
//! A copy is sent part by part as there is room on its connection, while the table changes, and loaded as it comes. What is
//! loaded counts when it is on disk, which is a matter of `checkpoint`.
//!
//! # Invariants
//! * A copy goes over one connection, in one epoch, or is given up.
//! * From its start on the log is kept until it is sent; then the core says what of it is needed.

use super::{Executor, LineKey};
use crate::{clock, fatal, partition::Partition};
use kv_proto::{
    ids::{Epoch, Lsn, NodeId, PartitionId},
    replication::{PeerBody, Position},
    stats::Role,
};
use kv_replication::replica::Event;
use kv_storage::copy::CopyWalk;
use std::collections::BTreeMap;

/// Bytes of a part, which may be longer by one entry: with it, it fits into a message.
const PART_BYTES: usize = 32 * 1024;

/// Copies on their way.
#[derive(Default)]
pub(super) struct Copies {
    /// Those that are sent.
    sending: BTreeMap<(PartitionId, NodeId), Sending>,
    /// The partitions whose copies are loaded and not on disk yet.
    loaded: Vec<PartitionId>,
}

/// A copy that is sent.
struct Sending {
    line: LineKey,
    epoch: Epoch,
    start: Position,
    /// What the core calls it.
    sent: u64,
    /// How many parts were sent.
    parts: u32,
    walk: CopyWalk,
}

impl Sending {
    /// Whether the connection that it goes over is there, and its epoch not over.
    fn goes_on(&self, line: Option<LineKey>, partition: Option<&Partition>) -> bool {
        let leads = |p: &Partition| p.replica.role() == Role::Leader && p.replica.configuration().epoch == self.epoch;
        line == Some(self.line) && partition.is_some_and(leads)
    }
}

impl Executor {
    /// A replica is to be sent a copy of the table, from now on.
    pub(super) fn begin_copy(&mut self, id: PartitionId, to: NodeId, sent: u64) {
        // Without a connection the core learns that there is none.
        let Some(line) = self.links.line_to(to, id) else { return };
        let Some(partition) = self.partition(id) else { return };
        let (start, epoch) = (partition.applied(), partition.replica.configuration().epoch);
        partition.kept.copied = start;
        let sending = Sending { line, epoch, start, sent, parts: 0, walk: CopyWalk::default() };
        self.copies.sending.insert((id, to), sending);
        // Before any younger beacon, whether there is room for parts or not: behind one it would be taken for one that is late.
        self.send_to_peer(id, to, PeerBody::CopyBegin { start, sent });
        self.touch(id);
    }

    /// Sends a replica what there is room for of the copy that it is to be sent; false when some is left.
    pub(super) fn send_copy_parts(&mut self, id: PartitionId, to: NodeId) -> bool {
        let Some(mut sending) = self.copies.sending.remove(&(id, to)) else { return true };
        let (line, start, sent) = (sending.line, sending.start, sending.sent);
        loop {
            let (found, has_room) = (self.links.line_to(to, id), self.has_room_to(line));
            let Some(partition) = self.partition(id) else { return true };
            if !sending.goes_on(found, Some(partition)) {
                return true;
            }
            if !has_room {
                self.copies.sending.insert((id, to), sending);
                return false;
            }
            let (bytes, last) = partition.next_part(&mut sending.walk, PART_BYTES);
            let (end, digest) = (partition.applied().lsn, last.then(|| partition.copy_digest()));
            let number = sending.parts;
            sending.parts += 1;
            self.send_to_peer(id, to, PeerBody::CopyPart { sent, number, bytes });
            if let Some(digest) = digest {
                self.send_to_peer(id, to, PeerBody::CopyEnd { sent, parts: sending.parts, end, digest });
                self.give(clock::now(), id, Event::CopySent { to, start });
                return true;
            }
        }
    }

    /// Has the log keep what other replicas have to be sent of it, from now on.
    pub(super) fn keep_log_for_others(&mut self) {
        let (links, partitions) = (&self.links, &self.partitions);
        self.copies.sending.retain(|(id, to), sending| {
            let partition = partitions.get(usize::from(id.0)).and_then(Option::as_deref);
            sending.goes_on(links.line_to(*to, *id), partition)
        });
        let mut needed = Vec::with_capacity(self.owned.len());
        for id in &self.owned {
            let partition = self.partitions.get(usize::from(id.0)).and_then(Option::as_ref);
            let after = partition.and_then(|p| p.replica.log_needed_after());
            let copies = self.copies.sending.iter().filter(|((of, _), _)| of == id);
            needed.push((*id, copies.map(|(_, sending)| sending.start.lsn).chain(after).min()));
        }
        let mut catalog = self.shared.storage.catalog();
        needed.into_iter().for_each(|(id, from)| catalog.keep_from(id, from));
    }

    /// The table of a partition is void, and a copy comes. A checkpoint that is being made of it is given up, since the log
    /// is reset.
    pub(super) fn reset_table(&mut self, id: PartitionId) {
        self.copies.loaded.retain(|loaded| *loaded != id);
        self.change_table(id, Partition::reset_table);
    }

    /// A part of the copy came.
    pub(super) fn load_table(&mut self, id: PartitionId, bytes: &[u8]) {
        if let Some(Err(error)) = self.change_table(id, |partition| partition.load_part(bytes)) {
            tracing::error!(partition = %id, "a part of the copy of the leader's table cannot be used: {error}");
            self.give(clock::now(), id, Event::CopyFailed);
        }
    }

    /// The copy is here: once the records up to its end are applied, it is brought to disk.
    pub(super) fn keep_table(&mut self, id: PartitionId, end: Lsn, digest: u64) {
        let Some(partition) = self.partition(id) else { return };
        if let Err(why) = partition.end_copy(end, digest) {
            fatal::end(&why);
        }
        self.copies.loaded.push(id);
    }

    fn change_table<T>(&mut self, id: PartitionId, change: impl FnOnce(&mut Partition) -> T) -> Option<T> {
        let partition = self.partition(id)?;
        let before = partition.memory_bytes();
        let changed = change(partition);
        let after = partition.memory_bytes();
        self.count_table(before, after);
        Some(changed)
    }

    /// A partition whose copy can be brought to disk now.
    pub(super) fn next_loaded(&self) -> Option<PartitionId> {
        let is_due = |id: &&PartitionId| {
            let partition = self.partitions.get(usize::from(id.0)).and_then(Option::as_ref);
            partition.is_some_and(|p| p.is_whole_copy() && p.kept.is_settled())
        };
        self.copies.loaded.iter().find(is_due).copied()
    }

    /// The copy of a partition is on disk, if it was one.
    pub(super) fn handle_copy_kept(&mut self, id: PartitionId) {
        let Some(partition) = self.partition(id).filter(|p| p.is_whole_copy()) else { return };
        partition.handle_copy_kept();
        self.copies.loaded.retain(|loaded| *loaded != id);
        self.give(clock::now(), id, Event::CopyKept);
        self.finish();
    }
}
