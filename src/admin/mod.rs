//! `kv admin`: what a person does to a cluster: pass leadership on, go on without a follower, recover with loss.
//!
//! [`changes`] asks leaders by way of the router and waits for the map to show it; [`force_recover`] shows what is
//! known of the replicas, asks for a confirmation, and has the controller do it.

mod changes;
mod force_recover;

use crate::http::ClusterOptions;
use anyhow::Context;
use kv_proto::{
    cluster_map::ClusterMap,
    ids::{Epoch, NodeId, PartitionId},
};
use serde::Deserialize;
use std::process::ExitCode;

/// Exit code that says that not everything that was asked for was done.
const EXIT_NOT_ALL: u8 = 1;

const HANDOFF_EXAMPLES: &str = "\
Examples:
  kv admin handoff 3                         partition 3 passes to its in-sync follower
  kv admin handoff --node shard0-leader      before that node is stopped or mended: all that it leads
  kv admin handoff --all --to shard0-leader  back again: all that it follows in sync

Writes wait for some milliseconds. The old leader follows from then on; the nodes give leadership back to the node that prefers to \
lead after --rebalance-after-s (of kv node and kv local, 10 s; 0 is never), so stop a node before that, or set it. A node that is \
stopped in order (SIGTERM, Ctrl-C) hands off by itself.

Exit code: 0 done, 1 not all of it was done, 2 an error.";

const DROP_EXAMPLES: &str = "\
Examples:
  kv admin drop 3 --node shard0-follower      partition 3 goes on without that follower
  kv admin drop --all --node shard0-follower  all that it follows in sync

For a follower that is so slow that writes suffer; one that is dead or hangs is dropped without a person. Without another in-sync \
follower the leader is alone: what is written then is on one disk. A follower that is alive comes back by itself: it \
catches up as a learner and is in sync again after that, which `kv status` shows; to keep it out, stop it.

Exit code: 0 done, 1 not all of it was done, 2 an error.";

const FORCE_RECOVER_EXAMPLES: &str = "\
Examples:
  kv admin force-recover 3 7 --leader shard0-follower
  kv admin force-recover --led-by shard0-leader --leader shard0-follower

The last way out, when the disks of the leader and of every in-sync follower are lost: the node in --leader leads alone from then on, \
with what it has. What it lacks is lost, and a new history begins, so that versions and ETags of the lost one match nothing any more. A \
leader that is only down brings everything back when it is started: that is better.

The old leader must be stopped, for good: if it ran on where the controller cannot reach it, two leaders would serve. This is asked \
for on a terminal, and must be said by --i-know-the-old-leader-is-stopped (or --yes) without one.

Exit code: 0 done, 1 not all of it was done, 2 an error.";

/// What to do.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Pass leadership of partitions to a follower, without a loss and with a pause of some milliseconds
    #[command(after_help = HANDOFF_EXAMPLES)]
    Handoff(HandoffOptions),
    /// Have leaders go on without a follower
    #[command(after_help = DROP_EXAMPLES)]
    Drop(DropOptions),
    /// Have a replica lead with what it has, when all others are lost; this loses writes
    #[command(after_help = FORCE_RECOVER_EXAMPLES)]
    ForceRecover(ForceRecoverOptions),
}

/// Whose leadership passes, and to whom.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct HandoffOptions {
    /// Partitions, by their numbers
    #[arg(value_name = "PARTITION", group = "which")]
    partitions: Vec<u16>,
    /// All partitions that this node leads
    #[arg(long, group = "which")]
    node: Option<NodeId>,
    /// All partitions; with --to, all that this node can take over
    #[arg(long, group = "which")]
    all: bool,
    /// Who leads from then on; any in-sync follower without it
    #[arg(long, value_name = "NODE")]
    to: Option<NodeId>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Who is dropped, and where.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct DropOptions {
    /// Partitions, by their numbers
    #[arg(value_name = "PARTITION", group = "which")]
    partitions: Vec<u16>,
    /// All partitions that the node follows in sync
    #[arg(long, group = "which")]
    all: bool,
    /// The follower to go on without
    #[arg(long)]
    node: NodeId,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What is recovered, and by whom.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct ForceRecoverOptions {
    /// Partitions, by their numbers
    #[arg(value_name = "PARTITION", group = "which")]
    partitions: Vec<u16>,
    /// All partitions whose leader is this node
    #[arg(long, value_name = "NODE", group = "which")]
    led_by: Option<NodeId>,
    /// The node that leads from then on, with what it has
    #[arg(long, value_name = "NODE")]
    leader: NodeId,
    /// Do it without asking: the old leader is stopped, and what the new one lacks may be lost
    #[arg(long, visible_alias = "yes")]
    i_know_the_old_leader_is_stopped: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Handoff(options) => changes::handoff(options).await,
        Command::Drop(options) => changes::drop(options).await,
        Command::ForceRecover(options) => force_recover::run(options).await,
    }
}

/// The router's answer to a command.
#[derive(Debug, Deserialize)]
struct Outcomes {
    accepted: Vec<Accepted>,
    refused: Vec<Refused>,
}

#[derive(Debug, Deserialize)]
struct Accepted {
    partition: PartitionId,
    leader: NodeId,
    epoch: Epoch,
}

#[derive(Debug, Deserialize)]
struct Refused {
    partition: PartitionId,
    detail: String,
}

/// As in `1 partition` and `2 partitions`.
fn partitions(n: usize) -> String {
    if n == 1 { "1 partition".to_owned() } else { format!("{n} partitions") }
}

/// Partitions that were refused for the same reason, in one sentence.
fn refusals(refused: &[Refused]) -> Vec<String> {
    let mut reasons = std::collections::BTreeMap::<&str, Vec<PartitionId>>::new();
    for one in refused {
        reasons.entry(&one.detail).or_default().push(one.partition);
    }
    let told = |(why, which): (&str, Vec<PartitionId>)| match which[..] {
        [partition] => format!("partition {partition} was refused: {why}"),
        _ => format!("{} were refused: {why}", partitions(which.len())),
    };
    reasons.into_iter().map(told).collect()
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the router's answer is not what this version of kv knows")
}

/// The map, as soon as it is newer than `after`, or after a while.
async fn newer_map(api: &crate::http::Api, after: u64) -> anyhow::Result<ClusterMap> {
    let path = format!("/v1/map?after={after}");
    let answer = api.send(hyper::Method::GET, &path, None, hyper::body::Bytes::new()).await?;
    if answer.status.is_success() { decode(&answer.body) } else { Err(answer.failure()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_same_reason_are_told_once() {
        let refused =
            |partition, detail: &str| Refused { partition: PartitionId(partition), detail: detail.to_owned() };
        assert_eq!(
            refusals(&[refused(1, "a"), refused(2, "b"), refused(3, "a")]),
            ["2 partitions were refused: a", "partition 2 was refused: b"]
        );
        assert!(refusals(&[]).is_empty());
    }
}
