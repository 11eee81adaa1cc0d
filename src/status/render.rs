//! A topology as a text for people: pure.

use super::{
    Status, Topology,
    table::{bytes_text, counted, duration_text, table},
};
use kv_proto::{
    cluster_map::{ClusterMap, Configuration, Partition},
    ids::{Epoch, Lsn, Member, NodeId, PartitionId, ShardId},
    stats::{NodeStats, ReplicaStats, Role},
};
use std::{collections::BTreeMap, fmt::Write};

pub(super) fn render(topology: &Topology, with_partitions: bool) -> String {
    let view = View::of(topology);
    let mut text = view.headline();
    text += "\n";
    text += &view.health();
    text += "\n";
    text += &view.nodes();
    text += "\n";
    text += &view.shards();
    if with_partitions {
        text += "\n";
        text += &view.partitions();
    }
    for trouble in view.troubles() {
        let _ = write!(text, "\ntrouble: {trouble}");
    }
    for progress in view.learning() {
        let _ = write!(text, "\nlearning: {progress}");
    }
    text.trim_end().to_owned()
}

struct View<'a> {
    topology: &'a Topology,
    map: &'a ClusterMap,
    stats: BTreeMap<NodeId, &'a NodeStats>,
}

/// How the replicas of one partition compare.
struct Comparison {
    epoch: Epoch,
    /// `None` if the leader cannot be seen.
    committed: Option<Lsn>,
    /// Records that the farthest follower has not on its disk; `None` if a replica cannot be seen.
    lag: Option<u64>,
    digests: Digests,
    /// Nodes that catch up, to become followers, and by how many records they are behind.
    learners: Vec<(NodeId, Option<u64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Digests {
    /// All replicas have applied the same and hold the same.
    Equal,
    /// Some replica has not applied yet what others have.
    CatchingUp,
    /// Some replica cannot be seen.
    Unknown,
    /// Two replicas have applied the same and hold something else.
    Differ,
}

impl Digests {
    fn as_str(self) -> &'static str {
        match self {
            Digests::Equal => "equal",
            Digests::CatchingUp => "catching up",
            Digests::Unknown => "unknown",
            Digests::Differ => "DIFFER",
        }
    }
}

impl<'a> View<'a> {
    fn of(topology: &'a Topology) -> Self {
        let stats = topology.nodes.iter().filter_map(|n| Some((n.node, n.stats.as_ref()?))).collect();
        View { topology, map: &topology.map, stats }
    }

    fn headline(&self) -> String {
        let map = self.map;
        let created = map.partitions.iter().filter(|p| p.configuration.is_some()).count();
        let missing = match map.partitions.len() - created {
            0 => String::new(),
            n => format!(" ({n} not created yet: a shard waits for its nodes)"),
        };
        format!(
            "cluster {}, map version {}, ack {}: {} of {}, {}{missing}",
            map.cluster,
            map.version,
            map.ack,
            counted(map.shards.len(), "shard"),
            counted(map.replicas.into(), "replica"),
            counted(map.partitions.len(), "partition"),
        )
    }

    /// Whether all is well; if not, each reason in a line that cannot be overlooked.
    fn health(&self) -> String {
        let health = &self.topology.health;
        let word = match health.status {
            Status::Ready if self.map.replicas > 1 => {
                return "ready: every partition takes writes and has its in-sync followers\n".to_owned();
            }
            Status::Ready => return "ready: every partition takes writes\n".to_owned(),
            Status::Degraded => "DEGRADED",
            Status::Unavailable => "UNAVAILABLE",
        };
        health.problems.iter().map(|problem| format!("{word}: {problem}\n")).collect()
    }

