//! The store of an only controller; several are tested over their routers.

use super::*;
use kv_proto::{
    cluster_map::{AckMode, Node},
    ids::{DiskId, MapVersion, NodeId, ShardId},
};
use std::io;

pub(crate) const SHAPE: Shape = Shape { shards: 1, replicas: 2, partitions: 4, ack: AckMode::Durable };

pub(crate) fn register(name: &str, disk: u128) -> Command {
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

pub(crate) fn alone() -> Consensus {
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

/// As after a version that knew only the file was used for a while.
#[tokio::test]
async fn a_file_that_is_newer_than_what_took_its_place_is_not_passed_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(&dir, SHAPE).await.expect("opened");
    let mut newer = Cluster::clone(&store.get());
    store.stop().await;
    newer.map.version = MapVersion(9);
    old_file::write(dir.path(), &newer.into()).expect("written");
    let error = open(&dir, SHAPE).await.err().expect("refused").to_string();
    assert!(error.contains("says something else"), "{error}");
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
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
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
