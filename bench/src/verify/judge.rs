//! Tells the ledgers and histories of all keys what was asked and answered.
//!
//! # Invariants
//! * A write is told as what it came to over all its attempts: acknowledged, refused, or in doubt.
//! * Of a key whose history is kept, at most [`MAX_CALLS`] requests are under way, since the search for an order grows with what
//!   overlaps; but for loads, audits, and the further keys of scans and batches.

use super::verdict::Verdict;
use crate::{
    engine::{Action, Ended, Expected, Ns},
    lock::lock,
    workload::{Kind, Stamp, Values, Workload},
};
use kv_checker::{
    Offence, Violation,
    ledger::{Called, Ledger},
    register::{self, Checked, Held, History, Initial, Ticket},
};
use kv_client::proto::ids::{OperationId, Version};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Most requests under way for a key whose history is kept.
const MAX_CALLS: u32 = 8;
/// Most operations of one history, and of all of them.
const MAX_HISTORY: usize = 20_000;
const MAX_HISTORIES: usize = 2_000_000;
/// Locks over the keys.
const SHARDS: usize = 256;
/// Stands for every value that was not written by this run.
const FOREIGN: u64 = u64::MAX;
/// Most threads that check histories: each may take some hundred megabytes.
const MAX_THREADS: usize = 4;
/// Most findings that are kept in words.
const MAX_WORDS: usize = 100;

