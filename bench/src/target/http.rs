//! HTTP/1.1 with keep-alive and pipelining, and the two APIs that are spoken over it.
//!
//! Answers come in the order of the requests. Heads are parsed by `httparse`, which is what hyper uses; `messages` finds where each
//! answer ends, `json` knows the bodies. Needs no client library: those make a future for each request.
//!
//! What a failed request means is told by `code` and `outcome` in the body of its answer, as this project's router sends them; where they are
//! missing, by the status: 4xx, and 503 with `Retry-After`, have not applied a write; any other 5xx may have.

mod json;
mod messages;

use super::{Codec, Offers, Reply, Request, text::append_decimal};
use kv_client::{Address, proto::ids::Version};
use messages::{Answer, Messages};
use std::{borrow::Cow, collections::VecDeque, io::Write as _};

/// Which API is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpApi {
    /// `/put`, `/get` and `/delete`, with JSON. Keys and values must be UTF-8; what is not is refused by the target.
    Documented,
    /// `/v1/kv/KEY`, with bytes and ETags.
    V1,
}

impl HttpApi {
    pub(super) fn offers(self) -> Offers {
        let versions = self == HttpApi::V1;
        Offers { conditions: versions, increment: false, ordered_versions: versions, operation_ids: false }
    }
}

/// HTTP's bytes.
#[derive(Debug)]
pub(crate) struct HttpCodec {
    api: HttpApi,
    /// What follows the path in every request.
    version_and_host: Vec<u8>,
    expected: VecDeque<Expected>,
    messages: Messages,
    is_closing: bool,
    /// Values that cannot be handed over as they were sent.
    unescaped: Vec<u8>,
}

/// A request that is not answered.
#[derive(Clone, Copy, Debug)]
struct Expected {
    tag: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    Put { conditional: bool },
    Delete,
}

impl HttpCodec {
    pub(crate) fn new(address: &Address, api: HttpApi) -> HttpCodec {
        HttpCodec {
            api,
            version_and_host: format!(" HTTP/1.1\r\nHost: {address}\r\n").into_bytes(),
            expected: VecDeque::new(),
            messages: Messages::default(),
            is_closing: false,
            unescaped: Vec::new(),
        }
    }

    fn encode_documented(&self, out: &mut Vec<u8>, request: &Request<'_>) {
        match *request {
            Request::Get { key } => {
                self.append_head(out, "GET /get?key=", key);
                out.extend_from_slice(b"\r\n");
            }
            Request::Delete { key, .. } => {
                self.append_head(out, "DELETE /delete?key=", key);
                out.extend_from_slice(b"\r\n");
            }
            Request::Put { key, value, .. } => {
                self.append_head(out, "POST /put", b"");
                out.extend_from_slice(b"Content-Type: application/json\r\n");
                append_length(out, json::put_length(key, value));
                json::append_put(out, key, value);
            }
            Request::Increment { .. } => unreachable!("no HTTP API offers it"),
        }
    }

    fn encode_v1(&self, out: &mut Vec<u8>, request: &Request<'_>) {
        match *request {
            Request::Get { key } => {
                self.append_head(out, "GET /v1/kv/", key);
                out.extend_from_slice(b"\r\n");
            }
            Request::Delete { key, .. } => {
                self.append_head(out, "DELETE /v1/kv/", key);
                out.extend_from_slice(b"\r\n");
            }
            Request::Put { key, value, only_if, .. } => {
                self.append_head(out, "PUT /v1/kv/", key);
                if let Some(version) = only_if {
                    write!(out, "If-Match: \"{version}\"\r\n").expect("memory takes all");
                }
                append_length(out, value.len());
                out.extend_from_slice(value);
            }
            Request::Increment { .. } => unreachable!("no HTTP API offers it"),
        }
    }

    fn append_head(&self, out: &mut Vec<u8>, method_and_path: &str, key: &[u8]) {
        out.extend_from_slice(method_and_path.as_bytes());
        append_percent_encoded(out, key);
        out.extend_from_slice(&self.version_and_host);
    }
}

