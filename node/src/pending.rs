//! What the pending writes of a leader will make of each key, and what became of those with an operation id: writes are
//! decided against what is prepared, not only against what is committed.

use hashbrown::HashTable;
use kv_proto::{
    effect::{Effect, Expiry},
    ids::{ClientId, Lsn, OperationId},
};
use kv_storage::{key_hash, operations::Done};
use std::{collections::HashMap, sync::Arc};

/// The last pending write of each key that has one, and the pending operations.
#[derive(Default)]
pub(crate) struct Pending {
    writes: HashTable<Write>,
    operations: HashMap<(ClientId, u64), (Lsn, Done)>,
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

    /// What was prepared from this LSN on will not be.
    pub(crate) fn cut(&mut self, from: Lsn) {
        // Of a key whose last write goes, an earlier one may stay; but who cuts its log serves only when all that is left
        // is applied.
        self.writes.retain(|write| write.lsn < from);
        self.operations.retain(|_, (lsn, _)| *lsn < from);
    }

    /// The record of an operation is prepared at `lsn`, and says this of it.
    pub(crate) fn insert_operation(&mut self, lsn: Lsn, id: OperationId, done: Done) {
        self.operations.insert((id.client, id.sequence), (lsn, done));
    }

    /// The record of an operation is applied.
    pub(crate) fn remove_operation(&mut self, id: &OperationId) {
        self.operations.remove(&(id.client, id.sequence));
    }

    /// What becomes of an operation whose record is pending.
    pub(crate) fn operation(&self, id: &OperationId) -> Option<Done> {
        self.operations.get(&(id.client, id.sequence)).map(|(_, done)| *done)
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

    #[test]
    fn what_is_cut_is_not_pending() {
        let id = |sequence| OperationId { client: ClientId(1), sequence, known_lsn: Lsn(0) };
        let delete = |key: u8| Arc::from(Effect::Delete { key: &[key] }.encode());
        let mut pending = Pending::default();
        for lsn in 1..=3u8 {
            pending.insert(Lsn(lsn.into()), delete(lsn));
            pending.insert_operation(Lsn(lsn.into()), id(lsn.into()), Done::Written(Lsn(lsn.into())));
        }
        pending.remove_operation(&id(1));
        pending.cut(Lsn(3));
        assert_eq!((pending.get(&[2]), pending.get(&[3])), (Some(None), None));
        let operations = [1, 2, 3].map(|sequence| pending.operation(&id(sequence)));
        assert_eq!(operations, [None, Some(Done::Written(Lsn(2))), None]);
    }
}
