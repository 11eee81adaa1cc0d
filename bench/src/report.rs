//! The result, for people and for programs.

use crate::{
    conductor::{Phase, Point},
    engine::{Paces, Usage},
    kill::Killed,
    measure::{KindRecorder, Latency, Recorder, grouped, micros},
    options::{Load, RunOptions},
    run::Outcome,
    verify::{Verdict, Window},
    workload::{Arrivals, Kind, Preset, Workload},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Version of the JSON's shape.
const SCHEMA: &str = "kvbench/2";
/// How much of its time the generator may be busy or wait for a processor before it is the bottleneck itself.
const BUSY: f64 = 0.9;
/// The share of starts that may be late by its own fault.
const LATE: f64 = 0.01;
/// Points of the curve of latencies: `1 - 10^-n` and between.
const CURVE: [f64; 19] =
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1.0];

/// Says so if the threads that send were so busy, or waited so long for a processor, that a closed loop measures them.
pub(crate) fn bottleneck(usage: &Usage) -> Option<String> {
    let (busy, waited) = (usage.busy(), usage.waits());
    let percent = |share: f64| (share * 100.0).round();
    if busy <= BUSY {
        return None;
    }
    Some(if waited > busy / 4.0 {
        format!(
            "THE GENERATOR ITSELF IS A BOTTLENECK: its threads waited for a processor {} % of the time, since others had them \
             all; give it processors of its own, or read the figures as those of target and tool on one machine",
            percent(waited)
        )
    } else {
        format!(
            "THE GENERATOR ITSELF IS THE BOTTLENECK: its threads were busy {} % of the time; use more --threads or \
             --workers, or read the figures as a lower bound",
            percent(busy)
        )
    })
}

/// The result of a run. The names of the fields are the schema.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    version: &'static str,
    /// Seconds since 1970 when it was written.
    written_at: u64,
    /// False when the run was interrupted.
    pub(crate) complete: bool,
    parameters: Parameters,
    /// Nodes that lead, or servers.
    leaders: usize,
    /// Executors of them that own keys.
    executors: usize,
    load: Option<Loaded>,
    #[serde(flatten)]
    measured: Measured,
    generator: Generator,
    /// CPU time of the generator, as in `generator`.
    cpu_s: f64,
    cpu_s_per_million_ops: Option<f64>,
    open_loop: Option<OpenLoop>,
    verify: Option<Verdict>,
    kill: Option<Kill>,
    series: Vec<Point>,
    #[serde(skip)]
    usage: Usage,
    #[serde(skip)]
    verifies: bool,
    /// Why the figures may not be those of the target.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Parameters {
    target: String,
    op: String,
    workload: Option<Preset>,
    keys: u32,
    key_bytes: usize,
    key_choice: String,
    value_bytes: String,
    connections: u32,
    pipeline: u32,
    threads: u32,
    workers: u32,
    duration_s: f64,
    warmup_s: f64,
    deadline_s: f64,
    rate: Option<String>,
    arrivals: Option<Arrivals>,
    think: Option<String>,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Loaded {
    keys: u64,
    elapsed_s: f64,
    keys_per_s: f64,
    errors: BTreeMap<String, u64>,
}

/// What the target gave.
#[derive(Debug, Serialize)]
struct Measured {
    elapsed_s: f64,
    ops: u64,
    ops_per_s: f64,
    /// Good answers that said that there is no value.
    misses: u64,
    /// Good answers that said that a condition does not hold.
    conflicts: u64,
    /// From the intended start to the last answer.
    latency_us: Option<Latency>,
    /// From the sending of the first request to the last answer.
    service_us: Option<Latency>,
    /// Failures of operations by their codes.
    errors: BTreeMap<String, u64>,
    /// Failed attempts to connect anew.
    failed_connects: u64,
    /// The same failures by what became of the operation.
    outcomes: Outcomes,
    /// Writes that were sent again under the same id, since nobody knew what had become of them.
    retried: u64,
    kinds: BTreeMap<&'static str, OfKind>,
    /// Latencies by quantile.
    curve_us: Vec<(f64, u64)>,
}

#[derive(Debug, Serialize)]
struct Outcomes {
    not_applied: u64,
    unknown: u64,
}

#[derive(Debug, Serialize)]
struct OfKind {
    ops: u64,
    ops_per_s: f64,
    errors: u64,
    misses: u64,
    conflicts: u64,
    latency_us: Option<Latency>,
    service_us: Option<Latency>,
}

