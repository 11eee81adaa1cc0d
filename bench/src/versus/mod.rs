//! One load on several targets in turn, round by round, and how they compare.

mod ratios;
mod table;

use crate::{
    conductor::{Conductor, Interrupt, Phase, Sinks},
    engine::{Paces, Usage},
    force::{Force, Step, share},
    measure::{Latency, Recorder},
    options::{Load, VersusOptions},
    output::{OutFile, View},
    report::bottleneck,
    session::{Extras, Session},
    target::Target,
};
use anyhow::Context;
use ratios::{Comparison, Round, Series, compare};
use serde::Serialize;
use std::{collections::BTreeMap, process::ExitCode};

/// Version of the JSON's shape.
const SCHEMA: &str = "kvbench-versus/1";

/// The result. The names of the fields are the schema.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    /// False when it was interrupted: then there are fewer rounds.
    complete: bool,
    parameters: Parameters,
    #[serde(flatten)]
    comparison: Comparison,
    /// Failures of each target by their codes.
    errors: Vec<BTreeMap<String, u64>>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Parameters {
    op: String,
    keys: u32,
    value_bytes: String,
    connections: u32,
    /// By target.
    pipelines: Vec<u32>,
    threads: u32,
    duration_s: f64,
    warmup_s: f64,
    rate: Option<String>,
}

/// Runs all rounds, and reports.
///
/// # Errors
/// When a target cannot be loaded, or the result not be written.
pub(crate) fn versus(options: &VersusOptions) -> anyhow::Result<ExitCode> {
    let loads = options.resolve()?;
    let json = options.json.as_deref().map(OutFile::create).transpose()?;
    let names: Vec<String> = options.targets.iter().map(Target::to_string).collect();
    let view = View::new(options.load.view, &format!("kvbench: {} on {}", loads[0].workload.mix, names.join(" and ")));
    let mut sinks = Sinks { view, csv: None, hdr_log: None };
    let report = crate::runtime()?.block_on(rounds(options, &loads, names, &mut sinks))?;
    sinks.view.finish();
    if !json.as_ref().is_some_and(OutFile::is_stdout) {
        crate::print(&table::table(&report.comparison))?;
    }
    if let Some(json) = json {
        let mut text = serde_json::to_string_pretty(&report).context("the result is no JSON")?;
        text.push('\n');
        json.write(&text)?;
    }
    report.warnings.iter().for_each(|warning| eprintln!("kvbench: {warning}"));
    let is_good = report.errors.iter().all(BTreeMap::is_empty);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn rounds(
    options: &VersusOptions,
    loads: &[Load],
    names: Vec<String>,
    sinks: &mut Sinks,
) -> anyhow::Result<Report> {
    let mut series: Vec<Series> = names.into_iter().map(|name| Series { name, rounds: Vec::new() }).collect();
    let mut errors = vec![BTreeMap::new(); series.len()];
    let mut usages = vec![Usage::default(); series.len()];
    let mut interrupt = Interrupt::new()?;
    let mut warnings = Vec::new();
    'rounds: for round in 0..options.rounds {
        for (index, (target, load)) in options.targets.iter().zip(loads).enumerate() {
            sinks.view.note(&format!("round {} of {}: {target}", round + 1, options.rounds));
            let turn = turn(options, target, load, round == 0, sinks, &mut interrupt).await;
            let phase = match turn.with_context(|| target.to_string()) {
                // What other rounds came to is not thrown away.
                Err(error) if round > 0 => {
                    warnings.push(format!("given up in round {}: {error:#}", round + 1));
                    break 'rounds;
                }
                turn => turn?,
            };
            if phase.interrupted {
                warnings.push("interrupted; only whole rounds count".to_owned());
                break 'rounds;
            }
            for (code, failure) in &phase.recorded.errors {
                *errors[index].entry(code.clone()).or_default() += failure.count;
            }
            usages[index] = usages[index] + phase.usage;
            series[index].rounds.push(measured(&phase));
        }
    }
    let is_closed = |index: usize| !matches!(loads[index].paces, Paces::Open { .. });
    let bottleneck = |(index, usage): (usize, &Usage)| {
        let warning = bottleneck(usage).filter(|_| is_closed(index))?;
        Some(format!("{}: {warning}", options.targets[index]))
    };
    let bottlenecks: Vec<String> = usages.iter().enumerate().filter_map(bottleneck).collect();
    let (first, workload) = (&loads[0], &loads[0].workload);
    Ok(Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        complete: warnings.is_empty(),
        parameters: Parameters {
            op: workload.mix.to_string(),
            keys: workload.count,
            value_bytes: workload.sizes.to_string(),
            connections: first.connections,
            pipelines: loads.iter().map(|load| load.pipeline).collect(),
            threads: options.load.threads,
            duration_s: options.load.duration.as_secs_f64(),
            warmup_s: options.load.warmup.as_secs_f64(),
            rate: if let Paces::Open { rate, .. } = &first.paces { Some(rate.to_string()) } else { None },
        },
        comparison: compare(&series),
        errors,
        warnings: warnings.into_iter().chain(bottlenecks).collect(),
    })
}

/// One turn of one target; its keys are written in the first one.
async fn turn(
    options: &VersusOptions,
    target: &Target,
    load: &Load,
    is_first: bool,
    sinks: &mut Sinks,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Phase> {
    let share = share(load.connections, options.load.threads, 0, 1);
    let session = Session::open(target, load, &options.load, Extras::default(), share).await?;
    let Session { setup, crew, follower: _follower, .. } = session;
    let (force, setup) = (Force::Threads(Box::new(crew)), Some(setup));
    let warmup = options.load.warmup;
    let mut conductor = Conductor { force, setup, load, warmup, sinks, interrupt };
    let mut phases = Vec::new();
    if is_first && load.loads {
        phases.push((Step::Load, None));
    }
    if !warmup.is_zero() {
        phases.push((Step::WarmUp, Some(warmup)));
    }
    phases.push((Step::Run, Some(options.load.duration)));
    let mut last = Phase::default();
    let mut before = Recorder::default();
    for (step, duration) in phases {
        before.merge(&last.recorded);
        last = conductor.phase(step, duration, None).await?.0;
        if last.interrupted {
            break;
        }
    }
    conductor.end();
    // Failures of load and warm-up count as well.
    last.recorded.add_errors(&before);
    Ok(last)
}

fn measured(phase: &Phase) -> Round {
    let all = phase.recorded.all();
    let latency = Latency::of(&all.response);
    let us = |of: fn(Latency) -> u64| latency.map_or(0, of);
    Round {
        ops_per_s: all.ops as f64 / phase.elapsed.as_secs_f64(),
        p50_us: us(|l| l.p50),
        p99_us: us(|l| l.p99),
        p999_us: us(|l| l.p999),
        errors: phase.recorded.error_count(),
        cpu_us_per_op: phase.usage.cpu.as_secs_f64() * 1e6 / all.ops as f64,
    }
}
