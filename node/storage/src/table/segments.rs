//! Extendible hashing: entries in segments, each of one range of hashes, under a directory.
//!
//! A segment that is full splits in two by the next bit of the hash, and the directory doubles when a segment needs
//! more bits than it has; so no single change touches more entries than one segment has.
//! (Fagin, Nievergelt, Pippenger, Strong: *Extendible Hashing*, ACM TODS 4 (3), 1979.)
//!
//! # Invariants
//! * A segment of depth `d` has exactly the entries whose hashes begin with its `d` bits. Ranges only ever become
//!   finer: where one began once, one begins for ever.

use super::{hash_of, memory::allocated_bytes, stored::Stored};
use hashbrown::HashTable;

/// A segment with this many entries splits: what hashbrown puts into 4096 slots. Few in tests, so that they split.
const MAX_ENTRIES: usize = if cfg!(test) { 14 } else { 3584 };
/// Segments do not split beyond this, but grow: entries whose hashes are alike cannot be told apart by them.
const MAX_DEPTH: u32 = 16;
/// A segment that has fewer entries than a part of its room gives it up, unless it is small anyway.
const SHRINK_PART: usize = 8;
const KEPT_ROOM: usize = if cfg!(test) { 3 } else { 56 };

/// Where a hash stands within a segment: hashbrown uses the lowest and the highest bits, and the highest are the
/// same for all entries of a segment.
fn slot_hash(hash: u64) -> u64 {
    hash.rotate_left(32)
}

fn slot_of(stored: &Stored) -> u64 {
    slot_hash(hash_of(stored.key()))
}

struct Segment {
    depth: u32,
    entries: HashTable<Stored>,
}

/// All segments of a table.
pub(super) struct Segments {
    /// Bits of the hash that the directory goes by.
    depth: u32,
    /// Which segment has the hashes that begin so.
    directory: Vec<u32>,
    segments: Vec<Segment>,
    /// What the slots of all segments take, in bytes.
    slot_bytes: u64,
}

impl Default for Segments {
    fn default() -> Self {
        let only = Segment { depth: 0, entries: HashTable::new() };
        Segments { depth: 0, directory: vec![0], segments: vec![only], slot_bytes: 0 }
    }
}

impl Segments {
    fn index(&self, hash: u64) -> usize {
        self.directory[prefix(hash, self.depth)] as usize
    }

    /// Changes one segment and keeps account of its slots.
    fn change<T>(&mut self, at: usize, change: impl FnOnce(&mut HashTable<Stored>) -> T) -> T {
        let entries = &mut self.segments[at].entries;
        let before = allocated_bytes(entries.allocation_size());
        let result = change(entries);
        self.slot_bytes = self.slot_bytes - before + allocated_bytes(entries.allocation_size());
        result
    }

    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<&Stored> {
        self.segments[self.index(hash)].entries.find(slot_hash(hash), |s| s.key() == key)
    }

    /// All entries of this very hash.
    pub(super) fn with_hash(&self, hash: u64) -> impl Iterator<Item = &Stored> {
        let entries = &self.segments[self.index(hash)].entries;
        entries.iter_hash(slot_hash(hash)).filter(move |s| hash_of(s.key()) == hash)
    }

    /// Puts an entry in; gives back the one of the same key.
    pub(super) fn put(&mut self, hash: u64, stored: Stored) -> Option<Stored> {
        let at = self.index(hash);
        let same_key = |s: &Stored| s.key() == stored.key();
        if let Some(found) = self.segments[at].entries.find_mut(slot_hash(hash), same_key) {
            return Some(std::mem::replace(found, stored));
        }
        while self.is_full(self.index(hash)) {
            self.split(hash);
        }
        self.change(self.index(hash), |entries| {
            entries.insert_unique(slot_hash(hash), stored, slot_of);
        });
        None
    }

    pub(super) fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Stored> {
        self.change(self.index(hash), |entries| {
            let found = entries.find_entry(slot_hash(hash), |s| s.key() == key).ok()?;
            let (stored, _) = found.remove();
            let (len, room) = (entries.len(), entries.capacity());
            if room > KEPT_ROOM && len * SHRINK_PART < room {
                entries.shrink_to(2 * len, slot_of);
            }
            Some(stored)
        })
    }

    fn is_full(&self, at: usize) -> bool {
        let segment = &self.segments[at];
        segment.entries.len() >= MAX_ENTRIES && segment.depth < MAX_DEPTH
    }

