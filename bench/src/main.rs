//! `kvbench`: load for key-value stores, how they bore it, and whether they kept what they promised.
//!
//! * what is asked for: `options`, `workload` (pure)
//! * whom it is asked of: `target`, a protocol each
//! * the load itself: `engine`; `session` makes one ready for a target
//! * a run: `run` its phases · `conductor` one of them · `force` and `workers` who sends · `kill` what is done to the cluster
//! * what comes of it: `measure` recorders · `verify` judges answers, by `kv-checker` · `report` and `output` show it · `versus`
//!   compares targets
//! * `echo`: a server with known behaviour, to measure the tool itself by
//!
//! Exit codes: 0 done, 1 done with errors or violations, 2 could not run.

mod alarm;
mod conductor;
mod echo;
mod engine;
mod force;
mod kill;
mod lock;
mod measure;
mod options;
mod output;
mod report;
mod run;
mod session;
mod target;
mod verify;
mod versus;
mod workers;
mod workload;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use conductor::Sinks;
use options::{Cli, Command, RunOptions};
use output::{Csv, HdrLog, OutFile, View};
use std::{io::Write, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Some(Command::Run(options)) => run(&options),
        Some(Command::Versus(options)) => versus::versus(&options),
        Some(Command::Echo(options)) => echo::run(&options).map(|()| ExitCode::SUCCESS),
        None => {
            let printed = Cli::command().print_long_help().context("cannot print the help");
            printed.map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("kvbench: {error:#}");
        ExitCode::from(2)
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")
}

/// Prints a result. Who does not want to read it to its end need not.
fn print(result: &dyn std::fmt::Display) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{result}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("the result cannot be written to standard output")
        }
        _ => Ok(()),
    }
}

fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let load = options.resolve()?;
    if let Some((index, count)) = workers::role()? {
        runtime()?.block_on(workers::work(options, &load, index, count))?;
        return Ok(ExitCode::SUCCESS);
    }
    options.check_files()?;
    // Before the run: nobody wants to hear after an hour that its result has no place.
    let json = options.json.as_deref().map(OutFile::create).transpose()?;
    let mut sinks = Sinks {
        csv: options.csv.as_deref().map(Csv::create).transpose()?,
        hdr_log: options.hdr_log.as_deref().map(HdrLog::create).transpose()?,
        view: View::new(options.load.view, &format!("kvbench: {} on {}", load.workload.mix, options.target)),
    };
    let outcome = runtime()?.block_on(run::run(options, &load, &mut sinks))?;
    let report = report::Report::new(options, &load, &outcome);
    let is_alone = json.as_ref().is_some_and(OutFile::is_stdout);
    let written = [
        json.map_or(Ok(()), |json| json.write(&report.to_json())),
        sinks.csv.map_or(Ok(()), Csv::finish),
        sinks.hdr_log.map_or(Ok(()), HdrLog::finish),
    ];
    let printed = if is_alone { Ok(()) } else { print(&report) };
    report.warnings().for_each(|warning| eprintln!("kvbench: {warning}"));
    written.into_iter().chain([printed]).collect::<anyhow::Result<()>>()?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
