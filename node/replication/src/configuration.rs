//! Changes of a partition's configuration: the one check of proposals.
//!
//! The replicas decide what they want and the controller only arbitrates: a proposal names the epoch that it
//! replaces, and [`apply`] either makes the configuration of the next epoch or refuses. Controller and simulation
//! call the same function. PacificA (MSR-TR-2008-25), sections 2.2 and 2.4.
//!
//! # Invariants
//! * Every accepted change raises the epoch by exactly one. All but `ForceRecover` keep the history, which it always changes.
//! * Whoever leads after a change was a member before it, but after `ForceRecover`; nothing but this, `Create` and `Add`
//!   admits members.
//! * A member is a node *with its disk*: a node that lost its disk is a stranger under its old name.
//! * No node is a member twice, under whatever disks.
//!
//! What it lacks: whether who proposes is who it says it is (the controller's connection knows), and whether the same
//! proposal was carried out before (see [`crate::cluster`]).

use kv_proto::{
    cluster_map::Configuration,
    control::{Change, Proposal},
    ids::{Epoch, HistoryId, Member},
};

/// Why a proposal is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Only a partition without a configuration can be created.
    #[error("the partition was created before and is in epoch {0}")]
    AlreadyCreated(Epoch),
    /// Nothing but `Create` applies to a partition without a configuration.
    #[error("the partition has not been created yet")]
    NotCreated,
    /// The configuration has changed since the proposal was made.
    #[error("the proposal replaces epoch {proposed}, but the partition is in epoch {current}")]
    OtherEpoch {
        /// The epoch that the partition is in.
        current: Epoch,
        /// The epoch that the proposal replaces.
        proposed: Epoch,
    },
    /// The change is the leader's to ask for.
    #[error("{asking} asks for what only the leader may, and the leader is {leader}")]
    NotLeader {
        /// Who asks.
        asking: Member,
        /// Who leads.
        leader: Member,
    },
    /// The change needs an in-sync follower.
    #[error("{0} is no in-sync follower of the partition")]
    NotInSync(Member),
    /// A change that must keep to the members names a stranger.
    #[error("{0} is no member of the partition")]
    NotMember(Member),
    /// The leader that is replaced would stay a member.
    #[error("{0} is the leader that is replaced, and cannot follow in the next epoch")]
    OldLeader(Member),
    /// A learner is added whose node is a member.
    #[error("{0} is a member of the partition already, and a node is a member only once")]
    AlreadyMember(Member),
    /// A node is named twice.
    #[error("the node of {0} is named twice")]
    Duplicate(Member),
    /// A drop that drops nobody.
    #[error("the proposal names no follower to drop")]
    NobodyToDrop,
    /// A forced recovery that goes on in the history whose end it declares lost.
    #[error("a forced recovery begins another history than {0}, in which the partition is")]
    SameHistory(HistoryId),
}

