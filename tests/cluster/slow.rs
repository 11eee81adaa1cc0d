//! Disks that hang: writes are refused with the reason until the disk is back, and a node whose disk stays away ends. A
//! frozen file system is one.

use crate::{
    common::{Cluster, run, until},
    mounts::Disk,
};
use hyper::Method;
use serde_json::Value;

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

fn is_late(cluster: &Cluster, node: &str) {
    let why = format!("the disk of node {node} takes more than 2 s for a batch of its log");
    let mut written = 0;
    until("writes are refused", || {
        written += 1;
        let (status, body) = put(cluster, &format!("late-{written}"));
        // What was proposed before it was known is in doubt.
        assert!(status == 503 || (status == 504 && body["outcome"] == "unknown"), "{status}: {body}");
        (status == 503).then(|| {
            assert_eq!(body["outcome"], "not_applied", "{body}");
            assert!(body["detail"].as_str().is_some_and(|d| d.contains(&why)), "{body}");
        })
    });
    let status = run(&mut cluster.kv(&["status"])).1;
    assert!(status.contains(&why), "{status}");
    assert_eq!(cluster.get("before").status, 200, "reads go on");
}

fn hangs(node: &str) {
    let Some(mut disk) = Disk::ext4(48) else { return };
    let cluster = start(&disk, node);
    assert_eq!(put(&cluster, "before").0, 204);
    disk.freeze();
    is_late(&cluster, node);
    disk.thaw();
    until("writes are taken again", || (put(&cluster, "after").0 == 204).then_some(()));
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    let status = run(&mut cluster.kv(&["status"])).1;
    assert!(!status.contains("trouble: "), "{status}");
}

#[test]
fn a_leader_whose_disk_hangs_takes_no_writes_until_it_is_back() {
    hangs("shard0-leader");
}

#[test]
fn a_follower_whose_disk_hangs_stops_the_writes_until_it_is_back() {
    hangs("shard0-follower");
}

#[test]
fn a_node_whose_disk_stays_away_ends() {
    let Some(mut disk) = Disk::ext4(48) else { return };
    let cluster = start(&disk, "shard0-leader");
    assert_eq!(put(&cluster, "before").0, 204);
    disk.freeze();
    is_late(&cluster, "shard0-leader");
    let why = "the disk has not taken a batch of the log for 10 s: the process ends";
    cluster.supervisor.output.wait_for("it says why it ends", |l| l.contains(why).then_some(()));
    // The kernel ends nobody who waits for a frozen file system.
    disk.thaw();
    let report = "was killed by signal 6 (SIGABRT)";
    cluster.supervisor.output.wait_for("it has ended", |l| l.contains(report).then_some(()));
}
