//! Damage on a node's disk is told from the torn end of its log, and concerns only the partitions that it is of.

use crate::common::{Cluster, run};
use hyper::Method;
use kv_proto::{ids::PartitionId, routing::partition_of};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

const ENVIRONMENT: [(&str, &str); 3] =
    [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];
const KEYS: usize = 300;
const BLOCK_BYTES: usize = 4096;

fn start(dir: TempDir) -> Cluster {
    Cluster::start_as(dir, &["--shards", "1", "--replicas", "1"], &ENVIRONMENT)
}

fn partition(key: usize) -> PartitionId {
    partition_of(key.to_string().as_bytes(), 64)
}

/// The data of a cluster whose log has several segments and whose partitions have checkpoints.
fn data() -> TempDir {
    let cluster = start(tempfile::tempdir().expect("a directory"));
    for key in 0..KEYS {
        let answer = cluster.send(Method::PUT, &format!("/v1/kv/{key}"), &[], vec![b'v'; 30_000]);
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    cluster.stop()
}

fn files(dir: &Path, folder: &str, suffix: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir.join("nodes/shard0-leader").join(folder)).expect("there").flatten().map(|e| e.path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.to_str().is_some_and(|p| p.ends_with(suffix))).collect();
    all.sort();
    all
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("writable");
}

/// Starts a copy of the data with a change; the partitions that it says are faulty. The others are served, and these are
/// not, by a word in the log, in `kv status` and in the answers.
#[track_caller]
fn faulty(data: &Path, change: impl FnOnce(&Path), words: &str) -> BTreeSet<PartitionId> {
    let copy = tempfile::tempdir().expect("a directory");
    assert_eq!(run(Command::new("cp").arg("-aT").arg(data).arg(copy.path())).0, 0);
    change(copy.path());
    let cluster = start(copy);
    let nodes = cluster.topology().nodes;
    let replicas = nodes.iter().filter_map(|n| n.stats.as_ref()).flat_map(|s| &s.replicas);
    let faulty: BTreeSet<PartitionId> = replicas.filter(|r| r.trouble.is_some()).map(|r| r.partition).collect();
    for key in 0..KEYS {
        let answer = cluster.send(Method::GET, &format!("/v1/kv/{key}"), &[], "");
        let expected = if faulty.contains(&partition(key)) { 503 } else { 200 };
        assert_eq!(answer.status, expected, "{key}: {answer:?}");
    }
    for key in (0..KEYS).filter(|key| !faulty.contains(&partition(*key))).take(5) {
        assert_eq!(cluster.send(Method::PUT, &format!("/v1/kv/{key}"), &[], "new").status, 204);
    }
    if !faulty.is_empty() {
        let told = |l: &str| (l.contains("cannot be restored") && l.contains(words)).then_some(());
        cluster.supervisor.output.wait_for("its log says it", told);
        let status = run(&mut cluster.kv(&["status"])).1;
        assert!(status.contains("trouble: shard0-leader, ") && status.contains(words), "{status}");
    }
    faulty
}

#[test]
fn what_is_damaged_is_not_served_and_all_else_is() {
    let data = data();
    let logs = files(data.path(), "log", ".log");
    assert!(logs.len() >= 3, "{logs:?}");

    let checkpoint = files(data.path(), "checkpoints", ".ckpt").pop().expect("a checkpoint");
    let name = checkpoint.file_name().expect("a name").to_str().expect("a text").to_owned();
    let of = PartitionId(name[1..6].parse().expect("a partition"));
    let bytes = fs::metadata(&checkpoint).expect("there").len() as usize;
    let change = |dir: &Path| flip(&files(dir, "checkpoints", ".ckpt").pop().expect("there"), bytes / 2);
    assert_eq!(faulty(data.path(), change, "its checkpoint"), BTreeSet::from([of]));

    let middle = logs.len() / 2;
    let change = |dir: &Path| flip(&files(dir, "log", ".log")[middle], 600_000);
    let of_a_batch = faulty(data.path(), change, "");
    assert!(of_a_batch.len() <= 3, "a batch is of a few partitions: {of_a_batch:?}");

    let change = |dir: &Path| fs::remove_file(&files(dir, "log", ".log")[middle]).expect("there");
    let of_a_segment = faulty(data.path(), change, "");
    assert!(!of_a_segment.is_empty() && of_a_segment.len() < 60, "{of_a_segment:?}");
}

#[test]
fn a_torn_end_is_no_damage() {
    let data = data();
    let tear = |dir: &Path| {
        let path = files(dir, "log", ".log").pop().expect("a segment");
        let mut bytes = fs::read(&path).expect("readable");
        let last = bytes.iter().rposition(|b| *b != 0).expect("something was written") / BLOCK_BYTES * BLOCK_BYTES;
        bytes[last..].fill(0);
        fs::write(&path, bytes).expect("writable");
    };
    // The last value is written once more after the others, so that what is torn is a part of it.
    let cluster = start(data);
    assert_eq!(cluster.send(Method::PUT, "/v1/kv/0", &[], vec![b'w'; 30_000]).status, 204);
    let data = cluster.stop();
    assert_eq!(faulty(data.path(), tear, ""), BTreeSet::new());
}
