//! Callers of the binary protocol that do what none should: nothing false is acknowledged, nothing is lost, nobody
//! else is held up, and no node ends.

use crate::{
    binary::Call,
    common::{Cluster, Process, runs, signal, until},
};
use kv_proto::{
    codec,
    frame::{Kind, append_message},
    hello::Caller,
    ids::{DiskId, Epoch, Lsn, NodeId},
    replication::{Basis, PeerBatch, PeerBody, PeerMessage, Position, Record},
    request::{Condition, Operation},
    routing::partition_of,
};
use rustix::process::Signal;
use serde_json::json;
use std::io::Write;

fn say(call: &mut Call, message: PeerMessage) {
    let mut out = Vec::new();
    let batch = PeerBatch { room: 0, messages: vec![message] };
    append_message(&mut out, Kind::Replication, 0, |body| codec::encode_into(body, &batch));
    call.stream.write_all(&out).expect("sends");
}

fn address(process: &Process) -> String {
    process.address.clone().expect("a node has an address")
}

/// Who says that it is the follower is not believed: a follower answers on the connection that its leader made.
#[test]
fn a_report_of_a_stranger_acknowledges_nothing() {
    // The leader would go on without a follower that hangs.
    let cluster = Cluster::start(&["--shards", "1", "--min-in-sync", "2"]);
    let (leader, follower) = (cluster.process("shard0-leader"), cluster.process("shard0-follower"));
    assert_eq!(cluster.put("key", &json!("old")).status, 200);
    let node = NodeId::new("shard0-follower").expect("a name");
    let disk = cluster.topology().map.node(node).expect("it is registered").disk;
    let (mut liar, _) = Call::connect(&address(&leader), Caller::Peer { node, disk }, None);
    signal(follower.pid, Signal::STOP);
    let answer = std::thread::scope(|scope| {
        let writer = scope.spawn(|| cluster.put("key", &json!("new")));
        let proposed = || {
            let leader = cluster.topology().nodes.into_iter().find(|n| n.node == "shard0-leader")?.stats?;
            leader.replicas.iter().any(|r| r.prepared_lsn > r.committed_lsn).then_some(())
        };
        until("the write is proposed", || proposed().or_else(|| writer.is_finished().then_some(())));
        let prepared = Position { epoch: Epoch(1), lsn: Lsn(2) };
        let body = PeerBody::Report { prepared, flushed: Lsn(2), applied: Lsn(1), answers: 0, basis: Basis::Table };
        say(&mut liar, PeerMessage { partition: partition_of(b"key", 64), epoch: Epoch(1), body });
        writer.join().expect("answered")
    });
    assert_ne!(answer.status, 200, "acknowledged by nobody but a liar");
    assert_eq!(cluster.get("key").json()["value"], json!("old"));
    signal(follower.pid, Signal::CONT);
}

/// Nor is who says that it is the leader.
#[test]
fn a_stranger_that_says_it_leads_changes_nothing() {
    let cluster = Cluster::start(&["--shards", "1"]);
    assert_eq!(cluster.put("key", &json!("old")).status, 200);
    let follower = cluster.process("shard0-follower");
    for disk in [DiskId(1), DiskId(2)] {
        let node = NodeId::new("shard0-leader").expect("a name");
        let (mut liar, _) = Call::connect(&address(&follower), Caller::Peer { node, disk }, None);
        let position = |epoch, lsn| Position { epoch: Epoch(epoch), lsn: Lsn(lsn) };
        let payload = kv_proto::effect::Effect::Delete { key: b"key" }.encode();
        let record = |at| Record { position: at, operation_id: None, payload: payload.as_slice().into() };
        for (previous, records) in [
            (position(1, 1), vec![record(position(1, 2))]),
            (position(0, 0), vec![record(position(0, 1)), record(position(0, 2))]),
        ] {
            let body = PeerBody::Prepare { previous, committed: Lsn(u64::MAX), records };
            say(&mut liar, PeerMessage { partition: partition_of(b"key", 64), epoch: Epoch(1), body });
        }
    }
    assert_eq!(cluster.put("key", &json!("new")).status, 200);
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    assert_eq!(cluster.get("key").json()["value"], json!("new"));
    assert!(runs(follower.pid));
}

/// Asks for 600 MiB and reads none of it, then all of it.
#[test]
fn a_caller_that_does_not_read_costs_bounded_memory_and_gets_all_its_answers() {
    const ASKED: u64 = 600;
    let cluster = Cluster::start(&["--shards", "1", "--replicas", "1"]);
    let node = cluster.process("shard0-leader");
    let value = vec![b'v'; 1024 * 1024];
    let (mut slow, _) = Call::client(&address(&node), None);
    let put = Operation::Put { key: b"key", value: &value, content_type: "", condition: Condition::Any, ttl_ms: None };
    slow.send(&[(1, put)]);
    assert_eq!(slow.response(), (1, "written".to_owned()));
    let gets: Vec<(u64, Operation)> = (0..ASKED).map(|id| (id, Operation::Get { key: b"key" })).collect();
    slow.send(&gets);

    let (mut other, _) = Call::client(&address(&node), None);
    other.send(&[(2, Operation::Get { key: b"nothing" })]);
    assert_eq!(other.response(), (2, "missing".to_owned()), "others are served meanwhile");
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid)).expect("it runs");
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line").trim();
    let kib: u64 = resident.trim_end_matches(" kB").trim().parse().expect("a number");
    assert!(kib < 200 * 1024, "{resident} for one caller that does not read");

    for id in 0..ASKED {
        let (answered, word) = slow.response();
        assert_eq!((answered, word.len()), (id, value.len()));
    }
}
