//! Many clients of the same keys, by HTTP and natively, while leaders are killed, passed over and frozen: whatever happens,
//! each key behaves as one register that does what it is told, one thing at a time.
//!
//! [`crate::shared_keys`] says what the clients do and how they are judged. `KV_HISTORY_SEED` has them ask the same again, as
//! far as that can be.

use crate::{
    common::{Cluster, run, signal, until_ok},
    nodes::{until_in_sync, until_whole},
    shared_keys::SharedKeys,
};
use rustix::process::Signal;

/// Leadership stays where it is put.
const TWO_SHARDS: [&str; 6] = ["--shards", "2", "--partitions", "8", "--rebalance-after-s", "0"];
const SHARDS: [u16; 2] = [0, 1];
const NODES: [&str; 4] = ["shard0-leader", "shard0-follower", "shard1-leader", "shard1-follower"];
const HANDOFFS: usize = 6;

/// All operations of all clients have an order, everything that was acknowledged is there in the end, and at every replica.
#[track_caller]
fn linearizable_while(what_happens: impl FnOnce(&Cluster, &SharedKeys)) {
    let cluster = Cluster::start(&TWO_SHARDS);
    let keys = SharedKeys::new(&cluster);
    keys.under_load(&cluster, || what_happens(&cluster, &keys));
    until_whole(&cluster);
    keys.audit(&cluster);
    keys.judge();
    until_ok("all replicas agree", || cluster.check_replicas());
}

/// The only leader of a shard.
#[track_caller]
fn leader(cluster: &Cluster, shard: u16) -> String {
    let mut leaders = cluster.leaders(shard);
    assert_eq!(leaders.len(), 1, "{leaders:?}");
    leaders.swap_remove(0)
}

/// Waits until a node leads nothing of a shard.
#[track_caller]
fn until_replaced(cluster: &Cluster, shard: u16, old: &str) {
    until_ok(&format!("{old} is replaced"), || {
        let leaders = cluster.leaders(shard);
        if leaders.iter().any(|leader| leader == old) { Err(format!("{leaders:?} lead")) } else { Ok(()) }
    });
}

#[test]
fn histories_are_linearizable_while_nothing_happens() {
    linearizable_while(|_, keys| (0..4).for_each(|_| keys.until_more_everywhere()));
}

#[test]
fn histories_are_linearizable_while_leaders_are_killed() {
    let mut again = Vec::new();
    linearizable_while(|cluster, keys| {
        for shard in SHARDS {
            let victim = leader(cluster, shard);
            let recipe = cluster.kill(&victim);
            until_replaced(cluster, shard, &victim);
            keys.until_more(shard);
            again.push(recipe.start());
            until_in_sync(cluster, &victim);
            keys.until_more(shard);
        }
    });
}

#[test]
fn histories_are_linearizable_while_leadership_is_handed_over_again_and_again() {
    linearizable_while(|cluster, keys| {
        for _ in 0..HANDOFFS {
            // Who has just lost its leadership may need a moment before it can be handed it back.
            NODES.iter().for_each(|node| until_in_sync(cluster, node));
            until_ok("leadership is handed over", || match run(&mut cluster.kv(&["admin", "handoff", "--all"])) {
                (0, ..) => Ok(()),
                (code, stdout, stderr) => Err(format!("{code}: {stdout}{stderr}")),
            });
            keys.until_more_everywhere();
        }
    });
}

/// What the leader finds in its sockets when it wakes up is from before it was replaced.
#[test]
fn histories_are_linearizable_while_leaders_freeze_and_wake_up() {
    linearizable_while(|cluster, keys| {
        for shard in SHARDS {
            let frozen = leader(cluster, shard);
            let pid = cluster.process(&frozen).pid;
            signal(pid, Signal::STOP);
            until_replaced(cluster, shard, &frozen);
            keys.until_more(shard);
            signal(pid, Signal::CONT);
            keys.until_more(shard);
            until_in_sync(cluster, &frozen);
            keys.until_more(shard);
        }
    });
}
