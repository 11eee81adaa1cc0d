//! Values that expire: gone for everybody, on every replica, and never before a record says so.

use crate::common::{Cluster, run, signal, until};
use hyper::{Method, header::IF_NONE_MATCH};
use rustix::process::Signal;
use std::time::{Duration, Instant};

fn keys(cluster: &Cluster) -> Option<Vec<u64>> {
    let nodes = cluster.topology().nodes;
    nodes.iter().map(|n| n.stats.as_ref().map(|s| s.replicas.iter().map(|r| r.keys).sum())).collect()
}

#[test]
fn values_with_a_life_are_gone_by_themselves_on_every_replica() {
    let cluster = Cluster::start(&["--shards", "1"]);
    let put = |path: &str| cluster.send(Method::PUT, path, &[], "value").status;
    let get = |path: &str| cluster.send(Method::GET, path, &[], "").status;
    assert_eq!(put("/v1/kv/stays?ttl=3600"), 204);
    let found = cluster.send(Method::GET, "/v1/kv/stays", &[], "");
    let left = found.headers["kv-expires-in"].to_str().ok().and_then(|l| l.parse().ok()).unwrap_or(0.0);
    assert!((1800.0..=3600.0).contains(&left), "{found:?}");
    assert_eq!(put("/v1/kv/was-short?ttl=0.3"), 204);
    assert_eq!(put("/v1/kv/was-short"), 204, "a write without a life ends the one before");
    for i in 0..200 {
        assert_eq!(put(&format!("/v1/kv/swept-{i}?ttl=0.3")), 204);
    }
    assert_eq!(run(&mut cluster.kv(&["put", "read", "value", "--ttl", "400ms"])).0, 0);
    until("a value that is read is gone", || (get("/v1/kv/read") == 404).then_some(()));
    assert_eq!(cluster.send(Method::PUT, "/v1/kv/read", &[(IF_NONE_MATCH, "*")], "again").status, 204);

    until("values that nobody reads are gone from both replicas", || (keys(&cluster)? == [3, 3]).then_some(()));
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    for (path, status) in [("stays", 200), ("was-short", 200), ("read", 200), ("swept-7", 404)] {
        assert_eq!(get(&format!("/v1/kv/{path}")), status, "{path}");
    }
    let (code, _, stderr) = run(&mut cluster.kv(&["put", "read", "value", "--ttl", "0s"]));
    assert!(code == 2 && stderr.contains("is no time to live"), "{stderr}");
}

/// The delete of an expired value needs the follower, and until it is committed nobody may learn that it is gone.
#[test]
fn a_value_that_cannot_be_deleted_is_neither_there_nor_missing() {
    // A leader that may not go on alone.
    let cluster = Cluster::start(&["--shards", "1", "--min-in-sync", "2"]);
    let follower = cluster.process("shard0-follower").pid;
    let status = |method: Method, path: &str| cluster.send(method, path, &[], "value").status.as_u16();
    let mut expires = Instant::now();
    until("the follower hangs before the value expires", || {
        assert_eq!(status(Method::PUT, "/v1/kv/key?ttl=3"), 204);
        expires = Instant::now() + Duration::from_secs(3);
        signal(follower, Signal::STOP);
        let there = status(Method::GET, "/v1/kv/key") == 200;
        if !there {
            signal(follower, Signal::CONT);
            // Whatever became of it, the next write of the key is taken.
            until("writes are taken", || (status(Method::PUT, "/v1/kv/key") == 204).then_some(()));
        }
        there.then_some(())
    });
    let refused = until("the value expires", || {
        let answer = cluster.send(Method::GET, "/v1/kv/key", &[], "");
        // Until the leader has given the follower up, a read may be refused for that.
        (answer.status != 200 && Instant::now() > expires).then_some(answer)
    });
    assert_eq!((refused.status.as_u16(), &refused.json()["outcome"]), (503, &"not_applied".into()), "{refused:?}");
    signal(follower, Signal::CONT);
    until("it is gone", || match status(Method::GET, "/v1/kv/key") {
        404 => Some(()),
        503 => None,
        other => panic!("{other} for a value that has expired"),
    });
}
