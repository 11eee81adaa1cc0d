//! A partition's keys and values, in memory.
//!
//! One allocation an entry, which holds all of it:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | LSN that wrote it |
//! | 2 | length of the key |
//! | 1 | length of the content type |
//! | … | key, content type, value |
//!
//! # Invariants
//! * The digest is the sum (modulo 2^64) of the hashes of all entries, so that two tables with the same entries
//!   have the same digest, however they came by them.

use crate::key_hash;
use hashbrown::HashTable;
use kv_proto::{
    ids::Lsn,
    limits::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES},
};
use xxhash_rust::xxh3::xxh3_64;

const HEADER_BYTES: usize = 11;

/// An entry, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The record that wrote it.
    pub lsn: Lsn,
    /// Its media type.
    pub content_type: &'a str,
    /// Its value.
    pub value: &'a [u8],
}

struct Stored(Box<[u8]>);

impl Stored {
    fn new(lsn: Lsn, key: &[u8], content_type: &str, value: &[u8]) -> Self {
        assert!(
            key.len() <= MAX_KEY_BYTES && content_type.len() <= MAX_CONTENT_TYPE_BYTES,
            "limits are checked before"
        );
        let mut bytes = Vec::with_capacity(HEADER_BYTES + key.len() + content_type.len() + value.len());
        bytes.extend_from_slice(&lsn.0.to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        bytes.push(content_type.len() as u8);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(content_type.as_bytes());
        bytes.extend_from_slice(value);
        Stored(bytes.into_boxed_slice())
    }

    fn key_end(&self) -> usize {
        HEADER_BYTES + usize::from(u16::from_le_bytes([self.0[8], self.0[9]]))
    }

    fn key(&self) -> &[u8] {
        &self.0[HEADER_BYTES..self.key_end()]
    }

    fn entry(&self) -> Entry<'_> {
        let lsn = Lsn(u64::from_le_bytes(self.0[..8].try_into().expect("8 bytes")));
        let (content_type, value) = self.0[self.key_end()..].split_at(usize::from(self.0[10]));
        let content_type = std::str::from_utf8(content_type).expect("a content type was text when it came in");
        Entry { lsn, content_type, value }
    }

    /// Bytes of key and value, as people count them.
    fn user_bytes(&self) -> u64 {
        (self.0.len() - HEADER_BYTES) as u64
    }
}

/// The table.
#[derive(Default)]
pub struct Table {
    entries: HashTable<Stored>,
    bytes: u64,
    digest: u64,
}

impl Table {
    /// The entry of a key.
    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        self.entries.find(key_hash(key), |s| s.key() == key).map(Stored::entry)
    }

    /// The key has this value from now on.
    pub fn put(&mut self, lsn: Lsn, key: &[u8], content_type: &str, value: &[u8]) {
        self.remove(key);
        let stored = Stored::new(lsn, key, content_type, value);
        self.bytes += stored.user_bytes();
        self.digest = self.digest.wrapping_add(xxh3_64(&stored.0));
        self.entries.insert_unique(key_hash(key), stored, |s| key_hash(s.key()));
    }

    /// The key has no value from now on.
    pub fn remove(&mut self, key: &[u8]) {
        if let Ok(found) = self.entries.find_entry(key_hash(key), |s| s.key() == key) {
            let (stored, _) = found.remove();
            self.bytes -= stored.user_bytes();
            self.digest = self.digest.wrapping_sub(xxh3_64(&stored.0));
        }
    }

    /// How many keys have a value.
    pub fn keys(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Bytes of keys, content types and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
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
        Put(u8, Vec<u8>),
        Remove(u8),
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let put = (0..20u8, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(k, v)| Write::Put(k, v));
        prop::collection::vec(prop_oneof![3 => put, 1 => (0..20u8).prop_map(Write::Remove)], 0..200)
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_and_its_digest_knows_no_order(writes in writes()) {
            let (mut table, mut model) = (Table::default(), HashMap::new());
            for (lsn, write) in (1..).zip(writes) {
                match write {
                    Write::Put(key, value) => {
                        table.put(Lsn(lsn), &[key], "t/x", &value);
                        model.insert(key, (lsn, value));
                    }
                    Write::Remove(key) => {
                        table.remove(&[key]);
                        model.remove(&key);
                    }
                }
            }
            for key in 0..20u8 {
                let expected = model.get(&key).map(|(lsn, value)| Entry { lsn: Lsn(*lsn), content_type: "t/x", value });
                prop_assert_eq!(table.get(&[key]), expected);
            }
            let mut rebuilt = Table::default();
            for (key, (lsn, value)) in &model {
                rebuilt.put(Lsn(*lsn), &[*key], "t/x", value);
            }
            prop_assert_eq!((table.keys(), table.bytes(), table.digest()), (rebuilt.keys(), rebuilt.bytes(), rebuilt.digest()));
        }
    }

    #[test]
    fn the_digest_sees_every_field() {
        let digest = |lsn, key: &[u8], content_type: &str, value: &[u8]| {
            let mut table = Table::default();
            table.put(Lsn(lsn), key, content_type, value);
            table.digest()
        };
        let one = digest(1, b"k", "t", b"v");
        for other in [
            digest(2, b"k", "t", b"v"),
            digest(1, b"l", "t", b"v"),
            digest(1, b"k", "u", b"v"),
            digest(1, b"k", "t", b"w"),
            digest(1, b"kt", "", b"v"),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(Table::default().digest(), 0);
    }
}
