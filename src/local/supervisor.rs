//! Starts the processes of a plan, watches them, and stops them in order.
//!
//! The router is started first, because it is where the nodes register. It is stopped first too, because it then
//! finishes the requests that it has while the nodes can still answer them; the leaders next, because they finish
//! their writes with their followers; the followers last.

use super::{
    Options, SUPERVISOR,
    child::{Child, Event, describe},
    data_dir::DataDir,
    manifest::{Entry, Manifest},
    plan::{Common, Listening, Plan, Process, Role, url},
};
use crate::{http::Api, output};
use anyhow::{Context, bail};
use hyper::{Method, StatusCode, body::Bytes};
use kv_proto::cluster_map::AckMode;
use rustix::process::Signal;
use std::{convert::Infallible, io, path::PathBuf, time::Duration};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// How long a process may take from its start until it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);
/// How long the cluster may take from when all processes listen until every partition takes writes. A partition whose
/// data are damaged never does: then the others are served.
const READY_DEADLINE: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(50);
/// How long processes of one role may take to stop before they are killed: a node that stops flushes its log first, on a
/// disk that may be slow. A second Ctrl-C need not wait for it.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// After how long it is told who is waited for.
const STOP_NOTICE: Duration = Duration::from_secs(3);
/// The pause before a process that died is started again: doubled with each death in a row up to the longest, and
/// the shortest again for one that ran for [`STEADY`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);
/// Events that wait to be handled; a child whose event finds no room waits.
const EVENT_QUEUE: usize = 64;

/// The processes of a cluster.
pub(super) struct Supervisor {
    options: Options,
    log_level: String,
    program: PathBuf,
    data: DataDir,
    plan: Plan,
    /// One for each process of the plan.
    slots: Vec<Slot>,
    events: mpsc::Receiver<Event>,
    reports: mpsc::Sender<Event>,
}

/// What has become of a process of the plan.
#[derive(Default)]
struct Slot {
    child: Option<Child>,
    listens: bool,
    started: Option<Instant>,
    /// Deaths in a row.
    deaths: u32,
}

impl Supervisor {
    pub(super) fn new(plan: Plan, data: DataDir, options: Options, log_level: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program that runs")?;
        let slots = plan.processes.iter().map(|_| Slot::default()).collect();
        let (reports, events) = mpsc::channel(EVENT_QUEUE);
        Ok(Supervisor { options, log_level: log_level.to_owned(), program, data, plan, slots, events, reports })
    }

    /// Starts the cluster and keeps it; may be dropped at any moment, and what was started is then known to
    /// [`Supervisor::stop`].
    ///
    /// # Errors
    /// When the cluster cannot be started, or nothing is left of it.
    pub(super) async fn serve(&mut self) -> anyhow::Result<Infallible> {
        let (routers, all) = (self.plan.routers(), self.slots.len());
        for processes in [0..routers, routers..all] {
            for index in processes.clone() {
                self.start(index)?;
            }
            self.until_listening(processes).await?;
        }
        self.write_manifest()?;
        self.until_ready().await?;
        self.announce();
        loop {
            match self.next_event().await {
                Event::Listens { index, listening } => self.restarted(index, listening)?,
                Event::Ended { index, pid, status } => self.died(index, pid, &status)?,
                Event::RestartDue { index } => self.start_again(index)?,
            }
        }
    }

    /// Stops everything that runs: each role is asked to end, and killed if it does not in time.
    pub(super) async fn stop(&mut self) {
        for role in [Role::Router, Role::Leader, Role::Follower] {
            // Everything stops: nobody is to lead instead.
            self.signal(Signal::INT, |p| p.role == role);
            if self.have_ended(role, STOP_NOTICE).await {
                continue;
            }
            for name in self.running(|p| p.role == role) {
                output::line(format!("{SUPERVISOR}: waiting for {name} to stop"));
            }
            if self.have_ended(role, STOP_DEADLINE - STOP_NOTICE).await {
                continue;
            }
            for name in self.running(|p| p.role == role) {
                output::line(format!("{SUPERVISOR}: {name} did not stop within {STOP_DEADLINE:?}; killing it"));
            }
            self.signal(Signal::KILL, |p| p.role == role);
            self.until_ended(|p| p.role == role).await;
        }
        self.forget_manifest();
    }

