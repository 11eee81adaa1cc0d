//! Seeded simulation of whole clusters: the core and the log as nodes have them, the controller's cluster as routers have it, and
//! clients that check what they are answered. Nobody helps: dead leaders are replaced, and lost replicas brought back, by the
//! replicas.
//!
//! Time is simulated, and each node has a clock of its own, up to a tenth fast or slow. Connections break, directions of them are
//! blocked, what was on them is lost or late; in some runs single messages are lost, repeated and reordered. The controller is
//! away for a while; what goes to it and comes from it is lost, late and repeated. Processes end, stand still, are stopped in
//! order. Each replica keeps real records, checkpoints and tables, by the code of `kv-storage`, over files in memory: a process
//! ends between or within batches; with a loss of power any sectors that were not synced are lost; a sync fails, is slow, or
//! there is no room for a segment; a bit is turned around, or a disk replaced, where others have everything. A person hands
//! leadership over, has followers dropped, and in some runs declares what is lost.
//!
//! What must hold is checked after every event, for the replica that it was given to (`checks`); at the end of a run also that
//! within 30 s of simulated time without faults everything is complete and served, and that what the clients saw can have
//! happened one thing after the other (`kv_checker`).
//!
//! * `world`: what happens next, and to whom · `queue` · `plan`: how runs differ · `faults` · `network` · `controller`
//! * `node`: process, clock, replicas · `disk`: the log of a replica, and beside it what it should hold · `copies`: of tables
//! * `clients` · `writes`: what they write
//!
//! # What is not simulated
//! * Two partitions in one log: here each has its own, as on different executors.
//! * Disks that lose what they had said is synced, other than where a member that is in sync has everything.
//! * R11 (an empty controller while nodes have data): that is in the controller's own process.
//!
//! `KV_SIM_SEEDS=100000` runs that many seeds (on past failures with `KV_SIM_ALL=1`), `KV_SIM_SEED=7` replays one, with `KV_SIM_DUMP=1` it shows logs that are damaged
//! or not what they should be, `KV_SIM_LIKE="no grace"` makes runs as those in which that mutation is tried
//! (with `KV_SIM_OFF=1` with the rule off), and with `KV_SIM_TRACE=1` everything that happens. `make sim` runs many in release.

mod checks;
mod clients;
mod controller;
mod copies;
mod disk;
mod faults;
mod mutations;
mod network;
mod node;
mod plan;
mod queue;
mod random;
mod world;
mod writes;

use disk::DiskRules;
use kv_replication::replica::rules::Rules;
use plan::{Coverage, Plan};
use queue::MS;
use std::time::Instant;
use world::World;

/// What happened in a run, and how much.
fn run(plan: Plan) -> Result<(Coverage, u64), String> {
    let mut world = World::new(plan);
    let in_time = |world: &World| format!("at {} ms, event {}", world.queue.now / MS, world.queue.count());
    while world.queue.now < plan.faulty_ms * MS {
        world.step().map_err(|violation| format!("{}: {violation}", in_time(&world)))?;
    }
    world.heal().map_err(|violation| format!("{}, healing: {violation}", in_time(&world)))?;
    Ok((world.coverage, world.queue.count()))
}

/// What went wrong, be it a violation or an assertion of the core.
fn outcome(plan: Plan) -> Result<(Coverage, u64), String> {
    std::panic::catch_unwind(|| run(plan)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!(
            "panic: {}",
            text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default()
        ))
    })
}

/// The number that an environment variable says.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect("a number"))
}

#[test]
fn nothing_acknowledged_is_lost_whatever_breaks() {
    let seeds = match number("KV_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KV_SIM_SEEDS").unwrap_or(300),
    };
    let (mut coverage, mut events, mut failed, began) = (Coverage::default(), 0, 0, Instant::now());
    for seed in seeds.clone() {
        let mut plan = Plan::of(seed, Rules::default(), DiskRules::default());
        if let Some(name) = std::env::var("KV_SIM_LIKE").ok().filter(|name| !name.is_empty()) {
            let off = number("KV_SIM_OFF").is_some();
            plan = if off { mutations::mutated(&name, plan) } else { mutations::like(&name, plan) };
        }
        let (what, count) = match outcome(plan) {
            Ok(done) => done,
            Err(violation) if number("KV_SIM_ALL").is_some() => {
                failed += 1;
                println!("seed {seed} datagrams {}: {violation}", plan.datagrams);
                continue;
            }
            Err(violation) => panic!(
                "{violation}\n{plan:?}\nreplay it by KV_SIM_SEED={seed} cargo test -p kv-replication --test simulation"
            ),
        };
        coverage.add(&what);
        events += count;
    }
    let (runs, took) = (seeds.end - seeds.start, began.elapsed().as_secs_f64());
    println!("{coverage:?}");
    assert_eq!(failed, 0, "runs failed");
    println!("{runs} seeds, {events} events, {:.1} s per thousand seeds", took * 1000.0 / runs as f64);
    assert!(coverage.missing().is_empty() || runs < 1000, "the simulation does not reach {:?}", coverage.missing());
}