    fn nodes(&self) -> String {
        let header = [
            "NODE",
            "ADDRESS",
            "SHARD",
            "STATE",
            "LEADS",
            "FOLLOWS",
            "LEARNS",
            "REFUSES",
            "KEYS",
            "BYTES",
            "MEMORY",
            "LOG",
            "CONNECTIONS",
            "UP",
        ];
        let rows = self.topology.nodes.iter().map(|report| {
            let node = self.map.node(report.node);
            let address = node.map_or("-".to_owned(), |n| n.address.clone());
            let shard = node.map_or("-".to_owned(), |n| n.shard.to_string());
            let mut row = vec![report.node.to_string(), address, shard];
            if let Some(stats) = &report.stats {
                let count = |role| stats.replicas.iter().filter(|r| r.role == role).count().to_string();
                let memory_full = stats.max_memory_bytes.is_some_and(|max| stats.memory_bytes >= max);
                let troubled = |r: &&ReplicaStats| r.trouble.is_some() && r.role != Role::Learner;
                let state = match (stats.disk_full, memory_full, stats.replicas.iter().find(troubled)) {
                    (true, _, _) => "DISK FULL",
                    (false, true, _) => "MEMORY FULL",
                    (false, false, Some(_)) => "TROUBLE",
                    (false, false, None) if stats.replicas.iter().any(|r| r.role == Role::Learner) => "learning",
                    (false, false, None) => "ok",
                };
                row.push(state.to_owned());
                row.extend([Role::Leader, Role::Follower, Role::Learner, Role::Refused].map(count));
                row.push(stats.replicas.iter().map(|r| r.keys).sum::<u64>().to_string());
                row.push(bytes_text(stats.replicas.iter().map(|r| r.bytes).sum()));
                let limit = stats.max_memory_bytes.map(|max| format!(" of {}", bytes_text(max))).unwrap_or_default();
                row.push(format!("{}{limit}", bytes_text(stats.memory_bytes)));
                row.push(bytes_text(stats.log_bytes));
                row.extend([stats.connections.to_string(), duration_text(stats.uptime_s)]);
            } else {
                row.push("NO ANSWER".to_owned());
                row.extend(std::iter::repeat_n("-".to_owned(), 10));
            }
            row
        });
        table(&header, &[0, 1, 3], rows.collect())
    }

    fn shards(&self) -> String {
        let header = ["SHARD", "LEADERS", "PARTITIONS", "ALONE", "LEARNERS", "EPOCHS", "COMMITTED", "LAG", "DIGESTS"];
        let rows = (0..self.map.shards.len()).map(|shard| {
            let partitions: Vec<_> = self.map.partitions().filter(|(_, p)| p.shard == ShardId(shard as u16)).collect();
            let mut leaders: Vec<_> = partitions
                .iter()
                .filter_map(|(_, p)| Some(p.configuration.as_ref()?.leader.node.to_string()))
                .collect();
            leaders.sort_unstable();
            leaders.dedup();
            let comparisons: Vec<_> = partitions.iter().filter_map(|(id, p)| self.compare(*id, p)).collect();
            let epochs = || comparisons.iter().map(|c| c.epoch);
            let epochs = match (epochs().min(), epochs().max()) {
                (Some(min), Some(max)) if min == max => min.to_string(),
                (Some(min), Some(max)) => format!("{min}-{max}"),
                _ => "-".to_owned(),
            };
            let lag: Option<Vec<u64>> = comparisons.iter().map(|c| c.lag).collect();
            vec![
                shard.to_string(),
                if leaders.is_empty() { "-".to_owned() } else { leaders.join(" ") },
                partitions.len().to_string(),
                partitions
                    .iter()
                    .filter(|(_, p)| p.configuration.as_ref().is_some_and(|c| self.is_alone(c)))
                    .count()
                    .to_string(),
                learners_text(&comparisons),
                epochs,
                or_unknown(comparisons.iter().map(|c| c.committed.map(|lsn| lsn.0)).sum::<Option<u64>>()),
                or_unknown(lag.map(|lags| lags.into_iter().max().unwrap_or(0))),
                digests_text(&comparisons),
            ]
        });
        table(&header, &[1, 4, 8], rows.collect())
    }

