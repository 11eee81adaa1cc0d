//! Placement: which shard hosts which partition, and who of a shard leads it.
//!
//! The controller alone computes placement; it stands in the cluster map and nobody else computes it. A map begins with
//! all partitions in its first shard, so that the first placement is a plan like every other.
//!
//! # Invariants
//! * After the moves of a plan, the sizes of any two shards differ by at most one.
//! * No plan that reaches this moves fewer partitions, and nothing moves between two shards that both stay as they are.
//! * Equal input gives equal moves, on every machine and in every version: scores are hashes of ids.
//!
//! What it lacks: the copying of data that a move of a partition with keys needs, and weights of nodes.

use kv_proto::{
    cluster_map::{ClusterMap, Node, Partition, Shard},
    ids::{Member, PartitionId, ShardId},
};
use xxhash_rust::xxh3::xxh3_64;

/// A partition that changes its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Move {
    /// Which partition.
    pub partition: PartitionId,
    /// The shard that hosts it.
    pub from: ShardId,
    /// The shard that shall host it.
    pub to: ShardId,
}

/// The moves that spread a map's partitions evenly over the shards `0..shards`, ordered by partition: only what is too
/// much in one shard goes, to where its rendezvous score is highest.
///
/// # Panics
/// When `shards` is 0; a cluster has at least one.
#[must_use]
pub fn plan(map: &ClusterMap, shards: u16) -> Vec<Move> {
    assert!(shards > 0, "a plan for no shards");
    let mut sizes = vec![0usize; usize::from(shards)];
    for partition in &map.partitions {
        if let Some(size) = sizes.get_mut(usize::from(partition.shard.0)) {
            *size += 1;
        }
    }
    let targets = targets(&sizes, map.partitions.len());
    // Positive: how many must go; negative: how many are missing.
    let excess = |shard: ShardId, sizes: &[usize]| match sizes.get(usize::from(shard.0)) {
        Some(size) => *size as i64 - targets[usize::from(shard.0)] as i64,
        None => i64::MAX,
    };

    let mut candidates: Vec<(u64, Move)> = Vec::new();
    for (partition, placed) in map.partitions().filter(|(_, p)| excess(p.shard, &sizes) > 0) {
        for to in (0..shards).map(ShardId).filter(|to| excess(*to, &sizes) < 0) {
            candidates.push((score(partition, to), Move { partition, from: placed.shard, to }));
        }
    }
    candidates.sort_unstable_by_key(|(score, m)| (std::cmp::Reverse(*score), m.partition, m.to));

    let mut moves: Vec<Option<Move>> = vec![None; map.partitions.len()];
    for (_, candidate) in candidates {
        let moved = &mut moves[usize::from(candidate.partition.0)];
        if moved.is_none() && excess(candidate.from, &sizes) > 0 && excess(candidate.to, &sizes) < 0 {
            *moved = Some(candidate);
            sizes[usize::from(candidate.to.0)] += 1;
            if let Some(size) = sizes.get_mut(usize::from(candidate.from.0)) {
                *size -= 1;
            }
        }
    }
    moves.into_iter().flatten().collect()
}

/// How many partitions each shard shall have: the division's remainder goes to those that have most, so that they
/// give away least.
fn targets(sizes: &[usize], partitions: usize) -> Vec<usize> {
    let (each, remainder) = (partitions / sizes.len(), partitions % sizes.len());
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|shard| std::cmp::Reverse(sizes[*shard]));
    let mut targets = vec![each; sizes.len()];
    for shard in &by_size[..remainder] {
        targets[*shard] += 1;
    }
    targets
}

/// Rendezvous score of a partition in a shard: independent of which other shards there are.
fn score(partition: PartitionId, shard: ShardId) -> u64 {
    let [p0, p1] = partition.0.to_le_bytes();
    let [s0, s1] = shard.0.to_le_bytes();
    xxh3_64(&[p0, p1, s0, s1])
}

/// Who leads and who follows the `nth` partition of a shard: the nodes that prefer to lead take turns, or all if none
/// does. `nodes` are the shard's, in the order of the map.
///
/// # Panics
/// When `nodes` is empty.
#[must_use]
pub fn roles(nodes: &[&Node], nth: usize) -> (Member, Vec<Member>) {
    let candidates: Vec<&Node> = match nodes.iter().copied().filter(|n| n.prefers_to_lead).collect::<Vec<_>>() {
        preferring if preferring.is_empty() => nodes.to_vec(),
        preferring => preferring,
    };
    let member = |n: &Node| Member { node: n.id, disk: n.disk };
    let leader = member(candidates[nth % candidates.len()]);
    (leader, nodes.iter().map(|n| member(n)).filter(|m| *m != leader).collect())
}

