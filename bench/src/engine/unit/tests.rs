//! Units without I/O: lanes are played by hand.

use super::*;
use crate::{
    engine::{Clock, Routes, plan::Owners, samples::led_in_turn},
    workload::{Arrivals, KeyNames, Schedule, Values, Workload},
};
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

const MS: Ns = 1_000_000;

/// A unit of `lanes` connections to a cluster whose 8 partitions are led by these nodes in turn.
fn unit(leaders: &[&str], lanes: usize, mix: &str) -> Unit {
    let map = led_in_turn(8, leaders);
    let workload = Workload {
        mix: mix.parse().expect("a mix"),
        keys: "uniform".parse().expect("a choice"),
        count: 1000,
        names: KeyNames::default(),
        sizes: "64".parse().expect("sizes"),
        scan_length: (10, 10),
        batch_size: 10,
        seed: 1,
    };
    let setup = Setup {
        values: Values::new(1, 64),
        workload: Arc::new(workload),
        pipeline: 4,
        deadline: Duration::from_secs(2),
        clock: Clock::new(),
        routes: Routes::fixed(Plan::of_map(&map, &Owners::new(), None).expect("all are led")),
        judge: None,
        windows: None,
        operation_ids: None,
    };
    Unit::new(Arc::new(setup), Arc::default(), 0, lanes)
}

fn draw(unit: &Unit) -> Source {
    Source::Draw(Box::new(Draw::new(Arc::clone(&unit.setup.workload), 0, 1, 0).expect("valid")))
}

fn scheduled(per_s: &str) -> Pace {
    let rate = per_s.parse().expect("a rate");
    Pace::scheduled(Schedule::new(&rate, Arrivals::Constant, Duration::from_secs(1), 1, 0, 1), 0)
}

fn recorded(unit: &Unit) -> Recorder {
    std::mem::take(&mut *lock(&unit.shown.recorder))
}

