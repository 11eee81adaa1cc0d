//! What a node asks of the operating system, beside sockets and rings.

use rustix::process::{Pid, Resource, Rlimit, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs::File,
    io::{self, Read},
    net::{SocketAddr, TcpListener},
    thread,
};

/// Connections that the kernel keeps for the node until it accepts them.
const BACKLOG: i32 = 4096;

/// Has the kernel end this process when its supervisor dies, however it dies.
pub(crate) fn die_with(supervisor: Option<i32>) -> io::Result<()> {
    let Some(supervisor) = supervisor else { return Ok(()) };
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have died before the kernel was asked.
    if getppid().map(Pid::as_raw_nonzero).map(Into::into) != Some(supervisor) {
        return Err(io::Error::other(format!("process {supervisor} is not this one's parent, or is gone")));
    }
    Ok(())
}

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// Lets the process open as many files as it is allowed to.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Listens on an address that no other process listens on.
///
/// One socket serves all executors. Sockets of their own (SO_REUSEPORT) would let a second process take a share of
/// the connections silently.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sixteen bytes that nobody else has.
pub(crate) fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Calls `stop` at the first SIGTERM or SIGINT.
pub(crate) fn on_stop_signal(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop();
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_never_shared_silently() {
        let first = listen("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = first.local_addr().expect("bound");
        assert_eq!(listen(address).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
    }
}
