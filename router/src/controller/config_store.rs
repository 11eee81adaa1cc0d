//! The only door to the cluster's configuration: [`ConfigStore::get`], [`ConfigStore::cas`], [`ConfigStore::watch`].
//!
//! Behind it, one controller or three agree on the order of commands by Raft (`raft/`). Whoever comes through the
//! door sees nothing of that: a command is carried out wherever it is given, by the leader, to which the others pass it on.
//! Commands are compare-and-sets by what they say (a proposal names the epoch that it replaces), so that one whose answer
//! was lost may be given again.
//!
//! # Invariants
//! * A change is on the disks of a majority, this one's too, before anyone here sees it.
//! * After a write that failed, or a panic, nothing is changed or said any more: the process must end, and read its disk again.
//!
//! [`ConfigStore::get`] and [`ConfigStore::watch`] say what was agreed on as far as this controller knows, which may be
//! old while it cannot reach the others. That is harmless: replicas act on configurations by their epochs, and a
//! map with an older epoch changes nothing for them; and no decision is made from it but those that can never change.

use super::{
    error::{CasError, OpenError},
    kept::Kept,
    old_file,
    raft::{
        Entry, Outcome, Raft,
        disk::{Disk, DiskError, InUse},
        keeper::Keeper,
        log_store::LogStore,
        messages::{self, Identity, Request, Response},
        network::Network,
        peers::{Peers, made},
        state_machine::StateMachine,
    },
    settled::decided_for_good,
};
use kv_proto::ids::ClusterId;
use kv_replication::cluster::{Cluster, Command, Shape};
use openraft::{
    SnapshotPolicy,
    error::{ClientWriteError, RaftError},
};
use serde::Serialize;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long a command may take: an election, and a little more.
const CAS_TIMEOUT: Duration = Duration::from_secs(4);
/// After how long without an answer of a majority the leading controller says that there is none.
const MAJORITY_SILENCE_MS: u64 = 3000;
/// How soon a command is given again when there was no leader to carry it out.
const LEADER_POLL: Duration = Duration::from_millis(50);
/// How long what the leader applied may take to arrive here, before its answer is told all the same.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what still uses the folder may take to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// A snapshot is made every so many entries; a few entries are kept for controllers that lag a little.
const ENTRIES_PER_SNAPSHOT: u64 = 200;
const ENTRIES_KEPT: u64 = 50;
/// How long the sending of a snapshot may take, in milliseconds.
const SNAPSHOT_TIMEOUT_MS: u64 = 10_000;

/// What became of a command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node is known by what it said.
    Registered,
    /// What became of each proposal, in their order; with `None` it was carried out.
    Decided(Vec<Option<String>>),
    /// It was done, and there is nothing to say of it.
    Done,
}

/// How controllers agree.
#[derive(Clone, Debug)]
pub struct Consensus {
    /// Addresses of all controllers, this one among them; none for an only one.
    pub peers: Vec<String>,
    /// How often the leader says that it is there, in milliseconds.
    pub heartbeat_ms: u64,
    /// After how long of silence another one wants to lead, in milliseconds: at least this, at most twice
    /// as long.
    pub election_ms: u64,
}

/// Who the controllers are, as one of them sees it; ids as hexadecimal digits.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// The one that says so.
    pub id: String,
    /// The one that leads, if it is known.
    pub leader: Option<String>,
    /// Those that count.
    pub voters: Vec<Voter>,
    /// Whether a majority of them is there, as far as this one knows: without it the cluster map cannot change.
    pub has_majority: bool,
}

/// A controller that has a vote.
#[derive(Clone, Debug, Serialize)]
pub struct Voter {
    /// Its id.
    pub id: String,
    /// Where it was found last.
    pub address: Option<String>,
}

