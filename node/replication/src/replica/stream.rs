//! What a leader knows of one follower or learner, and the way to it.
//!
//! # Invariants
//! * What a follower said counts on the connection that it was said on: the next one begins by asking.
//! * Of what a follower has flushed, only what is in the leader's log counts.
//! * At most one read of the log is under way, and at most one read's records wait to be sent.

use super::{Action, Actions, Options, tail::Tail};
use crate::clock::Instant64;
use kv_proto::{
    ids::{Lsn, Member},
    replication::{Basis, PeerBody, Position, Record},
};
use std::{collections::VecDeque, time::Duration};

/// What a follower says it has, see [`PeerBody::Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) prepared: Position,
    pub(super) flushed: Lsn,
    pub(super) applied: Lsn,
    pub(super) answers: u64,
    pub(super) basis: Basis,
}

/// What the leader knows of a follower.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) member: Member,
    pub(super) stream: Stream,
    /// What it last said on this connection while the leader reconciled.
    pub(super) report: Option<Report>,
    /// When it last answered, or when the leader began to wait for it.
    last_heard: Instant64,
    /// Whether there was a connection since then.
    was_connected: bool,
    /// When the newest beacon that it answered was sent.
    pub(super) granted: u64,
    /// Everything of the leader's log up to here is on its disk.
    pub(super) flushed: Lsn,
    /// Since when something that it was sent is not on its disk, or when it last flushed some of that.
    flushes_since: Option<Instant64>,
    /// Whether it last said that it has nothing but what is in the leader's log, on a table that is on its disk.
    pub(super) sound: bool,
    /// The stamp that the last copy of the table that it was sent ended with: what it said before it had that means nothing.
    copied: u64,
    /// Whether it was sent what follows the base of the log on the guess that it has that, and whether it has not.
    guess: Guess,
    /// Whether the log is being read for it.
    reading: bool,
    /// What was read and waits to be sent: the position before it, and the records.
    read: Option<(Position, VecDeque<Record>)>,
}

/// Whether a follower has the base of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    None,
    Made,
    Wrong,
}

/// The way to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// There is no connection.
    Lost,
    /// There is one, and it was asked what it has.
    Asked,
    /// It is sent what follows.
    Open {
        /// What goes out next.
        next: Lsn,
        /// Whether it has to be told that what it has is the leader's, even if nothing is new.
        confirm: bool,
    },
    /// It has what the leader has not.
    Diverged,
    /// What it needs is neither in memory nor in the log any more.
    NeedsCopy,
    /// It is sent a copy of the table.
    Copying,
    /// There is a connection to the node, but it has another disk than the member.
    OtherDisk,
}

impl Progress {
    pub(super) fn new(member: Member, now: Instant64) -> Self {
        Progress {
            member,
            stream: Stream::Lost,
            report: None,
            last_heard: now,
            was_connected: false,
            granted: 0,
            flushed: Lsn(0),
            flushes_since: None,
            sound: false,
            copied: 0,
            guess: Guess::None,
            reading: false,
            read: None,
        }
    }

    /// Whether it was heard lately.
    pub(super) fn answers(&self, now: Instant64, options: &Options) -> bool {
        self.hears() && self.silence(now) < options.suspect_after
    }

    /// Whether the leader had better go on without it. The leader itself was awake since `awake`; whoever was not connected
    /// yet has until `patience`.
    pub(super) fn is_gone(&self, now: Instant64, awake: Instant64, patience: Instant64, options: &Options) -> bool {
        let since = |earlier: Instant64| now.since(earlier.max(awake));
        match self.stream {
            Stream::OtherDisk | Stream::Diverged | Stream::NeedsCopy | Stream::Copying => true,
            Stream::Lost if self.was_connected => true,
            _ => {
                (self.was_connected || now >= patience) && since(self.last_heard) >= options.suspect_after
                    || self.flushes_since.is_some_and(|at| since(at) >= options.flush_within)
            }
        }
    }

    /// How long it has said nothing.
    pub(super) fn silence(&self, now: Instant64) -> Duration {
        now.since(self.last_heard)
    }

    /// Whether it is sent beacons.
    pub(super) fn hears(&self) -> bool {
        matches!(self.stream, Stream::Asked | Stream::Open { .. } | Stream::Copying)
    }

