//! A value of a ledger in 24 bytes: there may be three for each of ten million keys.

use crate::register::Held;
use kv_proto::ids::{HistoryId, Lsn, Version};

/// Where a value stands among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It was there before everything else.
    First,
    Version(Version),
    /// Its write had returned by then.
    Returned(u64),
    /// A write that was called after its own had returned had itself returned by then.
    Overwritten(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    number: u64,
    /// An LSN or a time.
    stamp: u64,
    history: u32,
    has_value: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    First,
    Version,
    Returned,
    Overwritten,
}

impl Entry {
    pub(crate) fn new(held: Held, mark: Mark) -> Self {
        let (kind, stamp, history) = match mark {
            Mark::First => (Kind::First, 0, 0),
            Mark::Version(version) => (Kind::Version, version.lsn.0, version.history.0),
            Mark::Returned(at) => (Kind::Returned, at, 0),
            Mark::Overwritten(at) => (Kind::Overwritten, at, 0),
        };
        Entry { number: held.unwrap_or(0), stamp, history, has_value: held.is_some(), kind }
    }

    pub(crate) fn held(self) -> Held {
        self.has_value.then_some(self.number)
    }

    pub(crate) fn mark(self) -> Mark {
        match self.kind {
            Kind::First => Mark::First,
            Kind::Version => Mark::Version(Version { history: HistoryId(self.history), lsn: Lsn(self.stamp) }),
            Kind::Returned => Mark::Returned(self.stamp),
            Kind::Overwritten => Mark::Overwritten(self.stamp),
        }
    }

    pub(crate) fn version(self) -> Option<Version> {
        if let Mark::Version(version) = self.mark() { Some(version) } else { None }
    }

    pub(crate) fn overwritten(self) -> Option<u64> {
        if let Mark::Overwritten(at) = self.mark() { Some(at) } else { None }
    }
}
