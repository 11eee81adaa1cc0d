//! The leader: gives each write its position, streams to the followers, and knows what is committed.
//!
//! # Invariants
//! * A record is committed when the leader itself **and** every in-sync follower have it flushed, not before.
//! * A write is acknowledged when it is committed, in the order of the log.
//! * Writes are taken only while every in-sync follower answers, so that what is pending stays bounded and a
//!   write that cannot succeed is refused while that is still certain.

use super::{
    Action, Actions, Options, Outcome, Refusal, Replica, Role, Token,
    reconcile::Stage,
    stream::{Progress, Report, Stream},
    tail::Tail,
};
use crate::clock::Instant64;
use kv_proto::{
    cluster_map::Configuration,
    ids::{Lsn, Member, NodeId},
    replication::{PeerBody, Position, Record},
};
use std::collections::VecDeque;

/// A leader's own state; log and watermarks are the replica's.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) followers: Vec<Progress>,
    /// How far it is on the way to serving.
    pub(super) stage: Stage,
    /// Who waits for which LSN to be committed, in the order of the log.
    waiters: VecDeque<(Lsn, Token)>,
    next_beacon: Instant64,
}

impl Leader {
    pub(super) fn new(configuration: &Configuration, now: Instant64) -> Self {
        Leader {
            followers: configuration.in_sync.iter().map(|member| Progress::new(*member, now)).collect(),
            stage: Stage::Recording,
            waiters: VecDeque::new(),
            next_beacon: now,
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether a write would be taken now by a leader that serves.
    pub(super) fn check_write(&self, now: Instant64, tail: &Tail, options: &Options) -> Result<(), Refusal> {
        if let Some(silent) = self.followers.iter().find(|f| !f.answers(now, options)) {
            return Err(Refusal::FollowerUnreachable(silent.member.node));
        }
        if tail.bytes() >= options.max_pending_bytes || tail.len() >= options.max_pending_records {
            return Err(Refusal::Overloaded);
        }
        Ok(())
    }

    /// Lets `token` know when everything up to `lsn` is committed.
    pub(super) fn wait(&mut self, lsn: Lsn, token: Token) {
        debug_assert!(self.waiters.back().is_none_or(|(last, _)| *last <= lsn));
        self.waiters.push_back((lsn, token));
    }

    /// What is committed: flushed here and at every in-sync follower.
    fn commit_point(&self, own_flushed: Lsn) -> Lsn {
        self.followers.iter().map(|f| f.flushed).fold(own_flushed, Lsn::min)
    }

    /// Answers everyone who waited for `committed` or less.
    fn answer_waiters(&mut self, committed: Lsn, out: &mut Actions) {
        while self.waiters.front().is_some_and(|(lsn, _)| *lsn <= committed) {
            let (_, token) = self.waiters.pop_front().expect("there is a first waiter");
            out.push(Action::Reply { token, outcome: Outcome::Committed });
        }
    }

    /// Answers everyone who still waits: nobody here will learn what became of their writes.
    pub(super) fn abandon_waiters(&mut self, out: &mut Actions) {
        let outcome = Outcome::Unknown;
        out.extend(self.waiters.drain(..).map(|(_, token)| Action::Reply { token, outcome }));
    }

    pub(super) fn follower(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.followers.iter_mut().find(|f| f.member.node == node)
    }

    pub(super) fn handle_connected(&mut self, member: Member, committed: Lsn, out: &mut Actions) {
        if self.stage == Stage::Recording {
            return; // Asked when the epoch is on disk.
        }
        self.forget_fetch(member.node);
        if let Some(follower) = self.follower(member.node) {
            follower.handle_connected(member, committed, out);
        }
    }

    pub(super) fn handle_lost(&mut self, node: NodeId) {
        self.forget_fetch(node);
        if let Some(follower) = self.follower(node) {
            follower.handle_lost();
        }
    }

    /// A follower says what it has.
    pub(super) fn handle_report(&mut self, now: Instant64, from: NodeId, report: Report, tail: &Tail) {
        let knows_its_log = self.knows_its_log();
        let Some(follower) = self.follower(from) else { return };
        if knows_its_log {
            follower.handle_report(now, report, tail);
        } else {
            follower.keep_report(now, report);
        }
    }

    /// A follower could not use a Prepare, since it has records only up to `prepared`.
    pub(super) fn handle_gap(&mut self, from: NodeId, prepared: Position, tail: &Tail) {
        if let Some(follower) = self.follower(from) {
            follower.handle_gap(prepared, tail);
        }
    }

    /// The log was read for a follower.
    pub(super) fn handle_log_read(&mut self, to: NodeId, previous: Position, records: Vec<Record>, tail: &Tail) {
        if let Some(follower) = self.follower(to) {
            follower.handle_log_read(previous, records, tail);
        }
    }

    /// The position up to which no follower needs the log any more.
    fn needed_after(&self, committed: Lsn) -> Lsn {
        self.followers.iter().map(|f| f.flushed).fold(committed, Lsn::min)
    }

    pub(super) fn poll_timeout(&self, grace_end: Instant64) -> Instant64 {
        match self.stage {
            Stage::Settling { waits_for_grace: true, .. } => self.next_beacon.min(grace_end),
            _ => self.next_beacon,
        }
    }

    /// Sends beacons when their time has come. They are due at multiples of the interval, so that all partitions
    /// of a node beat together and share their frames.
    pub(super) fn handle_timeout(&mut self, now: Instant64, committed: Lsn, options: &Options, out: &mut Actions) {
        if now < self.next_beacon {
            return;
        }
        let interval = (options.beacon_interval.as_nanos() as u64).max(1);
        self.next_beacon = Instant64((now.0 / interval + 1) * interval);
        for follower in self.followers.iter().filter(|f| matches!(f.stream, Stream::Asked | Stream::Open { .. })) {
            out.push(Action::Send { to: follower.member.node, body: PeerBody::Beacon { committed } });
        }
        self.repeat_fetch(out);
    }

    /// The next Prepare for `to`, if there is something that it was not sent yet.
    pub(super) fn poll_prepare(&mut self, to: NodeId, committed: Lsn, tail: &Tail, limit: usize) -> Option<PeerBody> {
        self.follower(to)?.poll_prepare(committed, tail, limit)
    }

    /// Why the leader cannot serve, or cannot take writes, in a sentence.
    pub(super) fn trouble(&self, now: Instant64, options: &Options, grace_end: Instant64) -> Option<String> {
        if !self.serves() {
            return Some(self.reconciling(now, options, grace_end));
        }
        let follower = self.followers.iter().find(|f| !f.answers(now, options))?;
        Some(format!("{}: writes are refused, reads go on", silence(follower)))
    }
}

/// Why a follower cannot be counted on.
pub(super) fn silence(follower: &Progress) -> String {
    let node = follower.member.node;
    match follower.stream {
        Stream::Lost => format!("no connection to follower {node}"),
        Stream::Asked | Stream::Open { .. } => format!("follower {node} does not answer"),
        Stream::Diverged => format!("follower {node} has other records than this leader"),
        Stream::NeedsCopy => format!("follower {node} needs a copy of the table: the log does not reach back so far"),
        Stream::OtherDisk => format!("follower {node} has another data directory than the member"),
    }
}

impl Replica {
    /// Commits what is flushed everywhere by now, and lets go of what nobody needs any more.
    pub(super) fn maybe_commit(&mut self, out: &mut Actions) {
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.knows_its_log() {
            return;
        }
        let own = if self.options.rules.own_flush_counts { self.log.flushed() } else { self.log.last().lsn };
        let point = leader.commit_point(own);
        if point > self.committed {
            self.commit(point, out);
        }
        let Role::Leader(leader) = &mut self.role else { return };
        leader.answer_waiters(self.committed, out);
        self.log.release(leader.needed_after(self.committed));
    }
}
