//! A node's folder: its lock, and the file that says whose it is.
//!
//! ```text
//! DIR/lock          locked while the node runs
//! DIR/node.json     the node, its disk, its cluster, how often it was started
//! DIR/reserve       room for a new node.json when the disk is full
//! DIR/log/          segments of the log, and spare ones
//! DIR/checkpoints/  a file for each partition
//! ```
//!
//! # Invariants
//! * One process has the folder at a time.
//! * A disk id belongs to what is in the folder: whoever removes the files removes the id.
//! * The generation grows before anything is written in it, and counts as begun only when all its streams are on disk.

use kv_proto::{
    ids::{ClusterId, DiskId, NodeId},
    sealed_json::{self, OpenError},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const NODE_FILE: &str = "node.json";
const CONTENT: &str = "node";
const FORMAT: u64 = 1;
const RESERVE_FILE: &str = "reserve";
/// Bytes of the file that makes way for a new `node.json`, and for what the file system needs for its name.
const RESERVE_BYTES: usize = 64 * 1024;
/// How often, and how long after each other, a lock is tried that somebody has: a process that was killed may be there for
/// a moment yet.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The kernel does not let the node.
    #[error("cannot {what} {path}: {error}; {cure}", cure = cure(error))]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said: a part of the sentence, and so no source of it.
        error: io::Error,
    },
    /// Another process has it.
    #[error(
        "the data folder {0} is in use by another process: stop that one, or give this node another --data-dir \
         (two nodes never share one)"
    )]
    InUse(PathBuf),
    /// It is another node's.
    #[error(
        "the data folder {dir} belongs to node {theirs}, and this is node {ours}: start it with --id {theirs}, or with \
         another --data-dir"
    )]
    OtherNode {
        /// The folder.
        dir: PathBuf,
        /// Whose it is.
        theirs: NodeId,
        /// Who came.
        ours: NodeId,
    },
    /// Another version of this program wrote it.
    #[error(
        "{path} has format {format}, and this version of kv knows only format {FORMAT}: start the node with a newer kv"
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: String,
    },
    /// What says whose it is cannot be read.
    #[error(
        "{path} is {what}: put back a copy of it; or, if the node's peer has all data, move the folder away, and the \
         node comes back with an empty disk"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the folder and all in it must belong to the user that runs the node (chown -R), or choose another by --data-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount the file system for writing, or choose another folder by --data-dir"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on the disk, or choose another folder by --data-dir"
        }
        _ => "choose a folder that can be written by --data-dir",
    }
}

/// What the folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    /// Whose folder it is.
    pub(crate) node: NodeId,
    /// Made together with the folder.
    pub(crate) disk: DiskId,
    /// The cluster that the data belong to, once the node was told.
    pub(crate) cluster: Option<ClusterId>,
    /// How often the node was started.
    pub(crate) generation: u64,
    /// The newest generation of which every stream has a segment: what it has no segment of is missing.
    pub(crate) begun: u64,
    /// How many streams that generation has.
    pub(crate) executors: u16,
    /// Whether everything was on disk when the process of this generation ended, and nothing that an earlier one may have
    /// lost was still missing.
    pub(crate) clean: bool,
}

/// A folder that this process has.
#[derive(Debug)]
pub(crate) struct DataDir {
    dir: PathBuf,
    file: NodeFile,
    is_new: bool,
    _lock: File,
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    move |error| DataDirError::Io { what, path: path.to_path_buf(), error }
}

