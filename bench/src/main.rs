//! `kvbench`: load for the key-value store, and how the store bore it.
//!
//! Closed loop: every connection keeps a fixed number of requests in flight and sends the next when an answer
//! comes, so that the throughput is what the store gives and the latency is that of a store that is never idle. Over the
//! client's `Pipeline`: no future per request, so that the tool stays cheaper than what it measures; it tells
//! its own CPU time.
//!
//! `options` what is asked for · `keyspace` keys and values (pure) · `plan` which connection asks whom for what
//! (pure) · `cluster` asks the nodes who leads what · `lane` one connection · `run` threads and phases ·
//! `recorder` what was measured · `report` how it is shown.
//!
//! Has no open loop, no distribution but the uniform one, and audits no values.
//!
//! Exit codes: 0 done, 1 done with errors, 2 could not run.

mod cluster;
mod keyspace;
mod lane;
mod options;
mod plan;
mod recorder;
mod report;
mod run;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use options::{Cli, Command, RunOptions};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Some(Command::Run(options)) => run(&options),
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

fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    options.check()?;
    // Before the run: nobody wants to hear after an hour that its result has no place.
    let json = options.json.as_deref().map(report::JsonFile::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")?;
    let outcome = runtime.block_on(run::run(options))?;
    let report = report::Report::new(options, &outcome);
    print!("{report}");
    if let Some(json) = json {
        json.write(&report)?;
    }
    if !report.complete {
        eprintln!("kvbench: interrupted; the result is that of the part that was run");
    }
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
