//! The follower: takes Prepares from the leader of its epoch, says what it has on disk, and asks to take over when the
//! leader is silent. A learner does the same, but for the last (see `learner.rs` for what it does beside).
//!
//! # Invariants
//! * It takes over only from an epoch that it is a member of, a grace after its last answer to the leader, and says nothing
//!   more in that epoch once it has asked.
//! * A Prepare is taken by the position of the record before it, never by count.
//! * What a Prepare contradicts is cut, but only above the commit point, and never what an earlier one of the epoch brought.
//! * Nothing is reported as flushed before the log said so.
//! * A record is applied only when it is known to be committed, to be the leader's, and is flushed here.

use super::{
    Action, Actions, Replica, Role,
    log::Taken,
    stream::{Report, committed_of, first_of},
};
use crate::clock::Instant64;
use kv_proto::{
    control::Change,
    ids::Lsn,
    replication::{Basis, PeerBody, Position, Record},
};

/// How many beacons may be missing before a replica that did not run for a while blames the leader.
const BEACONS_AFTER_A_PAUSE: u32 = 3;

/// A follower's own state; log and watermarks are the replica's.
#[derive(Debug)]
pub(super) struct Follower {
    /// Up to here the log is the leader's: a Prepare of this epoch said so, or it was committed before. Of what is committed
    /// a member holds no other record, unless it lost a cut that it had acknowledged from memory.
    matched: Lsn,
    /// What the leader asked for and the log is being read for: the records after this.
    reading: Option<Lsn>,
    /// Why the leader is not believed.
    doubt: Option<String>,
    /// When the newest beacon of the leader that was answered was sent; 0 before the first of this epoch.
    answered: u64,
    /// What the leader last said is committed.
    pub(super) leader_committed: Lsn,
    /// It has asked to take over, and when it does so again.
    asked: Option<Instant64>,
}

impl Follower {
    pub(super) fn new(committed: Lsn) -> Self {
        Follower {
            matched: committed,
            reading: None,
            doubt: None,
            answered: 0,
            leader_committed: committed,
            asked: None,
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        let asked =
            self.asked.map(|_| "the leader is silent: this replica has asked the controller to take over".to_owned());
        self.doubt.clone().or(asked)
    }

    /// Whether it has asked to take over.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Everything up to `base` is the leader's: its table comes, as was decided with this stamp. False if that is old.
    pub(super) fn begin_anew(&mut self, base: Lsn, sent: u64) -> bool {
        let is_new = sent > self.answered;
        if is_new {
            (self.matched, self.doubt, self.reading, self.answered) = (base, None, None, sent);
        }
        is_new
    }
}

impl Replica {
    pub(super) fn handle_prepare(
        &mut self,
        previous: Position,
        committed: Lsn,
        records: Vec<Record>,
        out: &mut Actions,
    ) {
        let (epoch, match_epochs) = (self.configuration.epoch, self.options.rules.match_epochs);
        let last = records.last().map_or(previous, |r| r.position).lsn;
        let Role::Follower(follower) = &mut self.role else { return };
        let settled = self.committed.max(follower.matched);
        let taken = self.log.take(epoch, previous, records, settled, match_epochs, out);
        match taken {
            Taken::Contradiction(lsn) => {
                let (me, leader) = (self.me.node, self.configuration.leader.node);
                let doubt = format!(
                    "leader {leader} contradicts at LSN {lsn} what it said before, or what is committed on {me}"
                );
                follower.doubt = Some(doubt.clone());
                if self.is_learner() {
                    self.fault = Some(doubt); // Nobody needs what is here.
                }
                return;
            }
            Taken::Gap => {
                let (to, body) = (self.configuration.leader.node, PeerBody::Gap { prepared: self.log.last() });
                out.extend(self.acts().then_some(Action::Send { to, body }));
                return;
            }
            Taken::Appended | Taken::Nothing => {
                follower.doubt = None;
                follower.matched = follower.matched.max(last);
            }
        }
        self.follow_commit(committed, out);
        if taken == Taken::Nothing || !self.options.rules.flush_before_report {
            self.send_report(out);
        }
    }

    /// The leader says that everything up to `point` is committed; what is flushed here of its log can be applied.
    pub(super) fn follow_commit(&mut self, point: Lsn, out: &mut Actions) {
        let Role::Follower(follower) = &self.role else { return };
        let point = point.min(self.log.flushed()).min(follower.matched);
        if point > self.committed {
            self.commit(point, out);
            self.log.release(point);
        }
    }

