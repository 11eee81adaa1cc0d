//! Entries that have expired: reads of them, and the sweep that gives their memory back.
//!
//! What expiry is stands in `partition.rs`.

use super::{
    Executor,
    requests::{Awaited, Origin, Waiting},
    token,
};
use crate::clock;
use kv_proto::{ids::PartitionId, response::Response};
use kv_replication::clock::Instant64;

/// How many deletes a partition proposes in one sweep.
const SWEEP_ENTRIES: usize = 64;

impl Executor {
    /// Reads a key once the replica is sure that it leads, and that the entry has expired is committed, if it has. An answer
    /// is returned only if there is one at once.
    pub(super) fn read_later(
        &mut self,
        now: Instant64,
        origin: Origin,
        deadline: Instant64,
        id: PartitionId,
        key: &[u8],
    ) -> Option<Response<'static>> {
        if let Some(refused) = self.refuse_to_wait() {
            return Some(refused);
        }
        let wall_ms = clock::wall_ms();
        if self.partition(id).is_some_and(|p| p.has_expired(key, wall_ms))
            && let Err(full) = self.check_log(id, None)
        {
            return Some(Response::Error(full));
        }
        let partition = self.partitions[usize::from(id.0)].as_deref_mut().expect("an owner has its partition");
        let held = partition.replica.held_bytes();
        let actions = &mut self.actions;
        let waits = self.waiting.try_insert_with_key(|waiting| {
            partition.read_later(now, wall_ms, key, token(waiting), actions)?;
            Ok(Waiting { origin: Some(origin), deadline, partition: id, awaited: Awaited::Read(key.into()) })
        });
        self.held_bytes += partition.replica.held_bytes() - held;
        match waits {
            Ok(_) => {
                self.carry_out(id);
                None
            }
            Err(refusal) => Some(Response::Error(self.refuse(id, refusal))),
        }
    }

    /// Proposes to delete what has expired, in every partition that takes writes.
    pub(super) fn sweep_expired(&mut self, now: Instant64) {
        self.sweep_again = false;
        if self.draining {
            return;
        }
        let wall_ms = clock::wall_ms();
        for at in 0..self.owned.len() {
            if self.refuse_to_wait().is_some() {
                return;
            }
            let id = self.owned[at];
            if self.check_log(id, None).is_err() {
                continue;
            }
            let Some(partition) = self.partitions[usize::from(id.0)].as_deref_mut() else { continue };
            let held = partition.replica.held_bytes();
            self.sweep_again |= partition.sweep(now, wall_ms, SWEEP_ENTRIES, &mut self.actions);
            self.held_bytes += partition.replica.held_bytes() - held;
            self.carry_out(id);
        }
    }
}
