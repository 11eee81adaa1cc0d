//! Memcached: its classic text protocol.
//!
//! Reads that are pushed one after the other leave as one `get` of many keys, which is what its makers advise. The values come in the
//! order of the keys; what is missing is left out, and known to be by the next value that comes, or the end.
//!
//! A counter is made by the first increment, which the classic `incr` does not do: increments leave as the meta command `ma`, of
//! memcached 1.6 and later.
//!
//! Memcached drops values when it likes; after a write that failed for want of room, the old value is gone too.

use super::{
    Codec, Offers, Reply, Request,
    text::{self, append_decimal, decimal, shown},
};
use kv_client::proto::ids::{HistoryId, Lsn, Version};
use std::{borrow::Cow, collections::VecDeque};

/// What Memcached offers. The answer to a write tells no version.
pub(super) const OFFERS: Offers =
    Offers { conditions: true, increment: true, ordered_versions: false, operation_ids: false };

/// Longest key.
pub(crate) const MAX_KEY_BYTES: usize = 250;
/// Most keys of one `get`.
const MAX_GET_KEYS: u32 = 100;

/// Memcached's protocol.
#[derive(Debug)]
pub(crate) struct MemcachedCodec {
    with_versions: bool,
    expected: VecDeque<Expected>,
    /// Keys of the line that is not closed; 0 if none is open.
    open_keys: u32,
    asked: AskedKeys,
    /// The value of the last key of a line was there, so that nothing but `END` follows.
    end_is_due: bool,
}

/// Whose reply comes next.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Get {
        tag: u64,
        key_bytes: u8,
        /// Whether it is the last of its line.
        last: bool,
    },
    Store {
        tag: u64,
    },
    Delete {
        tag: u64,
    },
    Increment {
        tag: u64,
    },
}

/// The keys of the gets in the queue, in order, one after the other.
#[derive(Debug, Default)]
struct AskedKeys {
    bytes: Vec<u8>,
    start: usize,
}

impl AskedKeys {
    fn push(&mut self, key: &[u8]) {
        // Moved seldom enough to cost less than one copy of each key.
        if self.start > 4096 && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(key);
    }

    fn pop(&mut self, length: u8) -> &[u8] {
        let start = self.start;
        self.start += usize::from(length);
        &self.bytes[start..self.start]
    }
}

impl MemcachedCodec {
    /// With versions, reads ask for what [`Request::Put::only_if`] needs, which costs some bytes.
    pub(crate) fn new(with_versions: bool) -> MemcachedCodec {
        let (expected, asked) = (VecDeque::new(), AskedKeys::default());
        MemcachedCodec { with_versions, expected, open_keys: 0, asked, end_is_due: false }
    }

    fn encode_get(&mut self, out: &mut Vec<u8>, tag: u64, key: &[u8]) {
        if self.open_keys == MAX_GET_KEYS {
            self.close_line(out);
        }
        if self.open_keys == 0 {
            out.extend_from_slice(if self.with_versions { b"gets" } else { b"get" });
        }
        out.push(b' ');
        out.extend_from_slice(key);
        self.open_keys += 1;
        self.asked.push(key);
        self.expected.push_back(Expected::Get { tag, key_bytes: key.len() as u8, last: false });
    }

    fn close_line(&mut self, out: &mut Vec<u8>) {
        if self.open_keys > 0 {
            out.extend_from_slice(b"\r\n");
            self.open_keys = 0;
            if let Some(Expected::Get { last, .. }) = self.expected.back_mut() {
                *last = true;
            }
        }
    }

    /// Takes the gets of a line from the queue, up to the one whose key has come, and says the rest to be missing. That of two gets of one
    /// key in a line the wrong one is said to be missing does no harm: they were asked and answered at the same times.
    fn decode_value(
        &mut self,
        key: &[u8],
        value: &[u8],
        version: Option<Version>,
        on_reply: &mut dyn FnMut(u64, Reply<'_>),
    ) -> Result<(), String> {
        while !self.end_is_due
            && let Some(&Expected::Get { tag, key_bytes, last }) = self.expected.front()
        {
            self.expected.pop_front();
            self.end_is_due = last;
            if self.asked.pop(key_bytes) == key {
                on_reply(tag, Reply::Value { value, version });
                return Ok(());
            }
            on_reply(tag, Reply::Missing);
        }
        Err(format!("the value of {} came, which was not asked for", shown(key)))
    }

    /// The line of a `get` is answered, with `reply` for all that are left.
    fn end_gets(&mut self, reply: &Reply<'_>, on_reply: &mut dyn FnMut(u64, Reply<'_>)) {
        while !self.end_is_due
            && let Some(&Expected::Get { tag, key_bytes, last }) = self.expected.front()
        {
            self.expected.pop_front();
            self.asked.pop(key_bytes);
            self.end_is_due = last;
            on_reply(tag, reply.clone());
        }
        self.end_is_due = false;
    }

    /// A reply to a `get`; the bytes that it took.
    fn decode_get(
        &mut self,
        bytes: &[u8],
        line: &[u8],
        used: usize,
        on_reply: &mut dyn FnMut(u64, Reply<'_>),
    ) -> Result<Option<usize>, String> {
        if line == b"END" {
            self.end_gets(&Reply::Missing, on_reply);
            return Ok(Some(used));
        }
        if let Some(failed) = failed(line) {
            self.end_gets(&failed, on_reply);
            return Ok(Some(used));
        }
        let mut words = line.split(|b| *b == b' ');
        let (Some(b"VALUE"), Some(key), Some(_flags), Some(length)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(format!("a get was answered with {}", shown(line)));
        };
        let Some((value, used)) = text::block(bytes, used, text::length(length)?)? else { return Ok(None) };
        let version = match words.next() {
            Some(cas) => {
                let cas = decimal(cas).ok_or_else(|| format!("{} is no version", shown(cas)))?;
                Some(Version { history: HistoryId(0), lsn: Lsn(cas) })
            }
            None => None,
        };
        self.decode_value(key, value, version, on_reply)?;
        Ok(Some(used))
    }
}

impl Codec for MemcachedCodec {
    fn greeting(&self) -> Option<Vec<u8>> {
        Some(b"version\r\n".to_vec())
    }

