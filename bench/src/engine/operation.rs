//! Operations under way, and the requests that they consist of.

use crate::{measure::Ending, verify::Trace, workload::Kind};
use kv_client::proto::ids::{PartitionId, Version};

/// Nanoseconds since the load began.
pub(crate) type Ns = u64;

/// One operation: what is counted and timed.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// Bytes of the values that it writes.
    pub(crate) length: u32,
    /// When it should have started, which is what responses are timed from.
    pub(crate) intended: Ns,
    /// Whether this tool itself was late for that.
    pub(crate) began_late: bool,
    /// When its first request was sent.
    pub(crate) sent: Option<Ns>,
    /// Requests that are not answered yet.
    pub(crate) left: u32,
    /// How it will have ended when nothing is left.
    pub(crate) so_far: SoFar,
}

/// What the requests of an operation came to.
#[derive(Debug)]
pub(crate) enum SoFar {
    Well(Ending),
    Failed(Box<Failed>),
}

/// What an operation failed of.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) code: String,
    /// Whether it may have been applied in spite of that.
    pub(crate) unknown: bool,
}

impl SoFar {
    /// Adds what one request came to; `is_open` says that it may have been applied in spite of a failure.
    pub(crate) fn add(&mut self, ended: Ended, is_write: bool, is_open: bool) {
        let (code, unknown) = match (ended, &mut *self) {
            (Ended::Missing, SoFar::Well(ending)) => return *ending = Ending::Miss,
            (Ended::Conflict, SoFar::Well(ending)) => return *ending = Ending::Conflict,
            (Ended::Value { .. } | Ended::Written { .. } | Ended::Missing | Ended::Conflict, _) => return,
            (Ended::Damaged(_), _) => ("damaged_value".to_owned(), false),
            (Ended::TooOld { .. }, _) => ("operation_too_old".to_owned(), is_open),
            (Ended::Failed { code, unknown }, _) => (code, is_write && (unknown || is_open)),
        };
        match self {
            SoFar::Failed(failed) => failed.unknown |= unknown,
            SoFar::Well(_) => *self = SoFar::Failed(Box::new(Failed { code, unknown })),
        }
    }
}

/// One request of an operation.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its operation, by its place among those under way.
    pub(crate) operation: usize,
    pub(crate) key: u32,
    pub(crate) partition: PartitionId,
    pub(crate) action: Action,
    /// What it is judged by, if the answers are verified.
    pub(crate) trace: Option<Box<Trace>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Get,
    Put {
        /// Tells values apart.
        number: u64,
        length: u32,
        only_if: Option<Box<Expected>>,
    },
    Delete,
    Increment,
}

impl Action {
    pub(crate) fn is_write(&self) -> bool {
        *self != Action::Get
    }
}

/// What must be there for a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) version: Version,
    /// The number of the value that has this version, if that is known.
    pub(crate) held: Option<u64>,
}

/// What became of a request; as [`crate::target::Reply`], but it borrows from nothing.
#[derive(Debug)]
pub(crate) enum Ended {
    Value {
        version: Option<Version>,
        held: Option<u64>,
    },
    Missing,
    Written {
        version: Option<Version>,
    },
    Conflict,
    TooOld {
        committed: Version,
    },
    /// The bytes of the value are none that this run has written.
    Damaged(String),
    Failed {
        code: String,
        unknown: bool,
    },
}
