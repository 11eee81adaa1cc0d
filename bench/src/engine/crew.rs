//! The threads of a load, and the phases that all go through together. Each thread has a runtime, a unit and connections of its
//! own, and a recorder, which is taken once a second. Beside it they share only what judges or follows what they see ([`Setup`]).

use super::{
    clock::Clock,
    lane::{Connect, Lane},
    operation::Ns,
    pace::Pace,
    setup::Setup,
    unit::{Keys, Shown, Source, Unit},
    usage::{self, Usage},
};
use crate::{
    alarm::Alarm,
    lock::lock,
    measure::Recorder,
    verify::Judge,
    workload::{Arrivals, Draw, Kind, Rate, Schedule, Think, rng},
};
use anyhow::Context;
use std::{
    cell::RefCell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    sync::Notify,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{JoinSet, LocalSet},
};

/// How many connections a thread makes at a time.
const CONNECTS: usize = 64;

/// How many connections and threads there are, and which part of the whole load they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    /// The first unit of these, counted over all processes, and how many there are in all.
    pub(crate) first_unit: u32,
    pub(crate) units: u32,
}

/// What a phase is about.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// Every key is written once. What fails is asked again, after the others, as long as anything was answered well within this time.
    Load { patience: Duration },
    /// Operations of the workload, until it is told to stop.
    Draw(Paces),
    /// Every key of which anything was asked is read once, as for [`Task::Load`].
    Audit { patience: Duration },
}

/// When the operations of a phase start.
#[derive(Clone, Debug)]
pub(crate) enum Paces {
    Saturated,
    Users(Think),
    Open { rate: Rate, arrivals: Arrivals, duration: Duration },
}

enum Command {
    Begin(Task),
    Stop,
}

enum Event {
    Connected(Result<(), String>),
    Done(Usage),
}

/// The threads.
pub(crate) struct Crew {
    commands: Vec<UnboundedSender<Command>>,
    events: UnboundedReceiver<Event>,
    shown: Vec<Arc<Shown>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts the threads and waits until all connections are made.
    ///
    /// # Errors
    /// When one of them cannot be.
    pub(crate) async fn start<C: Connect + 'static>(
        setup: &Arc<Setup>,
        share: Share,
        connect: impl Fn() -> C + Clone + Send + 'static,
    ) -> anyhow::Result<Crew> {
        let (reports, events) = unbounded_channel();
        let mut crew = Crew { commands: Vec::new(), events, shown: Vec::new(), threads: Vec::new() };
        for thread in 0..share.threads {
            let lanes = share.connections / share.threads + u32::from(thread < share.connections % share.threads);
            let (sender, commands) = unbounded_channel();
            let (shown, connect) = (Arc::<Shown>::default(), connect.clone());
            crew.commands.push(sender);
            crew.shown.push(Arc::clone(&shown));
            let (setup, reports) = (Arc::clone(setup), reports.clone());
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")?;
            let worker = Worker { setup, shown, index: share.first_unit + thread, share, lanes: lanes as usize };
            let work = move || {
                let tasks = LocalSet::new();
                let work = worker.work(Rc::new(connect()), commands, reports);
                // All others would wait for this thread for ever.
                if catch_unwind(AssertUnwindSafe(|| tasks.block_on(&runtime, work))).is_err() {
                    std::process::exit(2);
                }
            };
            let name = format!("load-{thread}");
            crew.threads.push(std::thread::Builder::new().name(name).spawn(work).context("no thread")?);
        }
        let mut failure = None;
        for _ in 0..share.threads {
            match crew.events.recv().await {
                Some(Event::Connected(Err(cause))) => failure = Some(cause),
                Some(_) => {}
                None => unreachable!("the threads wait for commands"),
            }
        }
        match failure {
            None => Ok(crew),
            Some(cause) => {
                crew.end();
                Err(anyhow::Error::msg(cause))
            }
        }
    }

    pub(crate) fn begin(&self, task: &Task) {
        // A thread whose channel is closed has ended the process.
        self.commands.iter().for_each(|thread| drop(thread.send(Command::Begin(task.clone()))));
    }

    pub(crate) fn stop(&self) {
        self.commands.iter().for_each(|thread| drop(thread.send(Command::Stop)));
    }

    /// Waits until the next thread has ended the phase; `None` never comes before all threads have ended. Cancel-safe.
    pub(crate) async fn next_done(&mut self) -> Option<Usage> {
        match self.events.recv().await? {
            Event::Done(usage) => Some(usage),
            Event::Connected(_) => unreachable!("all are connected"),
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Takes what was recorded since the last time.
    pub(crate) fn take_recorded(&self) -> Recorder {
        let mut all = Recorder::default();
        for thread in &self.shown {
            // The thread does not wait for the histograms to be added.
            let recorded = std::mem::take(&mut *lock(&thread.recorder));
            all.merge(&recorded);
        }
        all
    }

    /// Requests in flight, and those that wait for a slot.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        let sum = |of: fn(&Shown) -> usize| self.shown.iter().map(|thread| of(thread) as u64).sum();
        (sum(|thread| thread.in_flight.load(Relaxed)), sum(|thread| thread.waiting.load(Relaxed)))
    }

    /// Ends the threads.
    pub(crate) fn end(mut self) {
        self.commands.clear();
        for thread in self.threads {
            thread.join().expect("a thread that panics ends the process");
        }
    }
}

