//! A load by several processes: this one starts others of itself with the same command line, leads them through the phases, and puts
//! together what they recorded.
//!
//! Both sides speak in lines of JSON: commands on the worker's standard input, reports on its standard output. A worker whose
//! input ends stops and ends.

use crate::{
    engine::{Crew, Usage},
    force::{Step, share},
    measure::{Recorder, WireRecorder},
    options::{Load, RunOptions},
    session::{Extras, Session},
};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::interval,
};

/// Tells a process that it is a worker: its number and how many there are, as `0/4`.
pub(crate) const VARIABLE: &str = "KVBENCH_WORKER";
/// How often a worker reports.
const REPORTS: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Order {
    Begin(Step),
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// All connections are made, to so many nodes and places.
    Ready { nodes: usize, places: usize },
    /// What happened since the last one, and how much is under way.
    Recorded { recorder: WireRecorder, in_flight: u64, waiting: u64 },
    /// The phase has ended.
    Done(Usage),
    /// It cannot go on.
    Failed(String),
}

/// The workers, as their leader sees them.
pub(crate) struct Workers {
    orders: Vec<UnboundedSender<Order>>,
    reports: UnboundedReceiver<(usize, anyhow::Result<Report>)>,
    recorded: Recorder,
    /// Of each worker: in flight, waiting.
    under_way: Vec<(u64, u64)>,
    size: (usize, usize),
}