    /// Answers a beacon: the leader may count on it as on a promise to follow no other for a while.
    pub(super) fn handle_beacon(
        &mut self,
        now: Instant64,
        committed: Lsn,
        sent: u64,
        serving: bool,
        out: &mut Actions,
    ) {
        let Role::Follower(follower) = &mut self.role else { return };
        follower.answered = follower.answered.max(sent);
        follower.leader_committed = committed;
        // What a serving leader has committed is all that was ever acknowledged.
        if serving && committed <= self.log.flushed().min(follower.matched) {
            self.incomplete = false;
        }
        (self.last_promise, self.has_promised) = (now, true);
        self.follow_commit(committed, out);
        self.send_report(out);
    }

    /// Says what is here; nothing while the epoch is not on disk.
    pub(super) fn send_report(&mut self, out: &mut Actions) {
        if !self.acts() {
            return;
        }
        let Role::Follower(follower) = &self.role else { return };
        let to = self.configuration.leader.node;
        let mut report = Report {
            prepared: self.log.last(),
            flushed: self.log.flushed(),
            applied: self.committed,
            answers: follower.answered,
            basis: self.basis(),
        };
        if !self.options.rules.flush_before_report {
            report.flushed = report.prepared.lsn;
        }
        if report.basis == Basis::Nothing {
            (report.prepared, report.flushed, report.applied) = (Position::default(), Lsn(0), Lsn(0));
        }
        let Report { prepared, flushed, applied, answers, basis } = report;
        out.push(Action::Send { to, body: PeerBody::Report { prepared, flushed, applied, answers, basis } });
    }

    /// When the follower may ask to take over, if it may.
    fn takeover_at(&self) -> Option<Instant64> {
        let may = self.configuration.in_sync.contains(&self.me) || !self.options.rules.members_alone;
        let may = may && (!self.incomplete || !self.options.rules.incomplete_never_leads);
        let paused = self.awake_since + self.options.beacon_interval * BEACONS_AFTER_A_PAUSE;
        // A leader whom this replica has not heard in this epoch has had no chance before it.
        let silent = self.last_promise.max(self.entered) + self.options.grace;
        let silent = if self.has_promised { silent } else { silent.max(self.patience_end()) };
        may.then(|| silent.max(paused))
    }

    /// Asks to take over if the leader has been silent for long enough.
    pub(super) fn maybe_take_over(&mut self, now: Instant64, out: &mut Actions) {
        let Some(due) = self.takeover_at() else { return };
        let Role::Follower(follower) = &mut self.role else { return };
        let due = follower.asked.unwrap_or(due);
        if now < due || !self.controller_reachable {
            return;
        }
        follower.asked = Some(now + self.options.propose_interval);
        let me = self.me;
        let in_sync = self.configuration.in_sync.iter().copied().filter(|m| *m != me).collect();
        out.push(Action::Propose(Change::Takeover { follower: me, in_sync }));
    }

    /// A new leader lacks what is here after `after`. If that is not here, what follows the oldest record held may
    /// tell where the two logs part; if that is younger, the log has to be read.
    pub(super) fn handle_fetch(&mut self, after: Position, out: &mut Actions) {
        let to = self.configuration.leader.node;
        let Role::Follower(follower) = &mut self.role else { return };
        let (tail, last) = (self.log.tail(), self.log.last());
        let base = tail.base();
        let previous = match tail.position_at(after.lsn) {
            Some(here) if here == after => after,
            _ if base.lsn <= after.lsn => base,
            _ if follower.reading.is_some() => return,
            _ => {
                follower.reading = Some(after.lsn);
                out.push(Action::ReadLog { to, after: after.lsn });
                return;
            }
        };
        let records = first_of(tail.after(previous.lsn), self.options.message_bytes);
        out.push(Action::Send { to, body: PeerBody::Tail { previous, records, last } });
    }

    /// The log was read for the leader.
    pub(super) fn answer_fetch(&mut self, previous: Position, records: Vec<Record>, out: &mut Actions) {
        let to = self.configuration.leader.node;
        let Role::Follower(follower) = &mut self.role else { return };
        if follower.reading.take() == Some(previous.lsn) {
            let records = committed_of(records, self.log.tail().base().lsn);
            let records = first_of(records.iter(), self.options.message_bytes);
            out.push(Action::Send { to, body: PeerBody::Tail { previous, records, last: self.log.last() } });
        }
    }
}