/// One thread.
struct Worker {
    setup: Arc<Setup>,
    shown: Arc<Shown>,
    /// Which unit it is, counted over all processes.
    index: u32,
    share: Share,
    lanes: usize,
}

impl Worker {
    async fn work<C: Connect + 'static>(
        self,
        connect: Rc<C>,
        mut commands: UnboundedReceiver<Command>,
        reports: UnboundedSender<Event>,
    ) {
        let unit = Unit::new(Arc::clone(&self.setup), Arc::clone(&self.shown), self.index, self.lanes);
        let unit = Rc::new(RefCell::new(unit));
        let report = |event| drop(reports.send(event));
        let (mut lanes, alarm) = match self.open(&connect, &unit).await {
            Ok(opened) => {
                report(Event::Connected(Ok(())));
                opened
            }
            Err(cause) => return report(Event::Connected(Err(cause))),
        };
        let clock = self.setup.clock;
        // From one phase to the next the draw goes on: what was warmed up with is not asked for again from its beginning.
        let mut draw = None;
        while let Some(command) = commands.recv().await {
            let Command::Begin(task) = command else { continue };
            let before = Usage::of_thread();
            let now = clock.now();
            let (source, pace, persistence) = self.prepare(&task, &mut draw, now);
            let waker = pace.waker();
            unit.borrow_mut().begin(source, pace, persistence, now);
            let mut tasks = JoinSet::new();
            for mut lane in lanes.drain(..) {
                let unit = Rc::clone(&unit);
                tasks.spawn_local(async move {
                    lane.drive(&unit).await;
                    lane
                });
            }
            let pacer = async {
                match &waker {
                    Some(waker) => keep_pace(&unit, waker, &alarm, clock).await,
                    None => std::future::pending().await,
                }
            };
            let overdue = tokio::time::sleep(Duration::ZERO);
            tokio::pin!(pacer, overdue);
            let (mut is_ending, mut is_stopped) = (false, false);
            loop {
                tokio::select! {
                    lane = tasks.join_next() => match lane {
                        Some(lane) => lanes.push(lane.expect("a lane that panics ends the process")),
                        None => break,
                    },
                    command = commands.recv(), if !is_ending => {
                        assert!(!matches!(command, Some(Command::Begin(_))), "phases follow one another");
                        is_ending = command.is_none();
                        unit.borrow_mut().stop(clock.now());
                        overdue.as_mut().reset(tokio::time::Instant::now() + self.setup.deadline);
                        is_stopped = true;
                    }
                    () = &mut overdue, if is_stopped => {
                        unit.borrow_mut().abandon_all();
                        is_stopped = false;
                    }
                    () = &mut pacer => unreachable!("it goes on until it is dropped"),
                }
            }
            if let Source::Draw(rest) = unit.borrow_mut().end() {
                draw = Some(rest);
            }
            report(Event::Done(usage::since(before)));
        }
    }

    /// Connects all lanes, some at a time.
    async fn open<C: Connect + 'static>(
        &self,
        connect: &Rc<C>,
        unit: &Rc<RefCell<Unit>>,
    ) -> Result<(Vec<Lane<C>>, Alarm), String> {
        let alarm = Alarm::new().map_err(|e| format!("there is no timer: {e}"))?;
        let mut lanes = Vec::with_capacity(self.lanes);
        let mut opening = JoinSet::new();
        for index in 0..self.lanes {
            let (setup, shown) = (Arc::clone(&self.setup), Arc::clone(&self.shown));
            opening.spawn_local(Lane::open(setup, shown, Rc::clone(connect), Rc::clone(unit), index));
            if opening.len() == CONNECTS || index + 1 == self.lanes {
                while let Some(lane) = opening.join_next().await {
                    lanes.push(lane.expect("a lane that panics ends the process").map_err(|e| e.to_string())?);
                }
            }
        }
        Ok((lanes, alarm))
    }

    fn prepare(&self, task: &Task, draw: &mut Option<Box<Draw>>, now: Ns) -> (Source, Pace, Ns) {
        let setup = &self.setup;
        let slots = self.lanes * setup.pipeline;
        let keys = |kind, list: Option<Arc<Vec<u32>>>| {
            let (next, step) = (self.index.into(), self.share.units.into());
            let random = Box::new(rng(setup.workload.seed, !self.index));
            let end = list.as_ref().map_or(setup.workload.count.into(), |list| list.len() as u64);
            Source::Keys(Keys { kind, list, next, step, end, again: VecDeque::new(), random })
        };
        let persistence = |patience: &Duration| patience.as_nanos() as Ns;
        match task {
            Task::Load { patience } => (keys(Kind::Put, None), Pace::Saturated { free: slots }, persistence(patience)),
            Task::Audit { patience } => {
                let list = setup.judge.as_ref().map(Judge::keys);
                (keys(Kind::Get, list), Pace::Saturated { free: slots }, persistence(patience))
            }
            Task::Draw(paces) => {
                let new = || {
                    let draw = Draw::new(Arc::clone(&setup.workload), self.index, self.share.units, slots as u32);
                    Box::new(draw.expect("the workload was checked"))
                };
                let source = Source::Draw(draw.take().unwrap_or_else(new));
                let seed = setup.workload.seed;
                let pace = match paces {
                    Paces::Saturated => Pace::Saturated { free: slots },
                    // Not the randomness of the operations, which are the same with and without thinking.
                    Paces::Users(think) => Pace::users(slots, *think, rng(!seed, self.index), now),
                    Paces::Open { rate, arrivals, duration } => {
                        let (unit, units) = (self.index, self.share.units);
                        let schedule = Schedule::new(rate, *arrivals, *duration, seed, unit, units);
                        Pace::scheduled(schedule, now)
                    }
                };
                (source, pace, 0)
            }
        }
    }
}

/// Starts the operations of a unit when their time comes.
async fn keep_pace(unit: &RefCell<Unit>, waker: &Notify, alarm: &Alarm, clock: Clock) {
    loop {
        let next = unit.borrow_mut().arrive(clock.now());
        let wait = async {
            match next {
                Some(at) => alarm.until(clock.instant(at)).await.expect("a timer can be set"),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = waker.notified() => {}
        }
        // Lanes come in between, even if operations are due without end.
        tokio::task::yield_now().await;
    }
}
