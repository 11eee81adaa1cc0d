//! Nodes that die under load: others go on by themselves, nothing that was acknowledged is lost, and who comes back is taken in
//! again. How long that takes is measured.

use crate::{
    again::{Recipe, end, hold},
    common::{BOUND, Cluster, Spawned, run, signal, until},
    gaps::{Load, client, runtime},
    nodes::{until_in_sync, until_whole},
};
use kv_proto::{
    ids::{NodeId, PartitionId},
    stats::Role,
};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Leadership stays where it is, so that a test knows what it kills.
const TWO_SHARDS: [&str; 6] = ["--shards", "2", "--partitions", "8", "--rebalance-after-s", "0"];
const PAIR: [&str; 6] = ["--shards", "1", "--partitions", "4", "--rebalance-after-s", "0"];
/// The grace of a follower, and what its nodes, controller and clients need beside it, on a machine with much else to do.
const LONGEST_TAKEOVER: Duration = Duration::from_secs(10);
const LONGEST_DROP: Duration = Duration::from_secs(5);
const LONGEST_HANDOFF: Duration = Duration::from_secs(1);
/// How long a writer's request may take; it is retried as long as the client's rules allow.
const DEADLINE: Duration = Duration::from_secs(5);

fn anywhere(_: PartitionId) -> bool {
    true
}

/// Ends a process under load, and waits until writes flow again: how long they did not.
fn gap_of(load: &Load, what: &str, longest: Duration, end: impl FnOnce()) -> Duration {
    let since = Instant::now();
    end();
    load.until_flows(anywhere);
    let gap = load.longest_gap(since);
    println!("{what}: writes of some partition did not flow for {gap:?}");
    assert!(gap < longest, "{what}: {gap:?}");
    gap
}

/// Loses nothing, and ends with replicas that are the same.
#[track_caller]
fn check(cluster: &Cluster, load: Load) {
    let mut written = load.stop();
    println!("{} writes were acknowledged", written.acknowledged);
    written.check(cluster);
    until_whole(cluster);
    written.check(cluster);
}

#[test]
fn each_leader_that_is_killed_under_load_is_replaced_and_comes_back() {
    let cluster = Cluster::start(&TWO_SHARDS);
    let load = Load::start(&cluster, DEADLINE);
    let mut again: Vec<Spawned> = Vec::new();
    // The last one leads since the first was killed.
    for (victim, heir, shard) in [
        ("shard0-leader", "shard0-follower", 0),
        ("shard1-leader", "shard1-follower", 1),
        ("shard0-follower", "shard0-leader", 0),
    ] {
        assert_eq!(cluster.leaders(shard), [victim]);
        let mut recipe: Option<Recipe> = None;
        gap_of(&load, &format!("{victim} is killed"), LONGEST_TAKEOVER, || recipe = Some(cluster.kill(victim)));
        assert_eq!(cluster.leaders(shard), [heir]);
        let back = Instant::now();
        again.push(recipe.expect("killed").start());
        until_in_sync(&cluster, victim);
        println!("{victim} is in sync again after {:?}", back.elapsed());
        assert_eq!(cluster.leaders(shard), [heir], "it follows");
        load.until_flows(anywhere);
    }
    check(&cluster, load);
}

#[test]
fn a_follower_without_its_leader_serves_all_that_was_acknowledged() {
    let cluster = Cluster::start(&PAIR);
    let load = Load::start(&cluster, DEADLINE);
    // The leader first: it must not go on without its follower.
    let recipes = ["shard0-leader", "shard0-follower"].map(|name| cluster.recipe(name));
    let pids = ["shard0-leader", "shard0-follower"].map(|name| cluster.process(name).pid);
    signal(pids[0], Signal::KILL);
    end(pids[1], Signal::KILL);
    let mut written = load.stop();
    println!("{} writes were acknowledged", written.acknowledged);
    let since = Instant::now();
    let _follower = recipes[1].start();
    until("it leads", || (cluster.leaders(0) == ["shard0-follower"]).then_some(()));
    written.check(&cluster);
    println!("all is there {:?} after the start of the follower", since.elapsed());
    let load = Load::start(&cluster, DEADLINE);
    let _leader = recipes[0].start();
    until_in_sync(&cluster, "shard0-leader");
    load.until_flows(anywhere);
    check(&cluster, load);
}

