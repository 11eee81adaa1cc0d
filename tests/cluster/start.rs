//! What a person did wrong is told in a sentence before anything is started.

use crate::common::{Cluster, kv, local, run, signal};
use rustix::process::Signal;
use std::net::TcpListener;

#[track_caller]
fn refused((code, stdout, stderr): (i32, String, String), words: &[&str]) {
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(!stdout.contains("listening"), "nothing was started: {stdout}");
    assert!(words.iter().all(|w| stderr.contains(w)), "{words:?}: {stderr}");
}

#[test]
fn busy_ports() {
    let dir = tempfile::tempdir().expect("a directory");
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("bound");
    let port = format!("port {}, which router needs, is in use", taken.port());
    refused(run(local(dir.path()).args(["--http", &taken.to_string()])), &[&port, "--http"]);

    // Whoever listens there, this test or somebody else: it is busy.
    let _holder = TcpListener::bind("127.0.0.1:5001");
    let fixed = ["--ports", "fixed", "--http", "127.0.0.1:0"];
    refused(run(local(dir.path()).args(fixed)), &["port 5001, which shard0-leader needs, is in use", "--ports auto"]);
    assert!(!dir.path().join("local.json").exists(), "a failed start leaves no trace");
}

#[test]
fn a_directory_in_use_and_a_directory_of_another_cluster() {
    let mut cluster = Cluster::start(&["--shards", "1"]);
    let same = cluster.dir.path();
    refused(run(&mut local(same)), &["is in use by another `kv local`", "--data-dir"]);
    signal(cluster.supervisor.pid(), Signal::TERM);
    assert_eq!(cluster.supervisor.wait().code(), Some(0));
    for (flags, words) in [
        (["--shards", "2"], "holds a cluster made with --shards 1, not with --shards 2"),
        (["--ack", "replicated"], "made with --shards 1 --ack durable, not with --shards 3 --ack replicated"),
    ] {
        refused(run(local(cluster.dir.path()).args(flags)), &[words, "another --data-dir"]);
    }
}

#[test]
fn options_that_cannot_be() {
    let dir = tempfile::tempdir().expect("a directory");
    for (flags, words) in [
        (&["--shards", "100", "--partitions", "200", "--ports", "fixed"][..], &["fixed ports", "--ports auto"][..]),
        (&["--shards", "65"], &["65 shards cannot share 64 partitions"]),
        (&["--cores", "5000"], &["5000 executors asked for", "--cores"]),
    ] {
        refused(run(local(dir.path()).args(flags)), words);
    }
    // A bare `kv` is `kv local`, with what the environment says.
    refused(run(kv().env("KV_SHARDS", "65").env("KV_DATA_DIR", dir.path())), &["65 shards cannot share 64 partitions"]);
    let (code, _, stderr) = run(local(dir.path()).args(["--replicas", "0"]));
    assert!(code == 2 && stderr.contains("--replicas"), "{stderr}");
}

/// By a flag of a node that is none of `kv local`, and reaches it by the environment.
#[test]
fn a_process_that_cannot_start_says_why_and_stops_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, stdout, stderr) = run(local(dir.path()).args(["--shards", "1"]).env("KV_SEGMENT_BYTES", "2MiB"));
    assert_eq!(code, 1, "{stdout}{stderr}");
    let reason = "error: --segment-bytes 2MiB must hold two values of --max-value-bytes 1048576";
    assert!(stderr.contains(reason), "the reason of the process: {stderr}");
    assert!(stderr.contains("the cluster cannot start: shard0-"), "{stderr}");
    assert!(stdout.contains("router: listening") && !stdout.contains("ready"), "{stdout}");
}

#[test]
fn flags_that_do_not_go_together_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    for (flags, why) in [
        (["--suspect-after-ms", "1"], "--suspect-after-ms 1 must be at least"),
        (["--lease-ms", "2000"], "--grace-ms 1500 must be longer than --lease-ms 2000"),
        (["--min-in-sync", "3"], "--min-in-sync 3 is more than --replicas 2"),
    ] {
        let (code, stdout, stderr) = run(local(&data).args(flags));
        assert!(code == 1 && stderr.contains(why), "{code}: {stdout}{stderr}");
        assert!(!data.exists(), "{flags:?}");
    }
}

#[test]
fn the_doctor_agrees_with_the_start() {
    let (code, stdout, _) = run(kv().arg("doctor"));
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("A node can run on this machine."), "{stdout}");
    let (code, stdout, _) = run(kv().args(["doctor", "--cores", "5000"]));
    assert!(code == 2 && stdout.contains("BAD   processors"), "{stdout}");
}