    /// There is a new connection, to whoever `member` is.
    pub(super) fn handle_connected(&mut self, member: Member, disks: bool) {
        self.handle_lost();
        self.was_connected = true;
        self.stream = if self.member == member || !disks { Stream::Asked } else { Stream::OtherDisk };
    }

    pub(super) fn handle_lost(&mut self) {
        self.stream = Stream::Lost;
        self.guess = Guess::None;
        self.report = None;
        self.read = None;
        self.flushes_since = None;
        self.sound = false;
    }

    /// It says what it has, while the leader does not know yet what its own log will be.
    pub(super) fn keep_report(&mut self, now: Instant64, report: Report) {
        if self.hear(now, report) {
            self.report = Some(report);
        }
    }

    /// It says what it has of the leader's log.
    pub(super) fn handle_report(&mut self, now: Instant64, report: Report, tail: &Tail) {
        if !self.hear(now, report) {
            return;
        }
        let ours = tail.position_at(report.prepared.lsn) == Some(report.prepared);
        let after_copy = report.answers > self.copied;
        self.sound = ours && report.basis == Basis::Table && after_copy;
        match &mut self.stream {
            // The first on a connection is believed even if it has less than before: it may have lost what was
            // acknowledged while it was in memory only.
            Stream::Asked => self.open(report, tail),
            Stream::Open { .. } if report.basis == Basis::Nothing && !after_copy => {}
            Stream::Open { .. } if report.basis == Basis::Nothing => self.stream = Stream::NeedsCopy,
            Stream::Open { next, .. } if ours && report.flushed > self.flushed => {
                self.flushed = report.flushed;
                // What it was sent on an earlier connection may arrive late: it is not sent again.
                *next = (*next).max(report.flushed.next());
                let has_all = self.flushed.next() >= *next;
                self.flushes_since = (!has_all).then_some(now);
            }
            _ => {}
        }
    }

    /// Whether it is to be heard.
    fn hear(&mut self, now: Instant64, report: Report) -> bool {
        if !self.hears() {
            return false;
        }
        if report.flushed > report.prepared.lsn || report.applied > report.flushed {
            self.stream = Stream::Diverged;
            return false;
        }
        self.last_heard = now;
        self.granted = self.granted.max(report.answers);
        true
    }

    /// Begins to stream what it lacks by its report. If its last record is not in the log, it has the log at least as
    /// far as it has applied it, of which it knows only a part after a restart. It also has it as far as nobody was thought to
    /// need it any more, unless it lost what it had acknowledged from memory. That is tried first: what is before it may be
    /// in no log any more.
    pub(super) fn open(&mut self, report: Report, tail: &Tail) {
        let last = tail.last();
        (self.report, self.read, self.flushes_since) = (None, None, None);
        self.sound = false;
        if report.basis == Basis::Nothing {
            self.stream = Stream::NeedsCopy;
        } else if tail.position_at(report.prepared.lsn) == Some(report.prepared) {
            let confirm = report.prepared.lsn > report.applied;
            self.stream = Stream::Open { next: report.prepared.lsn.next(), confirm };
            self.flushed = report.flushed;
            self.sound = report.basis == Basis::Table && report.answers > self.copied;
        } else if report.prepared > last || report.applied >= last.lsn {
            self.stream = Stream::Diverged;
        } else {
            let base = tail.base().lsn;
            let guesses = self.guess != Guess::Wrong && (report.applied.next()..report.prepared.lsn).contains(&base);
            let before = if guesses { base } else { report.applied };
            if guesses {
                self.guess = Guess::Made;
            }
            self.stream = Stream::Open { next: before.next(), confirm: guesses };
            self.flushed = report.applied;
        }
    }

    /// It could not use a Prepare, since it has records only up to `prepared`: goes on from there. If that is not in the
    /// log, it is asked what it has, by the next beacon: not at once, so that no fault makes the two go round and round.
    pub(super) fn handle_gap(&mut self, prepared: Position, tail: &Tail) {
        let Stream::Open { next, .. } = &mut self.stream else { return };
        if tail.position_at(prepared.lsn) != Some(prepared) {
            self.stream = Stream::Asked;
            if self.guess == Guess::Made {
                self.guess = Guess::Wrong;
            }
        } else if prepared.lsn < *next {
            *next = prepared.lsn.next();
        }
    }

