//! What is known of one key with any number of writers, in about a hundred bytes: enough to say of every key of a run whether
//! what was acknowledged is still there at its end.
//!
//! Where the store tells versions, the newest that was seen is what must be there, and every answer is held against the newest
//! that had been told before its call. Elsewhere those acknowledged writes *stand* that no other acknowledged write follows in
//! real time, that is, was called after they had returned: one of them was the last, and which one nobody can say.
//!
//! # Invariants
//! * What stands was acknowledged, was seen by a read, or was there at first. With versions of one history there is one of it.
//! * A write in doubt stays so until somebody sees it: it may be applied as late as it likes.
//! * Where a list is full, nothing is held against what it could have had.

use crate::{
    entry::{Entry, Mark},
    register::{Held, Initial},
    violation::Violation,
};
use kv_proto::ids::Version;

/// Most writes in doubt, writes that stand, and refused values that are told apart, each.
const MAX_LISTED: usize = 32;
/// Values that were overwritten last, and are remembered.
const PAST: usize = 2;

/// What a request is judged against when it returns. Taken before it is sent; of a request that is sent again, before the first
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    at: u64,
    newest: Option<Version>,
}

/// What is known of one key. Times are in microseconds, of one clock; a call's is taken before the request is sent, a return's
/// after the answer is there.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The write that stands; where there are several, one of them.
    newest: Option<Entry>,
    past: [Option<Entry>; PAST],
    /// The latest call of an acknowledged write.
    last_call: u64,
    /// The greatest number that this was told a write of.
    greatest: u64,
    /// What most keys never have.
    rest: Option<Box<Rest>>,
}

#[derive(Clone, Debug, Default)]
struct Rest {
    /// Writes that stand beside the newest.
    standing: Vec<Entry>,
    in_doubt: Vec<Held>,
    refused: Vec<u64>,
    /// A write in doubt, or one that stands, has no place in the lists.
    overflowed: bool,
    /// What was there at first is not known, and may be seen later.
    foreign: bool,
}

impl Ledger {
    /// Of a key that has this at first.
    #[must_use]
    pub fn new(initial: Initial) -> Self {
        let mut ledger = Ledger { newest: None, past: [None; PAST], last_call: 0, greatest: 0, rest: None };
        match initial {
            Initial::Absent => ledger.newest = Some(Entry::new(None, Mark::First)),
            Initial::Holds(number) => {
                ledger.newest = Some(Entry::new(Some(number), Mark::First));
                ledger.greatest = number;
            }
            Initial::Unknown => ledger.rest().foreign = true,
        }
        ledger
    }

    /// A request is about to be sent.
    #[must_use]
    pub fn call(&self, at: u64) -> Called {
        Called { at, newest: self.newest.and_then(Entry::version) }
    }

    /// A put was acknowledged, or a delete that found something; where there are no versions also one that does not say what it
    /// found. (Where there are, such a delete is [in doubt](Self::in_doubt).)
    ///
    /// # Errors
    /// What cannot have happened. The ledger goes on with what it was told.
    pub fn wrote(
        &mut self,
        called: Called,
        returned: u64,
        held: Held,
        version: Option<Version>,
    ) -> Result<(), Violation> {
        self.told_of(held);
        let verdict = self.bound(held, version).and_then(|()| match (version, called.newest) {
            (Some(version), Some(newest)) if is_before_or_same(version, newest) => {
                Err(Violation::NotNewer { held, version, newest })
            }
            _ => Ok(()),
        });
        self.follow(called.at, returned);
        match version {
            Some(version) => self.saw_version(held, version),
            // It may be told late: after one that was called when it had returned.
            None if self.last_call > returned => {}
            None => self.stands(Entry::new(held, Mark::Returned(returned))),
        }
        self.last_call = self.last_call.max(called.at);
        verdict
    }