/// What the load cost this side.
#[derive(Debug, Serialize)]
struct Generator {
    cpu_s: f64,
    cpu_us_per_op: Option<f64>,
    /// How much of their time the sending threads ran or waited for a processor: 1 is all of it.
    busy: f64,
    /// How much of it they waited for a processor.
    waited: f64,
}

/// How well an open loop was kept.
#[derive(Debug, Serialize)]
struct OpenLoop {
    asked_per_s: f64,
    /// Operations whose intended start came.
    due: u64,
    /// Those that were sent more than a millisecond after it.
    late: u64,
    /// Those of them that this tool itself was late for.
    late_by_generator: u64,
    /// Those that were never sent: no connection was free for as long as the deadline, or a million waited already, or …
    dropped: u64,
    /// … this tool could not begin them in time.
    not_begun: u64,
}

#[derive(Debug, Serialize)]
struct Kill {
    at_s: f64,
    #[serde(flatten)]
    killed: Option<Killed>,
    /// Why nobody was killed.
    error: Option<String>,
    /// Of each partition that was written: the longest time between two successful writes.
    windows: Vec<Window>,
    /// Of those that the killed node led.
    longest_ms: Option<u64>,
}

impl Report {
    pub(crate) fn new(options: &RunOptions, load: &Load, outcome: &Outcome) -> Self {
        let nothing = Phase::default();
        let run = outcome.run.as_ref().unwrap_or(&nothing);
        let measured = Measured::new(&run.recorded, run.elapsed);
        let ops = measured.ops;
        let cpu_s = run.usage.cpu.as_secs_f64();
        let generator = Generator {
            cpu_s,
            cpu_us_per_op: (ops > 0).then(|| cpu_s * 1e6 / ops as f64),
            busy: run.usage.busy(),
            waited: run.usage.waits(),
        };
        let recorded = &run.recorded;
        let open_loop = match &load.paces {
            Paces::Open { rate, .. } => Some(OpenLoop {
                asked_per_s: rate.mean(),
                due: recorded.due,
                late: recorded.late,
                late_by_generator: recorded.late_by_generator,
                dropped: recorded.dropped,
                not_begun: recorded.not_begun,
            }),
            _ => None,
        };
        let loaded = outcome.load.as_ref().map(|Phase { recorded, elapsed, .. }| Loaded {
            keys: recorded.ops(),
            elapsed_s: elapsed.as_secs_f64(),
            keys_per_s: rate(recorded.ops(), *elapsed),
            errors: counts(recorded),
        });
        let mut report = Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            written_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            complete: !outcome.interrupted,
            parameters: Parameters::new(options, load),
            leaders: outcome.nodes,
            executors: outcome.places,
            load: loaded,
            measured,
            cpu_s,
            cpu_s_per_million_ops: generator.cpu_us_per_op,
            generator,
            open_loop,
            verify: outcome.verdict.clone(),
            kill: Kill::new(options, outcome),
            series: run.series.clone(),
            usage: run.usage,
            verifies: options.verify,
            warnings: Vec::new(),
        };
        report.warnings = report.find_warnings();
        report
    }

    fn find_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.complete {
            warnings.push("interrupted; the result is that of the part that was run".to_owned());
        }
        if self.complete && self.measured.ops == 0 {
            warnings.push("nothing was answered well".to_owned());
        }
        if self.open_loop.is_none() {
            warnings.extend(bottleneck(&self.usage));
        }
        let percent = |share: f64| (share * 100.0).round();
        if let Some(open) = &self.open_loop {
            let share = (open.late_by_generator + open.not_begun) as f64 / open.due.max(1) as f64;
            if share > LATE {
                warnings.push(format!(
                    "THE GENERATOR ITSELF WAS LATE: {} % of the starts came more than 1 ms after their time, or never, because it was busy \
                     or waited for a processor; use more --threads or --workers, or a lower --rate",
                    percent(share)
                ));
            }
            let waited = open.dropped - open.not_begun;
            if waited > 0 {
                warnings.push(format!(
                    "{} operations were dropped: no connection was free for as long as the deadline, a million others waited already, or \
                     (with --verify) as many requests of each key were under way as are judged; the latencies are those of the rest",
                    grouped(waited)
                ));
            }
        }
        warnings
    }

    pub(crate) fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }

    /// Whether nothing failed, in the load or after it. Where a leader was killed, failures are what was asked for.
    pub(crate) fn is_good(&self) -> bool {
        let has_errors = !self.measured.errors.is_empty()
            || self.measured.failed_connects > 0
            || self.load.as_ref().is_some_and(|l| !l.errors.is_empty());
        let is_lacking = self.open_loop.as_ref().is_some_and(|open| open.dropped > 0);
        let is_empty = self.complete && self.measured.ops == 0;
        let as_expected = match &self.kill {
            Some(kill) => kill.error.is_none(),
            None => !has_errors && !is_lacking && !is_empty,
        };
        // Who asked for a judgement and cut it short has none.
        let is_judged = !self.verifies || self.verify.as_ref().is_some_and(Verdict::is_good);
        as_expected && is_judged
    }

    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is JSON");
        text.push('\n');
        text
    }
}

