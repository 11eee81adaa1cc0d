//! A node: the executors that own partitions, and everything between them and the network.
//!
//! `Cargo` builds the walls: the protocol of replicas is the pure crate `kv-replication`, what travels is
//! `kv-proto`. This crate is the shell around them, on glommio: one thread a core, each owning its partitions and
//! connections and sharing nothing (see `executor`).
//!
//! # Invariants
//! * No HTTP, and no decision about replication: that is the core's.
//! * A panic anywhere, or an executor that hangs, ends the process (see `fatal`).

#[cfg(fuzzing)]
pub mod fuzzing;

#[doc(hidden)]
pub mod bench_wal;
mod byte_size;
mod clock;
mod executor;
mod failover_options;
mod fatal;
mod mailbox;
mod options;
mod partition;
mod pending;
pub mod probe;
mod process;
mod storage;
mod transport;

pub use byte_size::{ByteSize, InvalidByteSize};
pub use failover_options::{FailoverOptions, ReadMode};
pub use options::{NodeOptions, Pin, PreferredRole};
pub use storage::{DataDirError, RestoreError};

use executor::{Mail, Memory, Shared, Stop};
use fatal::Heartbeat;
use glommio::{LocalExecutorBuilder, Placement};
use kv_proto::ids::{DiskId, ExecutorIndex, Member};
use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};
use storage::{DataDir, Storage};

/// Submission queue entries of an executor's ring.
const RING_DEPTH: usize = 1024;
/// Memory that an executor registers with its ring, in bytes: sockets need little.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// Why a node did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags that do not go together.
    #[error("{0}")]
    Options(String),
    /// The machine cannot run the node.
    #[error(transparent)]
    Machine(#[from] probe::Error),
    /// Nothing could be bound to the address.
    #[error("cannot listen on {address} (is another process using the port? choose another by --listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node has nowhere to keep its data.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// What it keeps cannot be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The kernel refused something else.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An executor could not be started or ended early.
    #[error("executor {index}: {reason}")]
    Executor {
        /// Which one.
        index: usize,
        /// What glommio said.
        reason: String,
    },
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// Runs a node until SIGTERM or SIGINT.
///
/// Prints `listening ADDRESS` on standard output once it listens.
///
/// # Errors
/// When the node cannot start, in a sentence that names cause and cure.
pub fn run(options: NodeOptions) -> Result<(), Error> {
    fatal::abort_on_panic();
    let executors = usize::from(options.cores);
    probe::require(executors)?;
    let cpus = options.pin.plan(executors, &process::allowed_cpus()).map_err(Error::Options)?;
    let listener =
        process::listen(options.listen).map_err(|source| Error::Listen { address: options.listen, source })?;
    let bound = listener.local_addr().map_err(io_error("ask for the own address"))?;
    let settings = options.settings(bound).map_err(Error::Options)?;
    let random = || process::random_bytes().map(u128::from_le_bytes).map_err(io_error("read random bytes"));
    let dir = DataDir::open(&settings.storage.dir, options.id, DiskId(random()?))?;
    if dir.is_new() {
        tracing::info!(dir = %settings.storage.dir.display(), disk = %dir.file().disk, "a new data folder was made");
    }

    let (mail, receivers): (Vec<_>, Vec<_>) = (0..executors).map(|_| mailbox::mailbox()).unzip();
    let storage = Storage::open(settings.storage.clone(), dir, mail.clone())?;
    let shared = Arc::new(Shared {
        me: Member { node: options.id, disk: storage.identity.disk },
        settings,
        mail: mail.clone(),
        heartbeats: (0..executors).map(|_| Heartbeat::default()).collect(),
        connections: AtomicUsize::new(0),
        memory: Memory::default(),
        storage,
        proposals: random()? as u64,
        started: clock::now(),
        passing_on: AtomicUsize::new(executors),
        taking: AtomicUsize::new(executors),
    });
    let stream = |index| executor::start_stream(&shared, ExecutorIndex(index as u16));
    let streams = (0..executors).map(stream).collect::<Result<Vec<_>, _>>()?;
    shared.storage.begin()?;
    let mut threads = Vec::new();
    for (index, ((mail, stream), cpu)) in receivers.into_iter().zip(streams).zip(cpus).enumerate() {
        let listener = listener.try_clone().map_err(io_error("share the listening socket"))?;
        let shared = shared.clone();
        let thread = LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
            .name(&format!("executor-{index}"))
            .ring_depth(RING_DEPTH)
            .io_memory(IO_MEMORY_BYTES)
            .spawn(move || executor::run(ExecutorIndex(index as u16), shared, stream, listener.into(), mail))
            .map_err(|e| Error::Executor { index, reason: e.to_string() })?;
        threads.push(thread);
    }
    fatal::start_watchdog(shared.heartbeats.clone()).map_err(io_error("start the watchdog"))?;
    process::on_stop_signal(move |hands_off| {
        let stop = if hands_off { Stop::HandingOff } else { Stop::AtOnce };
        mail.iter().for_each(|m| m.send(Mail::Stop(stop)));
    })
    .map_err(io_error("watch for signals"))?;
    println!("listening {bound}");
    io::stdout().flush().map_err(io_error("write to standard output"))?;
    tracing::info!(address = %bound, executors, disk = %shared.me.disk, generation = shared.storage.generation, data = %shared.settings.storage.dir.display(), "node is up");
    for (index, thread) in threads.into_iter().enumerate() {
        thread.join().map_err(|e| Error::Executor { index, reason: e.to_string() })?;
    }
    shared.storage.close()?;
    tracing::info!("node has stopped");
    Ok(())
}