impl Workers {
    /// Starts so many, and waits until all are connected.
    ///
    /// # Errors
    /// When one cannot be, with its reason.
    pub(crate) async fn start(count: u32) -> anyhow::Result<Workers> {
        let (sender, reports) = unbounded_channel();
        let mut workers = Workers {
            orders: Vec::new(),
            reports,
            recorded: Recorder::default(),
            under_way: vec![(0, 0); count as usize],
            size: (0, 0),
        };
        let program = std::env::current_exe().context("the path of this program")?;
        for index in 0..count {
            let mut child = Command::new(&program)
                .args(std::env::args_os().skip(1))
                .env(VARIABLE, format!("{index}/{count}"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("a worker cannot be started")?;
            let (order, orders) = unbounded_channel();
            let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            workers.orders.push(order);
            tokio::spawn(attend(index as usize, child, stdin, stdout, orders, sender.clone()));
        }
        for _ in 0..count {
            match workers.next_report().await? {
                (_, Report::Ready { nodes, places }) => workers.size = (nodes, places),
                (_, other) => bail!("a worker said {other:?} before it was ready"),
            }
        }
        Ok(workers)
    }

    /// Nodes and places that each of them loads.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }

    pub(crate) fn count(&self) -> usize {
        self.orders.len()
    }

    pub(crate) fn begin(&self, step: Step) {
        self.tell(Order::Begin(step));
    }

    pub(crate) fn stop(&self) {
        self.tell(Order::Stop);
    }

    fn tell(&self, order: Order) {
        // Who is gone is noticed by its report.
        for worker in &self.orders {
            let _ = worker.send(order);
        }
    }

    /// Who reports next, and what.
    async fn next_report(&mut self) -> anyhow::Result<(usize, Report)> {
        let (worker, report) = self.reports.recv().await.context("all workers are gone")?;
        match report.with_context(|| format!("worker {worker}"))? {
            Report::Failed(cause) => Err(anyhow::Error::msg(cause)),
            report => Ok((worker, report)),
        }
    }

    /// Waits for the next worker to be done with the phase. Cancel-safe.
    ///
    /// # Errors
    /// When one has died.
    pub(crate) async fn next_done(&mut self) -> anyhow::Result<Usage> {
        loop {
            match self.next_report().await? {
                (worker, Report::Recorded { recorder, in_flight, waiting }) => {
                    self.under_way[worker] = (in_flight, waiting);
                    self.recorded.merge(&recorder.into_recorder()?);
                }
                (_, Report::Done(usage)) => return Ok(usage),
                (worker, other) => bail!("worker {worker} said {other:?} in the middle of a phase"),
            }
        }
    }

    pub(crate) fn take_recorded(&mut self) -> Recorder {
        std::mem::take(&mut self.recorded)
    }

    pub(crate) fn in_flight(&self) -> (u64, u64) {
        self.under_way.iter().fold((0, 0), |sum, worker| (sum.0 + worker.0, sum.1 + worker.1))
    }
}

/// Carries orders to a worker, and its reports back.
async fn attend(
    index: usize,
    mut child: Child,
    mut stdin: ChildStdin,
    stdout: ChildStdout,
    mut orders: UnboundedReceiver<Order>,
    reports: UnboundedSender<(usize, anyhow::Result<Report>)>,
) {
    let mut lines = BufReader::new(stdout).lines();
    let report = |report| drop(reports.send((index, report)));
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => {
                    let mut line = serde_json::to_string(&order).expect("orders are JSON");
                    line.push('\n');
                    // A worker that does not read any more is heard of by its output.
                    let _ = stdin.write_all(line.as_bytes()).await;
                }
                None => {
                    drop(stdin);
                    let _ = child.wait().await;
                    return;
                }
            },
            line = next_line(&mut lines) => match line {
                Ok(Some(read)) => report(Ok(read)),
                Ok(None) => {
                    let how = child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
                    return report(Err(anyhow::anyhow!("it ended in the middle of the load: {how}")));
                }
                Err(error) => return report(Err(error)),
            },
        }
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Option<Report>> {
    match lines.next_line().await.context("what it reports cannot be read")? {
        Some(line) => Ok(Some(serde_json::from_str(&line).context("what it reports is not understood")?)),
        None => Ok(None),
    }
}

/// Which worker this process is, and of how many; `None` if it is none.
///
/// # Errors
/// When it was told so in words that make no sense.
pub(crate) fn role() -> anyhow::Result<Option<(u32, u32)>> {
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let text = value.to_string_lossy();
    let parse = || {
        let (index, count) = text.split_once('/')?;
        Some((index.parse().ok()?, count.parse().ok()?))
    };
    let role = parse().filter(|(index, count)| index < count);
    ensure!(role.is_some(), "{VARIABLE} is {text:?}; it is not for people: leave it unset");
    Ok(role)
}

/// What a worker does: carries out the orders on its standard input until that ends.
///
/// # Errors
/// Never to its caller: whoever gives the orders is told.
pub(crate) async fn work(options: &RunOptions, load: &Load, index: u32, count: u32) -> anyhow::Result<()> {
    // Ctrl-C reaches all processes of a terminal: the leader decides what follows from it.
    let _ignored = signal(SignalKind::interrupt()).context("Ctrl-C cannot be caught")?;
    let share = share(load.connections, options.load.threads, index, count);
    let session = match Session::open(&options.target, load, &options.load, Extras::default(), share).await {
        Ok(session) => session,
        Err(error) => {
            print(&Report::Failed(format!("{error:#}")));
            return Ok(());
        }
    };
    let Session { mut crew, follower: _follower, nodes, places, .. } = session;
    print(&Report::Ready { nodes, places });
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut ticks = interval(REPORTS);
    let (mut left, mut usage) = (0, Usage::default());
    loop {
        tokio::select! {
            line = orders.next_line() => match line.ok().flatten().map(|line| serde_json::from_str(&line)) {
                Some(Ok(Order::Begin(step))) => {
                    (left, usage) = (crew.threads(), Usage::default());
                    crew.begin(&step.task(load, options.load.warmup));
                }
                Some(Ok(Order::Stop)) => crew.stop(),
                Some(Err(_)) | None => break,
            },
            done = crew.next_done(), if left > 0 => {
                usage = usage + done.context("the threads are gone")?;
                left -= 1;
                if left == 0 {
                    print(&recorded(&crew));
                    print(&Report::Done(usage));
                }
            }
            _ = ticks.tick(), if left > 0 => print(&recorded(&crew)),
        }
    }
    crew.end();
    Ok(())
}

fn recorded(crew: &Crew) -> Report {
    let (in_flight, waiting) = crew.in_flight();
    Report::Recorded { recorder: WireRecorder::new(&crew.take_recorded()), in_flight, waiting }
}

/// If nobody reads any more, the input ends too.
fn print(report: &Report) {
    use std::io::Write;
    let line = serde_json::to_string(report).expect("reports are JSON");
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