/// What a request is judged by.
#[derive(Debug)]
pub(crate) struct Trace {
    /// When it is asked no more.
    pub(crate) give_up: Ns,
    /// Over all attempts of a write.
    pub(crate) operation_id: Option<OperationId>,
    /// Whether an attempt may have been applied.
    pub(crate) is_open: bool,
    /// `None` until it is asked for the first time.
    called: Option<(Called, u64)>,
    ticket: Option<Ticket>,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judged {
    pub(crate) is_open: bool,
    /// The number of the value that was read.
    pub(crate) held: Held,
}

pub(crate) struct Judge {
    /// Tells the values of this run from those of others.
    run: u32,
    shards: Box<[Mutex<HashMap<u32, Known>>]>,
    /// Histories are kept of keys whose numbers leave this rest by this divisor. (Not of number 0, which zipfian loads like most.)
    stride: u32,
    rest: u32,
    history_cap: usize,
    /// Whether versions can be held against time.
    has_versions: bool,
    /// Whether nothing is ever deleted, so that what was written once is never missing.
    keeps_all: bool,
    is_audit: AtomicBool,
    /// The keys, once nothing new is asked.
    known: Mutex<Option<Arc<Vec<u32>>>>,
    acknowledged: AtomicU64,
    audited: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    lost: u64,
    violations: u64,
    words: Vec<String>,
}

/// What is known of a key.
struct Known {
    ledger: Ledger,
    history: Option<Box<History>>,
    under_way: u32,
    /// When a write of this run was first known to be there, in microseconds: from then on no other value may be.
    ours_since: Option<u64>,
    is_lost: bool,
}

impl Trace {
    pub(crate) fn new(give_up: Ns) -> Trace {
        Trace { give_up, operation_id: None, is_open: false, called: None, ticket: None }
    }
}

impl Judge {
    /// Keeps the histories of about so many keys.
    pub(crate) fn new(workload: &Workload, histories: u32, has_versions: bool) -> Judge {
        let histories = histories.clamp(1, workload.count.max(1));
        let stride = workload.count.div_ceil(histories).max(1);
        Judge {
            run: rand::random(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            stride,
            rest: stride / 2,
            history_cap: (MAX_HISTORIES / histories as usize).clamp(16, MAX_HISTORY),
            has_versions,
            keeps_all: !workload.mix.contains(Kind::Delete),
            is_audit: AtomicBool::new(false),
            known: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            audited: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }

    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    fn with<T>(&self, key: u32, with: impl FnOnce(&mut Known) -> T) -> T {
        let mut shard = lock(&self.shards[key as usize % SHARDS]);
        let new = || Known {
            ledger: Ledger::new(Initial::Unknown),
            history: self.is_sampled(key).then(|| Box::new(History::new(Initial::Unknown, self.history_cap))),
            under_way: 0,
            ours_since: None,
            is_lost: false,
        };
        with(shard.entry(key).or_insert_with(new))
    }

    fn is_sampled(&self, key: u32) -> bool {
        key % self.stride == self.rest
    }

    /// The keys of which anything was asked.
    pub(crate) fn keys(&self) -> Arc<Vec<u32>> {
        let mut known = lock(&self.known);
        let all = || {
            let mut keys: Vec<u32> =
                self.shards.iter().flat_map(|shard| lock(shard).keys().copied().collect::<Vec<_>>()).collect();
            keys.sort_unstable();
            Arc::new(keys)
        };
        Arc::clone(known.get_or_insert_with(all))
    }

    /// Whether a key may be asked for now.
    pub(crate) fn admits(&self, key: u32) -> bool {
        !self.is_sampled(key) || self.with(key, |known| known.under_way < MAX_CALLS)
    }

    /// A request for a key is under way, from here on until it has ended.
    pub(crate) fn enter(&self, key: u32) {
        if self.is_sampled(key) {
            self.with(key, |known| known.under_way += 1);
        }
    }

    /// A request is about to be sent, for the first time or again.
    pub(crate) fn called(&self, key: u32, action: &Action, trace: &mut Trace, at: Ns) {
        if trace.called.is_some() {
            return;
        }
        let at = at / 1000;
        let asked = match action {
            Action::Get => register::Action::Read(None),
            Action::Put { number, only_if, .. } => write(*number, only_if.as_deref()),
            Action::Delete => register::Action::Delete { found: None },
            Action::Increment => unreachable!("counters are not judged"),
        };
        self.with(key, |known| {
            trace.called = Some((known.ledger.call(at), at));
            trace.ticket = known.history.as_mut().and_then(|history| history.call(at, asked));
        });
    }

    /// Reads a value's stamp.
    pub(crate) fn read(&self, values: &Values, key: u32, value: &[u8], version: Option<Version>) -> Ended {
        // What another run has written is whole by other rules.
        let is_ours = Stamp::of(value).is_some_and(|(stamp, _)| stamp.run == self.run);
        if !is_ours {
            return Ended::Value { version, held: Some(FOREIGN) };
        }
        let held = match values.read_stamp(value) {
            Ok(stamp) if stamp.key != key => {
                return Ended::Damaged(format!("it has the value of key number {}", stamp.key));
            }
            Ok(stamp) => stamp.number,
            Err(damage) => return Ended::Damaged(damage.to_string()),
        };
        Ended::Value { version, held: Some(held) }
    }

    /// What a request came to that will not be asked again.
    pub(crate) fn ended(&self, key: u32, action: &Action, trace: Trace, ended: &Ended, now: Ns) -> Judged {
        let Trace { is_open, called, ticket, .. } = trace;
        let unknown = is_open || matches!(ended, Ended::Failed { unknown: true, .. });
        let judged =
            Judged { is_open: unknown, held: if let Ended::Value { held, .. } = ended { *held } else { None } };
        let (told, ordered) = (now.div_ceil(1000), |version: Option<Version>| version.filter(|_| self.has_versions));
        let is_audit = self.is_audit.load(Relaxed);
        let finding = self.with(key, |known| {
            known.under_way = known.under_way.saturating_sub(1);
            let (called, called_at) = called?;
            let is_ours = known.ours_since.is_some_and(|since| since < called_at);
            if matches!(ended, Ended::Written { .. }) {
                known.ours_since.get_or_insert(told);
            }
            let writes = if let Action::Put { number, .. } = action { Some(*number) } else { None };
            let read = |held| Seen::As(register::Action::Read(held));
            let (verdict, seen) = match (action, ended) {
                // The ledger knows nothing of what others wrote.
                (Action::Get, Ended::Value { held: Some(FOREIGN), .. }) => (Ok(()), read(Some(FOREIGN))),
                (Action::Get, Ended::Value { held, version }) if is_audit => {
                    (known.ledger.audit(*held, ordered(*version)), read(*held))
                }
                (Action::Get, Ended::Missing) if is_audit => (known.ledger.audit(None, None), read(None)),
                (Action::Get, Ended::Value { held, version }) => {
                    (known.ledger.read(called, told, *held, ordered(*version)), read(*held))
                }
                (_, Ended::Missing) => {
                    if writes.is_some() {
                        known.ledger.refused(writes);
                    }
                    (known.ledger.read(called, told, None, None), read(None))
                }
                (Action::Put { number, only_if, .. }, Ended::Written { version }) => {
                    let seen = Seen::As(write(*number, only_if.as_deref()));
                    (known.ledger.wrote(called, told, writes, ordered(*version)), seen)
                }
                (Action::Delete, Ended::Written { version }) => {
                    let seen = Seen::As(register::Action::Delete { found: Some(true) });
                    (known.ledger.wrote(called, told, None, ordered(*version)), seen)
                }
                (Action::Put { only_if: Some(expected), .. }, Ended::Conflict) => {
                    known.ledger.refused(writes);
                    let mismatch = |expected| Seen::As(register::Action::Mismatch { expected });
                    (Ok(()), expected.held.map_or(Seen::Nothing, mismatch))
                }
                _ if action.is_write() && unknown => {
                    known.ledger.in_doubt(writes);
                    (Ok(()), Seen::InDoubt)
                }
                _ if action.is_write() => {
                    known.ledger.refused(writes);
                    (Ok(()), Seen::Nothing)
                }
                _ => (Ok(()), Seen::Nothing),
            };
            if let (Some(history), Some(ticket)) = (&mut known.history, ticket) {
                match seen {
                    Seen::As(action) => history.returned(ticket, told, action),
                    Seen::InDoubt => history.in_doubt(ticket),
                    Seen::Nothing => history.refused(ticket),
                }
            }
            let finding = verdict.err().map(Finding::Violation).or(match ended {
                Ended::Damaged(cause) => Some(Finding::Damage(cause)),
                Ended::Value { held: Some(FOREIGN), .. } if is_ours => Some(Finding::Foreign),
                Ended::Missing if is_ours && self.keeps_all => Some(Finding::Gone),
                _ => None,
            });
            // A key is lost once, however often that is seen.
            let is_loss = finding.as_ref().is_some_and(Finding::is_loss);
            finding.filter(|_| !(is_loss && std::mem::replace(&mut known.is_lost, true)))
        });
        match ended {
            Ended::Written { .. } => drop(self.acknowledged.fetch_add(1, Relaxed)),
            Ended::Value { .. } | Ended::Missing if is_audit => drop(self.audited.fetch_add(1, Relaxed)),
            _ => {}
        }
        if let Some(finding) = finding {
            self.note(key, &finding);
        }
        judged
    }

    fn note(&self, key: u32, finding: &Finding<'_>) {
        let mut found = lock(&self.found);
        if finding.is_loss() {
            found.lost += 1;
        } else {
            found.violations += 1;
        }
        if found.words.len() < MAX_WORDS {
            found.words.push(format!("key number {key}: {finding}"));
        }
    }

    /// What is read from now on must be there for good.
    pub(crate) fn begin_audit(&self) {
        self.is_audit.store(true, Relaxed);
    }

    /// Checks the histories; what everything comes to. Takes a while.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let shares = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let checks: Vec<Verdict> = std::thread::scope(|scope| {
            let check = |share: usize| self.check_histories(self.shards.iter().skip(share).step_by(shares));
            let threads: Vec<_> = (0..shares).map(|share| scope.spawn(move || check(share))).collect();
            threads.into_iter().map(|thread| thread.join().expect("checks do not panic")).collect()
        });
        checks.into_iter().for_each(|check| verdict.add(check));
        let found = lock(&self.found);
        verdict.acked = self.acknowledged.load(Relaxed);
        verdict.audited = self.audited.load(Relaxed);
        verdict.not_audited = verdict.keys.saturating_sub(verdict.audited);
        (verdict.lost, verdict.violations) = (found.lost, found.lost + found.violations);
        verdict.findings.clone_from(&found.words);
        verdict
    }

