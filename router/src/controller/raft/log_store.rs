//! The log and the vote, as openraft asks for them.

use super::{
    Types,
    disk::{Disk, DiskError},
};
use openraft::{
    AnyError, Entry, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError,
    StorageIOError, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use std::{fmt::Debug, io, ops::RangeBounds};

/// How much of the log one message to another controller takes, in bytes, unless a single entry is longer.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// The log; all clones are the same.
#[derive(Clone)]
pub(crate) struct LogStore(pub(crate) Disk);

/// How openraft is told that the disk failed, which ends it.
pub(super) fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, error: &DiskError) -> StorageError<u64> {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        self.0.entries(range, usize::MAX).map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        self.0.entries(start..end, MESSAGE_BYTES).map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let read = || -> Result<LogState<Types>, DiskError> {
            let last_purged_log_id = self.0.read("purged")?;
            let last: Option<Entry<Types>> = self.0.last_entry()?;
            Ok(LogState { last_purged_log_id, last_log_id: last.map(|e| e.log_id).or(last_purged_log_id) })
        };
        read().map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Read, &e))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = *vote;
        let written = self.0.write(move |writing| writing.put("vote", &vote)).await;
        written.map_err(|e| failed(ErrorSubject::Vote, ErrorVerb::Write, &e))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        self.0.read("vote").map_err(|e| failed(ErrorSubject::Vote, ErrorVerb::Read, &e))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<Types>> = entries.into_iter().collect();
        let written = self
            .0
            .write(move |writing| entries.iter().try_for_each(|entry| writing.put_entry(entry.log_id.index, entry)))
            .await;
        callback.log_io_completed(written.as_ref().map(|_| ()).map_err(|e| io::Error::other(e.to_string())));
        written.map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Write, &e))
    }

    async fn truncate(&mut self, since: LogId<u64>) -> Result<(), StorageError<u64>> {
        let written = self.0.write(move |writing| writing.remove_entries(since.index..)).await;
        written.map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Delete, &e))
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), StorageError<u64>> {
        let written = self.0.write(move |writing| {
            writing.put("purged", &upto)?;
            writing.remove_entries(..=upto.index)
        });
        written.await.map_err(|e| failed(ErrorSubject::Logs, ErrorVerb::Delete, &e))
    }
}
