//! The thread for everything that blocks and that no write waits for: checkpoint files, reading from the log, making and
//! removing segments.
//!
//! # Invariants
//! * A checkpoint has its name only when all of it is on disk, and the older one of its partition goes only then.
//! * Before one is begun that replaces everything, those before it are gone.
//! * Of a checkpoint that has failed nothing stays, and what comes of it later is dropped.

use super::{
    Gone,
    data_dir::{self, sync_dir},
    files::SegmentFiles,
};
use crate::{executor::Mail, mailbox::Sender};
use kv_proto::ids::{ExecutorIndex, Lsn, PartitionId};
use kv_storage::{checkpoint, log::SegmentId};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// After so many bytes a checkpoint file is synced, so that the sync at its end is short.
const SYNC_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that a file system may need for one more name.
const NAME_BYTES: u64 = 8192;
/// How often it is looked whether the disk has room: what takes it or gives it back may be no part of the node.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Something to do.
pub(crate) enum Job {
    /// Have a spare segment.
    Prepare,
    /// Nobody needs these segments.
    LetGo(Vec<(SegmentId, u64)>),
    /// A checkpoint begins.
    Begin(CheckpointFile),
    /// Its next bytes.
    Piece(CheckpointFile, Vec<u8>),
    /// A checkpoint is whole, and its log is on disk: give it its name. Answered by [`Mail::Checkpointed`].
    Publish(CheckpointFile),
    /// A checkpoint is not to be.
    Abandon(CheckpointFile),
}

/// A checkpoint on its way.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointFile {
    /// Who makes it.
    pub(crate) executor: ExecutorIndex,
    /// Of which partition.
    pub(crate) partition: PartitionId,
    /// Where it starts.
    pub(crate) start: Lsn,
    /// Whether it is of a copy of another replica's table: whatever was published of the partition before is void, and goes
    /// first. It may be of a history that was given up, and start later than this one.
    pub(crate) anew: bool,
    /// Pieces that are not written yet.
    pub(crate) waiting: Arc<AtomicUsize>,
}

struct Open {
    start: Lsn,
    file: File,
    path: PathBuf,
    /// Bytes in all, with those of its name.
    bytes: u64,
    /// Bytes since the last sync.
    unsynced: usize,
}

struct Worker {
    checkpoints: PathBuf,
    files: Arc<SegmentFiles>,
    mail: Vec<Sender<Mail>>,
    open: HashMap<PartitionId, Open>,
    /// A failure that was reported already.
    told: Option<io::ErrorKind>,
    /// Whether it was reported that the disk is full.
    told_full: bool,
}

