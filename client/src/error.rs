//! What can go wrong, and what became of the request that it went wrong for.
//!
//! One type for all operations: callers mostly act on [`Error::outcome`] and [`Error::is_retryable`], and show
//! the text. Errors that a node answered keep its code and its sentence.

use kv_proto::{
    error_code::{ErrorCode, Outcome, Retry, WireError},
    ids::{NodeId, PartitionId, Version},
    response::Answered,
};

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that names no node.
    #[error("{text:?} is not the address of a node: write host:port or kv://host:port, as in kv://127.0.0.1:5001")]
    InvalidAddress {
        /// What was given.
        text: String,
    },
    /// Nobody has told the client who leads what.
    #[error("there is no cluster map yet: {cause}")]
    NoMap {
        /// Why not.
        cause: String,
    },
    /// The key's partition has no configuration.
    #[error("partition {partition} has no leader yet; it gets one when every node of its shard has registered")]
    NoLeader {
        /// The key's partition.
        partition: PartitionId,
    },
    /// The cluster map does not have this node, or not yet.
    #[error("node {node} is not in the cluster map")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// No connection could be made.
    #[error("{node} cannot be reached: {cause}")]
    Unreachable {
        /// The node, or its address where its name is not known.
        node: String,
        /// Why not.
        cause: String,
    },
    /// A connection was made, and lost while the request waited for its answer.
    #[error("the connection to {node} was lost: {cause}")]
    ConnectionLost {
        /// The node, or its address where its name is not known.
        node: String,
        /// Why.
        cause: String,
        /// What became of the request.
        outcome: Outcome,
    },
    /// The deadline passed without an answer.
    #[error("the deadline passed before {node} answered")]
    DeadlineExceeded {
        /// The node, or its address where its name is not known.
        node: String,
        /// What became of the request.
        outcome: Outcome,
    },
    /// All places of the connection were taken until the deadline passed.
    #[error(
        "the deadline passed while {node} was still busy with earlier requests of this client; send fewer at a time"
    )]
    Busy {
        /// The node.
        node: NodeId,
    },
    /// The node answered something that is no answer to the request.
    #[error("{node} broke the protocol: {cause}")]
    Protocol {
        /// The node, or its address where its name is not known.
        node: String,
        /// How.
        cause: String,
        /// What became of the request.
        outcome: Outcome,
    },
    /// The condition of the write did not hold; nothing was written.
    #[error("the condition does not hold: {}", match current {
        Some(version) => format!("the value has version {version}"),
        None => "the key has no value".to_owned(),
    })]
    ConditionFailed {
        /// Who decided.
        at: Answered,
        /// The version of the value that is there instead.
        current: Option<Version>,
    },
    /// The node refused the request or the connection; or the client did, by the limits that the node told it.
    #[error("{0}")]
    Rejected(Box<WireError>),
}

impl Error {
    /// What became of a write that failed with this. A read changes nothing, so that it is always
    /// [`Outcome::NotApplied`] for reads.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::ConnectionLost { outcome, .. }
            | Error::DeadlineExceeded { outcome, .. }
            | Error::Protocol { outcome, .. } => *outcome,
            Error::Rejected(e) => e.code.outcome(),
            Error::InvalidAddress { .. }
            | Error::NoMap { .. }
            | Error::NoLeader { .. }
            | Error::UnknownNode { .. }
            | Error::Unreachable { .. }
            | Error::Busy { .. }
            | Error::ConditionFailed { .. } => Outcome::NotApplied,
        }
    }

    /// Whether the same request may be sent again without applying a write twice, and may succeed then.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::NoMap { .. } | Error::NoLeader { .. } | Error::Unreachable { .. } | Error::Busy { .. } => true,
            Error::ConnectionLost { outcome, .. } | Error::DeadlineExceeded { outcome, .. } => {
                *outcome == Outcome::NotApplied
            }
            Error::Rejected(e) => {
                matches!(e.code.retry(), Retry::Elsewhere | Retry::Later) || e.code == ErrorCode::Expired
            }
            Error::InvalidAddress { .. }
            | Error::UnknownNode { .. }
            | Error::Protocol { .. }
            | Error::ConditionFailed { .. } => false,
        }
    }

    /// The stable text of the error: [`ErrorCode::as_str`] where a node sent it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::InvalidAddress { .. } => "invalid_address",
            Error::NoMap { .. } => "no_map",
            Error::NoLeader { .. } => "no_leader",
            Error::UnknownNode { .. } => "unknown_node",
            Error::Unreachable { .. } => "unreachable",
            Error::ConnectionLost { .. } => "connection_lost",
            Error::DeadlineExceeded { .. } => "deadline_exceeded",
            Error::Busy { .. } => "client_busy",
            Error::Protocol { .. } => "protocol_error",
            Error::ConditionFailed { .. } => "condition_failed",
            Error::Rejected(e) => e.code.as_str(),
        }
    }

    /// The code of an error that travelled as one, or that would have.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        match self {
            Error::Rejected(e) => Some(e.code),
            _ => None,
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Error::Rejected(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<Error> {
        let node = NodeId::new("n").expect("valid");
        let at = Answered { partition: PartitionId(1), epoch: kv_proto::ids::Epoch(1) };
        let mut errors = vec![
            Error::InvalidAddress { text: "x".into() },
            Error::NoMap { cause: "x".into() },
            Error::NoLeader { partition: PartitionId(1) },
            Error::UnknownNode { node },
            Error::Unreachable { node: "n".into(), cause: "x".into() },
            Error::Busy { node },
            Error::ConditionFailed { at, current: None },
        ];
        for outcome in [Outcome::NotApplied, Outcome::Unknown] {
            errors.push(Error::ConnectionLost { node: "n".into(), cause: "x".into(), outcome });
            errors.push(Error::DeadlineExceeded { node: "n".into(), outcome });
            errors.push(Error::Protocol { node: "n".into(), cause: "x".into(), outcome });
        }
        errors
    }

    #[test]
    fn what_may_have_been_applied_is_never_retryable() {
        let answered = ErrorCode::ALL.iter().map(|c| Error::from(WireError::new(*c, "why")));
        for error in own().into_iter().chain(answered) {
            assert!(!(error.outcome() == Outcome::Unknown && error.is_retryable()), "{error:?}");
        }
    }

    #[test]
    fn codes_are_words_and_texts_start_in_lower_case() {
        for error in own() {
            assert!(error.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{error:?}");
            assert!(!error.to_string().starts_with(char::is_uppercase), "{error}");
        }
        assert_eq!(Error::from(WireError::new(ErrorCode::KeyEmpty, "why")).code(), "key_empty");
    }
}
