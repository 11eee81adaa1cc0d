//! Whole clusters for tests: `kv local` as a real process on free ports with a data directory of its own, and HTTP to
//! its router.
//!
//! Nothing here waits for time to pass: [`Output::wait_for`] wakes with each line that a cluster prints, and [`until`]
//! is the one place that looks again and again. Both give up after [`BOUND`], with everything that was printed.

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName},
};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use kv_proto::{
    cluster_map::ClusterMap,
    ids::ShardId,
    routing::partition_of,
    stats::{NodeStats, ReplicaStats},
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use std::{
    env, fmt, fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long anything may take; far more than it does on a machine that is busy with other tests.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// A cluster has seven processes: one at a time, whatever number of test threads there is.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Looks until `condition` gives something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    until_ok(what, || condition().ok_or_else(String::new))
}

/// Looks until `condition` gives something, and tells what it said last if it never does.
#[track_caller]
pub(crate) fn until_ok<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        match condition() {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < deadline, "{what}: not within {BOUND:?} {why}"),
        }
        thread::sleep(PAUSE);
    }
}

/// The number in an environment variable that is meant for a test.
pub(crate) fn number_in(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The command line program.
pub(crate) fn kv() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv"));
    // What the machine's owner has set for own clusters is not meant for these.
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("KV_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command that ends by itself: its exit code, stdout and stderr.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let mut child = Spawned::start(command);
    let status = child.wait();
    (status.code().unwrap_or(-1), child.output.text(Source::Stdout), child.output.text(Source::Stderr))
}

/// What a process has printed so far, line by line.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    lines: Vec<(Source, String)>,
    open: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, source: Source, from: impl Read + Send + 'static) {
        self.lock().open += 1;
        let output = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                output.lock().lines.push((source, line));
                output.0.1.notify_all();
            }
            output.lock().open -= 1;
            output.0.1.notify_all();
        });
    }

    /// The first line for which `find` gives something, from those that were printed and those that are to come.
    #[track_caller]
    pub(crate) fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let (deadline, mut seen) = (Instant::now() + BOUND, 0);
        let mut lines = self.lock();
        loop {
            for (_, line) in &lines.lines[seen..] {
                if let Some(found) = find(line) {
                    return found;
                }
            }
            seen = lines.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let over = lines.open == 0 || left.is_zero();
            assert!(!over, "{what}: not within {BOUND:?}, or the process ended; it printed:\n{}", lines.all());
            lines = self.0.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All that came from one source, once that is closed.
    fn text(&self, source: Source) -> String {
        let mut lines = self.lock();
        while lines.open > 0 {
            lines = self.0.1.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        lines.lines.iter().filter(|(s, _)| *s == source).map(|(_, line)| format!("{line}\n")).collect()
    }
}

impl Lines {
    fn all(&self) -> String {
        self.lines.iter().map(|(_, line)| format!("  {line}\n")).collect()
    }
}

/// A process that is killed when the test is done with it.
pub(crate) struct Spawned {
    child: Child,
    pub(crate) output: Output,
}

impl Spawned {
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let output = Output::default();
        output.follow(Source::Stdout, child.stdout.take().expect("piped"));
        output.follow(Source::Stderr, child.stderr.take().expect("piped"));
        Spawned { child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the process ends", || self.child.try_wait().expect("it can be waited for"))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the process printed:\n{}", self.output.lock().all());
        }
    }
}

/// Sends a signal to a process of a cluster. A process that is told to stop has stopped when this returns: the kernel
/// tells its threads one by one, and each may finish what it is at.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(process, signal).expect("the process is there");
    if signal == Signal::STOP {
        let stopped = || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
            let state = |thread: fs::DirEntry| state(&thread.path());
            threads.flatten().all(|thread| matches!(state(thread), Some('T' | 't') | None)).then_some(())
        };
        until("all its threads have stopped", stopped);
    }
}

/// The state of a process or thread, by its folder in /proc; `None` when it is gone.
fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether a process runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    !matches!(state(Path::new(&format!("/proc/{pid}"))), None | Some('Z' | 'X'))
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) supervisor: Spawned,
    pub(crate) url: String,
    pub(crate) dir: TempDir,
    http: Http,
    _turn: MutexGuard<'static, ()>,
}

/// `cluster.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) http: String,
    pub(crate) processes: Vec<Process>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) pid: u32,
    pub(crate) address: Option<String>,
}

/// What `GET /v1/topology` says.
#[derive(Debug, Deserialize)]
pub(crate) struct Topology {
    pub(crate) map: ClusterMap,
    pub(crate) nodes: Vec<NodeReport>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) node: String,
    pub(crate) stats: Option<NodeStats>,
}

