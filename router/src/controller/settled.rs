//! Commands that need no entry in the controllers' log.

use super::{config_store::Decision, error::CasError, raft::peers::made};
use kv_replication::{
    cluster::{Applied, Cluster, Command, ProposalRefusal},
    configuration::Refusal,
};

/// The answer that no later state can change, so that it needs no entry in the log: what was carried out, what is known
/// already, and what was refused because of things that never change. A partition's epoch only grows, and what its
/// configuration was in an epoch stays so: a refusal can be wrong later only where the proposal is ahead of what is known
/// here.
pub(super) fn decided_for_good(cluster: &Cluster, command: &Command) -> Option<Result<Decision, CasError>> {
    made(cluster)?;
    let mut next = cluster.clone();
    let applied = next.apply(command);
    if next.map.version != cluster.map.version {
        return None;
    }
    // What is not known to stay refused may not.
    let stays = |refusal: &ProposalRefusal| match refusal {
        ProposalRefusal::UnknownPartition(_) => true,
        ProposalRefusal::Configuration(Refusal::OtherEpoch { current, proposed }) => proposed <= current,
        ProposalRefusal::Configuration(refusal) => *refusal != Refusal::NotCreated,
        // Nodes register, with other disks too.
        ProposalRefusal::CannotLead { .. } => false,
    };
    match applied {
        Ok(Applied::Registered) => Some(Ok(Decision::Registered)),
        Ok(Applied::StrangersDisregarded) => Some(Ok(Decision::Done)),
        Ok(Applied::Decided(decided)) if !decided.iter().flatten().all(stays) => None,
        Ok(Applied::Decided(decided)) => {
            Some(Ok(Decision::Decided(decided.into_iter().map(|d| d.map(|r| r.to_string())).collect())))
        }
        Err(refusal) => Some(Err(CasError::Refused(refusal.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::config_store::tests::{SHAPE, register};
    use kv_proto::{
        control::{Change, Proposal},
        ids::{ClusterId, DiskId, Epoch, Member, NodeId, PartitionId},
    };

    #[test]
    fn only_what_no_later_state_changes_is_answered_without_the_leader() {
        let mut cluster = Cluster::new(ClusterId(1), SHAPE).expect("possible");
        let leader = Member { node: NodeId::new("a").expect("a node id"), disk: DiskId(1) };
        let reopen = |id, epoch, leader| {
            let change = Change::Reopen { leader };
            Command::Propose(vec![Proposal { id, partition: PartitionId(0), epoch: Epoch(epoch), change }])
        };
        let stranger = Member { disk: DiskId(9), ..leader };
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_none(), "not created, as far as is known");
        assert!(decided_for_good(&cluster, &register("a", 1)).is_none(), "changes the map");
        for name in ["a", "b"] {
            cluster.apply(&register(name, 1)).expect(name);
        }
        assert!(decided_for_good(&cluster, &register("a", 1)).is_some(), "known already");
        assert!(decided_for_good(&cluster, &register("c", 1)).is_some(), "the shard stays full");
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_none(), "changes the map");
        assert!(decided_for_good(&cluster, &reopen(1, 1, stranger)).is_some(), "did not lead in this epoch");
        assert!(decided_for_good(&cluster, &reopen(1, 2, stranger)).is_none(), "may lead in a later one");
        cluster.apply(&reopen(1, 1, leader)).expect("reopened");
        assert!(decided_for_good(&cluster, &reopen(1, 1, leader)).is_some(), "was carried out");
        assert!(decided_for_good(&cluster, &reopen(2, 1, leader)).is_some(), "the epoch is over");
    }
}
