//! What became of the last writes with an operation id: so that a write that is asked for again is not done again.
//!
//! Which they are follows from the log alone, so it is the same at every replica that has applied the same records: the
//! last [`MAX_OPERATIONS`] records that have an operation id, by their LSNs. An older one is forgotten, and of its LSN is
//! remembered that it was one: the first attempt of a write knows an LSN of the partition, and its record has a greater one,
//! so that an id whose known LSN is not before everything that was forgotten is either here or was never applied.
//!
//! # Invariants
//! * Entries stand in the order of their LSNs, and every one has a greater LSN than what was forgotten.
//! * A record that is taken again changes nothing.

use crate::{
    log::format::{Fields, FormatError},
    table::memory::allocated_bytes,
};
use hashbrown::HashTable;
use kv_proto::{
    effect::{Effect, Unchanged},
    ids::{ClientId, Lsn, OperationId},
    replication::Record,
};
use std::collections::VecDeque;
use xxhash_rust::xxh3::xxh3_64;

/// How many operations of a partition are remembered.
pub const MAX_OPERATIONS: usize = if cfg!(test) { 8 } else { 65_536 };
/// Bytes that an operation takes at most where it is encoded.
pub const MAX_OPERATION_BYTES: u64 = 41;

const WRITTEN: u8 = 0;
const MISSING: u8 = 1;
const CONDITION_FAILED: u8 = 2;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Its record is the one at this LSN, which is the version that it gave to its key.
    Written(Lsn),
    /// It changed nothing.
    Unchanged(Unchanged),
}

impl Done {
    /// What the record of a write at `lsn` makes of it; `None` where it is the record of no write.
    #[must_use]
    pub fn of(lsn: Lsn, effect: &Effect<'_>) -> Option<Done> {
        match *effect {
            Effect::Put { .. } | Effect::Delete { .. } => Some(Done::Written(lsn)),
            Effect::Outcome(unchanged) => Some(Done::Unchanged(unchanged)),
            Effect::Nothing => None,
        }
    }
}

/// What is known of an operation id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// No record has it.
    New,
    /// A record has it.
    Done(Done),
    /// It is so old that a record with it may have been forgotten.
    TooOld,
}

/// A write that was done. That it changed something is said by its absence elsewhere, which keeps this small: 32 bytes.
#[derive(Clone, Copy)]
struct Entry {
    client: ClientId,
    sequence: u64,
    lsn: Lsn,
}

/// The last operations of a partition.
#[derive(Default)]
pub struct Operations {
    entries: VecDeque<Entry>,
    /// Those of them that changed nothing, by their LSNs, which ascend.
    unchanged: VecDeque<(Lsn, Unchanged)>,
    /// Where the entry of an id stands: so many entries were added before it, modulo 2^32.
    places: HashTable<u32>,
    /// How many entries were forgotten, modulo 2^32: the place of the first that is there.
    first: u32,
    /// The greatest LSN of an entry that was forgotten.
    forgotten: Lsn,
    digest: u64,
    /// Counted with every operation that is added, since it is asked for with every record.
    memory_bytes: u64,
}

fn hash_of(client: ClientId, sequence: u64) -> u64 {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&client.0.to_le_bytes());
    bytes[16..].copy_from_slice(&sequence.to_le_bytes());
    xxh3_64(&bytes)
}

fn digest_of(entry: Entry, unchanged: Option<Unchanged>) -> u64 {
    let (kind, current) = match unchanged {
        None => (WRITTEN, Lsn(0)),
        Some(Unchanged::Missing) => (MISSING, Lsn(0)),
        Some(Unchanged::ConditionFailed { current }) => (CONDITION_FAILED, current),
    };
    let mut bytes = [kind; MAX_OPERATION_BYTES as usize];
    bytes[..16].copy_from_slice(&entry.client.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.lsn.0.to_le_bytes());
    bytes[33..].copy_from_slice(&current.0.to_le_bytes());
    xxh3_64(&bytes)
}

fn encode(out: &mut Vec<u8>, entry: Entry, unchanged: Option<Unchanged>) {
    out.extend_from_slice(&entry.client.0.to_le_bytes());
    out.extend_from_slice(&entry.sequence.to_le_bytes());
    out.extend_from_slice(&entry.lsn.0.to_le_bytes());
    match unchanged {
        None => out.push(WRITTEN),
        Some(Unchanged::Missing) => out.push(MISSING),
        Some(Unchanged::ConditionFailed { current }) => {
            out.push(CONDITION_FAILED);
            out.extend_from_slice(&current.0.to_le_bytes());
        }
    }
}

