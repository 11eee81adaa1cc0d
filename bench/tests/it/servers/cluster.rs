//! A cluster of nodes that lead its partitions in turn and have executors each. A node answers a request only on the executor
//! where it belongs.

use super::{
    accept, listen, lock,
    store::{Cheat, Store, Wrote},
};
use crate::tool::PATIENCE;
use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    codec,
    error_code::{ErrorCode, WireError},
    frame::{self, Decoder, Kind},
    hello::{Hello, Welcome},
    ids::{ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, MapVersion, Member, NodeId, PartitionId, ShardId},
    limits::Limits,
    request::{Operation, Request},
    response::{Answered, NodeView, Response},
    routing::partition_of,
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PARTITIONS: u16 = 8;
/// From the write to the break.
const BREAK_PAUSE: Duration = Duration::from_millis(20);
const NAMES: [&str; 2] = ["a", "b"];

/// What a cluster does beside answering; what it tells may be true all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Refuses every tenth write.
    Refusing,
    /// Closes a connection in place of the answer to its twentieth request, which it has not looked at.
    Cutting,
    /// Closes a connection in place of the answer to every fiftieth write, which it has done, a while ago: others have seen it.
    Breaking,
    /// Knows no map.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// One or two.
    pub(crate) nodes: usize,
    /// Of each node.
    pub(crate) executors: u16,
    pub(crate) mood: Mood,
    pub(crate) cheat: Option<Cheat>,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { nodes: 2, executors: 2, mood: Mood::Well, cheat: None }
    }
}

/// What all nodes share.
struct Shared {
    shape: Shape,
    map: Mutex<ClusterMap>,
    kept: Mutex<Kept>,
}

struct Kept {
    store: Store,
    writes: u64,
    seen: Vec<Seen>,
}

/// A request that a node has answered, for itself or by a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) node: usize,
    pub(crate) what: &'static str,
    pub(crate) key: Vec<u8>,
    pub(crate) well: bool,
}

pub(crate) struct Cluster {
    shared: Arc<Shared>,
    addresses: Vec<String>,
}

impl Cluster {
    pub(crate) fn start(shape: Shape) -> Cluster {
        let listeners: Vec<_> = (0..shape.nodes).map(|_| listen()).collect();
        let addresses: Vec<String> = listeners.iter().map(|(_, address)| address.clone()).collect();
        let shared = Arc::new(Shared {
            shape,
            map: Mutex::new(map(&addresses, shape.executors)),
            kept: Mutex::new(Kept { store: Store::new(shape.cheat), writes: 0, seen: Vec::new() }),
        });
        for (node, (listener, _)) in listeners.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            accept(listener, move |stream| Line { shared: &shared, node, executor: ExecutorIndex(0) }.serve(stream));
        }
        Cluster { shared, addresses }
    }

    pub(crate) fn well() -> Cluster {
        Cluster::start(Shape::default())
    }

    pub(crate) fn in_mood(mood: Mood) -> Cluster {
        Cluster::start(Shape { mood, ..Shape::default() })
    }

    /// As a target.
    pub(crate) fn url(&self) -> String {
        format!("kv://{}", self.addresses[0])
    }

    pub(crate) fn address(&self, node: usize) -> &str {
        &self.addresses[node]
    }

    /// Everything that was read or written, or refused.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.kept).seen.clone()
    }

    /// Waits until so many more requests were answered.
    pub(crate) fn until_more(&self, requests: usize) {
        let count = || lock(&self.shared.kept).seen.len();
        let (enough, began) = (count() + requests, Instant::now());
        while count() < enough {
            assert!(began.elapsed() < PATIENCE, "{} of {enough} requests were answered", count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// From now on this node leads these partitions, and the others say so.
    pub(crate) fn lead(&self, node: usize, partitions: impl Iterator<Item = u16>) {
        // No request is half answered meanwhile.
        let _kept = lock(&self.shared.kept);
        let mut map = lock(&self.shared.map);
        map.version.0 += 1;
        let leader = member(node);
        for partition in partitions {
            let configuration = map.partitions[usize::from(partition)].configuration.as_mut().expect("all are led");
            configuration.leader = leader;
            configuration.epoch.0 += 1;
        }
    }
}

fn member(node: usize) -> Member {
    Member { node: NodeId::new(NAMES[node]).expect("valid"), disk: DiskId(1) }
}

fn map(addresses: &[String], executors: u16) -> ClusterMap {
    let node = |(index, address): (usize, &String)| Node {
        id: member(index).node,
        disk: DiskId(1),
        shard: ShardId(0),
        prefers_to_lead: true,
        address: address.clone(),
        executors,
    };
    let partition = |i: u16| {
        let leader = member(usize::from(i) % addresses.len());
        let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync: vec![] };
        Partition { shard: ShardId(0), configuration: Some(configuration) }
    };
    ClusterMap {
        cluster: ClusterId(1),
        version: MapVersion(1),
        replicas: 1,
        ack: AckMode::Durable,
        shards: vec![Shard::default()],
        partitions: (0..PARTITIONS).map(partition).collect(),
        nodes: addresses.iter().enumerate().map(node).collect(),
    }
}

/// A connection.
struct Line<'a> {
    shared: &'a Shared,
    node: usize,
    executor: ExecutorIndex,
}

