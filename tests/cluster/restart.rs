//! A cluster that is stopped and started again on the same data has all of them.

use crate::common::{Cluster, until};
use hyper::{Method, StatusCode, header::ETAG};
use kv_proto::ids::Version;

const KEYS: usize = 300;

/// Bytes from a few to some thousands.
fn value(key: usize) -> Vec<u8> {
    format!("{key} ").into_bytes().repeat(1 + key * 7 % 900)
}

fn path(key: usize) -> String {
    format!("/v1/kv/key-{key}")
}

#[track_caller]
fn put(cluster: &Cluster, key: usize, value: Vec<u8>) -> Version {
    let answer = cluster.send(Method::PUT, &path(key), &[], value);
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    version(answer.headers[ETAG].to_str().expect("a text"))
}

fn version(etag: &str) -> Version {
    etag.trim_matches('"').parse().expect("a version")
}

/// Each start has these flags.
#[track_caller]
fn everything_is_there_again(starts: &[&[&str]]) {
    let mut cluster = Cluster::start(starts[0]);
    let mut kept: Vec<Option<Version>> = (0..KEYS).map(|key| Some(put(&cluster, key, b"first".into()))).collect();
    for (key, version) in kept.iter_mut().enumerate() {
        *version = Some(put(&cluster, key, value(key)));
        if key % 3 == 0 {
            assert_eq!(cluster.send(Method::DELETE, &path(key), &[], "").status, StatusCode::NO_CONTENT);
            *version = None;
        }
    }
    for flags in &starts[1..] {
        cluster = Cluster::start_in(cluster.stop(), flags);
        for (key, kept) in kept.iter().enumerate() {
            let answer = cluster.send(Method::GET, &path(key), &[], "");
            let Some(kept) = kept else {
                assert_eq!(answer.status, StatusCode::NOT_FOUND, "key {key} was deleted");
                continue;
            };
            assert_eq!(answer.status, StatusCode::OK, "key {key}: {answer:?}");
            assert_eq!(version(answer.headers[ETAG].to_str().expect("a text")), *kept, "key {key}");
            assert_eq!(answer.body, value(key), "key {key}");
        }
        until("all replicas agree", || cluster.replicas_agree().then_some(()));
        // What is written now comes after what was written then.
        for (key, kept) in kept.iter_mut().enumerate().filter(|(key, _)| key % 10 == 1) {
            let written = put(&cluster, key, value(key));
            assert!(Some(written) > *kept, "key {key}: {written} after {kept:?}");
            *kept = Some(written);
        }
    }
}

#[test]
fn a_cluster_that_was_stopped_comes_back_with_everything() {
    everything_is_there_again(&[&[], &[], &[]]);
}

/// What was not flushed before it was acknowledged is flushed when a node stops.
#[test]
fn a_cluster_that_waits_for_memories_keeps_everything_when_it_is_stopped() {
    let flags = ["--shards", "1", "--ack", "replicated"];
    everything_is_there_again(&[&flags, &flags]);
}

/// A partition that had another executor is found in the log of that one.
#[test]
fn a_cluster_comes_back_with_another_number_of_executors() {
    let on = |cores| ["--shards", "1", "--cores", cores];
    everything_is_there_again(&[&on("1"), &on("2"), &on("1")]);
}

/// When a value expires stands in the log: a stop neither shortens nor lengthens its life.
#[test]
fn values_expire_when_they_should_whether_or_not_their_cluster_was_stopped() {
    let flags = ["--shards", "1"];
    let cluster = Cluster::start(&flags);
    let put = |path: &str| assert_eq!(cluster.send(Method::PUT, path, &[], "value").status, StatusCode::NO_CONTENT);
    put("/v1/kv/long?ttl=3600");
    put("/v1/kv/short?ttl=0.2");
    let cluster = Cluster::start_in(cluster.stop(), &flags);
    assert_eq!(cluster.send(Method::GET, "/v1/kv/short", &[], "").status, StatusCode::NOT_FOUND);
    let answer = cluster.send(Method::GET, "/v1/kv/long", &[], "");
    assert_eq!(answer.status, StatusCode::OK);
    let left: f64 = answer.headers["kv-expires-in"].to_str().expect("a text").parse().expect("seconds");
    assert!((3000.0..3600.0).contains(&left), "{left} s are left");
}
