//! The result, for people and for programs.

use crate::{
    keyspace::KEY_BYTES,
    options::{Op, RunOptions},
    recorder::{Latency, Recorder},
    run::{Outcome, Phase},
};
use anyhow::Context;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    fs::{File, OpenOptions},
    io::{Seek, Write},
    path::{Path, PathBuf},
};

/// Version of the JSON's shape.
const SCHEMA: &str = "kvbench/1";

/// The result of a run. The names of the fields are the schema.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    version: &'static str,
    /// False when the run was interrupted.
    pub(crate) complete: bool,
    parameters: Parameters,
    leaders: usize,
    executors: usize,
    load: Option<Load>,
    elapsed_s: f64,
    ops: u64,
    ops_per_s: f64,
    /// Good answers that said that there is no value.
    misses: u64,
    latency_us: Option<Latency>,
    /// Failures by their codes: of requests, and of attempts to connect anew.
    errors: BTreeMap<&'static str, u64>,
    cpu_s: f64,
    cpu_s_per_million_ops: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Parameters {
    target: String,
    op: Op,
    keys: u32,
    key_bytes: usize,
    value_bytes: u32,
    connections: u32,
    pipeline: u32,
    threads: u32,
    duration_s: f64,
    deadline_s: f64,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Load {
    keys: u64,
    elapsed_s: f64,
    keys_per_s: f64,
    errors: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(crate) fn new(options: &RunOptions, outcome: &Outcome) -> Self {
        let nothing = Recorder::new();
        let (run, elapsed_s, cpu_s) = match &outcome.run {
            Some(run) => (&run.recorded, run.elapsed.as_secs_f64(), run.cpu.as_secs_f64()),
            None => (&nothing, 0.0, 0.0),
        };
        let load = outcome.load.as_ref().map(|Phase { recorded, elapsed, .. }| Load {
            keys: recorded.ops,
            elapsed_s: elapsed.as_secs_f64(),
            keys_per_s: rate(recorded.ops, elapsed.as_secs_f64()),
            errors: recorded.errors.clone(),
        });
        let phases = [&outcome.load, &outcome.run];
        Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            complete: outcome.run.is_some() && phases.into_iter().flatten().all(|p| !p.interrupted),
            parameters: Parameters {
                target: format!("kv://{}", options.target),
                op: options.op,
                keys: options.keys,
                key_bytes: KEY_BYTES,
                value_bytes: options.value_size,
                connections: options.connections,
                pipeline: options.pipeline,
                threads: options.threads,
                duration_s: options.duration.as_secs_f64(),
                deadline_s: options.deadline.as_secs_f64(),
                seed: options.seed,
            },
            leaders: outcome.leaders,
            executors: outcome.targets,
            load,
            elapsed_s,
            ops: run.ops,
            ops_per_s: rate(run.ops, elapsed_s),
            misses: run.misses,
            latency_us: run.latency(),
            errors: run.errors.clone(),
            cpu_s,
            cpu_s_per_million_ops: (run.ops > 0).then(|| cpu_s * 1e6 / run.ops as f64),
        }
    }

    /// Whether anything failed, in the load or after it.
    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.is_empty() || self.load.as_ref().is_some_and(|l| !l.errors.is_empty())
    }
}

fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.parameters;
        let op = match p.op {
            Op::Get => "get",
            Op::Put => "put",
        };
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<16}{value:>16}");
        row("operation", &op)?;
        row("connections", &format!("{} x {}", p.connections, p.pipeline))?;
        if let Some(load) = &self.load {
            row("loaded keys", &grouped(load.keys))?;
            row("loaded keys/s", &grouped(load.keys_per_s as u64))?;
            for (code, count) in &load.errors {
                row(&format!("load: {code}"), &grouped(*count))?;
            }
        }
        row("seconds", &format!("{:.2}", self.elapsed_s))?;
        row("operations", &grouped(self.ops))?;
        row("operations/s", &grouped(self.ops_per_s as u64))?;
        if let Some(l) = self.latency_us {
            for (name, us) in [("p50", l.p50), ("p90", l.p90), ("p99", l.p99), ("p99.9", l.p999), ("max", l.max)] {
                row(name, &micros(us))?;
            }
        }
        if p.op == Op::Get {
            row("misses", &grouped(self.misses))?;
        }
        row("errors", &grouped(self.errors.values().sum()))?;
        for (code, count) in &self.errors {
            row(&format!("  {code}"), &grouped(*count))?;
        }
        if let Some(cpu) = self.cpu_s_per_million_ops {
            row("own CPU s/M ops", &format!("{cpu:.2}"))?;
        }
        Ok(())
    }
}

/// A number with commas between its thousands.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds in the unit that fits.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// The file for the result, opened before the run and filled after it. What an earlier run left there stays until
/// then; a file that was made for a run that could not run is removed again.
#[derive(Debug)]
pub(crate) struct JsonFile {
    file: File,
    path: PathBuf,
    remove: bool,
}

impl JsonFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<JsonFile> {
        let remove = !path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("the result cannot be written to {}", path.display()))?;
        Ok(JsonFile { file, path: path.to_owned(), remove })
    }

    pub(crate) fn write(mut self, report: &Report) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(report).context("the result is no JSON")?;
        text.push('\n');
        self.remove = false;
        let replace = |file: &mut File| {
            // A pipe or a device cannot be cut, and need not be.
            if file.metadata()?.is_file() {
                file.set_len(0)?;
                file.rewind()?;
            }
            file.write_all(text.as_bytes())
        };
        replace(&mut self.file).with_context(|| format!("the result cannot be written to {}", self.path.display()))
    }
}

impl Drop for JsonFile {
    fn drop(&mut self) {
        if self.remove {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
        for (us, text) in [(0, "0 us"), (999, "999 us"), (1500, "1.50 ms"), (2_000_000, "2.00 s")] {
            assert_eq!(micros(us), text);
        }
    }

    #[test]
    fn a_file_made_for_a_run_that_did_not_happen_is_removed_and_an_older_one_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let (new, old) = (folder.path().join("new.json"), folder.path().join("old.json"));
        std::fs::write(&old, "kept").expect("written");
        drop(JsonFile::create(&new).expect("created"));
        drop(JsonFile::create(&old).expect("opened"));
        assert!(!new.exists());
        assert_eq!(std::fs::read_to_string(&old).expect("there"), "kept");
        let error = JsonFile::create(&folder.path().join("no/such/folder.json")).expect_err("no folder");
        assert!(format!("{error:#}").contains("no/such/folder.json: No such file"), "{error:#}");
    }
}
