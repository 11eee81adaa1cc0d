//! The follower: takes Prepares from the leader of its epoch and says what it has on disk.
//!
//! # Invariants
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
    ids::Lsn,
    replication::{PeerBody, Position, Record},
};

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
}

impl Follower {
    pub(super) fn new(committed: Lsn) -> Self {
        Follower { matched: committed, reading: None, doubt: None }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.doubt.clone()
    }
}

impl Replica {
    pub(super) fn handle_prepare(
        &mut self,
        now: Instant64,
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
                follower.doubt = Some(format!(
                    "leader {leader} contradicts at LSN {lsn} what it said before, or what is committed on {me}"
                ));
                return;
            }
            Taken::Gap => {
                let body = PeerBody::Gap { prepared: self.log.last() };
                out.push(Action::Send { to: self.configuration.leader.node, body });
                return;
            }
            Taken::Appended | Taken::Nothing => {
                follower.doubt = None;
                follower.matched = follower.matched.max(last);
            }
        }
        self.follow_commit(committed, out);
        if taken == Taken::Nothing || !self.options.rules.flush_before_report {
            self.send_report(now, out);
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

    /// Says what is here. The leader may count on it as on a promise to follow no other for a while.
    pub(super) fn send_report(&mut self, now: Instant64, out: &mut Actions) {
        let prepared = self.log.last();
        let flushed = if self.options.rules.flush_before_report { self.log.flushed() } else { prepared.lsn };
        let Report { prepared, flushed, applied } = Report { prepared, flushed, applied: self.committed };
        self.last_promise = now;
        let body = PeerBody::Report { prepared, flushed, applied };
        out.push(Action::Send { to: self.configuration.leader.node, body });
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
