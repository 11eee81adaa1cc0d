//! One TCP connection to a node, up to its greeting: bytes out, messages in. The floor under both
//! [`crate::Pipeline`] and the connections of [`crate::Client`].
//!
//! Knows frames and the hello; knows neither requests nor who waits for an answer. Never blocks but in
//! [`Socket::open`] and [`Socket::ready`].
//!
//! # Invariants
//! * A message is taken only up to the limit that the node told, and a hello's answer up to a fixed one.
//! * Bytes leave in the order in which they were appended.

use crate::Error;
use bytes::{Buf, BytesMut};
use kv_proto::{
    codec,
    error_code::{Outcome, WireError},
    frame::{self, Decoder, Kind},
    hello::{Caller, Hello, MAX_HELLO_BYTES, Welcome},
    ids::{ClusterId, ExecutorIndex},
    limits::{HIGHEST_MAX_VALUE_BYTES, Limits},
    response::Response,
};
use std::{
    io,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, Interest, Ready},
    net::TcpStream,
    task::coop::unconstrained,
    time::timeout,
};

/// Room for one read.
const READ_BYTES: usize = 64 * 1024;
/// A send buffer that grew past this for a burst is given back once it is empty.
const KEEP_SEND_BYTES: usize = 1024 * 1024;

/// How to connect to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The cluster that the node must belong to; `None` takes any.
    pub cluster: Option<ClusterId>,
    /// The executor that shall serve the connection; `None` takes any.
    pub executor: Option<ExecutorIndex>,
    /// How long connecting and greeting may take together.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions { cluster: None, executor: None, timeout: Duration::from_secs(1) }
    }
}

/// Why a socket is of no use any more, in words.
pub(crate) type Cause = String;

#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    decoder: Decoder,
    incoming: BytesMut,
    outgoing: Outgoing,
}

impl Socket {
    /// Connects to `address` (`host:port`) and greets.
    pub(crate) async fn open(address: &str, options: &ConnectOptions) -> Result<(Socket, Welcome), Error> {
        let unreachable = |cause: String| Error::Unreachable { node: address.to_owned(), cause };
        let connect = async {
            let stream = TcpStream::connect(address)
                .await
                .map_err(|e| unreachable(format!("{e}; check that the node runs and listens there")))?;
            stream.set_nodelay(true).map_err(|e| unreachable(format!("TCP_NODELAY cannot be set: {e}")))?;
            let mut socket = Socket {
                stream,
                decoder: Decoder::new(MAX_HELLO_BYTES),
                incoming: BytesMut::with_capacity(READ_BYTES),
                outgoing: Outgoing::default(),
            };
            let welcome = socket.greet(options).await.map_err(|e| match e {
                GreetError::Refused(e) => Error::from(e),
                GreetError::Broken(cause) => unreachable(cause),
                GreetError::NotThisProtocol(cause) => Error::Protocol {
                    node: address.to_owned(),
                    cause: format!("{cause}; is this the binary port of a kv node?"),
                    outcome: Outcome::NotApplied,
                },
            })?;
            socket.decoder.set_limit(message_limit(welcome.limits));
            Ok((socket, welcome))
        };
        let silent = |_| unreachable(format!("no answer to the greeting within {} ms", options.timeout.as_millis()));
        timeout(options.timeout, connect).await.map_err(silent)?
    }

