//! Who sends the load: threads of this process, or other processes with threads of their own.

use crate::{
    engine::{Crew, Paces, Share, Task, Usage},
    measure::Recorder,
    options::Load,
    workers::Workers,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long load and audit go on asking again when nothing is answered well any more.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);
const AUDIT_PATIENCE: Duration = Duration::from_secs(30);

/// A phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Load,
    WarmUp,
    Run,
    Audit,
}

impl Step {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::Load => "load",
            Step::WarmUp => "warmup",
            Step::Run => "run",
            Step::Audit => "audit",
        }
    }

    /// What the threads do in it.
    pub(crate) fn task(self, load: &Load, warmup: Duration) -> Task {
        match self {
            Step::Load => Task::Load { patience: LOAD_PATIENCE },
            Step::Audit => Task::Audit { patience: AUDIT_PATIENCE },
            Step::Run => Task::Draw(load.paces.clone()),
            Step::WarmUp => Task::Draw(match load.paces.clone() {
                Paces::Open { rate, arrivals, .. } => Paces::Open { rate, arrivals, duration: warmup },
                closed => closed,
            }),
        }
    }
}

/// The share of worker `index` of `workers`.
pub(crate) fn share(connections: u32, threads: u32, index: u32, workers: u32) -> Share {
    let connections = connections / workers + u32::from(index < connections % workers);
    Share { connections, threads, first_unit: index * threads, units: workers * threads }
}

pub(crate) enum Force {
    Threads(Box<Crew>),
    Processes(Box<Workers>),
}

impl Force {
    /// Begins a phase.
    pub(crate) fn begin(&mut self, step: Step, load: &Load, warmup: Duration) {
        match self {
            Force::Threads(crew) => crew.begin(&step.task(load, warmup)),
            Force::Processes(workers) => workers.begin(step),
        }
    }

    /// Ends it: nothing new begins.
    pub(crate) fn stop(&mut self) {
        match self {
            Force::Threads(crew) => crew.stop(),
            Force::Processes(workers) => workers.stop(),
        }
    }

    /// Waits for the next thread or process to be done with the phase. Cancel-safe.
    ///
    /// # Errors
    /// When one has died.
    pub(crate) async fn next_done(&mut self) -> anyhow::Result<Usage> {
        match self {
            Force::Threads(crew) => Ok(crew.next_done().await.expect("the threads wait for commands")),
            Force::Processes(workers) => workers.next_done().await,
        }
    }

    /// How many threads or processes there are.
    pub(crate) fn strength(&self) -> usize {
        match self {
            Force::Threads(crew) => crew.threads(),
            Force::Processes(workers) => workers.count(),
        }
    }

    /// Takes what was recorded since the last time.
    pub(crate) fn take_recorded(&mut self) -> Recorder {
        match self {
            Force::Threads(crew) => crew.take_recorded(),
            Force::Processes(workers) => workers.take_recorded(),
        }
    }

    /// Requests in flight, and those that wait for a slot.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        match self {
            Force::Threads(crew) => crew.in_flight(),
            Force::Processes(workers) => workers.in_flight(),
        }
    }

    pub(crate) fn end(self) {
        match self {
            Force::Threads(crew) => crew.end(),
            // They end with their input.
            Force::Processes(workers) => drop(workers),
        }
    }
}
