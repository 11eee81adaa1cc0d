//! The command `kv`: thin glue from a command line to the crates that do the work. A file per subcommand; what a
//! node and a router are stands in their crates.

mod admin;
mod cli;
mod data;
mod doctor;
mod http;
mod local;
mod logging;
mod output;
mod process;
mod rebuild_map;
mod status;

use cli::{Cli, Command};
use std::{future::Future, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a command that failed, where 1 says "missing".
const EXIT_ERROR: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let process = cli.process_name();
    logging::start(&cli.log_level, &process);
    let failure = if matches!(cli.command, Command::Local(_) | Command::Node(_) | Command::Router(_)) {
        ExitCode::FAILURE
    } else {
        ExitCode::from(EXIT_ERROR)
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{process}: error: {error:#}");
            failure
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        // The supervisor's children die with the thread that made them, so it has but one, this one.
        Command::Local(options) => on_this_thread(local::run(options, &cli.log_level)),
        Command::Node(options) => {
            process::prepare(cli.supervisor_pid)?;
            kv_node::run(options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Router(options) => {
            process::prepare(cli.supervisor_pid)?;
            tokio::runtime::Runtime::new()?.block_on(kv_router::run(options))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(options) => on_this_thread(status::run(options)),
        Command::Admin { command } => on_this_thread(admin::run(command)),
        Command::Get(options) => on_this_thread(data::get(options)),
        Command::Put(options) => on_this_thread(data::put(options)),
        Command::Delete(options) => on_this_thread(data::delete(options)),
        Command::RebuildMap(options) => on_this_thread(rebuild_map::run(options)),
        Command::Doctor(options) => Ok(doctor::run(&options)),
    }
}

fn on_this_thread(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