    fn check_histories<'a>(&self, shards: impl Iterator<Item = &'a Mutex<HashMap<u32, Known>>>) -> Verdict {
        let mut verdict = Verdict::default();
        for shard in shards {
            for (key, known) in &*lock(shard) {
                verdict.keys += 1;
                verdict.lenient_keys += u64::from(known.ledger.is_lenient());
                let Some(history) = &known.history else { continue };
                verdict.histories += 1;
                verdict.histories_cut_off += u64::from(history.left_out() > 0);
                match history.check() {
                    Ok(Checked::Undecided) => verdict.histories_undecided += 1,
                    Ok(_) => verdict.history_operations += history.len() as u64,
                    Err(offence) => self.note(*key, &Finding::Offence(offence)),
                }
            }
        }
        verdict
    }
}

/// A write as a history has it.
fn write(number: u64, only_if: Option<&Expected>) -> register::Action {
    match only_if.and_then(|expected| expected.held) {
        Some(expected) => register::Action::Swap { expected, new: number },
        None => register::Action::Write(number),
    }
}

/// What a history is told.
enum Seen {
    As(register::Action),
    InDoubt,
    Nothing,
}

/// What cannot be.
enum Finding<'a> {
    Violation(Violation),
    /// A key that was written and is never deleted has no value.
    Gone,
    /// A key that was written has a value that this run has not written.
    Foreign,
    Damage(&'a str),
    Offence(Offence),
}

