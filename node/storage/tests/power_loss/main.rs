//! What is acknowledged survives a loss of power at any moment, whatever the disk had not got yet.
//!
//! A node in small (`node`) runs a random workload over a disk in memory. At every write and every acknowledgement the files
//! are rebuilt as a loss of power would leave them: what was synced, and any of the 512-byte sectors that were not. They are
//! read back and compared with what the node knows: every batch is there as a whole or not at all, and all that were
//! acknowledged are. Now and then the node goes on from such files, in the next generation, with another number of streams.
//!
//! `KV_POWER_SEEDS=N` runs the seeds 0 to N-1, `KV_POWER_SEEDS==N` seed N alone; with `KV_POWER_DUMP` the log is shown when an audit
//! fails.

#[path = "../common/mod.rs"]
mod common;
mod node;
mod upkeep;

use common::random::seeds;
use node::{Node, Rules, Seen};

/// Steps of a seed.
const STEPS: u64 = 1500;

fn run(seed: u64, rules: Rules) -> Result<Node, String> {
    let mut node = Node::new(seed, rules);
    for step in 0..STEPS {
        node.step().map_err(|error| format!("seed {seed}, step {step}, generation {}: {error}", node.generation))?;
    }
    Ok(node)
}

#[test]
fn what_is_acknowledged_survives_a_loss_of_power() {
    let rules = Rules { honest: true, sync_at_start: true };
    let (mut seen, seeds) = (Seen::default(), seeds("KV_POWER_SEEDS", 4));
    for seed in &seeds {
        match run(*seed, rules) {
            Ok(node) => node.seen.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times),
            Err(error) => panic!("{error}; KV_POWER_SEEDS=={seed} runs it alone"),
        }
    }
    println!("seeds {seeds:?}: {seen:?}");
    let wanted = [
        "acknowledged",
        "images",
        "torn",
        "restarts",
        "kills",
        "cuts",
        "full",
        "checkpoints",
        "copies",
        "let go",
        "recycled",
        "installs",
        "installs interrupted",
        "other histories",
    ];
    for what in wanted {
        assert!(seeds.len() < 4 || seen.contains_key(what), "{what}: never tried, and so not tested: {seen:?}");
    }
}

/// A test that cannot fail protects nothing.
#[test]
fn a_sync_that_does_nothing_is_noticed() {
    for seed in 0..5 {
        let error =
            run(seed, Rules { honest: false, sync_at_start: true }).err().expect("it loses what it acknowledged");
        println!("{error}");
    }
}

/// Why a node syncs what it finds at its start before it counts on it: what a process that was killed had written, and
/// not synced, is read by the next one as if it were on disk.
#[test]
fn what_was_read_back_but_never_synced_can_be_lost_by_the_next_loss_of_power() {
    let failed = (0..20).filter_map(|seed| run(seed, Rules { honest: true, sync_at_start: false }).err());
    let error =
        failed.into_iter().next().expect("some seed kills a process between write and sync, and then the power");
    println!("{error}");
}