    /// Splits the segment of a hash in two.
    fn split(&mut self, hash: u64) {
        let at = self.index(hash);
        let depth = self.segments[at].depth;
        if depth == self.depth {
            self.directory = self.directory.iter().flat_map(|s| [*s, *s]).collect();
            self.depth += 1;
        }
        let upper = 1 << (u64::BITS - 1 - depth);
        let mut moved = HashTable::with_capacity(MAX_ENTRIES);
        self.change(at, |entries| {
            for stored in entries.extract_if(|s| hash_of(s.key()) & upper != 0) {
                moved.insert_unique(slot_of(&stored), stored, slot_of);
            }
        });
        self.segments[at].depth = depth + 1;
        self.slot_bytes += allocated_bytes(moved.allocation_size());
        let new = self.segments.len() as u32;
        self.segments.push(Segment { depth: depth + 1, entries: moved });
        // The places of the old segment are next to each other, and the upper half of them is the new one's.
        let half = 1 << (self.depth - depth - 1);
        let first = (2 * prefix(hash, depth) + 1) * half;
        self.directory[first..first + half].fill(new);
    }

    /// The hashes of the segment that `from` is in, `from` and what follows, each once and in order; and the last hash
    /// of its range.
    pub(super) fn hashes(&self, from: u64) -> (Vec<u64>, u64) {
        let segment = &self.segments[self.index(from)];
        let mut hashes: Vec<u64> =
            segment.entries.iter().map(|s| hash_of(s.key())).filter(|hash| *hash >= from).collect();
        hashes.sort_unstable();
        hashes.dedup();
        (hashes, from | u64::MAX.checked_shr(segment.depth).unwrap_or(0))
    }

    /// What slots and directory take, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let directory = self.directory.capacity() * size_of::<u32>();
        let segments = self.segments.capacity() * size_of::<Segment>();
        self.slot_bytes + allocated_bytes(directory) + allocated_bytes(segments)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.segments.len()
    }
}

/// The first `bits` bits of a hash, as a number.
fn prefix(hash: u64, bits: u32) -> usize {
    hash.checked_shr(u64::BITS - bits).unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Entry;
    use kv_proto::ids::Lsn;

    fn put(segments: &mut Segments, key: &[u8]) {
        let entry = Entry { lsn: Lsn(1), expires: None, content_type: "", value: b"v" };
        segments.put(hash_of(key), Stored::new(key, entry));
    }

    impl Segments {
        fn check(&self) {
            assert_eq!(self.directory.len(), 1 << self.depth);
            let mut slot_bytes = 0;
            for (at, segment) in self.segments.iter().enumerate() {
                assert!(segment.entries.len() <= MAX_ENTRIES || segment.depth == MAX_DEPTH);
                assert!(segment.entries.iter().all(|s| self.index(hash_of(s.key())) == at));
                let places = self.directory.iter().filter(|s| **s as usize == at).count();
                assert_eq!(places, 1 << (self.depth - segment.depth));
                slot_bytes += allocated_bytes(segment.entries.allocation_size());
            }
            assert_eq!(self.slot_bytes, slot_bytes);
        }
    }

    #[test]
    fn full_segments_split_and_empty_ones_give_their_room_back() {
        let mut segments = Segments::default();
        let keys: Vec<[u8; 4]> = (0..2000u32).map(u32::to_le_bytes).collect();
        for key in &keys {
            put(&mut segments, key);
        }
        segments.check();
        assert!(segments.count() > 100, "{}", segments.count());
        let full = segments.slot_bytes;
        for (i, key) in keys.iter().enumerate() {
            assert!(segments.find(hash_of(key), key).is_some());
            if i % 20 != 0 {
                assert_eq!(segments.remove(hash_of(key), key).expect("there").key(), key);
            }
        }
        segments.check();
        assert!(segments.slot_bytes < full / 2, "{} of {full}", segments.slot_bytes);
        assert!(keys.iter().enumerate().all(|(i, k)| segments.find(hash_of(k), k).is_some() == (i % 20 == 0)));
    }

    #[test]
    fn entries_that_no_bit_tells_apart_stay_together() {
        let mut segments = Segments::default();
        for i in 0..100 {
            put(&mut segments, &[b'=', 1, i]);
        }
        segments.check();
        assert_eq!((segments.depth, segments.count()), (MAX_DEPTH, MAX_DEPTH as usize + 1));
        assert_eq!(segments.with_hash(hash_of(b"=\x01")).count(), 100);
        assert_eq!(segments.hashes(0).0, if hash_of(b"=\x01") >> 48 == 0 { vec![hash_of(b"=\x01")] } else { vec![] });
    }

    #[test]
    fn ranges_of_segments_cover_all_hashes() {
        let mut segments = Segments::default();
        (0..500u32).for_each(|i| put(&mut segments, &i.to_le_bytes()));
        let (mut seen, mut from) = (Vec::new(), 0);
        loop {
            let (hashes, last) = segments.hashes(from);
            seen.extend(hashes);
            let Some(next) = last.checked_add(1) else { break };
            from = next;
        }
        let mut all: Vec<u64> = (0..500u32).map(|i| hash_of(&i.to_le_bytes())).collect();
        all.sort_unstable();
        assert_eq!(seen, all);
    }
}