/// Keeps the cluster; cheap to clone, all clones are the same store.
#[derive(Clone)]
pub struct ConfigStore {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    id: u64,
    peers: Arc<Peers>,
    clusters: watch::Receiver<Arc<Cluster>>,
    /// Index of the last entry that was applied here.
    applied: watch::Receiver<u64>,
    failure: watch::Sender<Option<String>>,
    keeper: AbortHandle,
    folder: InUse,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl ConfigStore {
    /// Opens the store in `dir`. An only controller makes a new cluster of `shape` if there is none; of several, the leader
    /// does so once all of them are there.
    ///
    /// # Errors
    /// When the folder or what is in it cannot be used, or holds a cluster of another shape.
    pub async fn open(dir: &Path, shape: Shape, consensus: &Consensus) -> Result<Self, OpenError> {
        let folder = dir.to_path_buf();
        let open = move || Ok::<_, OpenError>((Disk::open(&folder)?, old_file::read(&folder)?));
        let opened = tokio::task::spawn_blocking(open).await;
        let (disk, old) = opened.map_err(|e| OpenError::Consensus(e.to_string()))??;
        Self::start(dir, shape, consensus, disk, old).await
    }

    /// Starts on what was opened; `old` is what an earlier version kept.
    async fn start(
        dir: &Path,
        shape: Shape,
        consensus: &Consensus,
        disk: Disk,
        old: Option<Kept>,
    ) -> Result<Self, OpenError> {
        let (clusters, clusters_seen) = watch::channel(Arc::new(Cluster::new(ClusterId(0), shape)?));
        let (applied, applied_seen) = watch::channel(0);
        let machine = StateMachine::open(disk.clone(), clusters, applied);
        let machine = machine.map_err(|e: DiskError| OpenError::damaged(&disk.path(), &e))?;
        let kept = machine.state().cluster.clone();
        if let (Some(Kept(kept)), Some(Kept(old))) = (&kept, &old)
            && (kept.map.cluster != old.map.cluster || kept.map.version < old.map.version)
        {
            return Err(OpenError::TwoMaps { dir: dir.to_path_buf() });
        }
        if let Some(Kept(cluster)) = kept.as_ref().or(old.as_ref()) {
            same_shape(dir, cluster.shape(), shape)?;
        }
        let voters = machine.state().membership.membership().voter_ids().count();
        if consensus.peers.is_empty() && voters > 1 {
            return Err(OpenError::NotAlone { dir: dir.to_path_buf(), voters });
        }

        let (id, in_use, path) = (disk.id(), disk.in_use(), disk.path());
        let peers = Arc::new(Peers::new(consensus.peers.clone(), clusters_seen.clone()));
        let failed = |e: &dyn std::fmt::Display| OpenError::Consensus(e.to_string());
        let config = configuration(consensus).map_err(|e| failed(&e))?;
        let raft = Raft::new(id, Arc::new(config), Network(peers.clone()), LogStore(disk), machine).await;
        let raft = raft.map_err(|e| OpenError::damaged(&path, &e))?;
        let has_old = old.is_some();
        // What an earlier version kept alone is the beginning, and nobody else's is.
        if consensus.peers.is_empty() || has_old {
            let initialized = raft.is_initialized().await.map_err(|e| failed(&e))?;
            if !initialized {
                raft.initialize(std::collections::BTreeSet::from([id])).await.map_err(|e| failed(&e))?;
            }
        }
        let first = match old {
            Some(old) => old,
            None => Cluster::new(ClusterId(rand::random_range(1..=u128::MAX)), shape)?.into(),
        };
        let failure = watch::Sender::new(None);
        let keeper = Keeper { raft: raft.clone(), id, peers: peers.clone(), clusters: clusters_seen.clone(), first };
        let (dir, told, seen) = (dir.to_path_buf(), failure.clone(), clusters_seen.clone());
        let keeper = tokio::spawn(async move {
            let first_look = async {
                if let Err(error) = once_made(seen, &dir, shape, has_old).await {
                    told.send_replace(Some(error.to_string()));
                }
            };
            tokio::join!(keeper.run(), first_look);
        });
        let store = ConfigStore {
            inner: Arc::new(Inner {
                raft,
                id,
                peers,
                clusters: clusters_seen,
                applied: applied_seen,
                failure,
                keeper: keeper.abort_handle(),
                folder: in_use,
            }),
        };
        if consensus.peers.is_empty() {
            let mut seen = store.watch();
            let made = tokio::select! {
                made = seen.wait_for(|c| made(c).is_some()) => made.map(|_| ()).map_err(|e| failed(&e)),
                why = store.failed() => Err(failed(&why)),
            };
            made?;
        }
        Ok(store)
    }

    /// The cluster as it is now, as far as this controller knows; with the id 0 and no nodes as long as none was made.
    #[must_use]
    pub fn get(&self) -> Arc<Cluster> {
        self.inner.clusters.borrow().clone()
    }

    /// The id of the cluster, once it was made.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        made(&self.inner.clusters.borrow())
    }

