//! Acknowledged writes outlive `kill -9`: of any process, at any moment, and of all processes of a cluster at once.
//!
//! Writers over HTTP and by the native client keep a [ledger](crate::ledger) of what they were answered, while a seeded
//! schedule kills processes. After each round, once the cluster takes writes again, every key is read by the other way
//! than the one it was written by.
//!
//! `KV_KILL_SEED` plays a schedule again (the moments of the kills are counted in acknowledged writes, not in
//! microseconds, so that only nearly the same happens); `KV_KILL_ROUNDS` says how many rounds there are.

use crate::{
    common::{Cluster, Process, runs, until},
    load::{Acknowledged, KEYS_EACH, WRITERS, audit, keys, settle, under_load},
    nodes::until_whole,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::{Pid, Signal, kill_process};
use std::{env, thread, time::Duration};
use tempfile::TempDir;

const ROUNDS: usize = 10;
/// In each round of this many, the last thing that happens is that all processes are killed.
const ALL_EVERY: usize = 3;

/// Logs so small that they are reused within a round or two.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("KV_MAX_VALUE_BYTES", "65536"),
    ("KV_SEGMENT_BYTES", "1152KiB"),
    ("KV_MAX_LOG_BYTES", "3456KiB"),
    ("KV_DEADLINE_MS", "1000"),
];

fn kill(process: &Process) {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended, by a kill that is not in cluster.json yet.
    let _ = kill_process(pid, Signal::KILL);
}

/// Kills some process other than the supervisor.
fn kill_one(cluster: &Cluster, random: &mut SmallRng) -> Process {
    let mut processes = cluster.manifest().processes;
    processes.retain(|p| p.role != "supervisor");
    let victim = processes.swap_remove(random.random_range(0..processes.len()));
    kill(&victim);
    victim
}

/// Kills all processes: the supervisor first, so that it starts none again.
fn kill_all(cluster: &Cluster) {
    let processes = cluster.manifest().processes;
    processes.iter().rev().for_each(kill);
    until("all processes are gone", || processes.iter().all(|p| !runs(p.pid)).then_some(()));
}

fn start(dir: TempDir) -> Cluster {
    Cluster::start_as(dir, &["--restart"], &ENVIRONMENT)
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn acknowledged_writes_outlive_kills() {
    let seed = number("KV_KILL_SEED").unwrap_or_else(rand::random);
    let rounds = number("KV_KILL_ROUNDS").map_or(ROUNDS, |n| n as usize);
    println!("KV_KILL_SEED={seed} plays this schedule again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut keys = keys();
    let acknowledged = Acknowledged::default();
    let mut cluster = start(tempfile::tempdir().expect("a directory"));

    for round in 0..rounds {
        let all = round % ALL_EVERY == ALL_EVERY - 1;
        let kills = random.random_range(if all { 0..=1 } else { 1..=3 });
        let writers_seed: u64 = random.random();
        let moment = |random: &mut SmallRng| {
            acknowledged.wait_for_more(random.random_range(1..400));
            thread::sleep(Duration::from_micros(random.random_range(0..5000)));
        };
        let blows = || {
            let mut killed = Vec::new();
            for _ in 0..kills {
                moment(&mut random);
                let victim = kill_one(&cluster, &mut random);
                println!("round {round}: killed {} (process {})", victim.name, victim.pid);
                killed.push(victim.pid);
            }
            if all {
                moment(&mut random);
                kill_all(&cluster);
                println!("round {round}: killed all");
            } else {
                let restarted = || {
                    let processes = cluster.manifest().processes;
                    (processes.len() == 8 && processes.iter().all(|p| !killed.contains(&p.pid))).then_some(())
                };
                until("what was killed is started again", restarted);
                cluster.until_ready();
                acknowledged.wait_for_more(200);
            }
        };
        under_load(&cluster, &mut keys, &acknowledged, writers_seed, blows);
        if all {
            cluster = start(cluster.into_dir());
        }
        cluster.until_ready();
        audit(&cluster, &mut keys);
    }

    settle(&cluster, &mut keys);
    audit(&cluster, &mut keys);
    let there = keys.iter().flatten().filter(|key| matches!(key.certain(), Some(Some(_)))).count() as u64;
    assert_eq!(there as usize, WRITERS * KEYS_EACH);
    let topology = cluster.topology();
    let held = topology.nodes.iter().filter_map(|n| n.stats.as_ref()).flat_map(|s| &s.replicas).map(|r| r.keys);
    assert_eq!(
        held.sum::<u64>(),
        2 * there,
        "the keys of leaders and followers are those that were written, no others"
    );
    let acknowledged = acknowledged.count();
    println!("{acknowledged} writes were acknowledged in {rounds} rounds");
}

/// Where writes wait only for memories, the kill of one process at a time loses nothing: its peer has it. Nor does it when all
/// are stopped in order.
#[test]
fn without_the_disk_acknowledged_writes_outlive_single_kills() {
    let seed = number("KV_KILL_SEED").unwrap_or_else(rand::random);
    println!("KV_KILL_SEED={seed} plays this schedule again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut keys = keys();
    let acknowledged = Acknowledged::default();
    let flags = ["--restart", "--shards", "1", "--ack", "replicated"];
    // What a follower had only in memory it is sent again from the leader's log, which must be there yet.
    let environment = ENVIRONMENT.map(|(name, value)| (name, if name == "KV_MAX_LOG_BYTES" { "64MiB" } else { value }));
    let mut cluster = Cluster::start_as(tempfile::tempdir().expect("a directory"), &flags, &environment);
    for round in 0..number("KV_KILL_ROUNDS").unwrap_or(6) {
        let writers_seed: u64 = random.random();
        let blow = || {
            acknowledged.wait_for_more(random.random_range(200..600));
            let victim = kill_one(&cluster, &mut random);
            println!("round {round}: killed {} (process {})", victim.name, victim.pid);
            until("what was killed is started again", || {
                let processes = cluster.manifest().processes;
                (processes.len() == 4 && processes.iter().all(|p| p.pid != victim.pid)).then_some(())
            });
            cluster.until_ready();
            acknowledged.wait_for_more(200);
        };
        under_load(&cluster, &mut keys, &acknowledged, writers_seed, blow);
        // The next one dies alone, too. (A learner catches up as fast as it can: these writers leave it nothing of this machine.)
        until_whole(&cluster);
        audit(&cluster, &mut keys);
    }
    cluster = Cluster::start_as(cluster.stop(), &flags, &environment);
    audit(&cluster, &mut keys);
}
