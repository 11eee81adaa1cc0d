//! What has changed between two topologies, in sentences: pure.
//!
//! Partitions of a shard that have changed alike are told in one sentence, so that a node that dies is one event and not
//! one for each of its partitions.

use super::{NodeReport, Status, Topology, table::counted};
use kv_proto::{
    cluster_map::{ClusterMap, Configuration},
    ids::{Epoch, Member, NodeId, ShardId},
    stats::{NodeStats, Role},
};
use std::collections::BTreeMap;

/// The changes from `old` to `new`, partitions before nodes.
pub(super) fn between(old: &Topology, new: &Topology) -> Vec<String> {
    let mut events = partitions(old, new);
    events.extend(new.nodes.iter().flat_map(|node| match old.nodes.iter().find(|n| n.node == node.node) {
        Some(before) => of_node(before, node),
        None => vec![format!("{} has registered", node.node)],
    }));
    events.extend(learners(old, new));
    if old.health.status != new.health.status {
        events.push(health(new));
    }
    events
}

/// How the cluster is as a whole.
pub(super) fn health(topology: &Topology) -> String {
    match topology.health.status {
        Status::Ready => "the cluster is ready".to_owned(),
        Status::Degraded => format!("the cluster is DEGRADED: {}", topology.health.problems.join("; ")),
        Status::Unavailable => format!("the cluster is UNAVAILABLE: {}", topology.health.problems.join("; ")),
    }
}

/// What has become of a partition. Equal changes of a shard's partitions are one event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Created {
        leader: NodeId,
    },
    Recovered {
        leader: NodeId,
    },
    OtherLeader {
        old: NodeId,
        new: NodeId,
    },
    Members {
        leader: NodeId,
        gone: Vec<NodeId>,
        new: Vec<NodeId>,
        alone: bool,
    },
    Reopened {
        leader: NodeId,
    },
    /// Something changed and changed back since the last look.
    Back {
        leader: NodeId,
    },
}

fn partitions(old: &Topology, new: &Topology) -> Vec<String> {
    let mut groups = BTreeMap::<(ShardId, Change), Vec<Epoch>>::new();
    for (id, partition) in new.map.partitions() {
        let Some(now) = &partition.configuration else { continue };
        if let Some(change) = change(old.map.configuration(id), now, &new.map) {
            groups.entry((partition.shard, change)).or_default().push(now.epoch);
        }
    }
    let sentence = |((shard, change), epochs): ((ShardId, Change), Vec<Epoch>)| {
        let which = format!("shard {shard}: {}", counted(epochs.len(), "partition"));
        let in_epoch = epochs_text(&epochs);
        match change {
            Change::Created { leader } => format!("{which} created, led by {leader}"),
            Change::Recovered { leader } => {
                format!("{which} recovered by force: {leader} leads in a new history ({in_epoch})")
            }
            Change::OtherLeader { old, new: leader } => {
                format!("{which} now led by {leader} ({in_epoch}), {old} {}", what_became_of(old, new))
            }
            Change::Reopened { leader } => format!("{which} opened again by {leader} ({in_epoch})"),
            Change::Back { leader } => {
                format!("{which} changed meanwhile, and led by {leader} with the same followers again ({in_epoch})")
            }
            Change::Members { leader, gone, new, alone } => {
                let mut parts = Vec::new();
                if !new.is_empty() {
                    parts.push(format!("{} in sync", names(&new)));
                }
                if !gone.is_empty() {
                    parts.push(format!("without {}", names(&gone)));
                }
                let alone = if alone { format!(": {leader} is ALONE") } else { String::new() };
                format!("{which} now with {} ({in_epoch}){alone}", parts.join(", ")).replace("with without", "without")
            }
        }
    };
    groups.into_iter().map(sentence).collect()
}

fn change(old: Option<&Configuration>, now: &Configuration, map: &ClusterMap) -> Option<Change> {
    let leader = now.leader.node;
    let Some(old) = old else { return Some(Change::Created { leader }) };
    if old.epoch == now.epoch {
        return None;
    }
    if old.history != now.history {
        return Some(Change::Recovered { leader });
    }
    if old.leader.node != leader {
        return Some(Change::OtherLeader { old: old.leader.node, new: leader });
    }
    let without = |these: &[Member], those: &[Member]| -> Vec<NodeId> {
        these.iter().filter(|m| !those.contains(m)).map(|m| m.node).collect()
    };
    let (gone, new) = (without(&old.in_sync, &now.in_sync), without(&now.in_sync, &old.in_sync));
    if gone.is_empty() && new.is_empty() {
        let one_step = now.epoch == old.epoch.next();
        return Some(if one_step { Change::Reopened { leader } } else { Change::Back { leader } });
    }
    Some(Change::Members { leader, gone, new, alone: map.replicas > 1 && now.in_sync.is_empty() })
}

