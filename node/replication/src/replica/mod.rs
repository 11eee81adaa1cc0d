//! A replica of one partition.
//!
//! # The protocol
//!
//! PacificA (Lin, Yang, Zhang, Zhang, Zhou: *PacificA: Replication in Log-Based Distributed Storage Systems*,
//! MSR-TR-2008-25), a primary/backup protocol. A partition has a *configuration*: an epoch, a leader and the
//! followers that are in sync with it. Configurations are kept elsewhere, by the controller, and changed there by
//! compare-and-set; the data never pass through it.
//!
//! The leader gives each write a *position* (epoch, LSN), appends it to its own log and sends it to every follower
//! in a *Prepare*. A follower appends it behind the position that the Prepare names and, once its log is flushed,
//! *reports* how far. What is flushed at the leader and at every in-sync follower is *committed*: it is applied to
//! the table, can be read, and whoever wrote it is answered. The commit point travels on the next Prepare or, when
//! nothing is written, on the next *beacon*. Since a write is answered only when every member has it, each member
//! alone holds everything that was ever acknowledged.
//!
//! A write that cannot be replicated is refused while its outcome is still certain: when a follower has lost its
//! connection, or has answered no beacon for [`Options::suspect_after`]. What was proposed before stays in the log,
//! its outcome unknown to the client, and commits when the follower is back: the leader asks what it has, and goes
//! on from there. Reads of the leader need no follower.
//!
//! # Watermarks
//!
//! `prepared` (the last record here) ≥ `flushed` (on disk) ≥ `committed` (known to be at every member) =
//! `applied` (in the table). All but `prepared` only grow.
//!
//! # How to embed one
//!
//! 1. Give every event to [`Replica::handle`], with the time of the clock read *after* what caused it.
//! 2. Carry out the [`Action`]s in their order. `Append` goes to the log; when the log has flushed, say so with
//!    [`Event::Flushed`]. The replica never waits.
//! 3. After a batch of events, call [`Replica::poll_prepare`] for each follower that has room in its send queue, until it
//!    returns nothing; after a write, but also after a message, which may say that something has to be sent (again).
//! 4. Give [`Event::Timeout`] at [`Replica::poll_timeout`] or soon after.
//!
//! # What it lacks
//!
//! It works in one epoch. A configuration of a newer epoch fences it: it then serves nothing and answers nobody.

mod follower;
mod leader;
mod log;
mod tail;

use crate::clock::Instant64;
use follower::Taken;
use kv_proto::{
    cluster_map::Configuration,
    ids::{Epoch, Lsn, Member, NodeId, OperationId, PartitionId},
    replication::{PeerBody, Position, Record},
    stats,
};
use leader::Leader;
pub use log::{LogEntry, Restored};
use std::{sync::Arc, time::Duration};
use tail::Tail;

/// What a replica is told once, at its start.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often a leader asks its followers whether they are there.
    pub beacon_interval: Duration,
    /// How long a follower may be silent until the leader takes no more writes.
    pub suspect_after: Duration,
    /// Bytes of records that may wait at a leader until they are at every follower; one record may pass it.
    pub max_pending_bytes: usize,
    /// How many records may.
    pub max_pending_records: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            beacon_interval: Duration::from_millis(100),
            suspect_after: Duration::from_secs(1),
            max_pending_bytes: 16 * 1024 * 1024,
            max_pending_records: 64 * 1024,
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
    /// The log has everything up to here on disk.
    Flushed {
        /// The last record that is.
        lsn: Lsn,
    },
    /// There is a new connection to a member; nothing of an older one will arrive any more.
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
    /// The time of [`Replica::poll_timeout`] has come.
    Timeout,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Append the record to the log.
    Append(Record),
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
    /// An in-sync follower does not answer.
    #[error(
        "follower {0} does not answer, so that no write can be promised to be at every in-sync replica; reads go on"
    )]
    FollowerUnreachable(NodeId),
    /// Too much is waiting to be replicated.
    #[error("too many writes wait to be replicated")]
    Overloaded,
}

/// A replica of one partition.
#[derive(Debug)]
pub struct Replica {
    partition: PartitionId,
    me: Member,
    options: Options,
    configuration: Configuration,
    role: Role,
    tail: Tail,
    flushed: Lsn,
    committed: Lsn,
}

#[derive(Debug)]
enum Role {
    Leader(Leader),
    Follower,
    /// Takes no part; a sentence says why.
    Refused(String),
}

