//! The HTTP listener: sockets in, requests to [`Api`].
//!
//! # Invariants
//! * Connections are bounded; one more is told so by 503 and closed.
//! * Nobody holds a connection by saying nothing: see `watched_stream.rs` for heads and silence, `exchange.rs` for
//!   bodies.
//! * A last answer is read before the connection closes, even if a part of the request was not.

use super::{
    Api, head,
    watched_stream::{Exchanges, Patience, WatchedStream},
};
use crate::accept::{next_connection, stopped};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::poll_fn, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

/// Most connections that are being told that there are too many.
const MAX_REJECTIONS: usize = 64;
/// How long requests may go on after the router was asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, the other end may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-length: 194\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"the router has as many \
    connections as it takes\",\"code\":\"too_many_connections\",\"outcome\":\"not_applied\",\"retryable\":true}";
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\n\
    connection: close\r\ncontent-length: 180\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"the head of the request did not \
    come in time\",\"code\":\"head_timeout\",\"outcome\":\"not_applied\",\"retryable\":true}";

/// What the listener is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) max_connections: usize,
    /// How long an answer may be in the making.
    pub(crate) deadline: Duration,
}

/// Accepts connections until `stop` says so, then lets requests come to their end.
pub(crate) async fn serve(listener: TcpListener, api: Api, settings: Settings, mut stop: watch::Receiver<bool>) {
    let patience = Patience {
        head: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        // A connection whose request waits for the cluster is not stalled.
        stall: Duration::from_secs(60).max(settings.deadline + Duration::from_secs(10)),
        backlog: Duration::from_secs(60),
    };
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
    let mut connections = JoinSet::new();
    while let Some(stream) = next_connection(&listener, &mut connections, &mut stop).await {
        if let Ok(place) = places.clone().try_acquire_owned() {
            let (api, stop) = (api.clone(), stop.clone());
            connections.spawn(async move {
                let _place = place;
                serve_connection(stream, api, patience, stop).await;
            });
        } else if let Ok(rejection) = rejections.clone().try_acquire_owned() {
            connections.spawn(async move {
                let _rejection = rejection;
                say_goodbye(stream, TOO_MANY).await;
            });
        }
    }
    drop(listener);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut: their requests took too long to end");
    }
}

async fn serve_connection(stream: TcpStream, api: Api, patience: Patience, mut stop: watch::Receiver<bool>) {
    let exchanges = Exchanges::default();
    let stream = TokioIo::new(WatchedStream::new(stream, exchanges.clone(), patience));
    let service = service_fn(move |request| {
        let (api, exchange) = (api.clone(), exchanges.begin());
        Box::pin(async move { Ok::<_, Infallible>(api.handle(request, exchange).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_header_size(head::PARSER_MAX_BYTES)
        .max_headers(head::PARSER_MAX_HEADERS)
        // hyper's `pipeline_flush` stays off: it keeps back the last answer while unread bytes of the request remain.
        // Whoever closes its half after the request, as `nc -N` does, still gets the answer.
        .half_close(true)
        .serve_connection(stream, service);
    let mut stopping = false;
    let result = loop {
        let ended = tokio::select! {
            result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(result),
            () = stopped(&mut stop), if !stopping => None,
        };
        match ended {
            Some(result) => break result,
            None => {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection ended badly");
    }
    let (late, stream) = connection.into_parts().io.into_inner().into_inner();
    say_goodbye(stream, if late { HEAD_TIMEOUT } else { b"" }).await;
}

/// Closes a connection in such a way that what was sent last arrives: bytes that the other end still sends would
/// otherwise reset the connection, and the answer be lost with it.
async fn say_goodbye(mut stream: TcpStream, last_words: &[u8]) {
    let goodbye = async {
        stream.write_all(last_words).await?;
        stream.shutdown().await?;
        let (mut rest, mut read) = ([0; 4096], 0);
        while read < LINGER_BYTES {
            match stream.read(&mut rest).await? {
                0 => break,
                n => read += n,
            }
        }
        std::io::Result::Ok(())
    };
    // Best effort: the other end may be gone.
    let _ = timeout(LINGER, goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_answers_have_the_length_that_they_tell() {
        for answer in [TOO_MANY, HEAD_TIMEOUT] {
            let text = std::str::from_utf8(answer).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            let length = head.split_once("content-length: ").expect("a length").1;
            assert_eq!(length.parse(), Ok(body.len()), "{head}");
            serde_json::from_str::<serde_json::Value>(body).expect("JSON");
        }
    }
}