    /// Carries out a command, and returns when its change is on disk and published.
    ///
    /// # Errors
    /// See [`CasError`]; all but [`CasError::Refused`] may have changed something.
    pub async fn cas(&self, command: Command) -> Result<Decision, CasError> {
        if let Some(why) = self.inner.failure.borrow().clone() {
            return Err(CasError::Unknown(why));
        }
        if let Some(known) = decided_for_good(&self.get(), &command) {
            return known;
        }
        let deadline = Instant::now() + CAS_TIMEOUT;
        let outcome = timeout_at(deadline, self.inner.carry_out(command.into()));
        match outcome.await.unwrap_or(Err(CasError::NoLeader))? {
            Outcome::Registered => Ok(Decision::Registered),
            Outcome::Decided(decided) => Ok(Decision::Decided(decided)),
            Outcome::Refused(why) => Err(CasError::Refused(why)),
            Outcome::Nothing => Ok(Decision::Done),
            Outcome::NoCluster => Err(CasError::NoLeader),
        }
    }

    /// Tells of every change; who is slow sees only the newest.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Cluster>> {
        self.inner.clusters.clone()
    }

    /// Who the controllers are.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let text = |id: u64| format!("{id:016x}");
        let voters = metrics.membership_config.membership().voter_ids();
        let has_majority = match metrics.current_leader {
            Some(leader) if leader == self.inner.id && self.has_peers() => {
                metrics.millis_since_quorum_ack.is_none_or(|ms| ms < MAJORITY_SILENCE_MS)
            }
            leader => leader.is_some(),
        };
        Standing {
            has_majority,
            id: text(self.inner.id),
            leader: metrics.current_leader.map(text),
            voters: voters.map(|id| Voter { id: text(id), address: self.inner.peers.address(id) }).collect(),
        }
    }

    /// Waits until the store has failed for good, and says why.
    pub async fn failed(&self) -> String {
        let (mut failure, mut metrics) = (self.inner.failure.subscribe(), self.inner.raft.metrics());
        tokio::select! {
            failed = failure.wait_for(Option::is_some) => match failed {
                Ok(why) => why.clone().unwrap_or_default(),
                Err(error) => error.to_string(),
            },
            stopped = metrics.wait_for(|m| m.running_state.is_err()) => {
                let why = stopped.map_or_else(|e| e.to_string(), |m| match &m.running_state {
                    Err(fatal) => format!("what was agreed on may not have been written ({fatal}); check the disk"),
                    Ok(()) => String::new(),
                });
                self.inner.failure.send_replace(Some(why.clone()));
                why
            }
        }
    }

    /// Stops, and returns when the folder is free for another process.
    pub async fn stop(&self) {
        self.inner.keeper.abort();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the consensus ended badly");
        }
        // The tasks that openraft leaves behind end on their own.
        let released = async {
            while !self.inner.folder.is_over() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(RELEASE_TIMEOUT, released).await.is_err() {
            tracing::warn!("the data folder is still in use");
        }
    }

    /// This controller's id.
    pub(super) fn id(&self) -> u64 {
        self.inner.id
    }

    /// Whether there are other controllers.
    pub(super) fn has_peers(&self) -> bool {
        !self.inner.peers.addresses.is_empty()
    }

    /// Answers what another controller asks.
    pub(super) async fn answer(&self, body: &[u8]) -> Response {
        let identity = async {
            let mut peers = self.inner.peers.addresses.clone();
            peers.sort_unstable();
            let has_data = self.inner.raft.is_initialized().await.unwrap_or(true);
            Identity { id: self.inner.id, has_data, cluster: self.cluster(), peers }
        };
        messages::answer(&self.inner.raft, identity, self.inner.id, body).await
    }
}

