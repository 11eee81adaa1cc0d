//! What a node and a router ask of the operating system before they start.

use anyhow::{Context, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

/// Prepares this process to serve; with a supervisor, to end when that ends.
pub(crate) fn prepare(supervisor: Option<i32>) -> anyhow::Result<()> {
    if let Some(supervisor) = supervisor {
        set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the supervisor")?;
        // It may have ended before the kernel was asked; then somebody else is the parent, or nobody.
        if getppid().map(Pid::as_raw_pid) != Some(supervisor) {
            bail!("the supervisor, process {supervisor}, is gone");
        }
    }
    raise_open_files();
    Ok(())
}

/// Lets the process open as many files as it is allowed to.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
}