    /// A write may have been applied, or may be yet.
    pub fn in_doubt(&mut self, held: Held) {
        self.told_of(held);
        // Who was seen with a version has happened, and once.
        let seen = |entry: &Entry| held.is_some() && entry.held() == held && entry.version().is_some();
        if self.newest.iter().chain(self.past.iter().flatten()).any(seen) {
            return;
        }
        let rest = self.rest();
        if rest.in_doubt.contains(&held) {
            return;
        }
        if rest.in_doubt.len() < MAX_LISTED {
            rest.in_doubt.push(held);
        } else {
            rest.overflowed = true;
        }
    }

    /// A write was refused, and is said to have changed nothing.
    pub fn refused(&mut self, held: Held) {
        self.told_of(held);
        let Some(number) = held else { return };
        let rest = self.rest();
        if rest.refused.len() < MAX_LISTED {
            rest.refused.push(number);
        }
    }

    /// A read was answered; a delete that found nothing, too.
    ///
    /// # Errors
    /// What cannot have happened.
    pub fn read(
        &mut self,
        called: Called,
        returned: u64,
        held: Held,
        version: Option<Version>,
    ) -> Result<(), Violation> {
        self.bound(held, version)?;
        self.not_refused(held, version)?;
        if let Some(version) = version {
            if let Some(newest) = called.newest.filter(|newest| is_before(version, *newest)) {
                return Err(Violation::Stale { held, version: Some(version), newest: Some(newest) });
            }
            self.saw_version(held, version);
            return Ok(());
        }
        let is_stale = |entry: &&Entry| entry.held() == held && entry.overwritten().is_some_and(|at| at < called.at);
        if held.is_some() && self.past.iter().flatten().any(|entry| is_stale(&entry)) {
            return Err(Violation::Stale { held, version: None, newest: None });
        }
        if held.is_some() && self.take_from_doubt(held) {
            self.stands(Entry::new(held, Mark::Returned(returned)));
        }
        Ok(())
    }

    /// What is there after everything has returned.
    ///
    /// # Errors
    /// What cannot be.
    pub fn audit(&mut self, held: Held, version: Option<Version>) -> Result<(), Violation> {
        self.bound(held, version)?;
        self.not_refused(held, version)?;
        if let (Some(version), Some(newest)) = (version, self.newest)
            && newest.version().is_some_and(|newest| is_before(version, newest))
        {
            return Err(self.lost(newest, held, Some(version)));
        }
        if !self.may_be(held, version) {
            let never = held.filter(|number| *number > self.greatest && !self.is_foreign());
            return Err(match (self.newest, never, held, version) {
                (_, Some(number), ..) => Violation::NeverWritten { value: number, version },
                // Nobody was told of a write that made this version, and it is not the one that was acknowledged.
                (_, None, Some(number), Some(_)) => Violation::NeverWritten { value: number, version },
                (Some(newest), ..) => self.lost(newest, held, version),
                (None, ..) => return Ok(()),
            });
        }
        if let Some(version) = version {
            self.saw_version(held, version);
        }
        Ok(())
    }

    /// Whether an audit can hold nothing against what it does not know: more was in doubt than is remembered.
    #[must_use]
    pub fn is_lenient(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.overflowed)
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    fn told_of(&mut self, held: Held) {
        self.greatest = self.greatest.max(held.unwrap_or(0));
    }

