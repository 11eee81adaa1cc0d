//! A walk over a table that changes meanwhile: what a checkpoint and a copy for another replica are made by.
//!
//! The walk goes by hashes, from the lowest to the highest. Of a segment it remembers the hashes that are there when
//! it comes to it, and looks each up when its turn is: a split moves entries and not their hashes.
//!
//! # Invariants
//! * An entry that is in the table during the whole walk is visited, in the form that it has at that moment.
//! * One that comes, goes or changes meanwhile may be visited or not. Who then replays what was written since the walk
//!   began, by [`Table::put_if_newer`] and [`Table::remove_if_older`], has the table as it is.

use super::{Entry, Table};

/// What looking at an entry's hash counts, in bytes of a slice.
const HASH_BYTES: usize = 16;
/// What a visit counts beside the bytes of the entry.
const VISIT_BYTES: usize = 64;

/// Where a walk is.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// The hashes of the segment that is being walked, the next one last.
    hashes: Vec<u64>,
    /// Where the next segment begins.
    next: Option<u64>,
    started: bool,
}

impl Walk {
    /// A walk at its beginning.
    #[must_use]
    pub fn new() -> Self {
        Walk::default()
    }

    /// Visits entries of about `max_bytes` in all, at least one; says whether the walk is done. Entries of the same
    /// hash are visited together.
    pub fn next_chunk(&mut self, table: &Table, max_bytes: usize, visit: &mut impl FnMut(&[u8], Entry<'_>)) -> bool {
        if !self.started {
            (self.started, self.next) = (true, Some(0));
        }
        let mut bytes = 0;
        loop {
            while let Some(hash) = self.hashes.pop() {
                for stored in table.segments.with_hash(hash) {
                    visit(stored.key(), stored.entry());
                    bytes += VISIT_BYTES + stored.user_bytes() as usize;
                }
                if bytes >= max_bytes {
                    return self.hashes.is_empty() && self.next.is_none();
                }
            }
            let Some(from) = self.next else { return true };
            let (mut hashes, last) = table.segments.hashes(from);
            hashes.reverse();
            bytes += HASH_BYTES * (1 + hashes.len());
            (self.hashes, self.next) = (hashes, last.checked_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{effect::Expiry, ids::Lsn};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Write {
        Put { key: u16, value: Vec<u8>, expires: Option<Expiry> },
        Remove { key: u16 },
    }

    /// Some keys share their hashes.
    fn key_of(key: u16) -> Vec<u8> {
        if key.is_multiple_of(10) {
            vec![b'=', (key % 3) as u8, (key >> 8) as u8, key as u8]
        } else {
            key.to_le_bytes().to_vec()
        }
    }

    fn writes(count: usize) -> impl Strategy<Value = Vec<Write>> {
        let key = 0..400u16;
        let expires = prop_oneof![3 => Just(None), 1 => (0..5u64).prop_map(Expiry::from_ms)];
        let put = (key.clone(), prop::collection::vec(any::<u8>(), 0..30), expires)
            .prop_map(|(key, value, expires)| Write::Put { key, value, expires });
        prop::collection::vec(prop_oneof![2 => put, 1 => key.prop_map(|key| Write::Remove { key })], 0..count)
    }

    fn apply(table: &mut Table, lsn: u64, write: &Write, replay: bool) {
        match write {
            Write::Put { key, value, expires } => {
                let entry = Entry { lsn: Lsn(lsn), expires: *expires, content_type: "t", value };
                if replay { table.put_if_newer(&key_of(*key), entry) } else { table.put(&key_of(*key), entry) }
            }
            Write::Remove { key } if replay => table.remove_if_older(Lsn(lsn), &key_of(*key)),
            Write::Remove { key } => table.remove(&key_of(*key)),
        }
    }

    fn all(table: &Table) -> BTreeSet<(Vec<u8>, u64)> {
        let mut all = BTreeSet::new();
        let done = Walk::new().next_chunk(table, usize::MAX, &mut |key, entry| {
            assert!(all.insert((key.to_vec(), entry.lsn.0)), "twice");
        });
        assert!(done && all.len() as u64 == table.keys());
        all
    }

    proptest! {
        #[test]
        fn a_copy_with_the_writes_since_is_the_table(
            before in writes(600), slices in prop::collection::vec((writes(60), 0..2000usize), 1..30),
        ) {
            let (mut table, mut lsn) = (Table::default(), 0);
            for write in &before {
                lsn += 1;
                apply(&mut table, lsn, write, false);
            }
            let (start, at_start, mut changed) = (lsn, all(&table), BTreeSet::new());
            let (mut walk, mut copy, mut visited, mut since) = (Walk::new(), Table::default(), BTreeSet::new(), vec![]);
            let mut slices = slices.into_iter();
            loop {
                let (writes, max_bytes) = slices.next().unwrap_or((vec![], 1000));
                for write in writes {
                    lsn += 1;
                    apply(&mut table, lsn, &write, false);
                    let (Write::Put { key, .. } | Write::Remove { key }) = write;
                    changed.insert(key_of(key));
                    since.push(write);
                }
                let done = walk.next_chunk(&table, max_bytes, &mut |key, entry| {
                    assert_eq!(table.get(key), Some(entry));
                    visited.insert(key.to_vec());
                    copy.put(key, entry);
                });
                if done {
                    break;
                }
            }
            for (key, _) in at_start {
                prop_assert!(visited.contains(&key) || changed.contains(&key), "{key:?} was there all the time");
            }
            for (lsn, write) in (start + 1..).zip(&since) {
                apply(&mut copy, lsn, write, true);
            }
            let sums = |t: &Table| (t.keys(), t.bytes(), t.digest());
            prop_assert_eq!(sums(&copy), sums(&table));
            prop_assert_eq!(all(&copy), all(&table));
            let expired = |t: &Table| t.expired(4, usize::MAX).into_iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(expired(&copy), expired(&table));
        }
    }

    #[test]
    fn slices_are_bounded_whatever_the_values_are() {
        let mut table = Table::default();
        let value = vec![0; 10_000];
        for key in 0..50u16 {
            table.put(&key.to_le_bytes(), Entry { lsn: Lsn(1), expires: None, content_type: "", value: &value });
        }
        let (mut walk, mut slices, mut visited) = (Walk::new(), 0, 0);
        loop {
            let mut now = 0;
            let done = walk.next_chunk(&table, 25_000, &mut |_, _| now += 1);
            (slices, visited) = (slices + 1, visited + now);
            assert!(now <= 3, "{now}");
            if done {
                break;
            }
        }
        assert_eq!((visited, slices), (50, 17));
        assert!(Walk::new().next_chunk(&Table::default(), 0, &mut |_, _| panic!("nothing is there")));
    }
}
