//! The native protocol, over the client's pipeline.

use super::{Broken, Connection, Offers, Reply, Request};
use kv_client::{
    Address, ConnectOptions, Error, Pipeline,
    proto::{
        error_code::Outcome,
        ids::NodeId,
        request::{Condition, Operation, Request as Frame},
        response::Response,
    },
};
use std::{borrow::Cow, time::Duration};

/// What nodes offer.
pub(crate) const OFFERS: Offers =
    Offers { conditions: true, increment: false, ordered_versions: true, operation_ids: true };

/// A connection to one executor of one node.
#[derive(Debug)]
pub(crate) struct KvConnection {
    pipeline: Pipeline,
    deadline_ms: u32,
}

impl KvConnection {
    /// Connects; `node` is who must answer there, if that is known.
    pub(crate) async fn connect(
        address: &Address,
        node: Option<NodeId>,
        options: &ConnectOptions,
        deadline: Duration,
    ) -> Result<KvConnection, Broken> {
        let pipeline = Pipeline::connect(address, options).await.map_err(broken)?;
        let answers = pipeline.welcome().node;
        if node.is_some_and(|node| node != answers) {
            return Err(Broken { code: "unreachable", cause: format!("{answers} answers at {address}") });
        }
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        Ok(KvConnection { pipeline, deadline_ms })
    }
}

impl Connection for KvConnection {
    fn push(&mut self, tag: u64, request: &Request<'_>) {
        let (operation, operation_id) = match *request {
            Request::Get { key } => (Operation::Get { key }, None),
            Request::Put { key, value, only_if, operation_id } => {
                let condition = only_if.map_or(Condition::Any, Condition::Version);
                (Operation::Put { key, value, content_type: "", condition, ttl_ms: None }, operation_id)
            }
            Request::Delete { key, operation_id } => {
                (Operation::Delete { key, condition: Condition::Any }, operation_id)
            }
            Request::Increment { .. } => unreachable!("nodes do not offer it"),
        };
        self.pipeline.push(tag, &Frame { deadline_ms: self.deadline_ms, operation_id, operation });
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        self.pipeline.flush().await.map_err(broken)
    }

    async fn receive(&mut self, mut on_reply: impl FnMut(u64, Reply<'_>)) -> Result<usize, Broken> {
        self.pipeline.receive(|tag, response| on_reply(tag, reply(&response))).await.map_err(broken)
    }
}

fn reply<'a>(response: &'a Response<'_>) -> Reply<'a> {
    match response {
        Response::Value { value, version, .. } => Reply::Value { value, version: Some(*version) },
        Response::Missing { .. } => Reply::Missing,
        Response::Written { version, .. } => Reply::Written { version: Some(*version) },
        Response::ConditionFailed { .. } => Reply::Conflict,
        Response::Error(e) => {
            Reply::Failed { code: Cow::Borrowed(e.code.as_str()), unknown: e.code.outcome() == Outcome::Unknown }
        }
        Response::TooOld { committed, .. } => Reply::TooOld { committed: *committed },
        _ => Reply::Failed { code: Cow::Borrowed("protocol_error"), unknown: true },
    }
}

fn broken(error: Error) -> Broken {
    Broken { code: error.code(), cause: error.to_string() }
}
