//! `kvbench echo`: a server whose behaviour is known, to measure the tool by.
//!
//! Speaks the native protocol as a node does that leads every partition, and answers at once, from nothing: what a load against it
//! costs is the tool's own cost, and the ceiling of what the tool can measure. With a delay, a stall or errors that were asked for, the
//! tool's figures must show them.
//!
//! `answers` what is answered to what · `line` one connection. One thread: the ceiling is that of
//! one core.
//!
//! Keeps no values: a read finds one whatever was written before, so that an audit of its answers finds them wrong, and rightly so.

mod answers;
mod line;

use answers::Answers;
use anyhow::{Context, ensure};
use clap::Args;
use kv_proto::limits::HIGHEST_MAX_VALUE_BYTES;
use std::{
    cell::Cell,
    io::Write,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    task::{LocalSet, spawn_local},
};

/// Longest delay or stall.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Pause after a connection could not be accepted, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  kvbench echo --cpu 0                              then, in another terminal, on the other cores:
  kvbench run --target kv://127.0.0.1:7000          what the tool can measure at most, and what it costs

  kvbench echo --delay 5ms                          every latency must be 5 ms and a little more
  kvbench echo --stall-at 3s --stall-for 1s         the longest latency must be 1 s
  kvbench echo --error-every 100                    1 operation of 100 must fail";

#[derive(Clone, Debug, Args)]
pub(crate) struct EchoOptions {
    /// Where to listen; port 0 takes a free one. The address stands on stdout: listening kv://ADDRESS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7000")]
    pub(crate) listen: SocketAddr,

    /// Bytes of the value that every read finds
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=HIGHEST_MAX_VALUE_BYTES as i64))]
    pub(crate) value_size: u32,

    /// Give each answer this long after its request was read, as 5ms: latencies must come out at that, and a little more
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = wait)]
    pub(crate) delay: Duration,

    /// Stall this long after the first request, once: a tool that leaves out the requests it did not send meanwhile shows a
    /// latency that no user sees
    #[arg(long, value_name = "TIME", value_parser = wait, requires = "stall_for")]
    pub(crate) stall_at: Option<Duration>,

    /// How long the stall takes; nothing is read or answered meanwhile
    #[arg(long, value_name = "TIME", value_parser = wait, requires = "stall_at")]
    pub(crate) stall_for: Option<Duration>,

    /// Answer each N-th request, over all connections, with the error "overloaded"
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) error_every: Option<u64>,

    /// Stay on this core, counted from 0, so that the tool can have the others
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text).map_err(|e| format!("{e}; write 5ms, 3s or 1m"))?;
    if wait <= MAX_WAIT { Ok(wait) } else { Err("longer than a day; write 5ms, 3s or 1m".to_owned()) }
}

/// Serves until it is interrupted or told to end.
///
/// # Errors
/// When it cannot start.
pub(crate) fn run(options: &EchoOptions) -> anyhow::Result<()> {
    if let Some(cpu) = options.cpu {
        pin(cpu)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")?;
    LocalSet::new().block_on(&runtime, async {
        let mut interrupted = signal(SignalKind::interrupt()).context("Ctrl-C cannot be caught")?;
        let mut terminated = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
        let listener = TcpListener::bind(options.listen).await.with_context(|| {
            format!(
                "cannot listen on {}; choose another address with --listen, or port 0 for a free one",
                options.listen
            )
        })?;
        let address = listener.local_addr().context("the listener has no address")?;
        writeln!(std::io::stdout(), "listening kv://{address}").context("cannot write to stdout")?;
        tokio::select! {
            () = serve(listener, Echo::new(options)) => {}
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok(())
    })
}

/// Keeps this thread on one core.
fn pin(cpu: usize) -> anyhow::Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    ensure!(cpu < CpuSet::MAX_CPU, "there is no core {cpu}; they are counted from 0");
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .with_context(|| format!("cannot stay on core {cpu}; see `nproc` for how many there are"))
}

/// What all connections share.
#[derive(Debug)]
struct Echo {
    answers: Answers,
    delay: Duration,
    /// How long after the first request, and how long.
    stall: Option<(Duration, Duration)>,
    /// When the first request came; kept only if something is counted from it.
    first: Cell<Option<Instant>>,
}

impl Echo {
    fn new(options: &EchoOptions) -> Rc<Echo> {
        Rc::new(Echo {
            answers: Answers::new(options.value_size as usize, options.error_every),
            delay: options.delay,
            stall: options.stall_at.zip(options.stall_for),
            first: Cell::new(None),
        })
    }

    /// Whether anything depends on the time.
    fn is_timed(&self) -> bool {
        !self.delay.is_zero() || self.stall.is_some()
    }

    /// A request has come.
    fn asked(&self, now: Instant) {
        if self.first.get().is_none() {
            self.first.set(Some(now));
        }
    }

    /// When the stall ends that lasts now, if one does.
    fn stalled_until(&self, now: Instant) -> Option<Instant> {
        let (at, length) = self.stall?;
        let begin = self.first.get()? + at;
        (begin..begin + length).contains(&now).then(|| begin + length)
    }
}

/// Accepts for ever.
async fn serve(listener: TcpListener, echo: Rc<Echo>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let echo = Rc::clone(&echo);
                // What a caller does wrong it is told; a connection that breaks is its caller's to notice.
                spawn_local(async move { serve_one(stream, &echo).await });
            }
            Err(error) => {
                eprintln!("kvbench: cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_one(stream: TcpStream, echo: &Echo) {
    if let Err(error) = line::serve(stream, echo).await {
        let usual = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
        if !usual.contains(&error.kind()) {
            eprintln!("kvbench: a connection broke: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
