//! What `--verify` finds: every lie of a store, and nothing where there is none.

use crate::{
    servers::{Cheat, Cluster, Mood, Redis, Shape},
    tool::{Ran, run_json},
};

/// Few keys, so that requests collide, and many, most of which are not asked for again after they were written.
const FEW: u32 = 16;
const MANY: u32 = 2000;

const OPERATIONS: &str = "get=50,put=40,delete=5,cas=5";
const REDIS_OPERATIONS: &str = "get=50,put=45,delete=5";
/// The closed loop or the open one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Closed,
    Open,
}

const PACES: [Pace; 2] = [Pace::Closed, Pace::Open];

/// Runs until enough was asked: a busy machine gets more time.
fn verify(target: &str, keys: u32, operations: &str, pace: Pace) -> Ran {
    let run = |ms: u32| {
        let rate = if pace == Pace::Open { "--rate 4000" } else { "" };
        run_json(&format!(
            "run --target {target} --verify --keys {keys} --op {operations} --connections 8 --threads 2 --pipeline 4 \
             --duration {ms}ms --view none {rate}"
        ))
    };
    let is_enough = |ran: &Ran| ran.count("/ops") >= 1000;
    [350, 2000].into_iter().map(run).find(is_enough).unwrap_or_else(|| run(10_000))
}

fn is_accused(ran: &Ran, case: &str) {
    let (violations, findings) = (ran.count("/verify/violations"), &ran.json["verify"]["findings"]);
    assert_eq!(ran.code, Some(1), "{case}: {ran}");
    assert!(violations > 0 && ran.count("/verify/lost") <= violations, "{case}: {ran}");
    let first = findings[0].as_str().unwrap_or_default();
    assert!(first.starts_with("key number "), "{case}: {ran}");
    // In words: of which values or bytes it is.
    assert!(first.contains("value"), "{case}: {ran}");
    assert!(ran.stdout.contains(first), "{case}: {ran}");
}

fn is_acquitted(ran: &Ran, case: &str) {
    let verify = &ran.json["verify"];
    assert!(ran.count("/verify/acked") > 0, "{case}: {ran}");
    assert_eq!((&verify["lost"], &verify["violations"]), (&0.into(), &0.into()), "{case}: {ran}");
    assert_eq!((&verify["not_audited"], &verify["histories_undecided"]), (&0.into(), &0.into()), "{case}: {ran}");
    assert_eq!(verify["findings"], serde_json::json!([]), "{case}: {ran}");
}

fn cluster(mood: Mood, cheat: Option<Cheat>) -> Cluster {
    Cluster::start(Shape { mood, cheat, ..Shape::default() })
}

/// Each store and each loop, with few keys and with many.
fn everywhere(cheat: Option<Cheat>, check: impl Fn(&Ran, &str, u32)) {
    for pace in PACES {
        for keys in [FEW, MANY] {
            let cluster = cluster(Mood::Well, cheat);
            let ran = verify(&cluster.url(), keys, OPERATIONS, pace);
            check(&ran, &format!("kv, {keys} keys, {cheat:?}, {pace:?}"), keys);
            let ran = verify(&Redis::start(cheat).url(), keys, REDIS_OPERATIONS, pace);
            check(&ran, &format!("redis, {keys} keys, {cheat:?}, {pace:?}"), keys);
        }
    }
}

#[test]
fn an_honest_store_is_accused_of_nothing() {
    everywhere(None, |ran, case, keys| {
        is_acquitted(ran, case);
        assert!(ran.is_well(), "{case}: {ran}");
        assert_eq!(
            (ran.count("/verify/keys"), ran.count("/verify/audited")),
            (keys.into(), keys.into()),
            "{case}: {ran}"
        );
    });
}

/// Many keys have their last write lost, so that the audit must find some.
#[test]
fn acknowledged_writes_that_are_lost_are_found() {
    everywhere(Some(Cheat::Loses), |ran, case, keys| {
        is_accused(ran, case);
        assert!(keys == FEW || ran.count("/verify/lost") > 0, "{case}: {ran}");
    });
}

/// The audit reads keys that were inserted, too.
#[test]
fn lost_inserts_are_found() {
    for (cheat, keys) in [(Some(Cheat::Loses), FEW), (None, FEW)] {
        let cluster = cluster(Mood::Well, cheat);
        let ran = verify(&cluster.url(), keys, "get=50,insert=50", Pace::Open);
        if cheat.is_some() {
            is_accused(&ran, "inserts");
            assert!(ran.count("/verify/lost") > 0, "{ran}");
        } else {
            is_acquitted(&ran, "inserts");
            assert_eq!(ran.count("/verify/audited"), ran.count("/kinds/insert/ops") + u64::from(keys), "{ran}");
        }
    }
}

