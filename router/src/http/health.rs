//! Whether the cluster does what it promises, judged from the map and from what each node says of itself. Pure.
//!
//! | status | means |
//! |---|---|
//! | `ready` | every partition takes writes, and has as many in-sync replicas as the cluster was made with |
//! | `degraded` | every partition takes writes, but one more failure may stop some of them, or a node takes no more values, or the controllers can agree on nothing |
//! | `unavailable` | some partitions take no writes now |
//!
//! A partition that has no in-sync follower is *alone*: what is acknowledged then is on one disk.

use super::survey::Answers;
use kv_proto::{
    cluster_map::{ClusterMap, Configuration, Partition},
    ids::{NodeId, PartitionId},
    stats::{NodeStats, Role},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most problems that are told, each of many partitions.
const MAX_PROBLEMS: usize = 16;

const NO_MAJORITY: &str = "no majority of the controllers is there, so that a node that dies is neither replaced nor dropped: start the \
                           routers that are down";

/// How the cluster as a whole is; the later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ready,
    Degraded,
    Unavailable,
}

/// How the cluster is, as `/readyz` and `/v1/topology` tell it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Health {
    pub(super) status: Status,
    /// How many partitions are in which state.
    partitions: Counts,
    /// Sentences, the worst first.
    pub(super) problems: Vec<String>,
}

/// Partitions by their state; each counts once.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// All is well.
    ready: usize,
    /// Some in-sync followers are missing, but not all.
    short: usize,
    /// The leader has no in-sync follower.
    alone: usize,
    /// No writes are taken.
    unavailable: usize,
}

impl Health {
    /// `can_change` says whether the controllers can agree on a change of the map.
    pub(super) fn of(map: &ClusterMap, answers: &Answers, can_change: bool) -> Self {
        let mut counts = Counts::default();
        let (mut stopped, mut alone, mut short) = (Problems::default(), Problems::default(), Problems::default());
        for (id, partition) in map.partitions() {
            match state(id, partition, map, answers) {
                State::Ready => counts.ready += 1,
                State::Short(why) => {
                    counts.short += 1;
                    short.add(id, why);
                }
                State::Alone(why) => {
                    counts.alone += 1;
                    alone.add(id, why);
                }
                State::Unavailable(why) => {
                    counts.unavailable += 1;
                    stopped.add(id, why);
                }
            }
        }
        let full: Vec<String> = answers.values().filter_map(|a| full(a.as_ref().ok()?)).collect();
        let status = if counts.unavailable > 0 {
            Status::Unavailable
        } else if counts.short + counts.alone > 0 || !full.is_empty() || !can_change {
            Status::Degraded
        } else {
            Status::Ready
        };
        let of = map.partition_count();
        let mut problems = stopped.told(of, "takes no writes", "take no writes");
        problems.extend(alone.told(of, "is alone", "are alone"));
        problems.extend(short.told(of, "lacks in-sync followers", "lack in-sync followers"));
        problems.extend(full);
        problems.truncate(MAX_PROBLEMS);
        if !can_change {
            problems.push(NO_MAJORITY.to_owned());
        }
        Health { status, partitions: counts, problems }
    }
}

/// Reasons, each with the partitions that it holds for.
#[derive(Default)]
struct Problems(BTreeMap<String, Vec<PartitionId>>);

impl Problems {
    fn add(&mut self, partition: PartitionId, why: String) {
        self.0.entry(why).or_default().push(partition);
    }

    /// A sentence for each reason, those of most partitions first.
    fn told(self, of: u16, one: &str, many: &str) -> Vec<String> {
        let mut reasons: Vec<_> = self.0.into_iter().collect();
        reasons.sort_by_key(|(_, partitions)| std::cmp::Reverse(partitions.len()));
        let told = |(why, partitions): (String, Vec<PartitionId>)| match partitions[..] {
            [partition] => format!("partition {partition} {one}: {why}"),
            _ => format!("{} of {of} partitions {many}: {why}", partitions.len()),
        };
        reasons.into_iter().map(told).collect()
    }
}

enum State {
    Ready,
    Short(String),
    Alone(String),
    Unavailable(String),
}

