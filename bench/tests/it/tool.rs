//! Starts the program, and reads what it wrote.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fmt,
    io::{BufRead, BufReader},
    mem::take,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// How long anything may take that should be there soon; the machine may be very busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program with these arguments, which have no spaces in them.
pub(crate) fn kvbench(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvbench"));
    command
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("KVBENCH_WORKER");
    command
}

/// What became of a run.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The result; null where none was asked for, or written.
    pub(crate) json: Value,
}

/// What an assertion that fails shows.
impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ran { code, stdout, stderr, json } = self;
        write!(f, "exit code {code:?}\n{stdout}\n{stderr}\n{json}")
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr), json: Value::Null }
    }

    /// A number of the result, by its JSON pointer; of one that is not there, 0.
    pub(crate) fn number(&self, pointer: &str) -> f64 {
        self.json.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0)
    }

    pub(crate) fn count(&self, pointer: &str) -> u64 {
        self.json.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Without errors or violations. What an open loop has dropped is no success either, and may be this machine's fault.
    pub(crate) fn is_well(&self) -> bool {
        self.code == Some(i32::from(self.count("/open_loop/dropped") > 0)) && self.error_count() == 0
    }

    /// Errors of the run by their codes, but for these.
    pub(crate) fn errors_but(&self, codes: &[&str]) -> Vec<String> {
        let errors = self.errors();
        errors
            .iter()
            .filter(|(code, _)| !codes.contains(&code.as_str()))
            .map(|(code, n)| format!("{code}: {n}"))
            .collect()
    }

    /// All errors of the run.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors().values().filter_map(Value::as_u64).sum()
    }

    fn errors(&self) -> &serde_json::Map<String, Value> {
        self.json["errors"].as_object().unwrap_or_else(|| panic!("there is no result: {self}"))
    }
}

pub(crate) fn run(flags: &str) -> Ran {
    Ran::of(kvbench(flags).output().expect("kvbench starts"))
}

/// Runs with `--json`.
pub(crate) fn run_json(flags: &str) -> Ran {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.json");
    std::fs::write(&path, "x".repeat(100_000)).expect("an older and longer result");
    let output = kvbench(flags).arg("--json").arg(&path).output().expect("kvbench starts");
    Ran { json: read_json(&path), ..Ran::of(output) }
}

/// A result that was written, or null.
fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a result")).unwrap_or_default()
}

/// Starts a run, and waits until it says a line on stderr that is what is waited for.
pub(crate) fn start(command: &mut Command, is_it: impl Fn(&str) -> bool) -> Running {
    let mut child = command.spawn().expect("kvbench starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let (sender, lines) = mpsc::channel();
    // Reads what it says, so that it never waits for a reader.
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut running = Running { child, said: String::new(), lines };
    running.wait_for(is_it);
    running
}

/// A run that goes on.
pub(crate) struct Running {
    child: Child,
    said: String,
    lines: mpsc::Receiver<String>,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn interrupt(&self) {
        kill_process(self.pid(), Signal::INT).expect("it runs");
    }

    /// Waits until it says such a line.
    pub(crate) fn wait_for(&mut self, is_it: impl Fn(&str) -> bool) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}: {}", self.said));
            let is_it = is_it(&line);
            self.said = take(&mut self.said) + &line + "\n";
            if is_it {
                return;
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn end(self) -> Ran {
        let ran = Ran::of(self.child.wait_with_output().expect("it ends"));
        let rest: Vec<String> = self.lines.iter().collect();
        Ran { stderr: self.said + &rest.join("\n"), ..ran }
    }

    /// Waits for its end, and reads the result that it left.
    pub(crate) fn end_json(self, path: &Path) -> Ran {
        let ran = self.end();
        Ran { json: read_json(path), ..ran }
    }
}

/// The echo server of the tool, ended with the test.
pub(crate) struct Echo {
    child: Child,
    address: String,
}

impl Echo {
    pub(crate) fn start(flags: &str) -> Echo {
        let mut child = kvbench(&format!("echo --listen 127.0.0.1:0 {flags}"))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("kvbench starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("UTF-8");
        let address = line.trim_end().strip_prefix("listening kv://").unwrap_or_else(|| panic!("{line}")).to_owned();
        Echo { child, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("kv://{}", self.address)
    }

    /// Tells it to end, and waits; its exit code.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that this one has started.
pub(crate) fn children(of: Pid) -> Vec<Pid> {
    let parent = |name: &OsStr| {
        let stat = std::fs::read_to_string(Path::new("/proc").join(name).join("stat")).ok()?;
        // Behind the name, which may have anything in it: the state, and the parent.
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((Pid::from_raw(name.to_str()?.parse().ok()?)?, parent))
    };
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pairs = processes.filter_map(|entry| parent(&entry.file_name()));
    pairs.filter(|(_, parent)| *parent == of.as_raw_pid()).map(|(pid, _)| pid).collect()
}

/// Whether all of these end soon. What is dead and not waited for counts as ended.
pub(crate) fn all_end(processes: &[Pid]) -> bool {
    let lives = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    let began = Instant::now();
    while processes.iter().any(lives) {
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