    async fn greet(&mut self, options: &ConnectOptions) -> Result<Welcome, GreetError> {
        let hello = Hello { cluster: options.cluster, caller: Caller::Client, executor: options.executor };
        frame::append_message(self.outgoing(), Kind::Hello, 0, |body| codec::encode_into(body, &hello));
        loop {
            self.try_flush().map_err(GreetError::Broken)?;
            self.ready(self.interest()).await.map_err(GreetError::Broken)?;
            self.try_read().map_err(GreetError::Broken)?;
            let not_this = |e: &dyn std::fmt::Display| GreetError::NotThisProtocol(e.to_string());
            let (used, message) = self.decoder.decode(&self.incoming).map_err(|e| not_this(&e))?;
            let Some(message) = message else {
                self.incoming.advance(used);
                continue;
            };
            let welcome = match message.kind {
                Kind::Welcome => codec::decode::<Welcome>(message.body).map_err(|e| not_this(&e))?,
                Kind::Refusal => {
                    let refusal = codec::decode::<WireError>(message.body).map_err(|e| not_this(&e))?;
                    return Err(GreetError::Refused(refusal));
                }
                other => return Err(not_this(&format!("it answered the greeting with a {other:?}"))),
            };
            self.incoming.advance(used);
            return Ok(welcome);
        }
    }

    /// Where messages are appended that are to be sent by the next [`Socket::try_flush`].
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing.bytes
    }

    /// Takes a filled buffer to send and leaves an empty one in its place.
    ///
    /// # Panics
    /// When something is still to be sent.
    pub(crate) fn swap_outgoing(&mut self, filled: &mut Vec<u8>) {
        assert!(!self.has_unsent(), "{} bytes are still to be sent", self.outgoing.bytes.len());
        std::mem::swap(&mut self.outgoing.bytes, filled);
    }

    /// Whether something is still to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.outgoing.bytes.is_empty()
    }

    /// Sends what the kernel takes now.
    pub(crate) fn try_flush(&mut self) -> Result<(), Cause> {
        self.outgoing.flush_into(|bytes| self.stream.try_write(bytes)).map_err(|e| e.to_string())
    }

    /// Bytes that the kernel took since the socket was opened, the hello among them; right also after an error.
    pub(crate) fn taken(&self) -> u64 {
        self.outgoing.taken
    }

    /// What to wait for: always for bytes, and for room to send where something is to be sent.
    pub(crate) fn interest(&self) -> Interest {
        if self.has_unsent() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE }
    }

    /// Waits until the socket can do one of `interest`; it may be wrong.
    pub(crate) async fn ready(&self, interest: Interest) -> Result<Ready, Cause> {
        self.stream.ready(interest).await.map_err(|e| e.to_string())
    }

    /// Reads what is there, up to the room of one read; 0 says that nothing was.
    pub(crate) fn try_read(&mut self) -> Result<usize, Cause> {
        self.incoming.reserve(READ_BYTES);
        match read_now(&mut self.stream, &mut self.incoming) {
            Some(Ok(0)) => Err("it was closed by the node".to_owned()),
            Some(Ok(n)) => Ok(n),
            None => Ok(0),
            Some(Err(e)) => Err(e.to_string()),
        }
    }

    /// Hands every complete response that was read to `each`, in the order of their arrival; says how many.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(u64, Response<'_>)) -> Result<usize, Cause> {
        let (mut used, mut count) = (0, 0);
        let result = loop {
            let (length, message) = match self.decoder.decode(&self.incoming[used..]) {
                Ok(decoded) => decoded,
                Err(e) => break Err(e.to_string()),
            };
            used += length;
            let Some(message) = message else { break Ok(count) };
            match message.kind {
                Kind::Response => match codec::decode::<Response<'_>>(message.body) {
                    Ok(response) => each(message.id, response),
                    Err(e) => break Err(e.to_string()),
                },
                Kind::Refusal => match codec::decode::<WireError>(message.body) {
                    Ok(refusal) => break Err(refusal.to_string()),
                    Err(e) => break Err(e.to_string()),
                },
                other => break Err(format!("the node sent a {other:?}, which no client expects")),
            }
            count += 1;
        };
        self.incoming.advance(used);
        result
    }
}

