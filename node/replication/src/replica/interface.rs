//! What a replica is told and what it wants done: the words between the core and who embeds it.

use super::{log::LogEntry, rules::Rules};
use kv_proto::{
    cluster_map::Configuration,
    control::Change,
    ids::{Epoch, Lsn, Member, NodeId, OperationId},
    replication::{PeerBody, Position, Record},
};
use std::{sync::Arc, time::Duration};

/// What a replica is told once, at its start.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often a leader asks its followers whether they are there.
    pub beacon_interval: Duration,
    /// How long a follower may be silent until the leader takes no more writes.
    pub suspect_after: Duration,
    /// How long a new leader waits, from its start and from its last answer to another leader, until it serves.
    pub grace: Duration,
    /// How often a change of the configuration is asked for again while nothing happens.
    pub propose_interval: Duration,
    /// Bytes of records in one message, as they travel; a longer record travels alone. Small enough that a message of
    /// many records fits whatever the limit of values is. A [`Action::ReadLog`] is best answered by about as much.
    pub message_bytes: usize,
    /// Bytes of records that may wait at a leader until they are at every follower; one record may pass it.
    pub max_pending_bytes: usize,
    /// How many records may.
    pub max_pending_records: usize,
    /// For tests alone.
    #[doc(hidden)]
    pub rules: Rules,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            beacon_interval: Duration::from_millis(100),
            suspect_after: Duration::from_secs(1),
            grace: Duration::from_millis(1500),
            propose_interval: Duration::from_millis(500),
            message_bytes: 32 * 1024,
            max_pending_bytes: 16 * 1024 * 1024,
            max_pending_records: 64 * 1024,
            rules: Rules::default(),
        }
    }
}

/// Names who waits for an answer; chosen by the embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What happens to a replica.
#[derive(Debug)]
pub enum Event {
    /// A write whose effect was decided. Answered by one [`Action::Reply`] with its token.
    ClientWrite {
        /// The encoded effect.
        payload: Arc<[u8]>,
        /// What identifies the write over its attempts.
        operation_id: Option<OperationId>,
        /// Who waits.
        token: Token,
    },
    /// An answer that depends on what was prepared so far, as a refused condition does: it may be given when that
    /// is committed. Answered by one [`Action::Reply`] with its token.
    ClientBarrier {
        /// Who waits.
        token: Token,
    },
    /// This much of what the replica appended is on disk. Told of a configuration only when it really is; of the rest
    /// when it is as safe as the cluster promises.
    Flushed {
        /// The number of entries, counted from when the replica was made, in the order of their [`Action::Append`].
        entries: u64,
    },
    /// The answer to [`Action::ReadLog`].
    LogRead {
        /// Whom the records were read for.
        to: NodeId,
        /// The position of the record that they follow, which was asked for by its LSN.
        previous: Position,
        /// The records, dense, those that are void left out; none if the log does not reach back so far, and then the
        /// epoch of `previous` means nothing.
        records: Vec<Record>,
    },
    /// There is a new connection to a member. Nothing that it said on an older one will arrive here any more; what it was
    /// sent there may still arrive at its end.
    PeerConnected {
        /// Who is at its other end.
        peer: Member,
    },
    /// The connection to a node is gone.
    PeerLost {
        /// Who was at its other end.
        peer: NodeId,
    },
    /// Another replica of the partition says something.
    Message {
        /// The node that says it.
        from: NodeId,
        /// The epoch that it says it in.
        epoch: Epoch,
        /// What it says.
        body: PeerBody,
    },
    /// The partition has this configuration.
    ConfigChanged(Configuration),
    /// The time of [`Replica::poll_timeout`](super::Replica::poll_timeout) has come.
    Timeout,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Append the entry to the log.
    Append(LogEntry),
    /// Read the records of the log that follow this one, or the first of them, and give them back in an
    /// [`Event::LogRead`]. They are committed. One at a time for each node, in one epoch; each has to be answered.
    ReadLog {
        /// Whom they are for.
        to: NodeId,
        /// The LSN of the record before the first.
        after: Lsn,
    },
    /// Ask the controller to change the configuration that the replica is in; the answer is a new configuration.
    Propose(Change),
    /// Send this to the replica of a node.
    Send {
        /// The node.
        to: NodeId,
        /// What to send.
        body: PeerBody,
    },
    /// The record is committed: apply it to the table.
    Apply(Record),
    /// Answer who waits.
    Reply {
        /// Who waits.
        token: Token,
        /// What became of it.
        outcome: Outcome,
    },
}

/// Actions in the order in which they are to be carried out.
pub type Actions = Vec<Action>;

/// What became of a write or of what waited for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that it depends on is committed.
    Committed,
    /// It was not proposed.
    Refused(Refusal),
    /// It was proposed, and this replica will not learn what became of it.
    Unknown,
}

/// Why a replica does not do what a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another replica leads.
    #[error("this node does not lead the partition")]
    NotLeader,
    /// This replica leads, but is not ready to.
    #[error("this node leads the partition, but does not serve it yet")]
    NotReady,
    /// An in-sync follower does not answer.
    #[error(
        "follower {0} does not answer, so that no write can be promised to be at every in-sync replica; reads go on"
    )]
    FollowerUnreachable(NodeId),
    /// Too much is waiting to be replicated.
    #[error("too many writes wait to be replicated")]
    Overloaded,
}
