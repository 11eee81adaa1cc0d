//! The state that the entries make: the cluster. `Cluster::apply` is the one check of what changes it.
//!
//! # Invariants
//! * What was applied is on disk before it is published, and before who asked for it is answered.

use super::{
    Entry, Outcome, Types,
    disk::{Disk, DiskError},
    log_store::failed,
};
use crate::controller::kept::Kept;
use kv_replication::cluster::{Cluster, Command};
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageError, StorageIOError, StoredMembership, storage::RaftStateMachine,
};
use serde::{Deserialize, Serialize};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use tokio::sync::watch;

/// What was applied, and what it made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) last: Option<LogId<u64>>,
    pub(crate) membership: StoredMembership<u64, ()>,
    pub(crate) cluster: Option<Kept>,
}

/// A snapshot as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptSnapshot {
    meta: SnapshotMeta<u64, ()>,
    cluster: Option<Kept>,
}

/// The state machine.
pub(crate) struct StateMachine {
    disk: Disk,
    state: State,
    /// The cluster, when it has changed.
    clusters: watch::Sender<Arc<Cluster>>,
    /// Index of the last entry that was applied.
    applied: watch::Sender<u64>,
}

impl StateMachine {
    /// The state as it is on disk; told from now on to `clusters` and `applied`.
    pub(crate) fn open(
        disk: Disk,
        clusters: watch::Sender<Arc<Cluster>>,
        applied: watch::Sender<u64>,
    ) -> Result<Self, DiskError> {
        let state: State = disk.read("applied")?.unwrap_or_default();
        let machine = StateMachine { disk, state, clusters, applied };
        machine.publish();
        Ok(machine)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    fn publish(&self) {
        if let Some(Kept(cluster)) = &self.state.cluster {
            self.clusters.send_if_modified(|published| {
                let changed =
                    published.map.version != cluster.map.version || published.map.cluster != cluster.map.cluster;
                if changed {
                    *published = cluster.clone();
                }
                changed
            });
        }
        self.applied.send_replace(self.state.last.map_or(0, |last| last.index));
    }

    /// Makes `next` the state.
    async fn take(&mut self, next: State, snapshot: Option<KeptSnapshot>) -> Result<(), DiskError> {
        let kept = next.clone();
        self.disk
            .write(move |writing| {
                if let Some(snapshot) = snapshot {
                    writing.put("snapshot", &snapshot)?;
                }
                writing.put("applied", &kept)
            })
            .await?;
        self.state = next;
        self.publish();
        Ok(())
    }
}

/// Applies one entry.
fn apply(state: &mut State, entry: Entry) -> Outcome {
    let command = match (entry, &state.cluster) {
        (Entry::Begin(_), Some(_)) => return Outcome::Nothing,
        (Entry::Begin(cluster), None) => {
            state.cluster = Some(cluster);
            return Outcome::Nothing;
        }
        (_, None) => return Outcome::NoCluster,
        (Entry::Register { cluster, node }, Some(_)) => Command::Register { cluster, node },
        (Entry::Propose(proposals), Some(_)) => Command::Propose(proposals),
        (Entry::DisregardStrangers, Some(_)) => Command::DisregardStrangers,
    };
    let Some(Kept(cluster)) = &mut state.cluster else { return Outcome::NoCluster };
    match Arc::make_mut(cluster).apply(&command) {
        Ok(applied) => applied.into(),
        Err(refusal) => Outcome::Refused(refusal.to_string()),
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, ()>), StorageError<u64>> {
        Ok((self.state.last, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<u64>>
    where
        I: IntoIterator<Item = openraft::Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut next, mut outcomes) = (self.state.clone(), Vec::new());
        for entry in entries {
            next.last = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Nothing,
                EntryPayload::Normal(command) => {
                    // Nobody looks at what a panic left half done: openraft ends.
                    let applied = catch_unwind(AssertUnwindSafe(|| apply(&mut next, command)));
                    let panicked =
                        |_| StorageIOError::apply(entry.log_id, AnyError::error("applying an entry panicked"));
                    applied.map_err(panicked)?
                }
                EntryPayload::Membership(membership) => {
                    next.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Nothing
                }
            });
        }
        let taken = self.take(next, None).await;
        taken.map_err(|e| failed(ErrorSubject::StateMachine, ErrorVerb::Write, &e))?;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { disk: self.disk.clone(), state: self.state.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Option<Kept>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, ()>,
        snapshot: Box<Option<Kept>>,
    ) -> Result<(), StorageError<u64>> {
        let cluster = *snapshot;
        let next = State { last: meta.last_log_id, membership: meta.last_membership.clone(), cluster: cluster.clone() };
        let taken = self.take(next, Some(KeptSnapshot { meta: meta.clone(), cluster })).await;
        taken.map_err(|e| failed(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, &e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let kept: Option<KeptSnapshot> =
            self.disk.read("snapshot").map_err(|e| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, &e))?;
        Ok(kept.map(|kept| Snapshot { meta: kept.meta, snapshot: Box::new(kept.cluster) }))
    }
}

/// Makes a snapshot of the state as it was.
pub(crate) struct Builder {
    disk: Disk,
    state: State,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let State { last, membership, cluster } = self.state.clone();
        // Whoever applied the same has the same, so that the position is name enough.
        let snapshot_id = last.map_or_else(|| "0".to_owned(), |last| last.to_string());
        let meta = SnapshotMeta { last_log_id: last, last_membership: membership, snapshot_id };
        let kept = KeptSnapshot { meta: meta.clone(), cluster: cluster.clone() };
        let written = self.disk.write(move |writing| writing.put("snapshot", &kept)).await;
        written.map_err(|e| failed(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, &e))?;
        Ok(Snapshot { meta, snapshot: Box::new(cluster) })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::log_store::LogStore, *};
    use crate::controller::kept::tests::cluster;
    use openraft::testing::{StoreBuilder, Suite};
    use tempfile::TempDir;

    struct OnDisk;

    impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for OnDisk {
        async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<u64>> {
            let dir = tempfile::tempdir().expect("a folder");
            let disk = Disk::open(dir.path()).expect("an empty disk");
            let clusters = watch::Sender::new(Arc::new(cluster()));
            let machine = StateMachine::open(disk.clone(), clusters, watch::Sender::new(0)).expect("no state yet");
            Ok((dir, LogStore(disk), machine))
        }
    }

    /// What openraft demands of a store.
    #[test]
    fn the_store_is_what_openraft_takes_it_for() {
        Suite::test_all(OnDisk).expect("all of it");
    }
}
