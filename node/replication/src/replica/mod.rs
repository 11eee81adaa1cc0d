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
//! `applied` (in the table). The latter two only grow; a cut lowers `prepared` and `flushed`, never below `committed`.
//!
//! # Epochs
//!
//! A replica works in one epoch at a time, and hears only messages of that one. Before it says or does anything in
//! an epoch, it writes the configuration to its log and waits until that is on disk: so after a restart it knows
//! every epoch that it took part in, and can neither lead it a second time nor answer the leader of an older one.
//!
//! # Restart
//!
//! A replica is made from what disk and table hold ([`Restored`]): what is applied, and the records behind it, of
//! which nobody here knows any more whether they are committed. A *follower* goes on with what it has: its log holds
//! all that it ever reported as flushed. A *leader* must not: it may have sent records and lost them, and would give
//! their positions to others. It asks the controller for the next epoch with the same members (*Reopen*), and begins
//! that one as any new leader does.
//!
//! # Reconciliation
//!
//! A new leader, of whatever epoch, asks every follower for its last position and *adopts* the greatest log among
//! its own and theirs: it *fetches* what it lacks, and *cuts* from its own log what stands in the way. Then it
//! streams to each follower what that one lacks; when all that it adopted is flushed everywhere, and so committed,
//! it serves. It also waits for the *grace*: as long as a leader that it answered may believe itself alone in charge.
//!
//! The greatest log has everything that was ever committed: it is the log of a member, and what is committed is at
//! every member. It also has everything of each smaller log that anybody can have applied, for the same reason.
//! So what any other log holds in its place was never committed, and can go: a follower that finds another record
//! where a record of a Prepare belongs cuts its log there. There are no separate messages that say so, which could be
//! late and cut what came after them: a Prepare is as harmless late as in time, since within an epoch the leader's
//! log only grows from the first Prepare on, and a late Prepare holds nothing that is not in it. A follower whose
//! last record is in the leader's log needs what follows; the log of any other is common with the leader's at least as
//! far as it was applied, so that it is streamed what follows that, whether it has it or not. If its log is longer, the
//! last record of the leader's is of a newer epoch and does not go with it: it is cut then, at the latest.
//!
//! A follower does not know how much of its log is the leader's before a Prepare of this epoch has met it, if only an
//! empty one. Up to there, and no further, it believes the commit point.
//!
//! # How to embed one
//!
//! 1. Give every event to [`Replica::handle`], with the time of the clock read *after* what caused it.
//! 2. Carry out the [`Action`]s in their order, those of [`Replica::new`] too. `Append` goes to the log; when the log
//!    has flushed, say so with [`Event::Flushed`]. The replica never waits.
//! 3. After a batch of events, call [`Replica::poll_prepare`] for each follower that has room in its send queue, until it
//!    returns nothing; after a write, but also after a message or a read of the log, which may say that something has to
//!    be sent (again).
//! 4. Give [`Event::Timeout`] at [`Replica::poll_timeout`] or soon after.
//! 5. What is restored is on disk: whoever reads it back makes sure of that before.
//!
//! # What it lacks
//!
//! No follower takes over, none is left out or added by a leader, and a leader serves reads without a lease: whoever
//! changes the leader of a partition has to be sure that the old one is stopped.

mod flush;
mod follower;
mod interface;
mod leader;
mod log;
mod reconcile;
#[doc(hidden)]
pub mod rules;
mod stream;
mod tail;

use crate::clock::Instant64;
use follower::Follower;
pub use interface::{Action, Actions, Event, Options, Outcome, Refusal, Token};
use kv_proto::{
    cluster_map::Configuration,
    control::Change,
    ids::{Epoch, HistoryId, Lsn, Member, NodeId, OperationId, PartitionId},
    replication::{PeerBody, Position, Record},
    stats,
};
use leader::Leader;
use log::Log;
pub use log::{LogEntry, Restored};
use std::sync::Arc;