#[test]
fn writes_that_are_undone_later_are_found() {
    everywhere(Some(Cheat::Reverts), |ran, case, keys| {
        is_accused(ran, case);
        assert!(keys == FEW || ran.count("/verify/lost") > 0, "{case}: {ran}");
    });
}

/// Without versions and with many keys nobody reads again soon, so that few keys alone make it certain there.
#[test]
fn reads_of_older_values_are_found() {
    for pace in PACES {
        for cheat in [Cheat::TellsOld, Cheat::TellsOldAsNew] {
            for keys in [FEW, MANY] {
                let cluster = cluster(Mood::Well, Some(cheat));
                let ran = verify(&cluster.url(), keys, OPERATIONS, pace);
                is_accused(&ran, &format!("kv, {keys} keys, {cheat:?}, {pace:?}"));
            }
        }
        let ran = verify(&Redis::start(Some(Cheat::TellsOld)).url(), FEW, REDIS_OPERATIONS, pace);
        is_accused(&ran, &format!("redis, {pace:?}"));
    }
}

#[test]
fn damaged_values_and_those_of_other_keys_are_found() {
    for cheat in [Cheat::Damages, Cheat::Swaps] {
        everywhere(Some(cheat), |ran, case, _| {
            is_accused(ran, case);
            assert!(ran.count("/errors/damaged_value") > 0, "{case}: {ran}");
        });
    }
    let ran = verify(&cluster(Mood::Well, Some(Cheat::Swaps)).url(), MANY, "get", Pace::Closed);
    assert!(ran.stdout.contains("it has the value of key number "), "{ran}");
}

#[test]
fn refused_writes_that_are_applied_are_found() {
    everywhere(Some(Cheat::RefusesAndApplies), |ran, case, _| {
        is_accused(ran, case);
        assert!(ran.count("/outcomes/not_applied") > 0, "{case}: {ran}");
        assert_eq!(ran.count("/outcomes/unknown"), 0, "{case}: {ran}");
    });
}

/// With many keys nobody looks at one between the two times, and nobody could tell.
#[test]
fn writes_that_are_applied_again_when_they_are_asked_again_are_found() {
    for pace in PACES {
        let cluster = cluster(Mood::Breaking, Some(Cheat::Forgets));
        let ran = verify(&cluster.url(), FEW, OPERATIONS, pace);
        is_accused(&ran, &format!("{pace:?}"));
        assert!(ran.count("/retried") > 0, "{pace:?}: {ran}");
    }
}

/// Reads fail when their connection is cut; writes are asked again, and the cluster remembers them.
#[test]
fn who_cuts_connections_and_remembers_writes_is_accused_of_nothing() {
    for pace in PACES {
        for keys in [FEW, MANY] {
            let ran = verify(&cluster(Mood::Breaking, None).url(), keys, OPERATIONS, pace);
            is_acquitted(&ran, &format!("{keys} keys, {pace:?}"));
            assert!(ran.count("/retried") > 0, "{keys} keys, {pace:?}: {ran}");
            assert!(ran.errors_but(&["connection_lost"]).is_empty(), "{keys} keys, {pace:?}: {ran}");
        }
        let ran = verify(&cluster(Mood::Breaking, None).url(), FEW, "put=90,delete=10", pace);
        is_acquitted(&ran, &format!("{pace:?}"));
        // When the time is up nothing is asked again: what is cut off then has failed.
        let (retried, errors) = (ran.count("/retried"), ran.error_count());
        assert!(retried > errors && errors <= 8 * 4, "{pace:?}: {ran}");
        assert!(errors > 0 || ran.is_well(), "{pace:?}: {ran}");
        assert!(ran.errors_but(&["connection_lost"]).is_empty(), "{pace:?}: {ran}");
    }
}

/// Refusals are errors, and nobody's lie.
#[test]
fn who_refuses_writes_and_does_not_apply_them_is_accused_of_nothing() {
    for keys in [FEW, MANY] {
        let ran = verify(&cluster(Mood::Refusing, None).url(), keys, OPERATIONS, Pace::Closed);
        is_acquitted(&ran, "refusing");
        assert_eq!(ran.code, Some(1), "{ran}");
        assert!(ran.count("/errors/follower_unreachable") > 0, "{ran}");
    }
}
