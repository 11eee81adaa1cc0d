//! The only door to the cluster's configuration: [`ConfigStore::get`], [`ConfigStore::cas`], [`ConfigStore::watch`].
//!
//! One process keeps it, in one file (`map_file.rs`). Whoever comes through the door sees nothing of that: commands
//! are compare-and-sets by what they say (a proposal names the epoch that it replaces), so that the same door can lead
//! to a log of commands that several voters agree on.
//!
//! # Invariants
//! * A change is on disk before anyone sees it.
//! * Changes are carried out one after another; a caller that goes away does not leave one half done.
//! * After a write whose outcome is not known, or a panic, nothing is changed or said any more: the process must end, and read
//!   its file again.
//! * One process has the folder at a time.

use super::map_file::{self, FileError, WriteError};
use kv_proto::ids::ClusterId;
use kv_replication::cluster::{Applied, Cluster, Command, InvalidShape, RegistrationRefusal, Shape};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::{Mutex, watch};

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
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
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
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// The node cannot register.
    #[error(transparent)]
    Refused(#[from] RegistrationRefusal),
    /// The change could not be written; nothing has changed.
    #[error("the controller cannot write the cluster map: {0}")]
    NotWritten(String),
    /// The change may have been written or not; the store is of no use any more.
    #[error("the controller cannot tell whether it wrote the cluster map, and stops: {0}")]
    Unknown(String),
}

/// Keeps the cluster; cheap to clone, all clones are the same store.
#[derive(Clone, Debug)]
pub struct ConfigStore {
    inner: Arc<Inner>,
    /// Held while a change is made.
    writer: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    published: watch::Sender<Arc<Cluster>>,
    failure: watch::Sender<Option<String>>,
    /// Locked as long as it is open.
    _lock: File,
}

impl ConfigStore {
    /// Opens the store in `dir`, and makes a new cluster of `shape` if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// When the folder or its file cannot be used, or holds a cluster of another shape.
    pub fn open(dir: &Path, shape: Shape) -> Result<Self, OpenError> {
        let folder = |source| OpenError::Folder { dir: dir.to_path_buf(), source };
        fs::create_dir_all(dir).map_err(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(folder)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse { dir: dir.to_path_buf() }),
            Err(error) => return Err(folder(error.into())),
        }
        let cluster = match map_file::read(dir)? {
            Some(cluster) => {
                same_shape(dir, cluster.shape(), shape)?;
                cluster
            }
            None => {
                let cluster = Cluster::new(ClusterId(rand::random()), shape)?;
                map_file::write(dir, &cluster).map_err(|e| match e {
                    WriteError::NotWritten(source) | WriteError::Unknown(source) => folder(source),
                })?;
                tracing::info!(cluster = %cluster.map.cluster, ?shape, "a new cluster was made");
                cluster
            }
        };
        let inner = Inner {
            dir: dir.to_path_buf(),
            published: watch::Sender::new(Arc::new(cluster)),
            failure: watch::Sender::new(None),
            _lock: lock,
        };
        Ok(ConfigStore { inner: Arc::new(inner), writer: Arc::default() })
    }

    /// The cluster as it is now.
    #[must_use]
    pub fn get(&self) -> Arc<Cluster> {
        self.inner.published.borrow().clone()
    }

    /// Carries out a command, and returns when its change is on disk and published.
    ///
    /// # Errors
    /// See [`CasError`]; only [`CasError::Unknown`] may have changed something.
    pub async fn cas(&self, command: Command) -> Result<Applied, CasError> {
        let turn = self.writer.clone().lock_owned().await;
        let inner = self.inner.clone();
        // The turn goes with the write: it ends when the write has ended, whether or not the caller still waits.
        let change = move || {
            let _turn = turn;
            // Nobody looks at what a panic left half done: the store has failed, before anyone has the next turn.
            let result = catch_unwind(AssertUnwindSafe(|| inner.carry_out(&command)));
            result.unwrap_or_else(|_| Err(inner.fail("carrying out a change panicked".to_owned())))
        };
        match tokio::task::spawn_blocking(change).await {
            Ok(result) => result,
            Err(error) => Err(CasError::Unknown(error.to_string())),
        }
    }

    /// Tells of every change; who is slow sees only the newest.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Cluster>> {
        self.inner.published.subscribe()
    }

    /// Waits until the store has failed for good, and says why.
    pub async fn failed(&self) -> String {
        let mut failure = self.inner.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        failed.ok().and_then(|f| f.clone()).expect("the sender lives as long as the store, and waits for a text")
    }
}