fn is_woken(unit: &Unit, lane: usize) -> bool {
    let notify = unit.notify(lane);
    let notified = pin!(notify.notified());
    matches!(notified.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
}

/// Sends everything that a lane may take, and has it answered.
fn serve(unit: &mut Unit, lane: usize, now: Ns) -> usize {
    for served in 0..1000 {
        let Some(mut part) = unit.take(lane, now) else { return served };
        unit.send(&mut part, now, |_| {});
        unit.settle([(part, Ended::Missing)].into_iter(), now);
    }
    1000
}

#[test]
fn a_dead_place_does_not_keep_what_others_could_do() {
    let mut unit = unit(&["a", "b"], 2, "get");
    unit.connected(0, true);
    let source = draw(&unit);
    unit.begin(source, Pace::Saturated { free: 8 }, 0, 0);
    // Lane 0 serves its place until everything that may be under way waits for the other one, whose lane never connects.
    assert!(serve(&mut unit, 0, 1) < 1000);
    unit.idle(0);
    assert!(!is_woken(&unit, 0));
    unit.not_connected(1, "unreachable", 2);
    assert_eq!(unit.pace.free(), 8);
    assert!(is_woken(&unit, 0), "operations may start, and nobody does it");
    assert!(serve(&mut unit, 0, 3) > 0);
}

#[test]
fn a_place_without_a_lane_is_served_by_another() {
    let mut unit = unit(&["a", "b", "c"], 2, "get");
    let source = draw(&unit);
    unit.begin(source, Pace::Saturated { free: 8 }, 0, 0);
    for _ in 0..100 {
        serve(&mut unit, 0, 1);
        serve(&mut unit, 1, 1);
    }
    assert!(recorded(&unit).ops() > 1000, "nothing comes to rest for ever");
}

#[test]
fn only_a_lane_with_room_is_woken() {
    let mut unit = unit(&["a"], 2, "get");
    unit.connected(0, true);
    unit.connected(1, true);
    let source = draw(&unit);
    unit.begin(source, scheduled("1000"), 0, 0);
    unit.idle(1);
    unit.idle(0);
    unit.arrive(0);
    assert!(is_woken(&unit, 1));
    // Lane 0, woken by an answer, is faster, and is full now.
    unit.busy(0);
    assert!(unit.take(0, 1).is_some());
    unit.busy(1);
    assert!(unit.take(1, 1).is_none());
    unit.idle(1);
    unit.arrive(MS);
    assert!(is_woken(&unit, 1) && !is_woken(&unit, 0));
}

#[test]
fn operations_that_are_dropped_are_counted_once_each() {
    let mut unit = unit(&["a"], 1, "scan");
    unit.connected(0, true);
    let source = draw(&unit);
    unit.begin(source, scheduled("100"), 0, 0);
    unit.arrive(45 * MS);
    let late = 3000 * MS;
    assert!(unit.take(0, late).is_none(), "everything is overdue");
    let recorded = recorded(&unit);
    assert_eq!((recorded.due, recorded.dropped), (5, 5));
    assert!(unit.operations.is_empty());
}

#[test]
fn what_was_due_at_the_end_is_asked_and_counted() {
    let mut unit = unit(&["a"], 1, "get");
    unit.connected(0, true);
    let source = draw(&unit);
    unit.begin(source, scheduled("1000"), 0, 0);
    unit.arrive(9 * MS + MS / 2);
    unit.stop(11 * MS + MS / 2);
    assert!(!unit.is_over());
    assert_eq!(serve(&mut unit, 0, 500 * MS), 12);
    assert!(unit.is_over());
    let recorded = recorded(&unit);
    assert_eq!((recorded.due, recorded.ops(), recorded.dropped), (12, 12, 0));
    assert!(recorded.all().response.max() > 400_000);
}

#[test]
fn a_closed_loop_times_what_is_under_way_at_the_end_and_does_not_count_it() {
    let mut unit = unit(&["a"], 1, "get");
    unit.connected(0, true);
    let source = draw(&unit);
    unit.begin(source, Pace::Saturated { free: 2 }, 0, 0);
    let parts: Vec<Part> = (0..2).map(|_| unit.take(0, 0).expect("free")).collect();
    unit.stop(MS);
    assert!(unit.is_over());
    unit.settle(parts.into_iter().map(|part| (part, Ended::Missing)), 900 * MS);
    let recorded = recorded(&unit);
    assert_eq!((recorded.ops(), recorded.all().response.len()), (0, 2));
    assert!(recorded.all().response.max() >= 899_000);
}

#[test]
fn a_high_rate_leaves_the_lanes_their_turns() {
    let mut unit = unit(&["a"], 1, "get");
    let source = draw(&unit);
    unit.begin(source, scheduled("5M"), 0, 0);
    let again = unit.arrive(500 * MS).expect("more are due");
    assert!(again <= 500 * MS);
    assert_eq!(recorded(&unit).due, MAX_STARTS as u64);
}

#[test]
fn keys_that_nobody_answers_for_fail_in_the_end() {
    let mut unit = unit(&["a"], 1, "get");
    let random = Box::new(crate::workload::rng(1, 0));
    let keys = Keys { kind: Kind::Get, list: None, next: 0, step: 1, end: 100, again: VecDeque::new(), random };
    unit.begin(Source::Keys(keys), Pace::Saturated { free: 4 }, 10 * MS, 0);
    unit.not_connected(0, "unreachable", 5 * MS);
    assert!(!unit.is_over(), "it may come back");
    unit.not_connected(0, "unreachable", 15 * MS);
    assert!(unit.is_over() && is_woken(&unit, 0));
    let recorded = recorded(&unit);
    assert_eq!((recorded.errors["unreachable"].count, recorded.failed_connects), (100, 2));
}

#[test]
fn what_fails_is_asked_again_only_where_that_was_asked_for() {
    for (persistence, left) in [(0, 0), (10 * MS, 1)] {
        let mut unit = unit(&["a"], 1, "get");
        unit.connected(0, true);
        let random = Box::new(crate::workload::rng(1, 0));
        let keys = Keys { kind: Kind::Put, list: None, next: 0, step: 1, end: 1, again: VecDeque::new(), random };
        unit.begin(Source::Keys(keys), Pace::Saturated { free: 4 }, persistence, 0);
        let part = unit.take(0, 0).expect("a key");
        let failed = Ended::Failed { code: "overloaded".to_owned(), unknown: false };
        unit.settle([(part, failed)].into_iter(), MS);
        let Source::Keys(keys) = &unit.source else { unreachable!("they are keys") };
        assert_eq!(keys.again.len(), left);
        assert_eq!(unit.take(0, 2 * MS).is_some(), left > 0);
        assert_eq!(recorded(&unit).error_count(), 1 - left as u64);
    }
}