/// A replica of one partition.
#[derive(Debug)]
pub struct Replica {
    partition: PartitionId,
    me: Member,
    options: Options,
    configuration: Configuration,
    role: Role,
    log: Log,
    committed: Lsn,
    /// The history that the log belongs to; `None` while it belongs to none.
    history: Option<HistoryId>,
    /// Why the log cannot be trusted.
    fault: Option<String>,
    /// Who is connected, with the disk that it has.
    connected: Vec<Member>,
    /// When it was made, or last said something to a leader.
    last_promise: Instant64,
}

#[derive(Debug)]
enum Role {
    Leader(Leader),
    /// Leads by the configuration, but led in this epoch before it was restarted: asks for the next.
    Reopening {
        next_proposal: Instant64,
    },
    Follower(Follower),
    /// Takes no part; a sentence says why.
    Refused(String),
}

impl Replica {
    /// A replica with what its disk and its table hold; [`Restored::default`] where its partition was just created.
    pub fn new(
        partition: PartitionId,
        me: Member,
        configuration: Configuration,
        restored: Restored,
        options: Options,
        now: Instant64,
        out: &mut Actions,
    ) -> Self {
        let mut replica = Replica {
            partition,
            me,
            options,
            configuration: configuration.clone(),
            role: Role::Refused(String::new()),
            committed: restored.applied.lsn,
            history: restored.configuration.as_ref().map(|c| c.history),
            fault: restored.fault.clone(),
            log: Log::new(restored),
            connected: Vec::new(),
            last_promise: now,
        };
        replica.enter(now, configuration, out);
        replica.advance(now, out);
        replica.check_watermarks();
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
        self.log.last()
    }

