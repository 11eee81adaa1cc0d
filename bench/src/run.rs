//! The run: threads with their lanes, the phases that all go through together, progress, the end.
//!
//! Every thread has a runtime, lanes and a recorder of its own; the main thread keeps the time, shows progress on
//! stderr and gathers what the recorders hold, once a second.

use crate::{
    cluster::{self, Cluster},
    keyspace,
    lane::{Lane, Shared},
    options::RunOptions,
    plan::{self, plan},
    recorder::Recorder,
    report::{grouped, micros},
};
use anyhow::Context;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Barrier,
    task::JoinSet,
    time::interval_at,
};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// What was measured in one phase.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) recorded: Recorder,
    pub(crate) elapsed: Duration,
    /// CPU time of this process.
    pub(crate) cpu: Duration,
    /// Whether it was ended by a person.
    pub(crate) interrupted: bool,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) load: Option<Phase>,
    /// `None` when the load was interrupted.
    pub(crate) run: Option<Phase>,
    /// Nodes that lead, and executors of them that own keys.
    pub(crate) leaders: usize,
    pub(crate) targets: usize,
}

/// What the threads do together: each phase begins and ends for all of them at once.
struct Stage {
    barrier: Barrier,
    stop: Arc<AtomicBool>,
    /// Whether the threads go on after connecting, and after the load.
    go_on: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

/// Runs the load that is asked for.
pub(crate) async fn run(options: &RunOptions) -> anyhow::Result<Outcome> {
    let Cluster { map, owners } = cluster::ask(&options.target, options.value_size).await?;
    let lanes = plan(&map, &owners, options.keys, options.connections)?;
    let mut targets: Vec<_> = lanes.iter().map(|l| (l.target.node, l.target.executor)).collect();
    targets.sort_unstable();
    targets.dedup();
    let mut leaders: Vec<_> = targets.iter().map(|(node, _)| node).collect();
    leaders.dedup();
    let (leaders, targets) = (leaders.len(), targets.len());
    eprintln!(
        "{} connections to {targets} executors of {leaders} leaders, {} requests in flight on each",
        options.connections, options.pipeline
    );
    let stage = Arc::new(Stage {
        barrier: Barrier::new(options.threads as usize + 1),
        stop: Arc::default(),
        go_on: AtomicBool::new(true),
        failure: Mutex::default(),
    });
    let value = keyspace::value(options.value_size as usize, options.seed);
    let crew = Crew::start(options, lanes, map.cluster, &value, &stage)?;
    let (load, run) = crew.lead(options).await?;
    Ok(Outcome { load, run, leaders, targets })
}

/// The threads.
struct Crew {
    stage: Arc<Stage>,
    recorders: Vec<Arc<Shared>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn start(
        options: &RunOptions,
        lanes: Vec<plan::Lane>,
        cluster: kv_proto::ids::ClusterId,
        value: &[u8],
        stage: &Arc<Stage>,
    ) -> anyhow::Result<Crew> {
        let count = options.threads as usize;
        let mut crew = Crew { stage: Arc::clone(stage), recorders: Vec::new(), threads: Vec::new() };
        for thread in 0..count {
            let lanes: Vec<_> = lanes.iter().skip(thread).step_by(count).cloned().collect();
            let (pipeline, stop) = (options.pipeline as usize, Arc::clone(&stage.stop));
            let shared = Arc::new(Shared::new(cluster, pipeline, options.deadline, value.to_vec(), stop));
            crew.recorders.push(Arc::clone(&shared));
            let (stage, options) = (Arc::clone(stage), options.clone());
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")?;
            let work = move || {
                let work = AssertUnwindSafe(|| runtime.block_on(work(&options, lanes, shared, &stage)));
                // All others would wait for this thread for ever.
                if catch_unwind(work).is_err() {
                    std::process::exit(2);
                }
            };
            let name = format!("load-{thread}");
            crew.threads.push(std::thread::Builder::new().name(name).spawn(work).context("no thread")?);
        }
        Ok(crew)
    }

