//! A partition's keys and values, in memory.
//!
//! * `stored`: an entry, one allocation
//! * `segments`: where it stands, so that no change is slow and a walk survives all of them
//! * `walk`: all entries in slices, while the table changes
//! * `memory`: what an allocation takes
//!
//! # Invariants
//! * The digest is the sum (modulo 2^64) of the hashes of all entries, so that two tables with the same entries
//!   have the same digest, however they came by them.
//! * No clock: entries that have expired are told to who asks with the time, and stay until they are removed.

pub(crate) mod memory;
mod segments;
mod stored;
mod walk;

pub use stored::Entry;
pub use walk::Walk;

use kv_proto::{effect::Expiry, ids::Lsn};
use segments::Segments;
use std::collections::BTreeSet;
use stored::Stored;

/// What an entry that expires takes in the index, in bytes: 16, in nodes that are half full when times only grow.
const INDEXED_BYTES: u64 = 40;

/// Where a key's entry stands.
fn hash_of(key: &[u8]) -> u64 {
    // In tests, keys that begin with `=` share the hash of their first two bytes.
    let key = if cfg!(test) && key.starts_with(b"=") { &key[..key.len().min(2)] } else { key };
    crate::key_hash(key)
}

/// The table.
#[derive(Default)]
pub struct Table {
    segments: Segments,
    /// When entries expire and their hashes; one for all entries that have both in common.
    expiries: BTreeSet<(Expiry, u64)>,
    keys: u64,
    bytes: u64,
    allocated: u64,
    digest: u64,
}

