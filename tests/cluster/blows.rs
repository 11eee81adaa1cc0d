//! Whatever befalls single processes under load (killed, frozen for a while, stopped in order, several at short distance),
//! every answer stays true: what was acknowledged is there, what was refused is not, versions grow. On clusters of several
//! executors, of three routers, with reads that are confirmed.
//!
//! `KV_BLOW_SEED` plays a schedule again, as far as that can be; `KV_BLOW_ROUNDS` says how many blows there are.

use crate::{
    common::{Cluster, number_in, until},
    load::{Acknowledged, audit, keys, under_load},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::{Pid, Signal, kill_process};
use std::{thread, time::Duration};

const BLOWS: usize = 8;

/// Logs so small that they are reused within a round or two, and requests that do not wait for long.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("KV_MAX_VALUE_BYTES", "65536"),
    ("KV_SEGMENT_BYTES", "1152KiB"),
    ("KV_MAX_LOG_BYTES", "3456KiB"),
    ("KV_DEADLINE_MS", "1000"),
];

/// A blow to some process other than the supervisor.
fn blow(cluster: &Cluster, random: &mut SmallRng) -> String {
    let mut processes = cluster.manifest().processes;
    processes.retain(|p| p.role != "supervisor");
    let victim = processes.swap_remove(random.random_range(0..processes.len()));
    let pid = i32::try_from(victim.pid).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended, by a blow that is not in cluster.json yet.
    let send = |signal| {
        let _ = kill_process(pid, signal);
    };
    let how = match random.random_range(0..3) {
        0 => {
            send(Signal::KILL);
            "killed".to_owned()
        }
        1 => {
            send(Signal::TERM);
            "stopped".to_owned()
        }
        _ => {
            let ms = random.random_range(50..4000);
            send(Signal::STOP);
            thread::sleep(Duration::from_millis(ms));
            send(Signal::CONT);
            format!("frozen for {ms} ms")
        }
    };
    format!("{} (process {}) was {how}", victim.name, victim.pid)
}

fn stands_blows(flags: &[&str]) {
    let seed = number_in("KV_BLOW_SEED").unwrap_or_else(rand::random);
    println!("KV_BLOW_SEED={seed} plays this schedule again");
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut keys, acknowledged) = (keys(), Acknowledged::default());
    let cluster = Cluster::start_as(
        tempfile::tempdir().expect("a directory"),
        &[&["--restart", "--shards", "1", "--partitions", "16", "--rebalance-after-s", "1"], flags].concat(),
        &ENVIRONMENT,
    );
    let writers_seed: u64 = random.random();
    under_load(&cluster, &mut keys, &acknowledged, writers_seed, || {
        acknowledged.until_more("writes are acknowledged", 100);
        for round in 0..number_in("KV_BLOW_ROUNDS").unwrap_or(BLOWS as u64) {
            println!("{round}: {}", blow(&cluster, &mut random));
            // Sometimes the next comes before this one is got over.
            if random.random_range(0..3) > 0 {
                acknowledged.until_more("writes are acknowledged again", 100);
            }
        }
        acknowledged.until_more("writes are acknowledged in the end", 200);
    });
    until("the cluster is whole", || cluster.replicas_agree().then_some(()));
    audit(&cluster, &mut keys);
    println!("{} writes were acknowledged", acknowledged.count());
}

#[test]
fn a_pair_with_several_executors_stands_blows() {
    stands_blows(&["--cores", "2"]);
}

#[test]
fn three_replicas_with_three_routers_stand_blows() {
    stands_blows(&["--replicas", "3", "--routers", "3"]);
}

#[test]
fn a_pair_that_confirms_its_reads_stands_blows() {
    stands_blows(&["--reads", "confirm"]);
}

#[test]
fn a_pair_that_writes_only_as_a_pair_stands_blows() {
    stands_blows(&["--min-in-sync", "2"]);
}