    fn partitions(&self) -> String {
        let header = ["PARTITION", "SHARD", "EPOCH", "LEADER", "FOLLOWERS", "LEARNERS", "COMMITTED", "LAG", "DIGESTS"];
        let rows = self.map.partitions().map(|(id, partition)| {
            let mut row = vec![id.to_string(), partition.shard.to_string()];
            if let (Some(configuration), Some(c)) = (&partition.configuration, self.compare(id, partition)) {
                let followers: Vec<_> = configuration.in_sync.iter().map(|m| m.node.to_string()).collect();
                let followers = if self.is_alone(configuration) { "ALONE".to_owned() } else { followers.join(" ") };
                row.extend([c.epoch.to_string(), configuration.leader.node.to_string(), followers]);
                let learners: Vec<_> =
                    c.learners.iter().map(|(node, behind)| format!("{node} ({})", behind_text(*behind))).collect();
                row.push(if learners.is_empty() { "-".to_owned() } else { learners.join(" ") });
                row.extend([or_unknown(c.committed), or_unknown(c.lag)]);
                row.push(c.digests.as_str().to_owned());
            } else {
                row.extend(std::iter::repeat_n("-".to_owned(), 7));
            }
            row
        });
        table(&header, &[3, 4, 5, 8], rows.collect())
    }

    /// A member's replica; `None` if its node cannot be seen, or has lost what made it a member.
    fn replica(&self, member: Member, partition: PartitionId) -> Option<&'a ReplicaStats> {
        let stats = self.stats.get(&member.node).filter(|s| s.disk == member.disk)?;
        stats.replicas.iter().find(|r| r.partition == partition)
    }

    /// Whether a partition has lost all of its followers.
    fn is_alone(&self, configuration: &Configuration) -> bool {
        self.map.replicas > 1 && configuration.in_sync.is_empty()
    }

    /// Who catches up with this partition, and how far behind its leader each is.
    fn learners(&self, id: PartitionId, leader: Option<&ReplicaStats>) -> Vec<(NodeId, Option<u64>)> {
        let learner = |(node, stats): (&NodeId, &&NodeStats)| {
            let replica = stats.replicas.iter().find(|r| r.partition == id && r.role == Role::Learner)?;
            Some((*node, leader.map(|l| l.prepared_lsn.0.saturating_sub(replica.flushed_lsn.0))))
        };
        self.stats.iter().filter_map(learner).collect()
    }

    fn compare(&self, id: PartitionId, partition: &Partition) -> Option<Comparison> {
        let configuration: &Configuration = partition.configuration.as_ref()?;
        let epoch = configuration.epoch;
        let replicas: Option<Vec<_>> = configuration.members().map(|m| self.replica(m, id)).collect();
        let leader = self.replica(configuration.leader, id);
        let committed = leader.map(|r| r.committed_lsn);
        let learners = self.learners(id, leader);
        let Some(replicas) = replicas else {
            return Some(Comparison { epoch, committed, lag: None, digests: Digests::Unknown, learners });
        };
        let leader = replicas[0];
        let lag = replicas[1..].iter().map(|r| leader.prepared_lsn.0.saturating_sub(r.flushed_lsn.0)).max();
        let compare = |r: &&ReplicaStats| match (r.applied_lsn == leader.applied_lsn, r.digest == leader.digest) {
            (true, true) => Digests::Equal,
            (true, false) => Digests::Differ,
            (false, _) => Digests::CatchingUp,
        };
        let digests = replicas[1..].iter().map(compare).max().unwrap_or(Digests::Equal);
        Some(Comparison { epoch, committed, lag: Some(lag.unwrap_or(0)), digests, learners })
    }

    /// Sentences; those that are the same for many partitions of a node are told once.
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for report in &self.topology.nodes {
            if let Some(error) = &report.error {
                troubles.push(format!("{} does not answer: {error}", report.node));
            }
            let mut counts = BTreeMap::<&str, usize>::new();
            let replicas = report.stats.iter().flat_map(|s| &s.replicas).filter(|r| r.role != Role::Learner);
            for trouble in replicas.filter_map(|r| r.trouble.as_deref()) {
                *counts.entry(trouble).or_default() += 1;
            }
            for (trouble, partitions) in counts {
                troubles.push(format!("{}, {}: {trouble}", report.node, counted(partitions, "partition")));
            }
        }
        for (shard, s) in self.map.shards.iter().enumerate() {
            let missing: Vec<_> = s.nodes.iter().filter(|n| self.map.node(**n).is_none()).map(NodeId::as_str).collect();
            if !missing.is_empty() {
                troubles.push(format!("shard {shard} waits for {} to register", missing.join(" and ")));
            }
        }
        troubles
    }
}

