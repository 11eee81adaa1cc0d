//! Operation ids: each write of a client has one, the same over all its attempts, so that it is applied at most once.
//!
//! A partition remembers only the last operations. Whether an id is older than those is told by the LSN that it knows, the
//! greatest of the partition that the client has seen when it makes the id: see [`Response::TooOld`].
//!
//! [`Response::TooOld`]: kv_proto::response::Response::TooOld

use kv_proto::ids::{ClientId, Lsn, OperationId, PartitionId, Version};
use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Makes the ids of one client's writes: for who sends requests by a [`crate::Pipeline`] and asks again with the same id. A
/// [`crate::Client`] has its own.
#[derive(Debug)]
pub struct OperationIds {
    client: ClientId,
    next: AtomicU64,
    /// By partition the last version that is known of it. A lock each: writes of all callers come here.
    known: OnceLock<Box<[Mutex<Option<Version>>]>>,
}

impl OperationIds {
    /// Those of a client that there was never before.
    #[must_use]
    pub fn of_new_client() -> Self {
        OperationIds::new(ClientId(rand::random()))
    }

    pub(crate) fn new(client: ClientId) -> Self {
        OperationIds { client, next: AtomicU64::new(1), known: OnceLock::new() }
    }

    /// The id of a new write to a partition of so many.
    pub fn next(&self, partition: PartitionId, partitions: u16) -> OperationId {
        let known = self.known.get_or_init(|| (0..partitions).map(|_| Mutex::default()).collect());
        let version = known.get(usize::from(partition.0)).and_then(|known| *lock(known));
        let known_lsn = version.map_or(Lsn(0), |version| version.lsn);
        OperationId { client: self.client, sequence: self.next.fetch_add(1, Relaxed), known_lsn }
    }

    /// The partition was asked with an id that is too old, and has committed this version now. That counts even if more was
    /// known: what was only in memory can be lost. An id that knows less than it could does no harm.
    pub fn begin_anew(&self, partition: PartitionId, version: Version) {
        if let Some(known) = self.known.get().and_then(|known| known.get(usize::from(partition.0))) {
            *lock(known) = Some(version);
        }
    }

    /// The partition has committed this version.
    pub fn learn(&self, partition: PartitionId, version: Version) {
        let known = self.known.get().and_then(|known| known.get(usize::from(partition.0)));
        if let Some(mut known) = known.map(lock) {
            // Histories have no order. What was known of another one was given up with it.
            if known.is_none_or(|known| known.history != version.history || known.lsn < version.lsn) {
                *known = Some(version);
            }
        }
    }
}

fn lock(known: &Mutex<Option<Version>>) -> MutexGuard<'_, Option<Version>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::HistoryId;

    #[test]
    fn each_id_is_another_and_knows_the_newest_that_was_seen() {
        let ids = OperationIds::new(ClientId(7));
        let version = |history, lsn| Version { history: HistoryId(history), lsn: Lsn(lsn) };
        ids.learn(PartitionId(1), version(0, 4));
        let next = |partition| {
            let OperationId { client, sequence, known_lsn } = ids.next(PartitionId(partition), 2);
            assert_eq!(client, ClientId(7));
            (sequence, known_lsn.0)
        };
        assert_eq!((next(0), next(1)), ((1, 0), (2, 0)));
        ids.learn(PartitionId(1), version(0, 5));
        ids.learn(PartitionId(1), version(0, 3));
        assert_eq!((next(0), next(1)), ((3, 0), (4, 5)));
        ids.begin_anew(PartitionId(1), version(0, 3));
        assert_eq!(next(1), (5, 3));
        ids.learn(PartitionId(1), version(9, 2));
        ids.learn(PartitionId(7), version(9, 2));
        assert_eq!((next(1), next(7)), ((6, 2), (7, 0)), "what was given up with a history is not known any more");
    }
}
