//! A node with several executors: the caller reaches the one it asks for, any other passes its requests on, and
//! nobody's answer waits for another's.

use crate::{
    binary::Call,
    common::{Cluster, until},
};
use kv_proto::{
    ids::{ExecutorIndex, PartitionId},
    request::{Condition, Operation},
    routing::partition_of,
};
use std::{collections::BTreeMap, num::NonZeroU64};

#[test]
fn each_executor_answers_for_all_and_is_reached_by_who_asks_for_it() {
    let cluster = Cluster::start(&["--shards", "1", "--cores", "2"]);
    let address = cluster.process("shard0-leader").address.expect("a node has an address");
    let (mut any, welcome) = Call::client(&address, None);
    assert_eq!(welcome.executors, 2);
    let owners: BTreeMap<PartitionId, ExecutorIndex> = any.view().owners.into_iter().collect();
    let on = |executor| owners.values().filter(|e| **e == ExecutorIndex(executor)).count();
    assert_eq!((on(0), on(1)), (32, 32), "the partitions are spread over the executors");

    for executor in [0, 1] {
        let (mut caller, welcome) = Call::client(&address, Some(executor));
        assert_eq!(welcome.executor, ExecutorIndex(executor), "the socket was moved to where it was asked for");
        // Keys of both executors: half of them are passed on.
        let keys: Vec<String> = (0..200).map(|i| format!("key{executor}-{i}")).collect();
        let puts: Vec<(u64, Operation)> = keys
            .iter()
            .zip(100..)
            .map(|(key, id)| {
                let (key, value) = (key.as_bytes(), key.as_bytes());
                (id, Operation::Put { key, value, content_type: "", condition: Condition::Any, ttl_ms: None })
            })
            .collect();
        caller.send(&puts);
        let mut written: Vec<u64> = keys
            .iter()
            .map(|_| caller.response())
            .map(|(id, word)| {
                assert_eq!(word, "written");
                id
            })
            .collect();
        written.sort_unstable();
        assert_eq!(written, (100..300).collect::<Vec<_>>(), "each request has one answer, whatever the order");
        let gets: Vec<(u64, Operation)> =
            keys.iter().zip(100..).map(|(key, id)| (id, Operation::Get { key: key.as_bytes() })).collect();
        caller.send(&gets);
        for _ in &keys {
            let (id, value) = caller.response();
            assert_eq!(value, keys[id as usize - 100]);
        }
    }
}

/// An answer that is there at once does not wait for a write that is not committed yet.
#[test]
fn answers_come_in_any_order() {
    let cluster = Cluster::start(&["--shards", "1"]);
    let address = cluster.process("shard0-leader").address.expect("a node has an address");
    let (mut caller, _) = Call::client(&address, None);
    let put = Operation::Put { key: b"a", value: b"1", content_type: "", condition: Condition::Any, ttl_ms: None };
    assert_ne!(partition_of(b"a", 64), partition_of(b"b", 64));
    // The first read of a leader that has just begun to serve may wait for its lease.
    caller.send(&[(0, Operation::Get { key: b"b" })]);
    assert_eq!(caller.response(), (0, "missing".to_owned()));
    caller.send(&[(1, put), (2, Operation::Get { key: b"b" }), (3, Operation::Ping)]);
    assert_eq!(caller.response(), (2, "missing".to_owned()));
    assert_eq!(caller.response(), (3, "Pong".to_owned()));
    assert_eq!(caller.response(), (1, "written".to_owned()));
}

/// A read of a value that has expired waits for its delete, on the executor that owns it.
#[test]
fn what_has_expired_is_missed_through_every_executor() {
    let cluster = Cluster::start(&["--shards", "1", "--cores", "2"]);
    let address = cluster.process("shard0-leader").address.expect("a node has an address");
    for executor in [0, 1] {
        let (mut caller, _) = Call::client(&address, Some(executor));
        let keys: Vec<String> = (0..100).map(|i| format!("key{executor}-{i}")).collect();
        let keys = || keys.iter().map(String::as_bytes);
        let ttl_ms = NonZeroU64::new(1);
        let put = |key| Operation::Put { key, value: key, content_type: "", condition: Condition::Any, ttl_ms };
        caller.send(&(100..).zip(keys().map(put)).collect::<Vec<_>>());
        assert!(keys().all(|_| caller.response().1 == "written"));
        until("all are missing", || {
            caller.send(&(100..).zip(keys().map(|key| Operation::Get { key })).collect::<Vec<_>>());
            let answers: Vec<String> = keys().map(|_| caller.response().1).collect();
            assert!(answers.iter().all(|a| a == "missing" || a.starts_with("key")), "{answers:?}");
            answers.iter().all(|a| a == "missing").then_some(())
        });
    }
}
