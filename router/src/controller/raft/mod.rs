//! The controllers agree on the order of commands by Raft (Ongaro, Ousterhout: *In Search of an Understandable Consensus
//! Algorithm*), which is openraft's; here is what it asks of whoever embeds it.
//!
//! ```text
//!  config_store ──► openraft ──► log_store ─────┐
//!       ▲             │   └────► state_machine ─┴─► disk (redb)
//!       └ published ◄─┼────────────────┘
//!                     └► network ──► peers ◄─► connection.rs of another controller ──► its openraft
//!  keeper: makes the cluster, and has the members be who they should be
//! ```
//!
//! A controller is one voter among those that `--controller-peers` lists, or the only one. Its id is random and made with
//! its folder: what has lost its folder is another controller, which knows nothing and has promised nothing, and not
//! the old one with a bad memory. Addresses are no part of what is agreed on: who is where, each controller finds
//! out for itself by asking (`keeper.rs`), so that they may change.
//!
//! # Invariants
//! * A vote, an entry and what was applied are on disk before anyone is told of them.
//! * The state is a function of the entries: all controllers that applied the same have the same.
//! * A controller with nothing on its disk begins a cluster only when all of the list have nothing.
//! * What another controller sends is checked before openraft sees it, whose assertions would end this process.

pub(crate) mod disk;
pub(crate) mod keeper;
pub(crate) mod log_store;
pub(crate) mod messages;
pub(crate) mod network;
pub(crate) mod peers;
pub(crate) mod state_machine;

use super::kept::Kept;
use kv_proto::{cluster_map::Node, control::Proposal, ids::ClusterId};
use kv_replication::cluster::{Applied, Command};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// What openraft works with. A controller is known by its id alone.
    pub(crate) Types:
        D = Entry,
        R = Outcome,
        NodeId = u64,
        Node = (),
        SnapshotData = Option<Kept>,
);

/// One controller's part in the consensus.
pub(crate) type Raft = openraft::Raft<Types>;

/// What is agreed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The cluster that the controllers keep from now on, unless they keep one already.
    Begin(Kept),
    /// See [`Command::Register`].
    Register { cluster: Option<ClusterId>, node: Node },
    /// See [`Command::Propose`].
    Propose(Vec<Proposal>),
    /// See [`Command::DisregardStrangers`].
    DisregardStrangers,
}

impl From<Command> for Entry {
    fn from(command: Command) -> Self {
        match command {
            Command::Register { cluster, node } => Entry::Register { cluster, node },
            Command::Propose(proposals) => Entry::Propose(proposals),
            Command::DisregardStrangers => Entry::DisregardStrangers,
        }
    }
}

/// What became of an entry; refusals are told as they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It was not one of ours, or there was nothing to do.
    Nothing,
    /// There is no cluster yet for which it could be carried out.
    NoCluster,
    /// See [`Applied::Registered`].
    Registered,
    /// See [`Applied::Decided`].
    Decided(Vec<Option<String>>),
    /// The node cannot register.
    Refused(String),
}

impl From<Applied> for Outcome {
    fn from(applied: Applied) -> Self {
        match applied {
            Applied::Registered => Outcome::Registered,
            Applied::StrangersDisregarded => Outcome::Nothing,
            Applied::Decided(decided) => {
                Outcome::Decided(decided.into_iter().map(|d| d.map(|refusal| refusal.to_string())).collect())
            }
        }
    }
}
