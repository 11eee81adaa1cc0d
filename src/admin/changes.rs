//! `kv admin handoff` and `kv admin drop`: leaders are asked, and the map shows what becomes of it.

use super::{Accepted, DropOptions, EXIT_NOT_ALL, HandoffOptions, Outcomes, decode, newer_map, partitions, refusals};
use crate::{
    http::{Api, ClusterOptions},
    output,
};
use hyper::Method;
use kv_proto::{
    cluster_map::{ClusterMap, Configuration},
    ids::{Epoch, NodeId, PartitionId},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

/// How long what was accepted may take to be seen in the map.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn handoff(options: HandoffOptions) -> anyhow::Result<ExitCode> {
    let HandoffOptions { partitions, node, all, to, cluster } = options;
    let mut body = match (node, all) {
        (Some(node), _) => json!({"led_by": node}),
        (None, true) => json!({"all": true}),
        (None, false) => json!({"partitions": partitions}),
    };
    if let Some(to) = to {
        body["to"] = json!(to);
    }
    ask_and_wait(&cluster, "handoff", &body, Wanted::OtherLeader).await
}

pub(super) async fn drop(options: DropOptions) -> anyhow::Result<ExitCode> {
    let DropOptions { partitions, all, node, cluster } = options;
    let body = if all { json!({"all": true, "node": node}) } else { json!({"partitions": partitions, "node": node}) };
    let code = ask_and_wait(&cluster, "drop", &body, Wanted::Without(node)).await?;
    output::line(format!(
        "if {node} is alive it catches up and is in sync again by itself; `kv status --watch` shows it"
    ));
    Ok(code)
}

/// What a configuration must be like for a change to be done.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Somebody else leads than who accepted the command.
    OtherLeader,
    /// This node is no member any more.
    Without(NodeId),
}

impl Wanted {
    fn is_done(self, accepted: &Accepted, now: &Configuration) -> bool {
        now.epoch > accepted.epoch
            && match self {
                Wanted::OtherLeader => now.leader.node != accepted.leader,
                Wanted::Without(node) => now.members().all(|m| m.node != node),
            }
    }

    fn told(self, leader: NodeId) -> String {
        match self {
            Wanted::OtherLeader => format!("led by {leader}"),
            Wanted::Without(node) => format!("led by {leader} without {node}"),
        }
    }
}

async fn ask_and_wait(cluster: &ClusterOptions, what: &str, body: &Value, wanted: Wanted) -> anyhow::Result<ExitCode> {
    let api = Api::new(cluster)?;
    let start = Instant::now();
    let path = format!("/v1/admin/{what}");
    let answer = api.send(Method::POST, &path, Some("application/json"), body.to_string()).await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let outcomes: Outcomes = decode(&answer.body)?;
    let mut waiting = outcomes.accepted;
    let mut done = Vec::new();
    let mut version = 0;
    while !waiting.is_empty() && start.elapsed() < PATIENCE {
        let map = newer_map(&api, version).await?;
        version = map.version.0;
        let after = start.elapsed();
        done.extend(take_done(&mut waiting, &map, wanted).into_iter().map(|(epoch, leader)| (epoch, leader, after)));
    }
    for line in summary(&done, wanted) {
        output::line(line);
    }
    let mut failures = refusals(&outcomes.refused);
    if !waiting.is_empty() {
        let first = waiting[0].partition;
        failures.push(format!(
            "{} (partition {first} among them) accepted it and are not seen to have done it after {} s: look at `kv status`",
            partitions(waiting.len()),
            PATIENCE.as_secs()
        ));
    }
    for failure in &failures {
        eprintln!("kv: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_ALL) })
}

/// Removes those that the map shows to be done; their epochs and leaders.
fn take_done(waiting: &mut Vec<Accepted>, map: &ClusterMap, wanted: Wanted) -> Vec<(Epoch, NodeId)> {
    let mut done = Vec::new();
    waiting.retain(|accepted| {
        let now = map.configuration(PartitionId(accepted.partition.0)).filter(|c| wanted.is_done(accepted, c));
        done.extend(now.map(|c| (c.epoch, c.leader.node)));
        now.is_none()
    });
    done
}

/// A line for each node that leads some of them now.
fn summary(done: &[(Epoch, NodeId, Duration)], wanted: Wanted) -> Vec<String> {
    let mut by_leader = BTreeMap::<NodeId, Vec<(Epoch, Duration)>>::new();
    for (epoch, leader, after) in done {
        by_leader.entry(*leader).or_default().push((*epoch, *after));
    }
    let line = |(leader, all): (NodeId, Vec<(Epoch, Duration)>)| {
        let (first, last) = (all.iter().map(|(e, _)| e.0).min(), all.iter().map(|(e, _)| e.0).max());
        let epochs = match (first.unwrap_or(0), last.unwrap_or(0)) {
            (first, last) if first == last => format!("epoch {first}"),
            (first, last) => format!("epochs {first} to {last}"),
        };
        let after = all.iter().map(|(_, after)| *after).max().unwrap_or_default();
        let verb = if all.len() == 1 { "is" } else { "are" };
        format!(
            "{} {verb} {} now ({epochs}), after {} ms",
            partitions(all.len()),
            wanted.told(leader),
            after.as_millis()
        )
    };
    by_leader.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{DiskId, HistoryId, Member};

    fn id(name: &str) -> NodeId {
        name.parse().expect("a node id")
    }

    fn configuration(epoch: u64, leader: &str, in_sync: &[&str]) -> Configuration {
        let member = |name: &&str| Member { node: id(name), disk: DiskId(1) };
        Configuration {
            epoch: Epoch(epoch),
            history: HistoryId(0),
            leader: member(&leader),
            in_sync: in_sync.iter().map(member).collect(),
        }
    }

    #[test]
    fn a_change_is_done_when_the_map_shows_it() {
        let accepted = Accepted { partition: PartitionId(0), leader: id("a"), epoch: Epoch(3) };
        let without = Wanted::Without(id("b"));
        for (wanted, now, done) in [
            (Wanted::OtherLeader, configuration(3, "a", &["b"]), false),
            (Wanted::OtherLeader, configuration(4, "b", &["a"]), true),
            // Something else came in between.
            (Wanted::OtherLeader, configuration(4, "a", &[]), false),
            (Wanted::OtherLeader, configuration(3, "b", &["a"]), false),
            (without, configuration(4, "a", &[]), true),
            (without, configuration(4, "a", &["b"]), false),
            (without, configuration(4, "b", &[]), false),
        ] {
            assert_eq!(wanted.is_done(&accepted, &now), done, "{wanted:?} {now:?}");
        }
    }

    #[test]
    fn what_was_done_is_told_by_leader() {
        let ms = Duration::from_millis;
        let done = [(Epoch(2), id("b"), ms(7)), (Epoch(4), id("b"), ms(9)), (Epoch(2), id("a"), ms(30))];
        assert_eq!(
            summary(&done, Wanted::OtherLeader),
            [
                "1 partition is led by a now (epoch 2), after 30 ms",
                "2 partitions are led by b now (epochs 2 to 4), after 9 ms"
            ]
        );
        let told = summary(&done[2..], Wanted::Without(id("c")));
        assert_eq!(told, ["1 partition is led by a without c now (epoch 2), after 30 ms"]);
    }
}
