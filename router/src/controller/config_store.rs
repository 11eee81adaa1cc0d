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
    kept::Kept,
    old_file::{self, FileError},
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
};
use kv_proto::ids::{ClusterId, Epoch};
use kv_replication::{
    cluster::{Applied, Cluster, Command, InvalidShape, ProposalRefusal, Shape},
    configuration::Refusal,
};
use openraft::{
    SnapshotPolicy,
    error::{ClientWriteError, RaftError},
};
use serde::Serialize;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long a command may take: an election, and a little more.
const CAS_TIMEOUT: Duration = Duration::from_secs(4);
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

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or used.
    #[error(
        "cannot use the data folder {dir}, which must be a folder that this user may write; choose another by --data-dir"
    )]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error(
        "the data folder {dir} is in use by another process, a router or the supervisor of `kv local` (whose router \
         keeps its data in the folder `router` in it): stop it, or give this one another --data-dir"
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The file of an earlier version cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is kept cannot be read.
    #[error(
        "{path} cannot be read ({what}): move it away; one of several controllers then learns everything from the others, \
         and for an only one `kv rebuild-map` asks the nodes"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No cluster can have these numbers.
    #[error(transparent)]
    Shape(#[from] InvalidShape),
    /// The cluster in the folder was made otherwise.
    #[error(
        "the cluster in {dir} was made with --{flag} {kept}, which cannot be changed to {asked}: start with --{flag} {kept}, \
         or use another --data-dir for another cluster"
    )]
    OtherShape {
        /// The folder.
        dir: PathBuf,
        /// What differs.
        flag: &'static str,
        /// As the cluster was made.
        kept: String,
        /// As it was asked for now.
        asked: String,
    },
    /// One of several controllers was started as the only one.
    #[error("the controller in {dir} is one of {voters}, and cannot go on alone: start it with --controller-peers")]
    NotAlone {
        /// The folder.
        dir: PathBuf,
        /// How many there are.
        voters: usize,
    },
    /// The consensus cannot be started.
    #[error("the controller cannot start: {0}")]
    Consensus(String),
}

impl OpenError {
    pub(crate) fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Self {
        OpenError::Damaged { path: path.to_path_buf(), what: what.to_string() }
    }
}