impl Finding<'_> {
    /// Whether the last write of the key is lost.
    fn is_loss(&self) -> bool {
        matches!(self, Finding::Gone | Finding::Violation(Violation::Lost { .. }))
    }
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Violation(violation) => write!(f, "{violation}"),
            Finding::Gone => f.write_str("there is nothing, though writes were acknowledged and nothing is ever deleted"),
            Finding::Foreign => f.write_str(
                "a value is there that is none of this run, after one of this run was acknowledged (does another program write \
                 these keys, or are its first bytes damaged?)",
            ),
            Finding::Damage(cause) => write!(f, "a value was damaged: {cause}"),
            Finding::Offence(offence) => write!(f, "its history cannot have happened in any order:\n{offence}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{KeyChoice, KeyNames, Kind, Mix, Sizes};

    /// Else the search for an order could take for ever.
    #[test]
    fn of_keys_whose_history_is_kept_only_so_many_requests_are_under_way() {
        let workload = Workload {
            mix: Mix::only(Kind::Get),
            keys: KeyChoice::Uniform,
            count: 100,
            names: KeyNames::default(),
            sizes: Sizes::fixed(64),
            scan_length: (1, 100),
            batch_size: 10,
            seed: 1,
        };
        for histories in [1, 7, 10, 100, 1000] {
            let judge = Judge::new(&workload, histories, true);
            let mut kept = 0;
            for key in 0..workload.count {
                (0..MAX_CALLS).for_each(|_| judge.enter(key));
                let has_history = judge.with(key, |known| known.history.is_some());
                assert_eq!(judge.admits(key), !has_history, "{histories} histories, key {key}");
                kept += u32::from(has_history);
            }
            assert!(kept > 0 && kept <= histories, "{kept} of {histories}");
        }
    }
}
