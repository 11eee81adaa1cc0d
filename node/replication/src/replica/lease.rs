//! Beacons, and what their answers are good for: how long the leader may serve reads, and whether it leads still.
//!
//! A follower that answered a beacon asks to take over only a grace later, by its own clock. So for a lease, which is shorter,
//! from when the beacon was sent, no other leader can serve. A beacon that was sent *after* a read came, and that every follower
//! answered, says without any clock that no other leader served when the read came.
//!
//! # Invariants
//! * A lease is made of the answers of everyone who could take over: every in-sync follower, and the learner that the leader
//!   has asked to add.
//! * Stamps of beacons grow strictly, so that an answer tells which beacons it is younger than.

use super::{Action, Actions, Options, Outcome, ReadCheck, Reads, Refusal, Replica, Role, Token, leader::Leader};
use crate::clock::Instant64;
use kv_proto::{ids::Lsn, replication::PeerBody};
use std::collections::VecDeque;

/// What a leader sent, and who waits for the answers.
#[derive(Debug)]
pub(super) struct Lease {
    /// The stamp of the last beacon.
    stamp: u64,
    next_beacon: Instant64,
    /// Reads that wait: for everything up to an LSN to be committed, and for an answer to a beacon after this stamp.
    readers: VecDeque<(Lsn, u64, Token)>,
}

impl Lease {
    pub(super) fn new(now: Instant64) -> Self {
        Lease { stamp: 0, next_beacon: now, readers: VecDeque::new() }
    }

    /// The stamp that an answer names, or 0 if no beacon had it.
    pub(super) fn sent(&self, answers: u64) -> u64 {
        if answers <= self.stamp { answers } else { 0 }
    }

    /// A stamp that is greater than all before.
    pub(super) fn next_stamp(&mut self, now: Instant64) -> u64 {
        self.stamp = now.0.max(self.stamp + 1);
        self.stamp
    }

    pub(super) fn next_beacon(&self) -> Instant64 {
        self.next_beacon
    }

    /// Lets `token` know when everything up to `lsn` is committed, and the leader sure that it leads.
    pub(super) fn wait(&mut self, lsn: Lsn, token: Token) {
        self.readers.push_back((lsn, self.stamp, token));
    }

    /// Everyone who waits.
    pub(super) fn take_readers(&mut self) -> impl Iterator<Item = Token> + '_ {
        self.readers.drain(..).map(|(_, _, token)| token)
    }
}

impl Leader {
    /// Whether nobody else can lead: nobody was asked to be able to.
    fn is_alone(&self) -> bool {
        self.counted().next().is_none()
    }

    /// The newest beacon that everyone who counts has answered.
    fn confirmed(&self) -> u64 {
        self.counted().map(|f| f.granted).min().unwrap_or(u64::MAX)
    }

    /// Whether the leader may serve without asking anybody.
    pub(super) fn is_sure(&self, now: Instant64, options: &Options) -> bool {
        let has_lease = options.reads == Reads::Lease && now < Instant64(self.confirmed()) + options.lease;
        self.is_alone() || has_lease || !options.rules.lease_for_reads
    }

    /// Answers every read that can be.
    pub(super) fn answer_readers(&mut self, now: Instant64, committed: Lsn, options: &Options, out: &mut Actions) {
        if !self.serves() {
            return;
        }
        let (sure, confirmed) = (self.is_sure(now, options), self.confirmed());
        let ready = |(lsn, after, _): &mut (Lsn, u64, Token)| *lsn <= committed && (sure || confirmed > *after);
        while let Some((_, _, token)) = self.lease.readers.pop_front_if(ready) {
            out.push(Action::Reply { token, outcome: Outcome::Committed });
        }
    }

    /// The next beacon.
    pub(super) fn beacon(&mut self, now: Instant64, committed: Lsn) -> PeerBody {
        PeerBody::Beacon { committed, sent: self.lease.next_stamp(now), serving: self.serves() }
    }

    /// Sends everyone a beacon.
    pub(super) fn send_beacons(&mut self, now: Instant64, committed: Lsn, out: &mut Actions) {
        let body = self.beacon(now, committed);
        let hearing = self.followers.iter().chain(&self.learners).filter(|f| f.hears());
        out.extend(hearing.map(|f| Action::Send { to: f.member.node, body: body.clone() }));
    }

    /// Sends beacons when their time has come. They are due at multiples of the interval, so that all partitions
    /// of a node beat together and share their frames.
    pub(super) fn maybe_beat(&mut self, now: Instant64, committed: Lsn, options: &Options, out: &mut Actions) {
        if now < self.lease.next_beacon {
            return;
        }
        let interval = (options.beacon_interval.as_nanos() as u64).max(1);
        self.lease.next_beacon = Instant64((now.0 / interval + 1) * interval);
        if self.greeted {
            self.send_beacons(now, committed, out);
            self.repeat_fetch(out);
        }
    }

    /// Asks for the confirmation that a read waits for, unless one is under way: reads that come meanwhile share the next.
    pub(super) fn maybe_ask(&mut self, now: Instant64, committed: Lsn, options: &Options, out: &mut Actions) {
        let Some((_, after, _)) = self.lease.readers.front() else { return };
        let under_way = self.confirmed() < self.lease.stamp;
        let waits_for_this = *after == self.lease.stamp;
        if waits_for_this && !under_way && self.serves() && !self.is_sure(now, options) {
            self.send_beacons(now, committed, out);
        }
    }
}

impl Replica {
    /// Whether and how the table here may be read: it holds everything that was ever acknowledged.
    ///
    /// # Errors
    /// [`Refusal::NotLeader`], [`Refusal::NotReady`], or [`Refusal::FollowerUnreachable`].
    pub fn check_read(&self, now: Instant64) -> Result<ReadCheck, Refusal> {
        match &self.role {
            Role::Leader(leader) if leader.serves() => {
                if self.acts() && leader.is_sure(now, &self.options) {
                    Ok(ReadCheck::Now)
                } else {
                    leader
                        .hopeless(now, &self.options)
                        .map_or(Ok(ReadCheck::AfterBarrier), |node| Err(Refusal::FollowerUnreachable(node)))
                }
            }
            Role::Leader(_) | Role::Reopening { .. } => Err(Refusal::NotReady),
            Role::Follower(_) | Role::Refused(_) => Err(Refusal::NotLeader),
        }
    }
}