/// Reads what is there into the room that `buffer` has, without waiting; `None` if nothing is there. For who waits for a socket
/// by [`TcpStream::ready`].
///
/// Unlike [`TcpStream::try_read_buf`] it notices that a short read leaves nothing behind, so that the next `ready` waits and
/// no read is in vain.
///
/// # Errors
/// The socket's own.
pub fn read_now(stream: &mut TcpStream, buffer: &mut BytesMut) -> Option<io::Result<usize>> {
    // A task that has used up its budget would be told that nothing is there, while `ready`, which takes none, says the contrary
    // for ever.
    let read = pin!(unconstrained(stream.read_buf(buffer)));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => Some(read),
        Poll::Pending => None,
    }
}

/// What is to be sent, and how much of it was.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// How much of `bytes` the kernel has taken.
    sent: usize,
    /// How much the kernel has taken altogether.
    taken: u64,
}

impl Outgoing {
    /// Gives `write` what it takes. Whatever it took is counted, even if it fails at what follows.
    fn flush_into(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match write(&self.bytes[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.taken += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_SEND_BYTES {
            self.bytes = Vec::new();
        }
        Ok(())
    }
}

enum GreetError {
    Refused(WireError),
    Broken(Cause),
    NotThisProtocol(Cause),
}

/// The longest message to take from a node. Maps and stats must fit where values are small; and no node can
/// make a client take more than the protocol lets nodes be told.
fn message_limit(told: Limits) -> usize {
    let highest = Limits { max_value_bytes: HIGHEST_MAX_VALUE_BYTES as u32 }.max_message_bytes();
    told.max_message_bytes().clamp(Limits::default().max_message_bytes(), highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::coop::{consume_budget, has_budget_remaining};

    #[test]
    fn what_the_kernel_took_is_counted_whatever_comes_after_it() {
        let blocked = || Err(io::ErrorKind::WouldBlock.into());
        let broken = || Err(io::ErrorKind::ConnectionReset.into());
        let mut outgoing = Outgoing { bytes: vec![0; 10], ..Outgoing::default() };
        let mut flush = |results: Vec<io::Result<usize>>| {
            let mut results = results.into_iter();
            let ok = outgoing.flush_into(|_| results.next().expect("asked too often")).is_ok();
            (ok, outgoing.taken, outgoing.bytes.len())
        };
        assert_eq!(flush(vec![Ok(3), blocked()]), (true, 3, 10));
        assert_eq!(flush(vec![blocked()]), (true, 3, 10));
        assert_eq!(flush(vec![Ok(2), broken()]), (false, 5, 10));
        assert_eq!(flush(vec![Ok(4), Ok(1)]), (true, 10, 0));
        assert_eq!(flush(vec![]), (true, 10, 0));
    }

    /// Else who reads much in one go would be told for ever that there is something, and read nothing.
    #[tokio::test]
    async fn what_is_there_is_read_even_by_a_task_without_budget() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (mut other, _) = listener.accept().await.expect("accepted");
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        assert!(read_now(&mut stream, &mut buffer).is_none());
        tokio::io::AsyncWriteExt::write_all(&mut other, b"there").await.expect("taken");
        stream.readable().await.expect("open");
        while has_budget_remaining() {
            let _ = pin!(consume_budget()).poll(&mut Context::from_waker(Waker::noop()));
        }
        assert!(matches!(read_now(&mut stream, &mut buffer), Some(Ok(5))));
        assert!(read_now(&mut stream, &mut buffer).is_none());
        drop(other);
        stream.readable().await.expect("open");
        assert!(matches!(read_now(&mut stream, &mut buffer), Some(Ok(0))));
    }

    #[test]
    fn the_limit_of_a_node_holds_within_those_of_the_protocol() {
        const MIB: usize = 1024 * 1024;
        for (told, limit) in [(1, MIB), (2 * MIB, 2 * MIB), (u32::MAX as usize, 16 * MIB)] {
            let told = Limits { max_value_bytes: told as u32 };
            assert_eq!(message_limit(told), limit + 64 * 1024);
        }
    }
}
