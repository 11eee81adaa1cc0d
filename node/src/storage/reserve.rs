//! Room on the disk that is taken in advance, so that nobody else takes it: for the checkpoints that let the log go.
//!
//! A file of whole blocks that is allocated and never written. What is written in its place makes it shorter by as much. Where the file
//! system cannot do that, there is none, and the room is only left free.

use super::data_dir;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// By how many bytes the file grows at a time: what is there when there is no more room stays.
const STEP_BYTES: u64 = 256 * 1024;

/// A file takes whole blocks: giving back less than one gives nothing.
const BLOCK_BYTES: u64 = 4096;

/// The file.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    is_supported: bool,
}

impl Reserve {
    /// What was taken by an earlier process is taken.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = match File::options().write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bytes = file.as_ref().map_or(Ok(0), |f| f.metadata().map(|m| m.len()))?;
        Ok(Reserve { path: path.to_path_buf(), file, bytes, is_supported: true })
    }

    /// Bytes that are taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes so many bytes, or as many as there are: then with an error.
    pub(super) fn grow(&mut self, to: u64) -> io::Result<()> {
        let to = to.next_multiple_of(BLOCK_BYTES);
        if self.bytes >= to || !self.is_supported {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().write(true).create(true).truncate(false).open(&self.path)?),
        };
        while self.bytes < to {
            let step = STEP_BYTES.min(to - self.bytes);
            match fallocate(&*file, FallocateFlags::empty(), self.bytes, step).map_err(io::Error::from) {
                Ok(()) => self.bytes += step,
                Err(error) if data_dir::is_full(&error) => {
                    ftruncate(&*file, self.bytes)?;
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "the file system takes no room in advance: what checkpoints need is only left free");
                    self.is_supported = false;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Gives up its file with so many bytes, if it has them, under this name: its room is nobody else's at any moment.
    pub(super) fn become_file(&mut self, bytes: u64, path: &Path) -> io::Result<bool> {
        if self.bytes < bytes {
            return Ok(false);
        }
        self.shrink(bytes)?;
        fs::rename(&self.path, path)?;
        (self.file, self.bytes) = (None, 0);
        Ok(true)
    }

    /// Gives back room for a file of so many bytes, as far as there is any.
    pub(super) fn lend(&mut self, bytes: u64) -> io::Result<()> {
        self.shrink(self.bytes.saturating_sub(bytes.next_multiple_of(BLOCK_BYTES)))
    }

    /// Gives back what is more than so many bytes.
    pub(super) fn shrink(&mut self, to: u64) -> io::Result<()> {
        let to = to / BLOCK_BYTES * BLOCK_BYTES;
        if self.bytes > to
            && let Some(file) = &self.file
        {
            ftruncate(file, to)?;
            self.bytes = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn room_is_taken_and_given_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("reserve");
        let taken = || fs::metadata(&path).expect("there").blocks() * 512;
        let mut reserve = Reserve::open(&path).expect("none yet");
        reserve.grow(1_000_000).expect("there is room");
        assert_eq!(reserve.bytes(), 1_003_520, "whole blocks");
        assert!(taken() >= 1_000_000);
        reserve.grow(10).expect("nothing to do");
        let before = taken();
        reserve.lend(10).expect("given back");
        assert!(taken() <= before - 10, "a block is what a file of ten bytes needs");
        reserve.shrink(100_000).expect("given back");
        assert!(taken() < 200_000);
        assert_eq!(Reserve::open(&path).expect("there").bytes(), 98_304);
        let other = dir.path().join("other");
        assert!(!reserve.become_file(98_305, &other).expect("nothing done"));
        assert!(reserve.become_file(90_112, &other).expect("renamed"));
        assert_eq!((fs::metadata(&other).expect("there").len(), path.exists()), (90_112, false));
        reserve.grow(1000).expect("a new one");
        assert_eq!(Reserve::open(&path).expect("there").bytes(), 4096);
    }
}
