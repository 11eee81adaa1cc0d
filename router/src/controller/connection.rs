//! One connection of a node with the controller.
//!
//! ```text
//! node: Hello{Node}        → Welcome, or a refusal and the end
//! node: Register           → Registered, then the map now and after every change; or Refused
//! node: Propose            → Decided
//! node: Ping               → Pong
//!
//! controller: Hello{Controller}  → Welcome, then an answer to each question (`raft/messages.rs`)
//! ```
//!
//! Maps are pushed with id 0, everything else answers under the id of what it answers.
//!
//! # Invariants
//! * Nothing but a hello is taken before the hello, and no proposal before the registration.
//! * A proposal is made in the name of the node that sends it, with the disk that it registered.
//! * A node that reads slowly gets the newest map when it reads again, and none of those between.
//! * What a stranger can make the controller hold is bounded: 4 KiB before the hello.
//! * Who has not registered within [`Settings::hello_timeout`] of the accept is gone, whatever it has sent by then.

use super::{
    config_store::{ConfigStore, Decision},
    error::CasError,
    raft::messages,
    server::{Present, PresentNode, Settings},
};
use kv_proto::{
    cluster_map::Node,
    codec,
    control::{FromController, Proposal, ToController},
    error_code::{ErrorCode, WireError},
    frame::{Decoder, FrameError, Kind, append_message},
    hello::{Caller, Hello, MAX_HELLO_BYTES, Welcome},
    ids::{DiskId, ExecutorIndex, Member},
};
use kv_replication::{
    cluster::{Cluster, Command},
    configuration,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// Longest message of a node, in bytes: proposals for every partition of the largest cluster fit.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// How long the process that has a node's name may take to say that it is there.
const NAMESAKE_TIMEOUT: Duration = Duration::from_millis(500);
/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Why a connection ends.
enum End {
    /// The node went away, or did not keep to the time that it has.
    Gone(io::Error),
    /// It did what cannot be answered but by this.
    Refused(WireError),
    /// It speaks HTTP.
    Http,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Gone(error)
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Http => End::Http,
            FrameError::UnsupportedVersion(_) => refused(ErrorCode::UnsupportedVersion, error.to_string()),
            _ => refused(ErrorCode::BadFrame, error.to_string()),
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

fn refused(code: ErrorCode, message: impl Into<String>) -> End {
    End::Refused(WireError::new(code, message))
}

/// Serves a connection until it ends.
pub(super) async fn serve(stream: TcpStream, store: ConfigStore, settings: &Settings, present: Arc<Present>) {
    let maps = store.watch();
    let decoder = Decoder::new(MAX_HELLO_BYTES);
    let mut connection = Connection {
        stream,
        store,
        settings,
        present,
        decoder,
        input: Vec::new(),
        output: Vec::new(),
        state: State::New,
        due: Instant::now() + settings.hello_timeout,
        maps,
    };
    let Err(end) = connection.run().await;
    let name = connection.name();
    match end {
        End::Gone(error) => tracing::debug!(node = name, %error, "a node's connection ended"),
        End::Refused(error) => {
            tracing::warn!(node = name, %error, "a connection of the controller's port was refused");
            connection.output.clear();
            append_message(&mut connection.output, Kind::Refusal, 0, |body| codec::encode_into(body, &error));
        }
        End::Http => connection.output = HTTP_ANSWER.as_bytes().to_vec(),
    }
    // Best effort: whoever misbehaved may be gone.
    let _ = connection.flush().await;
    let _ = connection.stream.shutdown().await;
}

/// For a person with a browser or curl at the wrong port.
const HTTP_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
     this is the controller's port, where nodes speak the binary protocol; the HTTP API is served by the router on its \
     --http port, by default 5000\n";

/// What the other end is known to be.
enum State {
    New,
    /// Said hello.
    Welcome,
    Registered {
        node: Box<Node>,
        /// Keeps another process from taking the name.
        _place: PresentNode,
    },
    /// Another controller.
    Controller {
        /// One of those that there are.
        _place: OwnedSemaphorePermit,
    },
}

struct Connection<'a> {
    stream: TcpStream,
    store: ConfigStore,
    settings: &'a Settings,
    present: Arc<Present>,
    decoder: Decoder,
    /// Received, not decoded yet: less than one frame and one read.
    input: Vec<u8>,
    /// To be sent.
    output: Vec<u8>,
    state: State,
    /// When a stranger must have registered.
    due: Instant,
    maps: watch::Receiver<Arc<Cluster>>,
}

impl Connection<'_> {
    fn name(&self) -> &str {
        match &self.state {
            State::Registered { node, .. } => node.id.as_str(),
            State::Controller { .. } => "a controller",
            State::New | State::Welcome => "unknown",
        }
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        loop {
            let (deadline, what) = self.deadline();
            self.input.reserve(READ_BYTES);
            tokio::select! {
                // The time is looked at first, so that it also ends for who never stops sending.
                biased;
                () = sleep_until(deadline) => return Err(late(what).into()),
                changed = self.maps.changed(), if matches!(self.state, State::Registered { .. }) => {
                    if changed.is_ok() {
                        self.push_map();
                    }
                }
                read = self.stream.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(End::Gone(io::ErrorKind::UnexpectedEof.into()));
                    }
                    self.handle_input().await?;
                }
            }
            self.flush().await?;
        }
    }

    /// Until when the other end must do its part, and what became of it if it does not.
    fn deadline(&self) -> (Instant, &'static str) {
        match self.state {
            State::New | State::Welcome => (self.due, "it did not register in time"),
            State::Registered { .. } | State::Controller { .. } => {
                (Instant::now() + self.settings.idle_timeout, "it was silent, or did not read, for too long")
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            let (deadline, what) = self.deadline();
            timeout_at(deadline, self.stream.write_all(&self.output)).await.map_err(|_| late(what))??;
            self.output.clear();
            self.output.shrink_to(READ_BYTES);
        }
        Ok(())
    }

    async fn handle_input(&mut self) -> Result<(), End> {
        let mut start = 0;
        loop {
            let (used, message) = self.decoder.decode(&self.input[start..])?;
            start += used;
            let Some(message) = message else { break };
            let (kind, id) = (message.kind, message.id);
            match (&self.state, kind) {
                (State::New, Kind::Hello) => {
                    let hello = codec::decode(message.body);
                    self.handle_hello(id, hello.map_err(|e| refused(ErrorCode::BadFrame, e.to_string()))?)?;
                }
                (State::Welcome | State::Registered { .. }, Kind::ToController) => {
                    let message = codec::decode(message.body);
                    self.handle(id, message.map_err(|e| refused(ErrorCode::Malformed, e.to_string()))?).await?;
                }
                (State::Controller { .. }, Kind::Consensus) => {
                    let answer = self.store.answer(message.body).await;
                    let body = serde_json::to_vec(&answer).map_err(io::Error::other)?;
                    append_message(&mut self.output, Kind::Consensus, id, |b| b.extend_from_slice(&body));
                }
                (State::New, _) => return Err(refused(ErrorCode::BadFrame, "a connection begins with a hello")),
                _ => {
                    let message = format!("a controller takes no {kind:?} from a node");
                    return Err(refused(ErrorCode::BadFrame, message));
                }
            }
        }
        self.input.drain(..start);
        Ok(())
    }

    fn handle_hello(&mut self, id: u64, hello: Hello) -> Result<(), End> {
        let ours = self.store.cluster();
        if let (Some(theirs), Some(ours)) = (hello.cluster, ours)
            && theirs != ours
        {
            let message = format!(
                "this controller keeps cluster {ours}, not {theirs}: point --controller at the controller of {theirs}, or \
                 start the node without its data"
            );
            return Err(refused(ErrorCode::WrongCluster, message));
        }
        let (state, limit) = match hello.caller {
            Caller::Node => (State::Welcome, MAX_MESSAGE_BYTES),
            Caller::Controller => (State::Controller { _place: self.controller_place()? }, messages::MAX_BYTES),
            Caller::Client | Caller::Peer { .. } => {
                let message = "this is the controller's port, where only nodes register; clients connect to the nodes' \
                               own ports, or use the router's HTTP API";
                return Err(refused(ErrorCode::BadFrame, message));
            }
        };
        let welcome = Welcome {
            cluster: ours,
            node: self.settings.router,
            // A router keeps no partition: its disk is that of its controller, and it has no executors to tell of.
            disk: DiskId(u128::from(self.store.id())),
            executor: ExecutorIndex(0),
            executors: 1,
            limits: self.settings.limits,
        };
        append_message(&mut self.output, Kind::Welcome, id, |body| codec::encode_into(body, &welcome));
        self.decoder.set_limit(limit);
        self.state = state;
        Ok(())
    }

    fn controller_place(&self) -> Result<OwnedSemaphorePermit, End> {
        if !self.store.has_peers() {
            let message =
                "this is the only controller of its cluster; give it --controller-peers to have it be one of several";
            return Err(refused(ErrorCode::BadFrame, message));
        }
        let place = self.settings.controllers.clone().try_acquire_owned();
        place.map_err(|_| refused(ErrorCode::TooManyConnections, "as many controllers are connected as can be"))
    }

    async fn handle(&mut self, id: u64, message: ToController) -> Result<(), End> {
        match message {
            ToController::Ping => self.answer(id, &FromController::Pong),
            ToController::Register { cluster, node } => {
                let elsewhere = self.store.has_peers() && namesake_answers(&self.store.get(), &node).await;
                let place = self.present.enter(node.id, node.disk);
                let Some(place) = place.filter(|_| !elsewhere) else {
                    let why = format!(
                        "another process is registered as {}: give this one another --id, or stop that one first",
                        node.id
                    );
                    tracing::warn!(node = %node.id, address = node.address, "a node of the same name is here already");
                    self.answer(id, &FromController::Refused(why));
                    return Ok(());
                };
                match self.store.cas(Command::Register { cluster, node: node.clone() }).await {
                    Ok(_) => {
                        tracing::info!(node = %node.id, address = node.address, shard = %node.shard, "a node registered");
                        self.state = State::Registered { node: Box::new(node), _place: place };
                        self.answer(id, &FromController::Registered { cluster: self.store.get().map.cluster });
                        self.push_map();
                    }
                    Err(error @ CasError::Refused(_)) => {
                        tracing::warn!(node = %node.id, %error, "a node cannot take part");
                        self.answer(id, &FromController::Refused(error.to_string()));
                    }
                    // The node tries again, perhaps at another controller.
                    Err(error @ (CasError::NoLeader | CasError::Unknown(_))) => {
                        return Err(End::Gone(io::Error::other(error)));
                    }
                }
            }
            ToController::Propose(proposals) => {
                let decided = self.decide(proposals).await?;
                self.answer(id, &FromController::Decided(decided));
            }
        }
        Ok(())
    }

    /// Carries out what may be; a proposal in a stranger's name is refused before it reaches the store.
    async fn decide(&self, proposals: Vec<Proposal>) -> Result<Vec<Option<String>>, End> {
        let State::Registered { node, .. } = &self.state else {
            return Err(refused(ErrorCode::BadFrame, "a node registers before it proposes"));
        };
        let own = Member { node: node.id, disk: node.disk };
        let mut decided: Vec<Option<String>> = Vec::with_capacity(proposals.len());
        let mut allowed = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            decided.push(match configuration::asking(&proposal.change) {
                Some(member) if member == own => None,
                Some(other) => Some(format!("{own} cannot propose in the name of {other}")),
                None => Some(
                    "no node may ask for this change: the controller creates partitions, a person recovers them"
                        .to_string(),
                ),
            });
            if decided.last() == Some(&None) {
                allowed.push(proposal);
            }
        }
        let outcomes = match self.store.cas(Command::Propose(allowed)).await {
            Ok(Decision::Decided(outcomes)) => outcomes,
            Ok(Decision::Registered | Decision::Done) => Vec::new(),
            // Whether it was carried out is not known, so that no answer would be true.
            Err(error) => return Err(End::Gone(io::Error::other(error))),
        };
        for (place, outcome) in decided.iter_mut().filter(|d| d.is_none()).zip(outcomes) {
            *place = outcome;
        }
        Ok(decided)
    }

    fn answer(&mut self, id: u64, message: &FromController) {
        append_message(&mut self.output, Kind::FromController, id, |body| codec::encode_into(body, message));
    }

    fn push_map(&mut self) {
        let map = self.maps.borrow_and_update().map.clone();
        self.answer(0, &FromController::Map(map));
    }
}

/// Whether a process with another disk answers at the address that is registered under the node's name. Who is connected to
/// another controller is not known here, but the process itself can be asked.
async fn namesake_answers(cluster: &Cluster, node: &Node) -> bool {
    let Some(known) = cluster.map.node(node.id).filter(|known| known.disk != node.disk) else { return false };
    let ask = async {
        let mut stream = TcpStream::connect(&known.address).await.ok()?;
        let (mut bytes, mut decoder) = (Vec::new(), Decoder::new(MAX_HELLO_BYTES));
        let hello = Hello { cluster: None, caller: Caller::Client, executor: None };
        append_message(&mut bytes, Kind::Hello, 0, |body| codec::encode_into(body, &hello));
        stream.write_all(&bytes).await.ok()?;
        bytes.clear();
        loop {
            if let (_, Some(message)) = decoder.decode(&bytes).ok()? {
                return codec::decode::<Welcome>(message.body).ok();
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
    };
    let welcome = timeout(NAMESAKE_TIMEOUT, ask).await.ok().flatten();
    welcome.is_some_and(|welcome| welcome.node == node.id && welcome.disk == known.disk)
}
