//! The thread that writes an executor's stream of the log.
//!
//! Writing and syncing block, and are all that this thread does: whatever chunks have come meanwhile are its next batch.
//! (Measured beside the ring of the executor: a hop to a thread costs no more than the kernel's own hop to the worker
//! that syncs for the ring.)
//!
//! # Invariants
//! * Chunks are written in the order in which they were handed over.
//! * A write or sync that fails ends the process: what the disk has is read again at the next start, and no second sync is
//!   believed.

use super::{RestoreError, Storage, files::StreamFiles};
use crate::{executor::Mail, fatal, mailbox::Sender};
use kv_proto::cluster_map::AckMode;
use kv_storage::log::{
    batch_bytes,
    gather::Chunk,
    writer::{Flushed, Media, StreamOptions, WriteError, Writer},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a batch gathers where writes do not wait for it.
const GATHER_TIME: Duration = Duration::from_millis(50);
/// How soon it is tried again to make a segment when the disk was full.
const FULL_PAUSE: Duration = Duration::from_millis(100);

enum ToStream {
    Chunk(Box<Chunk>),
    Mode(AckMode),
}

/// An executor's side of its stream.
#[derive(Debug)]
pub(crate) struct Stream {
    sender: Option<mpsc::Sender<ToStream>>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shows of itself.
#[derive(Debug, Default)]
struct State {
    /// Bytes of the current segment that are not written yet.
    room: AtomicU64,
    /// Whether it waits for room for another segment.
    waits: AtomicBool,
}

impl std::fmt::Debug for ToStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ToStream::Chunk(_) => "Chunk",
            ToStream::Mode(_) => "Mode",
        })
    }
}

impl Stream {
    /// Makes the first segment of a stream and starts its thread, which tells `mail` of what is on disk.
    pub(crate) fn start(
        storage: &Arc<Storage>,
        options: StreamOptions,
        mail: Sender<Mail>,
    ) -> Result<Self, RestoreError> {
        let media = StreamFiles::new(storage.files.clone());
        Stream::start_on(media, storage, options, mail)
            .map_err(super::restore::io_error("make a segment of the log in", &storage.settings.dir))
    }

    pub(super) fn start_on<M: Media + Send + 'static>(
        media: M,
        storage: &Arc<Storage>,
        options: StreamOptions,
        mail: Sender<Mail>,
    ) -> io::Result<Self> {
        let executor = options.stream.executor;
        let batch_bytes = batch_bytes(options.segment_bytes);
        let mut writer = Writer::new(media, options);
        writer.open().map_err(|error| match error {
            WriteError::Full(_) => io::Error::new(io::ErrorKind::StorageFull, "there is no room on the disk"),
            WriteError::Failed { source, .. } => source,
        })?;
        let state = Arc::new(State::default());
        state.room.store(writer.room(), Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        let (storage, shared) = (storage.clone(), state.clone());
        if let Some(id) = writer.segment() {
            storage.catalog().open(id, storage.settings.segment_bytes);
        }
        let mode = AckMode::Durable;
        let thread = thread::Builder::new().name(format!("log-{executor}")).spawn(move || {
            Writing { storage, writer, batch_bytes, mail, state: shared, mode }.run(&receiver);
        })?;
        Ok(Stream { sender: Some(sender), state, thread: Some(thread) })
    }

    /// Hands over what is to be written.
    pub(crate) fn write(&self, chunk: Chunk) {
        self.send(ToStream::Chunk(Box::new(chunk)));
    }

    /// Says what writes wait for.
    pub(crate) fn set_mode(&self, mode: AckMode) {
        self.send(ToStream::Mode(mode));
    }

    fn send(&self, message: ToStream) {
        if let Some(sender) = &self.sender {
            // The thread ends only with the process.
            let _ = sender.send(message);
        }
    }

    /// Bytes that can still be written to the current segment.
    pub(crate) fn room(&self) -> u64 {
        self.state.room.load(Ordering::Relaxed)
    }

    /// Whether what was handed over waits until there is room on the disk.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.state.waits.load(Ordering::Relaxed)
    }

    /// Returns when everything that was handed over is on disk.
    pub(crate) fn finish(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writing<M> {
    storage: Arc<Storage>,
    writer: Writer<M>,
    /// Chunks are added to a batch until it has this many bytes.
    batch_bytes: usize,
    mail: Sender<Mail>,
    state: Arc<State>,
    mode: AckMode,
}

impl<M: Media> Writing<M> {
    fn run(mut self, receiver: &mpsc::Receiver<ToStream>) {
        while let Ok(first) = receiver.recv() {
            let mut chunks = Vec::new();
            let mut bytes = self.take(first, &mut chunks);
            let gathered = Instant::now() + GATHER_TIME;
            while bytes < self.batch_bytes {
                let next = match self.mode {
                    AckMode::Durable => receiver.try_recv().map_err(drop),
                    AckMode::Replicated => {
                        let left = gathered.saturating_duration_since(Instant::now());
                        receiver.recv_timeout(left).map_err(|error| match error {
                            RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected => (),
                        })
                    }
                };
                let Ok(next) = next else { break };
                bytes += self.take(next, &mut chunks);
            }
            if !chunks.is_empty() {
                self.write(chunks);
            }
        }
    }

    fn take(&mut self, message: ToStream, chunks: &mut Vec<Chunk>) -> usize {
        match message {
            ToStream::Chunk(chunk) => {
                let bytes = chunk.body.len();
                chunks.push(*chunk);
                bytes
            }
            ToStream::Mode(mode) => {
                self.mode = mode;
                0
            }
        }
    }

    fn write(&mut self, mut chunks: Vec<Chunk>) {
        let mut told = false;
        let flushed = loop {
            match self.writer.write(chunks) {
                Ok(flushed) => break flushed,
                Err(WriteError::Full(back)) => {
                    if !told {
                        tracing::error!(
                            "the disk is full, and what is under way waits until there is room; reads go on"
                        );
                        self.state.waits.store(true, Ordering::Relaxed);
                        told = true;
                    }
                    chunks = back;
                    thread::sleep(FULL_PAUSE);
                }
                Err(error @ WriteError::Failed { .. }) => {
                    fatal::end(&format!("{error}; what the disk has is read again at the next start"));
                }
            }
        };
        if told {
            tracing::info!("there is room on the disk for what waited");
            self.state.waits.store(false, Ordering::Relaxed);
        }
        self.state.room.store(self.writer.room(), Ordering::Relaxed);
        self.note_segments(&flushed);
        self.mail.send(Mail::Flushed(Box::new(flushed)));
    }

    fn note_segments(&mut self, flushed: &Flushed) {
        let mut catalog = self.storage.catalog();
        if let Some(sealed) = &flushed.sealed {
            let bytes = self.storage.settings.segment_bytes;
            catalog.seal(sealed.clone(), bytes, Default::default());
            if let Some(id) = self.writer.segment() {
                catalog.open(id, bytes);
            }
        }
        // What is void stands before this batch, in the segment that was sealed too.
        for part in &flushed.parts {
            match (part.reset, part.voids) {
                (Some(base), _) => catalog.free(part.partition, base),
                (None, Some(from)) => catalog.void(part.partition, from),
                (None, None) => {}
            }
        }
        drop(catalog);
        if flushed.sealed.is_some() {
            self.storage.prepare_segment();
        }
    }
}
