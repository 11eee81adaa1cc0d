//! An entry of a table: one allocation, known by a thin pointer, so that a slot of a segment takes 8 bytes.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | LSN that wrote it |
//! | 4 | length of the value |
//! | 2 | length of the key; the highest bit says that an expiry follows |
//! | 1 | length of the content type |
//! | 8 | when it expires, only if it does |
//! | … | key, content type, value |

use super::memory::allocated_bytes;
use kv_proto::{
    effect::Expiry,
    ids::Lsn,
    limits::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES},
};
use std::{marker::PhantomData, ptr::NonNull, slice};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const HEADER_BYTES: usize = 15;
const EXPIRY_BYTES: usize = 8;
/// In the length of the key: an expiry follows the header.
const EXPIRES: u16 = 1 << 15;
/// What the digest sees before key, content type and value.
const DIGEST_HEADER_BYTES: usize = 8 + 8 + 2 + 1;
/// Entries up to this are copied together to be hashed, which is faster than in parts.
const HASHED_AT_ONCE_BYTES: usize = 512;

const _: () = assert!(MAX_KEY_BYTES < EXPIRES as usize);

/// An entry, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The record that wrote it.
    pub lsn: Lsn,
    /// When it expires; `None` is never. That it has does not take it out of the table.
    pub expires: Option<Expiry>,
    /// Its media type.
    pub content_type: &'a str,
    /// Its value.
    pub value: &'a [u8],
}

/// An entry, owned, with its key.
///
/// # Invariants
/// * The pointer is that of a `Box<[u8]>`, whose length follows from the header at its beginning.
pub(super) struct Stored(NonNull<u8>, PhantomData<Box<[u8]>>);

// SAFETY: it owns its bytes, as the box does that it is made of.
unsafe impl Send for Stored {}
// SAFETY: bytes behind a shared reference are only read.
unsafe impl Sync for Stored {}

/// The lengths that a header tells.
#[derive(Clone, Copy)]
struct Lengths {
    key: usize,
    content_type: usize,
    value: usize,
    expires: bool,
}

impl Lengths {
    fn of(header: &[u8; HEADER_BYTES]) -> Self {
        let value = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let key = u16::from_le_bytes([header[12], header[13]]);
        Lengths {
            key: usize::from(key & !EXPIRES),
            content_type: usize::from(header[14]),
            value: value as usize,
            expires: key & EXPIRES != 0,
        }
    }

    fn before_key(self) -> usize {
        HEADER_BYTES + if self.expires { EXPIRY_BYTES } else { 0 }
    }

    fn total(self) -> usize {
        self.before_key() + self.key + self.content_type + self.value
    }
}