impl Replica {
    /// A replica with an empty log, as it is when its partition was just created.
    #[must_use]
    pub fn new(
        partition: PartitionId,
        me: Member,
        configuration: Configuration,
        options: Options,
        now: Instant64,
    ) -> Self {
        let role = if configuration.leader == me {
            Role::Leader(Leader::new(&configuration, now))
        } else if configuration.is_member(me) {
            Role::Follower
        } else {
            Role::Refused(format!(
                "{} was restarted and has lost what made it a member: its data were in memory only. \
                 Stop the whole cluster and start it again (it begins empty)",
                me.node
            ))
        };
        let epoch_one = configuration.epoch == Epoch(1);
        let mut replica = Replica {
            partition,
            me,
            options,
            configuration,
            role,
            tail: Tail::default(),
            flushed: Lsn(0),
            committed: Lsn(0),
        };
        if !epoch_one && !matches!(replica.role, Role::Refused(_)) {
            replica.fence();
        }
        replica
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The configuration that the replica works in.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The position of the last record here.
    #[must_use]
    pub fn prepared(&self) -> Position {
        self.tail.last()
    }

    /// Everything up to here is on this replica's disk.
    #[must_use]
    pub fn flushed(&self) -> Lsn {
        self.flushed
    }

    /// Everything up to here is known to be committed, and was given out to be applied.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// What the replica does.
    #[must_use]
    pub fn role(&self) -> stats::Role {
        match self.role {
            Role::Leader(_) => stats::Role::Leader,
            Role::Follower => stats::Role::Follower,
            Role::Refused(_) => stats::Role::Refused,
        }
    }

    /// Why the replica cannot do what its role is for, in a sentence.
    #[must_use]
    pub fn trouble(&self, now: Instant64) -> Option<String> {
        match &self.role {
            Role::Leader(leader) => leader.trouble(now, &self.options),
            Role::Follower => None,
            Role::Refused(why) => Some(why.clone()),
        }
    }

    /// Whether the table here may be read: it holds everything that was ever acknowledged.
    ///
    /// # Errors
    /// [`Refusal::NotLeader`].
    pub fn check_read(&self) -> Result<(), Refusal> {
        if matches!(self.role, Role::Leader(_)) { Ok(()) } else { Err(Refusal::NotLeader) }
    }

    /// Whether a write would be taken.
    ///
    /// # Errors
    /// The refusal that it would be answered with.
    pub fn check_write(&self, now: Instant64) -> Result<(), Refusal> {
        match &self.role {
            Role::Leader(leader) => leader.check_write(now, &self.tail, &self.options),
            _ => Err(Refusal::NotLeader),
        }
    }

    /// Takes in what happened and says what is to be done about it.
    pub fn handle(&mut self, now: Instant64, event: Event, out: &mut Actions) {
        match event {
            Event::ClientWrite { payload, operation_id, token } => {
                self.handle_write(now, payload, operation_id, token, out);
            }
            Event::ClientBarrier { token } => self.handle_barrier(token, out),
            Event::Flushed { lsn } => self.handle_flushed(lsn, out),
            Event::PeerConnected { peer } => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.handle_connected(peer, self.committed, out);
                }
            }
            Event::PeerLost { peer } => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.handle_lost(peer);
                }
            }
            Event::Message { from, epoch, body } => {
                if epoch == self.configuration.epoch {
                    self.handle_message(now, from, body, out);
                }
            }
            Event::ConfigChanged(configuration) => {
                if configuration.epoch > self.configuration.epoch {
                    if let Role::Leader(leader) = &mut self.role {
                        leader.abandon_waiters(out);
                    }
                    self.configuration = configuration;
                    self.fence();
                }
            }
            Event::Timeout => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.handle_timeout(now, self.committed, &self.options, out);
                }
            }
        }
        self.check_watermarks();
    }

    /// When [`Event::Timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant64> {
        match &self.role {
            Role::Leader(leader) => Some(leader.poll_timeout()),
            _ => None,
        }
    }

    /// The next Prepare for the replica at `to`, if there is something that it was not sent yet.
    pub fn poll_prepare(&mut self, to: NodeId) -> Option<PeerBody> {
        match &mut self.role {
            Role::Leader(leader) => leader.poll_prepare(to, self.committed, &self.tail),
            _ => None,
        }
    }

    /// Bytes of records held here because they are not applied yet, or not at every follower.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.tail.bytes()
    }

    fn handle_write(
        &mut self,
        now: Instant64,
        payload: Arc<[u8]>,
        operation_id: Option<OperationId>,
        token: Token,
        out: &mut Actions,
    ) {
        if let Err(refusal) = self.check_write(now) {
            out.push(Action::Reply { token, outcome: Outcome::Refused(refusal) });
            return;
        }
        let Role::Leader(leader) = &mut self.role else { unreachable!("only a leader takes writes") };
        let position = Position { epoch: self.configuration.epoch, lsn: self.tail.last().lsn.next() };
        let record = Record { position, operation_id, payload };
        leader.wait(position.lsn, token);
        out.push(Action::Append(record.clone()));
        self.tail.push(record);
    }

    fn handle_barrier(&mut self, token: Token, out: &mut Actions) {
        let prepared = self.tail.last().lsn;
        match &mut self.role {
            Role::Leader(leader) if prepared > self.committed => leader.wait(prepared, token),
            Role::Leader(_) => out.push(Action::Reply { token, outcome: Outcome::Committed }),
            _ => out.push(Action::Reply { token, outcome: Outcome::Refused(Refusal::NotLeader) }),
        }
    }

    fn handle_flushed(&mut self, lsn: Lsn, out: &mut Actions) {
        assert!(
            lsn >= self.flushed && lsn <= self.tail.last().lsn,
            "the log flushed {lsn} after {}, with {} prepared",
            self.flushed,
            self.tail.last()
        );
        self.flushed = lsn;
        match self.role {
            Role::Leader(_) => self.maybe_commit(out),
            Role::Follower => self.send_report(out),
            Role::Refused(_) => {}
        }
    }

    fn handle_message(&mut self, now: Instant64, from: NodeId, body: PeerBody, out: &mut Actions) {
        let epoch = self.configuration.epoch;
        match (&mut self.role, body) {
            (Role::Leader(leader), PeerBody::Report { prepared, flushed, .. }) => {
                leader.handle_report(now, from, prepared, flushed, &self.tail);
                self.maybe_commit(out);
            }
            (Role::Leader(leader), PeerBody::Gap { prepared }) => leader.handle_gap(from, prepared, &self.tail),
            (Role::Follower, PeerBody::Prepare { previous, committed, records })
                if from == self.configuration.leader.node =>
            {
                match follower::take_prepare(&mut self.tail, epoch, previous, records, out) {
                    Taken::Appended => {}
                    Taken::Nothing => self.send_report(out),
                    Taken::Gap => {
                        out.push(Action::Send { to: from, body: PeerBody::Gap { prepared: self.tail.last() } });
                    }
                }
                self.follow_commit(committed, out);
            }
            (Role::Follower, PeerBody::Beacon { committed }) if from == self.configuration.leader.node => {
                self.follow_commit(committed, out);
                self.send_report(out);
            }
            _ => {}
        }
    }

    fn maybe_commit(&mut self, out: &mut Actions) {
        let Role::Leader(leader) = &mut self.role else { return };
        let point = leader.commit_point(self.flushed);
        if point > self.committed {
            apply(&self.tail, self.committed, point, out);
            self.committed = point;
            leader.answer_waiters(point, out);
        }
        self.tail.release(leader.needed_after(self.committed));
    }

    /// The leader says that everything up to `point` is committed; what is flushed here of it can be applied.
    fn follow_commit(&mut self, point: Lsn, out: &mut Actions) {
        let point = point.min(self.flushed);
        if point > self.committed {
            apply(&self.tail, self.committed, point, out);
            self.committed = point;
            self.tail.release(point);
        }
    }

    fn send_report(&mut self, out: &mut Actions) {
        let body = follower::report(&self.tail, self.flushed, self.committed);
        out.push(Action::Send { to: self.configuration.leader.node, body });
    }

    /// Takes no part any more: there is a newer epoch than this replica can work in.
    fn fence(&mut self) {
        let epoch = self.configuration.epoch;
        self.role = Role::Refused(format!("the partition is in epoch {epoch}, which {} did not open", self.me.node));
    }

    fn check_watermarks(&self) {
        assert!(
            self.committed <= self.flushed && self.flushed <= self.tail.last().lsn,
            "partition {}: committed {} ≤ flushed {} ≤ prepared {} does not hold",
            self.partition,
            self.committed,
            self.flushed,
            self.tail.last()
        );
    }
}

/// Gives out the records after `from` up to `to`, in order.
fn apply(tail: &Tail, from: Lsn, to: Lsn, out: &mut Actions) {
    for lsn in from.0 + 1..=to.0 {
        let record = tail.get(Lsn(lsn)).expect("a record is held until it is applied");
        out.push(Action::Apply(record.clone()));
    }
}
