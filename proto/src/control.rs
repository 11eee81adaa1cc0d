//! What nodes and the controller say to each other.

use crate::{
    cluster_map::{ClusterMap, Node},
    ids::{ClusterId, Epoch, HistoryId, Member, PartitionId},
};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Node to controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToController {
    /// Here I am. Answered by [`FromController::Registered`] or [`FromController::Refused`]; after the former,
    /// every change of the map is sent unasked.
    Register {
        /// The cluster that the node's data belong to; `None` while it has none.
        cluster: Option<ClusterId>,
        /// The node as it is now.
        node: Node,
    },
    /// Changes of configurations. Answered by [`FromController::Decided`].
    Propose(Vec<Proposal>),
    /// Are you there? Answered by [`FromController::Pong`].
    Ping,
}

/// Controller to node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FromController {
    /// The node is known by what it said.
    Registered {
        /// The cluster that it belongs to from now on.
        cluster: ClusterId,
    },
    /// The node cannot take part; a sentence that says why and what to do.
    Refused(String),
    /// The map as it is now.
    Map(ClusterMap),
    /// What became of each proposal, in their order; with `None` it was carried out.
    Decided(Vec<Option<String>>),
    /// The answer to a ping.
    Pong,
}

/// A change of one partition's configuration: carried out only if the partition is in `epoch`, which makes it a
/// compare-and-set. Sent again after it was carried out, it is found to be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Proposal {
    /// Identifies the proposal over all its attempts.
    #[serde(with = "crate::ids::hex")]
    pub id: u128,
    /// Whose configuration.
    pub partition: PartitionId,
    /// The epoch to replace; 0 where there is no configuration yet.
    pub epoch: Epoch,
    /// What to do.
    pub change: Change,
}

/// What to do to a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub enum Change {
    /// Controller: the first configuration, the only one that admits empty disks.
    Create {
        /// The history that begins: another for every cluster, so that no version of one is taken for one of another.
        history: HistoryId,
        /// Who leads.
        leader: Member,
        /// Who follows.
        in_sync: Vec<Member>,
    },
    /// Leader: go on without these followers.
    Drop {
        /// Who asks.
        leader: Member,
        /// Who is left out.
        followers: Vec<Member>,
    },
    /// In-sync follower: lead in place of the leader, with some or all of the other followers.
    Takeover {
        /// Who asks, and leads from now on.
        follower: Member,
        /// Who follows from now on.
        in_sync: Vec<Member>,
    },
    /// Leader: lead on with the same members after a restart.
    Reopen {
        /// Who asks.
        leader: Member,
    },
    /// Leader: a learner that has everything is in sync from now on.
    Add {
        /// Who asks.
        leader: Member,
        /// Who is added.
        learner: Member,
    },
    /// Leader: a follower leads from now on.
    Handoff {
        /// Who asks.
        leader: Member,
        /// Who leads from now on.
        to: Member,
        /// Who follows from now on.
        in_sync: Vec<Member>,
    },
    /// A person, who made sure that the old leader is stopped: this replica leads alone, whatever it has. What it lacks is
    /// lost, and a new history begins.
    ForceRecover {
        /// Who leads from now on.
        leader: Member,
        /// The history that begins.
        history: HistoryId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = codec::decode::<ToController>(&bytes);
            let _ = codec::decode::<FromController>(&bytes);
        }
    }
}