#[test]
fn a_leader_goes_on_without_a_follower_that_is_killed_and_says_that_it_is_alone() {
    let cluster = Cluster::start(&PAIR);
    let load = Load::start(&cluster, DEADLINE);
    let mut recipe = None;
    gap_of(&load, "the follower is killed", LONGEST_DROP, || recipe = Some(cluster.kill("shard0-follower")));
    let (code, status, _) = run(&mut cluster.kv(&["status"]));
    assert_eq!(code, 1, "{status}");
    assert!(status.contains("DEGRADED: 4 of 4 partitions are alone: shard0-leader leads"), "{status}");
    let map = cluster.topology().map;
    assert!(map.partitions.iter().all(|p| p.configuration.as_ref().is_some_and(|c| c.in_sync.is_empty())), "{map:?}");
    let _follower = recipe.expect("killed").start();
    until_in_sync(&cluster, "shard0-follower");
    check(&cluster, load);
    assert_eq!(run(&mut cluster.kv(&["status"])).0, 0);
}

/// The client may run out of attempts while leadership passes: then it was told that nothing was applied.
#[track_caller]
fn none_in_doubt(load: &Load, since: Instant) {
    let (in_doubt, refused): (Vec<_>, Vec<_>) =
        load.failures(since).into_iter().partition(|f| f.starts_with("Unknown"));
    println!("{} writes ran out of attempts", refused.len());
    assert_eq!(in_doubt, Vec::<String>::new());
}

/// In both directions: the node that comes back is preferred, and gets what it led by itself.
#[test]
fn a_leader_that_is_stopped_in_order_hands_over_and_leaves_no_write_in_doubt() {
    let cluster = Cluster::start(&["--shards", "1", "--partitions", "4", "--rebalance-after-s", "2"]);
    let load = Load::start(&cluster, DEADLINE);
    let recipe = cluster.recipe("shard0-leader");
    let pid = cluster.process("shard0-leader").pid;
    let since = Instant::now();
    gap_of(&load, "the leader is stopped by SIGTERM", LONGEST_HANDOFF, || end(pid, Signal::TERM));
    none_in_doubt(&load, since);
    assert_eq!(cluster.leaders(0), ["shard0-follower"]);
    let _leader = recipe.start();
    let since = Instant::now();
    until("it leads again", || (cluster.leaders(0) == ["shard0-leader"]).then_some(()));
    load.until_flows(anywhere);
    let gap = load.longest_gap(since);
    println!("it leads again after {:?}: writes of some partition did not flow for {gap:?}", since.elapsed());
    assert!(gap < LONGEST_HANDOFF, "{gap:?}");
    none_in_doubt(&load, since);
    check(&cluster, load);
}

#[test]
fn without_a_controller_pairs_go_on_and_nobody_is_replaced_until_it_is_back() {
    let cluster = Cluster::start(&TWO_SHARDS);
    let map = cluster.topology().map;
    let on = |shard: u16| {
        let map = &map;
        move |id: PartitionId| map.partitions[usize::from(id.0)].shard.0 == shard
    };
    let load = Load::start(&cluster, DEADLINE);
    let (runtime, asking) = (runtime(), client(&cluster, DEADLINE));
    let since = Instant::now();
    let router = cluster.kill("router");
    load.until_flows(anywhere);
    println!("writes did not flow for {:?} when the router was killed", load.longest_gap(since));
    assert!(load.longest_gap(since) < LONGEST_DROP);

    let leader = cluster.kill("shard0-leader");
    let since = Instant::now();
    load.until_flows(on(1));
    let follower = NodeId::new("shard0-follower").expect("a name");
    let role_of_all = || {
        let stats = runtime.block_on(asking.node_stats(follower)).expect("it answers");
        stats.replicas.iter().find(|r| r.role != Role::Follower).map(|r| format!("{r:?}"))
    };
    // Well over the time that a takeover takes.
    hold("nobody takes over without the controller", Duration::from_secs(5), role_of_all);
    assert_eq!(load.acknowledged_since(since, on(0)), 0, "by a leader that nobody agreed to");
    load.until_flows(on(1));

    let since = Instant::now();
    let _router = router.start();
    load.until_flows(anywhere);
    println!("writes flow {:?} after the start of the router", since.elapsed());
    assert!(since.elapsed() < BOUND);
    assert_eq!(cluster.leaders(0), ["shard0-follower"]);
    let _leader = leader.start();
    until_in_sync(&cluster, "shard0-leader");
    check(&cluster, load);
}