impl DataDir {
    /// Takes the folder, and makes what is missing of it; a new one is given `disk`.
    pub(crate) fn open(dir: &Path, node: NodeId, disk: DiskId) -> Result<Self, DataDirError> {
        fs::create_dir_all(dir).map_err(io_error("make the folder", dir))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        let mut tries = 1;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            match error {
                rustix::io::Errno::WOULDBLOCK if tries < LOCK_TRIES => thread::sleep(LOCK_PAUSE),
                rustix::io::Errno::WOULDBLOCK => return Err(DataDirError::InUse(dir.to_path_buf())),
                error => return Err(io_error("lock", &path)(error.into())),
            }
            tries += 1;
        }
        let path = dir.join(NODE_FILE);
        let (file, is_new) = match fs::read(&path) {
            Ok(bytes) => {
                let file: NodeFile = sealed_json::open(CONTENT, FORMAT, &bytes).map_err(|error| match error {
                    OpenError::OtherFormat(format) => {
                        DataDirError::OtherFormat { path: path.clone(), format: format.to_string() }
                    }
                    OpenError::Damaged(_) => DataDirError::Damaged { path: path.clone(), what: error.to_string() },
                })?;
                (file, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if has_files(&dir.join("log"))? {
                    return Err(DataDirError::Damaged { path, what: "missing, though there is a log".to_owned() });
                }
                (NodeFile { node, disk, cluster: None, generation: 0, begun: 0, executors: 0, clean: true }, true)
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if file.node != node {
            return Err(DataDirError::OtherNode { dir: dir.to_path_buf(), theirs: file.node, ours: node });
        }
        for folder in ["log", "checkpoints"].map(|name| dir.join(name)) {
            if file.begun > 0 && !folder.is_dir() {
                return Err(DataDirError::Damaged { path: folder, what: "missing".to_owned() });
            }
            fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
        }
        Ok(DataDir { dir: dir.to_path_buf(), file, is_new, _lock: lock })
    }

    /// What the folder says of itself.
    pub(crate) fn file(&self) -> &NodeFile {
        &self.file
    }

    /// Whether it was made just now.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Changes what the folder says of itself; on disk when this returns.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut NodeFile)) -> Result<(), DataDirError> {
        let mut next = self.file.clone();
        change(&mut next);
        let path = self.dir.join(NODE_FILE);
        let beside = self.dir.join(format!("{NODE_FILE}.new"));
        let written = || -> io::Result<()> {
            let bytes = sealed_json::seal(CONTENT, FORMAT, &next)?;
            let mut file = File::create(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            sync_dir(&self.dir)
        };
        let reserve = self.dir.join(RESERVE_FILE);
        let written = match written() {
            Err(error) if is_full(&error) && fs::remove_file(&reserve).is_ok() => written(),
            written => written,
        };
        written.map_err(io_error("write", &path))?;
        self.file = next;
        if !fs::metadata(&reserve).is_ok_and(|m| m.len() == RESERVE_BYTES as u64) {
            // Without it all goes on, as long as the disk is not full.
            let _ = fs::write(&reserve, [0; RESERVE_BYTES]);
        }
        Ok(())
    }
}

/// Whether there is no room; a quota is a disk that is full, for this user.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn has_files(dir: &Path) -> Result<bool, DataDirError> {
    match fs::read_dir(dir) {
        Ok(mut files) => Ok(files.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("read the folder", dir)(error)),
    }
}

/// Returns when the names in a folder are on disk.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("a name")
    }

    #[test]
    fn a_folder_keeps_whose_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut data = DataDir::open(dir.path(), node("a"), DiskId(7)).expect("made");
        assert!(data.is_new());
        data.change(|f| (f.generation, f.cluster) = (3, Some(ClusterId(5)))).expect("written");
        let error = DataDir::open(dir.path(), node("a"), DiskId(7)).expect_err("it is taken");
        assert!(error.to_string().contains("in use by another process"), "{error}");
        drop(data);
        let data = DataDir::open(dir.path(), node("a"), DiskId(8)).expect("there");
        assert_eq!((data.file().disk, data.file().generation, data.is_new()), (DiskId(7), 3, false));
        drop(data);
        let error = DataDir::open(dir.path(), node("b"), DiskId(8)).expect_err("another's");
        assert!(error.to_string().contains("start it with --id a"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_a_cure() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut data = DataDir::open(dir.path(), node("a"), DiskId(7)).expect("made");
        data.change(|f| f.generation = 1).expect("written");
        drop(data);
        let path = dir.path().join(NODE_FILE);
        let good = fs::read(&path).expect("read");
        let open = || DataDir::open(dir.path(), node("a"), DiskId(8)).expect_err("unusable").to_string();
        fs::write(&path, &good[..good.len() / 2]).expect("written");
        assert!(open().contains("put back a copy"), "{}", open());
        let text = String::from_utf8(good.clone()).expect("text").replace("\"format\":1", "\"format\":2");
        fs::write(&path, text).expect("written");
        assert!(open().contains("a newer kv"), "{}", open());
        fs::write(&path, &good).expect("written");
        fs::remove_dir(dir.path().join("log")).expect("removed");
        DataDir::open(dir.path(), node("a"), DiskId(8))
            .expect("nothing was in it yet")
            .change(|f| f.begun = 1)
            .expect("written");
        fs::remove_dir(dir.path().join("log")).expect("removed");
        assert!(open().contains("log is missing: put back a copy"), "{}", open());
        assert!(!dir.path().join("log").exists(), "nothing is changed");
        fs::create_dir(dir.path().join("log")).expect("made");
        fs::remove_file(&path).expect("removed");
        fs::write(dir.path().join("log/x"), b"").expect("written");
        assert!(open().contains("though there is a log"), "{}", open());
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("written");
        let error = DataDir::open(&file, node("a"), DiskId(8)).expect_err("no folder");
        assert!(error.to_string().contains("choose a folder"), "{error}");
    }
}