pub(super) fn start(dir: &Path, files: Arc<SegmentFiles>, mail: Vec<Sender<Mail>>) -> io::Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel();
    let checkpoints = dir.join("checkpoints");
    thread::Builder::new().name("storage".into()).spawn(move || {
        let mut worker = Worker { checkpoints, files, mail, open: HashMap::new(), told: None, told_full: false };
        let mut look = Instant::now() + LOOK_INTERVAL;
        loop {
            match jobs.recv_timeout(look.saturating_duration_since(Instant::now())) {
                Ok(job) => worker.run(job),
                Err(RecvTimeoutError::Timeout) => worker.prepare(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= look {
                look = Instant::now() + LOOK_INTERVAL;
            }
        }
    })?;
    Ok(sender)
}

impl Worker {
    fn run(&mut self, job: Job) {
        match job {
            Job::Prepare => self.prepare(),
            Job::LetGo(segments) => {
                if let Err(error) = self.files.let_go(&segments) {
                    self.warn("remove a segment of the log", &error);
                }
                self.prepare();
                let gone: Gone = Arc::new(segments.into_iter().map(|(id, _)| id).collect());
                self.mail.iter().for_each(|mail| mail.send(Mail::SegmentsGone(gone.clone())));
            }
            Job::Begin(checkpoint) => {
                let begun = self.begin(&checkpoint);
                self.give_up_on_error(&checkpoint, begun);
            }
            Job::Piece(checkpoint, bytes) => {
                let written = self.write(&checkpoint, &bytes);
                checkpoint.waiting.fetch_sub(1, Ordering::Release);
                self.give_up_on_error(&checkpoint, written);
            }
            Job::Publish(checkpoint) => {
                let published = self.publish(&checkpoint);
                if let Err(error) = &published {
                    self.warn("publish a checkpoint", error);
                }
                self.tell(&checkpoint, published.is_ok());
            }
            Job::Abandon(checkpoint) => self.discard(&checkpoint),
        }
    }

    fn prepare(&mut self) {
        match self.files.prepare() {
            Ok(()) if self.told_full => {
                tracing::info!("there is room on the disk again");
                self.told_full = false;
            }
            Ok(()) => {}
            Err(error) if data_dir::is_full(&error) => {
                if !self.told_full {
                    tracing::error!(
                        "the disk is full: values are taken only as long as there is room in the log; reads and deletes go \
                         on. Make room on the disk, or delete what is not needed"
                    );
                    self.told_full = true;
                }
            }
            Err(error) => self.warn("make a segment of the log", &error),
        }
    }

    fn give_up_on_error(&mut self, checkpoint: &CheckpointFile, result: io::Result<()>) {
        if let Err(error) = result {
            self.warn("write a checkpoint", &error);
            self.discard(checkpoint);
            self.tell(checkpoint, false);
        }
    }

    fn warn(&mut self, what: &str, error: &io::Error) {
        if self.told != Some(error.kind()) {
            self.told = Some(error.kind());
            tracing::warn!(%error, "cannot {what}; trying on");
        }
    }

    fn tell(&self, checkpoint: &CheckpointFile, published: bool) {
        self.mail[usize::from(checkpoint.executor.0)].send(Mail::Checkpointed { published });
    }

    fn begin(&mut self, checkpoint: &CheckpointFile) -> io::Result<()> {
        self.discard(checkpoint);
        if checkpoint.anew {
            self.remove(checkpoint.partition, Lsn(u64::MAX))?;
            sync_dir(&self.checkpoints)?;
        }
        let name = checkpoint::file_name(checkpoint.partition, checkpoint.start);
        let path = self.checkpoints.join(format!("{name}.new"));
        self.files.lend(NAME_BYTES);
        let file = File::create(&path).inspect_err(|_| self.files.settle(NAME_BYTES))?;
        let (start, bytes) = (checkpoint.start, NAME_BYTES);
        self.open.insert(checkpoint.partition, Open { start, file, path, bytes, unsynced: 0 });
        Ok(())
    }

    fn write(&mut self, checkpoint: &CheckpointFile, bytes: &[u8]) -> io::Result<()> {
        let open = self.open.get_mut(&checkpoint.partition).filter(|open| open.start == checkpoint.start);
        let Some(open) = open else { return Ok(()) }; // it has failed
        self.files.lend(bytes.len() as u64);
        open.bytes += bytes.len() as u64;
        open.file.write_all(bytes)?;
        open.unsynced += bytes.len();
        if open.unsynced >= SYNC_BYTES {
            open.unsynced = 0;
            open.file.sync_data()?;
        }
        Ok(())
    }

    fn publish(&mut self, checkpoint: &CheckpointFile) -> io::Result<()> {
        let open = self.open.remove(&checkpoint.partition).filter(|open| open.start == checkpoint.start);
        let open = open.ok_or_else(|| io::Error::other("it was given up"))?;
        self.files.settle(open.bytes);
        let published = || -> io::Result<()> {
            open.file.sync_all()?;
            let name = checkpoint::file_name(checkpoint.partition, checkpoint.start);
            fs::rename(&open.path, self.checkpoints.join(name))?;
            sync_dir(&self.checkpoints)
        };
        published().inspect_err(|_| {
            let _ = fs::remove_file(&open.path);
        })?;
        self.told = None;
        self.remove(checkpoint.partition, checkpoint.start)
    }

    /// Removes the published checkpoints of a partition that start before this.
    fn remove(&self, partition: PartitionId, before: Lsn) -> io::Result<()> {
        for entry in fs::read_dir(&self.checkpoints)? {
            let entry = entry?;
            let older = entry.file_name().to_str().and_then(checkpoint::of_file_name);
            if older.is_some_and(|(id, start)| id == partition && start < before) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn discard(&mut self, checkpoint: &CheckpointFile) {
        if let Some(open) = self.open.remove(&checkpoint.partition) {
            self.files.settle(open.bytes);
            let _ = fs::remove_file(open.path);
        }
    }
}
