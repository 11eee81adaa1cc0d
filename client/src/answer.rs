//! A node's answer once it is owned by the request that it belongs to.

use bytes::Bytes;
use kv_proto::{
    error_code::WireError,
    ids::Version,
    report::NodeReport,
    response::{Answered, NodeView, Response},
    stats::NodeStats,
};
use std::time::Duration;

/// A key's value, as [`crate::Client::get`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// Its media type; empty says nothing about it.
    pub content_type: String,
    /// Its version.
    pub version: Version,
    /// How long it lived yet when it was read; `None` is for ever.
    pub expires_in: Option<Duration>,
    /// Who answered.
    pub at: Answered,
}

/// A committed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version that the write gave to the key.
    pub version: Version,
    /// Who answered.
    pub at: Answered,
}

/// [`Response`], owned; what is large and rare is boxed, so that a waiting request's place stays small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Value(Entry),
    Missing,
    Written(Written),
    ConditionFailed { at: Answered, current: Option<Version> },
    TooOld { committed: Version },
    Map(Box<NodeView>),
    Stats(Box<NodeStats>),
    Pong,
    Accepted { at: Answered },
    Error(Box<WireError>),
    Report(Box<NodeReport>),
}

impl From<Response<'_>> for Answer {
    fn from(response: Response<'_>) -> Self {
        match response {
            Response::Value { at, version, expires_in_ms, content_type, value } => Answer::Value(Entry {
                value: Bytes::copy_from_slice(value),
                content_type: content_type.to_owned(),
                version,
                expires_in: expires_in_ms.map(|ms| Duration::from_millis(ms.get())),
                at,
            }),
            Response::Missing { .. } => Answer::Missing,
            Response::Written { at, version } => Answer::Written(Written { version, at }),
            Response::ConditionFailed { at, current } => Answer::ConditionFailed { at, current },
            Response::TooOld { committed, .. } => Answer::TooOld { committed },
            Response::Map(view) => Answer::Map(view),
            Response::Stats(stats) => Answer::Stats(stats),
            Response::Pong => Answer::Pong,
            Response::Accepted { at } => Answer::Accepted { at },
            Response::Error(e) => Answer::Error(Box::new(e)),
            Response::Report(report) => Answer::Report(report),
        }
    }
}