/// What became of a command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node is known by what it said.
    Registered,
    /// What became of each proposal, in their order; with `None` it was carried out.
    Decided(Vec<Option<String>>),
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// The node cannot register; a sentence that says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// No leader answered in time; the command may still be carried out.
    #[error("no majority of the controllers answered in time; whether the change was made is not known")]
    NoLeader,
    /// The change may have been written or not; the store is of no use any more.
    #[error("the controller cannot tell whether it wrote the cluster map, and stops: {0}")]
    Unknown(String),
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
        if let Some(Kept(cluster)) = kept.as_ref().or(old.as_ref()) {
            same_shape(dir, cluster.shape(), shape)?;
        }
        let voters = machine.state().membership.membership().voter_ids().count();
        if consensus.peers.is_empty() && voters > 1 {
            return Err(OpenError::NotAlone { dir: dir.to_path_buf(), voters });
        }

        let (id, in_use) = (disk.id(), disk.in_use());
        let peers = Arc::new(Peers::new(consensus.peers.clone(), clusters_seen.clone()));
        let failed = |e: &dyn std::fmt::Display| OpenError::Consensus(e.to_string());
        let config = configuration(consensus).map_err(|e| failed(&e))?;
        let raft = Raft::new(id, Arc::new(config), Network(peers.clone()), LogStore(disk), machine).await;
        let raft = raft.map_err(|e| failed(&e))?;
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
        let (dir, told, mut seen) = (dir.to_path_buf(), failure.clone(), clusters_seen.clone());
        let keeper = tokio::spawn(async move {
            let check = async {
                if seen.wait_for(|c| made(c).is_some()).await.is_ok_and(|_| true) {
                    if let Err(error) = same_shape(&dir, seen.borrow().shape(), shape) {
                        told.send_replace(Some(error.to_string()));
                    }
                    if has_old && let Err(error) = old_file::set_aside(&dir) {
                        tracing::warn!(%error, "the file of an earlier version could not be renamed");
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::join!(keeper.run(), check);
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
            Outcome::Nothing | Outcome::NoCluster => Err(CasError::NoLeader),
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
        Standing {
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
                    Err(fatal) => fatal.to_string(),
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
                sleep(Duration::from_millis(1)).await
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

/// The answer that no later state can change, so that it needs no entry in the log: what was carried out, what is known
/// already, and what was refused because of things that never change. A partition's epoch only grows, and what its
/// configuration was in an epoch stays so: a refusal can be wrong later only where the proposal is ahead of what is known
/// here.
fn decided_for_good(cluster: &Cluster, command: &Command) -> Option<Result<Decision, CasError>> {
    made(cluster)?;
    let mut next = cluster.clone();
    let applied = next.apply(command);
    if next.map.version != cluster.map.version {
        return None;
    }
    let ahead = |refusal: &ProposalRefusal| match refusal {
        ProposalRefusal::UnknownPartition(_) => false,
        ProposalRefusal::Configuration(Refusal::OtherEpoch { current: Epoch(current), proposed: Epoch(proposed) }) => {
            proposed > current
        }
        ProposalRefusal::Configuration(refusal) => *refusal == Refusal::NotCreated,
    };
    match applied {
        Ok(Applied::Registered) => Some(Ok(Decision::Registered)),
        Ok(Applied::Decided(decided)) if decided.iter().flatten().any(ahead) => None,
        Ok(Applied::Decided(decided)) => {
            Some(Ok(Decision::Decided(decided.into_iter().map(|d| d.map(|r| r.to_string())).collect())))
        }
        Err(refusal) => Some(Err(CasError::Refused(refusal.to_string()))),
    }
}

fn configuration(consensus: &Consensus) -> Result<openraft::Config, openraft::ConfigError> {
    openraft::Config {
        cluster_name: "controllers".to_owned(),
        heartbeat_interval: consensus.heartbeat_ms,
        // openraft waits for the greatest timeout, in which the old leader may still lead, and then for one of these.
        election_timeout_min: consensus.election_ms / 2,
        election_timeout_max: consensus.election_ms,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        ..Default::default()
    }
    .validate()
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
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{DiskId, MapVersion, NodeId, ShardId},
    };

    const SHAPE: Shape = Shape { shards: 1, replicas: 2, partitions: 4, ack: AckMode::Durable };

    fn register(name: &str, disk: u128) -> Command {
        let node = Node {
            id: NodeId::new(name).expect("a node id"),
            disk: DiskId(disk),
            shard: ShardId(0),
            prefers_to_lead: name == "a",
            address: "127.0.0.1:1".to_string(),
            executors: 1,
        };
        Command::Register { cluster: None, node }
    }

    fn alone() -> Consensus {
        Consensus { peers: Vec::new(), heartbeat_ms: 250, election_ms: 1000 }
    }

    async fn open(dir: &tempfile::TempDir, shape: Shape) -> Result<ConfigStore, OpenError> {
        ConfigStore::open(dir.path(), shape, &alone()).await
    }

    #[tokio::test]
    async fn changes_are_kept_published_and_there_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir, SHAPE).await.expect("opened");
        let mut watch = store.watch();
        assert_eq!(watch.borrow_and_update().map.version, MapVersion(1));
        for name in ["a", "b"] {
            assert_eq!(store.cas(register(name, 1)).await.expect(name), Decision::Registered);
        }
        assert!(watch.has_changed().expect("open"));
        let newest = watch.borrow_and_update().clone();
        assert!(newest.map.is_complete(), "two changes, of which only the newest is seen");
        store.cas(register("a", 1)).await.expect("the same again");
        assert!(!watch.has_changed().expect("open"));
        store.stop().await;
        let store = open(&dir, SHAPE).await.expect("opened again");
        assert_eq!(store.get(), newest);
    }

    #[tokio::test]
    async fn concurrent_changes_are_all_carried_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir, SHAPE).await.expect("opened");
        let tasks: Vec<_> = (0..20u128)
            .map(|disk| {
                let store = store.clone();
                tokio::spawn(async move { store.cas(register(if disk % 2 == 0 { "a" } else { "b" }, disk)).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic").expect("registered");
        }
        assert_eq!(store.get().map.version, MapVersion(21));
    }

    /// More entries than one snapshot is made of, so that a part of the log is gone when it is read again.
    #[tokio::test]
    async fn a_log_that_was_shortened_is_no_loss() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir, SHAPE).await.expect("opened");
        for disk in 1..u128::from(ENTRIES_PER_SNAPSHOT + ENTRIES_KEPT) {
            store.cas(register("a", disk)).await.expect("registered");
        }
        let mut metrics = store.inner.raft.metrics();
        metrics.wait_for(|m| m.purged.is_some()).await.expect("the log is shortened");
        let before = store.get();
        store.stop().await;
        let store = open(&dir, SHAPE).await.expect("opened again");
        assert_eq!(store.get(), before);
        store.cas(register("b", 1)).await.expect("goes on");
    }

    /// A disk that fails when it is told to.
    #[derive(Debug)]
    struct Failing {
        disk: redb::backends::InMemoryBackend,
        fails: Arc<std::sync::atomic::AtomicBool>,
    }

    impl Failing {
        fn check(&self) -> Result<(), io::Error> {
            let fails = self.fails.load(std::sync::atomic::Ordering::Relaxed);
            if fails { Err(io::Error::other("no space left on device")) } else { Ok(()) }
        }
    }

    impl redb::StorageBackend for Failing {
        fn len(&self) -> Result<u64, io::Error> {
            self.disk.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            self.disk.read(offset, out)
        }

        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.check()?;
            self.disk.set_len(len)
        }

        fn sync_data(&self) -> Result<(), io::Error> {
            self.check()?;
            self.disk.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            self.check()?;
            self.disk.write(offset, data)
        }
    }

    #[tokio::test]
    async fn after_a_write_that_failed_the_store_says_nothing_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let fails = Arc::<std::sync::atomic::AtomicBool>::default();
        let lock = std::fs::File::create(dir.path().join("lock")).expect("a file");
        let failing = Failing { disk: redb::backends::InMemoryBackend::new(), fails: fails.clone() };
        let disk = Disk::over(failing, lock, Path::new("memory")).expect("a disk");
        let store = ConfigStore::start(dir.path(), SHAPE, &alone(), disk, None).await.expect("opened");
        store.cas(register("a", 1)).await.expect("registered");
        fails.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(store.cas(register("b", 1)).await, Err(CasError::Unknown(_))));
        fails.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(store.failed().await.contains("no space left on device"));
        assert!(matches!(store.cas(register("b", 1)).await, Err(CasError::Unknown(_))));
        assert_eq!(store.get().map.nodes.len(), 1);
    }

    #[tokio::test]
    async fn after_a_panic_the_store_says_nothing_more() {
        let dir = tempfile::tempdir().expect("a folder");
        // Nobody counts that far; the next number is none.
        let mut whole = Cluster::new(ClusterId(1), SHAPE).expect("possible");
        whole.map.version = MapVersion(u64::MAX);
        let broken = Kept::from(whole);
        let disk = Disk::open(dir.path()).expect("a disk");
        let store = ConfigStore::start(dir.path(), SHAPE, &alone(), disk, Some(broken)).await.expect("opened");
        let register_b = Entry::from(register("b", 1));
        assert!(matches!(store.inner.carry_out(register_b).await, Err(CasError::Unknown(_))));
        assert!(store.failed().await.contains("panicked"));
        assert!(matches!(store.cas(register("b", 1)).await, Err(CasError::Unknown(_))));
    }

    #[tokio::test]
    async fn the_file_of_an_earlier_version_is_taken_over_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cluster-map-without-ack.json");
        std::fs::copy(corpus, dir.path().join("cluster-map.json")).expect("copied");
        let Kept(old) = old_file::read(dir.path()).expect("read").expect("a cluster");
        let error = open(&dir, Shape { partitions: 8, ..SHAPE }).await.err().expect("another shape");
        assert!(error.to_string().contains("made with --partitions 4"), "{error}");
        let store = open(&dir, SHAPE).await.expect("opened");
        assert_eq!(store.get(), old);
        store.stop().await;
        assert_eq!(old_file::read(dir.path()).expect("no file"), None);
        assert!(dir.path().join("cluster-map.json.taken-over").exists());
        let store = open(&dir, SHAPE).await.expect("opened again");
        assert_eq!(store.get(), old);
    }

    #[tokio::test]
    async fn two_routers_cannot_share_a_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir, SHAPE).await.expect("opened");
        let error = open(&dir, SHAPE).await.err().expect("in use");
        assert!(error.to_string().contains("in use by another process"), "{error}");
        store.stop().await;
        open(&dir, SHAPE).await.expect("free again");
    }

    /// Whatever is damaged, nothing else is made of it: it is told, or it is what was there.
    #[tokio::test]
    async fn damage_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(&dir, SHAPE).await.expect("opened");
        store.cas(register("a", 1)).await.expect("registered");
        let before = store.get();
        store.stop().await;
        let file = dir.path().join("controller.redb");
        let good = std::fs::read(&file).expect("a file");
        let damages: [(&str, fn(&mut Vec<u8>)); 4] = [
            ("empty", Vec::clear),
            ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
            ("other bytes at the front", |bytes| bytes[..512].fill(0xff)),
            ("text changed", |bytes| {
                let text = b"\"partitions\"";
                let places: Vec<usize> =
                    bytes.windows(text.len()).enumerate().filter(|(_, w)| w == text).map(|(at, _)| at).collect();
                places.into_iter().for_each(|at| bytes[at + 1] = b'P');
            }),
        ];
        for (what, damage) in damages {
            let mut bad = good.clone();
            damage(&mut bad);
            std::fs::write(&file, &bad).expect("damaged");
            match open(&dir, SHAPE).await {
                Err(OpenError::Damaged { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
                Ok(store) => {
                    assert!(what == "empty" && store.get() != before, "{what}: taken for whole");
                    store.stop().await;
                }
            }
        }
    }

    #[tokio::test]
    async fn another_shape_than_that_of_the_cluster_is_refused_with_a_cure() {
        let dir = tempfile::tempdir().expect("a folder");
        open(&dir, SHAPE).await.expect("opened").stop().await;
        for (shape, flag) in [
            (Shape { shards: 2, ..SHAPE }, "start with --shards 1"),
            (Shape { replicas: 1, ..SHAPE }, "start with --replicas 2"),
            (Shape { partitions: 8, ..SHAPE }, "start with --partitions 4"),
            (
                Shape { ack: AckMode::Replicated, ..SHAPE },
                "made with --ack durable, which cannot be changed to replicated: start with --ack durable",
            ),
        ] {
            let error = open(&dir, shape).await.err().expect(flag);
            assert!(error.to_string().contains(flag), "{error}");
        }
        let other = tempfile::tempdir().expect("a folder");
        let error = open(&other, Shape { shards: 0, ..SHAPE }).await.err().expect("impossible");
        assert!(matches!(error, OpenError::Shape(_)), "{error}");
    }

    #[test]
    fn only_what_no_later_state_changes_is_answered_without_the_leader() {
        use kv_proto::{
            control::{Change, Proposal},
            ids::{Member, PartitionId},
        };
        let mut cluster = Cluster::new(ClusterId(1), SHAPE).expect("possible");
        let leader = Member { node: NodeId::new("a").expect("a node id"), disk: DiskId(1) };
        let reopen = |id, epoch, leader| {
            let change = Change::Reopen { leader };
            Command::Propose(vec![Proposal { id, partition: PartitionId(0), epoch: Epoch(epoch), change }])
        };
        let stranger = Member { disk: DiskId(9), ..leader };
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_none(), "not created, as far as is known");
        assert!(decided_for_good(&cluster, &register("a", 1)).is_none(), "changes the map");
        for name in ["a", "b"] {
            cluster.apply(&register(name, 1)).expect(name);
        }
        assert!(decided_for_good(&cluster, &register("a", 1)).is_some(), "known already");
        assert!(decided_for_good(&cluster, &register("c", 1)).is_some(), "the shard stays full");
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_none(), "changes the map");
        assert!(decided_for_good(&cluster, &reopen(1, 1, stranger)).is_some(), "did not lead in this epoch");
        assert!(decided_for_good(&cluster, &reopen(1, 2, stranger)).is_none(), "may lead in a later one");
        cluster.apply(&reopen(1, 1, leader)).expect("reopened");
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_some(), "was carried out");
        assert!(decided_for_good(&cluster, &reopen(2, 1, leader)).is_some(), "the epoch is over");
    }
}