    fn is_foreign(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.foreign)
    }

    fn lost(&self, newest: Entry, found: Held, found_version: Option<Version>) -> Violation {
        Violation::Lost { acknowledged: newest.held(), version: newest.version(), found, found_version }
    }

    fn not_refused(&self, held: Held, version: Option<Version>) -> Result<(), Violation> {
        match held {
            Some(value) if self.rest.as_ref().is_some_and(|rest| rest.refused.contains(&value)) => {
                Err(Violation::NeverWritten { value, version })
            }
            _ => Ok(()),
        }
    }

    /// One version has one value, and one value has one version.
    fn bound(&self, held: Held, version: Option<Version>) -> Result<(), Violation> {
        let Some(version) = version else { return Ok(()) };
        for known in self.standing().chain(self.past.iter().flatten()) {
            let Some(other) = known.version().filter(|other| other.history == version.history) else { continue };
            if other == version && known.held() != held {
                return Err(Violation::TwoValues { version, values: [known.held(), held] });
            }
            if let Some(value) = held.filter(|_| other != version && known.held() == held) {
                return Err(Violation::AppliedTwice { value, versions: [other.min(version), other.max(version)] });
            }
        }
        Ok(())
    }

    fn standing(&self) -> impl Iterator<Item = &Entry> {
        self.newest.iter().chain(self.rest.iter().flat_map(|rest| &rest.standing))
    }

    /// Whether an audit may find this, which is not older than what stands.
    fn may_be(&self, held: Held, version: Option<Version>) -> bool {
        let other_history = |newest: Version| version.is_some_and(|version| version.history != newest.history);
        let Some(newest) = self.newest else { return true };
        // What has a newer version than the one that stands is something else, and so in doubt.
        self.standing().any(|entry| entry.held() == held)
            || newest.version().is_some_and(other_history)
            || self.rest.as_ref().is_some_and(|rest| rest.overflowed || rest.in_doubt.contains(&held))
    }

    /// Whether this was in doubt, in which it is no longer.
    fn take_from_doubt(&mut self, held: Held) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        let before = rest.in_doubt.len();
        rest.in_doubt.retain(|other| *other != held);
        rest.in_doubt.len() < before
    }

    /// Somebody saw this value or made it.
    fn saw_version(&mut self, held: Held, version: Version) {
        if held.is_some() {
            self.take_from_doubt(held);
        }
        let entry = Entry::new(held, Mark::Version(version));
        let Some(newest) = self.newest else {
            self.newest = Some(entry);
            return;
        };
        match newest.mark() {
            Mark::Version(known) if known == version => {}
            Mark::Version(known) if is_before(version, known) => self.remember(entry),
            Mark::Version(known) => {
                self.newest = Some(entry);
                if known.history == version.history {
                    self.remember(newest);
                } else {
                    self.past = [None; PAST];
                }
            }
            // What was there at first, or is the same value, of which nobody had told the version.
            _ if newest.mark() == Mark::First || newest.held() == held => self.newest = Some(entry),
            _ => self.stands(entry),
        }
    }

    /// An acknowledged write was called and had returned by these times: what had returned before its call, and tells no version,
    /// stands no more.
    fn follow(&mut self, called: u64, returned: u64) {
        let followed = |entry: &Entry| match entry.mark() {
            Mark::First => true,
            Mark::Returned(at) => at < called,
            Mark::Version(_) | Mark::Overwritten(_) => false,
        };
        if let Some(over) = self.newest.take_if(|entry| followed(entry)) {
            self.remember(Entry::new(over.held(), Mark::Overwritten(returned)));
        }
        let Some(rest) = &mut self.rest else { return };
        let over: Vec<Entry> = rest.standing.extract_if(.., |entry| followed(entry)).collect();
        if self.newest.is_none() {
            self.newest = rest.standing.pop();
        }
        for entry in over {
            self.remember(Entry::new(entry.held(), Mark::Overwritten(returned)));
        }
    }

    fn stands(&mut self, entry: Entry) {
        if self.newest.is_none() {
            self.newest = Some(entry);
            return;
        }
        let rest = self.rest();
        if rest.standing.len() < MAX_LISTED {
            rest.standing.push(entry);
        } else {
            rest.overflowed = true;
        }
    }

    /// Keeps a value that is not there any more, and forgets the one that was kept longest.
    fn remember(&mut self, entry: Entry) {
        let known = self.past.iter().flatten().any(|other| other.held() == entry.held());
        if entry.held().is_some() && !known {
            self.past.rotate_right(1);
            self.past[0] = Some(entry);
        }
    }
}

fn is_before(version: Version, newest: Version) -> bool {
    version.history == newest.history && version.lsn < newest.lsn
}

fn is_before_or_same(version: Version, newest: Version) -> bool {
    version.history == newest.history && version.lsn <= newest.lsn
}

#[cfg(test)]
mod tests;
