//! What a leader knows of one follower, and the way to it.
//!
//! # Invariants
//! * What a follower said counts on the connection that it was said on: the next one begins by asking.
//! * Of what a follower has flushed, only what is in the leader's log counts.
//! * At most one read of the log is under way, and at most one read's records wait to be sent.

use super::{Action, Actions, Options, tail::Tail};
use crate::clock::Instant64;
use kv_proto::{
    ids::{Lsn, Member},
    replication::{PeerBody, Position, Record},
};
use std::collections::VecDeque;

/// What a follower says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) prepared: Position,
    pub(super) flushed: Lsn,
    pub(super) applied: Lsn,
}

/// What the leader knows of a follower.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) member: Member,
    pub(super) stream: Stream,
    /// What it last said on this connection while the leader reconciled.
    pub(super) report: Option<Report>,
    /// When it last answered; means something only while there is a stream.
    last_heard: Instant64,
    /// Everything of the leader's log up to here is on its disk.
    pub(super) flushed: Lsn,
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
    /// What it says it has can't be.
    Diverged,
    /// What it needs is neither in memory nor in the log any more.
    NeedsCopy,
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
            flushed: Lsn(0),
            guess: Guess::None,
            reading: false,
            read: None,
        }
    }

    pub(super) fn answers(&self, now: Instant64, options: &Options) -> bool {
        matches!(self.stream, Stream::Open { .. }) && now.since(self.last_heard) < options.suspect_after
    }

    /// There is a new connection, to whoever `member` is: asks what it has.
    pub(super) fn handle_connected(&mut self, member: Member, committed: Lsn, out: &mut Actions) {
        self.handle_lost();
        if self.member == member {
            self.ask(committed, out);
        } else {
            self.stream = Stream::OtherDisk;
        }
    }

    pub(super) fn handle_lost(&mut self) {
        self.stream = Stream::Lost;
        self.guess = Guess::None;
        self.report = None;
        self.read = None;
    }

    pub(super) fn ask(&mut self, committed: Lsn, out: &mut Actions) {
        self.stream = Stream::Asked;
        out.push(Action::Send { to: self.member.node, body: PeerBody::Beacon { committed } });
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
        match &mut self.stream {
            // The first on a connection is believed even if it has less than before: it may have lost what was
            // acknowledged while it was in memory only.
            Stream::Asked => self.open(report, tail),
            Stream::Open { next, .. } => {
                let ours = tail.position_at(report.prepared.lsn) == Some(report.prepared);
                if ours && report.flushed > self.flushed {
                    self.flushed = report.flushed;
                    // What it was sent on an earlier connection may arrive late: it is not sent again.
                    *next = (*next).max(report.flushed.next());
                }
            }
            _ => {}
        }
    }

    /// Whether it is to be heard.
    fn hear(&mut self, now: Instant64, report: Report) -> bool {
        if !matches!(self.stream, Stream::Asked | Stream::Open { .. }) {
            return false;
        }
        if report.flushed > report.prepared.lsn || report.applied > report.flushed {
            self.stream = Stream::Diverged;
            return false;
        }
        self.last_heard = now;
        true
    }

    /// Begins to stream what it lacks by its report. If its last record is not in the log, it has the log at least as
    /// far as it has applied it, of which it knows only a part after a restart. It also has it as far as nobody was thought to
    /// need it any more, unless it lost what it had acknowledged from memory. That is tried first: what is before it may be
    /// in no log any more.
    pub(super) fn open(&mut self, report: Report, tail: &Tail) {
        let last = tail.last();
        (self.report, self.read) = (None, None);
        if tail.position_at(report.prepared.lsn) == Some(report.prepared) {
            let confirm = report.prepared.lsn > report.applied;
            self.stream = Stream::Open { next: report.prepared.lsn.next(), confirm };
            self.flushed = report.flushed;
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
    pub(super) fn poll_prepare(&mut self, committed: Lsn, tail: &Tail, limit: usize) -> Option<PeerBody> {
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
