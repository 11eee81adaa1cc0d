//! [`Ledger`], with what a register did.

use crate::turns::{Fate, Turns, shapes, version};
use kv_checker::{
    Violation,
    ledger::Ledger,
    register::{Action, Held, Initial},
};
use kv_proto::ids::Version;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The ledger of what clients saw, some of which is told a while after it returned.
fn ledger(turns: &Turns, versions: bool, initial: Initial) -> Result<Ledger, Violation> {
    let mut random = SmallRng::seed_from_u64(turns.end);
    let mut ledger = Ledger::new(initial);
    let mut calls = vec![ledger.call(0); turns.turns.len()];
    let mut events = Vec::new();
    for (at, turn) in turns.turns.iter().enumerate() {
        let returned = if let Fate::Returned(returned) = turn.fate { returned } else { turn.called + 50 };
        let told = returned + if random.random_range(0..4) == 0 { random.random_range(0..30) } else { 0 };
        events.extend([(turn.called, false, at), (told, true, at)]);
    }
    events.sort_unstable();
    for (time, returns, at) in events {
        if !returns {
            calls[at] = ledger.call(time);
            continue;
        }
        let (turn, call) = (&turns.turns[at], calls[at]);
        let version = turn.version.filter(|_| versions);
        let writes = match turn.action {
            Action::Write(new) | Action::Swap { new, .. } => Some(Some(new)),
            Action::Delete { .. } => Some(None),
            Action::Read(_) | Action::Mismatch { .. } => None,
        };
        match (turn.fate, turn.action, writes) {
            (Fate::Returned(returned), Action::Read(held), _) => {
                ledger.read(call, returned, held, version.filter(|_| held.is_some()))?;
            }
            (Fate::Returned(returned), Action::Delete { found: Some(false) }, _) => {
                ledger.read(call, returned, None, None)?;
            }
            // It does not say whether there was something, and so whether it made a version.
            (Fate::Returned(_), Action::Delete { found: None }, _) if versions => ledger.in_doubt(None),
            (Fate::Returned(returned), _, Some(held)) => ledger.wrote(call, returned, held, version)?,
            (Fate::InDoubt, _, Some(held)) => ledger.in_doubt(held),
            (Fate::Refused, _, Some(held)) => ledger.refused(held),
            (_, _, None) => {}
        }
    }
    Ok(ledger)
}

/// A write of this value, after everything else.
fn write(ledger: &mut Ledger, turns: &mut Turns, value: u64, version: Option<Version>) {
    turns.end += 10;
    let call = ledger.call(turns.end);
    ledger.wrote(call, turns.end + 1, Some(value), version).expect("nothing is wrong with it");
}

/// Whether an audit can find this without anything being wrong, as far as the ledger knows.
fn explained(turns: &Turns, held: Held, versions: bool) -> bool {
    let unclear = |action: &Action| versions && held.is_none() && *action == Action::Delete { found: None };
    turns.may_yet_be(held) || turns.turns.iter().any(|turn| unclear(&turn.action))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_a_register_did_is_accepted(shape in shapes(1..150), versions: bool, unknown: bool) {
        let turns = Turns::of(shape);
        let initial = if unknown { Initial::Unknown } else { Initial::Absent };
        let mut ledger = match ledger(&turns, versions, initial) {
            Ok(ledger) => ledger,
            Err(violation) => return Err(TestCaseError::fail(violation.to_string())),
        };
        let found = turns.version.filter(|_| versions && turns.held.is_some());
        for _ in 0..2 {
            prop_assert_eq!(ledger.audit(turns.held, found), Ok(()));
        }
    }

    /// The last write was acknowledged, and at the end something else is there: what was there before it, nothing, or an earlier
    /// write's value.
    #[test]
    fn a_lost_write_is_noticed(shape in shapes(1..100), versions: bool, earlier: prop::sample::Index, kind in 0..3) {
        let mut turns = Turns::of(shape);
        let (found, found_version) = match (kind, *earlier.get(&turns.turns)) {
            (0, _) => (turns.held, turns.version),
            (1, turn) => match turn.action {
                Action::Write(value) => (Some(value), turn.version),
                _ => (None, None),
            },
            _ => (None, None),
        };
        let found_version = found_version.filter(|_| versions && found.is_some());
        // With versions what is in doubt explains only what is newer.
        let is_older = found_version.is_some();
        if !is_older && explained(&turns, found, versions) {
            return Ok(());
        }
        let mut ledger = ledger(&turns, versions, Initial::Absent).expect("what a register did");
        let newest = Some(version(1_000)).filter(|_| versions);
        write(&mut ledger, &mut turns, 10_000, newest);
        prop_assert_eq!(ledger.clone().audit(Some(10_000), newest), Ok(()));
        let verdict = ledger.audit(found, found_version);
        let lost = Violation::Lost { acknowledged: Some(10_000), version: newest, found, found_version };
        let refused = turns.turns.iter().any(|t| t.fate == Fate::Refused && t.action == Action::Write(found.unwrap_or(0)));
        match verdict {
            Err(Violation::NeverWritten { value, .. }) => prop_assert!(refused && Some(value) == found),
            other => prop_assert_eq!(other, Err(lost)),
        }
    }

    /// The last write is tried again and gets another version; or a later write takes its place, and then it is applied again.
    #[test]
    fn a_write_that_is_applied_twice_is_noticed(shape in shapes(1..100), covered: bool, in_run: bool) {
        let mut turns = Turns::of(shape);
        let mut ledger = ledger(&turns, true, Initial::Absent).expect("what a register did");
        write(&mut ledger, &mut turns, 10_000, Some(version(1_000)));
        if covered {
            write(&mut ledger, &mut turns, 10_001, Some(version(1_001)));
        }
        let again = Some(version(1_002));
        let verdict = if in_run {
            let call = ledger.call(turns.end + 5);
            ledger.read(call, turns.end + 6, Some(10_000), again)
        } else {
            ledger.audit(Some(10_000), again)
        };
        let versions: [Version; 2] = [version(1_000), version(1_002)];
        prop_assert_eq!(verdict, Err(Violation::AppliedTwice { value: 10_000, versions }));
    }

    /// Two writes, one after the other, and then a read of the first one's value.
    #[test]
    fn a_read_of_an_overwritten_value_is_noticed(shape in shapes(1..100), versions: bool) {
        let mut turns = Turns::of(shape);
        let mut ledger = ledger(&turns, versions, Initial::Absent).expect("what a register did");
        let of = |lsn| Some(version(lsn)).filter(|_| versions);
        write(&mut ledger, &mut turns, 10_000, of(1_000));
        write(&mut ledger, &mut turns, 10_001, of(1_001));
        let call = ledger.call(turns.end + 5);
        let verdict = ledger.read(call, turns.end + 6, Some(10_000), of(1_000));
        prop_assert_eq!(verdict, Err(Violation::Stale { held: Some(10_000), version: of(1_000), newest: of(1_001) }));
    }
}
