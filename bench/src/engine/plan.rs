//! Which connections go where, and which keys belong to them. Pure.
//!
//! # Invariants
//! * A key is asked only where its partition is led, and on the executor that owns it, as far as is known.
//! * Every place has a connection of every thread, as long as there are enough of them.

use kv_client::proto::{
    cluster_map::ClusterMap,
    ids::{ClusterId, ExecutorIndex, NodeId, PartitionId},
    routing::partition_of,
};
use std::collections::{BTreeSet, HashMap};

/// Which executor of a leader owns which of its partitions.
pub(crate) type Owners = HashMap<NodeId, HashMap<PartitionId, ExecutorIndex>>;

/// Where connections go: an executor of a node, or a server of another kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) executor: Option<ExecutorIndex>,
}

/// Where each key belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) places: Vec<Place>,
    /// By partition; empty where there are none and everything belongs to the only place.
    homes: Vec<Home>,
    /// How many partitions keys are told apart by, if they are.
    partitions: Option<u16>,
}

/// Where the keys of a partition belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// To the place with this index.
    At(usize),
    /// Nobody is known to lead it.
    Nobody,
    /// To a node that is not loaded.
    Elsewhere,
}

/// Why the load cannot be shared out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("partition {0} has no leader; wait until the cluster is ready")]
    NoLeader(PartitionId),
    #[error("the cluster map has no usable address for {0}, which leads partitions; wait until it has registered")]
    NoAddress(NodeId),
    #[error("{0} leads no partition, so that there is nothing to ask it for; use kv:// to load the whole cluster")]
    LeadsNothing(NodeId),
}

impl Plan {
    /// Everything goes to one address. `partitions` is how many the cluster behind it has, if that is of interest.
    pub(crate) fn single(address: String, partitions: Option<u16>) -> Plan {
        let place = Place { address, node: None, executor: None };
        Plan { cluster: None, places: vec![place], homes: Vec::new(), partitions }
    }

    /// Everything goes to those who lead it; or only what `only` leads, to that one.
    pub(crate) fn of_map(map: &ClusterMap, owners: &Owners, only: Option<NodeId>) -> Result<Plan, PlanError> {
        let mut led = Vec::with_capacity(map.partitions.len());
        for (partition, p) in map.partitions() {
            let leader = p.configuration.as_ref().map(|configuration| configuration.leader.node);
            led.push(match leader {
                None => Err(Home::Nobody),
                Some(node) if only.is_some_and(|only| only != node) => Err(Home::Elsewhere),
                Some(node) => {
                    let executor = owners.get(&node).and_then(|o| o.get(&partition)).copied().unwrap_or_default();
                    let address = map.node(node).filter(|n| !n.address.is_empty()).ok_or(PlanError::NoAddress(node))?;
                    Ok(Place { address: address.address.clone(), node: Some(node), executor: Some(executor) })
                }
            });
        }
        let places: BTreeSet<&Place> = led.iter().flatten().collect();
        let places: Vec<Place> = places.into_iter().cloned().collect();
        if places.is_empty() {
            return Err(only.map_or(PlanError::NoLeader(PartitionId(0)), PlanError::LeadsNothing));
        }
        let home = |place: Result<Place, Home>| match place {
            Ok(place) => Home::At(places.binary_search(&place).expect("all are there")),
            Err(home) => home,
        };
        let homes = led.into_iter().map(home).collect();
        Ok(Plan { cluster: Some(map.cluster), places, homes, partitions: Some(map.partition_count()) })
    }

    /// Checks that everything is led, as it should be when a load begins.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let partition = self.homes.iter().position(|home| *home == Home::Nobody);
        partition.map_or(Ok(()), |partition| Err(PlanError::NoLeader(PartitionId(partition as u16))))
    }

    /// The partition of a key; number 0 where there are none.
    pub(crate) fn partition(&self, key: &[u8]) -> PartitionId {
        self.partitions.map_or(PartitionId(0), |count| partition_of(key, count))
    }

    /// Whether all keys belong to one place, whatever their partitions.
    pub(crate) fn is_simple(&self) -> bool {
        self.places.len() == 1 && self.homes.iter().all(|home| *home == Home::At(0))
    }

    /// Where a partition belongs.
    pub(crate) fn home(&self, partition: PartitionId) -> Home {
        if self.homes.is_empty() {
            return Home::At(0);
        }
        self.homes.get(usize::from(partition.0)).copied().unwrap_or(Home::Nobody)
    }

    /// How many nodes there are among the places.
    pub(crate) fn nodes(&self) -> usize {
        self.places
            .iter()
            .map(|p| (&p.node, if p.node.is_some() { "" } else { &p.address }))
            .collect::<BTreeSet<_>>()
            .len()
    }

    pub(crate) fn partitions(&self) -> Option<u16> {
        self.partitions
    }
}

