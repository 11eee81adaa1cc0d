//! What the log has of a partition, and how much of it the partition's replica was told.
//!
//! # Invariants
//! * A replica is told of its entries in their order, and of no entry twice.
//! * It is told that a configuration, a cut or a reset is on disk only when it is, whatever writes wait for.

use crate::log::{
    gather::Part,
    index::{Index, Place},
};
use kv_proto::{
    ids::{Epoch, Lsn, NodeId, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::LogEntry;
use std::collections::BTreeMap;

/// What is kept of a partition.
#[derive(Debug, Default)]
pub struct Kept {
    /// Entries that the replica appended since it was made.
    appended: u64,
    /// How many of them are on disk.
    on_disk: u64,
    /// The last of them that has to be on disk before anything behind it is told.
    barrier: u64,
    /// How many the replica was told of.
    told: u64,
    /// The last record that is on disk.
    pub last_on_disk: Lsn,
    /// Whether its state is on disk in this generation.
    pub adopted: bool,
    /// Where the newest published checkpoint starts, or what the log was reset to.
    pub released: Position,
    /// Bytes that this checkpoint takes.
    pub checkpoint_bytes: u64,
    /// Where the records stand that the log has.
    pub index: Index,
    /// How often the log was reset: what was read of it before, or made of it, is void.
    pub resets: u64,
    /// Where the newest copy for another replica started: known, even where the log does not have it any more.
    pub copied: Position,
    /// Who waits for records that are not on disk yet: those after this one.
    waiting: Vec<(NodeId, Lsn)>,
}

impl Kept {
    /// What was restored: everything up to `last` is on disk.
    pub fn new(released: Position, last: Lsn, index: Index) -> Self {
        Kept { last_on_disk: last, released, index, ..Kept::default() }
    }

    /// The replica appended an entry.
    pub fn handle_append(&mut self, entry: &LogEntry) {
        self.appended += 1;
        if !matches!(entry, LogEntry::Record(_)) {
            self.barrier = self.appended;
        }
        if let LogEntry::Reset { base, .. } = entry {
            (self.released, self.checkpoint_bytes, self.copied) = (*base, 0, *base);
            self.resets += 1;
            self.index.void(Lsn(0));
            self.waiting.clear();
        }
    }

    /// A batch with entries of the partition is on disk.
    pub fn handle_flushed(&mut self, part: &Part) {
        self.on_disk += part.entries;
        self.last_on_disk = part.last.lsn;
        if let Some(from) = part.voids {
            self.index.void(from);
        }
    }

    /// A batch with records of the partition stands here.
    pub fn handle_place(&mut self, place: Place) {
        if place.last > self.released.lsn {
            self.index.push(place);
        }
    }

    /// A checkpoint that starts here is published. The records before it can be read as long as their segments are there: a
    /// follower whose memory was ahead of its disk has to have them again.
    pub fn release(&mut self, start: Position, bytes: u64) {
        (self.released, self.checkpoint_bytes) = (start, bytes);
    }

    /// Where the records stand that no checkpoint has.
    pub fn unreleased(&self) -> Vec<Place> {
        self.index.find(self.released.lsn.next(), usize::MAX)
    }

    /// Whether every configuration, cut and reset that the replica appended is on disk.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.on_disk >= self.barrier
    }

    /// How many entries the replica can be told of, if these are more than it was. `at_once` says that it need not wait
    /// for the disk.
    pub fn take_news(&mut self, at_once: bool) -> Option<u64> {
        let upto = if at_once && self.is_settled() { self.appended } else { self.on_disk };
        (upto > self.told).then(|| {
            self.told = upto;
            upto
        })
    }

    /// Whether what follows the record `after` can be read, of which at least one is committed. Where writes do not wait for the
    /// disk it may not be there yet, and whoever needs it would be told that the log does not reach back so far.
    pub fn can_read(&self, after: Lsn) -> bool {
        self.last_on_disk > after
    }

    /// Somebody needs what follows the record `after`.
    pub fn wait_for(&mut self, to: NodeId, after: Lsn) {
        self.waiting.push((to, after));
    }

    /// Who waits for what can be read by now.
    pub fn take_readable(&mut self) -> Vec<(NodeId, Lsn)> {
        let last = self.last_on_disk;
        self.waiting.extract_if(.., |(_, after)| last > *after).collect()
    }

    /// The first `batches` that have what follows the record `after`, and that record itself, if it has to be there.
    pub fn places(&self, after: Lsn, batches: usize) -> Vec<Place> {
        self.index.find(after.max(Lsn(1)), batches)
    }

    /// Of what was read there: the records that follow `after`, and its position. If the log does not reach back so far, that
    /// has no epoch, and no records follow.
    pub fn following(&self, after: Lsn, mut records: BTreeMap<Lsn, Record>) -> (Position, Vec<Record>) {
        let previous = match records.get(&after) {
            Some(record) => record.position,
            None if after == self.released.lsn => self.released,
            None if after == self.copied.lsn => self.copied,
            None => return (Position { epoch: Epoch(0), lsn: after }, Vec::new()),
        };
        let mut follow = Vec::new();
        while let Some(record) = records.remove(&Lsn(after.0 + 1 + follow.len() as u64)) {
            follow.push(record);
        }
        (previous, follow)
    }
}

/// Which partitions a chunk has entries of.
pub fn partitions(parts: &[Part]) -> Vec<PartitionId> {
    parts.iter().map(|part| part.partition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{SegmentId, StreamId};
    use kv_proto::{
        cluster_map::Configuration,
        ids::{DiskId, HistoryId, Member},
    };

    fn part(entries: u64, last: u64) -> Part {
        Part {
            partition: PartitionId(0),
            entries,
            records: None,
            voids: None,
            last: Position { epoch: Epoch(1), lsn: Lsn(last) },
            committed: Lsn(0),
            configuration: None,
            faulty: false,
            reset: None,
        }
    }

    #[test]
    fn what_a_checkpoint_has_is_not_copied_and_can_be_read() {
        let mut kept = Kept::default();
        let segment = |number| SegmentId { stream: StreamId { generation: 1, executor: 0 }, number };
        let place =
            |number, first, last| Place { segment: segment(number), offset: 0, first: Lsn(first), last: Lsn(last) };
        kept.handle_place(place(1, 1, 5));
        kept.release(Position { lsn: Lsn(5), ..Position::default() }, 100);
        assert_eq!((kept.released.lsn, kept.checkpoint_bytes), (Lsn(5), 100));
        kept.handle_place(place(2, 3, 4));
        kept.handle_place(place(2, 6, 7));
        assert_eq!(kept.unreleased(), [place(2, 6, 7)]);
        assert_eq!(kept.index.find(Lsn(4), 9), [place(1, 1, 5), place(2, 6, 7)]);
    }

    #[test]
    fn records_can_be_told_at_once_and_what_is_before_a_cut_cannot() {
        let record = LogEntry::Record(Record { position: Position::default(), operation_id: None, payload: [].into() });
        let mut kept = Kept::default();
        kept.handle_append(&LogEntry::Cut { from: Lsn(1) });
        kept.handle_append(&record);
        assert!(!kept.is_settled());
        assert_eq!(kept.take_news(true), None);
        kept.handle_flushed(&part(1, 0));
        assert_eq!(kept.take_news(true), Some(2));
        assert_eq!(kept.take_news(true), None);
        kept.handle_append(&record);
        assert_eq!(kept.take_news(false), None);
        kept.handle_flushed(&part(1, 1));
        assert_eq!(kept.take_news(false), None, "it was told before");
        kept.handle_flushed(&part(1, 2));
        assert_eq!(kept.take_news(false), Some(3));
    }
    #[test]
    fn what_is_not_on_disk_yet_is_read_when_it_is() {
        let to = NodeId::new("n").expect("a name");
        let mut kept = Kept::new(Position::default(), Lsn(4), Index::default());
        assert!(kept.can_read(Lsn(3)) && !kept.can_read(Lsn(4)));
        kept.wait_for(to, Lsn(4));
        kept.wait_for(to, Lsn(6));
        assert_eq!(kept.take_readable(), []);
        kept.handle_flushed(&part(2, 6));
        assert_eq!(kept.take_readable(), [(to, Lsn(4))]);
        assert_eq!(kept.take_readable(), []);
    }

    #[test]
    fn of_what_was_there_before_a_reset_nothing_can_be_read() {
        let at = |epoch, lsn| Position { epoch: Epoch(epoch), lsn: Lsn(lsn) };
        let leader = Member { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
        let configuration = Configuration { epoch: Epoch(3), history: HistoryId(1), leader, in_sync: vec![] };
        let segment = SegmentId { stream: StreamId { generation: 1, executor: 0 }, number: 1 };
        let place = |first, last| Place { segment, offset: 0, first: Lsn(first), last: Lsn(last) };
        let mut kept = Kept::new(at(1, 2), Lsn(9), Index::default());
        kept.handle_place(place(3, 9));
        kept.wait_for(leader.node, Lsn(9));
        kept.handle_append(&LogEntry::Reset { configuration, base: at(2, 5) });
        assert_eq!((kept.released, kept.checkpoint_bytes, kept.resets, kept.is_settled()), (at(2, 5), 0, 1, false));
        assert!(kept.places(Lsn(1), 9).is_empty() && kept.take_readable().is_empty());
        // A batch that was under way is on disk, and then the reset with a record behind it.
        kept.handle_flushed(&part(0, 12));
        kept.handle_place(place(10, 12));
        kept.handle_flushed(&Part { voids: Some(Lsn(0)), reset: Some(Lsn(5)), ..part(2, 6) });
        kept.handle_place(place(6, 6));
        assert_eq!((kept.is_settled(), kept.take_news(false)), (true, Some(2)));
        assert_eq!((kept.unreleased(), kept.last_on_disk), (vec![place(6, 6)], Lsn(6)));
        assert_eq!(kept.following(Lsn(5), BTreeMap::new()).0, at(2, 5));
        assert_eq!(kept.following(Lsn(4), BTreeMap::new()).0.epoch, Epoch(0));
    }

    #[test]
    fn where_a_copy_started_is_known_as_long_as_it_may_be_asked_for() {
        let at = |lsn| Position { epoch: Epoch(2), lsn: Lsn(lsn) };
        let mut kept = Kept::new(at(4), Lsn(7), Index::default());
        kept.copied = at(6);
        kept.release(at(7), 0);
        let record = Record { position: at(7), operation_id: None, payload: [].into() };
        let (previous, records) = kept.following(Lsn(6), BTreeMap::from([(Lsn(7), record)]));
        assert_eq!((previous, records.len()), (at(6), 1));
    }

    #[test]
    fn what_is_not_in_the_log_any_more_is_said_of_the_record_that_was_asked_for() {
        let at = |lsn| Position { epoch: Epoch(2), lsn: Lsn(lsn) };
        let segment = SegmentId { stream: StreamId { generation: 1, executor: 0 }, number: 1 };
        let mut kept = Kept::new(at(4), Lsn(7), Index::default());
        kept.handle_place(Place { segment, offset: 0, first: Lsn(5), last: Lsn(7) });
        let record = |lsn| (Lsn(lsn), Record { position: at(lsn), operation_id: None, payload: [].into() });
        let read = |kept: &Kept, after| {
            let found = kept.places(Lsn(after), 9).iter().flat_map(|p| p.first.0..=p.last.0).map(record).collect();
            let (previous, records) = kept.following(Lsn(after), found);
            (previous, records.iter().map(|r| r.position.lsn.0).collect::<Vec<_>>())
        };
        assert_eq!(read(&kept, 3), (Position { epoch: Epoch(0), lsn: Lsn(3) }, vec![]));
        assert_eq!(read(&kept, 4), (at(4), vec![5, 6, 7]));
        assert_eq!(read(&kept, 6), (at(6), vec![7]));
        assert_eq!(read(&kept, 7), (at(7), vec![]));
        kept.release(at(7), 0);
        kept.handle_place(Place { segment, offset: 4096, first: Lsn(8), last: Lsn(9) });
        assert_eq!(read(&kept, 6), (at(6), vec![7, 8, 9]), "what a checkpoint has is read as long as it is there");
        kept.index.forget(&[segment]);
        assert_eq!(read(&kept, 6), (Position { epoch: Epoch(0), lsn: Lsn(6) }, vec![]));
        let segment = SegmentId { number: segment.number + 1, ..segment };
        kept.handle_place(Place { segment, offset: 4096, first: Lsn(8), last: Lsn(9) });
        assert_eq!(read(&kept, 7), (at(7), vec![8, 9]), "what a checkpoint starts at is known, and not in the log");
    }
}