impl Inner {
    fn carry_out(&self, command: &Command) -> Result<Applied, CasError> {
        if let Some(why) = self.failure.borrow().clone() {
            return Err(CasError::Unknown(why));
        }
        let mut next = Cluster::clone(&self.published.borrow());
        let before = next.map.version;
        let applied = next.apply(command)?;
        if next.map.version != before {
            map_file::write(&self.dir, &next).map_err(|error| match error {
                WriteError::NotWritten(_) => CasError::NotWritten(error.to_string()),
                WriteError::Unknown(_) => self.fail(error.to_string()),
            })?;
            self.published.send_replace(Arc::new(next));
        }
        Ok(applied)
    }

    /// From now on the store is of no use.
    fn fail(&self, why: String) -> CasError {
        self.failure.send_replace(Some(why.clone()));
        CasError::Unknown(why)
    }
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

    #[tokio::test]
    async fn changes_are_kept_published_and_there_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
        let mut watch = store.watch();
        assert_eq!(store.get().map.version, MapVersion(1));
        for name in ["a", "b"] {
            assert_eq!(store.cas(register(name, 1)).await.expect(name), Applied::Registered);
        }
        assert!(watch.has_changed().expect("open"));
        let newest = watch.borrow_and_update().clone();
        assert!(newest.map.is_complete(), "two changes, of which only the newest is seen");
        store.cas(register("a", 1)).await.expect("the same again");
        assert!(!watch.has_changed().expect("open"));
        drop((store, watch));
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened again");
        assert_eq!(store.get(), newest);
    }

    #[tokio::test]
    async fn concurrent_changes_are_all_carried_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
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

    #[tokio::test]
    async fn a_change_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
        let in_the_way = dir.path().join("cluster-map.json.new");
        fs::create_dir(&in_the_way).expect("a folder in the way");
        assert!(matches!(store.cas(register("a", 1)).await, Err(CasError::NotWritten(_))));
        assert_eq!(store.get().map.nodes, []);
        fs::remove_dir(&in_the_way).expect("out of the way");
        store.cas(register("a", 1)).await.expect("written");
    }

    #[tokio::test]
    async fn after_a_write_of_unknown_outcome_the_store_says_nothing_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
        let file = dir.path().join("cluster-map.json");
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("a folder cannot be renamed over");
        assert!(matches!(store.cas(register("a", 1)).await, Err(CasError::Unknown(_))));
        fs::remove_dir(&file).expect("out of the way");
        assert!(matches!(store.cas(register("a", 1)).await, Err(CasError::Unknown(_))));
        assert!(!store.failed().await.is_empty());
        assert_eq!(store.get().map.nodes, []);
    }

    #[tokio::test]
    async fn after_a_panic_the_store_says_nothing_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
        store.cas(register("a", 1)).await.expect("registered");
        // No file is like this; the next node lets partitions be created, for which there is no place.
        let whole = store.get();
        store.inner.published.send_replace(Arc::new(Cluster { carried_out: Vec::new(), ..Cluster::clone(&whole) }));
        assert!(matches!(store.cas(register("b", 1)).await, Err(CasError::Unknown(_))));
        store.inner.published.send_replace(whole);
        assert!(matches!(store.cas(register("b", 1)).await, Err(CasError::Unknown(_))));
        assert!(store.failed().await.contains("panicked"));
    }

    #[test]
    fn two_routers_cannot_share_a_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = ConfigStore::open(dir.path(), SHAPE).expect("opened");
        let error = ConfigStore::open(dir.path(), SHAPE).expect_err("in use");
        assert!(error.to_string().contains("in use by another process"), "{error}");
        drop(store);
        ConfigStore::open(dir.path(), SHAPE).expect("free again");
    }

    #[test]
    fn another_shape_than_that_of_the_cluster_is_refused_with_a_cure() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(ConfigStore::open(dir.path(), SHAPE).expect("opened"));
        for (shape, flag) in [
            (Shape { shards: 2, ..SHAPE }, "start with --shards 1"),
            (Shape { replicas: 1, ..SHAPE }, "start with --replicas 2"),
            (Shape { partitions: 8, ..SHAPE }, "start with --partitions 4"),
            (
                Shape { ack: AckMode::Replicated, ..SHAPE },
                "made with --ack durable, which cannot be changed to replicated: start with --ack durable",
            ),
        ] {
            let error = ConfigStore::open(dir.path(), shape).expect_err(flag);
            assert!(error.to_string().contains(flag), "{error}");
        }
        let other = tempfile::tempdir().expect("a folder");
        let error = ConfigStore::open(other.path(), Shape { shards: 0, ..SHAPE }).expect_err("impossible");
        assert!(matches!(error, OpenError::Shape(_)), "{error}");
    }
}
