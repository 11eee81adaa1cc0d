//! The log's segments as files.
//!
//! A segment is written with zeros once, so that writing to it later changes nothing but its content, which makes a sync
//! of it cheap. One that nobody needs any more becomes a spare, and is a segment again under another name.
//!
//! # Invariants
//! * A file has its name, and its length its disk, before it is written to as a segment.
//! * Segments leave a part of the disk free for the checkpoints that make others unneeded.
//! * When the disk is full there is a spare for each stream yet, unless something else has taken the room: the next start
//!   needs them.

use super::{
    data_dir::{self, sync_dir},
    reserve::Reserve,
};
use kv_storage::log::{
    SegmentId,
    format::{segment_name, segment_of_name},
    writer::Media,
};
use rustix::fs::{Mode, OFlags, statvfs};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Spare segments for each stream on a disk with little room: one to go on with, one for the next start.
const FULL_SPARES: usize = 2;
/// A disk that has less room than so many segments for each stream has little.
const LITTLE_ROOM: usize = 8;
/// Spare segments that are kept beside those; more are removed.
const MORE_SPARES: usize = 2;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The files of a log, shared by its streams.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    dir: PathBuf,
    segment_bytes: u64,
    spares: Mutex<Vec<PathBuf>>,
    made: AtomicU64,
    /// By stream: bytes of the disk that segments leave to its executor's checkpoints.
    reserved: Vec<AtomicU64>,
    /// How much of that is written already, to checkpoints that are not published.
    lent: AtomicU64,
    reserve: Mutex<Reserve>,
    full: AtomicBool,
}

fn most_spares(streams: usize) -> usize {
    FULL_SPARES * streams + MORE_SPARES
}

fn full_if_full(error: io::Error) -> io::Error {
    if data_dir::is_full(&error) { full("no room for another segment") } else { error }
}

fn full(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, what.to_owned())
}

impl SegmentFiles {
    /// The files in `dir`, for so many streams; spares of another size, and what was not completed, are removed.
    pub(crate) fn open(dir: &Path, segment_bytes: u64, streams: usize) -> io::Result<Self> {
        let (mut spares, mut made) = (Vec::new(), 0);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(number) = name.strip_prefix("spare-").and_then(|n| n.parse::<u64>().ok()) {
                made = made.max(number);
                if entry.metadata()?.len() == segment_bytes && spares.len() < most_spares(streams) {
                    spares.push(entry.path());
                } else {
                    fs::remove_file(entry.path())?;
                }
            } else if name.ends_with(".new") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(SegmentFiles {
            dir: dir.to_path_buf(),
            segment_bytes,
            spares: Mutex::new(spares),
            made: AtomicU64::new(made),
            reserved: (0..streams).map(|_| AtomicU64::new(0)).collect(),
            lent: AtomicU64::new(0),
            reserve: Mutex::new(Reserve::open(&dir.join("reserve"))?),
            full: AtomicBool::new(false),
        })
    }

    fn spares(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a segment is.
    pub(crate) fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(segment_name(id))
    }