fn state(id: PartitionId, partition: &Partition, map: &ClusterMap, answers: &Answers) -> State {
    let Some(configuration) = &partition.configuration else {
        return State::Unavailable(not_created(map));
    };
    if let Some(trouble) = trouble(id, configuration, answers) {
        return State::Unavailable(trouble);
    }
    let wanted = usize::from(map.replicas).saturating_sub(1);
    let followers = configuration.in_sync.len();
    match followers {
        n if n >= wanted => State::Ready,
        0 => State::Alone(format!(
            "{} leads without an in-sync follower; what is written now is on one disk",
            configuration.leader.node
        )),
        _ => State::Short(format!("{} leads with {followers} of {wanted}", configuration.leader.node)),
    }
}

fn not_created(map: &ClusterMap) -> String {
    let lacking: Vec<String> = map
        .shards
        .iter()
        .enumerate()
        .filter(|(_, shard)| shard.nodes.len() < usize::from(map.replicas))
        .map(|(id, shard)| format!("shard {id} has {} of {}", shard.nodes.len(), map.replicas))
        .collect();
    format!("not all nodes have registered: {}", lacking.join(", "))
}

/// Why a partition takes no writes; `None` when it does.
fn trouble(partition: PartitionId, configuration: &Configuration, answers: &Answers) -> Option<String> {
    let leader = configuration.leader.node;
    let stats = match answers.get(&leader) {
        Some(Ok(stats)) => stats,
        Some(Err(_)) => {
            return Some(format!("its leader {leader} does not answer; {}", who_follows(configuration, answers)));
        }
        None => return Some(format!("its leader {leader} was not asked")),
    };
    let Some(replica) = stats.replicas.iter().find(|r| r.partition == partition) else {
        return Some(format!("{leader} does not know yet that it leads it"));
    };
    if let Some(trouble) = &replica.trouble {
        return Some(format!("{leader}: {trouble}"));
    }
    if replica.role != Role::Leader || replica.epoch != configuration.epoch {
        let (role, epoch) = (replica.role.as_str(), replica.epoch);
        return Some(format!(
            "{leader} is its {role} in epoch {epoch}, not its leader in epoch {}",
            configuration.epoch
        ));
    }
    None
}

/// What becomes of a partition whose leader does not answer.
fn who_follows(configuration: &Configuration, answers: &Answers) -> String {
    let answering = |node: &NodeId| answers.get(node).is_some_and(Result::is_ok);
    let followers = configuration.in_sync.iter().map(|m| m.node);
    match followers.clone().find(answering) {
        Some(follower) => format!("its in-sync follower {follower} takes over within seconds"),
        None if configuration.in_sync.is_empty() => {
            format!("it has no in-sync follower, so that {} must come back", configuration.leader.node)
        }
        None => {
            let names: Vec<String> = followers.map(|node| node.to_string()).collect();
            format!("its in-sync followers ({}) do not answer either: start one of them", names.join(", "))
        }
    }
}

