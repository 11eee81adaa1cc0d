//! One TCP connection under a codec: bytes out, replies in.
//!
//! Knows sockets; knows nothing of any protocol. Allocates nothing per request: one buffer to send, one to read.
//!
//! # Invariants
//! * Bytes leave in the order in which they were encoded, and a batch is closed before any of it leaves.
//! * Replies that arrived before the connection ended are handed over before its end is told.
//! * What is read ahead is bounded: a reply that is not complete after [`MAX_REPLY_BYTES`] ends the connection.

use super::{Broken, Codec, Connection, Reply, Request};
use bytes::{Buf, BytesMut};
use kv_client::{Address, read_now};
use std::{io, time::Duration};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Longest reply that is taken; what is a little longer than that in the buffer is its frame.
pub(super) const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes that may wait without making a complete reply.
const MAX_INCOMING_BYTES: usize = MAX_REPLY_BYTES + 1024 * 1024;
/// Room for one read.
const READ_BYTES: usize = 64 * 1024;
/// A buffer that grew past this for a burst is given back once it is empty.
const KEEP_BYTES: usize = 1024 * 1024;

/// A connection that speaks `C`.
#[derive(Debug)]
pub(crate) struct StreamConnection<C> {
    stream: TcpStream,
    codec: C,
    address: Address,
    incoming: BytesMut,
    outgoing: Outgoing,
    in_flight: usize,
    /// Requests were pushed since the last batch was closed.
    batch_is_open: bool,
    /// Why nothing more comes; told when everything that did come was handed over.
    ended: Option<Broken>,
}

impl<C: Codec> StreamConnection<C> {
    /// Connects and greets, both within `patience`.
    ///
    /// # Errors
    /// `unreachable`, or `refused` when the target does not want this client.
    pub(crate) async fn connect(
        address: &Address,
        codec: C,
        patience: Duration,
    ) -> Result<StreamConnection<C>, Broken> {
        let unreachable = |cause: String| Broken { code: "unreachable", cause: format!("{address}: {cause}") };
        let deadline = Instant::now() + patience;
        let silent = |what: &str| unreachable(format!("{what} within {} ms", patience.as_millis()));
        let stream = timeout_at(deadline, TcpStream::connect(address.as_str()))
            .await
            .map_err(|_| silent("no connection"))?
            .map_err(|e| unreachable(format!("{e}; check that the target runs and listens there")))?;
        stream.set_nodelay(true).map_err(|e| unreachable(format!("TCP_NODELAY cannot be set: {e}")))?;
        let mut connection = StreamConnection {
            stream,
            outgoing: Outgoing { bytes: codec.greeting().unwrap_or_default(), sent: 0 },
            codec,
            address: address.clone(),
            incoming: BytesMut::with_capacity(READ_BYTES),
            in_flight: 0,
            batch_is_open: false,
            ended: None,
        };
        timeout_at(deadline, connection.greet()).await.map_err(|_| silent("no answer to the greeting"))??;
        Ok(connection)
    }

    async fn greet(&mut self) -> Result<(), Broken> {
        loop {
            self.try_send();
            let greeted = self.codec.greeted(&self.incoming);
            let refused = |cause| Broken { code: "refused", cause: format!("{}: {cause}", self.address) };
            if let Some(used) = greeted.map_err(refused)? {
                self.incoming.advance(used);
                return Ok(());
            }
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            self.wait().await;
        }
    }

    /// Sends what the kernel takes now.
    fn try_send(&mut self) {
        if let Err(e) = self.outgoing.flush_into(|bytes| self.stream.try_write(bytes)) {
            // Who closes often says why before; what has arrived can still be read.
            while self.ended.is_none() && self.try_read() > 0 && self.incoming.len() < MAX_INCOMING_BYTES {}
            self.end("connection_lost", &e.to_string());
        }
    }