impl View<'_> {
    /// What the learners of each node are at: what most of them say, which is much the same for all.
    fn learning(&self) -> Vec<String> {
        let of_node = |(node, stats): (&NodeId, &&NodeStats)| {
            let learners = || stats.replicas.iter().filter(|r| r.role == Role::Learner);
            let mut counts = BTreeMap::<&str, usize>::new();
            for progress in learners().filter_map(|r| r.trouble.as_deref()) {
                *counts.entry(progress).or_default() += 1;
            }
            let (progress, _) = counts.into_iter().max_by_key(|(_, n)| *n)?;
            Some(format!("{node}, {}: {progress}", counted(learners().count(), "partition")))
        };
        self.stats.iter().filter_map(of_node).collect()
    }
}

/// As in `20 equal, 2 catching up`.
fn digests_text(comparisons: &[Comparison]) -> String {
    let mut counts = BTreeMap::<Digests, u32>::new();
    for comparison in comparisons {
        *counts.entry(comparison.digests).or_default() += 1;
    }
    if counts.is_empty() {
        return "-".to_owned();
    }
    let parts: Vec<_> = counts.iter().map(|(digests, n)| format!("{n} {}", digests.as_str())).collect();
    parts.join(", ")
}

/// As in `22 (1203 behind)`: how many replicas catch up, and how far behind the last of them is.
fn learners_text(comparisons: &[Comparison]) -> String {
    let learners: Vec<Option<u64>> = comparisons.iter().flat_map(|c| &c.learners).map(|(_, behind)| *behind).collect();
    if learners.is_empty() {
        return "-".to_owned();
    }
    let farthest = learners.iter().copied().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
    format!("{} ({})", learners.len(), behind_text(farthest))
}

