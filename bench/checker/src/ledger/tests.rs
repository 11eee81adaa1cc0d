use super::*;
use kv_proto::ids::{HistoryId, Lsn};

fn v(lsn: u64) -> Option<Version> {
    other(1, lsn)
}

fn other(history: u32, lsn: u64) -> Option<Version> {
    Some(Version { history: HistoryId(history), lsn: Lsn(lsn) })
}

/// What a client does and sees, with the time of its call and of its return.
#[derive(Clone, Copy, Debug)]
enum Told {
    Wrote(u64, u64, Held, Option<Version>),
    Read(u64, u64, Held, Option<Version>),
    InDoubt(Held),
    Refused(Held),
    Audit(Held, Option<Version>),
}
use Told::{Audit, InDoubt, Read, Refused, Wrote};

/// The first violation. Calls are made at their times, and everything else is told at the time of its return.
fn judge(initial: Initial, told: &[Told]) -> Result<(), Violation> {
    let mut ledger = Ledger::new(initial);
    let mut calls = vec![None; told.len()];
    let mut events = Vec::new();
    let mut now = 0;
    for (at, what) in told.iter().enumerate() {
        if let Wrote(called, returned, ..) | Read(called, returned, ..) = what {
            events.push((*called, false, at));
            now = *returned;
        }
        events.push((now, true, at));
    }
    events.sort_unstable();
    for (time, returns, at) in events {
        if !returns {
            calls[at] = Some(ledger.call(time));
            continue;
        }
        let call = calls[at].unwrap_or_else(|| ledger.call(time));
        match told[at] {
            Wrote(_, returned, held, version) => ledger.wrote(call, returned, held, version)?,
            Read(_, returned, held, version) => ledger.read(call, returned, held, version)?,
            InDoubt(held) => ledger.in_doubt(held),
            Refused(held) => ledger.refused(held),
            Audit(held, version) => ledger.audit(held, version)?,
        }
    }
    Ok(())
}

#[test]
fn a_ledger_is_small() {
    assert!(size_of::<Ledger>() <= 100, "{} bytes", size_of::<Ledger>());
    let mut ledger = Ledger::new(Initial::Absent);
    for n in 1..100 {
        let call = ledger.call(10 * n);
        ledger.wrote(call, 10 * n + 5, Some(n), v(n)).expect("one after the other");
    }
    assert!(ledger.rest.is_none(), "nothing is allocated where all goes well");
}

#[test]
fn what_may_happen_is_accepted() {
    let absent = Initial::Absent;
    let good: &[(Initial, &[Told])] = &[
        (absent, &[Audit(None, None)]),
        (Initial::Holds(7), &[Read(1, 2, Some(7), v(3)), Audit(Some(7), v(3))]),
        (Initial::Unknown, &[Read(1, 2, Some(900), v(3)), Wrote(4, 5, Some(1), v(6)), Audit(Some(1), v(6))]),
        (Initial::Unknown, &[Audit(Some(900), None)]),
        // The one that is told last is the older one.
        (absent, &[Wrote(1, 9, Some(1), v(1)), Wrote(1, 5, Some(2), v(2)), Audit(Some(2), v(2))]),
        (absent, &[Wrote(1, 5, Some(1), v(1)), Wrote(6, 9, None, v(2)), Read(10, 11, None, None), Audit(None, None)]),
        // A read that was called before the newer value was known.
        (absent, &[Wrote(1, 5, Some(1), v(1)), Read(6, 20, Some(1), v(1)), Wrote(7, 9, Some(2), v(2))]),
        // In doubt: applied or not, seen or not.
        (absent, &[Wrote(1, 5, Some(1), v(1)), InDoubt(Some(2)), Audit(Some(1), v(1))]),
        (absent, &[Wrote(1, 5, Some(1), v(1)), InDoubt(Some(2)), Audit(Some(2), v(2))]),
        (absent, &[Wrote(1, 5, Some(1), v(1)), InDoubt(None), Audit(None, None)]),
        (absent, &[InDoubt(Some(2)), Read(6, 7, Some(2), v(2)), Audit(Some(2), v(2))]),
        // Another history has taken the place of the one that was known.
        (absent, &[Wrote(1, 5, Some(1), v(9)), Wrote(6, 7, Some(2), other(2, 3)), Audit(Some(2), other(2, 3))]),
        (absent, &[Wrote(1, 5, Some(1), v(9)), Audit(Some(1), other(2, 9))]),
        // Without versions: which of two that overlap was the last, nobody knows.
        (absent, &[Wrote(1, 5, Some(1), None), Wrote(4, 8, Some(2), None), Audit(Some(1), None)]),
        (absent, &[Wrote(1, 5, Some(1), None), Wrote(4, 8, Some(2), None), Audit(Some(2), None)]),
        (absent, &[Wrote(1, 5, Some(1), None), InDoubt(Some(2)), Audit(Some(2), None)]),
        (absent, &[Wrote(1, 5, Some(1), None), Wrote(6, 9, Some(2), None), Read(8, 9, Some(1), None)]),
        (absent, &[Wrote(1, 5, Some(1), None), Wrote(6, 9, None, None), Read(10, 11, None, None), Audit(None, None)]),
        (absent, &[Wrote(1, 5, Some(1), None), Refused(Some(2)), Audit(Some(1), None)]),
    ];
    for (initial, told) in good {
        assert_eq!(judge(*initial, told), Ok(()), "{told:?}");
    }
}