/// Why a node takes no more values, if so.
fn full(stats: &NodeStats) -> Option<String> {
    let memory = stats.max_memory_bytes.is_some_and(|max| stats.memory_bytes >= max);
    let what = match (stats.disk_full, memory) {
        (true, _) => "its disk is full",
        (false, true) => "its memory is at --max-memory",
        (false, false) => return None,
    };
    Some(format!("{} takes no more values: {what}; reads and deletes go on", stats.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_stats::node_stats;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{ClusterId, DiskId, Member, ShardId},
    };
    use kv_replication::cluster::{Cluster, Command, Shape};

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("a node id")
    }

    fn map(replicas: u16, nodes: &[&str]) -> ClusterMap {
        let shape = Shape { shards: 1, replicas, partitions: 2, ack: AckMode::Durable };
        let mut cluster = Cluster::new(ClusterId(1), shape).expect("possible");
        for name in nodes {
            let node = Node {
                id: id(name),
                disk: DiskId(1),
                shard: ShardId(0),
                prefers_to_lead: *name == "a",
                address: "127.0.0.1:1".to_string(),
                executors: 1,
            };
            cluster.apply(&Command::Register { cluster: None, node }).expect("registered");
        }
        cluster.map
    }

    fn stats(role: Role, epoch: u64, trouble: Option<&str>) -> NodeStats {
        node_stats((id("a"), DiskId(1)), &[0, 1], role, epoch, trouble)
    }

    fn problem(health: &Health) -> &str {
        health.problems.first().map_or("", String::as_str)
    }

    #[test]
    fn writes_are_taken_where_every_leader_says_so() {
        let mut half = stats(Role::Leader, 1, None);
        half.replicas.pop();
        for (answer, expected) in [
            (Ok(stats(Role::Leader, 1, None)), ""),
            (
                Ok(stats(Role::Leader, 1, Some("follower b cannot be reached"))),
                "2 of 2 partitions take no writes: a: follower b cannot be reached",
            ),
            (Ok(stats(Role::Leader, 2, None)), "a is its leader in epoch 2, not its leader in epoch 1"),
            (Ok(stats(Role::Follower, 1, None)), "a is its follower in epoch 1"),
            (Ok(half), "partition 1 takes no writes: a does not know yet"),
            (Err("refused".to_string()), "its leader a does not answer; its in-sync followers (b) do not"),
        ] {
            let health = Health::of(&map(2, &["a", "b"]), &Answers::from([(id("a"), answer)]), true);
            assert_eq!(health.status, if expected.is_empty() { Status::Ready } else { Status::Unavailable });
            assert!(problem(&health).contains(expected), "{health:?}");
        }
    }

    #[test]
    fn a_dead_leader_is_told_together_with_who_follows() {
        let mut map = map(2, &["a", "b"]);
        let answers =
            Answers::from([(id("a"), Err("refused".to_string())), (id("b"), Ok(stats(Role::Follower, 1, None)))]);
        let health = Health::of(&map, &answers, true);
        assert!(problem(&health).ends_with("its in-sync follower b takes over within seconds"), "{health:?}");
        for partition in &mut map.partitions {
            partition.configuration.as_mut().expect("created").in_sync.clear();
        }
        let health = Health::of(&map, &answers, true);
        assert!(problem(&health).ends_with("it has no in-sync follower, so that a must come back"), "{health:?}");
    }

    #[test]
    fn a_cluster_whose_nodes_have_not_come_is_not_ready() {
        let health = Health::of(&map(2, &["b"]), &Answers::new(), true);
        assert_eq!(
            health.problems,
            ["2 of 2 partitions take no writes: not all nodes have registered: shard 0 has 1 of 2"]
        );
        assert_eq!((health.status, health.partitions.unavailable), (Status::Unavailable, 2));
    }

    #[test]
    fn fewer_followers_than_there_should_be_are_told_and_the_cluster_is_degraded() {
        let answers = Answers::from([(id("a"), Ok(stats(Role::Leader, 1, None)))]);
        let mut map = map(3, &["a", "b", "c"]);
        let in_sync = |map: &mut ClusterMap, partition: usize, members: Vec<Member>| {
            map.partitions[partition].configuration.as_mut().expect("created").in_sync = members;
        };
        assert_eq!(Health::of(&map, &answers, true).status, Status::Ready);
        in_sync(&mut map, 0, vec![Member { node: id("b"), disk: DiskId(1) }]);
        in_sync(&mut map, 1, vec![]);
        let health = Health::of(&map, &answers, true);
        assert_eq!(health.status, Status::Degraded);
        assert_eq!(health.partitions, Counts { ready: 0, short: 1, alone: 1, unavailable: 0 });
        let told = |text| health.problems.iter().any(|p| p.contains(text));
        assert!(told("partition 0 lacks in-sync followers: a leads with 1 of 2"), "{health:?}");
        assert!(told("partition 1 is alone: a leads without an in-sync follower"), "{health:?}");
    }

    #[test]
    fn controllers_that_cannot_agree_degrade_the_cluster() {
        let answers = Answers::from([(id("a"), Ok(stats(Role::Leader, 1, None)))]);
        let health = Health::of(&map(2, &["a", "b"]), &answers, false);
        assert_eq!((health.status, problem(&health)), (Status::Degraded, NO_MAJORITY));
    }

    #[test]
    fn a_node_that_is_full_degrades_the_cluster() {
        for (disk, memory, limit, expected) in [
            (true, 0, None, Some("a takes no more values: its disk is full; reads and deletes go on")),
            (
                false,
                10,
                Some(10),
                Some("a takes no more values: its memory is at --max-memory; reads and deletes go on"),
            ),
            (false, 9, Some(10), None),
        ] {
            let mut stats = stats(Role::Leader, 1, None);
            (stats.disk_full, stats.memory_bytes, stats.max_memory_bytes) = (disk, memory, limit);
            let health = Health::of(&map(2, &["a", "b"]), &Answers::from([(id("a"), Ok(stats))]), true);
            assert_eq!(health.problems.first().map(String::as_str), expected);
            assert_eq!(health.status, if expected.is_some() { Status::Degraded } else { Status::Ready });
        }
    }
}
