//! What a whole cluster does when its processes stop, die and come back: never a false success, always a word of it.

use crate::common::{Answer, Cluster, Process, run, runs, signal, until};
use kv_proto::{cluster_map::AckMode, stats::Role};
use rustix::process::Signal;
use serde_json::json;

fn outcome(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["outcome"].as_str().unwrap_or_default().to_owned())
}

/// The follower holds every acknowledged write, so that without it none can be acknowledged.
#[test]
fn a_follower_that_hangs_stops_writes_of_its_shard_and_nothing_else() {
    let cluster = Cluster::start(&[]);
    let (key, in_flight) = (cluster.key_on(0, "kept"), cluster.key_on(0, "in-flight"));
    let elsewhere = cluster.key_on(1, "elsewhere");
    for key in [&key, &in_flight] {
        assert_eq!(cluster.put(key, &json!("old")).status, 200);
    }
    let follower = cluster.process("shard0-follower").pid;
    signal(follower, Signal::STOP);

    let may_be = |outcome: &(u16, String)| {
        ["504 unknown", "503 not_applied"].contains(&&*format!("{} {}", outcome.0, outcome.1))
    };
    // Proposed to a follower that is not known yet to hang, unless this machine stalls here for a second.
    let proposed = outcome(&cluster.put(&in_flight, &json!("new")));
    assert!(may_be(&proposed), "{proposed:?}");
    until("new writes are refused", || {
        let outcome = outcome(&cluster.put(&key, &json!("never")));
        assert!(may_be(&outcome), "{outcome:?}");
        (outcome.0 == 503).then_some(())
    });
    // What is not committed is not read.
    assert_eq!(cluster.get(&in_flight).json()["value"], json!("old"));
    assert_eq!(cluster.get(&key).json()["value"], json!("old"));
    assert_eq!(cluster.put(&elsewhere, &json!("written")).status, 200);

    signal(follower, Signal::CONT);
    until("writes are taken again", || (cluster.put(&key, &json!("last")).status == 200).then_some(()));
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    assert_eq!(cluster.get(&key).json()["value"], json!("last"));
    if proposed.0 == 504 {
        // It was never taken back.
        until("what was proposed is there", || (cluster.get(&in_flight).json()["value"] == json!("new")).then_some(()));
    }
}

/// Long enough for the connection to be given up, and then without a write that would wake the stream.
#[test]
fn what_was_proposed_while_the_follower_was_away_commits_by_itself_when_it_is_back() {
    let cluster = Cluster::start(&["--shards", "1"]);
    assert_eq!(cluster.put("key", &json!("old")).status, 200);
    let follower = cluster.process("shard0-follower").pid;
    signal(follower, Signal::STOP);
    assert_eq!(outcome(&cluster.put("key", &json!("new"))), (504, "unknown".to_owned()));
    until("the connection is given up", || {
        let leader = cluster.topology().nodes.into_iter().find(|n| n.node == "shard0-leader")?.stats?;
        let given_up = |t: &String| t.contains("no connection to follower");
        leader.replicas.iter().all(|r| r.trouble.as_ref().is_some_and(given_up)).then_some(())
    });
    signal(follower, Signal::CONT);
    until("it is committed", || (cluster.get("key").json()["value"] == json!("new")).then_some(()));
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
}

/// Kills a process of a cluster that runs with `--restart`, and waits until it is back.
pub(crate) fn kill_and_wait(cluster: &Cluster, name: &str) {
    let Process { pid: old_pid, address, .. } = cluster.process(name);
    signal(old_pid, Signal::KILL);
    let report = format!("{name} (process {old_pid}) was killed by signal 9 (SIGKILL); starting it again");
    cluster.supervisor.output.wait_for("the death is reported", |l| l.contains(&report).then_some(()));
    let restarted = until("cluster.json is rewritten", || Some(cluster.process(name)).filter(|p| p.pid != old_pid));
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
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    assert_eq!(cluster.get(&key).json()["value"], json!("new"));
}

#[test]
fn a_node_that_lost_its_data_refuses_its_part() {
    let cluster = Cluster::start(&["--restart"]);
    let key = cluster.key_on(1, "key");
    assert_eq!(cluster.put(&key, &json!("kept")).status, 200);
    std::fs::remove_dir_all(cluster.dir.path().join("nodes/shard1-follower")).expect("its data are removed");
    kill_and_wait(&cluster, "shard1-follower");
    let refuses = || {
        let topology = cluster.topology();
        let stats = topology.nodes.into_iter().find(|n| n.node == "shard1-follower")?.stats?;
        let refuses = |r: &kv_proto::stats::ReplicaStats| r.role == Role::Refused && r.trouble.is_some();
        (!stats.replicas.is_empty() && stats.replicas.iter().all(refuses)).then_some(())
    };
    until("it refuses its part", refuses);
    for (who, what) in [
        ("shard1-follower ", "this node refuses its role: shard1-follower is not a member"),
        ("shard1-leader ", "the follower was restarted and has lost what made it a member"),
    ] {
        let line = |l: &str| (l.contains(who) && l.contains(what)).then_some(());
        cluster.supervisor.output.wait_for("both say so in their logs", line);
    }
    let (code, status, _) = run(&mut cluster.kv(&["status"]));
    assert_eq!(code, 1);
    assert!(status.contains("trouble: shard1-follower, "), "{status}");
    let answer = cluster.put(&key, &json!("lost"));
    assert!([503, 504].contains(&answer.status.as_u16()), "{answer:?}");
    assert_eq!(cluster.get(&key).json()["value"], json!("kept"));
    assert_eq!(cluster.put(&cluster.key_on(0, "other"), &json!(1)).status, 200);
}

#[test]
fn a_killed_router_comes_back_to_the_same_data() {
    let cluster = Cluster::start(&["--shards", "1", "--restart", "--ack", "replicated"]);
    assert_eq!(cluster.topology().map.ack, AckMode::Replicated);
    assert_eq!(cluster.put("key", &json!("kept")).status, 200);
    let router = cluster.process("router").pid;
    signal(router, Signal::KILL);
    until("cluster.json is rewritten", || (cluster.process("router").pid != router).then_some(()));
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
    let lost = cluster.key_on(2, "key");
    until("the router knows that writes there cannot succeed", || {
        let answer = cluster.put(&lost, &json!(1));
        assert!(!answer.status.is_success(), "{answer:?}");
        (outcome(&answer) == (503, "not_applied".to_owned())).then_some(())
    });
    let (_, status, _) = run(&mut cluster.kv(&["status"]));
    assert!(status.contains("trouble: shard2-leader does not answer"), "{status}");
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
