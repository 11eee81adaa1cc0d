//! What a whole cluster does when its processes stop, die and come back: never a false success, always a word of it.

use crate::common::{Answer, BOUND, Cluster, Process, run, runs, signal, until, until_ok};
use kv_proto::{cluster_map::AckMode, ids::PartitionId, routing::partition_of};
use rustix::process::Signal;
use serde_json::json;
use std::{thread, time::Instant};

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["outcome"].as_str().unwrap_or_default().to_owned())
}

/// Writes wait for a follower that hangs until the leader goes on without it; then it has what it missed.
#[test]
fn a_follower_that_hangs_holds_up_writes_of_its_shard_for_a_moment_and_nothing_else() {
    // Nodes that were just started have more patience with each other.
    let cluster = Cluster::start(&["--start-patience-ms", "100"]);
    let (key, elsewhere) = (cluster.key_on(0, "kept"), cluster.key_on(1, "elsewhere"));
    assert_eq!(cluster.put(&key, &json!("old")).status, 200);
    let follower = cluster.process("shard0-follower").pid;
    signal(follower, Signal::STOP);
    let (elsewhere_took, took) = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let since = Instant::now();
            assert_eq!(cluster.put(&elsewhere, &json!("written")).status, 200);
            since.elapsed()
        });
        let since = Instant::now();
        until("writes are taken", || {
            let outcome = outcome(&cluster.put(&key, &json!("alone")));
            // What was in flight when the follower hung may be told of too late.
            let refused = [(503, "not_applied".to_owned()), (504, "unknown".to_owned())];
            assert!(outcome.0 == 200 || refused.contains(&outcome), "{outcome:?}");
            (outcome.0 == 200).then_some(())
        });
        (other.join().expect("written"), since.elapsed())
    });
    println!("a write waited for {took:?}, one of another shard for {elsewhere_took:?}");
    assert!(took < BOUND / 3, "{took:?}");
    assert_eq!(cluster.get(&key).json()["value"], json!("alone"));
    until_ok("the leader goes on alone with all of its partitions", || {
        let status = run(&mut cluster.kv(&["status"])).1;
        if status.contains("DEGRADED") && status.contains("alone: shard0-leader") { Ok(()) } else { Err(status) }
    });

    signal(follower, Signal::CONT);
    until_ok("all replicas agree", || cluster.check_replicas());
    assert_eq!(cluster.get(&key).json()["value"], json!("alone"));
}

/// Where a write needs two replicas, it waits for the follower, and is not read before that has it.
#[test]
fn what_was_proposed_while_the_follower_was_away_commits_by_itself_when_it_is_back() {
    let cluster = Cluster::start(&["--shards", "1", "--min-in-sync", "2"]);
    let other = (0..).map(|i| format!("other-{i}")).find(|k| partition(k) != partition("key")).expect("some");
    for key in ["key", &other] {
        assert_eq!(cluster.put(key, &json!("old")).status, 200);
    }
    let follower = cluster.process("shard0-follower").pid;
    signal(follower, Signal::STOP);
    // Proposed to a follower that is not known yet to hang, unless this machine stalls here for a second.
    let proposed = outcome(&cluster.put("key", &json!("new")));
    let may_be = [(504, "unknown".to_owned()), (503, "not_applied".to_owned())];
    assert!(may_be.contains(&proposed), "{proposed:?}");
    until("new writes are refused", || {
        let outcome = outcome(&cluster.put(&other, &json!("never")));
        assert!(may_be.contains(&outcome), "{outcome:?}");
        (outcome.0 == 503).then_some(())
    });
    // What is not committed is not read.
    for key in ["key", &other] {
        until("it is read", || {
            let answer = cluster.get(key);
            assert!(answer.status == 503 || answer.json()["value"] == json!("old"), "{answer:?}");
            (answer.status == 200).then_some(())
        });
    }
    signal(follower, Signal::CONT);
    if proposed.0 == 504 {
        until("it is committed", || (cluster.get("key").json()["value"] == json!("new")).then_some(()));
    }
    until("writes are taken again", || (cluster.put(&other, &json!("last")).status == 200).then_some(()));
    until_ok("all replicas agree", || cluster.check_replicas());
    assert_eq!(cluster.get(&other).json()["value"], json!("last"));
}

fn partition(key: &str) -> PartitionId {
    partition_of(key.as_bytes(), 64)
}

/// Kills a process of a cluster that runs with `--restart`, and waits until it is back.
pub(crate) fn kill_and_wait(cluster: &Cluster, name: &str) {
    let Process { pid: old_pid, address, .. } = cluster.process(name);
    signal(old_pid, Signal::KILL);
    let report = format!("{name} (process {old_pid}) was killed by signal 9 (SIGKILL); starting it again");
    cluster.supervisor.output.wait_for("the death is reported", |l| l.contains(&report).then_some(()));
    // It is in no list while it is down.
    let running = || cluster.manifest().processes.into_iter().find(|p| p.name == name);
    let restarted = until("cluster.json is rewritten", || running().filter(|p| p.pid != old_pid));
    assert_eq!(restarted.address, address, "it comes back where it was");
}

