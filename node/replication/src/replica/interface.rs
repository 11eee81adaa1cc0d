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
    /// How long a leader may serve after it sent a beacon that every follower answered.
    pub lease: Duration,
    /// How long a follower may be silent until the leader wants to go on without it.
    pub suspect_after: Duration,
    /// How long what a follower was sent may wait to be on its disk until the leader wants to go on without it.
    pub flush_within: Duration,
    /// How long a follower waits, from its last answer to the leader, until it asks to take over; and how long a new
    /// leader waits, from its start and from its last answer to another leader, until it serves. Longer than the lease.
    pub grace: Duration,
    /// How long a replica that was just started waits for others before it changes the configuration: they may be
    /// reading their logs.
    pub start_patience: Duration,
    /// How long a leader that was restarted leaves it to its followers to take over, from its start on, before it asks to lead
    /// again: they have missed it for longer than it can know, and it serves only a grace after its start anyway.
    pub reopen_after: Duration,
    /// What a leader needs to serve reads.
    pub reads: Reads,
    /// How many replicas must be members so that writes are taken and committed.
    pub min_in_sync: u16,
    /// Whether a record is committed when it is on the disk of every member, or already when it is in their memory: then
    /// a replica that was not stopped in order may have lost some.
    pub durable: bool,
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
            lease: Duration::from_secs(1),
            suspect_after: Duration::from_secs(1),
            flush_within: Duration::from_secs(2),
            grace: Duration::from_millis(1500),
            start_patience: Duration::from_secs(4),
            reopen_after: Duration::ZERO,
            reads: Reads::Lease,
            min_in_sync: 1,
            durable: true,
            propose_interval: Duration::from_millis(500),
            message_bytes: 32 * 1024,
            max_pending_bytes: 16 * 1024 * 1024,
            max_pending_records: 64 * 1024,
            rules: Rules::default(),
        }
    }
}

/// What a leader needs to serve reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// A lease: every follower answered a beacon that was sent less than [`Options::lease`] ago. Needs clocks that run
    /// at about the same rate, and machines that do not stop as a whole.
    Lease,
    /// A confirmation: every follower answered a beacon that was sent after the read came. Needs no clock.
    Confirm,
}

/// How a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadCheck {
    /// From the table, now.
    Now,
    /// From the table as it is when an [`Event::ClientBarrier`] is answered.
    AfterBarrier,
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
    /// An answer that depends on what was prepared so far, as a refused condition does, or a read that cannot be answered
    /// at once: it may be given when all of that is committed and the replica is sure to lead. Answered by one
    /// [`Action::Reply`] with its token.
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
    /// Whether the controller can be reached; it can until something else is said. A change that binds whoever asks for it
    /// is not asked for in vain.
    Controller {
        /// Whether it can.
        reachable: bool,
    },
    /// Leadership is to pass to another replica. Nothing happens if this one does not lead, or nobody can take over.
    Handoff {
        /// To whom; `None` to any in-sync follower.
        to: Option<NodeId>,
        /// Whether this replica stops, and is left out.
        leaves: bool,
    },
    /// The leader is to go on without a follower.
    DropFollower {
        /// Which.
        node: NodeId,
    },
    /// The copy of the table that [`Action::SendCopy`] wanted is on its way, whole.
    CopySent {
        /// To whom.
        to: NodeId,
        /// Its start.
        start: Position,
    },
    /// The table that was loaded from a copy is on disk, as of some record from the copy's end on.
    CopyKept,
    /// A part of the copy that is being loaded cannot be used.
    CopyFailed,
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
    /// Say [`PeerBody::Resign`] in the name of this epoch, which is older than the replica's by now, on the connection that was
    /// made as its leader.
    Resign {
        /// The node that leads now.
        to: NodeId,
        /// The epoch in which nothing is served any more.
        epoch: Epoch,
    },
    /// Send a learner a copy of the table: [`PeerBody::CopyBegin`] with the last record applied now, parts, and
    /// [`PeerBody::CopyEnd`], in this order on its connection; then say [`Event::CopySent`]. It is given up when the connection is
    /// lost or the epoch changes; there is at most one for each learner. Meanwhile the log keeps what follows the start.
    SendCopy {
        /// Whom it is for.
        to: NodeId,
        /// What [`PeerBody::CopyBegin`] has as `sent`.
        sent: u64,
    },
    /// The table is void, and so is everything known to be on disk of it: a copy comes.
    ResetTable,
    /// Put these entries into the table.
    LoadTable {
        /// Of [`PeerBody::CopyPart`].
        bytes: Vec<u8>,
    },
    /// The copy is loaded: once everything up to its end is applied, bring the table to disk and say [`Event::CopyKept`].
    KeepTable {
        /// The end of the copy.
        end: Lsn,
        /// The digest of the table as of `end`.
        digest: u64,
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
    #[error("follower {0} does not answer, and the leader could not go on without it yet")]
    FollowerUnreachable(NodeId),
    /// Leadership is about to pass to another replica.
    #[error("leadership of the partition is about to pass to another node")]
    HandingOff,
    /// Too few members.
    #[error(
        "the partition has fewer in-sync replicas than --min-in-sync asks for, so that no write is taken; reads go on"
    )]
    TooFewInSync,
    /// Too much is waiting to be replicated.
    #[error("too many writes wait to be replicated")]
    Overloaded,
}
