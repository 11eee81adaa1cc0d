//! A node that does what a test tells it to.

use kv_client::proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    codec,
    error_code::{ErrorCode, WireError},
    frame::{self, Decoder, Kind},
    hello::{Hello, Welcome},
    ids::{
        ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, MapVersion, Member, NodeId, OperationId, PartitionId,
        ShardId, Version,
    },
    limits::Limits,
    request::{Operation, Request},
    response::{Answered, NodeView, Response},
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);
pub(crate) const AT: Answered = Answered { partition: PartitionId(0), epoch: Epoch(1) };

/// What the node does about a message.
pub(crate) enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does nothing.
    Ignore,
    /// Closes the connection.
    Cut,
}

/// The answer `response` to request `id`.
pub(crate) fn answer(id: u64, response: &Response<'_>) -> Act {
    Act::Send(message(Kind::Response, id, &codec::encode(response)))
}

pub(crate) fn written(id: u64) -> Act {
    answer(id, &Response::Written { at: AT, version: version(1) })
}

pub(crate) fn error(id: u64, error: WireError) -> Act {
    answer(id, &Response::Error(error))
}

pub(crate) fn version(lsn: u64) -> Version {
    Version { history: HistoryId(0), lsn: Lsn(lsn) }
}

/// A whole message.
pub(crate) fn message(kind: Kind, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::append_message(&mut out, kind, id, |b| b.extend_from_slice(body));
    out
}

pub(crate) fn refusal(code: ErrorCode, why: &str) -> Act {
    Act::Send(message(Kind::Refusal, 0, &codec::encode(&WireError::new(code, why))))
}

