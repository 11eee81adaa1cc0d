//! Leadership passes on purpose: when a node stops in order, and back to the node that is preferred.

use crate::{
    common::{BOUND, Cluster, signal, until, until_ok},
    load::Stop,
    nodes::{FOLLOWER, LEADER, PAIR, leaders, start_node, until_in_sync, until_led_by, until_put, until_whole},
};
use kv_client::{Client, ClientBuilder};
use kv_proto::error_code::Outcome;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// So long that whoever has not heard the old leader resign serves nothing within this test.
const ENDLESS_GRACE: [&str; 2] = ["--grace-ms", "300000"];

/// Nothing is left in doubt, and nobody waits for a leader to be missed.
fn a_node_that_stops_in_order_passes_on_what_it_leads(cores: &str) {
    let cluster = Cluster::start(&[&PAIR[..], &ENDLESS_GRACE, &["--cores", cores]].concat());
    let seeds: Vec<String> = cluster.topology().map.nodes.into_iter().map(|node| node.address).collect();
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let write = |writer: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = seeds.iter().fold(Client::builder().deadline(BOUND), ClientBuilder::seed);
        let client = client.build().expect("addresses");
        let mut n = 0;
        while !stop.load(SeqCst) {
            let (key, value) = (format!("{writer}-{}", n % 20), n.to_string());
            // What was not applied is asked again, as whoever has time does.
            until_ok(&format!("{key} = {value}"), || {
                match runtime.block_on(client.put(key.as_bytes(), value.as_bytes())) {
                    Err(error) if error.outcome() == Outcome::NotApplied => Err(format!("{error:?}")),
                    answer => Ok(answer.expect("nothing is left in doubt")),
                }
            });
            written.fetch_add(1, SeqCst);
            n += 1;
        }
        (writer, n)
    };
    let until_more = |what: &str, n: u64| {
        let target = written.load(SeqCst) + n;
        until(what, || (written.load(SeqCst) >= target).then_some(()));
    };
    let counts: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let write = &write;
                scope.spawn(move || write(writer))
            })
            .collect();
        let stopping = Stop(&stop);
        until_more("writes are acknowledged", 100);
        let leader = cluster.process(LEADER).pid;
        signal(leader, Signal::TERM);
        let report = format!("{LEADER} (process {leader}) ");
        let ended = cluster.supervisor.output.wait_for("it ends", |l| l.contains(&report).then(|| l.to_owned()));
        assert!(!ended.contains("killed"), "{ended}");
        until_more("writes are acknowledged by the other", 100);
        assert_eq!(leaders(&cluster), [FOLLOWER]);
        drop(stopping);
        writers.into_iter().map(|w| w.join().expect("no failed write")).collect()
    });
    for (writer, n) in counts {
        for last in n.saturating_sub(20)..n {
            let answer = cluster.send(hyper::Method::GET, &format!("/v1/kv/{writer}-{}", last % 20), &[], "");
            assert_eq!(answer.body, last.to_string(), "{answer:?}");
        }
    }
    let _leader = start_node(&cluster, LEADER, &[&ENDLESS_GRACE[..], &["--cores", cores]].concat());
    until_whole(&cluster);
}

#[test]
fn a_node_of_one_executor_that_stops_in_order_passes_on_what_it_leads() {
    a_node_that_stops_in_order_passes_on_what_it_leads("1");
}

#[test]
fn a_node_of_several_executors_that_stops_in_order_passes_on_what_it_leads() {
    a_node_that_stops_in_order_passes_on_what_it_leads("2");
}

/// Leadership returns, all of it, and then stays.
#[test]
fn leadership_returns_to_the_node_that_is_preferred() {
    let cluster = Cluster::start(&["--shards", "1", "--partitions", "64", "--rebalance-after-s", "1"]);
    until_put(&cluster, "key", "old");
    signal(cluster.process(LEADER).pid, Signal::TERM);
    until_led_by(&cluster, FOLLOWER);
    until_put(&cluster, "key", "new");
    let _leader = start_node(&cluster, LEADER, &[]);
    until_led_by(&cluster, LEADER);
    until_in_sync(&cluster, FOLLOWER);
    until_whole(&cluster);
    assert_eq!(cluster.send(hyper::Method::GET, "/v1/kv/key", &[], "").body, "new");
}
