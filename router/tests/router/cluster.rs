//! A router with one node behind it.

use crate::{
    fake_node::{FakeNode, PARTITIONS},
    http::{Answer, Http, PATIENCE},
};
use clap::Parser as _;
use kv_proto::{
    cluster_map::{ClusterMap, Node},
    codec,
    control::{FromController, ToController},
    error_code::WireError,
    frame::{Decoder, Kind, append_message},
    hello::{Caller, Hello, Welcome},
    ids::ClusterId,
};
use kv_router::{Error, Router, RouterOptions};
use std::net::SocketAddr;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    options: RouterOptions,
}

/// Options for a cluster of one node that keeps everything.
pub(crate) fn options(dir: &TempDir, more: &[&str]) -> RouterOptions {
    let data = dir.path().join("router");
    let partitions = PARTITIONS.to_string();
    let mut args = vec!["router", "--data-dir", data.to_str().expect("a text")];
    for (flag, value) in [
        ("--http", "127.0.0.1:0"),
        ("--controller-listen", "127.0.0.1:0"),
        ("--shards", "1"),
        ("--replicas", "1"),
        ("--partitions", &partitions),
    ] {
        if !more.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(more);
    Cli::try_parse_from(args).expect("options").options
}

/// A router that serves until it is told to stop.
pub(crate) struct Running {
    pub(crate) http: SocketAddr,
    pub(crate) controller: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) async fn start(options: RouterOptions) -> Running {
        let router = Router::start(options).await.expect("started");
        let (http, controller) = (router.http, router.controller);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(router.serve(async move {
            let _ = stopped.await;
            Ok(())
        }));
        Running { http, controller, stop, task }
    }

    pub(crate) fn ask_to_stop(self) -> JoinHandle<Result<(), Error>> {
        let _ = self.stop.send(());
        self.task
    }

    pub(crate) async fn stop(self) {
        let ended = timeout(PATIENCE, self.ask_to_stop()).await.expect("it ends");
        ended.expect("no panic").expect("no error");
    }
}

/// A router, and the node that leads all of its partitions.
pub(crate) struct Cluster {
    pub(crate) router: Running,
    pub(crate) node: FakeNode,
    pub(crate) dir: TempDir,
    /// The node's connection with the controller.
    pub(crate) registered: NodeConnection,
}

impl Cluster {
    pub(crate) async fn start() -> Cluster {
        Cluster::start_with(&[]).await
    }

    pub(crate) async fn start_with(more: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().expect("a folder");
        let router = Running::start(options(&dir, more)).await;
        let node = FakeNode::start().await;
        let mut registered = NodeConnection::open(&router).await;
        assert!(registered.register(node.node("n0")).await.is_complete());
        let cluster = Cluster { router, node, dir, registered };
        cluster.wait_until_ready().await;
        cluster
    }

    pub(crate) async fn http(&self) -> Http {
        Http::connect(self.router.http).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.http().await.ask(request, headers, body).await
    }

    async fn wait_until_ready(&self) {
        let mut http = self.http().await;
        let ready = async { while http.ask("GET /readyz", &[], b"").await.status != 200 {} };
        timeout(PATIENCE, ready).await.expect("ready");
    }
}

/// The binary protocol with a controller, message by message.
pub(crate) struct NodeConnection {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
    decoder: Decoder,
    next_id: u64,
}

/// What a controller sends.
#[derive(Debug)]
pub(crate) enum Received {
    Welcome(Welcome),
    Message(u64, FromController),
    Refusal(WireError),
    End,
}

impl NodeConnection {
    pub(crate) async fn connect(router: &Running) -> NodeConnection {
        let stream = TcpStream::connect(router.controller).await.expect("a connection");
        NodeConnection { stream, input: Vec::new(), decoder: decoder(), next_id: 1 }
    }

    /// Connects with a small receive buffer, and says hello.
    pub(crate) async fn open_slow(router: &Running) -> NodeConnection {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(64 * 1024).expect("a small buffer");
        let stream = socket.connect(router.controller).await.expect("a connection");
        let mut connection = NodeConnection { stream, input: Vec::new(), decoder: decoder(), next_id: 1 };
        connection.hello(None, Caller::Node).await;
        assert!(matches!(connection.receive().await, Received::Welcome(_)));
        connection
    }

    /// Connects and says hello.
    pub(crate) async fn open(router: &Running) -> NodeConnection {
        let mut connection = NodeConnection::connect(router).await;
        connection.hello(None, Caller::Node).await;
        assert!(matches!(connection.receive().await, Received::Welcome(_)));
        connection
    }

    pub(crate) async fn hello(&mut self, cluster: Option<ClusterId>, caller: Caller) {
        let mut bytes = Vec::new();
        let hello = Hello { cluster, caller, executor: None };
        append_message(&mut bytes, Kind::Hello, 0, |b| codec::encode_into(b, &hello));
        self.stream.write_all(&bytes).await.expect("sent");
    }

    /// Sends a message and returns its id.
    pub(crate) async fn send(&mut self, message: &ToController) -> u64 {
        let (mut bytes, id) = (Vec::new(), self.next_id);
        self.next_id += 1;
        append_message(&mut bytes, Kind::ToController, id, |b| codec::encode_into(b, message));
        self.stream.write_all(&bytes).await.expect("sent");
        id
    }

    /// Sends a message and returns its answer; maps that come between are passed over.
    pub(crate) async fn ask(&mut self, message: &ToController) -> FromController {
        let id = self.send(message).await;
        loop {
            match self.receive().await {
                Received::Message(of, answer) if of == id => return answer,
                Received::Message(0, FromController::Map(_)) => {}
                other => panic!("{other:?} instead of an answer to {message:?}"),
            }
        }
    }

    /// Registers, and returns the map that follows.
    pub(crate) async fn register(&mut self, node: Node) -> ClusterMap {
        let answer = self.ask(&ToController::Register { cluster: None, node }).await;
        assert!(matches!(answer, FromController::Registered { .. }), "{answer:?}");
        self.map().await
    }

    /// The next answer of one controller to another, which is JSON.
    pub(crate) async fn answer_of_controller(&mut self) -> String {
        loop {
            let (used, message) = self.decoder.decode(&self.input).expect("frames");
            let answer = message.map(|m| (m.kind, String::from_utf8_lossy(m.body).into_owned()));
            self.input.drain(..used);
            match answer {
                Some((Kind::Consensus, text)) => return text,
                Some((kind, text)) => panic!("{kind:?} {text}"),
                None => {}
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await.expect("an answer");
            assert!(read.is_ok_and(|n| n > 0), "the connection ended");
        }
    }

    pub(crate) async fn map(&mut self) -> ClusterMap {
        match self.receive().await {
            Received::Message(0, FromController::Map(map)) => map,
            other => panic!("{other:?} instead of a map"),
        }
    }

    pub(crate) async fn receive(&mut self) -> Received {
        loop {
            let (used, message) = self.decoder.decode(&self.input).expect("frames");
            let received = message.map(|m| match m.kind {
                Kind::Welcome => Received::Welcome(codec::decode(m.body).expect("a welcome")),
                Kind::Refusal => Received::Refusal(codec::decode(m.body).expect("a refusal")),
                _ => Received::Message(m.id, codec::decode(m.body).expect("a message")),
            });
            self.input.drain(..used);
            if let Some(received) = received {
                return received;
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await.expect("a message or the end");
            if !read.is_ok_and(|n| n > 0) {
                return Received::End;
            }
        }
    }
}

fn decoder() -> Decoder {
    Decoder::new(16 * 1024 * 1024)
}
