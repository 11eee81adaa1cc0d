//! A node with several executors: the caller reaches the one it asks for, any other passes its requests on, and
//! nobody's answer waits for another's.

use crate::common::Cluster;
use kv_proto::{
    codec,
    frame::{Decoder, Kind, append_message},
    hello::{Caller, Hello, Welcome},
    ids::{ExecutorIndex, PartitionId},
    limits::Limits,
    request::{Condition, Operation, Request},
    response::{NodeView, Response},
    routing::partition_of,
};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A blocking caller of the binary protocol.
struct Call {
    stream: TcpStream,
    received: Vec<u8>,
    decoder: Decoder,
}

impl Call {
    fn connect(address: &str, executor: Option<u16>) -> (Self, Welcome) {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let decoder = Decoder::new(Limits::default().max_message_bytes());
        let mut caller = Call { stream, received: Vec::new(), decoder };
        let hello = Hello { cluster: None, caller: Caller::Client, executor: executor.map(ExecutorIndex) };
        let mut out = Vec::new();
        append_message(&mut out, Kind::Hello, 7, |body| codec::encode_into(body, &hello));
        caller.stream.write_all(&out).expect("sends");
        let welcome = caller.next(|kind, id, body| {
            assert_eq!((kind, id), (Kind::Welcome, 7));
            codec::decode(body).expect("a welcome")
        });
        (caller, welcome)
    }

    fn next<T>(&mut self, read: impl FnOnce(Kind, u64, &[u8]) -> T) -> T {
        let mut buffer = [0; 4096];
        loop {
            let (used, message) = self.decoder.decode(&self.received).expect("frames");
            if let Some(message) = message {
                let result = read(message.kind, message.id, message.body);
                self.received.drain(..used);
                return result;
            }
            self.received.drain(..used);
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert_ne!(n, 0, "the node closed the connection");
            self.received.extend_from_slice(&buffer[..n]);
        }
    }

    fn send(&mut self, requests: &[(u64, Operation)]) {
        let mut out = Vec::new();
        for (id, operation) in requests {
            let request = Request { deadline_ms: 30_000, operation_id: None, operation: *operation };
            append_message(&mut out, Kind::Request, *id, |body| codec::encode_into(body, &request));
        }
        self.stream.write_all(&out).expect("sends");
    }

    /// A word for the next response, and its id.
    fn response(&mut self) -> (u64, String) {
        self.next(|kind, id, body| {
            assert_eq!(kind, Kind::Response);
            let word = match codec::decode(body).expect("a response") {
                Response::Value { value, .. } => String::from_utf8_lossy(value).into_owned(),
                Response::Written { .. } => "written".to_owned(),
                Response::Missing { .. } => "missing".to_owned(),
                other => format!("{other:?}"),
            };
            (id, word)
        })
    }

    fn view(&mut self) -> NodeView {
        self.send(&[(1, Operation::Map)]);
        self.next(|_, _, body| match codec::decode(body) {
            Ok(Response::Map(view)) => view,
            other => panic!("{other:?}"),
        })
    }
}

#[test]
fn each_executor_answers_for_all_and_is_reached_by_who_asks_for_it() {
    let cluster = Cluster::start(&["--shards", "1", "--cores", "2"]);
    let address = cluster.process("shard0-leader").address.expect("a node has an address");
    let (mut any, welcome) = Call::connect(&address, None);
    assert_eq!(welcome.executors, 2);
    let owners: BTreeMap<PartitionId, ExecutorIndex> = any.view().owners.into_iter().collect();
    let on = |executor| owners.values().filter(|e| **e == ExecutorIndex(executor)).count();
    assert_eq!((on(0), on(1)), (32, 32), "the partitions are spread over the executors");

    for executor in [0, 1] {
        let (mut caller, welcome) = Call::connect(&address, Some(executor));
        assert_eq!(welcome.executor, ExecutorIndex(executor), "the socket was moved to where it was asked for");
        // Keys of both executors: half of them are passed on.
        let keys: Vec<String> = (0..200).map(|i| format!("key{executor}-{i}")).collect();
        let puts: Vec<(u64, Operation)> = keys
            .iter()
            .zip(100..)
            .map(|(key, id)| {
                let (key, value) = (key.as_bytes(), key.as_bytes());
                (id, Operation::Put { key, value, content_type: "", condition: Condition::Any })
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
    let (mut caller, _) = Call::connect(&address, None);
    let put = Operation::Put { key: b"a", value: b"1", content_type: "", condition: Condition::Any };
    assert_ne!(partition_of(b"a", 64), partition_of(b"b", 64));
    caller.send(&[(1, put), (2, Operation::Get { key: b"b" }), (3, Operation::Ping)]);
    assert_eq!(caller.response(), (2, "missing".to_owned()));
    assert_eq!(caller.response(), (3, "Pong".to_owned()));
    assert_eq!(caller.response(), (1, "written".to_owned()));
}
