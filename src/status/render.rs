//! A topology as a text for people: pure.

use super::Topology;
use kv_proto::{
    cluster_map::{ClusterMap, Configuration, Partition},
    ids::{Epoch, Lsn, Member, NodeId, PartitionId, ShardId},
    stats::{NodeStats, ReplicaStats, Role},
};
use std::{collections::BTreeMap, fmt::Write};

pub(super) fn render(topology: &Topology, with_partitions: bool) -> String {
    let view = View::of(topology);
    let mut text = view.headline();
    text += "\n\n";
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

    fn nodes(&self) -> String {
        let header = [
            "NODE",
            "ADDRESS",
            "SHARD",
            "LEADS",
            "FOLLOWS",
            "REFUSES",
            "KEYS",
            "BYTES",
            "MEMORY",
            "LOG",
            "CONNECTIONS",
            "UP",
            "STATE",
        ];
        let rows = self.topology.nodes.iter().map(|report| {
            let node = self.map.node(report.node);
            let address = node.map_or("-".to_owned(), |n| n.address.clone());
            let shard = node.map_or("-".to_owned(), |n| n.shard.to_string());
            let mut row = vec![report.node.to_string(), address, shard];
            if let Some(stats) = &report.stats {
                let count = |role| stats.replicas.iter().filter(|r| r.role == role).count().to_string();
                let trouble = stats.replicas.iter().any(|r| r.trouble.is_some());
                let state = match (stats.disk_full, trouble) {
                    (true, _) => "DISK FULL",
                    (false, true) => "TROUBLE",
                    (false, false) => "ok",
                };
                row.extend([count(Role::Leader), count(Role::Follower), count(Role::Refused)]);
                row.push(stats.replicas.iter().map(|r| r.keys).sum::<u64>().to_string());
                row.push(bytes_text(stats.replicas.iter().map(|r| r.bytes).sum()));
                let limit = stats.max_memory_bytes.map(|max| format!(" of {}", bytes_text(max))).unwrap_or_default();
                row.push(format!("{}{limit}", bytes_text(stats.memory_bytes)));
                row.push(bytes_text(stats.log_bytes));
                row.extend([stats.connections.to_string(), duration_text(stats.uptime_s), state.to_owned()]);
            } else {
                row.extend(std::iter::repeat_n("-".to_owned(), 9));
                row.push("NO ANSWER".to_owned());
            }
            row
        });
        table(&header, &[0, 1, 12], rows.collect())
    }

    fn shards(&self) -> String {
        let header = ["SHARD", "LEADERS", "PARTITIONS", "EPOCHS", "COMMITTED", "LAG", "DIGESTS"];
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
                epochs,
                or_unknown(comparisons.iter().map(|c| c.committed.map(|lsn| lsn.0)).sum::<Option<u64>>()),
                or_unknown(lag.map(|lags| lags.into_iter().max().unwrap_or(0))),
                digests_text(&comparisons),
            ]
        });
        table(&header, &[1, 6], rows.collect())
    }

    fn partitions(&self) -> String {
        let header = ["PARTITION", "SHARD", "EPOCH", "LEADER", "FOLLOWERS", "COMMITTED", "LAG", "DIGESTS"];
        let rows = self.map.partitions().map(|(id, partition)| {
            let mut row = vec![id.to_string(), partition.shard.to_string()];
            if let (Some(configuration), Some(c)) = (&partition.configuration, self.compare(id, partition)) {
                let followers: Vec<_> = configuration.in_sync.iter().map(|m| m.node.to_string()).collect();
                row.extend([c.epoch.to_string(), configuration.leader.node.to_string(), followers.join(" ")]);
                row.extend([or_unknown(c.committed), or_unknown(c.lag)]);
                row.push(c.digests.as_str().to_owned());
            } else {
                row.extend(std::iter::repeat_n("-".to_owned(), 6));
            }
            row
        });
        table(&header, &[3, 4, 7], rows.collect())
    }

    /// A member's replica; `None` if its node cannot be seen, or has lost what made it a member.
    fn replica(&self, member: Member, partition: PartitionId) -> Option<&'a ReplicaStats> {
        let stats = self.stats.get(&member.node).filter(|s| s.disk == member.disk)?;
        stats.replicas.iter().find(|r| r.partition == partition)
    }

    fn compare(&self, id: PartitionId, partition: &Partition) -> Option<Comparison> {
        let configuration: &Configuration = partition.configuration.as_ref()?;
        let epoch = configuration.epoch;
        let replicas: Option<Vec<_>> = configuration.members().map(|m| self.replica(m, id)).collect();
        let leader = self.replica(configuration.leader, id);
        let committed = leader.map(|r| r.committed_lsn);
        let Some(replicas) = replicas else {
            return Some(Comparison { epoch, committed, lag: None, digests: Digests::Unknown });
        };
        let leader = replicas[0];
        let lag = replicas[1..].iter().map(|r| leader.prepared_lsn.0.saturating_sub(r.flushed_lsn.0)).max();
        let compare = |r: &&ReplicaStats| match (r.applied_lsn == leader.applied_lsn, r.digest == leader.digest) {
            (true, true) => Digests::Equal,
            (true, false) => Digests::Differ,
            (false, _) => Digests::CatchingUp,
        };
        let digests = replicas[1..].iter().map(compare).max().unwrap_or(Digests::Equal);
        Some(Comparison { epoch, committed, lag: Some(lag.unwrap_or(0)), digests })
    }

    /// Sentences; those that are the same for many partitions of a node are told once.
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for report in &self.topology.nodes {
            if let Some(error) = &report.error {
                troubles.push(format!("{} does not answer: {error}", report.node));
            }
            let mut counts = BTreeMap::<&str, usize>::new();
            for trouble in report.stats.iter().flat_map(|s| &s.replicas).filter_map(|r| r.trouble.as_deref()) {
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

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".to_owned(), |value| value.to_string())
}

/// As in `1 shard` and `2 shards`.
fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

fn duration_text(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min", seconds / 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Columns of equal width; numbers to the right, the columns in `left` to the left.
fn table(header: &[&str], left: &[usize], rows: Vec<Vec<String>>) -> String {
    let header = header.iter().map(|h| (*h).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if left.contains(&column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::NodeReport;
    use kv_proto::{
        cluster_map::{AckMode, Node, Shard},
        ids::{ClusterId, DiskId, ExecutorIndex, HistoryId, MapVersion},
    };

    fn node(name: &str) -> NodeId {
        name.parse().expect("a node id")
    }

    fn replica(partition: u16, role: Role, applied: u64, digest: &str) -> ReplicaStats {
        ReplicaStats {
            partition: PartitionId(partition),
            executor: ExecutorIndex(0),
            epoch: Epoch(1),
            role,
            trouble: None,
            prepared_lsn: Lsn(applied),
            flushed_lsn: Lsn(applied),
            committed_lsn: Lsn(applied),
            applied_lsn: Lsn(applied),
            keys: 10,
            bytes: 1000,
            memory_bytes: 1000,
            digest: digest.to_owned(),
        }
    }

    /// A shard of a leader and a follower, with two partitions, of which the follower holds these replicas.
    fn topology(followers: Option<Vec<ReplicaStats>>) -> Topology {
        let (leader, follower) = (node("shard0-leader"), node("shard0-follower"));
        let member = |node, disk| Member { node, disk: DiskId(disk) };
        let partition = |configured: bool| Partition {
            shard: ShardId(0),
            configuration: configured.then(|| Configuration {
                epoch: Epoch(1),
                history: HistoryId(0),
                leader: member(leader, 1),
                in_sync: vec![member(follower, 2)],
            }),
        };
        let registered = |id, disk, address: &str| Node {
            id,
            disk: DiskId(disk),
            shard: ShardId(0),
            prefers_to_lead: disk == 1,
            address: address.to_owned(),
            executors: 1,
        };
        let stats = |node, disk, replicas| NodeStats {
            node,
            disk: DiskId(disk),
            uptime_s: 75,
            connections: 3,
            requests: 99,
            memory_bytes: 4096,
            max_memory_bytes: (disk == 1).then_some(1 << 30),
            generation: 1,
            log_bytes: 64 << 20,
            disk_full: false,
            replicas,
        };
        let leaders = vec![replica(0, Role::Leader, 7, "aa"), replica(1, Role::Leader, 5, "bb")];
        let error = followers.is_none().then(|| "connection refused".to_owned());
        Topology {
            map: ClusterMap {
                cluster: ClusterId(0xc),
                version: MapVersion(4),
                replicas: 2,
                ack: AckMode::Durable,
                shards: vec![Shard { nodes: vec![leader, follower] }],
                nodes: vec![registered(follower, 2, "127.0.0.1:6001"), registered(leader, 1, "127.0.0.1:5001")],
                partitions: vec![partition(true), partition(true)],
            },
            nodes: vec![
                NodeReport { node: follower, stats: followers.map(|r| stats(follower, 2, r)), error },
                NodeReport { node: leader, stats: Some(stats(leader, 1, leaders)), error: None },
            ],
        }
    }

    #[test]
    fn a_healthy_cluster() {
        let followers = vec![replica(0, Role::Follower, 7, "aa"), replica(1, Role::Follower, 5, "bb")];
        assert_eq!(
            render(&topology(Some(followers)), true),
            "\
cluster 0000000000000000000000000000000c, map version 4, ack durable: 1 shard of 2 replicas, 2 partitions

NODE             ADDRESS         SHARD  LEADS  FOLLOWS  REFUSES  KEYS    BYTES              MEMORY       LOG  CONNECTIONS     UP  STATE
shard0-follower  127.0.0.1:6001      0      0        2        0    20  2.0 KiB             4.0 KiB  64.0 MiB            3  1 min  ok
shard0-leader    127.0.0.1:5001      0      2        0        0    20  2.0 KiB  4.0 KiB of 1.0 GiB  64.0 MiB            3  1 min  ok

SHARD  LEADERS        PARTITIONS  EPOCHS  COMMITTED  LAG  DIGESTS
    0  shard0-leader           2       1         12    0  2 equal

PARTITION  SHARD  EPOCH  LEADER         FOLLOWERS        COMMITTED  LAG  DIGESTS
        0      0      1  shard0-leader  shard0-follower          7    0  equal
        1      0      1  shard0-leader  shard0-follower          5    0  equal"
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

    #[test]
    fn sizes_and_times() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")]
        {
            assert_eq!(bytes_text(bytes), text);
        }
        for (seconds, text) in [(59, "59 s"), (60, "1 min"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(duration_text(seconds), text);
        }
    }
}
