//! What a node asks of the operating system, beside sockets and rings.

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

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
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

/// Calls `stop` at every SIGTERM, with true, and every SIGINT, with false.
pub(crate) fn on_stop_signal(stop: impl Fn(bool) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            stop(signal == SIGTERM);
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
