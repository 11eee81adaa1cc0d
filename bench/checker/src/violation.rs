//! What a ledger says when something cannot have happened.

use crate::{offence::value, register::Held};
use kv_proto::ids::Version;

/// What cannot have happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A write that was acknowledged, or seen by a read, is not there at the audit, and no later one explains it.
    #[error("{}{} was acknowledged or read, and is lost: the key has {}{}", value(*acknowledged), at(*version), value(*found), at(*found_version))]
    Lost {
        /// What is lost; `None` if a delete is.
        acknowledged: Held,
        /// Its version.
        version: Option<Version>,
        /// What is there.
        found: Held,
        /// The version of that.
        found_version: Option<Version>,
    },
    /// A value that no acknowledged write, and none in doubt, can have left there.
    #[error("value {value}{} is there, which was never written, or not by a write that can be the last", at(*version))]
    NeverWritten {
        /// Its number.
        value: u64,
        /// Its version.
        version: Option<Version>,
    },
    /// A read saw an older value than was there when it was called.
    #[error("a read found {}{}, though {} was known before it was called", value(*held), at(*version), newer(*newest))]
    Stale {
        /// What it saw.
        held: Held,
        /// The version of that.
        version: Option<Version>,
        /// What was known when it was called.
        newest: Option<Version>,
    },
    /// A write got a version that is not newer than one that was known before it was called.
    #[error("a write of {} got version {version}, though version {newest} was known before it was called", value(*held))]
    NotNewer {
        /// What it wrote.
        held: Held,
        /// What it got.
        version: Version,
        /// What was known when it was called.
        newest: Version,
    },
    /// One version is of two values.
    #[error("version {version} is of {} and of {}", value(values[0]), value(values[1]))]
    TwoValues {
        /// The version.
        version: Version,
        /// The values.
        values: [Held; 2],
    },
    /// One write has two versions: it was tried again, and each time applied.
    #[error("value {value} was written once and applied twice, as versions {} and {}", versions[0], versions[1])]
    AppliedTwice {
        /// What it wrote.
        value: u64,
        /// The older version first.
        versions: [Version; 2],
    },
}

fn at(version: Option<Version>) -> String {
    version.map_or_else(String::new, |version| format!(" with version {version}"))
}

fn newer(version: Option<Version>) -> String {
    version.map_or_else(|| "a later write".to_owned(), |version| format!("version {version}"))
}