impl Operations {
    /// Nothing is known of operations up to this LSN.
    #[must_use]
    pub fn unknown_up_to(lsn: Lsn) -> Self {
        Operations { forgotten: lsn, ..Operations::default() }
    }

    /// What is known of an id.
    #[must_use]
    pub fn find(&self, id: &OperationId) -> Known {
        match self.find_entry(id.client, id.sequence) {
            Some(entry) => Known::Done(match self.unchanged(entry.lsn) {
                Some(unchanged) => Done::Unchanged(unchanged),
                None => Done::Written(entry.lsn),
            }),
            None if id.known_lsn < self.forgotten => Known::TooOld,
            None => Known::New,
        }
    }

    fn entry(&self, place: u32) -> &Entry {
        &self.entries[place.wrapping_sub(self.first) as usize]
    }

    fn find_entry(&self, client: ClientId, sequence: u64) -> Option<&Entry> {
        if self.entries.is_empty() {
            return None; // most partitions of most clusters: no hash is needed
        }
        let is_it = |place: &u32| {
            let entry = self.entry(*place);
            (entry.client, entry.sequence) == (client, sequence)
        };
        self.places.find(hash_of(client, sequence), is_it).map(|place| self.entry(*place))
    }

    fn unchanged(&self, lsn: Lsn) -> Option<Unchanged> {
        let at = self.unchanged.binary_search_by_key(&lsn, |(lsn, _)| *lsn).ok()?;
        Some(self.unchanged[at].1)
    }

    /// Takes a committed record, whose effect this is. Records come in their order; one that was taken before changes
    /// nothing.
    pub fn apply(&mut self, record: &Record, effect: &Effect<'_>) {
        let lsn = record.position.lsn;
        if let (Some(id), Some(done)) = (&record.operation_id, Done::of(lsn, effect))
            && lsn > self.last()
        {
            let unchanged = if let Done::Unchanged(unchanged) = done { Some(unchanged) } else { None };
            self.push(Entry { client: id.client, sequence: id.sequence, lsn }, unchanged);
        }
    }

    /// The LSN up to which everything is known that there is to know, as far as anything says so.
    pub(crate) fn last(&self) -> Lsn {
        self.entries.back().map_or(self.forgotten, |entry| entry.lsn)
    }

    fn push(&mut self, entry: Entry, unchanged: Option<Unchanged>) {
        if self.entries.len() >= MAX_OPERATIONS {
            self.forget_first();
        }
        let place = self.first.wrapping_add(self.entries.len() as u32);
        self.entries.push_back(entry);
        if let Some(unchanged) = unchanged {
            self.unchanged.push_back((entry.lsn, unchanged));
        }
        self.digest = self.digest.wrapping_add(digest_of(entry, unchanged));
        let (entries, first) = (&self.entries, self.first);
        let at = |place: u32| &entries[place.wrapping_sub(first) as usize];
        let same = |there: &u32| (at(*there).client, at(*there).sequence) == (entry.client, entry.sequence);
        let hash = |there: &u32| hash_of(at(*there).client, at(*there).sequence);
        match self.places.entry(hash_of(entry.client, entry.sequence), same, hash) {
            // No leader does that; if one did, the later record counts.
            hashbrown::hash_table::Entry::Occupied(mut there) => *there.get_mut() = place,
            hashbrown::hash_table::Entry::Vacant(room) => {
                room.insert(place);
            }
        }
        self.memory_bytes = allocated_bytes(self.entries.capacity() * size_of::<Entry>())
            + allocated_bytes(self.unchanged.capacity() * size_of::<(Lsn, Unchanged)>())
            + allocated_bytes(self.places.allocation_size());
    }

    fn forget_first(&mut self) {
        let Some(entry) = self.entries.front().copied() else { return };
        let (hash, place) = (hash_of(entry.client, entry.sequence), self.first);
        if let Ok(found) = self.places.find_entry(hash, |there| *there == place) {
            found.remove();
        }
        self.entries.pop_front();
        let unchanged = self.unchanged.pop_front_if(|(lsn, _)| *lsn == entry.lsn).map(|(_, unchanged)| unchanged);
        self.digest = self.digest.wrapping_sub(digest_of(entry, unchanged));
        (self.first, self.forgotten) = (self.first.wrapping_add(1), entry.lsn);
    }

