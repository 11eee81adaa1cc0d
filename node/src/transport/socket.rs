//! A socket of an executor: read and written directly, without waiting, and armed on the ring while nothing comes.
//!
//! Reading directly (`recv` with MSG_DONTWAIT) costs half of what a read through the ring does, since the ring arms
//! a poll for each. So the ring is used only to learn that an idle socket has something again.

use glommio::net::TcpStream;
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    io::{Errno, fcntl_dupfd_cloexec},
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};
use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    rc::Rc,
};

/// A TCP socket; clones are the same socket, closed when the last is dropped.
#[derive(Clone)]
pub(crate) struct Socket(Rc<TcpStream>);

/// What a read or write without waiting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// That many bytes.
    Bytes(usize),
    /// None now; there may be some later.
    WouldBlock,
    /// None ever: the other end closed, or the connection is broken.
    Closed,
}

impl From<Result<usize, Errno>> for Moved {
    fn from(result: Result<usize, Errno>) -> Self {
        match result {
            Ok(0) => Moved::Closed,
            Ok(n) => Moved::Bytes(n),
            Err(Errno::AGAIN | Errno::INTR) => Moved::WouldBlock,
            Err(_) => Moved::Closed,
        }
    }
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Answers are written whole, so that nothing is gained by waiting for more. A socket that cannot be told so
        // is broken, which its first read will say.
        let _ = stream.set_nodelay(true);
        Socket(Rc::new(stream))
    }

    /// A socket that another executor gave up.
    pub(crate) fn adopt(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned and passed on, so that the stream becomes its only owner; it is a
        // connected TCP socket, since `give_up` made it from one.
        Socket::new(unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) })
    }

    /// A descriptor of the same connection, for another executor. This one is to be dropped.
    pub(crate) fn give_up(&self) -> Result<OwnedFd, Errno> {
        fcntl_dupfd_cloexec(self.fd(), 0)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and lives as long as the borrow, which is that of `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// Reads what is there.
    pub(crate) fn receive(&self, into: &mut [u8]) -> Moved {
        debug_assert!(!into.is_empty());
        recv(self.fd(), into, RecvFlags::DONTWAIT).map(|(n, _)| n).into()
    }

    /// Writes what fits.
    pub(crate) fn send(&self, bytes: &[u8]) -> Moved {
        debug_assert!(!bytes.is_empty());
        send(self.fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).into()
    }

    /// Waits, on the ring, until there is something to read or the connection is closed.
    pub(crate) async fn readable(&self) {
        let mut byte = [0];
        // Either way the next direct read tells what happened.
        let _ = self.0.peek(&mut byte).await;
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end_output(&self) {
        let _ = shutdown(self.fd(), Shutdown::Write);
    }

    /// Ends the connection: what waits for it to be readable is woken.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(self.fd(), Shutdown::Both);
    }

    /// The address at the other end.
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        self.0.peer_addr().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream as StdStream},
    };

    #[test]
    fn a_socket_moves_between_executors_with_its_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = StdStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (server, _) = listener.accept().expect("accepts");
        client.write_all(b"early").expect("writes");
        let executor = || LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 * 1024);
        let fd = executor()
            .spawn(move || async move {
                let socket = Socket::adopt(server.into());
                socket.readable().await;
                socket.give_up().expect("a descriptor")
            })
            .expect("an executor")
            .join()
            .expect("runs");
        executor()
            .spawn(move || async move {
                let socket = Socket::adopt(fd);
                socket.readable().await;
                let mut buffer = [0; 16];
                assert_eq!(socket.receive(&mut buffer), Moved::Bytes(5));
                assert_eq!(&buffer[..5], b"early");
                assert_eq!(socket.receive(&mut buffer), Moved::WouldBlock);
                assert_eq!(socket.send(b"answer"), Moved::Bytes(6));
                socket.shut_down();
                assert_eq!(socket.receive(&mut buffer), Moved::Closed);
            })
            .expect("an executor")
            .join()
            .expect("runs");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("reads to the end");
        assert_eq!(answer, "answer");
    }
}
