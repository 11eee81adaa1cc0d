//! What a person does to a cluster by `kv admin`, and sees of it by `kv status`.

use crate::{
    common::{BOUND, Cluster, Http, Spawned, run, signal, until, until_ok},
    nodes::{FOLLOWER, LEADER, PAIR, kill, leaders, start_node, until_whole},
};
use hyper::{
    Method, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, ETAG},
};
use rustix::process::Signal;
use serde_json::json;
use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Instant,
};

/// Runs `kv` with these arguments: exit code and what it printed, stdout before stderr.
fn admin(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = run(&mut cluster.kv(arguments));
    (code, stdout + &stderr)
}

/// A planned hand-off loses nothing, and nothing fails with an outcome that nobody knows.
#[test]
fn leadership_passes_under_load_without_a_loss() {
    let cluster = Cluster::start(&PAIR);
    let stop = AtomicBool::new(false);
    let write = || {
        let http = Http::new(&cluster.url);
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if stop.load(SeqCst) {
                break;
            }
            let body = json!({"key": format!("key-{n}"), "value": n}).to_string();
            let headers = [(CONTENT_TYPE, "application/json")];
            let answer = http.try_send(Method::POST, "/put", &headers, Bytes::from(body)).expect("the router answers");
            match answer.status {
                StatusCode::OK => acknowledged.push(n),
                _ => assert_eq!(answer.json()["outcome"], "not_applied", "{answer:?}"),
            }
        }
        acknowledged
    };
    let acknowledged = thread::scope(|scope| {
        let writer = scope.spawn(write);
        let (code, told) = admin(&cluster, &["admin", "handoff", "3"]);
        assert!(code == 0 && told.contains(&format!("1 partition is led by {FOLLOWER} now")), "{told}");
        assert_eq!(leaders(&cluster), [FOLLOWER, LEADER]);
        until_whole(&cluster);
        let (code, told) = admin(&cluster, &["admin", "handoff", "--node", LEADER]);
        assert!(code == 0 && told.contains(&format!("7 partitions are led by {FOLLOWER} now")), "{told}");
        assert_eq!(leaders(&cluster), [FOLLOWER]);
        until_whole(&cluster);
        let (code, told) = admin(&cluster, &["admin", "handoff", "--all", "--to", LEADER]);
        assert!(code == 0 && told.contains(&format!("8 partitions are led by {LEADER} now")), "{told}");
        until_whole(&cluster);
        stop.store(true, SeqCst);
        writer.join().expect("no failed write of unknown outcome")
    });
    assert_eq!(leaders(&cluster), [LEADER]);
    assert!(!acknowledged.is_empty());
    for n in acknowledged {
        assert_eq!(cluster.get(&format!("key-{n}")).json()["value"], json!(n));
    }
}

#[test]
fn what_cannot_be_handed_off_or_dropped_is_told() {
    let cluster = Cluster::start(&PAIR);
    for (arguments, code, expected) in [
        (&["handoff", "8"][..], 2, "the cluster has no partition 8, only 0 to 7"),
        (&["handoff", "--node", FOLLOWER], 2, "shard0-follower leads no partition"),
        (&["handoff", "1", "--to", LEADER], 2, "(409 Conflict, not_in_sync, not_applied)"),
        (&["handoff", "--all", "--to", "x"], 2, "the cluster has no node x; it has shard0-follower, shard0-leader"),
        (&["drop", "1", "--node", LEADER], 2, "(409 Conflict, not_in_sync, not_applied)"),
        (&["drop", "--all", "--node", LEADER], 2, "shard0-leader is an in-sync follower of no partition"),
        (&["force-recover", "1", "--leader", FOLLOWER, "--yes"], 2, "its leader shard0-leader answers and leads"),
        (&["force-recover", "1", "--leader", FOLLOWER], 2, "nothing was changed"),
    ] {
        let (got, told) = admin(&cluster, &[&["admin"], arguments].concat());
        assert!(got == code && told.contains(expected), "{arguments:?}: {got} {told}");
    }
    assert_eq!(leaders(&cluster), [LEADER]);
    assert_eq!(run(&mut cluster.kv(&["status"])).0, 0);
}