impl Table {
    /// The entry of a key, whether or not it has expired.
    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        self.segments.find(hash_of(key), key).map(Stored::entry)
    }

    /// The key has this entry from now on.
    pub fn put(&mut self, key: &[u8], entry: Entry<'_>) {
        let (hash, stored) = (hash_of(key), Stored::new(key, entry));
        self.keys += 1;
        self.bytes += stored.user_bytes();
        self.allocated += stored.allocated_bytes();
        self.digest = self.digest.wrapping_add(stored.digest());
        let replaced = self.segments.put(hash, stored);
        if let Some(old) = replaced {
            self.forget(hash, &old);
        }
        if let Some(expires) = entry.expires {
            self.expiries.insert((expires, hash));
        }
    }

    /// The key has no value from now on.
    pub fn remove(&mut self, key: &[u8]) {
        let hash = hash_of(key);
        if let Some(old) = self.segments.remove(hash, key) {
            self.forget(hash, &old);
        }
    }

    /// As [`Table::put`], unless what is there was written by the same record or a later one.
    pub fn put_if_newer(&mut self, key: &[u8], entry: Entry<'_>) {
        if self.lsn(key).is_none_or(|there| there < entry.lsn) {
            self.put(key, entry);
        }
    }

    /// As [`Table::remove`] by the record at `lsn`, unless what is there was written by the same record or a later
    /// one.
    pub fn remove_if_older(&mut self, lsn: Lsn, key: &[u8]) {
        if self.lsn(key).is_some_and(|there| there < lsn) {
            self.remove(key);
        }
    }

    fn lsn(&self, key: &[u8]) -> Option<Lsn> {
        self.segments.find(hash_of(key), key).map(Stored::lsn)
    }

    /// Takes an entry that is no longer there out of all sums.
    fn forget(&mut self, hash: u64, old: &Stored) {
        self.keys -= 1;
        self.bytes -= old.user_bytes();
        self.allocated -= old.allocated_bytes();
        self.digest = self.digest.wrapping_sub(old.digest());
        if let Some(expires) = old.expires()
            && !self.segments.with_hash(hash).any(|s| s.expires() == Some(expires))
        {
            self.expiries.remove(&(expires, hash));
        }
    }

    /// The keys of entries that have expired at `now_ms`, those that did first before the others; of about `max`
    /// entries.
    pub fn expired(&self, now_ms: u64, max: usize) -> Vec<Vec<u8>> {
        let due = self.expiries.iter().take_while(|(expires, _)| expires.is_due(now_ms)).take(max);
        let entries =
            due.flat_map(|(expires, hash)| self.segments.with_hash(*hash).filter(|s| s.expires() == Some(*expires)));
        entries.map(|s| s.key().to_vec()).collect()
    }

    /// How many keys have a value.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Bytes of keys, content types and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of memory that the table takes.
    pub fn memory_bytes(&self) -> u64 {
        self.allocated + self.segments.memory_bytes() + self.expiries.len() as u64 * INDEXED_BYTES
    }

    /// Equal tables have equal digests.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Clone, Debug)]
    enum Write {
        Put(u8, Vec<u8>, Option<Expiry>),
        Remove(u8),
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let expires = (0..10u64).prop_map(Expiry::from_ms);
        let value = prop::collection::vec(any::<u8>(), 0..50);
        let put = (0..60u8, value, expires).prop_map(|(key, value, expires)| Write::Put(key, value, expires));
        prop::collection::vec(prop_oneof![3 => put, 1 => (0..60u8).prop_map(Write::Remove)], 0..400)
    }

    /// Some keys share their hashes.
    fn key_of(key: u8) -> Vec<u8> {
        if key < 10 { vec![b'=', key % 2, key] } else { vec![key] }
    }

    fn entry(lsn: u64, value: &[u8], expires: Option<Expiry>) -> Entry<'_> {
        Entry { lsn: Lsn(lsn), expires, content_type: "t/x", value }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_and_its_digest_knows_no_order(writes in writes()) {
            let (mut table, mut model) = (Table::default(), HashMap::new());
            for (lsn, write) in (1..).zip(writes) {
                match write {
                    Write::Put(key, value, expires) => {
                        table.put(&key_of(key), entry(lsn, &value, expires));
                        model.insert(key, (lsn, value, expires));
                    }
                    Write::Remove(key) => {
                        table.remove(&key_of(key));
                        model.remove(&key);
                    }
                }
            }
            for key in 0..60u8 {
                let expected = model.get(&key).map(|(lsn, value, expires)| entry(*lsn, value, *expires));
                prop_assert_eq!(table.get(&key_of(key)), expected);
            }
            let mut rebuilt = Table::default();
            for (key, (lsn, value, expires)) in &model {
                rebuilt.put(&key_of(*key), entry(*lsn, value, *expires));
            }
            let sums = |t: &Table| (t.keys(), t.bytes(), t.digest(), t.allocated, t.expiries.clone());
            prop_assert_eq!(sums(&table), sums(&rebuilt));
            for now_ms in 0..11 {
                let mut expired = table.expired(now_ms, usize::MAX);
                let due = model.iter().filter(|(_, (_, _, e))| e.is_some_and(|e| e.is_due(now_ms)));
                let mut expected: Vec<_> = due.map(|(key, _)| key_of(*key)).collect();
                expired.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(expired, expected);
            }
            for key in 0..60u8 {
                table.remove(&key_of(key));
            }
            prop_assert_eq!((table.keys(), table.bytes(), table.digest(), table.allocated), (0, 0, 0, 0));
            prop_assert!(table.expiries.is_empty());
        }
    }

    #[test]
    fn the_digest_sees_every_field() {
        let digest = |lsn, key: &[u8], content_type: &str, value: &[u8], expires| {
            let mut table = Table::default();
            table.put(key, Entry { lsn: Lsn(lsn), expires: Expiry::from_ms(expires), content_type, value });
            table.digest()
        };
        let one = digest(1, b"k", "t", b"v", 0);
        for other in [
            digest(2, b"k", "t", b"v", 0),
            digest(1, b"l", "t", b"v", 0),
            digest(1, b"k", "u", b"v", 0),
            digest(1, b"k", "t", b"w", 0),
            digest(1, b"kt", "", b"v", 0),
            digest(1, b"k", "t", b"v", 1),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(Table::default().digest(), 0);
    }

    #[test]
    fn replay_leaves_alone_what_is_newer() {
        let mut table = Table::default();
        table.put(b"k", entry(5, b"five", None));
        table.put_if_newer(b"k", entry(5, b"again", None));
        table.put_if_newer(b"k", entry(4, b"four", None));
        table.remove_if_older(Lsn(5), b"k");
        assert_eq!(table.get(b"k"), Some(entry(5, b"five", None)));
        table.put_if_newer(b"k", entry(6, b"six", None));
        assert_eq!(table.get(b"k"), Some(entry(6, b"six", None)));
        table.remove_if_older(Lsn(7), b"k");
        table.remove_if_older(Lsn(8), b"k");
        assert_eq!(table.get(b"k"), None);
        table.put_if_newer(b"k", entry(9, b"nine", None));
        assert_eq!(table.keys(), 1);
    }

    #[test]
    fn what_expired_first_is_told_first_and_not_all_at_once() {
        let mut table = Table::default();
        for key in 1..=9u8 {
            table.put(&[key], entry(1, b"", Expiry::from_ms(100 - u64::from(key))));
        }
        table.put(&[5], entry(2, b"", None));
        assert_eq!(table.expired(90, 9), Vec::<Vec<u8>>::new());
        assert_eq!(table.expired(96, 3), [[9], [8], [7]]);
        assert_eq!(table.expired(96, 9), [[9], [8], [7], [6], [4]]);
    }

    #[test]
    fn memory_is_counted_with_all_that_it_takes() {
        let mut table = Table::default();
        let empty = table.memory_bytes();
        table.put(b"0123456789abcdef", entry(1, &[0; 64], None));
        // 15 + 16 + 3 + 64 bytes; four slots in a table with 16 control bytes beside theirs.
        let slots = memory::allocated_bytes(4 * 8 + 4 + 16);
        assert_eq!(table.memory_bytes() - empty, 112 + slots);
        table.put(b"0123456789abcdef", entry(1, &[0; 64], Expiry::from_ms(1)));
        assert_eq!(table.memory_bytes() - empty, 112 + slots + INDEXED_BYTES);
        table.remove(b"0123456789abcdef");
        assert_eq!(table.memory_bytes() - empty, slots);
    }
}
