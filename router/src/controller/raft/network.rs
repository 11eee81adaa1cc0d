//! How openraft reaches the other controllers.

use super::{
    Types,
    messages::{Request, Response},
    peers::{Peer, PeerError, Peers},
};
use openraft::{
    AnyError, OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot, Vote,
    error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How soon one that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Makes connections.
pub(crate) struct Network(pub(crate) Arc<Peers>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &()) -> Connection {
        Connection { peers: self.0.clone(), target, peer: None }
    }
}

/// A connection to one controller, made when it is needed.
pub(crate) struct Connection {
    peers: Arc<Peers>,
    target: u64,
    peer: Option<Peer>,
}

type Rpc<T> = Result<T, RPCError<u64, (), RaftError<u64>>>;

impl Connection {
    /// openraft leaves questions that take too long; their connection is not here then, and the next one is another.
    async fn ask(&mut self, request: &Request) -> Result<Response, PeerError> {
        let mut peer = match self.peer.take() {
            Some(peer) => peer,
            None => self.peers.connect(self.target).await?,
        };
        let response = peer.ask(request).await?;
        self.peer = Some(peer);
        Ok(response)
    }

    async fn rpc<T>(&mut self, request: Request, expected: impl FnOnce(Response) -> Result<T, Response>) -> Rpc<T> {
        let response = self.ask(&request).await.map_err(|error| Unreachable::new(&error))?;
        expected(response).map_err(|other| NetworkError::from(AnyError::error(format!("{other:?}"))).into())
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Rpc<AppendEntriesResponse<u64>> {
        let expected = |response| if let Response::Append(r) = response { Ok(r) } else { Err(response) };
        self.rpc(Request::Append(request), expected).await
    }

    async fn vote(&mut self, request: VoteRequest<u64>, _: RPCOption) -> Rpc<VoteResponse<u64>> {
        let expected = |response| if let Response::Vote(r) = response { Ok(r) } else { Err(response) };
        self.rpc(Request::Vote(request), expected).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let request = Request::Snapshot { vote, meta: snapshot.meta, cluster: *snapshot.snapshot };
        let response = tokio::select! {
            closed = cancel => return Err(closed.into()),
            asked = timeout(option.hard_ttl(), self.ask(&request)) => match asked {
                Ok(response) => response.map_err(|error| Unreachable::new(&error))?,
                Err(late) => return Err(Unreachable::new(&late).into()),
            },
        };
        match response {
            Response::Snapshot(response) => Ok(response),
            other => Err(NetworkError::from(AnyError::error(format!("{other:?}"))).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}
