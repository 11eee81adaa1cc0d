//! The leader: gives each write its position, streams to the followers, and knows what is committed.
//!
//! # Invariants
//! * A record is committed when the leader itself **and** every in-sync follower have it flushed, not before.
//! * A write is acknowledged when it is committed, in the order of the log.
//! * Writes are taken only while every in-sync follower answers, so that what is pending stays bounded and a
//!   write that cannot succeed is refused while that is still certain.

use super::{Action, Actions, Options, Outcome, Refusal, Token, tail::Tail};
use crate::clock::Instant64;
use kv_proto::{
    cluster_map::Configuration,
    ids::{Lsn, Member, NodeId},
    replication::{PeerBody, Position},
};
use std::collections::VecDeque;

/// Bytes of records in one Prepare, as they travel; a longer record travels alone. Small enough that a Prepare of
/// many records fits into a message whatever the limit of values is.
const PREPARE_BYTES: usize = 32 * 1024;

/// A leader's own state; log and watermarks are the replica's.
#[derive(Debug)]
pub(super) struct Leader {
    followers: Vec<Progress>,
    /// Who waits for which LSN to be committed, in the order of the log.
    waiters: VecDeque<(Lsn, Token)>,
    next_beacon: Instant64,
}

/// What the leader knows of a follower.
#[derive(Debug)]
struct Progress {
    member: Member,
    stream: Stream,
    /// When it last answered; means something only while there is a stream.
    last_heard: Instant64,
    /// Everything up to here is on its disk.
    flushed: Lsn,
}

/// The way to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// There is no connection.
    Lost,
    /// There is one, and it was asked what it has.
    Asked,
    /// It is sent what follows; `next` goes out next.
    Open { next: Lsn },
    /// What it says it has is not what this leader's log has.
    Diverged,
    /// There is a connection to the node, but it has another disk than the member.
    OtherDisk,
}

impl Progress {
    fn answers(&self, now: Instant64, options: &Options) -> bool {
        matches!(self.stream, Stream::Open { .. }) && now.since(self.last_heard) < options.suspect_after
    }
}

impl Leader {
    pub(super) fn new(configuration: &Configuration, now: Instant64) -> Self {
        let progress =
            |member: &Member| Progress { member: *member, stream: Stream::Lost, last_heard: now, flushed: Lsn(0) };
        Leader {
            followers: configuration.in_sync.iter().map(progress).collect(),
            waiters: VecDeque::new(),
            next_beacon: now,
        }
    }

    /// Whether a write would be taken now.
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
    pub(super) fn commit_point(&self, own_flushed: Lsn) -> Lsn {
        self.followers.iter().map(|f| f.flushed).fold(own_flushed, Lsn::min)
    }

    /// Answers everyone who waited for `committed` or less.
    pub(super) fn answer_waiters(&mut self, committed: Lsn, out: &mut Actions) {
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

    pub(super) fn handle_connected(&mut self, member: Member, committed: Lsn, out: &mut Actions) {
        let Some(follower) = self.followers.iter_mut().find(|f| f.member.node == member.node) else { return };
        if follower.member == member {
            follower.stream = Stream::Asked;
            out.push(Action::Send { to: member.node, body: PeerBody::Beacon { committed } });
        } else {
            follower.stream = Stream::OtherDisk;
        }
    }

    pub(super) fn handle_lost(&mut self, node: NodeId) {
        if let Some(follower) = self.followers.iter_mut().find(|f| f.member.node == node) {
            follower.stream = Stream::Lost;
        }
    }

    /// A follower says what it has.
    pub(super) fn handle_report(
        &mut self,
        now: Instant64,
        from: NodeId,
        prepared: Position,
        flushed: Lsn,
        tail: &Tail,
    ) {
        let Some(follower) = self.followers.iter_mut().find(|f| f.member.node == from) else { return };
        if flushed < follower.flushed {
            return; // said before what was heard already
        }
        if flushed > prepared.lsn || prepared.lsn > tail.last().lsn {
            // It has what was never written: its word is worth nothing.
            follower.stream = Stream::Diverged;
            return;
        }
        let next = match follower.stream {
            Stream::Lost | Stream::Diverged | Stream::OtherDisk => return,
            Stream::Asked => prepared.lsn.next(),
            // What it was sent on an earlier connection may arrive late: what it has is not sent again.
            Stream::Open { next } => next.max(flushed.next()),
        };
        if tail.position_at(prepared.lsn) != Some(prepared) {
            follower.stream = Stream::Diverged;
            return;
        }
        follower.stream = Stream::Open { next };
        follower.last_heard = now;
        follower.flushed = flushed;
    }

    /// A follower could not use a Prepare, since it has records only up to `prepared`: go on from there.
    pub(super) fn handle_gap(&mut self, from: NodeId, prepared: Position, tail: &Tail) {
        let Some(follower) = self.followers.iter_mut().find(|f| f.member.node == from) else { return };
        if let Stream::Open { next } = &mut follower.stream
            && prepared.lsn < *next
            && tail.position_at(prepared.lsn) == Some(prepared)
        {
            *next = prepared.lsn.next();
        }
    }

    /// The position up to which no follower needs the log any more.
    pub(super) fn needed_after(&self, committed: Lsn) -> Lsn {
        self.followers.iter().map(|f| f.flushed).fold(committed, Lsn::min)
    }

    pub(super) fn poll_timeout(&self) -> Instant64 {
        self.next_beacon
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
    }

    /// The next Prepare for `to`, if there is something that it was not sent yet.
    pub(super) fn poll_prepare(&mut self, to: NodeId, committed: Lsn, tail: &Tail) -> Option<PeerBody> {
        let follower = self.followers.iter_mut().find(|f| f.member.node == to)?;
        let Stream::Open { next } = &mut follower.stream else { return None };
        if *next > tail.last().lsn {
            return None;
        }
        let previous = tail.position_at(Lsn(next.0 - 1)).expect("what a follower lacks is held");
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = tail.get(*next) {
            bytes += record.wire_bytes();
            if bytes > PREPARE_BYTES && !records.is_empty() {
                break;
            }
            records.push(record.clone());
            *next = next.next();
        }
        Some(PeerBody::Prepare { previous, committed, records })
    }

    /// Why the leader cannot take writes, in a sentence.
    pub(super) fn trouble(&self, now: Instant64, options: &Options) -> Option<String> {
        let follower = self.followers.iter().find(|f| !f.answers(now, options))?;
        let node = follower.member.node;
        let effect = "writes are refused, reads go on";
        Some(match follower.stream {
            Stream::Lost => format!("no connection to follower {node}: {effect}"),
            Stream::Asked | Stream::Open { .. } => format!("follower {node} does not answer: {effect}"),
            Stream::Diverged => format!("follower {node} has other records than this leader: {effect}"),
            Stream::OtherDisk => format!("follower {node} was restarted and has lost what made it a member: {effect}"),
        })
    }
}
