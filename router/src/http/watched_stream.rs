//! A socket that is given up when the other end does not keep to its time.
//!
//! hyper's own timer for headers also runs while a connection that is kept alive has nothing to say, so that waiting for a
//! request and waiting for the rest of one could not have different times. This one tells them apart:
//!
//! | the connection | may take |
//! |---|---|
//! | has sent a part of a request's head | [`Patience::head`] since its first byte |
//! | has nothing to say | [`Patience::idle`] since the last byte, either way |
//! | is being served | [`Patience::stall`] since the last byte, either way |
//! | leaves a part of an answer unread | besides, [`Patience::backlog`] since then, longer by what it reads meanwhile |

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// For each so many bytes that the other end reads of an answer, it has a second more; who reads faster than this on the
/// whole has all the time that it needs.
const SLOWEST_BYTES_PER_S: u64 = 16 * 1024;

/// How long the other end may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the head of a request.
    pub(super) head: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// For a byte more of a body or an answer.
    pub(super) stall: Duration,
    /// For an answer that it reads slower than [`SLOWEST_BYTES_PER_S`]: without this, a byte now and then would hold
    /// the answer for ever.
    pub(super) backlog: Duration,
}

/// Counts the requests of one connection; shared by its stream and its service.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchanges {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request that is being served; dropped with the last byte of its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    of: Exchanges,
}

impl Exchanges {
    /// The head of a request is complete.
    pub(super) fn begin(&self) -> Exchange {
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        Exchange { of: self.clone() }
    }

    fn begun(&self) -> u64 {
        self.counts.begun.load(Ordering::Relaxed)
    }