    /// Kills everything that runs.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL, |_| true);
        self.until_ended(|_| true).await;
        self.forget_manifest();
    }

    fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let process = &self.plan.processes[index];
        let (routers_data, nodes_data) = (self.data.routers(), self.data.nodes());
        let common = Common {
            options: &self.options,
            controllers: &self.plan.controllers(),
            routers_data: &routers_data,
            nodes_data: &nodes_data,
            supervisor_pid: std::process::id(),
        };
        let arguments = process.arguments(common);
        let child =
            Child::start(&self.program, &arguments, &self.log_level, (index, process.name.as_str()), &self.reports)
                .with_context(|| format!("cannot start {} as {}", process.name, self.program.display()))?;
        let slot = &mut self.slots[index];
        slot.child = Some(child);
        slot.listens = false;
        slot.started = Some(Instant::now());
        Ok(())
    }

    async fn until_listening(&mut self, range: std::ops::Range<usize>) -> anyhow::Result<()> {
        let deadline = Instant::now() + LISTEN_DEADLINE;
        while let Some(waited_for) = range.clone().find(|i| !self.slots[*i].listens) {
            let Ok(event) = tokio::time::timeout_at(deadline, self.next_event()).await else {
                bail!("{} does not listen after {LISTEN_DEADLINE:?}", self.plan.processes[waited_for].name);
            };
            match event {
                Event::Listens { index, listening } => self.listens(index, listening),
                Event::Ended { index, pid, status } => self.failed_start(index, pid, &status)?,
                Event::RestartDue { .. } => {}
            }
        }
        Ok(())
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let ready = until_answered(Api::at(&self.http())?);
        tokio::pin!(ready);
        loop {
            tokio::select! {
                result = &mut ready => return result,
                Some(event) = self.events.recv() => if let Event::Ended { index, pid, status } = event {
                    self.failed_start(index, pid, &status)?;
                },
            }
        }
    }

    /// While the cluster starts, a death is a failed start.
    fn failed_start(
        &mut self,
        index: usize,
        pid: u32,
        status: &io::Result<std::process::ExitStatus>,
    ) -> anyhow::Result<()> {
        self.slots[index].child = None;
        let name = &self.plan.processes[index].name;
        bail!("the cluster cannot start: {name} (process {pid}) {}; what it said stands above", describe(status))
    }

    /// A process said where it listens; if it is started again, it listens there again.
    fn listens(&mut self, index: usize, listening: Listening) {
        self.slots[index].listens = true;
        let process = &mut self.plan.processes[index];
        process.address = listening.address;
        process.controller = listening.controller.or(process.controller);
    }

    fn restarted(&mut self, index: usize, listening: Listening) -> anyhow::Result<()> {
        self.listens(index, listening);
        self.write_manifest()
    }

    fn died(&mut self, index: usize, pid: u32, status: &io::Result<std::process::ExitStatus>) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        slot.child = None;
        let ran_steadily = slot.started.is_some_and(|at| at.elapsed() >= STEADY);
        slot.deaths = if ran_steadily { 1 } else { slot.deaths + 1 };
        let deaths = slot.deaths;
        let report = format!("{SUPERVISOR}: {} (process {pid}) {}", self.plan.processes[index].name, describe(status));
        if self.options.restart {
            let pause = pause_after(deaths);
            output::line(format!("{report}; starting it again in {pause:?}"));
            let reports = self.reports.clone();
            tokio::spawn(async move {
                sleep(pause).await;
                let _ = reports.send(Event::RestartDue { index }).await;
            });
            return Ok(());
        }
        output::line(format!("{report}; it stays down (with --restart it would be started again)"));
        if self.slots.iter().all(|slot| slot.child.is_none()) {
            bail!("no process of the cluster is left");
        }
        Ok(())
    }

    fn start_again(&mut self, index: usize) -> anyhow::Result<()> {
        self.start(index)?;
        let pid = self.slots[index].child.as_ref().map_or(0, |c| c.pid);
        output::line(format!("{SUPERVISOR}: started {} again as process {pid}", self.plan.processes[index].name));
        self.write_manifest()
    }

    fn write_manifest(&self) -> anyhow::Result<()> {
        let entry = |(process, slot): (&Process, &Slot)| {
            let pid = slot.child.as_ref()?.pid;
            let (name, address) = (process.name.clone(), Some(process.address));
            Some(Entry { name, role: process.role, pid, address, controller: process.controller })
        };
        let children = self.plan.processes.iter().zip(&self.slots).filter_map(entry).collect();
        self.data.write_manifest(&Manifest::new(self.http(), children, std::process::id()))
    }

    fn forget_manifest(&self) {
        if let Err(error) = self.data.forget_manifest() {
            tracing::warn!("{error:#}");
        }
    }

    fn http(&self) -> String {
        url(self.plan.processes[0].address)
    }

    /// Says that the API serves, and how to try it.
    fn announce(&self) {
        let url = self.http();
        let program = std::env::args_os().next().unwrap_or_else(|| "kv".into());
        let kv = program.display();
        let held = match self.options.ack {
            AckMode::Durable => "on the disk",
            AckMode::Replicated => "in the memory",
        };
        output::line(format!("ready {url}"));
        output::line(format!(
            "
Try it from another shell:
  curl -X POST {url}/put -H 'Content-Type: application/json' -d '{{\"key\": \"greeting\", \"value\": \"hello there\"}}'
  curl '{url}/get?key=greeting'
  curl -X DELETE '{url}/delete?key=greeting'
  {kv} status --cluster {url}

An acknowledged write is {held} of its leader and of every in-sync follower.
Ctrl-C stops the cluster; a start on the same data brings it back.
"
        ));
    }

    async fn next_event(&mut self) -> Event {
        self.events.recv().await.expect("this end holds a sender too")
    }

    fn signal(&self, signal: Signal, which: impl Fn(&Process) -> bool) {
        for (process, slot) in self.plan.processes.iter().zip(&self.slots) {
            if let Some(child) = slot.child.as_ref().filter(|_| which(process)) {
                child.signal(signal);
            }
        }
    }

    fn running<'a>(&'a self, which: impl Fn(&Process) -> bool + 'a) -> impl Iterator<Item = &'a str> {
        let both = self.plan.processes.iter().zip(&self.slots);
        both.filter(move |(process, slot)| slot.child.is_some() && which(process)).map(|(p, _)| p.name.as_str())
    }

    /// Whether the processes of a role end within this time.
    async fn have_ended(&mut self, role: Role, within: Duration) -> bool {
        timeout(within, self.until_ended(|p| p.role == role)).await.is_ok()
    }

    /// Waits until no such process runs. Only a process that ends on its own while others are stopped is told of.
    async fn until_ended(&mut self, which: impl Fn(&Process) -> bool) {
        while self.running(&which).next().is_some() {
            if let Event::Ended { index, pid, status } = self.next_event().await {
                self.slots[index].child = None;
                let process = &self.plan.processes[index];
                if !which(process) || !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                    output::line(format!("{SUPERVISOR}: {} (process {pid}) {}", process.name, describe(&status)));
                }
            }
        }
    }
}

/// How long a process stays down after that many deaths in a row.
fn pause_after(deaths: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << deaths.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

/// Asks until the API says that it is ready; then gives up with what it said last.
async fn until_answered(api: Api) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let answer = api.send(Method::GET, "/readyz", None, Bytes::new()).await;
        let is_over = Instant::now() >= deadline;
        match answer {
            Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
            Ok(answer) if is_over => {
                let why = String::from_utf8_lossy(&answer.body);
                output::line(format!("{SUPERVISOR}: after {READY_DEADLINE:?} not all takes writes: {}", why.trim()));
                return Ok(());
            }
            Err(error) if is_over => bail!("the cluster is not ready after {READY_DEADLINE:?}: {error:#}"),
            _ => {}
        }
        sleep(READY_POLL).await;
    }
}

/// The signals that ask this process to stop.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Signals {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hang_up: unix::signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one; its name.
    pub(super) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        for (deaths, ms) in [(0, 200), (1, 200), (2, 400), (3, 800), (5, 3200), (6, 5000), (u32::MAX, 5000)] {
            assert_eq!(pause_after(deaths), Duration::from_millis(ms), "{deaths} deaths");
        }
    }
}
