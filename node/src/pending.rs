//! What the pending writes of a leader will make of each key: conditions are decided against what is prepared, not
//! only against what is committed.

use hashbrown::HashTable;
use kv_proto::{
    effect::{Effect, Expiry},
    ids::Lsn,
};
use kv_storage::key_hash;
use std::sync::Arc;

/// The last pending write of each key that has one.
#[derive(Default)]
pub(crate) struct Pending {
    writes: HashTable<Write>,
}

struct Write {
    lsn: Lsn,
    payload: Arc<[u8]>,
}

/// A value that a key has, or will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    /// The record that writes it.
    pub(crate) lsn: Lsn,
    /// When it expires.
    pub(crate) expires: Option<Expiry>,
}

impl Current {
    pub(crate) fn has_expired(&self, wall_ms: u64) -> bool {
        self.expires.is_some_and(|e| e.is_due(wall_ms))
    }
}

fn effect(payload: &[u8]) -> Effect<'_> {
    Effect::decode(payload).expect("an effect that this node encoded, or checked when it came in")
}

impl Pending {
    /// The write at `lsn`, the newest of all, is prepared.
    pub(crate) fn insert(&mut self, lsn: Lsn, payload: Arc<[u8]>) {
        let key_of = |write: &Write| effect(&write.payload).key().map_or(0, key_hash);
        let shared = payload.clone();
        let Some(key) = effect(&shared).key() else { return };
        match self.writes.entry(key_hash(key), |w| effect(&w.payload).key() == Some(key), key_of) {
            hashbrown::hash_table::Entry::Occupied(mut found) => *found.get_mut() = Write { lsn, payload },
            hashbrown::hash_table::Entry::Vacant(place) => {
                place.insert(Write { lsn, payload });
            }
        }
    }

    /// The write at `lsn` is applied.
    pub(crate) fn remove(&mut self, lsn: Lsn, key: &[u8]) {
        let same = |w: &Write| w.lsn == lsn && effect(&w.payload).key() == Some(key);
        if let Ok(found) = self.writes.find_entry(key_hash(key), same) {
            found.remove();
        }
    }

    /// Whether the key has a pending write, and if so the value that it will have; `Some(None)` says that it will have
    /// none.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Current>> {
        let write = self.writes.find(key_hash(key), |w| effect(&w.payload).key() == Some(key))?;
        Some(match effect(&write.payload) {
            Effect::Put { expires, .. } => Some(Current { lsn: write.lsn, expires }),
            Effect::Delete { .. } | Effect::Outcome(_) | Effect::Nothing => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_pending_write_of_a_key_counts_until_it_is_applied() {
        let expires = Expiry::from_ms(7);
        let put = |value| Arc::from(Effect::Put { key: b"k", content_type: "", value, expires }.encode());
        let delete = Arc::from(Effect::Delete { key: b"k" }.encode());
        let mut pending = Pending::default();
        assert_eq!(pending.get(b"k"), None);
        pending.insert(Lsn(1), put(b"a"));
        assert_eq!(pending.get(b"k"), Some(Some(Current { lsn: Lsn(1), expires })));
        pending.insert(Lsn(2), delete);
        assert_eq!(pending.get(b"k"), Some(None));
        pending.remove(Lsn(1), b"k");
        assert_eq!(pending.get(b"k"), Some(None), "an older write does not take the newer one with it");
        pending.remove(Lsn(2), b"k");
        assert_eq!(pending.get(b"k"), None);
        assert_eq!(pending.get(b"other"), None);
    }
}
