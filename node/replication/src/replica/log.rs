//! What a replica has its log keep, and what it is told of it after a restart.

use kv_proto::{
    cluster_map::Configuration,
    ids::Lsn,
    replication::{Position, Record},
};

/// An entry of a partition's log, in the order in which the replica appended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// The record that follows the last one that is not void.
    Record(Record),
    /// Everything before this entry with this LSN or a greater one is void.
    Cut {
        /// The LSN of the first record that is void.
        from: Lsn,
    },
    /// The replica takes part in this configuration from now on.
    Configuration(Configuration),
}

/// What disk and table hold of a partition when its replica is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The newest configuration that the replica took part in; `None` if it never took part in any.
    pub configuration: Option<Configuration>,
    /// The last record that is in the table; everything up to it is committed.
    pub applied: Position,
    /// The records after it, dense, all on disk; which of them are committed is not known.
    pub tail: Vec<Record>,
    /// Why the log cannot be trusted, in a sentence, if it cannot.
    pub fault: Option<String>,
}
