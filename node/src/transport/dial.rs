//! Calls to other processes, up to the point where a connection is welcomed.

use super::socket::Socket;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::{GlommioError, executor, net::TcpStream, timer::timeout};
use kv_proto::{
    codec,
    control::{FromController, ToController},
    error_code::WireError,
    frame::{Decoder, Kind, append_message},
    hello::{Hello, Welcome},
    ids::NodeId,
    limits::HIGHEST_MAX_VALUE_BYTES,
    request::{Operation, Request},
    response::{NodeView, Response},
};
use std::{io, net::ToSocketAddrs, time::Duration};

/// How long a call may take, all its steps together.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The name means nothing, nobody listens, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No answer within the time for one.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
    /// The other end refused, and said why.
    #[error("{0}")]
    Refused(String),
    /// The other end answered what it should not.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// A connection on which one question at a time is asked.
struct Caller {
    stream: TcpStream,
    received: Vec<u8>,
    decoder: Decoder,
}

impl Caller {
    async fn connect(address: &str) -> Result<Caller, CallError> {
        let name = address.to_owned();
        // Resolving blocks, so it is done elsewhere; a literal address comes back at once.
        let addresses: Vec<_> = match name.parse() {
            Ok(literal) => vec![literal],
            Err(_) => executor().spawn_blocking(move || name.to_socket_addrs()).await?.collect(),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // The longest answer is a map with statistics, well below the longest value.
                    return Ok(Caller { stream, received: Vec::new(), decoder: Decoder::new(HIGHEST_MAX_VALUE_BYTES) });
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last.into())
    }

    /// Sends a message and hands the next one that comes back to `read`.
    async fn ask<T>(
        &mut self,
        kind: Kind,
        encode: impl FnOnce(&mut Vec<u8>),
        expected: Kind,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, CallError> {
        let mut out = Vec::new();
        append_message(&mut out, kind, 1, encode);
        self.stream.write_all(&out).await?;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let (used, message) =
                self.decoder.decode(&self.received).map_err(|e| CallError::Unexpected(e.to_string()))?;
            if let Some(message) = message {
                let answer = match message.kind {
                    kind if kind == expected => read(message.body).map_err(CallError::Unexpected),
                    Kind::Refusal => Err(match codec::decode::<WireError>(message.body) {
                        Ok(error) => CallError::Refused(error.message),
                        Err(error) => CallError::Unexpected(error.to_string()),
                    }),
                    kind => Err(CallError::Unexpected(format!("a frame of kind {kind:?}"))),
                };
                self.received.drain(..used);
                return answer;
            }
            self.received.drain(..used);
            match self.stream.read(&mut buffer).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => self.received.extend_from_slice(&buffer[..n]),
            }
        }
    }

    async fn hello(&mut self, hello: &Hello) -> Result<Welcome, CallError> {
        self.ask(
            Kind::Hello,
            |out| codec::encode_into(out, hello),
            Kind::Welcome,
            |body| codec::decode(body).map_err(|e| e.to_string()),
        )
        .await
    }

    /// The socket, for the executor to drive; whatever followed the last answer goes with it.
    fn into_socket(self) -> (Socket, Vec<u8>) {
        (Socket::new(self.stream), self.received)
    }
}

async fn within<T>(call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let timed = timeout(CALL_TIMEOUT, async { Ok(call.await) }).await;
    timed.unwrap_or_else(|_: GlommioError<()>| Err(CallError::TimedOut))
}

/// Calls a node and is welcomed.
pub(crate) async fn call_peer(
    address: &str,
    expected: NodeId,
    hello: &Hello,
) -> Result<(Socket, Vec<u8>, Welcome), CallError> {
    within(async {
        let mut caller = Caller::connect(address).await?;
        let welcome = caller.hello(hello).await?;
        if welcome.node != expected {
            return Err(CallError::Unexpected(format!("{address} is {}, not {expected}", welcome.node)));
        }
        let (socket, rest) = caller.into_socket();
        Ok((socket, rest, welcome))
    })
    .await
}

/// Asks a node what it knows of the cluster, and which of its executors owns what.
pub(crate) async fn ask_view(address: &str, expected: NodeId, hello: &Hello) -> Result<NodeView, CallError> {
    within(async {
        let mut caller = Caller::connect(address).await?;
        let welcome = caller.hello(hello).await?;
        if welcome.node != expected {
            return Err(CallError::Unexpected(format!("{address} is {}, not {expected}", welcome.node)));
        }
        let request =
            Request { deadline_ms: CALL_TIMEOUT.as_millis() as u32, operation_id: None, operation: Operation::Map };
        caller
            .ask(
                Kind::Request,
                |out| codec::encode_into(out, &request),
                Kind::Response,
                |body| match codec::decode::<Response>(body) {
                    Ok(Response::Map(view)) => Ok(*view),
                    Ok(other) => Err(format!("{other:?}")),
                    Err(error) => Err(error.to_string()),
                },
            )
            .await
    })
    .await
}

/// Calls the controller and registers; what the controller has sent beyond its answer comes with the socket.
pub(crate) async fn register(
    address: &str,
    hello: &Hello,
    register: &ToController,
) -> Result<(Socket, Vec<u8>), CallError> {
    within(async {
        let mut caller = Caller::connect(address).await?;
        caller.hello(hello).await?;
        let answer = caller
            .ask(
                Kind::ToController,
                |out| codec::encode_into(out, register),
                Kind::FromController,
                |body| codec::decode::<FromController>(body).map_err(|e| e.to_string()),
            )
            .await?;
        match answer {
            FromController::Registered { .. } => Ok(caller.into_socket()),
            FromController::Refused(why) => Err(CallError::Refused(why)),
            other => Err(CallError::Unexpected(format!("{other:?}"))),
        }
    })
    .await
}