impl Cluster {
    /// Starts a cluster with these flags of `kv local`, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), flags)
    }

    #[track_caller]
    pub(crate) fn start_in(dir: TempDir, flags: &[&str]) -> Self {
        Self::start_as(dir, flags, &[])
    }

    /// Starts a cluster whose processes are told more by their environment.
    #[track_caller]
    pub(crate) fn start_with(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_as(tempfile::tempdir().expect("a directory"), flags, environment)
    }

    #[track_caller]
    pub(crate) fn start_as(dir: TempDir, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let supervisor = Spawned::start(local(dir.path()).args(flags).envs(environment.iter().copied()));
        let url = supervisor.output.wait_for("the cluster is ready", |l| l.strip_prefix("ready ").map(str::to_owned));
        Cluster { supervisor, http: Http::new(&url), url, dir, _turn: turn }
    }

    /// Ends the cluster and gives its directory back.
    pub(crate) fn into_dir(self) -> TempDir {
        self.dir
    }

    /// Stops the cluster as a person does, and gives its directory back.
    #[track_caller]
    pub(crate) fn stop(mut self) -> TempDir {
        signal(self.supervisor.pid(), Signal::INT);
        assert_eq!(self.supervisor.wait().code(), Some(0));
        self.dir
    }

    /// Waits until every partition takes writes, whether the router runs already or not.
    #[track_caller]
    pub(crate) fn until_ready(&self) {
        until_ok("the cluster is ready", || {
            let answer = self.http.try_send(Method::GET, "/readyz", &[], Bytes::new()).map_err(|e| e.to_string())?;
            if answer.status == StatusCode::OK { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }

    pub(crate) fn manifest(&self) -> Manifest {
        let text = fs::read_to_string(self.dir.path().join("cluster.json")).expect("there while the cluster runs");
        serde_json::from_str(&text).expect("JSON of the documented form")
    }

    pub(crate) fn process(&self, name: &str) -> Process {
        let found = self.manifest().processes.into_iter().find(|p| p.name == name);
        found.unwrap_or_else(|| panic!("no process {name}"))
    }

    /// `kv` with the address of this cluster.
    pub(crate) fn kv(&self, arguments: &[&str]) -> Command {
        let mut command = kv();
        command.args(arguments).env("KV_CLUSTER", &self.url);
        command
    }

    pub(crate) fn topology(&self) -> Topology {
        self.try_topology().unwrap_or_else(|why| panic!("{why}"))
    }

    /// Fails where the router does not answer, which may be about to start again.
    fn try_topology(&self) -> Result<Topology, String> {
        let answer = self.http.try_send(Method::GET, "/v1/topology", &[], Bytes::new()).map_err(|e| e.to_string())?;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        Ok(serde_json::from_slice(&answer.body).expect("the documented form"))
    }

    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.http.send(method, path, headers, body.into())
    }

    pub(crate) fn get(&self, key: &str) -> Answer {
        self.send(Method::GET, &format!("/get?key={key}"), &[], "")
    }

    pub(crate) fn put(&self, key: &str, value: &Value) -> Answer {
        let body = serde_json::json!({"key": key, "value": value}).to_string();
        self.send(Method::POST, "/put", &[(CONTENT_TYPE, "application/json")], body)
    }

    /// A key like `{prefix}-7` that a shard hosts.
    pub(crate) fn key_on(&self, shard: u16, prefix: &str) -> String {
        let map = self.topology().map;
        let hosts = |key: &String| {
            let partition = partition_of(key.as_bytes(), map.partition_count());
            map.partitions[usize::from(partition.0)].shard == ShardId(shard)
        };
        (0..).map(|i| format!("{prefix}-{i}")).find(hosts).expect("every shard hosts some")
    }

    /// Whether every replica of every partition is in sync, has applied the same and holds the same.
    pub(crate) fn replicas_agree(&self) -> bool {
        self.check_replicas().is_ok()
    }

    /// Says how the replicas of the first partition are that lacks a member, or whose replicas have not applied the same or do
    /// not hold the same.
    pub(crate) fn check_replicas(&self) -> Result<(), String> {
        let topology = self.try_topology()?;
        let replica = |node: &str, id| {
            let stats = topology.nodes.iter().find(|n| n.node == node)?.stats.as_ref()?;
            stats.replicas.iter().find(|r| r.partition == id)
        };
        for (id, partition) in topology.map.partitions() {
            let Some(configuration) = &partition.configuration else { return Err(format!("{id} has no leader")) };
            let replicas: Vec<_> = configuration.members().map(|m| replica(m.node.as_str(), id)).collect();
            if replicas.len() != usize::from(topology.map.replicas) {
                return Err(format!("{id} has the members {:?} only", configuration.members().collect::<Vec<_>>()));
            }
            let state = |r: &Option<&ReplicaStats>| {
                r.filter(|r| r.trouble.is_none()).map(|r| (r.applied_lsn, r.digest.clone()))
            };
            if replicas.iter().any(|r| state(r).is_none() || state(r) != state(&replicas[0])) {
                return Err(format!("{replicas:?}"));
            }
        }
        Ok(())
    }
}

/// `kv local` on free ports, unless `--ports` says otherwise.
pub(crate) fn local(dir: &Path) -> Command {
    let mut command = kv();
    command.env("KV_PORTS", "auto").args(["local", "--data-dir"]).arg(dir);
    command
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Status and body, which must be JSON.
    #[track_caller]
    pub(crate) fn pair(&self) -> (u16, Value) {
        (self.status.as_u16(), self.json())
    }
}

/// Why there is none.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// Whether the request may have arrived.
    pub(crate) sent: bool,
    cause: String,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

/// Keep-alive HTTP for tests that are not async themselves.
pub(crate) struct Http {
    base: String,
    runtime: tokio::runtime::Runtime,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Http {
    pub(crate) fn new(base: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Http {
            base: base.to_owned(),
            runtime: runtime.expect("a runtime"),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    #[track_caller]
    fn send(&self, method: Method, path: &str, headers: &[(HeaderName, &str)], body: Bytes) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Fails where there is no answer.
    #[track_caller]
    pub(crate) fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> Result<Answer, NoAnswer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        let exchange = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|e| NoAnswer { sent: !e.is_connect(), cause: e.to_string() })?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| NoAnswer { sent: true, cause: e.to_string() })?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(BOUND, exchange).await });
        answer.unwrap_or_else(|_| panic!("no answer for {path} within {BOUND:?}"))
    }
}
