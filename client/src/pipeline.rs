//! The low-level face: one connection, many requests in flight, no future for each of them.
//!
//! For load generators and other hot paths that batch by themselves. Has no map, no routing, no retries, no
//! deadlines and no heartbeat: who uses it brings them.

use crate::{
    Address, ConnectOptions, Error,
    socket::{Cause, Socket},
};
use kv_proto::{
    codec,
    error_code::Outcome,
    frame::{self, Kind},
    hello::Welcome,
    request::{Operation, Request},
    response::{NodeView, Response},
};

/// A connection to one executor of one node.
///
/// Requests are gathered by [`Pipeline::push`], sent by [`Pipeline::flush`], and their answers taken by
/// [`Pipeline::receive`]: in any order, told apart by the ids that the caller gave. After an error the pipeline
/// is of no use, and what was sent and not answered may or may not have been done.
///
/// The caller bounds what is in flight; see [`Pipeline::in_flight`].
///
/// ```no_run
/// # async fn example() -> Result<(), kv_client::Error> {
/// use kv_client::{ConnectOptions, Pipeline, proto::request::{Operation, Request}};
///
/// let mut pipeline = Pipeline::connect(&"kv://127.0.0.1:5001".parse()?, &ConnectOptions::default()).await?;
/// for (id, key) in [b"a", b"b", b"c"].iter().enumerate() {
///     let operation = Operation::Get { key: *key };
///     pipeline.push(id as u64, &Request { deadline_ms: 2000, operation_id: None, operation });
/// }
/// pipeline.flush().await?;
/// while pipeline.in_flight() > 0 {
///     pipeline.receive(|id, response| println!("{id}: {response:?}")).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipeline {
    socket: Socket,
    address: Address,
    welcome: Welcome,
    in_flight: usize,
}

impl Pipeline {
    /// Connects and greets.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Rejected`] with the node's reason, or [`Error::Protocol`] where no node
    /// of this protocol listens.
    pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<Pipeline, Error> {
        let (socket, welcome) = Socket::open(address.as_str(), options).await?;
        Ok(Pipeline { socket, address: address.clone(), welcome, in_flight: 0 })
    }

    /// What the node said when it took the connection: who it is, which executor serves, what the limits are.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Requests that were pushed and are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Appends a request to what the next flush sends. `id` comes back with the answer; whether it is free is
    /// the caller's business.
    pub fn push(&mut self, id: u64, request: &Request<'_>) {
        frame::append_message(self.socket.outgoing(), Kind::Request, id, |body| codec::encode_into(body, request));
        self.in_flight += 1;
    }

    /// Sends everything that was pushed. Answers that arrive meanwhile are kept for [`Pipeline::receive`], so that
    /// a node that answers before it reads on never waits for this side, nor this side for it.
    ///
    /// Cancel-safe: what was not sent is sent by the next flush or receive.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        loop {
            self.socket.try_flush().map_err(|cause| self.lost(cause))?;
            if !self.socket.has_unsent() {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Waits for answers and hands each to `on_response` with its request's id; says how many. Returns when at
    /// least one was there and no other complete one is; at once with 0 when nothing is in flight.
    ///
    /// Cancel-safe: no answer is lost.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`]; answers that came before the connection broke were handed over.
    pub async fn receive(&mut self, mut on_response: impl FnMut(u64, Response<'_>)) -> Result<usize, Error> {
        loop {
            let mut count = 0;
            let drained = self.socket.drain(|id, response| {
                count += 1;
                on_response(id, response);
            });
            let surplus = count > self.in_flight;
            self.in_flight = self.in_flight.saturating_sub(count);
            drained.map_err(|cause| self.lost(cause))?;
            if surplus {
                return Err(self.lost("the node sent more answers than it was asked for".to_owned()));
            }
            if count > 0 || self.in_flight == 0 {
                return Ok(count);
            }
            self.socket.try_flush().map_err(|cause| self.lost(cause))?;
            self.wait().await?;
        }
    }

    /// Asks the node what it knows of the cluster. Only while nothing is in flight.
    ///
    /// # Errors
    /// As of [`Pipeline::receive`]; [`Error::Rejected`] when the node does not tell.
    ///
    /// # Panics
    /// When something is in flight: its answer would be lost.
    pub async fn node_view(&mut self) -> Result<NodeView, Error> {
        assert_eq!(self.in_flight, 0, "requests are in flight");
        self.push(0, &Request { deadline_ms: u32::MAX, operation_id: None, operation: Operation::Map });
        let mut answer = None;
        self.receive(|_, response| {
            answer = Some(match response {
                Response::Map(view) => Ok(*view),
                Response::Error(e) => Err(Ok(e)),
                other => Err(Err(format!("it answered a question for its map with {other:?}"))),
            });
        })
        .await?;
        match answer.expect("a receive that was not in vain has an answer") {
            Ok(view) => Ok(view),
            Err(Ok(refusal)) => Err(refusal.into()),
            Err(Err(cause)) => {
                let node = self.welcome.node.to_string();
                Err(Error::Protocol { node, cause, outcome: Outcome::NotApplied })
            }
        }
    }

    /// Gives up the pipeline for the connection under it.
    pub(crate) fn into_socket(self) -> (Socket, Welcome) {
        assert_eq!(self.in_flight, 0, "requests are in flight");
        (self.socket, self.welcome)
    }

    async fn wait(&mut self) -> Result<(), Error> {
        let ready = self.socket.ready(self.socket.interest()).await.map_err(|cause| self.lost(cause))?;
        if ready.is_readable() {
            self.socket.try_read().map_err(|cause| self.lost(cause))?;
        }
        Ok(())
    }

    fn lost(&self, cause: Cause) -> Error {
        let node = format!("{} at {}", self.welcome.node, self.address);
        Error::ConnectionLost { node, cause, outcome: Outcome::Unknown }
    }
}
