//! Where answers end: heads, bodies with a length, bodies in chunks (RFC 9112).
//!
//! # Invariants
//! * Nothing is allocated for a length that was told; chunks are gathered as they come, up to a limit.
//! * A head is parsed once it is complete, and not again while its body comes.

use crate::target::{
    stream::MAX_REPLY_BYTES,
    text::{self, decimal, shown},
};
use httparse::{EMPTY_HEADER, Header, Status};
use kv_client::proto::ids::{HistoryId, Lsn, Version};

/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most headers of an answer.
const MAX_HEADERS: usize = 100;
/// A body in chunks that was longer than this is given back.
const KEEP_BYTES: usize = 1024 * 1024;

/// A complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
    /// Of the `ETag`, if it is one of this project's.
    pub(super) version: Option<Version>,
    pub(super) retry_after: bool,
    /// The connection ends with this answer.
    pub(super) closes: bool,
}

/// Answers that come one after the other.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// What comes next, behind a head; `None` before one.
    current: Option<(Head, Part)>,
    /// What came of a body in chunks.
    chunks: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    version: Option<Version>,
    retry_after: bool,
    closes: bool,
}

/// What of a body comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole(usize),
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(usize),
    ChunkEnd,
    /// Headers behind the last chunk.
    Trailers,
}

impl Messages {
    /// Takes from the front of `bytes` as much as makes one answer, or is of no use any more: how much that was, and the answer
    /// if it is complete.
    pub(super) fn take<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Option<Answer<'a>>), String> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let Some((head, part)) = self.current else {
                let Some((length, head, part)) = parse_head(rest)? else { return Ok((used, None)) };
                used += length;
                // 1xx only announce the answer.
                if head.status >= 200 {
                    self.begin_body();
                    self.current = Some((head, part));
                }
                continue;
            };
            let next = match part {
                Part::Whole(length) => {
                    let Some(body) = rest.get(..length) else { return Ok((used, None)) };
                    self.current = None;
                    return Ok((used + length, Some(head.with(body))));
                }
                Part::ChunkSize => match parse_chunk_size(rest)? {
                    None => return Ok((used, None)),
                    Some((length, 0)) => (length, Part::Trailers),
                    Some((length, size)) if size <= MAX_REPLY_BYTES - self.chunks.len() => (length, Part::Chunk(size)),
                    Some(_) => {
                        return Err(format!("a body is longer than {MAX_REPLY_BYTES} bytes, the most that is taken"));
                    }
                },
                Part::Chunk(size) => {
                    let here = size.min(rest.len());
                    self.chunks.extend_from_slice(&rest[..here]);
                    (here, if here < size { Part::Chunk(size - here) } else { Part::ChunkEnd })
                }
                Part::ChunkEnd => match rest.get(..2) {
                    Some(b"\r\n") => (2, Part::ChunkSize),
                    Some(other) => return Err(format!("a chunk is followed by {}", shown(other))),
                    None => return Ok((used, None)),
                },
                Part::Trailers => match text::line(rest)? {
                    Some((b"", length)) => {
                        self.current = None;
                        return Ok((used + length, Some(head.with(&self.chunks))));
                    }
                    Some((_, length)) => (length, Part::Trailers),
                    None => return Ok((used, None)),
                },
            };
            self.current = Some((head, next.1));
            used += next.0;
            if rest.is_empty() {
                return Ok((used, None));
            }
        }
    }

    fn begin_body(&mut self) {
        self.chunks.clear();
        if self.chunks.capacity() > KEEP_BYTES {
            self.chunks = Vec::new();
        }
    }
}

impl Head {
    fn with(self, body: &[u8]) -> Answer<'_> {
        let Head { status, version, retry_after, closes } = self;
        Answer { status, body, version, retry_after, closes }
    }
}

/// A head, its length, and what follows it.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head, Part)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let not_http = |e| format!("{} is no head of an HTTP answer: {e}", shown(bytes));
    let length = match response.parse(bytes).map_err(not_http)? {
        Status::Complete(length) if length <= MAX_HEAD_BYTES => length,
        Status::Partial if bytes.len() <= MAX_HEAD_BYTES => return Ok(None),
        _ => return Err(format!("the head of an answer is longer than {MAX_HEAD_BYTES} bytes")),
    };
    let status = response.code.unwrap_or_default();
    if status < 200 && status != 100 && status != 102 && status != 103 {
        return Err(format!("status {status} is none that an answer can have"));
    }
    let mut head = Head { status, version: None, retry_after: false, closes: response.version == Some(0) };
    let (mut told_length, mut chunked) = (None, false);
    for Header { name, value } in response.headers.iter() {
        if name.eq_ignore_ascii_case("content-length") {
            let length = text::length(value.trim_ascii())?;
            if told_length.is_some_and(|told| told != length) {
                return Err("an answer tells two lengths".to_owned());
            }
            told_length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(format!("the transfer encoding {} is not known here, only chunked", shown(value)));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    head.closes = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    head.closes = false;
                }
            }
        } else if name.eq_ignore_ascii_case("etag") {
            head.version = version(value);
        } else if name.eq_ignore_ascii_case("retry-after") {
            head.retry_after = true;
        }
    }
    let part = match (status, told_length) {
        (..200 | 204 | 304, _) => Part::Whole(0),
        _ if chunked => Part::ChunkSize,
        (_, Some(length)) => Part::Whole(length),
        (_, None) => {
            return Err(format!(
                "an answer with status {status} has neither Content-Length nor chunks, so that its end is not known"
            ));
        }
    };
    Ok(Some((length, head, part)))
}

