//! The leader: gives each write its position, streams to followers and learners, and knows what is committed.
//!
//! # Invariants
//! * A record is committed when the leader itself **and** every in-sync follower have it flushed, not before; and once it has
//!   asked to add a learner, when that has it, too.
//! * A write is acknowledged when it is committed, in the order of the log.
//! * What waits to be committed is bounded, and a write that has no prospect of that is refused while it is certain that it
//!   does not happen.

use super::{
    Action, Actions, Options, Outcome, Refusal, Replica, Role, Token,
    lease::Lease,
    reconcile::Stage,
    stream::{Progress, Report, Stream},
    tail::Tail,
    wishes::Wishes,
};
use crate::clock::Instant64;
use kv_proto::{
    cluster_map::Configuration,
    ids::{Epoch, Lsn, Member, NodeId},
    replication::{PeerBody, Position, Record},
};
use std::collections::VecDeque;

/// A leader's own state; log and watermarks are the replica's.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) followers: Vec<Progress>,
    pub(super) learners: Vec<Progress>,
    /// How far it is on the way to serving.
    pub(super) stage: Stage,
    /// The epoch that it began to lead in; those after it are its own changes.
    pub(super) since: Epoch,
    /// Whether those who are connected have been asked what they have, in this epoch.
    pub(super) greeted: bool,
    pub(super) lease: Lease,
    pub(super) wishes: Wishes,
    /// Who waits for which LSN to be committed, in the order of the log.
    waiters: VecDeque<(Lsn, Token)>,
}

impl Leader {
    pub(super) fn new(configuration: &Configuration, now: Instant64) -> Self {
        Leader {
            followers: configuration.in_sync.iter().map(|member| Progress::new(*member, now)).collect(),
            learners: Vec::new(),
            stage: Stage::Recording,
            since: configuration.epoch,
            greeted: false,
            lease: Lease::new(now),
            wishes: Wishes::default(),
            waiters: VecDeque::new(),
        }
    }

    /// Leads on in the epoch that it opened itself: what it knows of the members goes on to be true, and so do their
    /// promises.
    pub(super) fn go_on(&mut self, configuration: &Configuration, now: Instant64) {
        let mut known: Vec<Progress> = self.followers.drain(..).chain(self.learners.drain(..)).collect();
        let follower = |member: &Member| match known.iter().position(|p| p.member == *member) {
            Some(at) => known.swap_remove(at),
            None => Progress::new(*member, now),
        };
        self.followers = configuration.in_sync.iter().map(follower).collect();
        self.greeted = false;
        self.wishes = Wishes::default();
    }

    pub(super) fn serves(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether a write would be taken now by a leader that serves.
    pub(super) fn check_write(&self, now: Instant64, tail: &Tail, options: &Options) -> Result<(), Refusal> {
        if self.wishes.handoff.is_some() {
            return Err(Refusal::HandingOff);
        }
        if !self.has_enough(options) {
            return Err(Refusal::TooFewInSync);
        }
        if let Some(silent) = self.hopeless(now, options) {
            return Err(Refusal::FollowerUnreachable(silent));
        }
        if tail.bytes() >= options.max_pending_bytes || tail.len() >= options.max_pending_records {
            return Err(Refusal::Overloaded);
        }
        Ok(())
    }

    /// A follower that has been silent for so long that it should have been dropped by now.
    pub(super) fn hopeless(&self, now: Instant64, options: &Options) -> Option<NodeId> {
        self.counted().find(|f| f.silence(now) >= options.suspect_after * 2).map(|f| f.member.node)
    }

    fn has_enough(&self, options: &Options) -> bool {
        self.followers.len() + 1 >= usize::from(options.min_in_sync)
    }

    /// Lets `token` know when everything up to `lsn` is committed.
    pub(super) fn wait(&mut self, lsn: Lsn, token: Token) {
        debug_assert!(self.waiters.back().is_none_or(|(last, _)| *last <= lsn));
        self.waiters.push_back((lsn, token));
    }

    /// Those who must have a record so that it is committed, and whose promise a lease is made of.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Progress> {
        let adding = self.wishes.adding;
        self.followers.iter().chain(self.learners.iter().filter(move |l| adding == Some(l.member)))
    }

    /// What is committed: flushed here and at everyone who counts.
    fn commit_point(&self, own_flushed: Lsn, options: &Options) -> Option<Lsn> {
        let rules = options.rules;
        let settles = matches!(self.stage, Stage::Settling { .. });
        let counts = |f: &&Progress| {
            (rules.drop_known_first || !self.wishes.drops(f.member))
                && (rules.pending_add_counts || self.wishes.adding != Some(f.member))
                && (rules.adopted_flushed_everywhere || !settles)
        };
        let point = self.counted().filter(counts).map(|f| f.flushed).fold(own_flushed, Lsn::min);
        self.has_enough(options).then_some(point)
    }

    /// Answers everyone who waited for `committed` or less.
    fn answer_waiters(&mut self, committed: Lsn, out: &mut Actions) {
        while let Some((_, token)) = self.waiters.pop_front_if(|(lsn, _)| *lsn <= committed) {
            out.push(Action::Reply { token, outcome: Outcome::Committed });
        }
    }

    /// Answers everyone who still waits: nobody here will learn what became of their writes.
    pub(super) fn abandon_waiters(&mut self, out: &mut Actions) {
        let outcome = Outcome::Unknown;
        let waiting = self.waiters.drain(..).map(|(_, token)| token).chain(self.lease.take_readers());
        out.extend(waiting.map(|token| Action::Reply { token, outcome }));
    }