    /// Everything up to here is on this replica's disk.
    #[must_use]
    pub fn flushed(&self) -> Lsn {
        self.log.flushed()
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
            Role::Leader(_) | Role::Reopening { .. } => stats::Role::Leader,
            Role::Follower(_) => stats::Role::Follower,
            Role::Refused(_) => stats::Role::Refused,
        }
    }

    /// Why the replica cannot do what its role is for, in a sentence.
    #[must_use]
    pub fn trouble(&self, now: Instant64) -> Option<String> {
        match &self.role {
            Role::Refused(why) => Some(why.clone()),
            Role::Reopening { .. } => Some(format!(
                "{} was restarted and waits for the controller to open the next epoch: nothing is served",
                self.me.node
            )),
            _ if !self.acts() => {
                Some(format!("epoch {} is not on the disk of {} yet", self.configuration.epoch, self.me.node))
            }
            Role::Leader(leader) => leader.trouble(now, &self.options, self.grace_end()),
            Role::Follower(follower) => follower.trouble(),
        }
    }

    /// Whether the table here may be read: it holds everything that was ever acknowledged.
    ///
    /// # Errors
    /// [`Refusal::NotLeader`] or [`Refusal::NotReady`].
    pub fn check_read(&self) -> Result<(), Refusal> {
        match &self.role {
            Role::Leader(leader) if leader.serves() => Ok(()),
            Role::Leader(_) | Role::Reopening { .. } => Err(Refusal::NotReady),
            Role::Follower(_) | Role::Refused(_) => Err(Refusal::NotLeader),
        }
    }

    /// Whether a write would be taken.
    ///
    /// # Errors
    /// The refusal that it would be answered with.
    pub fn check_write(&self, now: Instant64) -> Result<(), Refusal> {
        self.check_read()?;
        match &self.role {
            Role::Leader(leader) => leader.check_write(now, self.log.tail(), &self.options),
            _ => Err(Refusal::NotLeader),
        }
    }

    /// Takes in what happened and says what is to be done about it.
    pub fn handle(&mut self, now: Instant64, event: Event, out: &mut Actions) {
        let already = out.len();
        match event {
            Event::ClientWrite { payload, operation_id, token } => {
                self.handle_write(now, payload, operation_id, token, out);
            }
            Event::ClientBarrier { token } => self.handle_barrier(token, out),
            Event::Flushed { entries } => self.handle_flushed(now, entries, out),
            Event::LogRead { to, previous, records } => self.handle_log_read(to, previous, records, out),
            Event::PeerConnected { peer } => {
                self.connected.retain(|m| m.node != peer.node);
                self.connected.push(peer);
                if let Role::Leader(leader) = &mut self.role {
                    leader.handle_connected(peer, self.committed, out);
                }
            }
            Event::PeerLost { peer } => {
                self.connected.retain(|m| m.node != peer);
                if let Role::Leader(leader) = &mut self.role {
                    leader.handle_lost(peer);
                }
            }
            Event::Message { from, epoch, body } => {
                if epoch == self.configuration.epoch && self.acts() {
                    self.handle_message(now, from, body, out);
                }
            }
            Event::ConfigChanged(configuration) => {
                if configuration.epoch > self.configuration.epoch {
                    self.enter(now, configuration, out);
                }
            }
            Event::Timeout => self.handle_timeout(now, out),
        }
        self.advance(now, out);
        self.check_watermarks();
        let said = out[already..].iter().any(|a| matches!(a, Action::Send { .. }));
        assert!(!said || self.acts(), "something is said in epoch {}, which is not on disk", self.configuration.epoch);
    }

    /// When [`Event::Timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant64> {
        match &self.role {
            Role::Leader(leader) => Some(leader.poll_timeout(self.grace_end())),
            Role::Reopening { next_proposal } => Some(*next_proposal),
            Role::Follower(_) | Role::Refused(_) => None,
        }
    }

    /// The next Prepare for the replica at `to`, if there is something that it was not sent yet.
    pub fn poll_prepare(&mut self, to: NodeId) -> Option<PeerBody> {
        match &mut self.role {
            Role::Leader(leader) => {
                leader.poll_prepare(to, self.committed, self.log.tail(), self.options.message_bytes)
            }
            _ => None,
        }
    }

    /// Bytes of records held here because they are not applied yet, or not at every follower.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.log.tail().bytes()
    }

    /// Whether the replica may say and do something in its epoch.
    fn acts(&self) -> bool {
        self.log.epoch_on_disk() == self.configuration.epoch || !self.options.rules.epoch_on_disk_first
    }

    /// Takes the role that a configuration gives.
    fn enter(&mut self, now: Instant64, configuration: Configuration, out: &mut Actions) {
        if let Role::Leader(leader) = &mut self.role {
            leader.abandon_waiters(out);
        }
        self.configuration = configuration;
        if let Some(why) = self.reason_to_refuse() {
            self.role = Role::Refused(why);
            return;
        }
        let leads = self.configuration.leader == self.me;
        // Equal only after a restart: what was begun before is not begun again.
        let resumes = self.configuration.epoch == self.log.newest_epoch();
        self.history = Some(self.configuration.history);
        self.role = if leads && resumes && self.options.rules.reopen_after_restart {
            Role::Reopening { next_proposal: now }
        } else if leads {
            Role::Leader(Leader::new(&self.configuration, now))
        } else {
            Role::Follower(Follower::new(self.committed))
        };
        if !resumes {
            self.log.begin(self.configuration.clone(), out);
        }
        self.handle_timeout(now, out);
    }

    fn reason_to_refuse(&self) -> Option<String> {
        let (node, newest) = (self.me.node, self.log.newest_epoch());
        if let Some(fault) = &self.fault {
            return Some(format!("the log of {node} cannot be trusted: {fault}"));
        }
        if !self.configuration.is_member(self.me) {
            return Some(format!(
                "{node} is not a member of the partition with disk {}: its data directory is new, or another one than \
                 the member's. Nothing makes it a member again by itself: start it with the data directory that it had",
                self.me.disk
            ));
        }
        if self.history.is_some_and(|history| history != self.configuration.history) {
            return Some(format!(
                "the data of {node} belong to another history of the partition than the controller's map"
            ));
        }
        (self.configuration.epoch < newest).then(|| {
            format!(
                "the disk of {node} has epoch {newest} of the partition, the controller's map only {}: the map is older",
                self.configuration.epoch
            )
        })
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
        let position = Position { epoch: self.configuration.epoch, lsn: self.log.last().lsn.next() };
        leader.wait(position.lsn, token);
        self.log.push(Record { position, operation_id, payload }, out);
    }

    fn handle_barrier(&mut self, token: Token, out: &mut Actions) {
        let prepared = self.log.last().lsn;
        let outcome = match (self.check_read(), &mut self.role) {
            (Ok(()), Role::Leader(leader)) if prepared > self.committed => return leader.wait(prepared, token),
            (Ok(()), _) => Outcome::Committed,
            (Err(refusal), _) => Outcome::Refused(refusal),
        };
        out.push(Action::Reply { token, outcome });
    }

    fn handle_flushed(&mut self, now: Instant64, entries: u64, out: &mut Actions) {
        let before = (self.log.flushed(), self.log.epoch_on_disk());
        self.log.handle_flushed(entries);
        let news = before != (self.log.flushed(), self.log.epoch_on_disk());
        match self.role {
            Role::Leader(_) => self.maybe_commit(out),
            // That it is in the epoch now is news for the leader, too, who may have asked too early.
            Role::Follower(_) if news && self.acts() => self.send_report(now, out),
            _ => {}
        }
    }

    fn handle_log_read(&mut self, to: NodeId, previous: Position, records: Vec<Record>, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => leader.handle_log_read(to, previous, records, self.log.tail()),
            Role::Follower(_) => self.answer_fetch(previous, records, out),
            Role::Reopening { .. } | Role::Refused(_) => {}
        }
    }

    fn handle_message(&mut self, now: Instant64, from: NodeId, body: PeerBody, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => match body {
                PeerBody::Report { prepared, flushed, applied } => {
                    let report = stream::Report { prepared, flushed, applied };
                    leader.handle_report(now, from, report, self.log.tail());
                    self.maybe_commit(out);
                }
                PeerBody::Gap { prepared } => leader.handle_gap(from, prepared, self.log.tail()),
                PeerBody::Tail { previous, records, last } => self.handle_tail(from, previous, records, last, out),
                PeerBody::Prepare { .. } | PeerBody::Beacon { .. } | PeerBody::Fetch { .. } => {}
            },
            Role::Follower(_) if from == self.configuration.leader.node => match body {
                PeerBody::Prepare { previous, committed, records } => {
                    self.handle_prepare(now, previous, committed, records, out);
                }
                PeerBody::Beacon { committed } => {
                    self.follow_commit(committed, out);
                    self.send_report(now, out);
                }
                PeerBody::Fetch { after } => self.handle_fetch(after, out),
                PeerBody::Report { .. } | PeerBody::Gap { .. } | PeerBody::Tail { .. } => {}
            },
            _ => {}
        }
    }

    fn handle_timeout(&mut self, now: Instant64, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => leader.handle_timeout(now, self.committed, &self.options, out),
            Role::Reopening { next_proposal } if *next_proposal <= now => {
                *next_proposal = now + self.options.propose_interval;
                out.push(Action::Propose(Change::Reopen { leader: self.me }));
            }
            _ => {}
        }
    }

    /// Gives out everything up to `point`, which is committed.
    fn commit(&mut self, point: Lsn, out: &mut Actions) {
        for record in self.log.tail().after(self.committed).take_while(|r| r.position.lsn <= point) {
            out.push(Action::Apply(record.clone()));
        }
        self.committed = point;
    }

    /// When no leader that this replica answered can believe any more that it is in charge. Nobody led before the
    /// first epoch.
    fn grace_end(&self) -> Instant64 {
        if self.configuration.epoch == Epoch(1) { Instant64(0) } else { self.last_promise + self.options.grace }
    }

    fn check_watermarks(&self) {
        assert!(
            (self.committed <= self.log.flushed() || !self.options.rules.all_on())
                && self.log.flushed() <= self.log.last().lsn,
            "partition {}: committed {} ≤ flushed {} ≤ prepared {} does not hold",
            self.partition,
            self.committed,
            self.log.flushed(),
            self.log.last()
        );
    }
}