    fn is_serving(&self) -> bool {
        self.begun() != self.counts.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.of.counts.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer of which the socket has not taken everything.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    since: Instant,
    /// Bytes that were taken since then.
    taken: u64,
}

/// The socket.
#[derive(Debug)]
pub(super) struct WatchedStream<S> {
    inner: S,
    exchanges: Exchanges,
    patience: Patience,
    /// How many requests had begun when the stream last looked.
    seen: u64,
    /// When the first byte of a head came that is not complete.
    head_since: Option<Instant>,
    last_byte: Instant,
    backlog: Option<Backlog>,
    timer: Pin<Box<Sleep>>,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(inner: S, exchanges: Exchanges, patience: Patience) -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + patience.idle));
        WatchedStream { inner, exchanges, patience, seen: 0, head_since: None, last_byte: now, backlog: None, timer }
    }

    /// Whether it was given up in the middle of a head; and the socket.
    pub(super) fn into_inner(mut self) -> (bool, S) {
        self.notice_exchanges();
        let late = self.head_since.is_some_and(|since| since + self.patience.head <= Instant::now());
        (late, self.inner)
    }

    fn notice_exchanges(&mut self) {
        let begun = self.exchanges.begun();
        if begun != self.seen {
            self.seen = begun;
            self.head_since = None;
        }
    }

    /// Ready when the other end has had its time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.notice_exchanges();
        let mut end = match self.head_since {
            _ if self.exchanges.is_serving() => {
                (self.last_byte + self.patience.stall, "a byte of the body or the answer")
            }
            Some(since) => (since + self.patience.head, "the rest of the head"),
            None => (self.last_byte + self.patience.idle, "a request"),
        };
        if let Some(Backlog { since, taken }) = self.backlog {
            let time = self.patience.backlog + Duration::from_millis(taken * 1000 / SLOWEST_BYTES_PER_S);
            end = end.min((since + time, "the answer to be read"));
        }
        let (deadline, what) = end;
        loop {
            // Moving the timer costs more than letting it ring too early, so it is moved only to be in time.
            if self.timer.deadline() > deadline {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, format!("waited too long for {what}")));
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// The result of an operation on the socket, or the end of patience if there is none.
    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(result) => {
                self.last_byte = Instant::now();
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_late(cx).map(Err),
        }
    }

    fn watch_write(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match (&result, &mut self.backlog) {
            (Poll::Pending, None) => self.backlog = Some(Backlog { since: Instant::now(), taken: 0 }),
            (Poll::Ready(Ok(count)), Some(backlog)) => backlog.taken += *count as u64,
            _ => {}
        }
        self.watch(cx, result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        let result = this.watch(cx, result);
        this.notice_exchanges();
        if buf.filled().len() > before && !this.exchanges.is_serving() {
            this.head_since.get_or_insert(this.last_byte);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.watch_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.watch_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes once it has written all that it has.
        this.backlog = None;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(30),
        backlog: Duration::from_secs(45),
    };

    fn watched() -> (DuplexStream, WatchedStream<DuplexStream>, Exchanges) {
        let (peer, inner) = duplex(16);
        let exchanges = Exchanges::default();
        (peer, WatchedStream::new(inner, exchanges.clone(), PATIENCE), exchanges)
    }

    /// How many seconds the next read takes until it is given up.
    async fn given_up_after(stream: &mut WatchedStream<DuplexStream>) -> u64 {
        let start = Instant::now();
        let error = stream.read_u8().await.expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_idle() {
        let (_peer, mut stream, _) = watched();
        assert_eq!(given_up_after(&mut stream).await, 60);
        assert!(!stream.into_inner().0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_the_first_byte_however_slowly_it_comes() {
        let (mut peer, mut stream, _) = watched();
        let start = Instant::now();
        tokio::spawn(async move {
            while peer.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let error = loop {
            if let Err(error) = stream.read_u8().await {
                break error;
            }
        };
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5));
        assert!(stream.into_inner().0, "late in its head");
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_exchange_the_connection_is_idle_again() {
        let (mut peer, mut stream, exchanges) = watched();
        for _ in 0..3 {
            peer.write_u8(b'x').await.expect("room");
            stream.read_u8().await.expect("a byte");
            drop(exchanges.begin());
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
        assert_eq!(given_up_after(&mut stream).await, 10);
        assert!(!stream.into_inner().0);
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_served_a_connection_has_the_time_of_a_stall() {
        let (mut peer, mut stream, exchanges) = watched();
        peer.write_u8(b'x').await.expect("room");
        stream.read_u8().await.expect("a byte");
        let exchange = exchanges.begin();
        assert_eq!(given_up_after(&mut stream).await, 30);
        drop(exchange);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_given_up() {
        let (_peer, mut stream, exchanges) = watched();
        let _exchange = exchanges.begin();
        let start = Instant::now();
        let error = stream.write_all(&[0; 100]).await.expect_err("16 bytes fit");
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
    }

    /// Reads `bytes` every second, for ever.
    fn read_slowly(mut peer: DuplexStream, bytes: usize) {
        tokio::spawn(async move {
            let mut buffer = vec![0; bytes];
            while peer.read_exact(&mut buffer).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_byte_by_byte_is_given_up() {
        let (peer, mut stream, exchanges) = watched();
        let _exchange = exchanges.begin();
        read_slowly(peer, 1);
        let start = Instant::now();
        let error = stream.write_all(&[0; 1000]).await.expect_err("it would take 984 s");
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 45));
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_has_its_time() {
        let (peer, mut stream, exchanges) = watched();
        read_slowly(peer, 1);
        for _ in 0..4 {
            let _exchange = exchanges.begin();
            stream.write_all(&[0; 40]).await.expect("40 s at most");
            stream.flush().await.expect("nothing is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_but_fast_enough_gets_the_longest_answer() {
        let (peer, inner) = duplex(64 * 1024);
        let exchanges = Exchanges::default();
        let mut stream = WatchedStream::new(inner, exchanges.clone(), PATIENCE);
        let _exchange = exchanges.begin();
        read_slowly(peer, SLOWEST_BYTES_PER_S as usize);
        let start = Instant::now();
        stream.write_all(&vec![0; 6 * 16 * 1024 * 1024]).await.expect("in time");
        assert!(start.elapsed() > Duration::from_secs(6000), "{:?}", start.elapsed());
    }
}
