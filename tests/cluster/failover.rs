//! Nodes that die, hang and come back: another leads in their place, nothing that was acknowledged is lost, nothing old is
//! read, and nobody has to do anything.

use crate::{
    binary::Call,
    common::{Cluster, signal, until},
    load::{Acknowledged, audit, keys, under_load},
    nodes::{
        FOLLOWER, LEADER, PAIR, kill, leaders, replicas, start_node, until_in_sync, until_led_by, until_put,
        until_whole,
    },
};
use hyper::{Method, StatusCode, body::Bytes};
use kv_proto::{cluster_map::AckMode, request::Operation, stats::Role};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// Logs so small that they are reused soon.
const SMALL_LOGS: [&str; 6] =
    ["--max-value-bytes", "65536", "--segment-bytes", "1152KiB", "--max-log-bytes", "3456KiB"];
const SMALL_LOGS_BY_ENVIRONMENT: [(&str, &str); 3] =
    [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];

fn put(cluster: &Cluster, key: &str, value: impl Into<Bytes>) -> StatusCode {
    cluster.send(Method::PUT, &format!("/v1/kv/{key}"), &[], value).status
}

#[track_caller]
fn read(cluster: &Cluster, key: &str) -> String {
    let answer = cluster.send(Method::GET, &format!("/v1/kv/{key}"), &[], "");
    assert_eq!(answer.status, StatusCode::OK, "{key}: {answer:?}");
    String::from_utf8(answer.body.to_vec()).expect("a text")
}

/// Kills nodes at one moment.
fn kill_at_once(cluster: &Cluster, nodes: &[&str]) {
    let pids: Vec<_> = nodes.iter().map(|name| cluster.process(name).pid).collect();
    for pid in &pids {
        kill_process(Pid::from_raw(*pid as i32).expect("a process id"), Signal::KILL).expect("it runs");
    }
    for (name, pid) in nodes.iter().zip(pids) {
        let report = format!("{name} (process {pid}) was killed");
        cluster.supervisor.output.wait_for("its death is reported", |line| line.contains(&report).then_some(()));
    }
}

/// First the leader, which leads again once it is back for a while; then the follower.
#[test]
fn whoever_dies_under_load_is_done_without_and_taken_back() {
    let cluster = Cluster::start(&[&PAIR[..], &["--rebalance-after-s", "1"]].concat());
    let (mut keys, acknowledged) = (keys(), Acknowledged::default());
    let mut again = Vec::new();
    under_load(&cluster, &mut keys, &acknowledged, 0, || {
        acknowledged.until_more("writes are acknowledged", 200);
        kill(&cluster, LEADER);
        acknowledged.until_more("writes are acknowledged without the leader", 400);
        assert_eq!(leaders(&cluster), [FOLLOWER]);
        again.push(start_node(&cluster, LEADER, &[]));
        until_led_by(&cluster, LEADER);
        acknowledged.until_more("writes are acknowledged by the leader that is back", 200);

        until_in_sync(&cluster, FOLLOWER);
        kill(&cluster, FOLLOWER);
        acknowledged.until_more("writes are acknowledged without the follower", 400);
        assert_eq!(leaders(&cluster), [LEADER]);
        again.push(start_node(&cluster, FOLLOWER, &[]));
        until_in_sync(&cluster, FOLLOWER);
        acknowledged.until_more("writes are acknowledged by both", 200);
    });
    audit(&cluster, &mut keys);
}

/// One of three after the other, until one is left; then they come back one after the other.
#[test]
fn of_three_replicas_the_last_one_serves_alone() {
    let cluster = Cluster::start(&["--shards", "1", "--partitions", "8", "--replicas", "3"]);
    let (mut keys, acknowledged) = (keys(), Acknowledged::default());
    let mut again = Vec::new();
    under_load(&cluster, &mut keys, &acknowledged, 0, || {
        acknowledged.until_more("writes are acknowledged by three", 200);
        kill(&cluster, LEADER);
        acknowledged.until_more("writes are acknowledged by two", 200);
        let second = leaders(&cluster).swap_remove(0);
        kill(&cluster, &second);
        acknowledged.until_more("writes are acknowledged by one", 200);
        for node in [LEADER, &second] {
            again.push(start_node(&cluster, node, &[]));
            until_in_sync(&cluster, node);
            acknowledged.until_more("writes are acknowledged by more", 100);
        }
    });
    audit(&cluster, &mut keys);
}

