//! Nodes whose data are lost, or too old for the log of their leader: they are sent copies, and are as the others after that.

use crate::{
    common::{Cluster, until},
    gaps::Load,
    nodes::{until_in_sync, until_whole},
};
use hyper::{Method, StatusCode, body::Bytes};
use kv_proto::stats::Role;
use std::{fs, time::Duration, time::Instant};

const FLAGS: [&str; 6] = ["--shards", "1", "--partitions", "4", "--rebalance-after-s", "0"];
/// Logs that are let go of soon.
const ENVIRONMENT: [(&str, &str); 3] =
    [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];
const DEADLINE: Duration = Duration::from_secs(5);
const KEYS: usize = 2000;

fn path(key: usize) -> String {
    format!("/v1/kv/key-{key}")
}

/// The value of a key after so many rounds of writes.
fn value(key: usize, round: usize) -> Vec<u8> {
    let mut value = format!("{key} of round {round} ").into_bytes();
    value.resize(value.len() + key * 37 % 5000, b'.');
    value
}

#[track_caller]
fn write(cluster: &Cluster, keys: impl Iterator<Item = usize>, round: usize) {
    for key in keys {
        until("it is written", || {
            let answer = cluster.send(Method::PUT, &path(key), &[], Bytes::from(value(key, round)));
            (answer.status == StatusCode::NO_CONTENT).then_some(())
        });
    }
}

#[track_caller]
fn all_there(cluster: &Cluster, round_of: impl Fn(usize) -> usize) {
    for key in 0..KEYS {
        let answer = cluster.send(Method::GET, &path(key), &[], "");
        assert!(answer.status == StatusCode::OK && answer.body == value(key, round_of(key)), "{key}: {answer:?}");
    }
}

/// Waits until the leader is alone.
#[track_caller]
fn until_alone(cluster: &Cluster) {
    until("the leader is alone", || {
        let map = cluster.topology().map;
        map.partitions.iter().all(|p| p.configuration.as_ref().is_some_and(|c| c.in_sync.is_empty())).then_some(())
    });
}

/// First the follower, and then who leads; what the first was sent serves then.
#[test]
fn a_node_that_lost_its_data_is_refilled_from_its_peer() {
    let cluster = Cluster::start(&FLAGS);
    write(&cluster, 0..KEYS, 0);
    let disk = |name: &str| cluster.topology().map.nodes.into_iter().find(|n| n.id.as_str() == name).map(|n| n.disk);
    let mut again = Vec::new();
    for victim in ["shard0-follower", "shard0-leader"] {
        let before = disk(victim);
        let recipe = cluster.kill(victim);
        fs::remove_dir_all(recipe.data_dir()).expect("its data are removed");
        // A member that is not known to be gone yet could be taken for one that has lost what it answers for.
        until_alone(&cluster);
        let since = Instant::now();
        again.push(recipe.start());
        until_whole(&cluster);
        println!("{victim} has {KEYS} keys again after {:?}", since.elapsed());
        assert_ne!(disk(victim), before, "it is a stranger with the same name");
        all_there(&cluster, |_| 0);
    }
    assert_eq!(cluster.leaders(0), ["shard0-follower"]);
    write(&cluster, (0..KEYS).step_by(10), 1);
    until_whole(&cluster);
}

/// Started so soon that nobody has noticed that it was gone.
#[test]
fn a_leader_that_comes_back_at_once_without_its_data_does_not_lead() {
    let cluster = Cluster::start(&FLAGS);
    write(&cluster, 0..KEYS, 0);
    let recipe = cluster.kill("shard0-leader");
    fs::remove_dir_all(recipe.data_dir()).expect("its data are removed");
    let _leader = recipe.start();
    until_whole(&cluster);
    assert_eq!(cluster.leaders(0), ["shard0-follower"]);
    all_there(&cluster, |_| 0);
}

/// The log is let go of while copies are on their way, and what is copied changes.
#[test]
fn a_node_that_lost_its_data_is_refilled_under_load() {
    let cluster = Cluster::start_with(&FLAGS, &ENVIRONMENT);
    write(&cluster, 0..KEYS, 0);
    let mut again = Vec::new();
    for victim in ["shard0-follower", "shard0-leader"] {
        // Clients that know where the nodes are now: nothing would have told them of a follower at another port.
        let load = Load::start(&cluster, DEADLINE);
        let recipe = cluster.kill(victim);
        fs::remove_dir_all(recipe.data_dir()).expect("its data are removed");
        load.until_flows(|_| true);
        let since = Instant::now();
        again.push(recipe.start());
        until_in_sync(&cluster, victim);
        println!("{victim} is in sync again after {:?}, under load", since.elapsed());
        load.until_flows(|_| true);
        let mut written = load.stop();
        println!("{} writes were acknowledged", written.acknowledged);
        until_whole(&cluster);
        written.check(&cluster);
    }
    all_there(&cluster, |_| 0);
}

/// It has its data, and its leader has no log any more that reaches back to them.
#[test]
fn a_node_that_was_away_for_longer_than_the_log_reaches_back_is_sent_copies() {
    let cluster = Cluster::start_with(&FLAGS, &ENVIRONMENT);
    write(&cluster, 0..KEYS, 0);
    until_whole(&cluster);
    let log = cluster.dir.path().join("nodes/shard0-leader/log");
    let segments = || {
        let mut names: Vec<_> = fs::read_dir(&log).expect("there").flatten().map(|e| e.file_name()).collect();
        names.sort();
        names.into_iter().filter(|n| n.to_string_lossy().ends_with(".log")).collect::<Vec<_>>()
    };
    let recipe = cluster.kill("shard0-follower");
    until_alone(&cluster);
    let last = segments().pop().expect("a segment");
    let mut round = 0;
    until("the log does not reach back any more", || {
        round += 1;
        write(&cluster, (0..KEYS).step_by(4), round);
        segments().first().is_some_and(|first| *first > last).then_some(())
    });
    println!("after {round} rounds the log begins after {last:?}");
    let follower = recipe.start();
    until_whole(&cluster);
    let topology = cluster.topology();
    let stats = topology.nodes.iter().find(|n| n.node == "shard0-follower").and_then(|n| n.stats.as_ref());
    assert!(stats.is_some_and(|s| s.replicas.iter().all(|r| r.role == Role::Follower)), "{stats:?}");
    all_there(&cluster, |key| if key % 4 == 0 { round } else { 0 });
    // What it was sent is on its disk: it comes back with that.
    crate::again::end(follower.pid(), rustix::process::Signal::KILL);
    let _follower = recipe.start();
    until_whole(&cluster);
}