    fn forget_up_to(&mut self, lsn: Lsn) {
        while self.entries.front().is_some_and(|entry| entry.lsn <= lsn) {
            self.forget_first();
        }
        self.forgotten = self.forgotten.max(lsn);
    }

    /// How many operations are remembered.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Where the same operations are remembered, the digests are equal.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes that they take where they are encoded, at most.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.count() * MAX_OPERATION_BYTES
    }

    /// Appends the operations after the one at `after` to `out`, of about `max_bytes` and at least one, and gives the LSN
    /// to go on after; `None` when there are no more, and nothing was appended.
    ///
    /// A walk begins after LSN 0, and what it is part of begins at the same time or before. The operations may change
    /// meanwhile: whoever takes all chunks by [`Operations::take_chunk`] in their order, and then the records since the walk
    /// began, has the operations as they are.
    pub fn next_chunk(&self, after: Lsn, max_bytes: usize, out: &mut Vec<u8>) -> Option<Lsn> {
        let from = self.entries.partition_point(|entry| entry.lsn <= after);
        // Of those that are gone something has to be known even where no other is left.
        if from == self.entries.len() && self.forgotten <= after {
            return None;
        }
        let end = out.len().saturating_add(max_bytes);
        out.extend_from_slice(&self.forgotten.0.to_le_bytes());
        let mut last = self.forgotten.max(after);
        for entry in self.entries.range(from..) {
            encode(out, *entry, self.unchanged(entry.lsn));
            last = entry.lsn;
            if out.len() + MAX_OPERATION_BYTES as usize > end {
                break;
            }
        }
        Some(last)
    }

    /// Takes what [`Operations::next_chunk`] gave.
    ///
    /// # Errors
    /// When it is none, or not the next.
    pub fn take_chunk(&mut self, chunk: &[u8]) -> Result<(), FormatError> {
        let mut fields = Fields(chunk);
        let forgotten = Lsn(fields.count()?);
        self.forget_up_to(forgotten);
        while !fields.0.is_empty() {
            let (client, sequence, lsn) = (ClientId(fields.u128()?), fields.u64()?, Lsn(fields.count()?));
            let unchanged = match fields.array()? {
                [WRITTEN] => None,
                [MISSING] => Some(Unchanged::Missing),
                [CONDITION_FAILED] => Some(Unchanged::ConditionFailed { current: Lsn(fields.u64()?) }),
                _ => return Err(FormatError::Damaged("an operation that cannot be")),
            };
            if lsn <= self.last() {
                return Err(FormatError::Damaged("operations out of order"));
            }
            self.push(Entry { client, sequence, lsn }, unchanged);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{ids::Epoch, replication::Position};
    use proptest::prelude::*;

    const CLIENT: ClientId = ClientId(7);

    fn id(sequence: u64, known_lsn: u64) -> OperationId {
        OperationId { client: CLIENT, sequence, known_lsn: Lsn(known_lsn) }
    }

    fn apply(operations: &mut Operations, lsn: u64, sequence: Option<u64>, effect: &Effect<'_>) {
        let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
        let operation_id = sequence.map(|sequence| id(sequence, 0));
        operations.apply(&Record { position, operation_id, payload: effect.encode().into() }, effect);
    }

    fn write(operations: &mut Operations, lsn: u64, sequence: u64) {
        apply(operations, lsn, Some(sequence), &Effect::Delete { key: b"k" });
    }

    /// Everything that can be seen, of ids up to `sequence`.
    fn all(operations: &Operations, sequence: u64) -> (Vec<Known>, u64, u64, Lsn) {
        let known = (0..=sequence).map(|sequence| operations.find(&id(sequence, u64::MAX))).collect();
        (known, operations.count(), operations.digest(), operations.forgotten)
    }

    fn copy(operations: &Operations, max_bytes: usize) -> Operations {
        let (mut copy, mut after, mut out) = (Operations::default(), Lsn(0), Vec::new());
        while let Some(next) = operations.next_chunk(after, max_bytes, &mut out) {
            copy.take_chunk(&out).expect("a chunk");
            out.clear();
            after = next;
        }
        assert!(out.is_empty());
        copy
    }

    #[test]
    fn each_write_is_known_by_what_became_of_it() {
        let mut operations = Operations::default();
        assert_eq!((operations.find(&id(1, 0)), operations.memory_bytes()), (Known::New, 0));
        let failed = Unchanged::ConditionFailed { current: Lsn(2) };
        apply(&mut operations, 1, Some(10), &Effect::Delete { key: b"k" });
        apply(&mut operations, 2, Some(11), &Effect::Put { key: b"k", content_type: "", value: b"", expires: None });
        apply(&mut operations, 3, Some(12), &Effect::Outcome(Unchanged::Missing));
        apply(&mut operations, 4, Some(13), &Effect::Outcome(failed));
        apply(&mut operations, 5, None, &Effect::Delete { key: b"k" });
        apply(&mut operations, 6, Some(14), &Effect::Nothing);
        for (sequence, known) in [
            (10, Known::Done(Done::Written(Lsn(1)))),
            (11, Known::Done(Done::Written(Lsn(2)))),
            (12, Known::Done(Done::Unchanged(Unchanged::Missing))),
            (13, Known::Done(Done::Unchanged(failed))),
            (14, Known::New),
        ] {
            assert_eq!(operations.find(&id(sequence, 0)), known);
        }
        assert_eq!(operations.find(&OperationId { client: ClientId(8), ..id(10, 0) }), Known::New);
        assert_eq!(operations.count(), 4);
    }

    #[test]
    fn the_oldest_is_forgotten_and_known_to_be() {
        let mut operations = Operations::default();
        let max = MAX_OPERATIONS as u64;
        for n in 1..=max {
            write(&mut operations, 10 * n, n);
        }
        assert_eq!(operations.find(&id(0, 0)), Known::New, "nothing was forgotten");
        write(&mut operations, 10 * max + 10, max + 1);
        assert_eq!(operations.count(), max);
        assert_eq!(operations.find(&id(1, 9)), Known::TooOld);
        assert_eq!(operations.find(&id(0, 9)), Known::TooOld);
        assert_eq!(operations.find(&id(0, 10)), Known::New, "its record would have come later");
        assert_eq!(operations.find(&id(2, 0)), Known::Done(Done::Written(Lsn(20))), "what is there is known");
        let unknown = Operations::unknown_up_to(Lsn(5));
        assert_eq!((unknown.find(&id(1, 4)), unknown.find(&id(1, 5))), (Known::TooOld, Known::New));
        assert_eq!(all(&copy(&unknown, 1), 1), all(&unknown, 1));
    }

    #[test]
    fn an_id_that_comes_again_counts_as_the_later_record() {
        let mut operations = Operations::default();
        write(&mut operations, 1, 5);
        write(&mut operations, 2, 5);
        assert_eq!(operations.find(&id(5, 0)), Known::Done(Done::Written(Lsn(2))));
        for lsn in 3..=1 + MAX_OPERATIONS as u64 {
            write(&mut operations, lsn, lsn + 10);
        }
        assert_eq!(operations.find(&id(5, 0)), Known::Done(Done::Written(Lsn(2))), "the older one is forgotten");
        write(&mut operations, 100, 100);
        assert_eq!(operations.find(&id(5, 2)), Known::New);
    }

    #[test]
    fn golden_bytes_of_a_chunk() {
        let mut operations = Operations::unknown_up_to(Lsn(0x0102));
        apply(&mut operations, 0x0103, Some(3), &Effect::Delete { key: b"k" });
        apply(&mut operations, 0x0104, Some(4), &Effect::Outcome(Unchanged::ConditionFailed { current: Lsn(9) }));
        let mut out = Vec::new();
        assert_eq!(operations.next_chunk(Lsn(0), 1000, &mut out), Some(Lsn(0x0104)));
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        let client = "07000000000000000000000000000000";
        let golden = [
            "0201000000000000",
            client,
            "0300000000000000 0301000000000000 00",
            client,
            "0400000000000000 0401000000000000 02 0900000000000000",
        ];
        assert_eq!(hex, golden.concat().replace(' ', ""));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let mut operations = Operations::default();
        write(&mut operations, 2, 1);
        write(&mut operations, 3, 2);
        let mut chunk = Vec::new();
        operations.next_chunk(Lsn(0), 1000, &mut chunk);
        let take = |chunk: &[u8]| Operations::default().take_chunk(chunk).map_err(|e| e.to_string());
        assert_eq!(take(&chunk), Ok(()));
        for bytes in 1..chunk.len() {
            assert_eq!(take(&chunk[..bytes]).is_ok(), bytes == 8 || bytes == 41, "{bytes}");
        }
        let mut changed = chunk.clone();
        changed[40] = 3;
        assert!(take(&changed).expect_err("an unknown outcome").contains("cannot be"));
        let twice = [&chunk[..], &chunk[8..]].concat();
        assert!(take(&twice).expect_err("twice").contains("order"));
        changed = chunk.clone();
        changed[0] = 2;
        assert!(take(&changed).expect_err("what it forgot itself").contains("order"));
    }

    #[test]
    fn chunks_are_bounded() {
        let mut operations = Operations::default();
        (1..=8).for_each(|lsn| write(&mut operations, lsn, lsn));
        let (mut after, mut chunks) = (Lsn(0), Vec::new());
        loop {
            let mut out = Vec::new();
            let Some(next) = operations.next_chunk(after, 8 + 3 * 41, &mut out) else { break };
            after = next;
            chunks.push(out.len());
        }
        assert_eq!(chunks, [8 + 3 * 33, 8 + 3 * 33, 8 + 2 * 33]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// So many LSNs further a record, of an operation that changes something or not, or of none.
        Record(u64, Option<Option<Unchanged>>),
        /// The next chunk of this size is taken.
        Chunk(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let unchanged = prop_oneof![
            2 => Just(None),
            1 => Just(Some(Unchanged::Missing)),
            1 => (0..9u64).prop_map(|lsn| Some(Unchanged::ConditionFailed { current: Lsn(lsn) })),
        ];
        let record = (1..3u64, proptest::option::weighted(0.8, unchanged));
        prop::collection::vec(
            prop_oneof![
                3 => record.prop_map(|(lsns, operation)| Step::Record(lsns, operation)),
                1 => (0..200usize).prop_map(Step::Chunk),
            ],
            0..100,
        )
    }

    proptest! {
        #[test]
        fn a_copy_with_the_records_since_is_the_same(
            before in steps(), during in steps(), since in steps(),
        ) {
            let (mut operations, mut lsn, mut log) = (Operations::default(), 0, Vec::new());
            let mut run = |operations: &mut Operations, step: &Step| {
                let Step::Record(lsns, operation) = step else { return log.len() };
                lsn += lsns;
                let effect = match operation {
                    Some(Some(unchanged)) => Effect::Outcome(*unchanged),
                    _ => Effect::Delete { key: b"k" },
                };
                let sequence = operation.map(|_| lsn);
                apply(operations, lsn, sequence, &effect);
                log.push((lsn, sequence, effect));
                log.len()
            };
            for step in &before {
                run(&mut operations, step);
            }
            let (mut walked, mut after) = (Operations::default(), Lsn(0));
            let mut take = |operations: &Operations, bytes| {
                let mut out = Vec::new();
                let next = operations.next_chunk(after, bytes, &mut out)?;
                walked.take_chunk(&out).expect("a chunk");
                after = next;
                Some(())
            };
            for step in &during {
                match step {
                    Step::Record(..) => {
                        run(&mut operations, step);
                    }
                    Step::Chunk(bytes) => take(&operations, *bytes).unwrap_or_default(),
                }
            }
            while take(&operations, 100).is_some() {}
            let whole = [&operations, &walked].map(|o| (o.count(), o.digest(), o.forgotten));
            prop_assert_eq!(whole[0], whole[1]);
            let ended = run(&mut operations, &Step::Chunk(0));
            for step in &since {
                run(&mut operations, step);
            }
            // From wherever it is replayed: nothing is taken twice, and nothing left out.
            for from in 0..=ended {
                let mut replayed = copy(&walked, 50);
                log[from..].iter().for_each(|(lsn, sequence, effect)| apply(&mut replayed, *lsn, *sequence, effect));
                prop_assert_eq!(all(&replayed, lsn), all(&operations, lsn));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut operations = Operations::default();
            let _ = operations.take_chunk(&bytes);
            let _ = copy(&operations, 100);
        }
    }
}