fn epochs_text(epochs: &[Epoch]) -> String {
    match (epochs.iter().min(), epochs.iter().max()) {
        (Some(first), Some(last)) if first != last => format!("epochs {first} to {last}"),
        (Some(first), _) => format!("epoch {first}"),
        _ => "no epoch".to_owned(),
    }
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" and ")
}

fn stats(topology: &Topology, node: NodeId) -> Option<&NodeStats> {
    topology.nodes.iter().find(|n| n.node == node)?.stats.as_ref()
}

/// Whoever led is gone, or follows, or has yet to catch up.
fn what_became_of(node: NodeId, now: &Topology) -> &'static str {
    let Some(stats) = stats(now, node) else { return "is gone" };
    let is_member = |c: &Configuration| c.members().any(|m| m.node == node && m.disk == stats.disk);
    let member = now.map.partitions.iter().filter_map(|p| p.configuration.as_ref()).any(is_member);
    if member { "follows" } else { "is out of sync" }
}

fn of_node(old: &NodeReport, new: &NodeReport) -> Vec<String> {
    let node = new.node;
    let (before, now) = match (&old.stats, &new.stats) {
        (Some(before), Some(now)) => (before, now),
        (Some(_), None) => {
            return vec![format!("{node} does not answer: {}", new.error.as_deref().unwrap_or("nobody knows why"))];
        }
        (None, Some(now)) => {
            let again = if now.uptime_s < 5 { "is there again, just started" } else { "answers again" };
            return vec![format!("{node} {again}")];
        }
        (None, None) => return Vec::new(),
    };
    let mut events = Vec::new();
    if before.disk != now.disk {
        events.push(format!("{node} has lost its data: it was started with an empty folder"));
    } else if before.generation != now.generation {
        events.push(format!("{node} was started again"));
    }
    let is_full = |s: &NodeStats| s.max_memory_bytes.is_some_and(|max| s.memory_bytes >= max);
    for (what, before, now) in [("disk", before.disk_full, now.disk_full), ("memory", is_full(before), is_full(now))] {
        match (before, now) {
            (false, true) => events.push(format!("{node} takes no more values: its {what} is FULL")),
            (true, false) => events.push(format!("{node} takes values again: its {what} has room")),
            _ => {}
        }
    }
    events
}