/// Either has everything: both were in sync.
#[test]
fn when_both_were_killed_the_first_that_is_back_serves_all() {
    for (first, second) in [(FOLLOWER, LEADER), (LEADER, FOLLOWER)] {
        // So that the follower does not take over between the two kills.
        let cluster = Cluster::start(&[&PAIR[..], &["--grace-ms", "6000"]].concat());
        for i in 0..50 {
            assert_eq!(put(&cluster, &format!("key-{i}"), format!("value-{i}")), StatusCode::NO_CONTENT);
        }
        kill_at_once(&cluster, &[LEADER, FOLLOWER]);
        let _first = start_node(&cluster, first, &["--grace-ms", "6000"]);
        until_put(&cluster, "alone", first);
        assert_eq!(leaders(&cluster), [first]);
        for i in 0..50 {
            assert_eq!(read(&cluster, &format!("key-{i}")), format!("value-{i}"));
        }
        let _second = start_node(&cluster, second, &["--grace-ms", "6000"]);
        until_whole(&cluster);
        assert_eq!(read(&cluster, "alone"), first);
    }
}

/// What was acknowledged from memory may be missing at one of them, and so neither leads alone.
#[test]
fn when_both_were_killed_that_acknowledge_from_memory_they_serve_once_both_are_back() {
    let cluster = Cluster::start(&[&PAIR[..], &["--ack", "replicated"]].concat());
    assert_eq!(cluster.topology().map.ack, AckMode::Replicated);
    until_put(&cluster, "key", "before");
    // It is on both disks by then.
    let flushed = || {
        replicas(&cluster, FOLLOWER).iter().all(|r| r.flushed_lsn == r.prepared_lsn && r.applied_lsn == r.prepared_lsn)
    };
    until("it is on disk", || flushed().then_some(()));
    kill_at_once(&cluster, &[LEADER, FOLLOWER]);
    let _follower = start_node(&cluster, FOLLOWER, &[]);
    let waits = |role: Role| {
        let replicas = replicas(&cluster, FOLLOWER);
        (!replicas.is_empty() && replicas.iter().all(|r| r.role == role)).then_some(())
    };
    until("the follower is there", || waits(Role::Follower));
    let _leader = start_node(&cluster, LEADER, &[]);
    until_put(&cluster, "key", "after");
    until_whole(&cluster);
}

/// What is in sync holds every acknowledged write; whoever does not answer is in sync no more.
#[test]
fn a_follower_that_hangs_is_done_without_and_comes_back_by_itself() {
    let cluster = Cluster::start(&PAIR);
    until_put(&cluster, "key", "old");
    let follower = cluster.process(FOLLOWER).pid;
    signal(follower, Signal::STOP);
    until_put(&cluster, "key", "new");
    until("it is left out", || {
        let map = cluster.topology().map;
        map.partitions().all(|(id, _)| map.configuration(id).is_some_and(|c| c.in_sync.is_empty())).then_some(())
    });
    assert_eq!(read(&cluster, "key"), "new");
    signal(follower, Signal::CONT);
    until_whole(&cluster);
    kill(&cluster, LEADER);
    until_put(&cluster, "other", "value");
    assert_eq!(read(&cluster, "key"), "new");
}

/// Without anything: it is sent all that the leader has, while that is written to.
#[test]
fn a_node_that_lost_its_disk_is_filled_again() {
    let cluster = Cluster::start(&PAIR);
    filled_again(&cluster, &[], |folder| fs::remove_dir_all(folder).expect("its data are there"));
}