type OnHello = dyn Fn(&Hello) -> Act + Send + Sync;
type OnRequest = dyn Fn(u64, &Operation<'_>) -> Act + Send + Sync;

/// What a node saw: hellos and operations, in the order of their arrival.
#[derive(Default)]
struct Seen {
    hellos: Vec<Hello>,
    operations: Vec<String>,
    operation_ids: Vec<Option<OperationId>>,
}

struct Inner {
    open: AtomicUsize,
    reads: watch::Sender<bool>,
    view: Mutex<NodeView>,
    seen: Mutex<Seen>,
    on_hello: Box<OnHello>,
    on_request: Box<OnRequest>,
}

/// A listening node; gone with all its connections when it is dropped.
pub(crate) struct FakeNode {
    pub(crate) id: NodeId,
    pub(crate) address: String,
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

pub(crate) fn welcome(name: &str, executor: u16) -> Welcome {
    Welcome {
        cluster: Some(CLUSTER),
        node: NodeId::new(name).expect("valid"),
        disk: DiskId(1),
        executor: ExecutorIndex(executor),
        executors: 2,
        limits: Limits::default(),
    }
}

impl FakeNode {
    /// A node that greets politely, answers pings and questions for its map, and leaves the rest to `on_request`.
    pub(crate) async fn start(
        name: &str,
        on_request: impl Fn(u64, &Operation<'_>) -> Act + Send + Sync + 'static,
    ) -> Self {
        let owned = name.to_owned();
        let on_hello = move |hello: &Hello| {
            let executor = hello.executor.unwrap_or_default();
            Act::Send(message(Kind::Welcome, 0, &codec::encode(&welcome(&owned, executor.0))))
        };
        Self::start_at(name, "127.0.0.1:0", on_hello, on_request).await
    }

    pub(crate) async fn start_at(
        name: &str,
        address: &str,
        on_hello: impl Fn(&Hello) -> Act + Send + Sync + 'static,
        on_request: impl Fn(u64, &Operation<'_>) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind a port");
        let address = listener.local_addr().expect("bound").to_string();
        let inner = Arc::new(Inner {
            open: AtomicUsize::new(0),
            reads: watch::Sender::new(true),
            view: Mutex::new(NodeView { map: None, owners: Vec::new() }),
            seen: Mutex::default(),
            on_hello: Box::new(on_hello),
            on_request: Box::new(on_request),
        });
        let shared = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    shared.open.fetch_add(1, SeqCst);
                    serve(stream, &shared).await;
                    shared.open.fetch_sub(1, SeqCst);
                });
            }
        });
        FakeNode { id: NodeId::new(name).expect("valid"), address, inner, task }
    }

    pub(crate) fn set_view(&self, map: &ClusterMap, owners: &[(u16, u16)]) {
        let owners = owners.iter().map(|(p, e)| (PartitionId(*p), ExecutorIndex(*e))).collect();
        *self.inner.view.lock().expect("not poisoned") = NodeView { map: Some(map.clone()), owners };
    }

    pub(crate) fn hellos(&self) -> Vec<Hello> {
        self.inner.seen.lock().expect("not poisoned").hellos.clone()
    }

    /// What was asked, pings and questions for the map left out.
    pub(crate) fn operations(&self) -> Vec<String> {
        self.inner.seen.lock().expect("not poisoned").operations.clone()
    }

    /// The ids of what was asked.
    pub(crate) fn operation_ids(&self) -> Vec<Option<OperationId>> {
        self.inner.seen.lock().expect("not poisoned").operation_ids.clone()
    }

    /// Whether the node reads on.
    pub(crate) fn read(&self, reads: bool) {
        self.inner.reads.send_replace(reads);
    }

    /// Connections that are open now.
    pub(crate) fn open_connections(&self) -> usize {
        self.inner.open.load(SeqCst)
    }

    /// Stops listening, closes all connections, and frees the port.
    pub(crate) async fn stop(mut self) -> String {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.address.clone()
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, inner: &Inner) {
    let mut decoder = Decoder::new(64 * 1024 * 1024);
    let mut bytes = Vec::new();
    loop {
        let mut start = 0;
        let mut out = Vec::new();
        loop {
            let (used, message) = decoder.decode(&bytes[start..]).expect("the client sends frames");
            start += used;
            let Some(message) = message else { break };
            let act = match message.kind {
                Kind::Hello => {
                    let hello: Hello = codec::decode(message.body).expect("the client sends hellos");
                    inner.seen.lock().expect("not poisoned").hellos.push(hello.clone());
                    (inner.on_hello)(&hello)
                }
                Kind::Request => {
                    let request: Request<'_> = codec::decode(message.body).expect("the client sends requests");
                    match request.operation {
                        Operation::Map => {
                            let view = inner.view.lock().expect("not poisoned").clone();
                            answer(message.id, &Response::Map(Box::new(view)))
                        }
                        operation => {
                            if operation != Operation::Ping {
                                let mut seen = inner.seen.lock().expect("not poisoned");
                                seen.operations.push(format!("{operation:?}"));
                                seen.operation_ids.push(request.operation_id);
                            }
                            (inner.on_request)(message.id, &operation)
                        }
                    }
                }
                other => panic!("the client sent a {other:?}"),
            };
            match act {
                Act::Send(bytes) => out.extend(bytes),
                Act::Ignore => {}
                Act::Cut => return,
            }
        }
        bytes.drain(..start);
        if stream.write_all(&out).await.is_err() {
            return;
        }
        inner.reads.subscribe().wait_for(|reads| *reads).await.expect("the sender lives in inner");
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
}

/// A map of one partition for each of `leaders`, in epoch 1; all `nodes` are in it.
pub(crate) fn map(nodes: &[(&str, &str)], leaders: &[&str]) -> ClusterMap {
    let node = |(name, address): &(&str, &str)| Node {
        id: NodeId::new(name).expect("valid"),
        disk: DiskId(1),
        shard: ShardId(0),
        prefers_to_lead: true,
        address: (*address).to_owned(),
        executors: 2,
    };
    let partition = |leader: &&str| Partition { shard: ShardId(0), configuration: Some(configuration(1, leader)) };
    ClusterMap {
        cluster: CLUSTER,
        version: MapVersion(1),
        replicas: 1,
        ack: AckMode::Durable,
        shards: vec![Shard::default()],
        nodes: nodes.iter().map(node).collect(),
        partitions: leaders.iter().map(partition).collect(),
    }
}

pub(crate) fn configuration(epoch: u64, leader: &str) -> Configuration {
    let leader = Member { node: NodeId::new(leader).expect("valid"), disk: DiskId(1) };
    Configuration { epoch: Epoch(epoch), history: HistoryId(0), leader, in_sync: Vec::new() }
}