#[test]
fn a_follower_that_is_dropped_and_alive_comes_back_by_itself() {
    let cluster = Cluster::start(&PAIR);
    assert_eq!(cluster.put("key", &json!(1)).status, 200);
    let (code, told) = admin(&cluster, &["admin", "drop", "--all", "--node", FOLLOWER]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("8 partitions are led by shard0-leader without shard0-follower now"), "{told}");
    assert!(told.contains("it catches up and is in sync again by itself"), "{told}");
    assert_eq!(cluster.put("key", &json!(2)).status, 200);
    until_whole(&cluster);
    assert_eq!(cluster.get("key").json()["value"], json!(2));
}

/// The leader went on alone, and then its disk is lost: what the follower has is all there is.
#[test]
fn recovery_by_force_goes_on_with_what_there_is_in_a_new_history() {
    let cluster = Cluster::start(&PAIR);
    let path = "/v1/kv/kept";
    let etag = |cluster: &Cluster| cluster.send(Method::GET, path, &[], "").headers[ETAG].clone();
    assert_eq!(cluster.send(Method::PUT, path, &[], "old").status, StatusCode::NO_CONTENT);
    let before = etag(&cluster);
    until_whole(&cluster);
    kill(&cluster, FOLLOWER);
    until("the leader goes on alone", || {
        (cluster.send(Method::PUT, path, &[], "lost").status == StatusCode::NO_CONTENT).then_some(())
    });
    let (code, status, _) = run(&mut cluster.kv(&["status", "--partitions"]));
    assert!(code == 1 && status.contains("DEGRADED: 8 of 8 partitions are alone"), "{status}");
    kill(&cluster, LEADER);
    let _follower = start_node(&cluster, FOLLOWER, &[]);
    until_ok("the follower is a learner of a leader that is gone", || {
        let status = run(&mut cluster.kv(&["status"])).1;
        let row = status.lines().find(|line| line.starts_with(FOLLOWER)).unwrap_or_default();
        if status.contains("UNAVAILABLE") && row.contains("  learning ") { Ok(()) } else { Err(status) }
    });

    let by_force = ["admin", "force-recover", "--led-by", LEADER, "--leader", FOLLOWER];
    let (code, told) = admin(&cluster, &by_force);
    assert!(code == 2 && told.contains("make sure that shard0-leader is stopped for good"), "{told}");
    assert!(told.contains("whatever shard0-leader has after LSN"), "{told}");
    let (code, told) = admin(&cluster, &[&by_force[..], &["--yes"]].concat());
    assert!(code == 0 && told.contains("8 partitions begin a new history, led by shard0-follower alone"), "{told}");
    let recovered = until("it is served", || {
        let answer = cluster.send(Method::GET, path, &[], "");
        (answer.status == StatusCode::OK).then_some(answer)
    });
    assert_eq!(recovered.body, "old");
    assert_ne!(recovered.headers[ETAG], before, "a version of the lost history matches nothing");
    until("writes are taken", || {
        (cluster.send(Method::PUT, path, &[], "new").status == StatusCode::NO_CONTENT).then_some(())
    });

    // What the old leader has beyond that is void.
    let _leader = start_node(&cluster, LEADER, &[]);
    until_whole(&cluster);
    assert_eq!(cluster.send(Method::GET, path, &[], "").body, "new");
}

/// The events of a watched cluster, and that watching ends when it is told to.
#[test]
fn a_watched_cluster_tells_what_happens_in_lines() {
    let cluster = Cluster::start(&PAIR);
    let mut watch = Spawned::start(&mut cluster.kv(&["status", "--watch", "--interval", "100ms"]));
    let told = |watch: &Spawned, what: &str| watch.output.wait_for(what, |line| line.contains(what).then_some(()));
    told(&watch, "Z the cluster is ready");
    let killed = Instant::now();
    kill(&cluster, LEADER);
    told(&watch, "shard 0: 8 partitions now led by shard0-follower (epoch");
    assert!(killed.elapsed() < BOUND / 2, "{:?}", killed.elapsed());
    told(&watch, "shard0-leader does not answer");
    told(&watch, "the cluster is DEGRADED: 8 of 8 partitions are alone: shard0-follower leads");
    let _leader = start_node(&cluster, LEADER, &[]);
    told(&watch, "8 partitions now with shard0-leader in sync");
    signal(watch.pid(), Signal::INT);
    assert_eq!(watch.wait().code(), Some(0));
}