    /// Leads the threads through their phases.
    async fn lead(self, options: &RunOptions) -> anyhow::Result<(Option<Phase>, Option<Phase>)> {
        let barrier = &self.stage.barrier;
        barrier.wait().await;
        // Until here Ctrl-C ends the process: there is no result to save.
        let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C cannot be caught")?;
        let failure = self.stage.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (mut load, mut run) = (None, None);
        if failure.is_none() {
            if options.loads() {
                eprintln!("loading {} keys", grouped(u64::from(options.keys)));
                load = Some(self.phase(None, Some(options.keys), &mut interrupt).await);
            }
            if !load.as_ref().is_some_and(|l| l.interrupted) {
                run = Some(self.phase(Some(options.duration), None, &mut interrupt).await);
            }
        }
        self.stage.go_on.store(false, Relaxed);
        barrier.wait().await;
        for thread in self.threads {
            thread.join().expect("a thread that panics ends the process");
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok((load, run)),
        }
    }

    /// One phase: for a time, or until all keys are written.
    async fn phase(&self, duration: Option<Duration>, keys: Option<u32>, interrupt: &mut Signal) -> Phase {
        let stop = &self.stage.stop;
        stop.store(false, Relaxed);
        self.stage.barrier.wait().await;
        let (started, cpu) = (Instant::now(), cpu_time());
        let mut total = Recorder::new();
        let mut ticks = interval_at((started + PROGRESS).into(), PROGRESS);
        let end = async {
            match duration {
                Some(duration) => tokio::time::sleep_until((started + duration).into()).await,
                None => std::future::pending().await,
            }
        };
        let finished = self.stage.barrier.wait();
        tokio::pin!(end, finished);
        let (mut stopped, mut interrupted) = (None, false);
        loop {
            tokio::select! {
                _ = &mut finished => break,
                () = &mut end, if stopped.is_none() => {
                    stop.store(true, Relaxed);
                    stopped = Some(Instant::now());
                }
                _ = interrupt.recv(), if stopped.is_none() => {
                    stop.store(true, Relaxed);
                    (stopped, interrupted) = (Some(Instant::now()), true);
                }
                _ = ticks.tick() => {
                    let second = self.gather();
                    total.merge(&second);
                    eprintln!("{}", progress(started.elapsed(), &second, &total, keys));
                }
            }
        }
        let elapsed = stopped.unwrap_or_else(Instant::now).duration_since(started);
        let cpu = cpu_time().saturating_sub(cpu);
        total.merge(&self.gather());
        Phase { recorded: total, elapsed, cpu, interrupted }
    }

    fn gather(&self) -> Recorder {
        let mut all = Recorder::new();
        for thread in &self.recorders {
            all.merge(&thread.take_recorded());
        }
        all
    }
}

/// What one thread does.
async fn work(options: &RunOptions, plans: Vec<plan::Lane>, shared: Arc<Shared>, stage: &Stage) {
    let mut lanes = Vec::with_capacity(plans.len());
    for plan in plans {
        match Lane::connect(plan, Arc::clone(&shared), options.seed).await {
            Ok(lane) => lanes.push(lane),
            Err(error) => {
                *stage.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
                break;
            }
        }
    }
    stage.barrier.wait().await;
    let phases = [options.loads(), true].into_iter().zip([None, Some(options.op)]).filter(|(wanted, _)| *wanted);
    for (_, op) in phases {
        // The phase begins, or the run is over.
        stage.barrier.wait().await;
        if !stage.go_on.load(Relaxed) {
            return;
        }
        let mut tasks = JoinSet::new();
        for mut lane in lanes.drain(..) {
            tasks.spawn(async move {
                match op {
                    None => lane.load().await,
                    Some(op) => lane.run(op).await,
                }
                lane
            });
        }
        lanes = tasks.join_all().await;
        stage.barrier.wait().await;
    }
    stage.barrier.wait().await;
}

fn progress(elapsed: Duration, second: &Recorder, total: &Recorder, keys: Option<u32>) -> String {
    let mut line = format!("{:>4} s  {:>11} ops/s", elapsed.as_secs(), grouped(second.ops));
    if let Some(latency) = second.latency() {
        line += &format!("  p50 {:>9}  p99 {:>9}", micros(latency.p50), micros(latency.p99));
    }
    if let Some(keys) = keys {
        line += &format!("  {:>3} %", (total.ops + total.error_count()) * 100 / u64::from(keys));
    }
    if total.error_count() > 0 {
        line += &format!("  {} errors", grouped(total.error_count()));
    }
    line
}

/// CPU time of this process so far, all threads together.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
