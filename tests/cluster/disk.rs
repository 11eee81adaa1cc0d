//! Disks that run full: a clear error before anything is promised, reads and deletes as ever, and all that was acknowledged
//! is there after `kill -9` of everything, whether there is room by then or not.

use crate::{
    common::{Answer, Cluster, Http, runs, signal, until},
    mounts::Disk,
};
use hyper::{Method, body::Bytes};
use rustix::process::Signal;
use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path, thread};
use tempfile::TempDir;

const WRITERS: usize = 4;
const VALUE_BYTES: usize = 20_000;

const ENVIRONMENT: [(&str, &str); 3] =
    [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];

fn path(key: &str) -> String {
    format!("/v1/kv/{key}")
}

/// The value of a key: it says whose it is.
fn value(key: &str) -> Vec<u8> {
    let mut value = format!("{key} ").into_bytes();
    value.resize(VALUE_BYTES, b'.');
    value
}

#[track_caller]
fn is_disk_full(answer: &Answer) -> bool {
    if answer.status != 507 {
        return false;
    }
    let body = answer.json();
    assert_eq!((body["code"].as_str(), body["outcome"].as_str()), (Some("disk_full"), Some("not_applied")), "{body}");
    true
}

fn put(cluster: &Cluster, key: &str) -> Answer {
    cluster.send(Method::PUT, &path(key), &[], value(key))
}

fn delete(cluster: &Cluster, key: &str) {
    let answer = cluster.send(Method::DELETE, &path(key), &[], "");
    assert_eq!(answer.status, 204, "{key}: {answer:?}");
}

/// Deletes so much that the log may have no room for it at once: then a checkpoint soon makes some.
fn delete_all<'a>(cluster: &Cluster, keys: impl IntoIterator<Item = &'a String>) {
    for key in keys {
        until("it is deleted", || {
            let answer = cluster.send(Method::DELETE, &path(key), &[], "");
            assert!(answer.status == 204 || is_disk_full(&answer), "{key}: {answer:?}");
            (answer.status == 204).then_some(())
        });
    }
}

/// Several writers put new values until none is taken; the keys that were acknowledged. Nothing but that it was written or
/// that the disk is full may be answered.
fn fill(cluster: &Cluster, prefix: &str) -> BTreeSet<String> {
    let write = |writer: usize| {
        let http = Http::new(&cluster.url);
        let mut written = BTreeSet::new();
        for i in 0.. {
            let key = format!("{prefix}-{writer}-{i}");
            let answer = http.try_send(Method::PUT, &path(&key), &[], Bytes::from(value(&key))).expect("an answer");
            if is_disk_full(&answer) {
                return written;
            }
            assert_eq!(answer.status, 204, "{key}: {}", String::from_utf8_lossy(&answer.body));
            written.insert(key);
        }
        unreachable!("no disk has room for all")
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().flat_map(|w| w.join().expect("only expected answers")).collect()
    })
}

#[track_caller]
fn all_there(cluster: &Cluster, keys: &BTreeSet<String>) {
    for key in keys {
        let answer = cluster.send(Method::GET, &path(key), &[], "");
        assert!(answer.status == 200 && answer.body == value(key), "{key}: {}", answer.status);
    }
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    let held: u64 = {
        let nodes = cluster.topology().nodes;
        nodes.iter().filter_map(|n| n.stats.as_ref()).flat_map(|s| &s.replicas).map(|r| r.keys).sum()
    };
    assert_eq!(held, 2 * keys.len() as u64, "and nothing else");
}

fn kill_all(cluster: Cluster) -> TempDir {
    let processes = cluster.manifest().processes;
    signal(cluster.supervisor.pid(), Signal::KILL);
    until("all processes are gone", || processes.iter().all(|p| !runs(p.pid)).then_some(()));
    cluster.into_dir()
}

fn start(dir: TempDir) -> Cluster {
    Cluster::start_as(dir, &["--shards", "1"], &ENVIRONMENT)
}

/// What is in the folders of the nodes and has no name yet.
fn remnants(nodes: &Path) -> Vec<String> {
    let folders = fs::read_dir(nodes).expect("there").flatten().map(|node| node.path().join("checkpoints"));
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    files.filter_map(|f| f.file_name().into_string().ok()).filter(|n| n.ends_with(".new")).collect()
}

/// By itself, and with everything killed while it is full.
fn runs_full(disk: &Disk) {
    let dir = tempfile::tempdir().expect("a directory");
    disk.be(&dir.path().join("nodes"));
    let cluster = start(dir);
    let mut keys = fill(&cluster, "first");
    println!("{} values of {VALUE_BYTES} bytes; {} bytes of the disk are taken", keys.len(), disk.used());
    assert!(keys.len() > 200, "only {} values", keys.len());
    all_there(&cluster, &keys);
    for _ in 0..10 {
        delete(&cluster, &keys.pop_first().expect("many"));
    }

    let cluster = start(kill_all(cluster));
    all_there(&cluster, &keys);
    for _ in 0..10 {
        delete(&cluster, &keys.pop_first().expect("many"));
    }
    keys.extend(fill(&cluster, "second"));
    all_there(&cluster, &keys);

    let kept = keys.split_off(&keys.iter().nth(keys.len() * 3 / 4).expect("many").clone());
    delete_all(&cluster, &keys);
    let mut keys = kept;
    until("values are taken again", || (put(&cluster, "again").status == 204).then_some(()));
    keys.insert("again".to_owned());
    until("a checkpoint that has failed leaves nothing", || remnants(disk.path()).is_empty().then_some(()));
    keys.extend(fill(&cluster, "third"));
    let cluster = start(kill_all(cluster));
    all_there(&cluster, &keys);
}