#[test]
fn what_cannot_happen_has_a_name_and_a_sentence() {
    let bad: &[(&[Told], &str)] = &[
        (
            &[Wrote(1, 5, Some(1), v(4)), Audit(None, None)],
            "value 1 with version 1-4 was acknowledged or read, and is lost: the key has nothing",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Wrote(6, 7, Some(2), v(5)), Audit(Some(1), v(4))],
            "value 2 with version 1-5 was acknowledged or read, and is lost: the key has value 1 with version 1-4",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Wrote(6, 7, None, v(5)), Audit(Some(1), v(4))],
            "nothing with version 1-5 was acknowledged or read, and is lost: the key has value 1 with version 1-4",
        ),
        (
            &[InDoubt(Some(2)), Read(6, 7, Some(2), v(2)), Audit(None, None)],
            "value 2 with version 1-2 was acknowledged or read, and is lost: the key has nothing",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Audit(Some(3), v(5))],
            "value 3 with version 1-5 is there, which was never written, or not by a write that can be the last",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Wrote(6, 7, Some(2), v(5)), Read(8, 9, Some(1), v(4))],
            "a read found value 1 with version 1-4, though version 1-5 was known before it was called",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Wrote(6, 7, Some(2), v(3))],
            "a write of value 2 got version 1-3, though version 1-4 was known before it was called",
        ),
        (&[Wrote(1, 5, Some(1), v(4)), Read(6, 7, Some(2), v(4))], "version 1-4 is of value 1 and of value 2"),
        (
            &[Wrote(1, 5, Some(1), v(4)), Wrote(6, 7, Some(2), v(5)), Audit(Some(1), v(6))],
            "value 1 was written once and applied twice, as versions 1-4 and 1-6",
        ),
        (
            &[Wrote(1, 5, Some(1), v(4)), Refused(Some(2)), Read(6, 7, Some(2), v(5))],
            "value 2 with version 1-5 is there, which was never written, or not by a write that can be the last",
        ),
        (
            &[Wrote(1, 5, Some(1), None), Audit(None, None)],
            "value 1 was acknowledged or read, and is lost: the key has nothing",
        ),
        (
            &[Wrote(1, 5, Some(1), None), Wrote(6, 7, Some(2), None), Audit(Some(1), None)],
            "value 2 was acknowledged or read, and is lost: the key has value 1",
        ),
        (
            &[Wrote(1, 5, Some(1), None), Wrote(6, 7, Some(2), None), Read(8, 9, Some(1), None)],
            "a read found value 1, though a later write was known before it was called",
        ),
        (
            &[Wrote(1, 5, Some(1), None), Audit(Some(9), None)],
            "value 9 is there, which was never written, or not by a write that can be the last",
        ),
    ];
    for (told, sentence) in bad {
        let violation = judge(Initial::Absent, told).expect_err(sentence);
        assert_eq!(violation.to_string(), *sentence, "{told:?}");
    }
}

/// Threads tell what they know in any order: the older of two writes may come last.
#[test]
fn what_is_told_late_does_not_stand() {
    let mut ledger = Ledger::new(Initial::Absent);
    let (first, second) = (ledger.call(1), ledger.call(6));
    assert_eq!(ledger.wrote(second, 9, Some(2), None), Ok(()));
    assert_eq!(ledger.wrote(first, 5, Some(1), None), Ok(()));
    assert_eq!(ledger.clone().audit(Some(2), None), Ok(()));
    let lost = Violation::Lost { acknowledged: Some(2), version: None, found: Some(1), found_version: None };
    assert_eq!(ledger.audit(Some(1), None), Err(lost));
}

/// What does not fit into the lists is not held against anybody.
#[test]
fn many_writes_in_doubt_make_it_lenient() {
    let mut ledger = Ledger::new(Initial::Absent);
    let call = ledger.call(1);
    ledger.wrote(call, 2, Some(1), v(1)).expect("the first");
    (2..1_000).for_each(|n| ledger.in_doubt(Some(n)));
    assert!(ledger.is_lenient());
    assert_eq!(ledger.clone().audit(Some(900), v(2)), Ok(()));
    assert_eq!(ledger.clone().audit(None, None), Ok(()));
    let two = Violation::TwoValues { version: v(1).expect("one"), values: [Some(1), Some(5)] };
    assert_eq!(ledger.audit(Some(5), v(1)), Err(two));
}
