//! What is answered to what. No I/O, no clock.

use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    codec,
    error_code::{ErrorCode, WireError},
    frame::{self, Kind, Message},
    hello::{Hello, Welcome},
    ids::{
        ClientId, ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, MapVersion, Member, NodeId, OperationId,
        PartitionId, ShardId, Version,
    },
    limits::{HIGHEST_MAX_VALUE_BYTES, Limits},
    request::{Condition, Operation, Request},
    response::{Answered, NodeView, Response},
};
use std::{cell::Cell, net::SocketAddr};

const CLUSTER: ClusterId = ClusterId(u128::from_be_bytes(*b"kvbench's echo  "));
const DISK: DiskId = DiskId(1);
const PARTITIONS: u16 = 8;
/// All answers say that they come from the first partition: which one a key is in costs a hash, and only matters to clients that
/// look for changes of the map.
const AT: Answered = Answered { partition: PartitionId(0), epoch: Epoch(1) };
pub(super) const LIMITS: Limits = Limits { max_value_bytes: HIGHEST_MAX_VALUE_BYTES as u32 };

/// Reads and writes are answered from templates: encoded once, with a version that is filled in. What they ask is seen from a few
/// bytes; everything else is decoded.
#[derive(Debug)]
pub(super) struct Answers {
    shape: Shape,
    found: Template,
    written: Template,
    failed: Vec<u8>,
    error_every: Option<u64>,
    /// Reads and writes so far. Also the version of each: the later answer has the higher one, as those of a real store do.
    asked: Cell<u64>,
}

/// What an answer means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A read or a write was answered.
    Answered,
    /// Something else was.
    Greeted,
    /// The caller was refused; there is nothing to say after it.
    Close,
}

/// Where encoded requests differ.
#[derive(Debug)]
struct Shape {
    /// Whether there is an operation id.
    has_id_at: usize,
    /// What is asked, without an operation id and with one.
    operation_at: [usize; 2],
    read: u8,
    writes: [u8; 2],
}

/// An encoded response.
#[derive(Debug)]
struct Template {
    body: Vec<u8>,
    lsn_at: usize,
}

impl Shape {
    fn new() -> Shape {
        let id = OperationId { client: ClientId(u128::MAX), sequence: 0, known_lsn: Lsn(0) };
        let condition = Condition::Any;
        let encode = |operation_id, operation| codec::encode(&Request { deadline_ms: 0, operation_id, operation });
        let get = |id| encode(id, Operation::Get { key: b"k" });
        let put = |id| encode(id, Operation::Put { key: b"k", value: b"", content_type: "", condition, ttl_ms: None });
        let delete = |id| encode(id, Operation::Delete { key: b"k", condition });
        let operation_at = [None, Some(id)].map(|id| difference(&get(id), &put(id)));
        let operation = |encoded: Vec<u8>| encoded[operation_at[0]];
        Shape {
            has_id_at: difference(&get(None), &get(Some(id))),
            operation_at,
            read: operation(get(None)),
            writes: [operation(put(None)), operation(delete(None))],
        }
    }

    /// The byte that says what is asked.
    #[inline]
    fn operation(&self, body: &[u8]) -> Option<u8> {
        let has_id = usize::from(*body.get(self.has_id_at)?);
        body.get(*self.operation_at.get(has_id)?).copied()
    }
}

impl Template {
    fn new<'a>(response: impl Fn(Version) -> Response<'a>) -> Template {
        let encode = |lsn| codec::encode(&response(Version { history: HistoryId(0), lsn: Lsn(lsn) }));
        let body = encode(0);
        let lsn_at = difference(&body, &encode(u64::MAX));
        Template { body, lsn_at }
    }

    #[inline]
    fn append(&self, out: &mut Vec<u8>, lsn: u64) {
        let at = out.len() + self.lsn_at;
        out.extend_from_slice(&self.body);
        out[at..at + size_of::<u64>()].copy_from_slice(&lsn.to_le_bytes());
    }
}

/// The first byte that differs.
fn difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).position(|(a, b)| a != b).expect("they differ")
}

impl Answers {
    pub(super) fn new(value_size: usize, error_every: Option<u64>) -> Answers {
        let value = &*vec![b'x'; value_size];
        let failed = WireError::new(ErrorCode::Overloaded, "an error that --error-every asks for");
        Answers {
            shape: Shape::new(),
            found: Template::new(|version| Response::Value {
                at: AT,
                version,
                expires_in_ms: None,
                content_type: "",
                value,
            }),
            written: Template::new(|version| Response::Written { at: AT, version }),
            failed: codec::encode(&Response::Error(failed)),
            error_every,
            asked: Cell::new(0),
        }
    }

    /// Appends the answer to a message; `here` is where the caller reached this server.
    #[inline]
    pub(super) fn append(&self, out: &mut Vec<u8>, message: &Message<'_>, here: SocketAddr) -> Next {
        let operation = if message.kind == Kind::Request { self.shape.operation(message.body) } else { None };
        let template = match operation {
            Some(read) if read == self.shape.read => &self.found,
            Some(write) if self.shape.writes.contains(&write) => &self.written,
            _ => return rare(out, message, here),
        };
        let asked = self.asked.get() + 1;
        self.asked.set(asked);
        let fails = self.error_every.is_some_and(|every| asked.is_multiple_of(every));
        frame::append_message(out, Kind::Response, message.id, |body| {
            if fails { body.extend_from_slice(&self.failed) } else { template.append(body, asked) }
        });
        Next::Answered
    }
}

