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
//! The replicas ask for changes of the configuration, and the controller says whether they were first: a change names the
//! epoch that it replaces. A leader whose follower is silent asks to go on without it (*Drop*); a follower whose leader is
//! silent asks to *take over*; whichever is decided first makes the next epoch, in which the other has no say. So a pair
//! outlives the loss of either, and only what needs a change waits for the controller.
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
//! that one as any new leader does; but not at once, where it has followers: they have missed it for longer than it can
//! know, and one of them may be about to take over and serve sooner.
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
//! # Leases
//!
//! A follower's answer to a beacon is a promise to follow no other leader for the *grace*, by its own clock, and whoever
//! takes over waits for the grace after its own last promise until it serves. So for the *lease*, which is shorter, from when
//! the beacon was sent, a leader that was answered by every follower knows that nobody else serves, and reads its table without
//! asking. Where whole machines are paused, clocks say nothing: there a read waits for the answers to a beacon that was
//! sent after it (*confirm*). A leader alone in its configuration needs neither: nobody else can be promoted.
//!
//! A follower that has asked to take over says nothing more in that epoch: its question may be answered any time. A leader
//! that was replaced on purpose *resigns* once it has left its epoch, so that the next one need not wait for the grace.
//!
//! # Learners
//!
//! A replica that is no member follows as a *learner*: as a follower whose word does not count. It comes with whatever it
//! had when it was left out, or with nothing, and the leader streams what it lacks, from the log on disk if need be. If the log
//! does not reach back so far, or what the learner has cannot be used, the leader sends a *copy* of its table; see `learner.rs`. If
//! the learner's log is longer, the leader makes a record of its own epoch, which stands in the way. Once the learner has
//! everything on disk that is committed, and nothing else, the leader asks to *add* it. From then on it counts, since
//! the question may be answered any time.
//!
//! # Members that lack something
//!
//! Where records are acknowledged from memory, a replica that was not stopped in order is *incomplete*: records that it said
//! it had may be missing. It goes on as a member, but neither takes over nor leaves others out before it has everything
//! again: as a follower, when a serving leader's commit point is on its disk; as a leader, when every member has reported and the
//! greatest log is adopted. If those who have everything never come back, a person has to force a recovery, which begins
//! another *history*.
//!
//! A replica whose log is damaged says nothing as a member, so that others go on without it; as a learner it asks for a copy.
//! What nobody else has is never given up by itself.
//!
//! # The states
//!
//! ```text
//!             Takeover, Handoff                     reported by all,          committed everywhere,
//! follower ───────────────────► Recording ► Adopting ───────────────► Settling ──────────────────► Serving
//!   ▲  │                                     greatest log adopted               grace over          │
//!   │  │ dropped                                                                                     │
//! Add  ▼                                    Reopening (restarted) ─► Recording …     replaced        │
//! learner ◄──────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A leader that opened the next epoch itself, by Drop or Add, stays in the state that it is in. The files: `leader.rs` and
//! `reconcile.rs` (its way to serving), `stream.rs` (what it knows of one follower or learner), `lease.rs`, `wishes.rs` (what it
//! wants changed), `follower.rs`, `learner.rs`, `log.rs`.
//!
//! # How to embed one
//!
//! 1. Give every event to [`Replica::handle`], with the time of the clock read *after* what caused it.
//! 2. Carry out the [`Action`]s in their order, those of [`Replica::new`] too. `Append` goes to the log; when the log
//!    has flushed, say so with [`Event::Flushed`]. The replica never waits.
//! 3. After a batch of events, call [`Replica::poll_prepare`] for each peer that has room in its send queue, until it
//!    returns nothing; after a write, but also after a message or a read of the log, which may say that something has to
//!    be sent (again).
//! 4. Give [`Event::Timeout`] at [`Replica::poll_timeout`] or soon after.
//! 5. What is restored is on disk: whoever reads it back makes sure of that before.
//!
//! # What it lacks
//!
//! Which node had better lead is not its business, nor how many replicas there should be: whoever is connected and no member
//! is brought in sync. Request ids, conditions and expiry are decided before a write comes here.

mod flush;
mod follower;
mod interface;
mod leader;
mod learner;
mod lease;
mod log;
mod reconcile;
#[doc(hidden)]
pub mod rules;
mod stream;
mod tail;
mod wishes;

