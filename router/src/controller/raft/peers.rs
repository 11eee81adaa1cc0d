//! The other controllers: where they are, and connections to them.
//!
//! # Invariants
//! * A connection that was left before its answer came is never used again.
//! * What a controller is asked reaches the one that has this id, or nobody.

use super::messages::{Identity, MAX_BYTES, Request, Response};
use kv_proto::{
    codec,
    error_code::WireError,
    frame::{Decoder, FrameError, Kind, append_message},
    hello::{Caller, Hello, Welcome},
    ids::ClusterId,
};
use kv_replication::cluster::Cluster;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

/// How long a controller may take to welcome another one, and to say who it is.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(1);

/// Most entries that are passed on at a time: the connections that they take are those of few controllers, which need
/// some for their consensus.
const MAX_PASSING: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// Nobody is there, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no message.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The other end refused.
    #[error("{0}")]
    Refused(String),
    /// It is none that was asked for.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
    /// Nobody of the list has this id, as far as is known.
    #[error("it is not known where controller {0} is")]
    Nowhere(u64),
    /// It said nothing.
    #[error("no answer within {} s", WELCOME_TIMEOUT.as_secs())]
    TimedOut,
}

/// The controllers of the list.
pub(crate) struct Peers {
    /// As listed, this one among them; none at all for the only controller.
    pub(crate) addresses: Vec<String>,
    /// Where each was found last.
    known: Mutex<HashMap<u64, String>>,
    /// Places for entries that are passed on at a time.
    passing: Semaphore,
    /// Connections that wait for the next one; as many as there are places, and to one controller.
    idle: Mutex<Vec<Peer>>,
    clusters: watch::Receiver<Arc<Cluster>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(crate) fn new(addresses: Vec<String>, clusters: watch::Receiver<Arc<Cluster>>) -> Self {
        Peers {
            addresses,
            known: Mutex::default(),
            passing: Semaphore::new(MAX_PASSING),
            idle: Mutex::default(),
            clusters,
        }
    }

    /// Where a controller was found last.
    pub(crate) fn address(&self, id: u64) -> Option<String> {
        locked(&self.known).get(&id).cloned()
    }

    fn cluster(&self) -> Option<ClusterId> {
        made(&self.clusters.borrow())
    }

    /// Asks all who they are; the answers in the order of the list.
    pub(crate) async fn survey(self: &Arc<Self>) -> Vec<Result<Identity, PeerError>> {
        let mut asking = JoinSet::new();
        for (at, address) in self.addresses.iter().cloned().enumerate() {
            let cluster = self.cluster();
            asking.spawn(async move {
                let ask = async {
                    let mut peer = Peer::connect(&address, cluster).await?;
                    match peer.ask(&Request::Who).await? {
                        Response::Who(identity) => Ok(identity),
                        other => Err(PeerError::Unexpected(format!("{other:?}"))),
                    }
                };
                (at, timeout(WELCOME_TIMEOUT, ask).await.unwrap_or(Err(PeerError::TimedOut)))
            });
        }
        let mut answers: Vec<_> = self.addresses.iter().map(|_| Err(PeerError::TimedOut)).collect();
        while let Some(answer) = asking.join_next().await {
            if let Ok((at, answer)) = answer {
                if let Ok(identity) = &answer {
                    locked(&self.known).insert(identity.id, self.addresses[at].clone());
                }
                answers[at] = answer;
            }
        }
        answers
    }

    /// A new connection to this very controller.
    pub(crate) async fn connect(&self, id: u64) -> Result<Peer, PeerError> {
        let address = self.address(id).ok_or(PeerError::Nowhere(id))?;
        let connect = timeout(WELCOME_TIMEOUT, Peer::connect(&address, self.cluster()));
        let peer = connect.await.unwrap_or(Err(PeerError::TimedOut))?;
        if peer.id != id {
            locked(&self.known).remove(&id);
            return Err(PeerError::Nowhere(id));
        }
        Ok(peer)
    }

    /// Asks this controller on a connection of those that wait, or a new one.
    pub(crate) async fn ask(&self, id: u64, request: &Request) -> Result<Response, PeerError> {
        let _place = self.passing.acquire().await.map_err(|e| PeerError::Unexpected(e.to_string()))?;
        let waiting = {
            let mut idle = locked(&self.idle);
            // Those to who led before are of no more use.
            idle.retain(|peer| peer.id == id);
            idle.pop()
        };
        // One that waited may have been closed meanwhile. What is asked may be asked again.
        if let Some(mut peer) = waiting
            && let Ok(response) = peer.ask(request).await
        {
            locked(&self.idle).push(peer);
            return Ok(response);
        }
        let mut peer = self.connect(id).await?;
        let response = peer.ask(request).await?;
        locked(&self.idle).push(peer);
        Ok(response)
    }
}

/// The cluster's id, once there is a cluster.
pub(crate) fn made(cluster: &Cluster) -> Option<ClusterId> {
    Some(cluster.map.cluster).filter(|id| *id != ClusterId(0))
}

/// A connection to another controller, or to this one.
pub(crate) struct Peer {
    stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
    next_id: u64,
    /// Whose it is.
    id: u64,
}

impl Peer {
    async fn connect(address: &str, cluster: Option<ClusterId>) -> Result<Peer, PeerError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut peer = Peer { stream, decoder: Decoder::new(MAX_BYTES), input: Vec::new(), next_id: 1, id: 0 };
        let hello = Hello { cluster, caller: Caller::Controller, executor: None };
        peer.send(Kind::Hello, &codec::encode(&hello)).await?;
        let welcome: Welcome = peer
            .receive(Kind::Welcome, |body| codec::decode(body).map_err(|e| PeerError::Unexpected(e.to_string())))
            .await?;
        peer.id = welcome.disk.0 as u64;
        Ok(peer)
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Response, PeerError> {
        let body = serde_json::to_vec(request).map_err(|e| PeerError::Unexpected(e.to_string()))?;
        self.send(Kind::Consensus, &body).await?;
        self.receive(Kind::Consensus, |body| {
            serde_json::from_slice(body).map_err(|e| PeerError::Unexpected(e.to_string()))
        })
        .await
    }

    async fn send(&mut self, kind: Kind, body: &[u8]) -> Result<(), PeerError> {
        let mut out = Vec::new();
        append_message(&mut out, kind, self.next_id, |b| b.extend_from_slice(body));
        self.next_id += 1;
        Ok(self.stream.write_all(&out).await?)
    }

    async fn receive<T>(
        &mut self,
        expected: Kind,
        read: impl FnOnce(&[u8]) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        loop {
            let (used, message) = self.decoder.decode(&self.input)?;
            if let Some(message) = message {
                let answer = match message.kind {
                    kind if kind == expected => read(message.body),
                    Kind::Refusal => Err(codec::decode::<WireError>(message.body)
                        .map_or_else(|e| PeerError::Unexpected(e.to_string()), |e| PeerError::Refused(e.message))),
                    kind => Err(PeerError::Unexpected(format!("a frame of kind {kind:?}"))),
                };
                self.input.drain(..used);
                return answer;
            }
            self.input.drain(..used);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
