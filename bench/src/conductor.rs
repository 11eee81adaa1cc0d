//! Leads everyone through a phase: begins it, ends it when its time is up or a person wants it to, and shows and writes what happens
//! second by second.

use crate::{
    engine::{Ns, Paces, Setup, Usage},
    force::{Force, Step},
    kill::{Killed, Victims},
    measure::{Latency, Recorder, grouped},
    options::Load,
    output::{Csv, HdrLog, Interval, View},
};
use anyhow::Context;
use serde::Serialize;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinError, JoinHandle},
    time::{interval_at, sleep_until},
};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// What was measured in one phase.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    pub(crate) recorded: Recorder,
    pub(crate) elapsed: Duration,
    /// What the load cost this side.
    pub(crate) usage: Usage,
    /// Whether it was ended by a person.
    pub(crate) interrupted: bool,
    /// Second by second.
    pub(crate) series: Vec<Point>,
}

/// A second of a phase; the names of the fields are part of the result's schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    /// At its end, since the phase began.
    second: f64,
    ops: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_us: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
}

/// Where every second goes.
pub(crate) struct Sinks {
    pub(crate) view: View,
    pub(crate) csv: Option<Csv>,
    pub(crate) hdr_log: Option<HdrLog>,
}

/// A person who wants it to end.
pub(crate) struct Interrupt {
    ctrl_c: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// From here on Ctrl-C and SIGTERM do not end the process.
    pub(crate) fn new() -> anyhow::Result<Interrupt> {
        let catch = |kind| signal(kind).context("Ctrl-C cannot be caught");
        Ok(Interrupt { ctrl_c: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for it to come where what is left cannot be cut short, and ends the process.
    pub(crate) async fn insist(&mut self) {
        self.comes().await;
        self.insists();
    }

    /// Waits for it. Cancel-safe.
    async fn comes(&mut self) {
        tokio::select! {
            _ = self.ctrl_c.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// It came again, while what was under way was waited for.
    fn insists(&self) -> ! {
        eprintln!("kvbench: interrupted again; the result was not written");
        std::process::exit(2);
    }
}

/// What happens to the cluster in the middle of a phase.
pub(crate) struct Blow {
    pub(crate) at: Duration,
    pub(crate) victims: Victims,
}

pub(crate) struct Conductor<'a> {
    pub(crate) force: Force,
    /// What the threads of this process share; `None` if others do it all.
    pub(crate) setup: Option<Arc<Setup>>,
    pub(crate) load: &'a Load,
    pub(crate) warmup: Duration,
    pub(crate) sinks: &'a mut Sinks,
    pub(crate) interrupt: &'a mut Interrupt,
}

/// Who was killed, or why nobody was; and when the phase ended.
type Struck = (Result<Killed, String>, Ns);

/// A phase that is going on.
struct Going {
    step: Step,
    began: Instant,
    duration: Option<Duration>,
    phase: Phase,
    last: Instant,
    event: Option<String>,
}

impl Conductor<'_> {
    pub(crate) fn end(self) {
        self.force.end();
    }

    /// One phase: for a time, or until all keys are through.
    ///
    /// # Errors
    /// When a worker has died.
    pub(crate) async fn phase(
        &mut self,
        step: Step,
        duration: Option<Duration>,
        mut blow: Option<Blow>,
    ) -> anyhow::Result<(Phase, Option<Struck>)> {
        self.sinks.view.begin(step.name(), &self.describe(step, duration));
        self.force.begin(step, self.load, self.warmup);
        let began = Instant::now();
        let mut going = Going { step, began, duration, phase: Phase::default(), last: began, event: None };
        let mut ticks = interval_at((began + PROGRESS).into(), PROGRESS);
        let mut left = self.force.strength();
        let mut stopped: Option<(Instant, Ns)> = None;
        let mut striking: Option<JoinHandle<anyhow::Result<Killed>>> = None;
        let mut killed = None;
        let far = began + Duration::from_secs(1 << 30);
        while left > 0 {
            let end = duration.map_or(far, |duration| began + duration);
            let strike = blow.as_ref().map_or(far, |blow| began + blow.at);
            let mut stop = false;
            tokio::select! {
                usage = self.force.next_done() => {
                    going.phase.usage = going.phase.usage + usage?;
                    left -= 1;
                }
                () = sleep_until(end.into()), if stopped.is_none() => stop = true,
                () = self.interrupt.comes() => {
                    if going.phase.interrupted {
                        self.interrupt.insists();
                    }
                    going.phase.interrupted = true;
                    stop = stopped.is_none();
                    self.sinks.view.note("interrupted; what is under way is waited for (interrupt again to end at once)");
                }
                () = sleep_until(strike.into()), if blow.is_some() && stopped.is_none() => {
                    if let Some(blow) = blow.take() {
                        if let Some(windows) = self.setup.as_ref().and_then(|setup| setup.windows.as_ref()) {
                            windows.begin();
                        }
                        striking = Some(tokio::spawn(blow.victims.strike()));
                    }
                }
                struck = async { striking.as_mut().expect("asked only if so").await }, if striking.is_some() => {
                    striking = None;
                    killed = Some(self.struck(struck, &mut going));
                }
                _ = ticks.tick() => {
                    // A rest of a few milliseconds would look as if the load had changed.
                    if end.saturating_duration_since(Instant::now()) > PROGRESS / 4 && stopped.is_none() {
                        self.show(&mut going);
                    }
                }
            }
            if stop {
                stopped = Some((Instant::now(), self.now()));
                self.force.stop();
            }
        }
        let (mut at, end) = stopped.unwrap_or_else(|| (Instant::now(), self.now()));
        if matches!(self.load.paces, Paces::Open { .. }) {
            // What was due is asked to the last.
            at = Instant::now();
        }
        if let Some(striking) = striking {
            killed = Some(self.struck(striking.await, &mut going));
        }
        self.show(&mut going);
        going.phase.elapsed = at.duration_since(began);
        Ok((going.phase, killed.map(|killed| (killed, end))))
    }

    /// Takes note of a blow.
    fn struck(
        &mut self,
        struck: Result<anyhow::Result<Killed>, JoinError>,
        going: &mut Going,
    ) -> Result<Killed, String> {
        let struck = struck.expect("it does not panic").map_err(|e| format!("{e:#}"));
        match &struck {
            Ok(killed) => going.event = Some(killed.to_string()),
            Err(cause) => self.sinks.view.note(&format!("nobody was killed: {cause}")),
        }
        struck
    }

    /// The time of the load; 0 if others do it all.
    fn now(&self) -> Ns {
        self.setup.as_ref().map_or(0, |setup| setup.clock.now())
    }

    fn describe(&self, step: Step, duration: Option<Duration>) -> String {
        let keys = || grouped(self.load.workload.count.into());
        match (step, duration) {
            (Step::Load, _) => format!("writing {} keys", keys()),
            (Step::Audit, _) => format!("reading {} keys once more", keys()),
            (_, Some(duration)) => format!("for {}", humantime::format_duration(duration)),
            (_, None) => String::new(),
        }
    }

    /// Shows and writes what has happened since the last time.
    fn show(&mut self, going: &mut Going) {
        let now = Instant::now();
        let (elapsed, length) = (now.duration_since(going.began), now.duration_since(going.last));
        let recorded = self.force.take_recorded();
        going.phase.recorded.merge(&recorded);
        going.last = now;
        let event = going.event.take();
        let total = &going.phase.recorded;
        let done = match going.duration {
            Some(duration) => elapsed.as_secs_f64() / duration.as_secs_f64(),
            None => total.ops() as f64 / f64::from(self.load.workload.count),
        };
        let (in_flight, waiting) = self.force.in_flight();
        let asked_per_s = match (&self.load.paces, going.step, going.duration) {
            (Paces::Open { rate, .. }, Step::Run | Step::WarmUp, Some(duration)) => {
                Some(rate.at(elapsed.saturating_sub(length / 2), duration))
            }
            _ => None,
        };
        let interval = Interval {
            phase: going.step.name(),
            elapsed,
            length,
            recorded: &recorded,
            total,
            done: Some(done.min(1.0)),
            in_flight,
            waiting,
            asked_per_s,
            event: event.as_deref(),
        };
        self.sinks.view.interval(&interval);
        // A full disk does not end the load; it is told once here, and again by the exit code.
        let csv = self.sinks.csv.as_mut().map_or(Ok(()), |csv| csv.interval(&interval));
        let log = self.sinks.hdr_log.as_mut().map_or(Ok(()), |log| log.interval(&interval));
        for error in [csv, log].into_iter().filter_map(Result::err) {
            self.sinks.view.note(&format!("{error:#}"));
        }
        let latency_us = Latency::of(&recorded.all().response);
        let (ops, errors) = (recorded.ops(), recorded.error_count());
        going.phase.series.push(Point { second: elapsed.as_secs_f64(), ops, errors, latency_us, event });
    }
}
