//! A node as far as a router can tell: answers clients from a table, and errors for keys that ask for them.

use kv_proto::{
    cluster_map::Node,
    codec,
    error_code::{ErrorCode, WireError},
    frame::{Decoder, Kind, append_message},
    hello::{Hello, Welcome},
    ids::{ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, NodeId, PartitionId, ShardId, Version},
    limits::Limits,
    request::{AdminCommand, Condition, Operation, Request},
    response::{Answered, NodeView, Response},
    routing::partition_of,
    stats::{NodeStats, ReplicaStats, Role},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU64,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

pub(crate) const PARTITIONS: u16 = 8;
pub(crate) const DISK: DiskId = DiskId(7);

/// A write of this key is never answered; a read neither.
pub(crate) const SILENT: &str = "silent";
/// A write of this key is answered when [`FakeNode::let_go`] says so.
pub(crate) const HELD: &str = "held";

#[derive(Clone)]
pub(crate) struct FakeNode {
    pub(crate) address: SocketAddr,
    table: Arc<Mutex<Table>>,
    held: Arc<Notify>,
    /// A request for [`HELD`] has come.
    pub(crate) holding: Arc<Notify>,
    task: Arc<Option<AbortHandle>>,
}

#[derive(Default)]
struct Table {
    last: u64,
    values: HashMap<Vec<u8>, (Vec<u8>, String, Version)>,
    lives: HashMap<Vec<u8>, Option<NonZeroU64>>,
    trouble: Option<String>,
    commands: Vec<AdminCommand>,
}

impl FakeNode {
    pub(crate) async fn start() -> FakeNode {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut node = FakeNode {
            address,
            table: Arc::default(),
            held: Arc::default(),
            holding: Arc::default(),
            task: Arc::default(),
        };
        let serving = node.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serving.clone().serve(stream));
            }
        });
        node.task = Arc::new(Some(task.abort_handle()));
        node
    }

    /// Closes all connections and the port.
    pub(crate) fn stop(&self) {
        self.task.iter().for_each(AbortHandle::abort);
    }

    /// As it registers.
    pub(crate) fn node(&self, name: &str) -> Node {
        Node {
            id: NodeId::new(name).expect("a node id"),
            disk: DISK,
            shard: ShardId(0),
            prefers_to_lead: true,
            address: self.address.to_string(),
            executors: 1,
        }
    }

    pub(crate) fn has(&self, key: &[u8]) -> bool {
        self.table.lock().expect("no panic").values.contains_key(key)
    }

    /// The life that the last write of a key gave it.
    pub(crate) fn ttl_ms(&self, key: &[u8]) -> Option<u64> {
        self.table.lock().expect("no panic").lives[key].map(NonZeroU64::get)
    }

    pub(crate) fn set_trouble(&self, trouble: Option<&str>) {
        self.table.lock().expect("no panic").trouble = trouble.map(str::to_string);
    }

    /// The commands that it was given.
    pub(crate) fn commands(&self) -> Vec<AdminCommand> {
        self.table.lock().expect("no panic").commands.clone()
    }

    pub(crate) fn let_go(&self) {
        self.held.notify_one();
    }

    async fn serve(self, mut stream: TcpStream) {
        let (mut input, mut decoder) = (Vec::new(), Decoder::new(Limits::default().max_message_bytes()));
        let mut output = Vec::new();
        while stream.read_buf(&mut input).await.is_ok_and(|n| n > 0) {
            let mut start = 0;
            loop {
                let (used, message) = decoder.decode(&input[start..]).expect("frames");
                start += used;
                let Some(message) = message else { break };
                match message.kind {
                    Kind::Hello => {
                        let hello: Hello = codec::decode(message.body).expect("a hello");
                        append_message(&mut output, Kind::Welcome, message.id, |b| {
                            codec::encode_into(b, &welcome(hello.cluster));
                        });
                    }
                    _ => {
                        let request: Request<'_> = codec::decode(message.body).expect("a request");
                        let key = request.operation.key().unwrap_or_default().to_vec();
                        if key == SILENT.as_bytes() {
                            continue;
                        }
                        if key == HELD.as_bytes() {
                            self.holding.notify_one();
                            self.held.notified().await;
                        }
                        self.answer(&request.operation, |response| {
                            append_message(&mut output, Kind::Response, message.id, |b| {
                                codec::encode_into(b, response);
                            });
                        });
                    }
                }
            }
            input.drain(..start);
            if stream.write_all(&output).await.is_err() {
                return;
            }
            output.clear();
        }
    }

    fn answer(&self, operation: &Operation<'_>, send: impl FnOnce(&Response<'_>)) {
        let mut table = self.table.lock().expect("no panic");
        let key = operation.key().unwrap_or_default();
        let at = Answered { partition: partition_of(key, PARTITIONS), epoch: Epoch(1) };
        let text = String::from_utf8_lossy(key);
        if let Some(code) = ErrorCode::ALL.iter().find(|code| text == format!("error:{code}")) {
            return send(&Response::Error(WireError::new(*code, "as the key asks")));
        }
        let current = table.values.get(key).map(|(_, _, version)| *version);
        let allows = |condition: Condition| match condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Version(version) => current == Some(version),
        };
        match *operation {
            Operation::Get { .. } => match table.values.get(key) {
                Some((value, content_type, version)) => {
                    let expires_in_ms = table.lives[key];
                    send(&Response::Value { at, version: *version, expires_in_ms, content_type, value });
                }
                None => send(&Response::Missing { at }),
            },
            Operation::Put { condition, .. } | Operation::Delete { condition, .. } if !allows(condition) => {
                send(&Response::ConditionFailed { at, current });
            }
            Operation::Delete { .. } if current.is_none() => send(&Response::Missing { at }),
            Operation::Put { .. } | Operation::Delete { .. } => {
                table.last += 1;
                let version = Version { history: HistoryId(0), lsn: Lsn(table.last) };
                if let Operation::Put { value, content_type, ttl_ms, .. } = *operation {
                    table.lives.insert(key.to_vec(), ttl_ms);
                    table.values.insert(key.to_vec(), (value.to_vec(), content_type.to_string(), version));
                } else {
                    table.values.remove(key);
                }
                send(&Response::Written { at, version });
            }
            Operation::Map => {
                let owners = (0..PARTITIONS).map(|p| (PartitionId(p), ExecutorIndex(0))).collect();
                send(&Response::Map(Box::new(NodeView { map: None, owners })));
            }
            Operation::Stats => send(&Response::Stats(Box::new(stats(table.trouble.clone())))),
            Operation::Report => send(&Response::Error(WireError::new(ErrorCode::Malformed, "no router asks for it"))),
            Operation::Ping => send(&Response::Pong),
            Operation::Admin(command) => {
                table.commands.push(command);
                // It has one follower, in all partitions but the first.
                if command.partition() == PartitionId(0) {
                    send(&Response::Error(WireError::new(ErrorCode::NotInSync, "it has no in-sync follower")));
                } else {
                    send(&Response::Accepted { at: Answered { partition: command.partition(), epoch: Epoch(1) } });
                }
            }
        }
    }
}

fn welcome(cluster: Option<ClusterId>) -> Welcome {
    Welcome {
        cluster,
        node: NodeId::new("n0").expect("a node id"),
        disk: DISK,
        executor: ExecutorIndex(0),
        executors: 1,
        limits: Limits::default(),
    }
}

fn stats(trouble: Option<String>) -> NodeStats {
    let replica = |partition| ReplicaStats {
        partition: PartitionId(partition),
        executor: ExecutorIndex(0),
        epoch: Epoch(1),
        role: Role::Leader,
        trouble: trouble.clone(),
        prepared_lsn: Lsn(0),
        flushed_lsn: Lsn(0),
        committed_lsn: Lsn(0),
        applied_lsn: Lsn(0),
        keys: 0,
        bytes: 0,
        memory_bytes: 0,
        digest: "0".repeat(16),
    };
    NodeStats {
        node: NodeId::new("n0").expect("a node id"),
        disk: DISK,
        uptime_s: 0,
        connections: 1,
        requests: 0,
        memory_bytes: 0,
        max_memory_bytes: None,
        generation: 1,
        log_bytes: 0,
        disk_full: false,
        replicas: (0..PARTITIONS).map(replica).collect(),
    }
}