    /// If what goes out next is not in memory, has it read.
    pub(super) fn maybe_read(&mut self, tail: &Tail, out: &mut Actions) {
        let Stream::Open { next, .. } = self.stream else { return };
        if next > tail.base().lsn || self.reading {
            return;
        }
        if self.read.as_ref().is_none_or(|(previous, records)| previous.lsn.next() != next || records.is_empty()) {
            self.read = None;
            self.reading = true;
            out.push(Action::ReadLog { to: self.member.node, after: Lsn(next.0 - 1) });
        }
    }

    /// It is to be sent a copy of the table, decided on with this stamp.
    pub(super) fn begin_copy(&mut self, stamp: u64) {
        (self.stream, self.copied, self.sound) = (Stream::Copying, stamp, false);
    }

    /// What it has is to be asked again.
    pub(super) fn ask_anew(&mut self) {
        (self.stream, self.flushes_since) = (Stream::Asked, None);
    }

    /// Whether something that it was sent seems to have got lost.
    pub(super) fn is_stuck(&self, now: Instant64, options: &Options) -> bool {
        self.flushes_since.is_some_and(|at| now.since(at) >= options.flush_within)
    }

    /// A copy of the table up to `start` was sent, the last of it before a beacon with this stamp.
    pub(super) fn handle_copy_sent(&mut self, start: Lsn, stamp: u64) {
        if self.stream == Stream::Copying {
            self.copied = stamp;
            self.stream = Stream::Open { next: start.next(), confirm: false };
        }
    }

    /// The record after which it has to be sent what is not in memory.
    pub(super) fn needs_log_after(&self, base: Lsn) -> Option<Lsn> {
        let Stream::Open { next, .. } = self.stream else { return None };
        (next <= base).then(|| Lsn(next.0 - 1))
    }

    /// The log was read.
    pub(super) fn handle_log_read(&mut self, previous: Position, records: Vec<Record>, tail: &Tail) {
        self.reading = false;
        let (Stream::Open { next, .. }, base) = (self.stream, tail.base().lsn) else { return };
        if next > base || previous.lsn.0 != next.0 - 1 {
            return; // What it needs has changed meanwhile.
        }
        let records = committed_of(records, base);
        if records.is_empty() {
            self.stream = Stream::NeedsCopy;
        }
        self.read = Some((previous, records.into()));
    }

    /// The next Prepare, if there is something that it was not sent yet.
    pub(super) fn poll_prepare(
        &mut self,
        now: Instant64,
        committed: Lsn,
        tail: &Tail,
        limit: usize,
    ) -> Option<PeerBody> {
        let Stream::Open { next, confirm } = &mut self.stream else { return None };
        let before = Lsn(next.0 - 1);
        let (previous, records) = if let Some(previous) = tail.position_at(before) {
            (previous, first_of(tail.after(before), limit))
        } else {
            let (previous, read) = self.read.as_mut().filter(|(previous, _)| previous.lsn == before)?;
            let records = first_of(read.iter(), limit);
            read.drain(..records.len());
            let before = *previous;
            *previous = records.last()?.position;
            (before, records)
        };
        if records.is_empty() && !*confirm {
            return None;
        }
        *confirm = false;
        if !records.is_empty() {
            self.flushes_since.get_or_insert(now);
        }
        *next = records.last().map_or(*next, |r| r.position.lsn.next());
        Some(PeerBody::Prepare { previous, committed, records })
    }
}

/// Those of the records up to `base`. A read of the log may be older than a cut of what follows.
pub(super) fn committed_of(mut records: Vec<Record>, base: Lsn) -> Vec<Record> {
    records.retain(|record| record.position.lsn <= base);
    records
}

/// The first of these records, as many as may travel in one message.
pub(super) fn first_of<'a>(records: impl Iterator<Item = &'a Record>, limit: usize) -> Vec<Record> {
    let mut bytes = 0;
    let fits = records.enumerate().take_while(|(at, record)| {
        bytes += record.wire_bytes();
        *at == 0 || bytes <= limit
    });
    fits.map(|(_, record)| record.clone()).collect()
}
