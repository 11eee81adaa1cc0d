//! For `make bench-wal`: the log in one process, without network, beside a bare loop of write and sync on the same disk.

use crate::{
    executor::Mail,
    mailbox,
    options::StorageSettings,
    storage::{DataDir, Storage, preallocated},
};
use glommio::{LocalExecutorBuilder, Placement};
use kv_proto::{
    effect::Effect,
    ids::{DiskId, Epoch, ExecutorIndex, Lsn, NodeId, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::LogEntry;
use kv_storage::log::{format::BLOCK_BYTES, gather::Gather};
use std::{
    collections::VecDeque,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Writes that came to disk.
    pub writes: u64,
    /// Syncs that brought them there.
    pub batches: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// How long each write waited, in microseconds, sorted.
    pub latencies_us: Vec<u32>,
}

/// One block after another, each written to a file that was written before, and synced.
///
/// # Errors
/// What the disk says.
pub fn bare_loop(dir: &Path, duration: Duration) -> io::Result<Measured> {
    let path = dir.join("bare");
    let file = preallocated(&path, SEGMENT_BYTES)?;
    let mut memory = vec![1; 2 * BLOCK_BYTES];
    let padding = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = &mut memory[padding..padding + BLOCK_BYTES];
    let (mut measured, began) = (Measured::default(), Instant::now());
    while began.elapsed() < duration {
        let start = Instant::now();
        let offset = measured.writes * BLOCK_BYTES as u64 % SEGMENT_BYTES;
        block[..8].copy_from_slice(&measured.writes.to_le_bytes());
        file.write_all_at(block, offset)?;
        file.sync_data()?;
        measured.latencies_us.push(start.elapsed().as_micros() as u32);
        (measured.writes, measured.batches) = (measured.writes + 1, measured.batches + 1);
    }
    measured.elapsed = began.elapsed();
    measured.latencies_us.sort_unstable();
    std::fs::remove_file(path)?;
    Ok(measured)
}

/// That many writers of records with 16 bytes of key and 64 of value, each of which waits until its last one is on disk.
///
/// # Errors
/// What the disk says.
pub fn log_writers(dir: &Path, writers: usize, duration: Duration) -> io::Result<Measured> {
    let dir: PathBuf = dir.join(format!("log-{writers}"));
    let node = NodeId::new("bench").map_err(io::Error::other)?;
    let data = DataDir::open(&dir, node, DiskId(1)).map_err(io::Error::other)?;
    let settings = StorageSettings { dir: dir.clone(), segment_bytes: SEGMENT_BYTES, max_log_bytes: SEGMENT_BYTES };
    let (mail, receiver) = mailbox::mailbox();
    let storage = Storage::open(settings, data, vec![mail.clone()]).map_err(io::Error::other)?;
    let mut stream = storage.start_stream(ExecutorIndex(0), mail).map_err(io::Error::other)?;
    let thread = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(64 * 1024)
        .spawn(move || async move {
            let (mut gather, mut measured) = (Gather::default(), Measured::default());
            let mut waiting: VecDeque<Instant> = VecDeque::with_capacity(writers);
            let effect = Effect::Put { key: &[7; 16], content_type: "", value: &[7; 64], expires: None };
            let payload: Arc<[u8]> = effect.encode().into();
            let began = Instant::now();
            let mut lsn = Lsn(0);
            while began.elapsed() < duration || !waiting.is_empty() {
                if began.elapsed() < duration {
                    let now = Instant::now();
                    while waiting.len() < writers {
                        lsn = lsn.next();
                        let position = Position { epoch: Epoch(1), lsn };
                        let record = Record { position, operation_id: None, payload: payload.clone() };
                        gather.append(PartitionId(0), &LogEntry::Record(record), Lsn(0));
                        waiting.push_back(now);
                    }
                    if let Some(chunk) = gather.take() {
                        stream.write(chunk);
                    }
                }
                let mut next = Some(receiver.receive().await);
                while let Some(mail) = next {
                    if let Mail::Flushed(flushed) = mail {
                        let now = Instant::now();
                        measured.batches += 1;
                        for _ in 0..flushed.parts.iter().map(|p| p.entries).sum::<u64>() {
                            let since = waiting.pop_front().expect("somebody waits for it");
                            measured.latencies_us.push(now.duration_since(since).as_micros() as u32);
                            measured.writes += 1;
                        }
                        // Nobody checkpoints here: what is full is not needed.
                        storage.catalog().release(PartitionId(0), lsn);
                        storage.let_go();
                    }
                    next = receiver.try_receive();
                }
            }
            measured.elapsed = began.elapsed();
            measured.latencies_us.sort_unstable();
            stream.finish();
            measured
        })
        .map_err(|e| io::Error::other(e.to_string()))?;
    let measured = thread.join().map_err(|e| io::Error::other(e.to_string()))?;
    std::fs::remove_dir_all(dir)?;
    Ok(measured)
}
