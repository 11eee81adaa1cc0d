//! A leader that sleeps, is replaced, and wakes up again: of what it finds in its sockets it answers nothing with a value that has
//! become old.

use crate::{
    again::hold,
    binary::Call,
    common::{Cluster, Http, signal, until},
    nodes::until_whole,
};
use hyper::{Method, StatusCode, body::Bytes};
use kv_proto::request::Operation;
use rustix::process::Signal;
use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

const KEY: &str = "key";
const PATH: &str = "/v1/kv/key";
const ROUNDS: u64 = 4;
/// On each connection, half of them before the new value is written and half after.
const QUEUED: u64 = 64;
/// How long it is looked at after it woke up.
const AWAKE: Duration = Duration::from_secs(1);

fn gets(ids: std::ops::Range<u64>) -> Vec<(u64, Operation<'static>)> {
    ids.map(|id| (id, Operation::Get { key: KEY.as_bytes() })).collect()
}

/// The number that an answer has; `None` if it is a refusal.
fn number(word: &str) -> Option<u64> {
    let refusal = ["NotLeader", "NotReady", "FollowerUnreachable"].iter().any(|code| word.contains(code));
    let found = word.parse().ok();
    assert!(found.is_some() || refusal, "{word}");
    found
}

fn put(http: &Http, value: u64) -> bool {
    let answer = http.try_send(Method::PUT, PATH, &[], Bytes::from(value.to_string())).expect("the router answers");
    answer.status == StatusCode::NO_CONTENT
}

fn get(http: &Http) -> Option<u64> {
    let answer = http.try_send(Method::GET, PATH, &[], Bytes::new()).expect("the router answers");
    assert!([200, 503, 504].contains(&answer.status.as_u16()), "{answer:?}");
    (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).parse().expect("a number"))
}

/// Reads again and again over HTTP; each value that is read is at least what was acknowledged when the read began.
fn read_on(url: &str, acknowledged: &AtomicU64, stop: &AtomicU64) {
    let http = Http::new(url);
    while stop.load(SeqCst) == 0 {
        let oldest = acknowledged.load(SeqCst);
        if let Some(read) = get(&http) {
            assert!(read >= oldest, "{read} was read when {oldest} had been acknowledged");
        }
    }
}

fn sleeps_and_wakes(reads: &str) {
    let flags = ["--shards", "1", "--partitions", "1", "--rebalance-after-s", "0", "--reads", reads];
    let cluster = Cluster::start(&flags);
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicU64::new(0));
    until("it is written", || put(&Http::new(&cluster.url), 0).then_some(()));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| read_on(&cluster.url, &acknowledged, &stop))).collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (1..=ROUNDS).for_each(|round| one_round(&cluster, round, &acknowledged));
        }));
        stop.store(1, SeqCst);
        readers.into_iter().for_each(|r| r.join().expect("nothing old is read over HTTP"));
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    until_whole(&cluster);
}

fn one_round(cluster: &Cluster, round: u64, acknowledged: &AtomicU64) {
    let http = Http::new(&cluster.url);
    let leader = cluster.process(&cluster.leaders(0)[0]);
    let address = leader.address.expect("a node listens");
    let mut calls: Vec<Call> = (0..4).map(|_| Call::client(&address, None).0).collect();
    signal(leader.pid, Signal::STOP);
    calls.iter_mut().for_each(|call| call.send(&gets(0..QUEUED / 2)));
    until("the new leader takes writes", || put(&http, round).then_some(()));
    assert_ne!(cluster.leaders(0), [leader.name.as_str()]);
    acknowledged.store(round, SeqCst);
    calls.iter_mut().for_each(|call| call.send(&gets(QUEUED / 2..QUEUED)));

    signal(leader.pid, Signal::CONT);
    let (mut refused, mut new) = (0, 0);
    for call in &mut calls {
        for _ in 0..QUEUED {
            match number(&call.response().1) {
                None => refused += 1,
                Some(value) => {
                    assert_eq!(value, round, "what was queued is answered with an old value");
                    new += 1;
                }
            }
        }
    }
    println!("round {round}: {} slept; of what it found {refused} were refused, {new} had the new value", leader.name);
    hold("it answers nothing old", AWAKE, || {
        calls[0].send(&gets(0..1));
        number(&calls[0].response().1).filter(|value| *value != round).map(|value| format!("value {value}"))
    });
    until_whole(cluster);
}

#[test]
fn with_leases_a_leader_that_wakes_up_answers_nothing_old() {
    sleeps_and_wakes("lease");
}

#[test]
fn with_confirmations_a_leader_that_wakes_up_answers_nothing_old() {
    sleeps_and_wakes("confirm");
}
