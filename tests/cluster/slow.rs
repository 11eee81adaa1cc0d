//! Disks that hang: whoever has one leads and follows no more until it is back, and a node whose disk stays away ends. A
//! frozen file system is one.

use crate::{
    common::{Cluster, run, until},
    mounts::Disk,
    nodes::until_whole,
};
use hyper::Method;
use serde_json::Value;
use std::time::Instant;

const ENVIRONMENT: [(&str, &str); 3] =
    [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];

fn start(disk: &Disk, node: &str) -> Cluster {
    let dir = tempfile::tempdir().expect("a directory");
    disk.be(&dir.path().join("nodes").join(node));
    Cluster::start_as(dir, &["--shards", "1"], &ENVIRONMENT)
}

fn put(cluster: &Cluster, key: &str) -> (u16, Value) {
    let answer = cluster.send(Method::PUT, &format!("/v1/kv/{key}"), &[], "value");
    (answer.status.as_u16(), if answer.body.is_empty() { Value::Null } else { answer.json() })
}

/// Writes until one is taken by who has a disk.
#[track_caller]
fn until_written(cluster: &Cluster) {
    let (mut written, since) = (0, Instant::now());
    until("writes are taken without that disk", || {
        written += 1;
        let (status, body) = put(cluster, &format!("late-{written}"));
        // What was proposed before it was known is in doubt.
        let failed = status == 503 && body["outcome"] == "not_applied" || status == 504 && body["outcome"] == "unknown";
        assert!(status == 204 || failed, "{status}: {body}");
        (status == 204).then_some(())
    });
    println!("writes were taken again after {:?}", since.elapsed());
    assert_eq!(cluster.get("before").status, 200, "reads go on");
}

fn hangs(node: &str, heir: &str) {
    let Some(mut disk) = Disk::ext4(48) else { return };
    let cluster = start(&disk, node);
    assert_eq!(put(&cluster, "before").0, 204);
    disk.freeze();
    until_written(&cluster);
    let status = run(&mut cluster.kv(&["status"])).1;
    assert!(status.contains(&format!("64 of 64 partitions are alone: {heir} leads")), "{status}");
    disk.thaw();
    until_whole(&cluster);
    let status = run(&mut cluster.kv(&["status"])).1;
    assert!(!status.contains("trouble: "), "{status}");
}

#[test]
fn a_leader_whose_disk_hangs_passes_leadership_on_and_comes_back() {
    hangs("shard0-leader", "shard0-follower");
}

#[test]
fn a_follower_whose_disk_hangs_is_done_without_and_comes_back() {
    hangs("shard0-follower", "shard0-leader");
}

#[test]
fn a_node_whose_disk_stays_away_ends() {
    let Some(mut disk) = Disk::ext4(48) else { return };
    let cluster = start(&disk, "shard0-leader");
    assert_eq!(put(&cluster, "before").0, 204);
    disk.freeze();
    until_written(&cluster);
    let why = "the disk has not taken a batch of the log for 10 s: the process ends";
    cluster.supervisor.output.wait_for("it says why it ends", |l| l.contains(why).then_some(()));
    // The kernel ends nobody who waits for a frozen file system.
    disk.thaw();
    let report = "was killed by signal 6 (SIGABRT)";
    cluster.supervisor.output.wait_for("it has ended", |l| l.contains(report).then_some(()));
    assert_eq!(put(&cluster, "after").0, 204);
}