impl Stored {
    pub(super) fn new(key: &[u8], entry: Entry<'_>) -> Self {
        let Entry { lsn, expires, content_type, value } = entry;
        assert!(
            key.len() <= MAX_KEY_BYTES
                && content_type.len() <= MAX_CONTENT_TYPE_BYTES
                && value.len() <= u32::MAX as usize,
            "limits are checked before"
        );
        let flag = if expires.is_some() { EXPIRES } else { 0 };
        let expiry_bytes = if expires.is_some() { EXPIRY_BYTES } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + expiry_bytes + key.len() + content_type.len() + value.len());
        bytes.extend_from_slice(&lsn.0.to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u16 | flag).to_le_bytes());
        bytes.push(content_type.len() as u8);
        if let Some(expires) = expires {
            bytes.extend_from_slice(&expires.ms().to_le_bytes());
        }
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(content_type.as_bytes());
        bytes.extend_from_slice(value);
        let pointer = Box::into_raw(bytes.into_boxed_slice()).cast::<u8>();
        Stored(NonNull::new(pointer).expect("a box is somewhere"), PhantomData)
    }

    fn lengths(&self) -> Lengths {
        // SAFETY: the allocation lives as long as `self` and has at least a header.
        Lengths::of(unsafe { self.0.cast::<[u8; HEADER_BYTES]>().as_ref() })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation lives as long as `self`, and its header tells its length.
        unsafe { slice::from_raw_parts(self.0.as_ptr(), self.lengths().total()) }
    }

    pub(super) fn key(&self) -> &[u8] {
        let lengths = self.lengths();
        &self.bytes()[lengths.before_key()..][..lengths.key]
    }

    pub(super) fn lsn(&self) -> Lsn {
        Lsn(read_u64(self.bytes(), 0))
    }

    pub(super) fn expires(&self) -> Option<Expiry> {
        if self.lengths().expires { Expiry::from_ms(read_u64(self.bytes(), HEADER_BYTES)) } else { None }
    }

    pub(super) fn entry(&self) -> Entry<'_> {
        let lengths = self.lengths();
        let rest = &self.bytes()[lengths.before_key() + lengths.key..];
        let (content_type, value) = rest.split_at(lengths.content_type);
        let content_type = std::str::from_utf8(content_type).expect("a content type was text when it came in");
        Entry { lsn: self.lsn(), expires: self.expires(), content_type, value }
    }

    /// Bytes of key, content type and value.
    pub(super) fn user_bytes(&self) -> u64 {
        let lengths = self.lengths();
        (lengths.total() - lengths.before_key()) as u64
    }

    /// What its allocation takes, in bytes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        allocated_bytes(self.lengths().total())
    }

    /// Its part of the table's digest: xxh3 of what it is, apart from how it lies in memory. It is compared between
    /// replicas and written to checkpoints:
    ///
    /// | LSN | expiry, 0 if never | length of the key | length of the content type | key | content type | value |
    /// |---|---|---|---|---|---|---|
    /// | 8 | 8 | 2 | 1 | … | … | … |
    pub(super) fn digest(&self) -> u64 {
        let lengths = self.lengths();
        let rest = &self.bytes()[lengths.before_key()..];
        let mut header = [0; DIGEST_HEADER_BYTES];
        header[..8].copy_from_slice(&self.bytes()[..8]);
        header[8..16].copy_from_slice(&self.expires().map_or(0, Expiry::ms).to_le_bytes());
        header[16..18].copy_from_slice(&(lengths.key as u16).to_le_bytes());
        header[18] = lengths.content_type as u8;
        let total = header.len() + rest.len();
        if total <= HASHED_AT_ONCE_BYTES {
            let mut together = [0; HASHED_AT_ONCE_BYTES];
            together[..header.len()].copy_from_slice(&header);
            together[header.len()..total].copy_from_slice(rest);
            return xxh3_64(&together[..total]);
        }
        let mut parts = Xxh3::new();
        parts.update(&header);
        parts.update(rest);
        parts.digest()
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let bytes = std::ptr::slice_from_raw_parts_mut(self.0.as_ptr(), self.lengths().total());
        // SAFETY: this is the box that `new` took apart, with the length that it had.
        drop(unsafe { Box::from_raw(bytes) });
    }
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry = Entry { lsn: Lsn(0x0102), expires: None, content_type: "t/x", value: b"value" };

    #[test]
    fn an_entry_is_what_was_put_in() {
        for expires in [None, Expiry::from_ms(1), Expiry::from_ms(u64::MAX)] {
            for (key, content_type, value) in
                [(&[7; MAX_KEY_BYTES][..], "", &b""[..]), (b"k", &*"ü".repeat(127), &[1; 70_000]), (b"k", "", b"")]
            {
                let entry = Entry { lsn: Lsn(u64::MAX), expires, content_type, value };
                let stored = Stored::new(key, entry);
                assert_eq!((stored.key(), stored.entry()), (key, entry));
                assert_eq!(stored.user_bytes() as usize, key.len() + content_type.len() + value.len());
            }
        }
    }

    #[test]
    fn only_who_expires_pays_for_it() {
        let bytes = |expires| Stored::new(b"key", Entry { expires, ..ENTRY }).bytes().len();
        assert_eq!((bytes(None), bytes(Expiry::from_ms(5))), (15 + 11, 15 + 8 + 11));
    }

    #[test]
    fn the_digest_is_of_these_bytes() {
        let stored = Stored::new(b"key", Entry { expires: Expiry::from_ms(0x0304), ..ENTRY });
        let canonical = b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0\x03\0\x03keyt/xvalue";
        assert_eq!(stored.digest(), xxh3_64(canonical));
        assert_eq!(stored.digest(), 0x90cb5d8dc159bce6, "and they are hashed so for ever");
        for size in [400, 600, 5000] {
            let value = vec![9; size];
            let canonical = [b"\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\x03keyt/x", value.as_slice()].concat();
            assert_eq!(Stored::new(b"key", Entry { value: &value, ..ENTRY }).digest(), xxh3_64(&canonical), "{size}");
        }
    }
}