impl Parameters {
    fn new(options: &RunOptions, load: &Load) -> Self {
        let Load { workload, connections, pipeline, paces, .. } = load;
        let Workload { mix, keys, names, sizes, seed, .. } = workload;
        let (rate, arrivals, think) = match paces {
            Paces::Open { rate, arrivals, .. } => (Some(rate.to_string()), Some(*arrivals), None),
            Paces::Users(think) => (None, None, Some(think.to_string())),
            Paces::Saturated => (None, None, None),
        };
        Parameters {
            target: options.target.to_string(),
            op: mix.to_string(),
            workload: options.load.workload,
            keys: workload.count,
            key_bytes: names.bytes(),
            key_choice: keys.to_string(),
            value_bytes: sizes.to_string(),
            connections: *connections,
            pipeline: *pipeline,
            threads: options.load.threads,
            workers: options.workers,
            duration_s: options.load.duration.as_secs_f64(),
            warmup_s: options.load.warmup.as_secs_f64(),
            deadline_s: options.load.deadline.as_secs_f64(),
            rate,
            arrivals,
            think,
            seed: *seed,
        }
    }
}

impl Measured {
    fn new(recorded: &Recorder, elapsed: Duration) -> Self {
        let all = recorded.all();
        let of_kind = |(kind, of): (Kind, &KindRecorder)| {
            let of_kind = OfKind {
                ops: of.ops,
                ops_per_s: rate(of.ops, elapsed),
                errors: of.errors,
                misses: of.misses,
                conflicts: of.conflicts,
                latency_us: Latency::of(&of.response),
                service_us: Latency::of(&of.service),
            };
            (kind.name(), of_kind)
        };
        let unknown = recorded.errors.values().map(|failure| failure.unknown).sum();
        let point = |quantile: f64| (quantile, all.response.value_at_quantile(quantile));
        Measured {
            elapsed_s: elapsed.as_secs_f64(),
            ops: all.ops,
            ops_per_s: rate(all.ops, elapsed),
            misses: all.misses,
            conflicts: all.conflicts,
            latency_us: Latency::of(&all.response),
            service_us: Latency::of(&all.service),
            errors: counts(recorded),
            failed_connects: recorded.failed_connects,
            outcomes: Outcomes { not_applied: recorded.error_count() - unknown, unknown },
            retried: recorded.retried,
            kinds: recorded.kinds().map(of_kind).collect(),
            curve_us: if all.ops > 0 { CURVE.into_iter().map(point).collect() } else { Vec::new() },
        }
    }
}

impl Kill {
    fn new(options: &RunOptions, outcome: &Outcome) -> Option<Self> {
        let at_s = options.kill_leader_at?.as_secs_f64();
        let (killed, windows) = match &outcome.killed {
            Some((killed, windows)) => (killed.clone(), windows.clone()),
            None => (Err("the run ended before".to_owned()), Vec::new()),
        };
        let (killed, error) = match killed {
            Ok(killed) => (Some(killed), None),
            Err(cause) => (None, Some(cause)),
        };
        let led = |window: &&Window| killed.as_ref().is_some_and(|killed| killed.led.contains(&window.partition));
        let longest_ms = windows.iter().filter(led).map(|window| window.ms).max();
        Some(Kill { at_s, killed, error, windows, longest_ms })
    }
}

