//! Keeps the log of a simulated node short, as `kv-node` does: checkpoints are written while the table changes, a few records
//! are copied forward, and segments that nobody needs are let go and used again.

use super::{CLUSTER, Disk};
use crate::random::Random;
use kv_proto::{cluster_map::Configuration, ids::Lsn, replication::Position};
use kv_replication::replica::Replica;
use kv_storage::{
    checkpoint::{Encoder, Header},
    table::Walk,
};

/// Segments that a log may have before something is done about it.
const MAX_SEGMENTS: usize = 3;
/// Bytes of entries that are walked at a time.
const SLICE_BYTES: usize = 300;
/// Bytes of records that are copied at most.
const MAX_COPIED_BYTES: usize = 6 * 1024;

/// What is under way.
#[derive(Default)]
pub(super) struct Upkeep {
    checkpoint: Option<Making>,
    copy: Option<Copy>,
    done: Done,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) checkpoints: u64,
    pub(crate) copies: u64,
    pub(crate) gone: u64,
}

impl Upkeep {
    pub(super) fn give_up_checkpoint(&mut self) {
        self.checkpoint = None;
    }
}

/// A checkpoint that is not published.
struct Making {
    start: Position,
    configuration: Configuration,
    encoder: Option<Encoder>,
    bytes: Vec<u8>,
    walk: Walk,
    /// The operations up to here are in it.
    operations: Lsn,
    end: Lsn,
}

/// Copies that are not on disk: the chunk that has the last of them, and the age of the segments that they are for.
struct Copy {
    chunk: u64,
    age: u64,
}

impl Disk {
    /// What was done since this was asked last.
    pub(crate) fn take_done(&mut self) -> Done {
        self.process.as_mut().map(|p| std::mem::take(&mut p.upkeep.done)).unwrap_or_default()
    }

    /// Does the next thing that keeps the log short, or brings a copy to disk, if there is one. Records behind `needed_after` stay
    /// in the log for others.
    pub(crate) fn keep_short(&mut self, replica: &Replica, needed_after: Option<Lsn>, random: &mut Random) {
        let Some(process) = &mut self.process else { return };
        if process.upkeep.checkpoint.is_some() {
            return self.go_on_with_checkpoint(needed_after);
        }
        if let Some(incoming) = &process.incoming {
            if incoming.is_whole() {
                self.begin_checkpoint(replica.configuration());
            }
            return;
        }
        if !process.kept.adopted || process.upkeep.copy.is_some() || self.faulty {
            return;
        }
        let overdue = self.files.borrow().segments.len() > MAX_SEGMENTS;
        if !overdue && !random.one_in(6) {
            return;
        }
        let oldest = process.catalog.oldest();
        let needed =
            oldest.and_then(|(age, needed)| Some((age, needed.iter().find(|(id, _)| *id == self.partition)?.1)));
        if let Some((age, upto)) = needed
            && random.one_in(2)
            && self.copy_forward(age, upto, replica.committed())
        {
            return;
        }
        self.begin_checkpoint(replica.configuration());
    }

    fn begin_checkpoint(&mut self, configuration: &Configuration) {
        let process = self.process.as_mut().expect("it is running");
        let (partition, start) = (self.partition, process.applied);
        let header = Header { cluster: CLUSTER, partition, configuration: configuration.clone(), start };
        let (encoder, bytes) = Encoder::new(self.identity, &header);
        let (configuration, encoder, walk, end) = (header.configuration, Some(encoder), Walk::new(), start.lsn);
        let operations = Lsn(0);
        let making = Making { start, configuration, encoder, bytes, walk, operations, end };
        process.upkeep.checkpoint = Some(making);
    }

    fn go_on_with_checkpoint(&mut self, needed_after: Option<Lsn>) {
        let process = self.process.as_mut().expect("it is running");
        let Some(making) = &mut process.upkeep.checkpoint else { return };
        if let Some(mut encoder) = making.encoder.take() {
            if let Some((piece, after)) = encoder.take_operations(&process.operations, making.operations, SLICE_BYTES) {
                making.bytes.extend(piece);
                (making.operations, making.encoder) = (after, Some(encoder));
                return;
            }
            let push = &mut |key: &[u8], entry: kv_storage::table::Entry<'_>| encoder.push(key, entry);
            if making.walk.next_chunk(&process.table, SLICE_BYTES, push) {
                making.end = process.applied.lsn;
                making.bytes.extend(encoder.finish(making.end, process.table.digest(), process.operations.digest()));
            } else {
                making.bytes.extend(encoder.take_chunk());
                making.encoder = Some(encoder);
            }
            return;
        }
        // The reset before a copy has to be there first, too: what the log had before it does not go with the copy.
        let resets = process.incoming.is_some() && !process.kept.is_settled();
        if resets || process.kept.last_on_disk < making.end && self.rules.publish_when_on_disk {
            return;
        }
        let Making { start, configuration, bytes, .. } = process.upkeep.checkpoint.take().expect("it was just there");
        let bytes_of_it = bytes.len() as u64;
        {
            let mut files = self.files.borrow_mut();
            files.checkpoints.clear();
            files.checkpoints.insert(start.lsn, bytes);
        }
        self.published = Some(configuration);
        process.upkeep.done.checkpoints += 1;
        if let Some(incoming) = &mut process.incoming {
            incoming.handle_published();
            self.void = false;
        }
        process.catalog.release(self.partition, needed_after.map_or(start.lsn, |needed| needed.min(start.lsn)));
        process.kept.release(start, bytes_of_it);
        self.let_go();
    }

    /// Writes the records in segments up to this age, of which the last is at `upto`, once more; whether that can be.
    fn copy_forward(&mut self, age: u64, upto: Lsn, committed: Lsn) -> bool {
        let process = self.process.as_ref().expect("it is running");
        let released = process.kept.released.lsn;
        let records = self.read_places(&process.kept.index.find(Lsn(0), usize::MAX));
        let wanted: Vec<_> = (released.0 + 1..=upto.0).map(|lsn| records.get(&Lsn(lsn))).collect();
        let bytes: usize = wanted.iter().flatten().map(|r| r.payload.len() + 100).sum();
        if upto > committed || wanted.iter().any(Option::is_none) || bytes > MAX_COPIED_BYTES {
            return false;
        }
        self.hand_over();
        let process = self.process.as_mut().expect("it is running");
        wanted.into_iter().flatten().for_each(|record| process.gather.copy(self.partition, record, committed));
        self.hand_over();
        let process = self.process.as_mut().expect("it is running");
        process.upkeep.copy = Some(Copy { chunk: process.sent, age });
        if !self.rules.copies_on_disk_first {
            process.flushed = process.sent;
        }
        self.upkeep_after_flush();
        true
    }

    /// What waited for copies to be on disk.
    pub(super) fn upkeep_after_flush(&mut self) {
        let process = self.process.as_mut().expect("it is running");
        let flushed = process.flushed;
        if let Some(copy) = process.upkeep.copy.take_if(|copy| copy.chunk <= flushed) {
            process.upkeep.done.copies += 1;
            process.catalog.copied(self.partition, copy.age);
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        let process = self.process.as_mut().expect("it is running");
        let gone: Vec<_> = process.catalog.take_unneeded(u64::MAX).into_iter().map(|(id, _)| id).collect();
        process.kept.index.forget(&gone);
        process.upkeep.done.gone += gone.len() as u64;
        gone.into_iter().for_each(|id| self.files.borrow_mut().let_go(id));
    }
}
