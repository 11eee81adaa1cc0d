//! Reads from the log while it is written: for replicas that lack what nobody holds in memory any more, and for records that are
//! to be copied forward. A thread of its own, so that who catches up does not wait for checkpoints.

use super::files::SegmentFiles;
use crate::{executor::Mail, mailbox::Sender};
use kv_proto::{
    ids::{ExecutorIndex, Lsn, NodeId, PartitionId},
    replication::Record,
};
use kv_storage::log::{
    SegmentId,
    format::{self, BATCH_HEADER_BYTES, Content, Identity},
    index::Place,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, mpsc},
    thread,
};

/// Records that somebody wants to have from the log.
#[derive(Clone, Debug)]
pub(crate) struct ReadLog {
    /// Who asks.
    pub(crate) executor: ExecutorIndex,
    /// The partition.
    pub(crate) partition: PartitionId,
    /// The batches that have them.
    pub(crate) places: Vec<Place>,
    /// The replica that they are for; `None` where they are to be copied forward.
    pub(crate) to: Option<NodeId>,
    /// The record before the first that is wanted.
    pub(crate) after: Lsn,
}

/// Bytes of batches that are kept: a batch has records of many partitions, which are asked for one after another.
const KEPT_BYTES: usize = 32 << 20;

/// Where a batch begins.
type At = (SegmentId, u64);

struct Reader {
    identity: Identity,
    files: Arc<SegmentFiles>,
    /// The segment that was read last.
    open: Option<(SegmentId, File)>,
    /// The records of batches that were read, the oldest first, with the bytes that each batch takes.
    batches: HashMap<At, Vec<(PartitionId, Record)>>,
    kept: VecDeque<(At, usize)>,
    kept_bytes: usize,
}

/// Answers what it is asked by [`Mail::LogRead`].
pub(super) fn start(
    identity: Identity,
    files: Arc<SegmentFiles>,
    mail: Vec<Sender<Mail>>,
) -> io::Result<mpsc::Sender<ReadLog>> {
    let (sender, wanted) = mpsc::channel::<ReadLog>();
    thread::Builder::new().name("log-reader".into()).spawn(move || {
        let (batches, kept) = (HashMap::new(), VecDeque::new());
        let mut reader = Reader { identity, files, open: None, batches, kept, kept_bytes: 0 };
        while let Ok(read) = wanted.recv() {
            let records = reader.read(&read);
            mail[usize::from(read.executor.0)].send(Mail::LogRead { read, records });
        }
    })?;
    Ok(sender)
}

impl Reader {
    /// The records of the partition in these batches, by their LSNs. A segment that is gone has none that are needed.
    fn read(&mut self, read: &ReadLog) -> BTreeMap<Lsn, Record> {
        let mut records = BTreeMap::new();
        for place in &read.places {
            let at = (place.segment, place.offset);
            if !self.batches.contains_key(&at) {
                match self.read_batch(at) {
                    Ok(bytes) => self.keep(at, bytes),
                    // It may go, and its file be used again, while it is read.
                    Err(_) if !self.files.path(place.segment).exists() => continue,
                    Err(error) => {
                        tracing::error!(segment = %place.segment, %error, "cannot read from the log");
                        continue;
                    }
                }
            }
            let wanted = self.batches.get(&at).into_iter().flatten().filter(|(partition, record)| {
                *partition == read.partition && (place.first..=place.last).contains(&record.position.lsn)
            });
            records.extend(wanted.map(|(_, record)| (record.position.lsn, record.clone())));
        }
        self.open = None;
        records
    }

    /// Reads a batch, and says how many bytes it takes.
    fn read_batch(&mut self, at: At) -> io::Result<usize> {
        let (segment, offset) = at;
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.open = Some((segment, File::open(self.files.path(segment))?));
        }
        let (_, file) = self.open.as_ref().expect("it was just opened");
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        file.read_exact_at(&mut bytes, offset)?;
        let length = format::batch_bytes(&bytes);
        bytes.resize(length.min(file.metadata()?.len() as usize), 0);
        file.read_exact_at(&mut bytes, offset)?;
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let batch = format::read_batch(&bytes, &self.identity, segment, offset);
        let batch = batch.ok_or_else(|| damaged("a batch is damaged"))?;
        let mut body = &batch.body[..];
        let mut records = Vec::new();
        while !body.is_empty() {
            let entry = format::read_entry(&mut body).map_err(|e| damaged(&e.to_string()))?;
            if let Content::Record { record, .. } = entry.content {
                records.push((entry.partition, record));
            }
        }
        self.batches.insert(at, records);
        Ok(bytes.len())
    }

    /// Lets go of the oldest batches where there are too many bytes.
    fn keep(&mut self, at: At, bytes: usize) {
        self.kept.push_back((at, bytes));
        self.kept_bytes += bytes;
        while self.kept_bytes > KEPT_BYTES
            && let Some((oldest, bytes)) = self.kept.pop_front_if(|(oldest, _)| *oldest != at)
        {
            self.batches.remove(&oldest);
            self.kept_bytes -= bytes;
        }
    }
}