/// Answers what is no read or write.
#[cold]
fn rare(out: &mut Vec<u8>, message: &Message<'_>, here: SocketAddr) -> Next {
    match message.kind {
        Kind::Request => {}
        Kind::Hello => return greet(out, message.body),
        other => return refuse(out, ErrorCode::BadFrame, format!("{other:?} is not what clients send")),
    }
    let request = match codec::decode::<Request<'_>>(message.body) {
        Ok(request) => request,
        Err(e) => return refuse(out, ErrorCode::Malformed, e.to_string()),
    };
    let response = match request.operation {
        Operation::Map => Response::Map(Box::new(view(here))),
        Operation::Ping => Response::Pong,
        _ => {
            let said = "this is kvbench echo, which has no such thing; ask a node";
            Response::Error(WireError::new(ErrorCode::Malformed, said))
        }
    };
    frame::append_message(out, Kind::Response, message.id, |body| codec::encode_into(body, &response));
    Next::Greeted
}

/// Appends a refusal.
pub(super) fn refuse(out: &mut Vec<u8>, code: ErrorCode, message: String) -> Next {
    let error = WireError::new(code, message);
    frame::append_message(out, Kind::Refusal, 0, |body| codec::encode_into(body, &error));
    Next::Close
}

fn node() -> NodeId {
    NodeId::new("echo").expect("a valid name")
}

fn greet(out: &mut Vec<u8>, hello: &[u8]) -> Next {
    if let Err(e) = codec::decode::<Hello>(hello) {
        return refuse(out, ErrorCode::Malformed, e.to_string());
    }
    let welcome = Welcome {
        cluster: Some(CLUSTER),
        node: node(),
        disk: DISK,
        executor: ExecutorIndex(0),
        executors: 1,
        limits: LIMITS,
    };
    frame::append_message(out, Kind::Welcome, 0, |body| codec::encode_into(body, &welcome));
    Next::Greeted
}

/// A cluster of this server alone.
fn view(here: SocketAddr) -> NodeView {
    let leader = Member { node: node(), disk: DISK };
    let configuration = Configuration { epoch: AT.epoch, history: HistoryId(0), leader, in_sync: Vec::new() };
    let partition = Partition { shard: ShardId(0), configuration: Some(configuration) };
    let map = ClusterMap {
        cluster: CLUSTER,
        version: MapVersion(1),
        replicas: 1,
        ack: AckMode::Durable,
        shards: vec![Shard::default()],
        partitions: vec![partition; usize::from(PARTITIONS)],
        nodes: vec![Node {
            id: node(),
            disk: DISK,
            shard: ShardId(0),
            prefers_to_lead: true,
            address: here.to_string(),
            executors: 1,
        }],
    };
    NodeView { map: Some(map), owners: (0..PARTITIONS).map(|p| (PartitionId(p), ExecutorIndex(0))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(answers: &Answers, request: &[u8]) -> (Next, Vec<u8>) {
        let mut out = Vec::new();
        let message = Message { kind: Kind::Request, id: 7, body: request };
        let next = answers.append(&mut out, &message, "127.0.0.1:7000".parse().expect("an address"));
        (next, out[frame::HEADER_BYTES..].to_vec())
    }

    #[test]
    fn a_few_bytes_tell_what_is_asked() {
        let id = OperationId { client: ClientId(3), sequence: 4, known_lsn: Lsn(5) };
        let condition = Condition::Version(Version { history: HistoryId(1), lsn: Lsn(2) });
        let put =
            Operation::Put { key: b"key", value: &[9; 1000], content_type: "text/plain", condition, ttl_ms: None };
        let (answers, mut lsn) = (Answers::new(5, None), 0);
        for operation_id in [None, Some(id)] {
            for (operation, found) in [
                (Operation::Get { key: b"key" }, true),
                (put, false),
                (Operation::Delete { key: b"key", condition }, false),
            ] {
                let request = codec::encode(&Request { deadline_ms: u32::MAX, operation_id, operation });
                let (next, body) = answer(&answers, &request);
                lsn += 1;
                let version = Version { history: HistoryId(0), lsn: Lsn(lsn) };
                let value = Response::Value { at: AT, version, expires_in_ms: None, content_type: "", value: b"xxxxx" };
                let expected = if found { value } else { Response::Written { at: AT, version } };
                assert_eq!((next, codec::decode(&body)), (Next::Answered, Ok(expected)), "{operation:?}");
            }
        }
    }

    #[test]
    fn what_is_no_read_or_write_is_decoded() {
        let answers = Answers::new(5, Some(1));
        for (operation, expected) in
            [(Operation::Ping, Some(Response::Pong)), (Operation::Stats, None), (Operation::Report, None)]
        {
            let (next, body) =
                answer(&answers, &codec::encode(&Request { deadline_ms: 1, operation_id: None, operation }));
            let response: Response<'_> = codec::decode(&body).expect("a response");
            assert_eq!(next, Next::Greeted, "no error of --error-every");
            match expected {
                Some(expected) => assert_eq!(response, expected),
                None => assert!(matches!(response, Response::Error(_)), "{response:?}"),
            }
        }
        assert_eq!(answer(&answers, b"").0, Next::Close);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            answer(&Answers::new(5, None), &bytes);
        }
    }
}
