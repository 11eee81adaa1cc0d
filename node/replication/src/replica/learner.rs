//! The learner: a replica that is no member, and wants to be. It takes the leader's records as a follower does, and if what
//! it has cannot be used, or the leader's log does not reach back to it, a copy of the leader's table.
//!
//! A copy is made slice by slice while the table changes. It holds everything up to its start, and some of what was
//! written until its end: the log from the start on is applied to it, in order, and from the end on the table is whole. It counts
//! when it is on disk.
//!
//! # Invariants
//! * Only a learner gives up what it has, and only on the word of the leader of its epoch.
//! * A reset is in the log before anything that follows the copy's start.

use super::{Action, Actions, Replica, Role};
use crate::clock::Instant64;
use kv_proto::{
    ids::Lsn,
    replication::{Basis, Position},
};

/// A copy of the leader's table on its way here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// Parts are missing, this one first.
    Loading {
        /// Which copy it is.
        sent: u64,
        /// The number of the next part.
        next: u32,
    },
    /// All of it is in the table, and the table not on disk yet.
    Loaded {
        /// Its end.
        end: Lsn,
    },
}

impl Replica {
    /// Whether it takes part without being a member.
    pub(super) fn is_learner(&self) -> bool {
        matches!(self.role, Role::Follower(_)) && !self.configuration.is_member(self.me)
    }

    /// What the log here stands on.
    pub(super) fn basis(&self) -> Basis {
        match self.copy {
            _ if self.has_nothing() || self.is_loading() => Basis::Nothing,
            Some(_) => Basis::Copy,
            None => Basis::Table,
        }
    }

    /// Whether what is here cannot be used.
    pub(super) fn has_nothing(&self) -> bool {
        self.fault.is_some() || self.history.is_some_and(|history| history != self.configuration.history)
    }

    /// Whether parts of a copy are missing. They may never come, and what is applied before them could be undone by them: until
    /// then there is nothing here.
    pub(super) fn is_loading(&self) -> bool {
        matches!(self.copy, Some(Copy::Loading { .. }))
    }

    /// A copy begins, unless it comes late, when the leader may count on what is here again: see what it answered since.
    pub(super) fn handle_copy_begin(&mut self, now: Instant64, start: Position, sent: u64, out: &mut Actions) {
        let learner = self.is_learner();
        let Role::Follower(follower) = &mut self.role else { return };
        if !learner || start.epoch > self.configuration.epoch || !follower.begin_anew(start.lsn, sent) {
            return;
        }
        // Its stamp is said from now on as that of a beacon that was answered: so it is the same promise.
        (self.last_promise, self.has_promised) = (now, true);
        (self.fault, self.copy, self.committed) = (None, Some(Copy::Loading { sent, next: 0 }), start.lsn);
        (self.history, self.incomplete) = (Some(self.configuration.history), false);
        out.push(Action::ResetTable);
        self.log.reset(self.configuration.clone(), start, out);
    }

    /// Parts of other copies come late, and so may any part come again.
    pub(super) fn handle_copy_part(&mut self, of: u64, number: u32, bytes: Vec<u8>, out: &mut Actions) {
        match &mut self.copy {
            Some(Copy::Loading { sent, next }) if *sent == of && *next == number => {
                *next += 1;
                out.push(Action::LoadTable { bytes });
            }
            Some(Copy::Loading { sent, next }) if *sent == of && *next < number => self.give_up_copy(),
            _ => {}
        }
    }

    /// The copy ends, if it is `whole`.
    pub(super) fn handle_copy_end(&mut self, whole: Copy, end: Lsn, digest: u64, out: &mut Actions) {
        match (self.copy, whole) {
            (Some(loading), _) if loading == whole => {
                self.copy = Some(Copy::Loaded { end });
                out.push(Action::KeepTable { end, digest });
            }
            (Some(Copy::Loading { sent, .. }), Copy::Loading { sent: of, .. }) if sent == of => self.give_up_copy(),
            _ => {}
        }
    }

    /// The table that was loaded is on disk.
    pub(super) fn handle_copy_kept(&mut self, out: &mut Actions) {
        if let Some(Copy::Loaded { .. }) = self.copy {
            self.copy = None;
            self.send_report(out);
        }
    }

    /// A copy that was on its way will not be completed. Nor will one that some of what was written until its end is missing
    /// from, if that was lost from memory, and something else comes in its place.
    pub(super) fn give_up_copy(&mut self) {
        let is_partial = matches!(self.copy, Some(Copy::Loaded { end }) if self.committed < end);
        if self.is_loading() || is_partial {
            self.copy = None;
            self.fault = Some("its copy of the table was not completed".to_owned());
        }
    }

    /// What a learner waits for, in a sentence.
    pub(super) fn learning(&self) -> Option<String> {
        let Role::Follower(follower) = &self.role else { return None };
        let leader = self.configuration.leader.node;
        let missing = follower.leader_committed.0.saturating_sub(self.log.flushed().0);
        Some(match self.copy {
            _ if leader == self.me.node => format!(
                "{leader} leads the partition by the map, but with another data directory than this one: unless an in-sync \
                 follower takes over, what it had is lost without that"
            ),
            _ if self.fault.is_some() => {
                let fault = self.fault.as_deref().unwrap_or_default();
                format!("needs a copy of the table of leader {leader}: {fault}")
            }
            _ if self.has_nothing() => {
                format!("needs a copy of the table of leader {leader}: its data are of another history")
            }
            Some(Copy::Loading { .. }) => format!("receives a copy of the table of leader {leader}"),
            Some(Copy::Loaded { .. }) => {
                format!("received a copy of the table of leader {leader}, and brings it to disk")
            }
            None if missing > 0 => format!("catches up with leader {leader}: {missing} records are missing"),
            None => format!("waits to be added by leader {leader}"),
        })
    }
}