    /// Reads what is there, up to the room of one read; 0 says that nothing was.
    fn try_read(&mut self) -> usize {
        self.incoming.reserve(READ_BYTES);
        if self.incoming.is_empty() && self.incoming.capacity() > KEEP_BYTES {
            self.incoming = BytesMut::with_capacity(READ_BYTES);
        }
        match read_now(&mut self.stream, &mut self.incoming) {
            Some(Ok(0)) => self.end("connection_lost", "the target closed the connection"),
            Some(Ok(n)) => return n,
            None => {}
            Some(Err(e)) => self.end("connection_lost", &e.to_string()),
        }
        0
    }

    /// Waits until something can be sent or read, and reads. Cancel-safe.
    async fn wait(&mut self) {
        let unsent = !self.outgoing.bytes.is_empty();
        let interest = if unsent { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        match self.stream.ready(interest).await {
            Ok(ready) if ready.is_readable() => _ = self.try_read(),
            Ok(_) => {}
            Err(e) => self.end("connection_lost", &e.to_string()),
        }
    }

    /// The first cause counts.
    fn end(&mut self, code: &'static str, cause: &str) {
        self.ended.get_or_insert_with(|| Broken { code, cause: format!("{}: {cause}", self.address) });
    }

    fn close_batch(&mut self) {
        if self.batch_is_open {
            self.codec.end_batch(&mut self.outgoing.bytes);
            self.batch_is_open = false;
        }
    }

    /// Hands every complete reply over that was read.
    fn decode(&mut self, mut on_reply: impl FnMut(u64, Reply<'_>)) -> Result<usize, Broken> {
        if self.incoming.is_empty() {
            return Ok(0);
        }
        let mut count = 0;
        let decoded = self.codec.decode(&self.incoming, &mut |tag, reply| {
            count += 1;
            on_reply(tag, reply);
        });
        let surplus = count > self.in_flight;
        self.in_flight = self.in_flight.saturating_sub(count);
        match decoded {
            Ok(used) if !surplus => self.incoming.advance(used),
            Ok(_) => self.end("protocol_error", "the target sent more replies than it got requests"),
            Err(cause) => self.end("protocol_error", &cause),
        }
        if self.codec.is_closing() {
            self.end("connection_lost", "the target said that it closes the connection after this reply");
        }
        if self.incoming.len() > MAX_INCOMING_BYTES {
            self.end(
                "protocol_error",
                &format!("a reply is longer than {MAX_REPLY_BYTES} bytes, the most that is taken"),
            );
        }
        match &self.ended {
            // Whatever is in the buffer is of no use.
            Some(ended) if ended.code == "protocol_error" => Err(ended.clone()),
            _ => Ok(count),
        }
    }
}

#[cfg(test)]
impl<C> StreamConnection<C> {
    /// Requests that were pushed and are not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl<C: Codec> Connection for StreamConnection<C> {
    fn push(&mut self, tag: u64, request: &Request<'_>) {
        self.codec.encode(&mut self.outgoing.bytes, tag, request);
        self.in_flight += 1;
        self.batch_is_open = true;
    }

    /// Replies that arrive meanwhile are kept for `receive`, so that a target that answers before it reads on never waits for this
    /// side, nor this side for it. When very many of them are there, the rest is sent by `receive`.
    async fn flush(&mut self) -> Result<(), Broken> {
        self.close_batch();
        loop {
            if self.ended.is_none() {
                self.try_send();
            }
            match &self.ended {
                Some(ended) if self.incoming.is_empty() => return Err(ended.clone()),
                Some(_) => return Ok(()),
                None if self.outgoing.bytes.is_empty() || self.incoming.len() > MAX_INCOMING_BYTES / 2 => return Ok(()),
                None => self.wait().await,
            }
        }
    }

    async fn receive(&mut self, mut on_reply: impl FnMut(u64, Reply<'_>)) -> Result<usize, Broken> {
        self.close_batch();
        loop {
            let count = self.decode(&mut on_reply)?;
            if count > 0 {
                return Ok(count);
            }
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            if self.in_flight == 0 {
                return Ok(0);
            }
            self.try_send();
            if self.ended.is_none() {
                self.wait().await;
            }
        }
    }
}

/// What is to be sent, and how much of it was.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// How much of `bytes` the kernel has taken.
    sent: usize,
}

impl Outgoing {
    /// Gives `write` what it takes.
    fn flush_into(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match write(&self.bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
