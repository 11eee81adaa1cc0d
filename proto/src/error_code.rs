//! What can go wrong with a request, as it travels on the wire, and what a client does about each.

use crate::{cluster_map::Configuration, ids::PartitionId};
use bincode::{Decode, Encode};
use std::fmt;

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was not applied and never will be.
    NotApplied,
    /// It may have been applied, or may be later.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::NotApplied => "not_applied",
            Outcome::Unknown => "unknown",
        })
    }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $outcome:ident, $retry:ident;)*) => {
        /// Why a request failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The stable text of the code, as the HTTP API shows it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// What became of the request.
            #[must_use]
            pub fn outcome(self) -> Outcome {
                match self { $(ErrorCode::$name => Outcome::$outcome,)* }
            }

            /// What a client does about it.
            #[must_use]
            pub fn retry(self) -> Retry {
                match self { $(ErrorCode::$name => Retry::$retry,)* }
            }
        }
    };
}

/// What a client does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request fails again: tell the caller.
    Never,
    /// Ask the node that the error names, or wait for a newer configuration.
    Elsewhere,
    /// Wait, then ask again.
    Later,
    /// Asking again could apply a write twice; only a request that says how to tell may.
    OnlyWithOperationId,
}

error_codes! {
    /// Bytes that are no frame, or a frame at the wrong time.
    BadFrame = "bad_frame", NotApplied, Never;
    /// A protocol version that is not spoken here.
    UnsupportedVersion = "unsupported_version", NotApplied, Never;
    /// The connection was meant for another cluster.
    WrongCluster = "wrong_cluster", NotApplied, Never;
    /// More connections than the node takes.
    TooManyConnections = "too_many_connections", NotApplied, Later;
    /// A frame whose body is not the message that it should be.
    Malformed = "malformed", NotApplied, Never;
    /// A key of no bytes.
    KeyEmpty = "key_empty", NotApplied, Never;
    /// A key over the limit.
    KeyTooLarge = "key_too_large", NotApplied, Never;
    /// A value over the limit.
    ValueTooLarge = "value_too_large", NotApplied, Never;
    /// A content type over the limit.
    ContentTypeTooLarge = "content_type_too_large", NotApplied, Never;
    /// The node is not the leader of the key's partition; the error carries what it knows of it.
    NotLeader = "not_leader", NotApplied, Elsewhere;
    /// The node leads the partition, but cannot serve it now.
    NotReady = "not_ready", NotApplied, Later;
    /// An in-sync follower does not answer, so that no write can be promised.
    FollowerUnreachable = "follower_unreachable", NotApplied, Later;
    /// A bounded queue is full.
    Overloaded = "overloaded", NotApplied, Later;
    /// The deadline passed before the request was run.
    Expired = "expired", NotApplied, Never;
    /// The deadline passed, or the way to the answer was lost, after the write was proposed.
    OutcomeUnknown = "outcome_unknown", Unknown, OnlyWithOperationId;
    /// The node is stopping.
    ShuttingDown = "shutting_down", NotApplied, Later;
    /// The node holds as much as it was allowed to; reads and deletes go on.
    MemoryFull = "memory_full", NotApplied, Never;
    /// A replica's disk has no room for the write; reads and deletes go on.
    DiskFull = "disk_full", NotApplied, Never;
    /// The node that the command names is no in-sync follower of the partition, or nobody is.
    NotInSync = "not_in_sync", NotApplied, Never;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An error as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message} ({code})")]
pub struct WireError {
    /// Which error.
    pub code: ErrorCode,
    /// A sentence for a person.
    pub message: String,
    /// With [`ErrorCode::NotLeader`]: what the node knows of the partition.
    pub configuration: Option<Box<(PartitionId, Configuration)>>,
}

impl WireError {
    /// An error without a configuration.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        WireError { code, message: message.into(), configuration: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn texts_are_distinct_and_made_of_words() {
        let texts: HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        assert!(texts.iter().all(|t| t.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn an_unknown_outcome_is_never_retried_blindly() {
        for code in ErrorCode::ALL {
            let blind = matches!(code.retry(), Retry::Elsewhere | Retry::Later);
            assert!(!(blind && code.outcome() == Outcome::Unknown), "{code}");
        }
    }
}