impl Line<'_> {
    fn serve(mut self, mut stream: TcpStream) {
        let mut decoder = Decoder::new(32 * 1024 * 1024);
        let (mut bytes, mut requests) = (Vec::new(), 0);
        let (mut chunk, mut value) = (vec![0; 64 * 1024], Vec::new());
        loop {
            let (mut start, mut out) = (0, Vec::new());
            loop {
                // What is no frame comes from a caller who takes this for another kind of server.
                let Ok((used, message)) = decoder.decode(&bytes[start..]) else { return };
                start += used;
                let Some(message) = message else { break };
                if message.kind == Kind::Hello {
                    let hello: Hello = codec::decode(message.body).expect("a hello");
                    self.executor = hello.executor.unwrap_or_default();
                    let welcome = self.welcome();
                    frame::append_message(&mut out, Kind::Welcome, 0, |b| codec::encode_into(b, &welcome));
                    continue;
                }
                let request: Request<'_> = codec::decode(message.body).expect("a request");
                requests += 1;
                if self.shared.shape.mood == Mood::Cutting && requests >= 20 {
                    return;
                }
                let Some(response) = self.respond(&request, &mut value) else { return };
                frame::append_message(&mut out, Kind::Response, message.id, |b| codec::encode_into(b, &response));
            }
            bytes.drain(..start);
            if stream.write_all(&out).is_err() {
                return;
            }
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => bytes.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        }
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            cluster: Some(ClusterId(1)),
            node: member(self.node).node,
            disk: DiskId(1),
            executor: self.executor,
            executors: self.shared.shape.executors,
            limits: Limits { max_value_bytes: 4096 },
        }
    }

    /// The executor that owns a partition, on whichever node leads it.
    fn owner(&self, partition: PartitionId) -> ExecutorIndex {
        ExecutorIndex(partition.0 / 2 % self.shared.shape.executors)
    }

    /// Nothing, where the connection is closed in place of an answer.
    fn respond<'a>(&self, request: &Request<'_>, value: &'a mut Vec<u8>) -> Option<Response<'a>> {
        let Some(key) = request.operation.key() else { return Some(self.view()) };
        let partition = partition_of(key, PARTITIONS);
        let what = match request.operation {
            Operation::Get { .. } => "get",
            Operation::Put { .. } => "put",
            _ => "delete",
        };
        let mut kept = lock(&self.shared.kept);
        let configuration = lock(&self.shared.map).configuration(partition).expect("led").clone();
        let is_here = configuration.leader == member(self.node) && self.owner(partition) == self.executor;
        kept.writes += u64::from(what != "get");
        let (writes, mood) = (kept.writes, self.shared.shape.mood);
        let refused = match () {
            () if !is_here => Some(ErrorCode::NotLeader),
            () if what == "put" && mood == Mood::Refusing && writes.is_multiple_of(10) => {
                Some(ErrorCode::FollowerUnreachable)
            }
            () => None,
        };
        kept.seen.push(Seen { node: self.node, what, key: key.to_vec(), well: refused.is_none() });
        if let Some(code) = refused {
            return Some(Response::Error(WireError::new(code, "not now, or not here")));
        }
        let at = Answered { partition, epoch: configuration.epoch };
        let wrote = match request.operation {
            Operation::Put { value, condition, .. } => {
                kept.store.write(partition, key, Some(value), condition, request.operation_id)
            }
            Operation::Delete { condition, .. } => {
                kept.store.write(partition, key, None, condition, request.operation_id)
            }
            _ => {
                return Some(match kept.store.read(key) {
                    Some((version, held)) => {
                        *value = held;
                        Response::Value { at, version, expires_in_ms: None, content_type: "", value }
                    }
                    None => Response::Missing { at },
                });
            }
        };
        drop(kept);
        if mood == Mood::Breaking && writes.is_multiple_of(50) {
            std::thread::sleep(BREAK_PAUSE);
            return None;
        }
        Some(match wrote {
            Wrote::Written(version) => Response::Written { at, version },
            Wrote::Missing => Response::Missing { at },
            Wrote::ConditionFailed(current) => Response::ConditionFailed { at, current },
            Wrote::Refused => Response::Error(WireError::new(ErrorCode::Overloaded, "too much to do")),
        })
    }

    fn view(&self) -> Response<'static> {
        let map = lock(&self.shared.map).clone();
        let me = member(self.node);
        let led = map.partitions().filter(|(p, _)| map.configuration(*p).is_some_and(|c| c.leader == me));
        let owners = led.map(|(partition, _)| (partition, self.owner(partition))).collect();
        Response::Map(Box::new(NodeView { map: (self.shared.shape.mood != Mood::Lost).then_some(map), owners }))
    }
}