/// Gives each of these connections a place: the one that it has, if there still is that, else one that has fewest; then
/// places without any take from those that have most.
pub(crate) fn assign(now: &[Option<Place>], places: &[Place]) -> Vec<usize> {
    let mut counts = vec![0; places.len()];
    let index = |place: &Option<Place>| places.binary_search(place.as_ref()?).ok();
    let mut homes: Vec<Option<usize>> = now.iter().map(index).collect();
    homes.iter().flatten().for_each(|home| counts[*home] += 1);
    for home in homes.iter_mut().filter(|home| home.is_none()) {
        let fewest = (0..counts.len()).min_by_key(|place| counts[*place]).unwrap_or_default();
        counts[fewest] += 1;
        *home = Some(fewest);
    }
    let mut homes: Vec<usize> = homes.into_iter().flatten().collect();
    for empty in 0..counts.len() {
        let most = (0..counts.len()).max_by_key(|place| counts[*place]).unwrap_or_default();
        if counts[empty] == 0 && counts[most] > 1 {
            let last = homes.iter().rposition(|home| *home == most).expect("it has some");
            homes[last] = empty;
            counts[most] -= 1;
            counts[empty] += 1;
        }
    }
    homes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::samples::{led_in_turn, node};

    fn place(name: &str, executor: u16) -> Place {
        Place { address: format!("{name}:1"), node: Some(node(name)), executor: Some(ExecutorIndex(executor)) }
    }

    #[test]
    fn a_key_belongs_where_its_partition_is_led() {
        let map = led_in_turn(8, &["a", "b", "c"]);
        // Node a has told its owners, b and c have not.
        let owners = Owners::from([(node("a"), HashMap::from([(PartitionId(3), ExecutorIndex(1))]))]);
        let plan = Plan::of_map(&map, &owners, None).expect("all are led");
        assert_eq!(plan.places, [place("a", 0), place("a", 1), place("b", 0), place("c", 0)]);
        assert_eq!((plan.nodes(), plan.partitions()), (3, Some(8)));
        for i in 0..1000 {
            let key = format!("key:{i}");
            let partition = plan.partition(key.as_bytes());
            let home = plan.home(partition);
            assert_eq!(partition, partition_of(key.as_bytes(), 8));
            let expected = match (partition.0, partition.0 % 3) {
                (3, _) => 1,
                (_, 0) => 0,
                (_, 1) => 2,
                _ => 3,
            };
            assert_eq!(home, Home::At(expected));
        }
        let single = Plan::single("x:1".to_owned(), None);
        let partition = single.partition(b"k");
        assert_eq!((partition, single.home(partition), single.nodes()), (PartitionId(0), Home::At(0), 1));
        assert!(single.is_simple() && !plan.is_simple());
    }

    #[test]
    fn one_node_is_asked_only_for_what_it_leads() {
        let plan = Plan::of_map(&led_in_turn(4, &["a", "b"]), &Owners::new(), Some(node("b"))).expect("b leads");
        assert_eq!(plan.places, [place("b", 0)]);
        let homes: Vec<_> = (0..4).map(|p| plan.home(PartitionId(p))).collect();
        assert_eq!(homes, [Home::Elsewhere, Home::At(0), Home::Elsewhere, Home::At(0)]);
        let error =
            Plan::of_map(&led_in_turn(1, &["a", "b"]), &Owners::new(), Some(node("b"))).expect_err("b does not");
        assert_eq!(error, PlanError::LeadsNothing(node("b")));
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        let mut without_leader = led_in_turn(4, &["a"]);
        without_leader.partitions[2].configuration = None;
        let mut without_address = led_in_turn(4, &["a"]);
        without_address.nodes[0].address = String::new();
        for (map, error) in
            [(without_leader, PlanError::NoLeader(PartitionId(2))), (without_address, PlanError::NoAddress(node("a")))]
        {
            let plan = Plan::of_map(&map, &Owners::new(), None).and_then(|plan| plan.check());
            assert_eq!(plan.expect_err("not usable"), error);
        }
    }

    #[test]
    fn connections_stay_where_they_are_as_long_as_every_place_has_one() {
        let at = |name: &str| Some(place(name, 0));
        let places = |names: &[&str]| names.iter().map(|name| place(name, 0)).collect::<Vec<_>>();
        for (now, to, homes) in [
            (vec![None, None, None, None], places(&["a", "b", "c"]), vec![0, 1, 2, 0]),
            (vec![at("a"), at("b"), at("c"), at("a")], places(&["b", "c", "d"]), vec![2, 0, 1, 0]),
            (vec![at("a"), at("b"), at("a"), at("a")], places(&["a", "b", "c"]), vec![0, 1, 0, 2]),
            (vec![at("a"), at("b")], places(&["a", "b", "c"]), vec![0, 1]),
            (vec![at("a"), at("b"), at("c")], places(&["a"]), vec![0, 0, 0]),
        ] {
            assert_eq!(assign(&now, &to), homes, "{now:?}");
        }
    }
}