impl Inner {
    /// Has the leader carry out an entry, whoever it is; tries until it is left.
    async fn carry_out(&self, entry: Entry) -> Result<Outcome, CasError> {
        let request = Request::CarryOut(entry.clone());
        loop {
            let leader = match self.raft.client_write(entry.clone()).await {
                Ok(written) => return Ok(written.data),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => forward.leader_id,
                Err(RaftError::APIError(error)) => return Err(CasError::Unknown(error.to_string())),
                Err(RaftError::Fatal(fatal)) => return Err(CasError::Unknown(fatal.to_string())),
            };
            if let Some(leader) = leader.filter(|leader| *leader != self.id) {
                match self.peers.ask(leader, &request).await {
                    Ok(Response::CarriedOut { outcome, index }) => {
                        // Who asks next shall find here what was changed.
                        let mut applied = self.applied.clone();
                        let _ = timeout(ARRIVAL_TIMEOUT, applied.wait_for(|applied| *applied >= index)).await;
                        return Ok(outcome);
                    }
                    Ok(other) => tracing::debug!("controller {leader} did not carry out a command: {other:?}"),
                    Err(error) => tracing::debug!("controller {leader} cannot be asked: {error}"),
                }
            }
            sleep(LEADER_POLL).await;
        }
    }
}

fn configuration(consensus: &Consensus) -> Result<openraft::Config, String> {
    let config = openraft::Config {
        cluster_name: "controllers".to_owned(),
        heartbeat_interval: consensus.heartbeat_ms,
        // openraft waits for the greatest timeout, in which the old leader may still lead, and then for one of these.
        election_timeout_min: consensus.election_ms / 2,
        election_timeout_max: consensus.election_ms,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        ..Default::default()
    };
    config.validate().map_err(|e| e.to_string())
}

/// What is to be done once there is a cluster, whoever has made it.
///
/// # Errors
/// When it was made otherwise than this controller was told.
async fn once_made(
    mut clusters: watch::Receiver<Arc<Cluster>>,
    dir: &Path,
    asked: Shape,
    has_old: bool,
) -> Result<(), OpenError> {
    let made = clusters.wait_for(|c| made(c).is_some()).await.map(|c| c.shape());
    let Ok(kept) = made else { return Ok(()) };
    if has_old && let Err(error) = old_file::set_aside(dir) {
        tracing::warn!(%error, "the file of an earlier version could not be renamed");
    }
    same_shape(dir, kept, asked)
}

fn same_shape(dir: &Path, kept: Shape, asked: Shape) -> Result<(), OpenError> {
    for (flag, kept, asked) in [
        ("shards", kept.shards.to_string(), asked.shards.to_string()),
        ("replicas", kept.replicas.to_string(), asked.replicas.to_string()),
        ("partitions", kept.partitions.to_string(), asked.partitions.to_string()),
        ("ack", kept.ack.to_string(), asked.ack.to_string()),
    ] {
        if kept != asked {
            return Err(OpenError::OtherShape { dir: dir.to_path_buf(), flag, kept, asked });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