/// The version that an `ETag` is: `"HISTORY-LSN"`, by digits alone.
fn version(etag: &[u8]) -> Option<Version> {
    let inner = etag.trim_ascii().strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let dash = inner.iter().position(|b| *b == b'-')?;
    let (history, lsn) = (decimal(&inner[..dash])?, decimal(&inner[dash + 1..])?);
    Some(Version { history: HistoryId(u32::try_from(history).ok()?), lsn: Lsn(lsn) })
}

/// The line before a chunk: its length, and the chunk's.
fn parse_chunk_size(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let Some((line, length)) = text::line(bytes)? else { return Ok(None) };
    let none = || format!("{} is no length of a chunk", shown(line));
    match httparse::parse_chunk_size(&bytes[..length]) {
        Ok(Status::Complete((_, size))) => Ok(Some((length, usize::try_from(size).map_err(|_| none())?))),
        Ok(Status::Partial) | Err(_) => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of `bytes` that are fed in pieces.
    fn answers(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let (mut messages, mut buffer, mut out) = (Messages::default(), Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                let (used, answer) = messages.take(&buffer)?;
                let more = answer.is_some();
                out.extend(answer.map(|a| {
                    let version = a.version.map_or(String::new(), |v| format!(" {v}"));
                    let flags =
                        [(a.retry_after, " later"), (a.closes, " closes")].map(|(is, flag)| if is { flag } else { "" });
                    format!("{} {}{version}{}{}", a.status, a.body.escape_ascii(), flags[0], flags[1])
                }));
                buffer.drain(..used);
                if !more {
                    break;
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn answers_end_where_they_say_however_they_are_cut() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", &["200 abc"][..]),
            ("HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\nHTTP/1.1 204 No\r\n\r\n", &["200 ", "204 "]),
            ("HTTP/1.1 204 No Content\r\nETag: \"3-17\"\r\nContent-Length: 9\r\n\r\n", &["204  3-17"]),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", &["304 "]),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", &["200 x"]),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                &["200 abc0123456789"],
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 1\r\n\r\n0\r\nA: b\r\n\r\nHTTP/1.0 404 \r\nContent-Length: 0\r\n\r\n",
                &["200 ", "404  closes"],
            ),
            (
                "HTTP/1.1 503 No\r\nRetry-After: 1\r\nConnection: x, Close\r\nContent-Length: 1\r\n\r\n!",
                &["503 ! later closes"],
            ),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nETag: W/\"3-17\"\r\nContent-Length: 1\r\n\r\n1", &["200 1"]),
        ] {
            let bytes = bytes.as_bytes();
            assert_eq!(answers(&[bytes]), Ok(expected.iter().map(ToString::to_string).collect()));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(answers(&single), answers(&[bytes]));
            for cut in 0..bytes.len() {
                assert_eq!(answers(&[&bytes[..cut], &bytes[cut..]]), answers(&[bytes]), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_told_and_its_lengths_are_not_believed() {
        for bytes in [
            "+OK\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        ] {
            assert!(answers(&[bytes.as_bytes()]).is_err(), "{bytes:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(MAX_HEAD_BYTES));
        assert!(answers(&[endless.as_bytes()]).is_err());
        let mut messages = Messages::default();
        let chunk = [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3ffffff\r\n"[..], b"x"].concat();
        assert_eq!(messages.take(&chunk), Ok((chunk.len(), None)));
        assert!(messages.chunks.capacity() < 1024, "made for what came, not for what was announced");
    }

    #[test]
    fn only_etags_of_this_project_are_versions() {
        for (etag, expected) in [
            ("\"0-17\"", Some("0-17")),
            (" \"4294967295-18446744073709551615\" ", Some("4294967295-18446744073709551615")),
            ("W/\"0-17\"", None),
            ("0-17", None),
            ("\"0-17", None),
            ("\"abc\"", None),
            ("\"4294967296-1\"", None),
            ("\"", None),
        ] {
            assert_eq!(version(etag.as_bytes()).map(|v| v.to_string()).as_deref(), expected, "{etag}");
        }
    }
}
