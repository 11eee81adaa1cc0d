//! What one request and its answer hold: bodies within limits, and the memory that they are counted against.
//!
//! # Invariants
//! * A body that is too long is refused by its announced length, or as soon as it goes past the limit.
//! * What requests and answers hold all together is bounded by the [`Budget`]; past it, requests are refused.
//! * An answer counts until its last byte was handed to the socket.

use super::{error::ApiError, watched_stream::Exchange};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use hyper::{
    Response, StatusCode,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use kv_proto::{ids::Version, response::Answered};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// An answer on its way out.
pub(super) type Reply = Response<Body>;

/// Bytes that requests and answers may hold all together.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    kib: Arc<Semaphore>,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Budget { kib: Arc::new(Semaphore::new(bytes / 1024)) }
    }

    /// Takes a part of the budget.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held, ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        match self.kib.clone().try_acquire_many_owned(kib) {
            Ok(permit) => Ok(Held { permit }),
            Err(_) => Err(ApiError::overloaded("the router holds as many bytes of requests and answers as it may")),
        }
    }

    /// Makes a part larger if it is smaller than `bytes`.
    pub(super) fn grow(&self, held: &mut Held, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(held.permit.num_permits() * 1024);
        held.permit.merge(self.hold(more)?.permit);
        Ok(())
    }
}

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPatience {
    /// From one piece to the next.
    pub(super) stall: Duration,
    /// From the first to the last.
    pub(super) whole: Duration,
}

impl Default for BodyPatience {
    fn default() -> Self {
        BodyPatience { stall: Duration::from_secs(10), whole: Duration::from_secs(60) }
    }
}

/// Reads a whole body of at most `limit` bytes. It is counted twice, because it is copied once on its way to a node.
pub(super) async fn read_body(
    mut body: Incoming,
    limit: usize,
    budget: &Budget,
    patience: BodyPatience,
) -> Result<(Bytes, Held), ApiError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::body_too_large(limit));
    }
    let mut held = budget.hold(0)?;
    let mut bytes = Vec::new();
    let end = Instant::now() + patience.whole;
    loop {
        let deadline = end.min(Instant::now() + patience.stall);
        let frame = match timeout_at(deadline, body.frame()).await {
            Ok(None) => return Ok((Bytes::from(bytes), held)),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let detail = format!("the body ended early or is malformed ({error}); nothing was applied");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", detail).closing());
            }
            Err(_) => {
                let detail = format!("the body stopped after {} bytes; nothing was applied", bytes.len());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail).closing());
            }
        };
        // Trailers carry nothing that is asked for.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        budget.grow(&mut held, 2 * (bytes.len() + data.len())).map_err(ApiError::closing)?;
        bytes.extend_from_slice(&data);
    }
}

/// Bodies are taken as they are: no compression is undone.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    for encoding in headers.get_all(CONTENT_ENCODING) {
        let identity =
            encoding.to_str().is_ok_and(|e| e.trim().is_empty() || e.trim().eq_ignore_ascii_case("identity"));
        if !identity {
            let detail = format!("content encoding {encoding:?} is not taken: send the body as it is");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", detail).closing());
        }
    }
    Ok(())
}

/// An answer with a body.
pub(super) fn reply(status: StatusCode, content_type: &str, body: Body) -> Reply {
    let mut reply = Reply::new(body);
    *reply.status_mut() = status;
    let content_type = HeaderValue::from_str(content_type);
    // A native client may have stored a content type that no HTTP header can carry.
    let content_type = content_type.unwrap_or(HeaderValue::from_static(super::value::BYTES));
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// Tells where the answer comes from.
pub(super) fn insert_origin(headers: &mut HeaderMap, version: Version, at: Answered) {
    let texts = [
        ("kv-version", version.to_string()),
        ("kv-partition", at.partition.to_string()),
        ("kv-epoch", at.epoch.to_string()),
    ];
    for (name, text) in texts {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The body of an answer: all in one piece, or nothing.
#[derive(Debug, Default)]
pub(super) struct Body {
    piece: Piece,
}

/// The bytes, and what ends when the last of them was handed to the socket.
#[derive(Debug, Default)]
pub(super) struct Piece {
    bytes: Bytes,
    held: Option<Held>,
    exchange: Option<Exchange>,
}

impl Body {
    /// Counts the body against the budget.
    pub(super) fn holding(mut self, held: Held) -> Self {
        self.piece.held = Some(held);
        self
    }

    /// The body, as the last part of an exchange.
    pub(super) fn ending(mut self, exchange: Exchange) -> Self {
        self.piece.exchange = Some(exchange);
        self
    }
}

impl<B: Into<Bytes>> From<B> for Body {
    fn from(bytes: B) -> Self {
        Body { piece: Piece { bytes: bytes.into(), held: None, exchange: None } }
    }
}

impl HttpBody for Body {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let piece = std::mem::take(&mut self.get_mut().piece);
        Poll::Ready(piece.has_remaining().then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        !self.piece.has_remaining()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.piece.remaining() as u64)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_bounds_what_is_held() {
        let budget = Budget::new(10 * 1024);
        let mut held = budget.hold(1).expect("1 KiB");
        let other = budget.hold(8 * 1024).expect("8 KiB more");
        budget.grow(&mut held, 2 * 1024).expect("the last");
        budget.grow(&mut held, 2 * 1024).expect("it has that already");
        assert_eq!(budget.grow(&mut held, 2049).expect_err("none left").status, StatusCode::TOO_MANY_REQUESTS);
        drop(other);
        budget.grow(&mut held, 10 * 1024).expect("given back");
        assert!(budget.hold(1).is_err());
        drop(held);
        assert!(budget.hold(10 * 1024).is_ok());
        assert!(budget.hold(usize::MAX).is_err());
    }

    #[test]
    fn an_answer_is_held_until_its_last_byte_is_gone() {
        let budget = Budget::new(1024);
        let mut body = Body::from("ab").holding(budget.hold(2).expect("free"));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else { panic!("a frame") };
        drop(body);
        assert!(budget.hold(1).is_err(), "the piece is not written yet");
        drop(frame);
        assert!(budget.hold(1).is_ok());
    }

    #[test]
    fn encodings() {
        let headers = |value: &str| HeaderMap::from_iter([(CONTENT_ENCODING, value.parse().expect("a value"))]);
        for good in ["identity", "Identity", ""] {
            assert!(check_encoding(&headers(good)).is_ok(), "{good}");
        }
        for bad in ["gzip", "br", "identity, gzip"] {
            assert_eq!(check_encoding(&headers(bad)).expect_err(bad).status.as_u16(), 415);
        }
        assert!(check_encoding(&HeaderMap::new()).is_ok());
    }
}