#[test]
fn a_disk_in_memory_that_runs_full() {
    if let Some(disk) = Disk::tmpfs(48) {
        runs_full(&disk);
    }
}

#[test]
fn a_disk_that_runs_full() {
    if let Some(disk) = Disk::ext4(64) {
        runs_full(&disk);
    }
}

/// Something else takes all room, down to the last block, and gives it back; and all was killed meanwhile.
#[test]
fn a_disk_that_somebody_else_fills() {
    let Some(disk) = Disk::ext4(64) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    disk.be(&dir.path().join("nodes"));
    let cluster = start(dir);
    let mut keys: BTreeSet<String> = (0..100).map(|i| format!("key-{i}")).collect();
    for key in &keys {
        assert_eq!(put(&cluster, key).status, 204);
    }
    let ballast = disk.fill();
    keys.extend(fill(&cluster, "more"));
    all_there(&cluster, &keys);
    delete(&cluster, &keys.pop_first().expect("many"));
    disk.fill();

    let cluster = start(kill_all(cluster));
    all_there(&cluster, &keys);
    delete(&cluster, &keys.pop_first().expect("many"));
    keys.extend(fill(&cluster, "restarted"));
    fs::remove_file(ballast).expect("it is there");
    until("values are taken again", || (put(&cluster, "again").status == 204).then_some(()));
    keys.insert("again".to_owned());
    let cluster = start(cluster.stop());
    all_there(&cluster, &keys);
}

/// The leader has room, and refuses for its follower.
#[test]
fn a_disk_of_a_follower_that_runs_full() {
    let Some(disk) = Disk::tmpfs(16) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    disk.be(&dir.path().join("nodes/shard0-follower"));
    let cluster = start(dir);
    let mut keys = fill(&cluster, "first");
    let refused = put(&cluster, "refused");
    assert!(is_disk_full(&refused), "{refused:?}");
    assert!(
        refused.json()["detail"].as_str().is_some_and(|d| d.contains("node shard0-follower is full")),
        "{refused:?}"
    );
    all_there(&cluster, &keys);
    let cluster = start(kill_all(cluster));
    all_there(&cluster, &keys);
    let kept = keys.split_off(&keys.iter().nth(keys.len() * 3 / 4).expect("many").clone());
    delete_all(&cluster, &keys);
    until("values are taken again", || (put(&cluster, "again").status == 204).then_some(()));
    let mut keys = kept;
    keys.insert("again".to_owned());
    all_there(&cluster, &keys);
}

/// Bytes that a folder takes.
fn taken(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { taken(&path) } else { metadata.blocks() * 512 })
        .sum()
}

/// What is written again and again takes no more and no more room, and what is not written any more is copied along.
#[test]
fn the_disk_has_what_there_is_and_not_all_that_ever_was() {
    const IDLE: usize = 1000;
    let cluster = start(tempfile::tempdir().expect("a directory"));
    let idle = |i: usize, round: usize| (format!("idle-{i}"), format!("value {i} of round {round}"));
    let write = |i: usize, round: usize| {
        let (key, value) = idle(i, round);
        assert_eq!(cluster.send(Method::PUT, &path(&key), &[], value).status, 204);
    };
    (0..IDLE).for_each(|i| write(i, 0));
    let mut most = 0;
    let nodes = cluster.dir.path().join("nodes");
    for round in 1..=3 {
        // A few records of each partition, which has many keys.
        (0..IDLE).step_by(16).for_each(|i| write(i, round));
        for i in 0..800 {
            assert_eq!(put(&cluster, &format!("busy-{}", i % 4)).status, 204);
            if i % 50 == 0 {
                most = most.max(taken(&nodes));
            }
        }
        println!("round {round}: {} KiB are taken, at most {} KiB", taken(&nodes) / 1024, most / 1024);
    }
    // Three segments of log, one that is written, spares, what is taken in advance; for two nodes.
    assert!(most < 2 * 14 * 1152 * 1024, "{most} bytes");
    let cluster = start(kill_all(cluster));
    for i in 0..IDLE {
        let (key, value) = idle(i, if i % 16 == 0 { 3 } else { 0 });
        let answer = cluster.send(Method::GET, &path(&key), &[], "");
        assert!(answer.status == 200 && answer.body == value, "{key}: {answer:?}");
    }
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
}
