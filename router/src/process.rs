//! What the router asks of the operating system for its own process.

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Has the kernel end this process when its supervisor ends, however it ends. False says that it is gone already.
pub(crate) fn follow_supervisor(pid: i32) -> std::io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The supervisor may have ended before the line above; then somebody else is the parent, or nobody.
    Ok(getppid().map(Pid::as_raw_pid) == Some(pid))
}

/// Raises the number of files that the process may have open as far as it is allowed to, and returns it.
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// Waits until the process is asked to stop: SIGTERM or SIGINT.
pub(crate) async fn asked_to_stop() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    Ok(())
}