fn counts(recorded: &Recorder) -> BTreeMap<String, u64> {
    recorded.errors.iter().map(|(code, failure)| (code.clone(), failure.count)).collect()
}

fn per_second(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { grouped(rate as u64) }
}

fn rate(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p, m) = (&self.parameters, &self.measured);
        row(f, "operation", &p.op)?;
        row(f, "connections", &format!("{} x {}", p.connections, p.pipeline))?;
        if let Some(load) = &self.load {
            row(f, "loaded keys", &grouped(load.keys))?;
            row(f, "loaded keys/s", &grouped(load.keys_per_s as u64))?;
            for (code, count) in &load.errors {
                row(f, &format!("load: {code}"), &grouped(*count))?;
            }
        }
        row(f, "seconds", &format!("{:.2}", m.elapsed_s))?;
        row(f, "operations", &grouped(m.ops))?;
        row(f, "operations/s", &per_second(m.ops_per_s))?;
        if let Some(open) = &self.open_loop {
            row(f, "asked for/s", &per_second(open.asked_per_s))?;
            row(f, "late", &grouped(open.late))?;
            row(f, "dropped", &grouped(open.dropped))?;
        }
        self.latencies(f)?;
        for (name, count) in [("misses", m.misses), ("conflicts", m.conflicts), ("retried", m.retried)] {
            if count > 0 || (name == "misses" && m.kinds.contains_key("get")) {
                row(f, name, &grouped(count))?;
            }
        }
        row(f, "errors", &grouped(m.errors.values().sum()))?;
        for (code, count) in &m.errors {
            row(f, &format!("  {code}"), &grouped(*count))?;
        }
        if m.failed_connects > 0 {
            row(f, "failed connects", &grouped(m.failed_connects))?;
        }
        if m.outcomes.unknown > 0 {
            row(f, "  of unknown outcome", &grouped(m.outcomes.unknown))?;
        }
        if let Some(cpu) = self.cpu_s_per_million_ops {
            row(f, "own CPU s/M ops", &format!("{cpu:.2}"))?;
        }
        if let Some(kill) = &self.kill {
            write!(f, "\n{kill}")?;
        }
        if let Some(verdict) = &self.verify {
            write!(f, "\n{verdict}")?;
        }
        Ok(())
    }
}

impl Report {
    /// A column for all operations, and one for each kind where there are several.
    fn latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.measured;
        let Some(all) = m.latency_us else { return Ok(()) };
        let mut columns = vec![("all", Some(all))];
        if m.kinds.len() > 1 {
            columns.extend(m.kinds.iter().map(|(kind, of)| (*kind, of.latency_us)));
            write!(f, "{:<16}", "")?;
            columns.iter().try_for_each(|(name, _)| write!(f, "{name:>16}"))?;
            writeln!(f)?;
        }
        type Of = fn(&Latency) -> u64;
        let rows: [(&str, Of); 5] =
            [("p50", |l| l.p50), ("p90", |l| l.p90), ("p99", |l| l.p99), ("p99.9", |l| l.p999), ("max", |l| l.max)];
        for (name, of) in rows {
            write!(f, "{name:<16}")?;
            for (_, latency) in &columns {
                write!(f, "{:>16}", latency.as_ref().map_or_else(|| "--".to_owned(), |latency| micros(of(latency))))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(killed) = &self.killed else {
            return writeln!(f, "nobody was killed: {}", self.error.as_deref().unwrap_or("the run ended before"));
        };
        writeln!(f, "{killed}, {} s after the beginning", self.at_s)?;
        let of = |led: bool| {
            let mut ms: Vec<u64> = (self.windows.iter().filter(|window| killed.led.contains(&window.partition) == led))
                .map(|window| window.ms)
                .collect();
            ms.sort_unstable();
            ms
        };
        for (what, ms) in [("its partitions", of(true)), ("the others", of(false))] {
            if let (Some(least), Some(most)) = (ms.first(), ms.last()) {
                let (median, count) = (ms[ms.len() / 2], ms.len());
                writeln!(f, "without a write, {what} ({count}): {least} to {most} ms, half of them up to {median} ms")?;
            }
        }
        let open = self.windows.iter().filter(|window| window.is_open).count();
        if open > 0 {
            writeln!(f, "{open} partitions were not written again until the end")?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &dyn fmt::Display) -> fmt::Result {
    writeln!(f, "{name:<16}{value:>16}")
}
