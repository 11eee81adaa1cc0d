//! What a controller keeps on its disk: `DATA_DIR/controller.redb`, a redb database.
//!
//! | table | key | value |
//! |---|---|---|
//! | `log` | index | an entry |
//! | `state` | `id` | the controller's id |
//! | | `vote` | the last vote |
//! | | `purged` | the last entry that was taken out of the log |
//! | | `applied` | what was applied last, and the state that it made |
//! | | `snapshot` | the newest snapshot |
//!
//! Every value is a [`sealed_json`] text with a format and a checksum of its own, since redb looks at its checksums only when
//! it repairs.
//!
//! # Invariants
//! * A write is on the disk when it returns (redb syncs the file in every commit), or it has failed, and then openraft
//!   goes no further.
//! * One process has the folder at a time: its file `lock` stays locked as long as anything of the process can write.
//! * A value that is not whole, or of another format, is an error and never nothing.
//!
//! What it takes for granted of the disk: what was synced stays. A disk that loses the last commit and is whole otherwise is
//! not noticed.

use crate::controller::error::OpenError;
use kv_proto::sealed_json;
use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend, TableDefinition, WriteTransaction,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    ops::RangeBounds,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file's name.
pub(crate) const NAME: &str = "controller.redb";
const FORMAT: u64 = 1;
/// The name of what a value holds.
const CONTENT: &str = "value";
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
/// How much redb keeps in memory, in bytes: all of what there mostly is.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Why something was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The database says so.
    #[error("{0}")]
    Database(#[from] redb::Error),
    /// A value is not what was written.
    #[error("{row} is {error}")]
    Value { row: String, error: sealed_json::OpenError },
    /// A value is nothing that JSON can hold.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The thread that wrote is gone.
    #[error("the write was cut off: {0}")]
    CutOff(String),
}

/// A transaction that writes.
pub(crate) struct Writing(WriteTransaction);

/// The open folder; all clones are the same.
#[derive(Clone)]
pub(crate) struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    /// Before the lock, so that it is closed first.
    database: Database,
    _lock: File,
    path: PathBuf,
    id: u64,
}

/// Tells when a disk is no longer used.
pub(crate) struct InUse(std::sync::Weak<Inner>);

impl InUse {
    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Disk {
    /// Opens the folder, and makes it if it is not there. Blocks on the disk.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        let folder = |source| OpenError::Folder { dir: dir.to_path_buf(), source };
        fs::create_dir_all(dir).map_err(folder)?;
        let lock = lock(dir)?;
        let path = dir.join(NAME);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(folder)?;
        // Without this, a loss of power could leave a folder without the file in which something was promised.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(folder)?;
        let backend = redb::backends::FileBackend::new(file).map_err(|e| OpenError::damaged(&path, &e))?;
        Self::over(backend, lock, &path)
    }

    pub(crate) fn over(backend: impl StorageBackend, lock: File, path: &Path) -> Result<Self, OpenError> {
        let open = || -> Result<(Database, u64), DiskError> {
            let database = Database::builder()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(backend)
                .map_err(redb::Error::from)?;
            let id = identity(&database)?;
            Ok((database, id))
        };
        // redb asserts where damage leads it astray.
        let opened = catch_unwind(AssertUnwindSafe(open));
        let opened = opened.map_err(|_| OpenError::damaged(path, &"what redb reads in it contradicts itself"))?;
        let (database, id) = opened.map_err(|e| OpenError::damaged(path, &e))?;
        Ok(Disk { inner: Arc::new(Inner { database, _lock: lock, path: path.to_path_buf(), id }) })
    }