/// The [`roles`] of all partitions, in their order; `None` while the shard of one has no nodes.
#[must_use]
pub fn all_roles(map: &ClusterMap) -> Vec<Option<(Member, Vec<Member>)>> {
    let nodes_of = |shard: &Shard| shard.nodes.iter().filter_map(|n| map.node(*n)).collect::<Vec<_>>();
    let mut shards: Vec<(Vec<&Node>, usize)> = map.shards.iter().map(|shard| (nodes_of(shard), 0)).collect();
    let of = |partition: &Partition| {
        let (nodes, next) = shards.get_mut(usize::from(partition.shard.0)).filter(|(nodes, _)| !nodes.is_empty())?;
        *next += 1;
        Some(roles(nodes, *next - 1))
    };
    map.partitions.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Partition, Shard},
        ids::{ClusterId, DiskId, MapVersion, NodeId},
    };
    use proptest::prelude::*;

    fn map(placement: &[u16]) -> ClusterMap {
        let partition = |shard: &u16| Partition { shard: ShardId(*shard), configuration: None };
        ClusterMap {
            cluster: ClusterId(1),
            version: MapVersion(1),
            replicas: 2,
            ack: AckMode::Durable,
            shards: vec![Shard::default(); usize::from(placement.iter().max().map_or(0, |s| s + 1))],
            nodes: Vec::new(),
            partitions: placement.iter().map(partition).collect(),
        }
    }

    fn carry_out(map: &mut ClusterMap, moves: &[Move]) {
        for m in moves {
            let partition = &mut map.partitions[usize::from(m.partition.0)];
            assert_eq!(partition.shard, m.from);
            partition.shard = m.to;
        }
    }

    fn sizes(map: &ClusterMap, shards: u16) -> Vec<usize> {
        (0..shards).map(|s| map.partitions.iter().filter(|p| p.shard.0 == s).count()).collect()
    }

    /// The fewest moves that any even placement needs, by trying every way to give out the remainder.
    fn fewest_moves(map: &ClusterMap, shards: u16) -> usize {
        let sizes = sizes(map, shards);
        let (each, remainder) = (map.partitions.len() / sizes.len(), map.partitions.len() % sizes.len());
        let stay = |larger: u32| -> usize {
            (0..sizes.len()).map(|s| sizes[s].min(each + ((larger >> s) & 1) as usize)).sum()
        };
        let most = (0..1u32 << shards).filter(|l| l.count_ones() as usize == remainder).map(stay).max();
        map.partitions.len() - most.expect("some way")
    }

    /// Every version of the plan agrees with every other, or it would move partitions for nothing.
    #[test]
    fn the_first_placement_of_64_partitions_in_3_shards_is_fixed() {
        let mut map = map(&[0; 64]);
        let moves = plan(&map, 3);
        carry_out(&mut map, &moves);
        assert_eq!(sizes(&map, 3), [22, 21, 21]);
        let placed: String = map.partitions.iter().map(|p| p.shard.to_string()).collect();
        assert_eq!(placed, FIRST_PLACEMENT);
    }

    const FIRST_PLACEMENT: &str = "0020112210210222210121212020111212222001121020110020211010100000";

    #[test]
    fn a_shard_more_takes_only_its_share() {
        let mut map = map(&[0; 64]);
        let moves = plan(&map, 3);
        carry_out(&mut map, &moves);
        let moves = plan(&map, 4);
        assert_eq!(moves.len(), 16);
        assert!(moves.iter().all(|m| m.to == ShardId(3)), "{moves:?}");
    }

    #[test]
    fn leaders_are_those_that_prefer_it_and_take_turns() {
        let node = |name: &str, prefers_to_lead| Node {
            id: NodeId::new(name).expect("a node id"),
            disk: DiskId(7),
            shard: ShardId(0),
            prefers_to_lead,
            address: "127.0.0.1:1".to_string(),
            executors: 1,
        };
        let cases = [
            (vec![("a", true), ("b", false)], ["a b", "a b", "a b"]),
            (vec![("a", true), ("b", true), ("c", false)], ["a b c", "b a c", "a b c"]),
            (vec![("a", false), ("b", false)], ["a b", "b a", "a b"]),
            (vec![("a", false)], ["a", "a", "a"]),
        ];
        for (nodes, expected) in cases {
            let nodes: Vec<Node> = nodes.into_iter().map(|(name, prefers)| node(name, prefers)).collect();
            let nodes: Vec<&Node> = nodes.iter().collect();
            for (nth, expected) in expected.into_iter().enumerate() {
                let (leader, followers) = roles(&nodes, nth);
                let names: Vec<_> = [leader].iter().chain(&followers).map(|m| m.node.to_string()).collect();
                assert_eq!(names.join(" "), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn a_plan_is_even_minimal_and_repeatable(
            placement in prop::collection::vec(0..6u16, 1..200), shards in 1..6u16,
        ) {
            let mut map = map(&placement);
            let moves = plan(&map, shards);
            prop_assert_eq!(&moves, &plan(&map, shards));
            prop_assert_eq!(moves.len(), fewest_moves(&map, shards));
            carry_out(&mut map, &moves);
            let sizes = sizes(&map, shards);
            prop_assert_eq!(sizes.iter().sum::<usize>(), placement.len(), "a partition is in no shard: {:?}", sizes);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            prop_assert_eq!(plan(&map, shards), [], "a plan that was carried out leaves nothing to do");
        }

        #[test]
        fn a_new_cluster_is_even(partitions in 1..600usize, shards in 1..40u16) {
            let mut map = map(&vec![0; partitions]);
            let moves = plan(&map, shards);
            carry_out(&mut map, &moves);
            let sizes = sizes(&map, shards);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
    }
}