fn behind_text(records: Option<u64>) -> String {
    format!("{} behind", or_unknown(records))
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{replica, topology};
    use kv_proto::ids::DiskId;

    #[test]
    fn a_healthy_cluster() {
        let followers = vec![replica(0, Role::Follower, 7, "aa"), replica(1, Role::Follower, 5, "bb")];
        assert_eq!(
            render(&topology(Some(followers)), true),
            "\
cluster 0000000000000000000000000000000c, map version 4, ack durable: 1 shard of 2 replicas, 2 partitions
ready: every partition takes writes and has its in-sync followers

NODE             ADDRESS         SHARD  STATE  LEADS  FOLLOWS  LEARNS  REFUSES  KEYS    BYTES              MEMORY       LOG  CONNECTIONS     UP
shard0-follower  127.0.0.1:6001      0  ok         0        2       0        0    20  2.0 KiB             4.0 KiB  64.0 MiB            3  1 min
shard0-leader    127.0.0.1:5001      0  ok         2        0       0        0    20  2.0 KiB  4.0 KiB of 1.0 GiB  64.0 MiB            3  1 min

SHARD  LEADERS        PARTITIONS  ALONE  LEARNERS  EPOCHS  COMMITTED  LAG  DIGESTS
    0  shard0-leader           2      0  -              1         12    0  2 equal

PARTITION  SHARD  EPOCH  LEADER         FOLLOWERS        LEARNERS  COMMITTED  LAG  DIGESTS
        0      0      1  shard0-leader  shard0-follower  -                 7    0  equal
        1      0      1  shard0-leader  shard0-follower  -                 5    0  equal"
        );
    }

    #[test]
    fn followers_behind_apart_and_refused() {
        let mut followers = vec![replica(0, Role::Follower, 3, "cc"), replica(1, Role::Refused, 5, "dd")];
        followers[1].trouble = Some("it has not the data that made it a member".to_owned());
        let text = render(&topology(Some(followers)), false);
        assert!(text.contains("  4  1 catching up, 1 DIFFER"), "{text}");
        assert!(text.contains("TROUBLE"), "{text}");
        let trouble = "trouble: shard0-follower, 1 partition: it has not the data that made it a member";
        assert!(text.ends_with(trouble), "{text}");
    }

    #[test]
    fn a_leader_that_is_alone_is_loud_and_learners_are_told_with_how_far_behind_they_are() {
        let mut topology = topology(Some(vec![replica(0, Role::Learner, 3, "cc"), replica(1, Role::Learner, 5, "bb")]));
        for partition in &mut topology.map.partitions {
            partition.configuration.as_mut().expect("created").in_sync.clear();
        }
        topology.health.status = Status::Degraded;
        topology.health.problems = vec!["2 of 2 partitions are alone".to_owned(), "a disk is full".to_owned()];
        let text = render(&topology, true);
        assert!(text.contains("\nDEGRADED: 2 of 2 partitions are alone\nDEGRADED: a disk is full\n\nNODE"), "{text}");
        let lines: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let has = |line: &str| lines.iter().any(|l| l == line);
        assert!(has("0 shard0-leader 2 2 2 (4 behind) 1 12 0 2 equal"), "{text}");
        assert!(has("0 0 1 shard0-leader ALONE shard0-follower (4 behind) 7 0 equal"), "{text}");
        assert!(text.contains("  learning  "), "{text}");
        let replicas = &mut topology.nodes[0].stats.as_mut().expect("there").replicas;
        replicas.iter_mut().for_each(|r| r.trouble = Some("receives a copy".to_owned()));
        let text = render(&topology, false);
        assert!(text.ends_with("\nlearning: shard0-follower, 2 partitions: receives a copy"), "{text}");
        topology.nodes[1].stats = None;
        assert!(render(&topology, false).contains("2 (unknown behind)"), "{text}");
    }

    #[test]
    fn a_node_that_is_full_is_told() {
        let mut topology = topology(None);
        let stats = topology.nodes[1].stats.as_mut().expect("there");
        stats.max_memory_bytes = Some(stats.memory_bytes);
        assert!(render(&topology, false).contains("  MEMORY FULL"));
        topology.nodes[1].stats.as_mut().expect("there").disk_full = true;
        assert!(render(&topology, false).contains("  DISK FULL"));
    }

    #[test]
    fn a_node_that_does_not_answer_or_lost_its_disk_leaves_the_rest_unknown() {
        let text = render(&topology(None), false);
        assert!(text.contains("NO ANSWER") && text.contains("unknown  2 unknown"), "{text}");
        assert!(text.ends_with("trouble: shard0-follower does not answer: connection refused"), "{text}");
        let mut leaderless = topology(Some(vec![replica(0, Role::Follower, 7, "aa")]));
        leaderless.nodes[1].stats = None;
        let text = render(&leaderless, true);
        assert!(text.contains("  1    unknown  unknown  2 unknown"), "{text}");
        assert_eq!(text.matches("unknown  unknown  unknown").count(), 2, "{text}");
        let mut other_disk = topology(Some(vec![replica(0, Role::Refused, 7, "aa")]));
        other_disk.nodes[0].stats.as_mut().expect("there").disk = DiskId(77);
        assert!(render(&other_disk, false).contains("2 unknown"));
    }

    #[test]
    fn a_cluster_that_waits_for_nodes() {
        let mut waiting = topology(None);
        waiting.map.nodes.remove(0);
        waiting.nodes.remove(0);
        waiting.map.partitions.iter_mut().for_each(|p| p.configuration = None);
        let text = render(&waiting, true);
        assert!(text.contains("2 partitions (2 not created yet: a shard waits for its nodes)"), "{text}");
        assert!(text.ends_with("trouble: shard 0 waits for shard0-follower to register"), "{text}");
    }
}
