//! What is loaded, and how it is spoken to.
//!
//! The load knows requests and replies in words that every target has ([`Request`], [`Reply`]); each protocol puts them into
//! bytes. The native one is a [`kv_client::Pipeline`] (`kv`); the others are codecs without I/O (`http`, `redis`, `memcached`) over one
//! socket each (`stream`); `address` says which is meant.

mod address;
mod http;
mod kv;
mod memcached;
mod redis;
mod stream;
mod text;

#[cfg(test)]
mod model;
#[cfg(test)]
mod real_servers;

pub(crate) use address::Target;
pub(crate) use http::HttpCodec;
pub(crate) use kv::KvConnection;
pub(crate) use memcached::MemcachedCodec;
pub(crate) use redis::RedisCodec;
pub(crate) use stream::StreamConnection;

use kv_client::proto::ids::{OperationId, Version};
use std::{borrow::Cow, future::Future};

/// One request on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Get {
        key: &'a [u8],
    },
    Put {
        key: &'a [u8],
        value: &'a [u8],
        /// Only if the key's value has this version: from an earlier [`Reply::Value`] of the same target.
        only_if: Option<Version>,
        /// The same for every attempt of one write; only where the target [`Offers::operation_ids`].
        operation_id: Option<OperationId>,
    },
    Delete {
        key: &'a [u8],
        operation_id: Option<OperationId>,
    },
    /// Adds 1 to a counter, which is made if it is not there.
    Increment {
        key: &'a [u8],
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Value {
        value: &'a [u8],
        version: Option<Version>,
    },
    /// There is no value: to a read, a delete, or a write with a version.
    Missing,
    /// The write is done.
    Written {
        version: Option<Version>,
    },
    /// The counter's new value.
    Number(i64),
    /// The key has another version; nothing was written.
    Conflict,
    /// A write's operation id is older than what its partition remembers, which has committed this version by now: nothing was
    /// done, and whether an earlier attempt was is not known.
    TooOld {
        committed: Version,
    },
    /// The target refused, in a word or a few (`overloaded`, `http_503`): what errors are counted by.
    Failed {
        code: Cow<'a, str>,
        /// Whether the write may have been applied in spite of that.
        unknown: bool,
    },
}

/// What a target can do beside get, put and delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offers {
    /// [`Request::Put::only_if`].
    pub(crate) conditions: bool,
    pub(crate) increment: bool,
    /// Versions of one key grow with every write and are told of reads and writes alike.
    pub(crate) ordered_versions: bool,
    pub(crate) operation_ids: bool,
}

/// Why a connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct Broken {
    /// What errors are counted by: `unreachable`, `connection_lost`, `protocol_error`, …
    pub(crate) code: &'static str,
    /// In a sentence.
    pub(crate) cause: String,
}

/// A connection with many requests in flight and no future for each of them. After an error it is of no use: what was pushed and
/// not answered may or may not have been done.
pub(crate) trait Connection {
    /// Appends a request to what the next flush sends. `tag` comes back with its reply; the caller does not use it twice at a
    /// time, and keeps tags below its number of slots.
    fn push(&mut self, tag: u64, request: &Request<'_>);

    /// Sends everything that was pushed. Cancel-safe.
    fn flush(&mut self) -> impl Future<Output = Result<(), Broken>>;

    /// Waits for replies and hands each over with its request's tag; says how many. Returns when at least one was there and no other
    /// complete one is; at once with 0 if nothing is in flight. Cancel-safe: no reply is lost.
    fn receive(&mut self, on_reply: impl FnMut(u64, Reply<'_>)) -> impl Future<Output = Result<usize, Broken>>;
}

/// A protocol as bytes, without I/O: what [`StreamConnection`] needs beside a socket.
pub(crate) trait Codec {
    /// Bytes to send once, as soon as the socket is there; what answers them is `Codec::greeted`'s business.
    fn greeting(&self) -> Option<Vec<u8>> {
        None
    }

    /// Takes the answer to the greeting from the front of `bytes`; `Ok(None)` as long as it is not complete, else its length.
    ///
    /// # Errors
    /// A sentence, when the target does not want this client.
    fn greeted(&mut self, _bytes: &[u8]) -> Result<Option<usize>, String> {
        Ok(Some(0))
    }

    /// Appends a request.
    fn encode(&mut self, out: &mut Vec<u8>, tag: u64, request: &Request<'_>);

    /// The requests so far are about to be sent: whatever closes a batch of them is appended.
    fn end_batch(&mut self, _out: &mut Vec<u8>) {}

    /// Takes every complete reply from the front of `bytes`, hands each to `on_reply`, and says how many bytes they were.
    ///
    /// # Errors
    /// A sentence, when these bytes are none of this protocol: never a panic, whatever they are, and nothing is allocated for
    /// lengths in them.
    fn decode(&mut self, bytes: &[u8], on_reply: &mut dyn FnMut(u64, Reply<'_>)) -> Result<usize, String>;

    /// The target has said that it answers nothing more on this connection than what was handed over.
    fn is_closing(&self) -> bool {
        false
    }
}