/// Nodes that began to catch up with partitions, or have done so.
fn learners(old: &Topology, new: &Topology) -> Vec<String> {
    let learns = |topology: &Topology, node| {
        let replicas = stats(topology, node).map(|s| s.replicas.iter().filter(|r| r.role == Role::Learner).count());
        replicas.unwrap_or(0)
    };
    let event = |node: NodeId| match (learns(old, node), learns(new, node)) {
        (before, now) if now > before => Some(format!("{node} catches up with {}", counted(now, "partition"))),
        _ => None,
    };
    new.nodes.iter().filter_map(|n| event(n.node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{node, replica, topology};

    fn sample() -> Topology {
        topology(Some(vec![replica(0, Role::Follower, 7, "aa"), replica(1, Role::Follower, 5, "bb")]))
    }

    /// The sample after a change of both configurations.
    fn after(change: impl Fn(&mut Configuration)) -> Topology {
        let mut new = sample();
        for partition in &mut new.map.partitions {
            let configuration = partition.configuration.as_mut().expect("created");
            configuration.epoch = configuration.epoch.next();
            change(configuration);
        }
        new
    }

    fn take_over(c: &mut Configuration) {
        c.leader = c.in_sync.remove(0);
    }

    #[test]
    fn nothing_is_told_when_nothing_has_changed() {
        assert!(between(&sample(), &sample()).is_empty());
    }

    #[test]
    fn a_leader_that_dies_is_one_event_of_its_partitions_and_one_of_its_node() {
        let mut new = after(take_over);
        new.nodes[1].stats = None;
        new.nodes[1].error = Some("connection refused".to_owned());
        assert_eq!(
            between(&sample(), &new),
            [
                "shard 0: 2 partitions now led by shard0-follower (epoch 2), shard0-leader is gone",
                "shard0-leader does not answer: connection refused"
            ]
        );
        let mut back = after(take_over);
        back.nodes[1].stats.as_mut().expect("there").replicas.iter_mut().for_each(|r| r.role = Role::Learner);
        assert_eq!(between(&new, &back), ["shard0-leader answers again", "shard0-leader catches up with 2 partitions"]);
    }

    #[test]
    fn every_change_of_a_configuration_has_its_sentence() {
        let hand_off = |c: &mut Configuration| std::mem::swap(&mut c.leader, &mut c.in_sync[0]);
        let drop = |c: &mut Configuration| c.in_sync.clear();
        let force = |c: &mut Configuration| {
            c.history.0 += 1;
            take_over(c);
        };
        let told = |old: &Topology, new: &Topology| between(old, new).join("\n");
        let told_of = |change: &dyn Fn(&mut Configuration)| told(&sample(), &after(change));
        assert_eq!(
            told_of(&hand_off),
            "shard 0: 2 partitions now led by shard0-follower (epoch 2), shard0-leader follows"
        );
        let gone = "shard 0: 2 partitions now led by shard0-follower (epoch 2), shard0-leader is out of sync";
        assert_eq!(told_of(&take_over), gone);
        assert_eq!(
            told_of(&drop),
            "shard 0: 2 partitions now without shard0-follower (epoch 2): shard0-leader is ALONE"
        );
        assert_eq!(
            told(&after(drop), &{
                let mut new = after(|c| c.epoch = c.epoch.next());
                new.map.partitions[1] = after(drop).map.partitions[1].clone();
                new
            }),
            "shard 0: 1 partition now with shard0-follower in sync (epoch 3)"
        );
        assert_eq!(told_of(&|_| {}), "shard 0: 2 partitions opened again by shard0-leader (epoch 2)");
        assert_eq!(
            told_of(&|c| c.epoch = Epoch(8)),
            "shard 0: 2 partitions changed meanwhile, and led by shard0-leader with the same followers again (epoch 8)"
        );
        assert_eq!(
            told_of(&force),
            "shard 0: 2 partitions recovered by force: shard0-follower leads in a new history (epoch 2)"
        );
        let mut waiting = sample();
        waiting.map.partitions.iter_mut().for_each(|p| p.configuration = None);
        assert_eq!(told(&waiting, &sample()), "shard 0: 2 partitions created, led by shard0-leader");
        let mut apart = after(hand_off);
        apart.map.partitions[1].configuration.as_mut().expect("created").epoch = Epoch(7);
        assert!(told(&sample(), &apart).contains("2 partitions now led by shard0-follower (epochs 2 to 7)"));
    }

    #[test]
    fn nodes_that_restart_lose_their_data_or_are_full_are_told() {
        let with = |change: &dyn Fn(&mut NodeStats)| {
            let mut new = sample();
            change(new.nodes[1].stats.as_mut().expect("there"));
            (between(&sample(), &new).join("\n"), between(&new, &sample()).join("\n"))
        };
        assert_eq!(with(&|s| s.generation = 2).0, "shard0-leader was started again");
        assert!(with(&|s| s.disk.0 = 99).0.starts_with("shard0-leader has lost its data"));
        let (full, room) = with(&|s| s.disk_full = true);
        assert_eq!(full, "shard0-leader takes no more values: its disk is FULL");
        assert_eq!(room, "shard0-leader takes values again: its disk has room");
        assert!(with(&|s| s.max_memory_bytes = Some(1)).0.contains("its memory is FULL"));
        let mut fewer = sample();
        fewer.nodes.remove(0);
        assert_eq!(between(&fewer, &sample()), ["shard0-follower has registered"]);
        assert_eq!(node("shard0-follower"), sample().nodes[0].node);
    }

    #[test]
    fn the_whole_cluster_is_told_when_its_status_changes() {
        let mut degraded = sample();
        degraded.health.status = Status::Degraded;
        degraded.health.problems = vec!["2 of 2 partitions are alone".to_owned()];
        assert_eq!(between(&sample(), &degraded), ["the cluster is DEGRADED: 2 of 2 partitions are alone"]);
        assert_eq!(between(&degraded, &sample()), ["the cluster is ready"]);
    }
}