    /// What is known of a follower or learner.
    pub(super) fn progress(&mut self, node: NodeId) -> Option<&mut Progress> {
        self.all_mut().find(|f| f.member.node == node)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Progress> {
        self.followers.iter_mut().chain(&mut self.learners)
    }

    /// There is a new connection to a follower, or to somebody who wants to be one: asks what it has.
    pub(super) fn handle_connected(
        &mut self,
        now: Instant64,
        member: Member,
        committed: Lsn,
        disks: bool,
        out: &mut Actions,
    ) {
        if !self.greeted {
            return; // Asked when the epoch is on disk.
        }
        self.forget_fetch(member.node);
        let is_follower = self.followers.iter().any(|f| f.member.node == member.node);
        if !is_follower && self.wishes.adding.is_none_or(|adding| adding.node != member.node) {
            self.learners.retain(|l| l.member.node != member.node);
            self.learners.push(Progress::new(member, now));
        }
        let beacon = self.beacon(now, committed);
        if let Some(progress) = self.progress(member.node) {
            progress.handle_connected(member, disks);
            if progress.hears() {
                out.push(Action::Send { to: member.node, body: beacon });
            }
        }
    }

    pub(super) fn handle_lost(&mut self, node: NodeId) {
        self.forget_fetch(node);
        if let Some(progress) = self.progress(node) {
            progress.handle_lost();
        }
        let adding = self.wishes.adding;
        self.learners.retain(|l| l.member.node != node || adding == Some(l.member));
    }

    /// A follower or learner says what it has.
    pub(super) fn handle_report(&mut self, now: Instant64, from: NodeId, mut report: Report, tail: &Tail) {
        let knows_its_log = self.knows_its_log();
        report.answers = self.lease.sent(report.answers);
        let Some(progress) = self.progress(from) else { return };
        if knows_its_log {
            progress.handle_report(now, report, tail);
        } else {
            progress.keep_report(now, report);
        }
    }

    /// A follower could not use a Prepare, since it has records only up to `prepared`.
    pub(super) fn handle_gap(&mut self, from: NodeId, prepared: Position, tail: &Tail) {
        if let Some(progress) = self.progress(from) {
            progress.handle_gap(prepared, tail);
        }
    }

    /// The log was read for a follower.
    pub(super) fn handle_log_read(&mut self, to: NodeId, previous: Position, records: Vec<Record>, tail: &Tail) {
        if let Some(progress) = self.progress(to) {
            progress.handle_log_read(previous, records, tail);
        }
    }

    /// The position up to which nobody who counts needs the log any more.
    fn needed_after(&self, committed: Lsn) -> Lsn {
        self.counted().map(|f| f.flushed).fold(committed, Lsn::min)
    }

    pub(super) fn poll_timeout(&self, grace_end: Instant64) -> Instant64 {
        match self.stage {
            Stage::Settling { waits_for_grace: true, .. } => self.lease.next_beacon().min(grace_end),
            _ => self.lease.next_beacon(),
        }
    }

    /// The next Prepare for `to`, if there is something that it was not sent yet.
    pub(super) fn poll_prepare(
        &mut self,
        now: Instant64,
        to: NodeId,
        committed: Lsn,
        tail: &Tail,
        limit: usize,
    ) -> Option<PeerBody> {
        self.progress(to)?.poll_prepare(now, committed, tail, limit)
    }

    /// Why the leader cannot serve, or cannot take writes, in a sentence.
    pub(super) fn trouble(&self, now: Instant64, options: &Options, grace_end: Instant64) -> Option<String> {
        if !self.serves() {
            return Some(self.reconciling(now, options, grace_end));
        }
        if !self.has_enough(options) {
            let (have, need) = (self.followers.len() + 1, options.min_in_sync);
            return Some(format!(
                "{have} replicas are in sync, and --min-in-sync asks for {need}: writes are refused, reads go on"
            ));
        }
        let follower = self.counted().find(|f| !f.answers(now, options))?;
        Some(format!("{}: the leader wants to go on without it", silence(follower)))
    }
}

/// Why a follower cannot be counted on.
pub(super) fn silence(follower: &Progress) -> String {
    let node = follower.member.node;
    match follower.stream {
        Stream::Lost => format!("no connection to follower {node}"),
        Stream::Asked | Stream::Open { .. } => format!("follower {node} does not answer"),
        Stream::Diverged => format!("follower {node} has other records than this leader"),
        Stream::NeedsCopy | Stream::Copying => {
            format!("follower {node} needs a copy of the table: the log does not reach back so far")
        }
        Stream::OtherDisk => format!("follower {node} has another data directory than the member"),
    }
}

impl Replica {
    /// Commits what is flushed everywhere by now, answers who waited for it, and lets go of what nobody needs any more.
    pub(super) fn maybe_commit(&mut self, now: Instant64, out: &mut Actions) {
        let acts = self.acts();
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.knows_its_log() || !acts {
            return;
        }
        let own = if self.options.rules.own_flush_counts { self.log.flushed() } else { self.log.last().lsn };
        let point = leader.commit_point(own, &self.options);
        if let Some(point) = point.filter(|point| *point > self.committed) {
            self.commit(point, out);
        }
        let Role::Leader(leader) = &mut self.role else { return };
        leader.answer_waiters(self.committed, out);
        leader.answer_readers(now, self.committed, &self.options, out);
        self.log.release(leader.needed_after(self.committed));
    }
}