/// With data that are so old that the leader's log has not all that came later.
#[test]
fn a_node_that_was_away_for_longer_than_the_log_lasts_is_filled_again() {
    let cluster = Cluster::start_with(&PAIR, &SMALL_LOGS_BY_ENVIRONMENT);
    filled_again(&cluster, &SMALL_LOGS, |_| {
        for i in 0..400 {
            assert_eq!(put(&cluster, &format!("while-away-{}", i % 40), vec![b'w'; 60_000]), StatusCode::NO_CONTENT);
        }
    });
}

fn filled_again(cluster: &Cluster, flags: &[&str], while_it_is_away: impl FnOnce(&std::path::Path)) {
    let (mut keys, acknowledged) = (keys(), Acknowledged::default());
    for i in 0..300 {
        assert_eq!(put(cluster, &format!("before-{i}"), vec![b'b'; 10_000]), StatusCode::NO_CONTENT);
    }
    let mut again = Vec::new();
    under_load(cluster, &mut keys, &acknowledged, 0, || {
        kill(cluster, FOLLOWER);
        while_it_is_away(&cluster.dir.path().join("nodes").join(FOLLOWER));
        acknowledged.until_more("writes are acknowledged without it", 100);
        again.push(start_node(cluster, FOLLOWER, flags));
        until_in_sync(cluster, FOLLOWER);
        acknowledged.until_more("writes are acknowledged by both", 100);
    });
    until_whole(cluster);
    // What it has is all that there is.
    kill(cluster, LEADER);
    until_put(cluster, "after", "value");
    for i in 0..300 {
        assert_eq!(read(cluster, &format!("before-{i}")), "b".repeat(10_000));
    }
    let _leader = start_node(cluster, LEADER, flags);
    until_whole(cluster);
    audit(cluster, &mut keys);
}

/// With a minimum of two, what cannot be at two is refused while that is certain, and never acknowledged.
#[test]
fn a_minimum_of_in_sync_replicas_stops_writes_and_not_reads() {
    let cluster = Cluster::start(&[&PAIR[..], &["--min-in-sync", "2"]].concat());
    until_put(&cluster, "key", "old");
    kill(&cluster, FOLLOWER);
    let outcome = || {
        let answer = cluster.send(Method::PUT, "/v1/kv/key", &[], "never");
        (answer.status.as_u16(), answer.json()["outcome"].as_str().unwrap_or_default().to_owned())
    };
    until("writes are refused", || {
        let outcome = outcome();
        // What was proposed to a follower that has just died.
        assert!(outcome.0 == 503 || outcome == (504, "unknown".to_owned()), "{outcome:?}");
        (outcome == (503, "not_applied".to_owned())).then_some(())
    });
    until("reads go on", || (cluster.get("key").status == StatusCode::OK).then_some(()));
    let _follower = start_node(&cluster, FOLLOWER, &["--min-in-sync", "2"]);
    until_put(&cluster, "key", "new");
    until_whole(&cluster);
}

/// Who leads is agreed on at the controller, so without it nobody takes over: nor does anybody once it is back, if the leader is.
#[test]
fn a_leader_that_dies_while_the_controller_hangs_is_replaced_when_that_is_back() {
    let cluster = Cluster::start(&PAIR);
    until_put(&cluster, "key", "old");
    let router = cluster.process("router").pid;
    signal(router, Signal::STOP);
    let leader = cluster.process(LEADER).pid;
    signal(leader, Signal::KILL);
    let follower = cluster.process(FOLLOWER).address.expect("it listens");
    let (mut call, _) = Call::client(&follower, None);
    call.send(&[(1, Operation::Get { key: b"key" })]);
    assert!(call.response().1.contains("NotLeader"), "the follower leads only when that is agreed on");
    signal(router, Signal::CONT);
    until_put(&cluster, "key", "new");
    assert_eq!(leaders(&cluster), [FOLLOWER]);
}
