//! One running process of a local cluster: started, listened to, signalled, and told of when it ends.
//!
//! A task owns the process, so that a signal is only ever sent to a process that has not been waited for yet: its id
//! cannot be a stranger's.

use super::plan::Listening;
use crate::output;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{ChildStdout, Command},
    sync::mpsc,
};

/// Signals that wait to be sent to one child; more than are ever sent at once.
const SIGNAL_QUEUE: usize = 4;

/// What children report.
#[derive(Debug)]
pub(super) enum Event {
    /// The process listens.
    Listens { index: usize, listening: Listening },
    /// The process has ended; the status is that of `wait`.
    Ended { index: usize, pid: u32, status: io::Result<ExitStatus> },
    /// The time to start the process again has come.
    RestartDue { index: usize },
}

/// A process that was started and has not been seen to end.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: u32,
    signals: mpsc::Sender<Signal>,
}

impl Child {
    /// Starts process `index` of the plan; its events arrive at `events`.
    ///
    /// It gets a process group of its own, so that a Ctrl-C at the terminal reaches the supervisor alone, which then
    /// stops all in order. stderr is shared: log lines carry the name of their process.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        log_level: &str,
        (index, name): (usize, &str),
        events: &mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let mut process = Command::new(program)
            .args(arguments)
            .env("KV_LOG", log_level)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().ok_or_else(|| io::Error::other("the process has no id"))?;
        let stdout = process.stdout.take().ok_or_else(|| io::Error::other("the process has no stdout"))?;
        let (signals, queue) = mpsc::channel(SIGNAL_QUEUE);
        let forward = Forward { index, name: name.to_owned(), lines: BufReader::new(stdout).lines() };
        tokio::spawn(watch(process, pid, forward, queue, events.clone()));
        Ok(Child { pid, signals })
    }

    /// Sends a signal, unless the process has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // A full queue holds signals enough to end any process.
        let _ = self.signals.try_send(signal);
    }
}

/// Lives as long as the process, and a little longer: until what it wrote is forwarded.
async fn watch(
    mut process: tokio::process::Child,
    pid: u32,
    mut stdout: Forward,
    mut signals: mpsc::Receiver<Signal>,
    events: mpsc::Sender<Event>,
) {
    let mut open = true;
    let status = loop {
        tokio::select! {
            more = stdout.line(&events), if open => open = more,
            Some(signal) = signals.recv() => send(&process, signal),
            status = process.wait() => break status,
        }
    };
    while open {
        open = stdout.line(&events).await;
    }
    // Nobody listens any more when the supervisor itself is at its end.
    let _ = events.send(Event::Ended { index: stdout.index, pid, status }).await;
}

fn send(process: &tokio::process::Child, signal: Signal) {
    let pid = process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!("cannot send {signal:?} to process {pid:?}: {error}");
    }
}

/// The output of a child, on its way to ours.
struct Forward {
    index: usize,
    name: String,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Forward {
    /// Forwards the next line; false once there are no more. May be dropped while it waits without losing a line.
    async fn line(&mut self, events: &mpsc::Sender<Event>) -> bool {
        let Ok(Some(line)) = self.lines.next_line().await else { return false };
        output::line(format!("{}: {line}", self.name));
        if let Some(listening) = Listening::parse(&line) {
            let _ = events.send(Event::Listens { index: self.index, listening }).await;
        }
        true
    }
}

/// How a process ended, as the end of a sentence.
pub(super) fn describe(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}{}", signal_name(signal)),
            (None, None) => format!("ended: {status}"),
        },
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

fn signal_name(signal: i32) -> &'static str {
    let known = [
        (Signal::HUP, " (SIGHUP)"),
        (Signal::INT, " (SIGINT)"),
        (Signal::QUIT, " (SIGQUIT)"),
        (Signal::ILL, " (SIGILL)"),
        (Signal::ABORT, " (SIGABRT)"),
        (Signal::BUS, " (SIGBUS)"),
        (Signal::KILL, " (SIGKILL)"),
        (Signal::SEGV, " (SIGSEGV)"),
        (Signal::TERM, " (SIGTERM)"),
    ];
    known.iter().find(|(s, _)| s.as_raw() == signal).map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        for (raw, words) in [
            (0, "ended with exit code 0"),
            (1 << 8, "ended with exit code 1"),
            (9, "was killed by signal 9 (SIGKILL)"),
            (11 | 0x80, "was killed by signal 11 (SIGSEGV)"),
            (40, "was killed by signal 40"),
        ] {
            assert_eq!(describe(&Ok(ExitStatus::from_raw(raw))), words);
        }
    }

    #[tokio::test]
    async fn a_child_is_heard_signalled_and_seen_to_end() {
        let (sender, mut events) = mpsc::channel(8);
        let script =
            ["-c", "echo \"log level $KV_LOG\"; echo listening 127.0.0.1:7; exec sleep 600"].map(OsString::from);
        let child = Child::start(Path::new("/bin/sh"), &script, "warn", (3, "test"), &sender).expect("a shell");
        let Some(Event::Listens { index: 3, listening }) = events.recv().await else { panic!("it listens first") };
        assert_eq!(listening.address.port(), 7);
        child.signal(Signal::TERM);
        let Some(Event::Ended { index: 3, pid, status }) = events.recv().await else { panic!("then it ends") };
        assert_eq!((pid, describe(&status).as_str()), (child.pid, "was killed by signal 15 (SIGTERM)"));
    }
}