    /// The controller's id.
    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.inner.path.clone()
    }

    pub(crate) fn in_use(&self) -> InUse {
        InUse(Arc::downgrade(&self.inner))
    }

    /// A value of the state.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, DiskError> {
        read(&self.inner.database, key)
    }

    /// The entries whose index is in `range`, one after another until they are `limit` bytes; at least one if there is one.
    pub(crate) fn entries<T: DeserializeOwned>(
        &self,
        range: impl RangeBounds<u64>,
        limit: usize,
    ) -> Result<Vec<T>, DiskError> {
        let log =
            self.inner.database.begin_read().map_err(redb::Error::from)?.open_table(LOG).map_err(redb::Error::from)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in log.range(range).map_err(redb::Error::from)? {
            let (index, value) = row.map_err(redb::Error::from)?;
            bytes += value.value().len();
            if bytes > limit && !entries.is_empty() {
                break;
            }
            entries.push(open(&format!("entry {}", index.value()), value.value())?);
        }
        Ok(entries)
    }

    /// The last entry.
    pub(crate) fn last_entry<T: DeserializeOwned>(&self) -> Result<Option<T>, DiskError> {
        let log =
            self.inner.database.begin_read().map_err(redb::Error::from)?.open_table(LOG).map_err(redb::Error::from)?;
        let last = log.last().map_err(redb::Error::from)?;
        last.map(|(index, value)| open(&format!("entry {}", index.value()), value.value())).transpose()
    }

    /// Writes, on a thread that may wait for the disk; on disk when it returns.
    pub(crate) async fn write(
        &self,
        work: impl FnOnce(&mut Writing) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<(), DiskError> {
        let disk = self.clone();
        let written = tokio::task::spawn_blocking(move || write(&disk.inner.database, work)).await;
        written.map_err(|e| DiskError::CutOff(e.to_string()))?
    }
}

impl Writing {
    /// Sets a value of the state.
    pub(crate) fn put(&mut self, key: &'static str, value: &impl Serialize) -> Result<(), DiskError> {
        let bytes = sealed_json::seal(CONTENT, FORMAT, value)?;
        let mut state = self.0.open_table(STATE).map_err(redb::Error::from)?;
        state.insert(key, bytes.as_slice()).map_err(redb::Error::from)?;
        Ok(())
    }

    /// Sets an entry of the log.
    pub(crate) fn put_entry(&mut self, index: u64, entry: &impl Serialize) -> Result<(), DiskError> {
        let bytes = sealed_json::seal(CONTENT, FORMAT, entry)?;
        let mut log = self.0.open_table(LOG).map_err(redb::Error::from)?;
        log.insert(index, bytes.as_slice()).map_err(redb::Error::from)?;
        Ok(())
    }

    /// Takes entries out of the log.
    pub(crate) fn remove_entries(&mut self, range: impl RangeBounds<u64>) -> Result<(), DiskError> {
        let mut log = self.0.open_table(LOG).map_err(redb::Error::from)?;
        log.retain_in(range, |_, _| false).map_err(redb::Error::from)?;
        Ok(())
    }
}

fn write(database: &Database, work: impl FnOnce(&mut Writing) -> Result<(), DiskError>) -> Result<(), DiskError> {
    let mut transaction = database.begin_write().map_err(redb::Error::from)?;
    transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
    let mut writing = Writing(transaction);
    work(&mut writing)?;
    writing.0.commit().map_err(redb::Error::from)?;
    Ok(())
}

fn read<T: DeserializeOwned>(database: &Database, key: &'static str) -> Result<Option<T>, DiskError> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let state = transaction.open_table(STATE).map_err(redb::Error::from)?;
    let value = state.get(key).map_err(redb::Error::from)?;
    value.map(|value| open(key, value.value())).transpose()
}

fn open<T: DeserializeOwned>(row: &str, bytes: &[u8]) -> Result<T, DiskError> {
    sealed_json::open(CONTENT, FORMAT, bytes).map_err(|error| DiskError::Value { row: row.to_owned(), error })
}

/// The controller's id, made with the tables if they are not there.
fn identity(database: &Database) -> Result<u64, DiskError> {
    write(database, |writing| {
        writing.0.open_table(LOG).map_err(redb::Error::from)?;
        writing.0.open_table(STATE).map_err(redb::Error::from)?;
        Ok(())
    })?;
    if let Some(id) = read(database, "id")? {
        return Ok(id);
    }
    let id = rand::random_range(1..=u64::MAX >> 1);
    write(database, |writing| writing.put("id", &id))?;
    Ok(id)
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let folder = |source| OpenError::Folder { dir: dir.to_path_buf(), source };
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(folder)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.to_path_buf() }),
        Err(error) => Err(folder(error.into())),
    }
}