use crate::clock::Instant64;
use follower::Follower;
pub use interface::{Action, Actions, Event, Options, Outcome, ReadCheck, Reads, Refusal, Token};
use kv_proto::{
    cluster_map::Configuration,
    control::Change,
    ids::{Epoch, HistoryId, Lsn, Member, NodeId, OperationId, PartitionId},
    replication::{PeerBody, Position, Record},
    stats,
};
use leader::Leader;
use learner::Copy;
use log::Log;
pub use log::{LogEntry, Restored};
use std::{sync::Arc, time::Duration};

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
    /// A copy of a table on its way here.
    copy: Option<Copy>,
    /// Whether records that it said it had may be missing.
    incomplete: bool,
    /// Who is connected, with the disk that it has.
    connected: Vec<Member>,
    controller_reachable: bool,
    started: Instant64,
    /// When it entered the epoch.
    entered: Instant64,
    /// When it was made, or last answered a beacon; and whether it ever did the latter.
    last_promise: Instant64,
    has_promised: bool,
    /// When something happened last, and since when nothing took so long to happen that the process must have been stopped.
    last_event: Instant64,
    awake_since: Instant64,
    /// The leader of the epoch before this one, if it was in that.
    leader_before: Option<Member>,
    /// The epoch in which nothing is served any more, by the word of its leader.
    resigned: Option<Epoch>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each replica, and it lives as long")]
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
        let blank = restored.configuration.is_none() && restored.last() == Position::default();
        let mut replica = Replica {
            partition,
            me,
            options,
            configuration: configuration.clone(),
            role: Role::Refused(String::new()),
            committed: restored.applied.lsn,
            history: restored.configuration.as_ref().map(|c| c.history),
            fault: restored.fault.clone(),
            copy: None,
            incomplete: restored.incomplete && !options.durable,
            log: Log::new(restored),
            connected: Vec::new(),
            controller_reachable: true,
            started: now,
            entered: now,
            last_promise: now,
            has_promised: false,
            last_event: now,
            awake_since: now,
            leader_before: None,
            resigned: None,
        };
        // Whoever has a past may have led in this epoch, whether or not its disk still says so.
        let led_before = !blank || configuration.epoch > Epoch(1);
        replica.take_role(now, led_before, out);
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
            Role::Follower(_) if self.is_learner() => stats::Role::Learner,
            Role::Follower(_) => stats::Role::Follower,
            Role::Refused(_) => stats::Role::Refused,
        }
    }

    /// Whether its log has its configuration, so that a checkpoint may say it. A learner whose data are of no use enters none
    /// before a copy comes, and nobody enters one that is older than that of the log.
    #[must_use]
    pub fn has_entered(&self) -> bool {
        self.log.newest_epoch() == self.configuration.epoch
    }

    /// Whether it may still lack records that it said it had, see [`Restored::incomplete`]: then that is so after its next start,
    /// too, however it is stopped.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The epoch since which it leads without a break: what it prepared since then stands. `None` if it does not lead.
    #[must_use]
    pub fn leads_since(&self) -> Option<Epoch> {
        match &self.role {
            Role::Leader(leader) => Some(leader.since),
            _ => None,
        }
    }

    /// Whether leadership is about to pass to another replica.
    #[must_use]
    pub fn is_handing_off(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.wishes.handoff.is_some())
    }

    /// The log is needed behind this record: others have to be sent what follows and is not in memory any more.
    #[must_use]
    pub fn log_needed_after(&self) -> Option<Lsn> {
        let Role::Leader(leader) = &self.role else { return None };
        let base = self.log.tail().base().lsn;
        leader.followers.iter().chain(&leader.learners).filter_map(|f| f.needs_log_after(base)).min()
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
            Role::Follower(_) if self.is_learner() => self.learning(),
            _ if !self.acts() => {
                Some(format!("epoch {} is not on the disk of {} yet", self.configuration.epoch, self.me.node))
            }
            Role::Leader(leader) => leader.trouble(now, &self.options, self.grace_end()),
            Role::Follower(follower) => follower.trouble(),
        }
    }

    /// Whether a write would be taken.
    ///
    /// # Errors
    /// The refusal that it would be answered with.
    pub fn check_write(&self, now: Instant64) -> Result<(), Refusal> {
        match &self.role {
            Role::Leader(leader) if !leader.serves() => Err(Refusal::NotReady),
            Role::Reopening { .. } => Err(Refusal::NotReady),
            Role::Leader(leader) => leader.check_write(now, self.log.tail(), &self.options),
            _ => Err(Refusal::NotLeader),
        }
    }

    /// Takes in what happened and says what is to be done about it.
    pub fn handle(&mut self, now: Instant64, event: Event, out: &mut Actions) {
        let already = out.len();
        if now.since(self.last_event) >= self.options.suspect_after / 2 {
            self.awake_since = now;
        }
        self.last_event = now;
        match event {
            Event::ClientWrite { payload, operation_id, token } => {
                self.handle_write(now, payload, operation_id, token, out);
            }
            Event::ClientBarrier { token } => self.handle_barrier(now, token, out),
            Event::Flushed { entries } => self.handle_flushed(now, entries, out),
            Event::LogRead { to, previous, records } => self.handle_log_read(to, previous, records, out),
            Event::CopyKept => self.handle_copy_kept(out),
            Event::CopyFailed => self.give_up_copy(),
            Event::Message { from, epoch, body: PeerBody::Resign } => self.handle_resign(from, epoch),
            Event::Message { from, epoch, body } => {
                let current = epoch == self.configuration.epoch
                    || epoch < self.configuration.epoch && !self.options.rules.fence_epochs;
                if current && (self.acts() || self.copy.is_some()) {
                    self.handle_message(now, from, body, out);
                }
            }
            Event::ConfigChanged(configuration) => {
                if configuration.epoch > self.configuration.epoch {
                    self.enter(now, configuration, out);
                }
            }
            Event::Controller { reachable } => self.controller_reachable = reachable,
            Event::Timeout => {}
            Event::PeerConnected { .. }
            | Event::PeerLost { .. }
            | Event::CopySent { .. }
            | Event::Handoff { .. }
            | Event::DropFollower { .. } => self.handle_leaders(now, event, out),
        }
        self.handle_time(now, out);
        self.advance(now, out);
        self.maybe_propose(now, out);
        self.check_watermarks();
        let said = out[already..].iter().any(|a| matches!(a, Action::Send { .. }));
        assert!(!said || self.acts(), "something is said in epoch {}, which is not on disk", self.configuration.epoch);
    }

    /// What matters to a leader alone.
    fn handle_leaders(&mut self, now: Instant64, event: Event, out: &mut Actions) {
        match event {
            Event::PeerConnected { peer } => {
                self.connected.retain(|m| m.node != peer.node);
                self.connected.push(peer);
            }
            Event::PeerLost { peer } => self.connected.retain(|m| m.node != peer),
            _ => {}
        }
        let Role::Leader(leader) = &mut self.role else { return };
        match event {
            Event::PeerConnected { peer } => {
                leader.handle_connected(now, peer, self.committed, self.options.rules.disks, out);
            }
            Event::PeerLost { peer } => leader.handle_lost(peer),
            Event::CopySent { to, start } => {
                let stamp = leader.lease.next_stamp(now);
                if let Some(progress) = leader.progress(to) {
                    progress.handle_copy_sent(start.lsn, stamp);
                }
            }
            Event::Handoff { to, leaves } if self.controller_reachable => {
                leader.begin_handoff(now, to, leaves, &self.options);
            }
            Event::DropFollower { node } => leader.give_up(node),
            _ => {}
        }
    }

    /// When [`Event::Timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant64> {
        match &self.role {
            Role::Leader(leader) => Some(leader.poll_timeout(self.grace_end())),
            Role::Reopening { next_proposal } => Some(*next_proposal),
            Role::Follower(_) if self.is_learner() => None,
            Role::Follower(_) => Some(self.last_event + self.options.beacon_interval),
            Role::Refused(_) => None,
        }
    }

    /// The next Prepare for the replica at `to`, if there is something that it was not sent yet.
    pub fn poll_prepare(&mut self, now: Instant64, to: NodeId) -> Option<PeerBody> {
        let acts = self.acts();
        match &mut self.role {
            Role::Leader(leader) if acts => {
                leader.poll_prepare(now, to, self.committed, self.log.tail(), self.options.message_bytes)
            }
            _ => None,
        }
    }

    /// Bytes of records held here because they are not applied yet, or not at every follower.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.log.tail().bytes()
    }

    /// Whether the replica may say and do something in its epoch. A learner that has nothing but says so promises nothing.
    fn acts(&self) -> bool {
        self.log.epoch_on_disk() == self.configuration.epoch
            || !self.options.rules.epoch_on_disk_first
            || self.is_learner() && self.has_nothing()
    }

    /// Enters a newer epoch.
    fn enter(&mut self, now: Instant64, configuration: Configuration, out: &mut Actions) {
        let before = std::mem::replace(&mut self.configuration, configuration);
        let next = before.epoch.next() == self.configuration.epoch;
        self.entered = now;
        self.leader_before = next.then_some(before.leader);
        let leads = self.is_leader();
        if let Role::Leader(leader) = &mut self.role {
            let same_log = before.history == self.configuration.history && leader.knows_its_log();
            if next && leads && same_log {
                leader.go_on(&self.configuration, now);
                self.log.begin(self.configuration.clone(), out);
                return;
            }
            leader.abandon_waiters(out);
            if next && leader.serves() && !leads {
                out.push(Action::Resign { to: self.configuration.leader.node, epoch: before.epoch });
            }
        }
        self.give_up_copy();
        self.take_role(now, false, out);
    }

    fn is_leader(&self) -> bool {
        let leader = self.configuration.leader;
        leader == self.me || leader.node == self.me.node && !self.options.rules.disks
    }

    /// Takes the role that the configuration gives; the leader asks for the next one first if it may have led in it before.
    fn take_role(&mut self, now: Instant64, led_before: bool, out: &mut Actions) {
        if let Some(why) = self.reason_to_refuse() {
            self.role = Role::Refused(why);
            return;
        }
        // Equal only after a restart: what was begun before is not begun again.
        let resumes = self.configuration.epoch == self.log.newest_epoch();
        if self.is_leader() {
            self.history = Some(self.configuration.history);
            self.role = if (led_before || resumes) && self.options.rules.reopen_after_restart {
                let waits =
                    if self.configuration.in_sync.is_empty() { Duration::ZERO } else { self.options.reopen_after };
                Role::Reopening { next_proposal: now.max(self.started + waits) }
            } else {
                Role::Leader(Leader::new(&self.configuration, now))
            };
        } else {
            self.role = Role::Follower(Follower::new(self.committed));
        }
        // The log of a learner that has nothing begins with a copy.
        let waits_for_copy = self.is_learner() && self.has_nothing();
        if !resumes && !waits_for_copy {
            self.history = Some(self.configuration.history);
            self.log.begin(self.configuration.clone(), out);
        }
        self.handle_time(now, out);
    }

    fn reason_to_refuse(&self) -> Option<String> {
        let (node, newest) = (self.me.node, self.log.newest_epoch());
        if self.configuration.epoch < newest {
            return Some(format!(
                "the disk of {node} has epoch {newest} of the partition, the controller's map only {}: the map is older",
                self.configuration.epoch
            ));
        }
        if !self.configuration.is_member(self.me) && self.options.rules.disks {
            return None;
        }
        if let Some(fault) = &self.fault {
            let others = self.configuration.members().count() > 1;
            let hope = if others { "another member goes on without it" } else { "no other replica has everything" };
            return Some(format!("the log of {node} cannot be trusted, and {hope}: {fault}"));
        }
        (self.history.is_some_and(|history| history != self.configuration.history) && !self.is_leader())
            .then(|| format!("the data of {node} belong to another history of the partition than the controller's map"))
    }

    /// The old leader says that it serves nothing any more in `epoch`: the leader of the next need not wait.
    fn handle_resign(&mut self, from: NodeId, epoch: Epoch) {
        let leader = if epoch == self.configuration.epoch {
            Some(self.configuration.leader)
        } else {
            self.leader_before.filter(|_| epoch.next() == self.configuration.epoch)
        };
        if leader.is_some_and(|leader| leader.node == from) {
            self.resigned = Some(epoch);
        } else if !self.options.rules.resign_names_epoch {
            self.resigned = Some(Epoch(self.configuration.epoch.0.saturating_sub(1)));
        }
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

    fn handle_barrier(&mut self, now: Instant64, token: Token, out: &mut Actions) {
        let prepared = self.log.last().lsn;
        let outcome = match (self.check_read(now), &mut self.role) {
            (Ok(ReadCheck::Now), _) if prepared <= self.committed => Outcome::Committed,
            (Ok(_), Role::Leader(leader)) => return leader.lease.wait(prepared, token),
            (Ok(_), _) => Outcome::Refused(Refusal::NotLeader),
            (Err(refusal), _) => Outcome::Refused(refusal),
        };
        out.push(Action::Reply { token, outcome });
    }

    fn handle_flushed(&mut self, now: Instant64, entries: u64, out: &mut Actions) {
        let before = (self.log.flushed(), self.log.epoch_on_disk());
        self.log.handle_flushed(entries);
        let news = before != (self.log.flushed(), self.log.epoch_on_disk());
        match &self.role {
            Role::Leader(_) => self.maybe_commit(now, out),
            // That it is in the epoch now is news for the leader, too, who may have asked too early.
            Role::Follower(follower) if news && self.acts() && !self.is_silent(follower) => self.send_report(out),
            _ => {}
        }
    }

    fn handle_log_read(&mut self, to: NodeId, previous: Position, records: Vec<Record>, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => leader.handle_log_read(to, previous, records, self.log.tail()),
            Role::Follower(follower) if !follower.has_asked() => self.answer_fetch(previous, records, out),
            Role::Follower(_) => {}
            Role::Reopening { .. } | Role::Refused(_) => {}
        }
    }

    /// Whether a follower has asked to take over: it says nothing more in this epoch.
    fn is_silent(&self, follower: &Follower) -> bool {
        follower.has_asked() && self.options.rules.silent_after_takeover
    }

    fn handle_message(&mut self, now: Instant64, from: NodeId, body: PeerBody, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => match body {
                PeerBody::Report { prepared, flushed, applied, answers, basis } => {
                    let report = stream::Report { prepared, flushed, applied, answers, basis };
                    leader.handle_report(now, from, report, self.log.tail());
                    self.maybe_commit(now, out);
                }
                PeerBody::Gap { prepared } => leader.handle_gap(from, prepared, self.log.tail()),
                PeerBody::Tail { previous, records, last } => self.handle_tail(from, previous, records, last, out),
                _ => {}
            },
            Role::Follower(follower) if from == self.configuration.leader.node => {
                if follower.has_asked() && self.options.rules.silent_after_takeover {
                    return;
                }
                match body {
                    PeerBody::Beacon { committed, sent, serving } => {
                        self.handle_beacon(now, committed, sent, serving, out);
                    }
                    PeerBody::CopyBegin { start, sent } => self.handle_copy_begin(now, start, sent, out),
                    PeerBody::CopyPart { sent, number, bytes } => self.handle_copy_part(sent, number, bytes, out),
                    PeerBody::CopyEnd { sent, parts, end, digest } => {
                        self.handle_copy_end(Copy::Loading { sent, next: parts }, end, digest, out);
                    }
                    _ if self.has_nothing() || self.is_loading() => {}
                    PeerBody::Prepare { previous, committed, records } => {
                        self.handle_prepare(previous, committed, records, out);
                    }
                    PeerBody::Fetch { after } => self.handle_fetch(after, out),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn handle_time(&mut self, now: Instant64, out: &mut Actions) {
        match &mut self.role {
            Role::Leader(leader) => {
                leader.maybe_beat(now, self.committed, &self.options, out);
                leader.answer_readers(now, self.committed, &self.options, out);
            }
            Role::Reopening { next_proposal } if *next_proposal <= now => {
                *next_proposal = now + self.options.propose_interval;
                out.push(Action::Propose(Change::Reopen { leader: self.me }));
            }
            Role::Follower(_) => self.maybe_take_over(now, out),
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
    /// first epoch, and whoever resigned is in charge of nothing.
    fn grace_end(&self) -> Instant64 {
        let (epoch, rules) = (self.configuration.epoch, self.options.rules);
        let resigned = self.resigned.is_some_and(|resigned| resigned.next() == epoch);
        if epoch == Epoch(1) || resigned || !rules.grace || !self.has_promised && !rules.grace_since_start {
            return Instant64(0);
        }
        self.last_promise + self.options.grace
    }

    /// Until when a replica that was just started waits for others.
    fn patience_end(&self) -> Instant64 {
        self.started + self.options.start_patience
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