/// Makes the configuration that follows `current` by a proposal; `current` is `None` before the partition is created.
///
/// # Errors
/// When the proposal is not for this epoch, or not allowed in it; nothing changes then.
pub fn apply(current: Option<&Configuration>, proposal: &Proposal) -> Result<Configuration, Refusal> {
    let (current, change) = match (current, &proposal.change) {
        (None, Change::Create { history, leader, in_sync }) => {
            return create(proposal.epoch, *history, *leader, in_sync);
        }
        (Some(current), Change::Create { .. }) => return Err(Refusal::AlreadyCreated(current.epoch)),
        (None, _) => return Err(Refusal::NotCreated),
        (Some(current), change) => (current, change),
    };
    if current.epoch != proposal.epoch {
        return Err(Refusal::OtherEpoch { current: current.epoch, proposed: proposal.epoch });
    }
    let (leader, in_sync) = match change {
        Change::Create { .. } => return Err(Refusal::AlreadyCreated(current.epoch)),
        Change::Drop { leader, followers } => {
            must_lead(current, *leader)?;
            if followers.is_empty() {
                return Err(Refusal::NobodyToDrop);
            }
            must_differ(followers)?;
            must_be_in_sync(current, followers)?;
            (*leader, current.in_sync.iter().copied().filter(|m| !followers.contains(m)).collect())
        }
        Change::Takeover { follower, in_sync } => {
            must_be_in_sync(current, &[*follower])?;
            if let Some(old) = in_sync.iter().find(|m| **m == current.leader) {
                return Err(Refusal::OldLeader(*old));
            }
            must_be_in_sync(current, in_sync)?;
            (*follower, in_sync.clone())
        }
        Change::Reopen { leader } => {
            must_lead(current, *leader)?;
            (*leader, current.in_sync.clone())
        }
        Change::Add { leader, learner } => {
            must_lead(current, *leader)?;
            if let Some(member) = current.members().find(|m| m.node == learner.node) {
                return Err(Refusal::AlreadyMember(member));
            }
            (*leader, current.in_sync.iter().copied().chain([*learner]).collect())
        }
        Change::Handoff { leader, to, in_sync } => {
            must_lead(current, *leader)?;
            must_be_in_sync(current, &[*to])?;
            if let Some(stranger) = in_sync.iter().find(|m| !current.is_member(**m)) {
                return Err(Refusal::NotMember(*stranger));
            }
            (*to, in_sync.clone())
        }
        Change::ForceRecover { leader, history } => {
            if *history == current.history {
                return Err(Refusal::SameHistory(*history));
            }
            return configuration(current.epoch.next(), *history, *leader, Vec::new());
        }
    };
    configuration(current.epoch.next(), current.history, leader, in_sync)
}

fn create(epoch: Epoch, history: HistoryId, leader: Member, in_sync: &[Member]) -> Result<Configuration, Refusal> {
    if epoch != Epoch(0) {
        return Err(Refusal::OtherEpoch { current: Epoch(0), proposed: epoch });
    }
    configuration(epoch.next(), history, leader, in_sync.to_vec())
}

fn configuration(
    epoch: Epoch,
    history: HistoryId,
    leader: Member,
    in_sync: Vec<Member>,
) -> Result<Configuration, Refusal> {
    let configuration = Configuration { epoch, history, leader, in_sync };
    must_differ(&configuration.members().collect::<Vec<_>>())?;
    Ok(configuration)
}

fn must_lead(current: &Configuration, asking: Member) -> Result<(), Refusal> {
    if asking == current.leader { Ok(()) } else { Err(Refusal::NotLeader { asking, leader: current.leader }) }
}

fn must_be_in_sync(current: &Configuration, followers: &[Member]) -> Result<(), Refusal> {
    match followers.iter().find(|m| !current.in_sync.contains(m)) {
        Some(stranger) => Err(Refusal::NotInSync(*stranger)),
        None => Ok(()),
    }
}

/// Members are few: comparing each with those before it is the cheapest way.
fn must_differ(members: &[Member]) -> Result<(), Refusal> {
    match members.iter().enumerate().find(|(i, m)| members[..*i].iter().any(|before| before.node == m.node)) {
        Some((_, twice)) => Err(Refusal::Duplicate(*twice)),
        None => Ok(()),
    }
}

