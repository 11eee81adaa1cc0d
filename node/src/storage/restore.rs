//! Reads back what a node keeps, at its start.

use super::{
    data_dir::{DataDirError, NodeFile},
    files::SegmentFiles,
};
use kv_proto::ids::PartitionId;
use kv_storage::{
    checkpoint::{self, ReadError},
    log::{
        StreamId,
        format::{FormatError, Identity},
    },
    recovery::{Recovered, Recovery, Scanned},
};
use rustix::fs::{Advice, fadvise};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often a long restore says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 256 * 1024;

/// Why what is kept cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file is of another version or of another disk.
    #[error("cannot use {path}: {error}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it: a part of the sentence.
        error: FormatError,
    },
    /// A whole stream of the log is missing.
    #[error(
        "the log in {dir} is not whole: of the time when the node was started for the {generation}th time something is \
         missing. Put the files back; or, if the node's peer has all data, move the data folder away, and the node comes back with an \
         empty disk"
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The generation of which nothing is there.
        generation: u64,
    },
}

/// What was kept, and the segments that it came from, with their bytes.
pub(super) struct Restored {
    pub(super) recovered: Recovered,
    pub(super) segments: Vec<(Scanned, u64)>,
    /// Bytes of the checkpoints.
    pub(super) checkpoints: BTreeMap<PartitionId, u64>,
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let error = super::data_dir::io_error(what, path);
    move |source| error(source).into()
}

/// Reads everything in `dir`. What is damaged is reported, and its partitions are faulty; the others are restored.
pub(super) fn restore(
    dir: &Path,
    files: &SegmentFiles,
    node: &NodeFile,
    identity: &Identity,
) -> Result<Restored, RestoreError> {
    let began = Instant::now();
    let mut recovery = Recovery::new(*identity);
    let checkpoints = checkpoints(&dir.join("checkpoints"))?;
    let mut checkpoint_bytes = BTreeMap::new();
    for (partition, path) in &checkpoints {
        let bytes = fs::metadata(path).map_err(io_error("read", path))?.len();
        checkpoint_bytes.insert(*partition, bytes);
        read_checkpoint(&mut recovery, *partition, path, identity)?;
    }
    let ids = files.segments().map_err(io_error("read the log in", dir))?;
    for executor in 0..node.executors {
        let stream = StreamId { generation: node.begun, executor };
        if !ids.iter().any(|id| id.stream == stream) {
            return Err(RestoreError::Missing { dir: dir.to_path_buf(), generation: node.begun });
        }
    }
    let mut segments = Vec::with_capacity(ids.len());
    let (mut bytes, mut told, mut read) = (Vec::new(), began, 0);
    for (at, id) in ids.iter().enumerate() {
        let path = files.path(*id);
        read_from_disk(&path, &mut bytes).map_err(io_error("read", &path))?;
        let scanned = recovery.take_segment(*id, &bytes);
        let scanned = scanned.map_err(|error| RestoreError::Format { path: path.clone(), error })?;
        if let Some(what) = &scanned.damage {
            tracing::error!("the log is damaged: {what}");
        }
        segments.push((scanned, bytes.len() as u64));
        for partition in recovery.awaiting_copies() {
            if let Some(path) = checkpoints.get(&partition) {
                read_checkpoint(&mut recovery, partition, path, identity)?;
            }
        }
        read += bytes.len() as u64;
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            let (segment, of, records, mib) = (at + 1, ids.len(), recovery.records(), read >> 20);
            tracing::info!(segment, of, records, mib, "reading the log back");
        }
    }
    drop(bytes);
    let records = recovery.records();
    let recovered = recovery.finish();
    if !node.clean || records > 0 {
        let keys: u64 = recovered.partitions.values().map(|p| p.table.keys()).sum();
        let (ms, mib) = (began.elapsed().as_millis() as u64, read >> 20);
        tracing::info!(
            partitions = recovered.partitions.len(),
            keys,
            records,
            mib,
            ms,
            stopped_cleanly = node.clean,
            "the data are read back"
        );
    }
    for (id, partition) in &recovered.partitions {
        if let Some(fault) = &partition.restored.fault {
            tracing::error!(partition = %id, "a partition cannot be restored: {fault}");
        }
    }
    Ok(Restored { recovered, segments, checkpoints: checkpoint_bytes })
}

/// Reads a segment as the disk has it. What is restored is taken for being on disk, so what the last process wrote and did
/// not sync has to be synced first; and what the kernel holds of a file whose sync failed is not what the disk has.
fn read_from_disk(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    let mut file = File::open(path)?;
    file.sync_data()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    file.read_to_end(bytes)?;
    Ok(())
}

/// The newest checkpoint of each partition; what is left of older ones, and of those that were not published, is removed.
fn checkpoints(dir: &Path) -> Result<BTreeMap<PartitionId, PathBuf>, RestoreError> {
    let mut newest = BTreeMap::new();
    let mut remnants = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
        let path = entry.map_err(io_error("read", dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match checkpoint::of_file_name(name) {
            Some((partition, start)) => match newest.insert(partition, (start, path.clone())) {
                Some((other, older)) if other < start => remnants.push(older),
                Some((other, younger)) => {
                    newest.insert(partition, (other, younger));
                    remnants.push(path);
                }
                None => {}
            },
            None if name.ends_with(".new") => remnants.push(path),
            None => tracing::warn!(path = %path.display(), "a file that is no checkpoint; it is left alone"),
        }
    }
    for path in remnants {
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    Ok(newest.into_iter().map(|(partition, (_, path))| (partition, path)).collect())
}

fn read_checkpoint(
    recovery: &mut Recovery,
    partition: PartitionId,
    path: &Path,
    identity: &Identity,
) -> Result<(), RestoreError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    match checkpoint::read(&mut BufReader::with_capacity(READ_BYTES, file), identity) {
        Ok(checkpoint) if checkpoint.header.partition == partition => recovery.take_checkpoint(checkpoint),
        Err(ReadError::Io(source)) => return Err(io_error("read", path)(source)),
        Err(ReadError::Format(error @ (FormatError::OtherFormat(_) | FormatError::OtherDisk { .. }))) => {
            return Err(RestoreError::Format { path: path.to_path_buf(), error });
        }
        other => {
            let what = match other {
                Err(error) => error.to_string(),
                Ok(_) => "it is of another partition".to_owned(),
            };
            let what = format!("its checkpoint {} is damaged: {what}", path.display());
            tracing::error!(%partition, "{what}");
            recovery.refuse_checkpoint(partition, what);
        }
    }
    Ok(())
}