#[test]
fn a_killed_node_comes_back_with_what_it_had_and_goes_on() {
    let cluster = Cluster::start(&["--restart"]);
    let key = cluster.key_on(1, "key");
    for (at, name) in ["shard1-follower", "shard1-leader"].into_iter().enumerate() {
        until("writes are taken", || (cluster.put(&key, &json!(at)).status == 200).then_some(()));
        kill_and_wait(&cluster, name);
        until("it is served again", || (cluster.get(&key).json()["value"] == json!(at)).then_some(()));
    }
    until("writes are taken again", || (cluster.put(&key, &json!("new")).status == 200).then_some(()));
    until_ok("all replicas agree", || cluster.check_replicas());
    assert_eq!(cluster.get(&key).json()["value"], json!("new"));
}

#[test]
fn a_killed_router_comes_back_to_the_same_data() {
    let cluster = Cluster::start(&["--shards", "1", "--restart", "--ack", "replicated"]);
    assert_eq!(cluster.topology().map.ack, AckMode::Replicated);
    assert_eq!(cluster.put("key", &json!("kept")).status, 200);
    let router = cluster.process("router").pid;
    signal(router, Signal::KILL);
    let running = || cluster.manifest().processes.into_iter().find(|p| p.name == "router");
    until("cluster.json is rewritten", || running().filter(|p| p.pid != router));
    until("it serves again, at the same address", || {
        (run(&mut cluster.kv(&["get", "key"])).1 == "kept\n").then_some(())
    });
    until("writes are taken", || (run(&mut cluster.kv(&["put", "key", "new"])).0 == 0).then_some(()));
}

#[test]
fn without_restart_a_death_is_reported_and_the_rest_goes_on() {
    let cluster = Cluster::start(&[]);
    let key = cluster.key_on(0, "key");
    let leader = cluster.process("shard2-leader").pid;
    signal(leader, Signal::KILL);
    let report = format!("shard2-leader (process {leader}) was killed by signal 9 (SIGKILL); it stays down");
    cluster.supervisor.output.wait_for("the death is reported", |l| l.contains(&report).then_some(()));
    assert_eq!(cluster.put(&key, &json!(1)).status, 200);
    let orphan = cluster.key_on(2, "key");
    until("its follower takes writes", || {
        let outcome = outcome(&cluster.put(&orphan, &json!(1)));
        assert!(outcome.0 == 200 || [503, 504].contains(&outcome.0), "{outcome:?}");
        (outcome.0 == 200).then_some(())
    });
    let (code, status, _) = run(&mut cluster.kv(&["status"]));
    assert_eq!(code, 1, "{status}");
    assert!(status.contains("trouble: shard2-leader does not answer"), "{status}");
    assert!(status.contains("alone: shard2-follower"), "{status}");
}

#[test]
fn an_interrupt_stops_everything_and_is_a_success() {
    let mut cluster = Cluster::start(&[]);
    let processes = cluster.manifest().processes;
    signal(cluster.supervisor.pid(), Signal::INT);
    assert_eq!(cluster.supervisor.wait().code(), Some(0));
    for process in processes {
        assert!(!runs(process.pid), "{process:?}");
    }
    assert!(!cluster.dir.path().join("cluster.json").exists());
    cluster.supervisor.output.wait_for("a last word", |l| (l == "supervisor: stopped").then_some(()));
}

#[test]
fn a_second_interrupt_kills_what_does_not_stop() {
    let mut cluster = Cluster::start(&["--shards", "1"]);
    let processes = cluster.manifest().processes;
    signal(cluster.process("shard0-follower").pid, Signal::STOP);
    signal(cluster.supervisor.pid(), Signal::INT);
    cluster.supervisor.output.wait_for("it is stopping", |l| l.contains("once more kills it").then_some(()));
    signal(cluster.supervisor.pid(), Signal::INT);
    assert_eq!(cluster.supervisor.wait().code(), Some(130));
    assert!(processes.iter().all(|p| !runs(p.pid)), "{processes:?}");
}

#[test]
fn nothing_outlives_a_killed_supervisor_and_its_directory_is_free_again() {
    let mut cluster = Cluster::start(&["--shards", "1"]);
    let processes = cluster.manifest().processes;
    signal(cluster.supervisor.pid(), Signal::KILL);
    cluster.supervisor.wait();
    for process in processes {
        until(&format!("{} is gone", process.name), || (!runs(process.pid)).then_some(()));
    }
    let cluster = Cluster::start_in(cluster.into_dir(), &["--shards", "1"]);
    until("writes are taken", || (cluster.put("key", &json!(1)).status == 200).then_some(()));
}
