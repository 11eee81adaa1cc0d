//! A write with an operation id is decided once, however often it is asked for.

use super::{
    tests::{Alone, DELETE, put, put_until, version},
    *,
};
use Condition::{Absent, Any, Present};
use Decision::{ConditionFailed, Missing, Proposed, TooOld};
use kv_proto::ids::ClientId;

fn id(sequence: u64) -> OperationId {
    OperationId { client: ClientId(7), sequence, known_lsn: Lsn(0) }
}

fn prepared(alone: &Alone) -> u64 {
    alone.partition.replica.prepared().lsn.0
}

#[test]
fn a_write_that_is_asked_for_again_while_it_is_pending_waits_for_it() {
    let mut alone = Alone::new();
    assert_eq!(alone.write_with(put(b"a"), Any, id(1)), Proposed(version(1)));
    assert_eq!(alone.write_with(put(b"b"), Any, id(2)), Proposed(version(2)));
    assert_eq!(alone.write_with(put(b"a"), Any, id(1)), Proposed(version(1)));
    assert_eq!(prepared(&alone), 2);
    assert_eq!(alone.flush(), [1, 2, 3]);
    assert_eq!(alone.value(), Some(&b"b"[..]));
}

#[test]
fn a_write_that_is_asked_for_again_later_has_its_first_answer() {
    let mut alone = Alone::new();
    // The next write comes before the answer is known, or after.
    for flush in [false, true] {
        let ask = |alone: &mut Alone, effect, condition, sequence| {
            let decision = alone.write_with(effect, condition, id(sequence));
            if flush {
                alone.flush();
            }
            decision
        };
        let at = prepared(&alone);
        let first = 10 * at;
        let asked = [
            (put(b"a"), Absent, Proposed(version(at + 1))),
            (put(b"b"), Absent, ConditionFailed(Some(version(at + 1)))),
            (DELETE, Present, Proposed(version(at + 3))),
            (DELETE, Any, Missing),
            (put(b"c"), Present, ConditionFailed(None)),
            (put(b"d"), Any, Proposed(version(at + 6))),
            (DELETE, Any, Proposed(version(at + 7))),
        ];
        for (sequence, (effect, condition, decision)) in (first..).zip(asked) {
            assert_eq!(ask(&mut alone, effect, condition, sequence), decision);
        }
        assert_eq!(prepared(&alone), at + 7, "what changed nothing has a record too");
        for (sequence, (effect, condition, decision)) in (first..).zip(asked) {
            assert_eq!(ask(&mut alone, effect, condition, sequence), decision, "again");
        }
        assert_eq!(prepared(&alone), at + 7);
        alone.flush();
        assert_eq!(alone.value(), None);
    }
    assert_eq!(alone.partition.operations().count(), 14);
}

#[test]
fn without_an_id_nothing_is_remembered_and_a_refusal_has_no_record() {
    let mut alone = Alone::new();
    assert_eq!(alone.write(DELETE, Any), Missing);
    assert_eq!(alone.write(put(b"a"), Any), Proposed(version(1)));
    assert_eq!(alone.write(put(b"a"), Absent), ConditionFailed(Some(version(1))));
    alone.flush();
    assert_eq!((prepared(&alone), alone.partition.operations().memory_bytes()), (1, 0));
}

#[test]
fn a_refusal_for_what_has_expired_is_answered_when_its_own_record_is_committed() {
    let mut alone = Alone::new();
    alone.write(put_until(2000, b"a"), Any);
    alone.flush();
    alone.wall_ms = 2000;
    assert_eq!(alone.write_with(put(b"b"), Present, id(1)), ConditionFailed(None));
    assert_eq!(prepared(&alone), 3, "the delete and the outcome");
    assert_eq!(alone.flush(), [2]);
    assert_eq!(alone.write_with(put(b"b"), Present, id(1)), ConditionFailed(None));
    assert_eq!(prepared(&alone), 3);
}

#[test]
fn what_may_have_been_forgotten_is_not_done_again() {
    let mut alone = Alone::with(recovery::Partition {
        operations: Operations::unknown_up_to(Lsn(2)),
        ..recovery::Partition::default()
    });
    for lsn in 1..=3 {
        alone.write(put(b"a"), Any);
        assert_eq!(prepared(&alone), lsn);
    }
    alone.flush();
    let known = |known_lsn| OperationId { known_lsn: Lsn(known_lsn), ..id(1) };
    assert_eq!(alone.write_with(put(b"b"), Any, known(1)), TooOld);
    assert_eq!(alone.write_with(put(b"b"), Any, known(4)), TooOld, "of another history");
    assert_eq!(prepared(&alone), 3);
    assert_eq!(alone.write_with(put(b"b"), Any, known(2)), Proposed(version(4)));
    assert_eq!(alone.write_with(put(b"b"), Any, known(1)), Proposed(version(4)), "it is there, however old");
}