impl Codec for HttpCodec {
    /// A question for a key, which every web server answers somehow: so it is known before the load whether this is one.
    fn greeting(&self) -> Option<Vec<u8>> {
        let (mut out, question) = (Vec::new(), Request::Get { key: b"kvbench" });
        match self.api {
            HttpApi::Documented => self.encode_documented(&mut out, &question),
            HttpApi::V1 => self.encode_v1(&mut out, &question),
        }
        Some(out)
    }

    fn greeted(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        if self.expected.is_empty() {
            self.expected.push_back(Expected { tag: 0, kind: Kind::Get });
        }
        let mut is_answered = false;
        let used = self.decode(bytes, &mut |_, _| is_answered = true);
        let used = used.map_err(|cause| format!("{cause}; is this a web server?"))?;
        Ok(is_answered.then_some(used))
    }

    fn encode(&mut self, out: &mut Vec<u8>, tag: u64, request: &Request<'_>) {
        match self.api {
            HttpApi::Documented => self.encode_documented(out, request),
            HttpApi::V1 => self.encode_v1(out, request),
        }
        let kind = match request {
            Request::Put { only_if, .. } => Kind::Put { conditional: only_if.is_some() },
            Request::Delete { .. } => Kind::Delete,
            _ => Kind::Get,
        };
        self.expected.push_back(Expected { tag, kind });
    }

    fn decode(&mut self, bytes: &[u8], on_reply: &mut dyn FnMut(u64, Reply<'_>)) -> Result<usize, String> {
        let mut used = 0;
        while !self.is_closing {
            let (length, answer) = self.messages.take(&bytes[used..])?;
            used += length;
            let Some(answer) = answer else { return Ok(used) };
            self.is_closing = answer.closes;
            let Some(expected) = self.expected.pop_front() else {
                return Err(format!("an answer came that nobody asked for: {}", answer.status));
            };
            on_reply(expected.tag, reply(self.api, expected.kind, &answer, &mut self.unescaped)?);
        }
        // Nothing that follows the last answer is one.
        Ok(bytes.len())
    }

    fn is_closing(&self) -> bool {
        self.is_closing
    }
}

/// What an answer says. What is no answer of this API breaks the connection if it pretends to be one.
fn reply<'a>(api: HttpApi, kind: Kind, answer: &Answer<'a>, unescaped: &'a mut Vec<u8>) -> Result<Reply<'a>, String> {
    let Answer { status, version, body, .. } = *answer;
    let version: Option<Version> = version.filter(|_| api == HttpApi::V1);
    Ok(match (kind, status) {
        (Kind::Get, 200) if api == HttpApi::V1 => Reply::Value { value: body, version },
        (Kind::Get, 200) => Reply::Value { value: json::value(body, unescaped)?, version },
        (Kind::Put { .. } | Kind::Delete, 200..=299) => Reply::Written { version },
        (Kind::Put { conditional: true }, 412) => Reply::Conflict,
        _ => {
            let told = json::Told::of(body);
            if status == 404 && kind.may_miss() && told.is_of_a_missing_key() {
                return Ok(Reply::Missing);
            }
            let unknown = kind != Kind::Get
                && match told.outcome.as_deref() {
                    Some("unknown") => true,
                    Some("not_applied") => false,
                    _ => status >= 500 && !(status == 503 && answer.retry_after),
                };
            Reply::Failed { code: told.code().unwrap_or_else(|| Cow::Owned(format!("http_{status}"))), unknown }
        }
    })
}

impl Kind {
    /// Whether that there is no value is a good answer.
    fn may_miss(self) -> bool {
        self != Kind::Put { conditional: false }
    }
}

/// The end of a head, with the length of the body that follows.
fn append_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(b"Content-Length: ");
    append_decimal(out, length as u64);
    out.extend_from_slice(b"\r\n\r\n");
}

/// What is not unreserved (RFC 3986) is encoded, so that it is right in paths and queries alike.
fn append_percent_encoded(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in bytes {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(b);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests;