/// In whose name a change is asked for; `None` for those that no replica may ask for.
#[must_use]
pub fn asking(change: &Change) -> Option<Member> {
    match change {
        Change::Create { .. } | Change::ForceRecover { .. } => None,
        Change::Takeover { follower, .. } => Some(*follower),
        Change::Drop { leader, .. }
        | Change::Reopen { leader }
        | Change::Add { leader, .. }
        | Change::Handoff { leader, .. } => Some(*leader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{DiskId, NodeId, PartitionId};
    use proptest::prelude::*;

    fn member(node: &str, disk: u128) -> Member {
        Member { node: NodeId::new(node).expect("a node id"), disk: DiskId(disk) }
    }

    fn proposal(epoch: u64, change: Change) -> Proposal {
        Proposal { id: 1, partition: PartitionId(0), epoch: Epoch(epoch), change }
    }

    /// `a` leads, `b` and `c` follow, in epoch 5 of history 7.
    fn abc() -> Configuration {
        Configuration {
            epoch: Epoch(5),
            history: HistoryId(7),
            leader: member("a", 1),
            in_sync: vec![member("b", 1), member("c", 1)],
        }
    }

    #[test]
    fn create_makes_the_first_configuration_and_no_other() {
        let (a, b) = (member("a", 1), member("b", 1));
        let create = |epoch, in_sync| proposal(epoch, Change::Create { history: HistoryId(3), leader: a, in_sync });
        let first = Configuration { epoch: Epoch(1), history: HistoryId(3), leader: a, in_sync: vec![b] };
        assert_eq!(apply(None, &create(0, vec![b])), Ok(first));
        assert_eq!(apply(None, &create(0, vec![])).map(|c| c.in_sync), Ok(vec![]));
        assert_eq!(
            apply(None, &create(1, vec![b])),
            Err(Refusal::OtherEpoch { current: Epoch(0), proposed: Epoch(1) })
        );
        assert_eq!(apply(None, &create(0, vec![member("a", 2)])), Err(Refusal::Duplicate(member("a", 2))));
        assert_eq!(apply(Some(&abc()), &create(0, vec![b])), Err(Refusal::AlreadyCreated(Epoch(5))));
        assert_eq!(apply(None, &proposal(0, Change::Reopen { leader: a })), Err(Refusal::NotCreated));
    }

    #[test]
    fn every_change_is_accepted_from_whom_it_is_allowed_to() {
        let (a, b, c, d) = (member("a", 1), member("b", 1), member("c", 1), member("d", 1));
        let cases = [
            ("drop one", Change::Drop { leader: a, followers: vec![b] }, a, vec![c]),
            ("drop all", Change::Drop { leader: a, followers: vec![c, b] }, a, vec![]),
            ("take over with all", Change::Takeover { follower: b, in_sync: vec![c] }, b, vec![c]),
            ("take over alone", Change::Takeover { follower: c, in_sync: vec![] }, c, vec![]),
            ("reopen", Change::Reopen { leader: a }, a, vec![b, c]),
            ("add", Change::Add { leader: a, learner: d }, a, vec![b, c, d]),
            ("hand off and follow", Change::Handoff { leader: a, to: b, in_sync: vec![a, c] }, b, vec![a, c]),
            ("hand off and leave", Change::Handoff { leader: a, to: b, in_sync: vec![c] }, b, vec![c]),
        ];
        for (name, change, leader, in_sync) in cases {
            let next = Configuration { epoch: Epoch(6), history: HistoryId(7), leader, in_sync };
            assert_eq!(apply(Some(&abc()), &proposal(5, change)), Ok(next), "{name}");
        }
    }

    /// A person knows what no replica can: that the leader will not come back.
    #[test]
    fn a_forced_recovery_makes_whom_it_names_lead_alone_in_a_new_history() {
        let (a, c, d) = (member("a", 1), member("c", 1), member("d", 1));
        for leader in [a, c, d, member("b", 2)] {
            let force = |epoch, history| proposal(epoch, Change::ForceRecover { leader, history: HistoryId(history) });
            let next = Configuration { epoch: Epoch(6), history: HistoryId(8), leader, in_sync: vec![] };
            assert_eq!(apply(Some(&abc()), &force(5, 8)), Ok(next), "{leader}");
            assert_eq!(apply(Some(&abc()), &force(5, 7)), Err(Refusal::SameHistory(HistoryId(7))), "{leader}");
            let late = Refusal::OtherEpoch { current: Epoch(5), proposed: Epoch(4) };
            assert_eq!(apply(Some(&abc()), &force(4, 8)), Err(late), "{leader}");
            assert_eq!(apply(None, &force(0, 8)), Err(Refusal::NotCreated), "{leader}");
            assert_eq!(asking(&force(5, 8).change), None, "no replica may ask for it");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let (a, b, c, d) = (member("a", 1), member("b", 1), member("c", 1), member("d", 1));
        // The same nodes after they lost their disks.
        let (wiped_a, wiped_b) = (member("a", 2), member("b", 2));
        let not_leader = |asking| Refusal::NotLeader { asking, leader: a };
        let cases = [
            ("drop by a follower", Change::Drop { leader: b, followers: vec![c] }, not_leader(b)),
            ("drop by a wiped leader", Change::Drop { leader: wiped_a, followers: vec![b] }, not_leader(wiped_a)),
            ("drop of nobody", Change::Drop { leader: a, followers: vec![] }, Refusal::NobodyToDrop),
            ("drop of the leader", Change::Drop { leader: a, followers: vec![a] }, Refusal::NotInSync(a)),
            ("drop of a stranger", Change::Drop { leader: a, followers: vec![b, d] }, Refusal::NotInSync(d)),
            ("drop of another disk", Change::Drop { leader: a, followers: vec![wiped_b] }, Refusal::NotInSync(wiped_b)),
            ("drop of one twice", Change::Drop { leader: a, followers: vec![b, b] }, Refusal::Duplicate(b)),
            ("takeover by the leader", Change::Takeover { follower: a, in_sync: vec![b] }, Refusal::NotInSync(a)),
            ("takeover by a stranger", Change::Takeover { follower: d, in_sync: vec![] }, Refusal::NotInSync(d)),
            (
                "takeover by a wiped follower",
                Change::Takeover { follower: wiped_b, in_sync: vec![] },
                Refusal::NotInSync(wiped_b),
            ),
            (
                "takeover that keeps the leader",
                Change::Takeover { follower: b, in_sync: vec![a] },
                Refusal::OldLeader(a),
            ),
            ("takeover with a stranger", Change::Takeover { follower: b, in_sync: vec![d] }, Refusal::NotInSync(d)),
            ("takeover that follows itself", Change::Takeover { follower: b, in_sync: vec![b] }, Refusal::Duplicate(b)),
            ("takeover with one twice", Change::Takeover { follower: b, in_sync: vec![c, c] }, Refusal::Duplicate(c)),
            ("reopen by a follower", Change::Reopen { leader: b }, not_leader(b)),
            ("reopen by a wiped leader", Change::Reopen { leader: wiped_a }, not_leader(wiped_a)),
            ("add by a follower", Change::Add { leader: b, learner: d }, not_leader(b)),
            ("add of a member", Change::Add { leader: a, learner: c }, Refusal::AlreadyMember(c)),
            ("add of the leader", Change::Add { leader: a, learner: a }, Refusal::AlreadyMember(a)),
            ("add of a member's new disk", Change::Add { leader: a, learner: wiped_b }, Refusal::AlreadyMember(b)),
            ("hand-off by a follower", Change::Handoff { leader: b, to: c, in_sync: vec![a] }, not_leader(b)),
            ("hand-off to itself", Change::Handoff { leader: a, to: a, in_sync: vec![b] }, Refusal::NotInSync(a)),
            ("hand-off to a stranger", Change::Handoff { leader: a, to: d, in_sync: vec![a] }, Refusal::NotInSync(d)),
            (
                "hand-off to another disk",
                Change::Handoff { leader: a, to: wiped_b, in_sync: vec![a] },
                Refusal::NotInSync(wiped_b),
            ),
            ("hand-off with a stranger", Change::Handoff { leader: a, to: b, in_sync: vec![d] }, Refusal::NotMember(d)),
            (
                "hand-off with one twice",
                Change::Handoff { leader: a, to: b, in_sync: vec![c, c] },
                Refusal::Duplicate(c),
            ),
            (
                "hand-off to a follower of itself",
                Change::Handoff { leader: a, to: b, in_sync: vec![b] },
                Refusal::Duplicate(b),
            ),
        ];
        for (name, change, refusal) in cases {
            for epoch in [4, 6] {
                let late = Refusal::OtherEpoch { current: Epoch(5), proposed: Epoch(epoch) };
                assert_eq!(apply(Some(&abc()), &proposal(epoch, change.clone())), Err(late), "{name}");
            }
            assert_eq!(apply(Some(&abc()), &proposal(5, change)), Err(refusal), "{name}");
        }
    }

    fn any_member() -> impl Strategy<Value = Member> {
        (0..4u8, 1..3u128).prop_map(|(node, disk)| member(&format!("n{node}"), disk))
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let members = || prop::collection::vec(any_member(), 0..3);
        prop_oneof![
            1 => (any_member(), members()).prop_map(|(leader, in_sync)| Change::Create { history: HistoryId(1), leader, in_sync }),
            2 => (any_member(), members()).prop_map(|(leader, followers)| Change::Drop { leader, followers }),
            4 => (any_member(), members()).prop_map(|(follower, in_sync)| Change::Takeover { follower, in_sync }),
            2 => any_member().prop_map(|leader| Change::Reopen { leader }),
            6 => (any_member(), any_member()).prop_map(|(leader, learner)| Change::Add { leader, learner }),
            4 => (any_member(), any_member(), members())
                .prop_map(|(leader, to, in_sync)| Change::Handoff { leader, to, in_sync }),
            1 => (any_member(), 0..4u32)
                .prop_map(|(leader, history)| Change::ForceRecover { leader, history: HistoryId(history) }),
        ]
    }

    proptest! {
        /// Proposals are mostly made for the right epoch and in the right name, so that many of them are accepted.
        #[test]
        fn any_sequence_of_proposals_keeps_the_invariants(
            steps in prop::collection::vec((any_change(), -1..3i64, 0..3u8), 1..60),
        ) {
            let mut current: Option<Configuration> = None;
            for (mut change, epoch_off_by, honest) in steps {
                if let (Some(c), 1..) = (&current, honest) {
                    match &mut change {
                        Change::Drop { leader, .. } | Change::Reopen { leader } | Change::Add { leader, .. }
                        | Change::Handoff { leader, .. } => *leader = c.leader,
                        Change::Create { .. } | Change::Takeover { .. } | Change::ForceRecover { .. } => {}
                    }
                }
                let now = current.as_ref().map_or(0, |c| c.epoch.0);
                let epoch = if epoch_off_by == -1 { now.saturating_sub(1) } else { now };
                let asked = proposal(epoch, change);
                let Ok(next) = apply(current.as_ref(), &asked) else { continue };

                prop_assert_eq!(epoch, now, "a proposal for another epoch was accepted");
                prop_assert_eq!(next.epoch.0, now + 1);
                let nodes: std::collections::BTreeSet<_> = next.members().map(|m| m.node).collect();
                prop_assert_eq!(nodes.len(), next.members().count(), "a node is a member twice");
                if let Change::ForceRecover { leader, .. } = asked.change {
                    prop_assert_ne!(Some(next.history), current.as_ref().map(|c| c.history), "the history goes on");
                    prop_assert_eq!((next.leader, next.in_sync.len()), (leader, 0));
                    prop_assert!(current.is_some() && asking(&asked.change).is_none());
                } else if let Some(before) = &current {
                    prop_assert_eq!(next.history, before.history);
                    prop_assert!(before.is_member(next.leader), "who leads was no member");
                    let admitted = next.members().filter(|m| !before.is_member(*m)).count();
                    let allowed = usize::from(matches!(asked.change, Change::Add { .. }));
                    prop_assert_eq!(admitted, allowed, "members are admitted by Add alone");
                    prop_assert!(asking(&asked.change).is_some_and(|m| before.is_member(m)), "a stranger was obeyed");
                }
                current = Some(next);
            }
        }
    }
}