    fn greeted(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        match text::line(bytes)? {
            None => Ok(None),
            Some((line, used)) if line.starts_with(b"VERSION ") => Ok(Some(used)),
            Some((line, _)) => {
                Err(format!("version was answered with {}; is this memcached, without a password?", shown(line)))
            }
        }
    }

    fn encode(&mut self, out: &mut Vec<u8>, tag: u64, request: &Request<'_>) {
        let key = match *request {
            Request::Get { key }
            | Request::Put { key, .. }
            | Request::Delete { key, .. }
            | Request::Increment { key } => key,
        };
        // Anything else would make two commands of one.
        assert!(is_key(key), "memcached takes no such key: {}", shown(key));
        if let Request::Get { key } = *request {
            return self.encode_get(out, tag, key);
        }
        self.close_line(out);
        let expected = match *request {
            Request::Get { .. } => unreachable!("gets went their own way"),
            Request::Put { value, only_if, .. } => {
                out.extend_from_slice(if only_if.is_some() { b"cas " } else { b"set " });
                out.extend_from_slice(key);
                out.extend_from_slice(b" 0 0 ");
                append_decimal(out, value.len() as u64);
                if let Some(version) = only_if {
                    out.push(b' ');
                    append_decimal(out, version.lsn.0);
                }
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(value);
                Expected::Store { tag }
            }
            Request::Delete { .. } => {
                out.extend_from_slice(b"delete ");
                out.extend_from_slice(key);
                Expected::Delete { tag }
            }
            Request::Increment { .. } => {
                out.extend_from_slice(b"ma ");
                out.extend_from_slice(key);
                // Made if it is missing, for ever, as 1; and its value is told.
                out.extend_from_slice(b" N0 J1 v");
                Expected::Increment { tag }
            }
        };
        out.extend_from_slice(b"\r\n");
        self.expected.push_back(expected);
    }

    fn end_batch(&mut self, out: &mut Vec<u8>) {
        self.close_line(out);
    }

    fn decode(&mut self, bytes: &[u8], on_reply: &mut dyn FnMut(u64, Reply<'_>)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((line, length)) = text::line(&bytes[used..])? {
            let expected = self.expected.front().copied();
            if self.end_is_due || matches!(expected, Some(Expected::Get { .. })) {
                match self.decode_get(&bytes[used..], line, length, on_reply)? {
                    Some(length) => used += length,
                    None => return Ok(used),
                }
                continue;
            }
            let mut length = length;
            let (tag, reply) = match (expected, line) {
                (None, _) => return Err(format!("{} answers nothing", shown(line))),
                (Some(Expected::Store { tag }), b"STORED") => (tag, Reply::Written { version: None }),
                (Some(Expected::Store { tag }), b"EXISTS") => (tag, Reply::Conflict),
                (Some(Expected::Store { tag }), b"NOT_FOUND") => (tag, Reply::Missing),
                (Some(Expected::Store { tag }), b"NOT_STORED") => {
                    (tag, Reply::Failed { code: Cow::Borrowed("memcached_not_stored"), unknown: false })
                }
                (Some(Expected::Delete { tag }), b"DELETED") => (tag, Reply::Written { version: None }),
                (Some(Expected::Delete { tag }), b"NOT_FOUND") => (tag, Reply::Missing),
                (Some(Expected::Increment { tag }), _) if line.starts_with(b"VA ") => {
                    let digits = line[3..].split(|b| *b == b' ').next().unwrap_or_default();
                    let Some((number, end)) = text::block(&bytes[used..], length, text::length(digits)?)? else {
                        return Ok(used);
                    };
                    length = end;
                    // Counters there go to 2^64, here to 2^63.
                    let number = decimal(number.trim_ascii_end()).and_then(|n| i64::try_from(n).ok());
                    (tag, Reply::Number(number.ok_or("a counter is no number of 63 bits")?))
                }
                (Some(Expected::Store { tag } | Expected::Delete { tag } | Expected::Increment { tag }), _)
                    if let Some(failed) = failed(line) =>
                {
                    (tag, failed)
                }
                (Some(expected), _) => return Err(format!("{expected:?} was answered with {}", shown(line))),
            };
            used += length;
            self.expected.pop_front();
            on_reply(tag, reply);
        }
        Ok(used)
    }
}

/// Whether this can be a key.
pub(crate) fn is_key(key: &[u8]) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY_BYTES && key.iter().all(|b| *b > b' ' && *b != 0x7f)
}

/// The error that a line is; none of them means that a write was done.
fn failed(line: &[u8]) -> Option<Reply<'static>> {
    let code = if line == b"ERROR" {
        "memcached_error"
    } else if line.starts_with(b"CLIENT_ERROR") {
        "memcached_client_error"
    } else if line.starts_with(b"SERVER_ERROR out of memory") {
        "memcached_out_of_memory"
    } else if line.starts_with(b"SERVER_ERROR object too large") {
        "memcached_too_large"
    } else if line.starts_with(b"SERVER_ERROR") {
        "memcached_server_error"
    } else {
        return None;
    };
    Some(Reply::Failed { code: Cow::Borrowed(code), unknown: false })
}

#[cfg(test)]
mod tests;