    /// The segments that are there, in their order.
    pub(crate) fn segments(&self) -> io::Result<Vec<SegmentId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            ids.extend(entry?.file_name().to_str().and_then(segment_of_name));
        }
        ids.sort();
        Ok(ids)
    }

    /// Whether there was no room for more segments when that was last looked at.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Bytes that each stream may write to spares and leave those that the next start needs.
    pub(crate) fn spare_bytes(&self) -> u64 {
        let streams = self.reserved.len();
        (self.spares().len().saturating_sub(streams) / streams) as u64 * self.segment_bytes
    }

    /// How much of the disk is left to the checkpoints of a stream's executor from now on.
    pub(crate) fn reserve(&self, stream: usize, bytes: u64) {
        self.reserved[stream].store(bytes, Ordering::Relaxed);
    }

    /// That is so many bytes more.
    pub(crate) fn reserve_more(&self, stream: usize, bytes: u64) {
        self.reserved[stream].fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes of a checkpoint are about to be written.
    pub(crate) fn lend(&self, bytes: u64) {
        self.lent.fetch_add(bytes, Ordering::Relaxed);
        let without_spare = self.reserved.len().saturating_sub(self.spares().len()) as u64;
        let mut reserve = self.taken();
        if reserve.bytes() >= without_spare * self.segment_bytes + bytes {
            // What cannot be given back is no help, and no harm.
            let _ = reserve.lend(bytes);
        }
    }

    /// A checkpoint with so many bytes is published, or is gone.
    pub(crate) fn settle(&self, bytes: u64) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn taken(&self) -> MutexGuard<'_, Reserve> {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are left to checkpoints, and one segment for each stream: the next start can have that if there is no spare,
    /// and it is for what is written while nobody looks.
    fn target(&self) -> u64 {
        let reserved: u64 = self.reserved.iter().map(|r| r.load(Ordering::Relaxed)).sum();
        let segments = self.reserved.len() as u64 * self.segment_bytes;
        (reserved + segments).saturating_sub(self.lent.load(Ordering::Relaxed))
    }

    /// Takes the room and makes the spares that there should be.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let streams = self.reserved.len();
        let prepared = || -> io::Result<()> {
            let has_little_room = self.room(LITTLE_ROOM * streams).is_err();
            let target = self.target();
            let mut reserve = self.taken();
            if reserve.bytes() > target + self.segment_bytes {
                reserve.shrink(target)?;
            }
            reserve.grow(target).map_err(full_if_full)?;
            drop(reserve);
            let wanted = if has_little_room { FULL_SPARES * streams } else { streams };
            while self.spares().len() < wanted {
                let made = self.make_spare()?;
                self.spares().push(made);
            }
            Ok(())
        };
        let prepared = prepared();
        let is_full = matches!(&prepared, Err(error) if error.kind() == io::ErrorKind::StorageFull);
        if prepared.is_ok() || is_full {
            self.full.store(is_full, Ordering::Relaxed);
        }
        prepared
    }

    fn make_spare(&self) -> io::Result<PathBuf> {
        self.room(1)?;
        self.write_spare(false)
    }

    fn room(&self, segments: usize) -> io::Result<()> {
        let disk = statvfs(&self.dir)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let reserved = self.target().saturating_sub(self.taken().bytes());
        let needed = segments as u64 * self.segment_bytes + reserved;
        if free < needed { Err(full("no room for another segment beside what checkpoints need")) } else { Ok(()) }
    }

    /// The first segment of a stream may be made of what is left to checkpoints: without it there would be none.
    fn make_first(&self) -> io::Result<PathBuf> {
        self.write_spare(false).or_else(|error| {
            if error.kind() == io::ErrorKind::StorageFull { self.write_spare(true) } else { Err(error) }
        })
    }

    fn write_spare(&self, of_reserve: bool) -> io::Result<PathBuf> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let (path, beside) = (self.dir.join(format!("spare-{number}")), self.dir.join(format!("spare-{number}.new")));
        let write = || -> io::Result<()> {
            if of_reserve && !self.taken().become_file(self.segment_bytes, &beside)? {
                return Err(full("no room for the first segment"));
            }
            write_zeros(&beside, self.segment_bytes)?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&beside);
            full_if_full(error)
        })?;
        Ok(path)
    }

    /// Nobody needs these segments any more; they are kept as spares or removed.
    pub(crate) fn let_go(&self, ids: &[(SegmentId, u64)]) -> io::Result<()> {
        let mut result = Ok(());
        for (id, bytes) in ids {
            result = result.and(self.let_one_go(*id, *bytes));
        }
        result.and(sync_dir(&self.dir))
    }

    fn let_one_go(&self, id: SegmentId, bytes: u64) -> io::Result<()> {
        let path = self.path(id);
        if bytes != self.segment_bytes || self.spares().len() >= most_spares(self.reserved.len()) {
            return fs::remove_file(&path);
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let spare = self.dir.join(format!("spare-{number}"));
        fs::rename(&path, &spare)?;
        self.spares().push(spare);
        Ok(())
    }
}

/// One stream's way to its segments.
#[derive(Debug)]
pub(crate) struct StreamFiles {
    files: Arc<SegmentFiles>,
    current: Option<File>,
}

impl StreamFiles {
    pub(crate) fn new(files: Arc<SegmentFiles>) -> Self {
        StreamFiles { files, current: None }
    }
}

impl Media for StreamFiles {
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()> {
        assert_eq!(bytes, self.files.segment_bytes, "all segments of a node have one size");
        let spare = self.files.spares().pop();
        let make = || if id.number == 1 { self.files.make_first() } else { self.files.make_spare() };
        let spare = spare.map_or_else(make, Ok)?;
        let path = self.files.path(id);
        fs::rename(spare, &path)?;
        sync_dir(&self.files.dir)?;
        self.current = Some(open_for_writing(&path)?);
        Ok(())
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        self.current.as_ref().expect("a segment was created").write_all_at(blocks, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.current.as_ref().expect("a segment was created").sync_data()
    }
}

/// Makes a file of zeros that is on disk, its length too.
fn write_zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let bytes = left.min(ZEROS.len() as u64);
        file.write_all(&ZEROS[..bytes as usize])?;
        left -= bytes;
    }
    file.sync_all()
}

/// A file as segments are, to be written to.
pub(crate) fn preallocated(path: &Path, bytes: u64) -> io::Result<File> {
    write_zeros(path, bytes)?;
    open_for_writing(path)
}

/// Opens a segment so that writes go to the disk and not to the page cache, which would have to be written back by the
/// sync; where the file system cannot do that, through the page cache.
fn open_for_writing(path: &Path) -> io::Result<File> {
    let open = |direct| rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC | direct, Mode::empty());
    let fd = match open(OFlags::DIRECT) {
        Err(rustix::io::Errno::INVAL) => open(OFlags::empty()),
        result => result,
    };
    Ok(File::from(fd?))
}
