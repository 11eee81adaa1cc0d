//! Redis: RESP2, and `WAIT` for those who want their writes on replicas.
//!
//! Replies come in the order of the commands, so that a queue of what is expected tells whose each is. With `WAIT`, the reply to a
//! write is kept back until that of the `WAIT` behind it says on how many replicas the write is.
//!
//! An error in answer to a command means that Redis has not carried it out. That a `WAIT` did not reach its replicas says nothing of the
//! sort: the write is there, and may be gone with the leader.

use super::{
    Codec, Offers, Reply, Request,
    text::{self, append_decimal, shown},
};
use std::{borrow::Cow, collections::VecDeque, time::Duration};

/// What Redis offers.
pub(super) const OFFERS: Offers =
    Offers { conditions: false, increment: true, ordered_versions: false, operation_ids: false };

/// What is wanted of a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct RedisOptions {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// The number of the database.
    pub(crate) db: u32,
    pub(crate) wait: Option<Wait>,
}

/// Without the password.
impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RedisOptions { user, password, db, wait } = self;
        let password = password.as_ref().map(|_| "***");
        f.debug_struct("RedisOptions")
            .field("user", user)
            .field("password", &password)
            .field("db", db)
            .field("wait", wait)
            .finish()
    }
}

/// `WAIT` after writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// On how many replicas a write must be to be done; at least 1.
    pub(crate) replicas: u32,
    /// How long each `WAIT` waits for them.
    pub(crate) timeout: Duration,
    pub(crate) per: WaitPer,
}

/// How often there is a `WAIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitPer {
    /// After every write.
    Write,
    /// Once after the commands that are sent together, if there is a write among them.
    Batch,
}

/// Redis' protocol.
#[derive(Debug)]
pub(crate) struct RedisCodec {
    options: RedisOptions,
    expected: VecDeque<Expected>,
    /// Writes that were sent since the last `WAIT`.
    unwaited: bool,
    /// Replies to writes that wait for that of the next `WAIT`.
    kept: Vec<(u64, Kept)>,
}

/// Whose reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Get(u64),
    Set(u64),
    Del(u64),
    Incr(u64),
    Wait,
}

/// A reply that is kept back.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Written,
    Missing,
    Number(i64),
}

impl Kept {
    fn reply(self) -> Reply<'static> {
        match self {
            Kept::Written => Reply::Written { version: None },
            Kept::Missing => Reply::Missing,
            Kept::Number(n) => Reply::Number(n),
        }
    }
}

impl RedisCodec {
    pub(crate) fn new(options: RedisOptions) -> RedisCodec {
        RedisCodec { options, expected: VecDeque::new(), unwaited: false, kept: Vec::new() }
    }

    /// The commands of the greeting, in order. The last asks for nothing: its answer says whether this is Redis, and lets us in.
    fn greetings(&self) -> Vec<Vec<String>> {
        let RedisOptions { user, password, db, .. } = &self.options;
        let mut commands = Vec::new();
        if let Some(password) = password {
            let credentials = user.iter().chain([password]).cloned();
            commands.push(["AUTH".to_owned()].into_iter().chain(credentials).collect());
        }
        if *db != 0 {
            commands.push(vec!["SELECT".to_owned(), db.to_string()]);
        }
        commands.push(vec!["PING".to_owned()]);
        commands
    }

    fn append_wait(&mut self, out: &mut Vec<u8>, wait: Wait) {
        let timeout_ms = u64::try_from(wait.timeout.as_millis()).unwrap_or(u64::MAX);
        out.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n");
        append_number(out, wait.replicas.into());
        append_number(out, timeout_ms);
        self.expected.push_back(Expected::Wait);
        self.unwaited = false;
    }

    /// A write was carried out.
    fn written(&mut self, tag: u64, reply: Kept, on_reply: &mut dyn FnMut(u64, Reply<'_>)) {
        match self.options.wait {
            Some(_) => self.kept.push((tag, reply)),
            None => on_reply(tag, reply.reply()),
        }
    }

    /// A `WAIT` was answered.
    fn waited(&mut self, item: &Item<'_>, on_reply: &mut dyn FnMut(u64, Reply<'_>)) -> Result<(), String> {
        let wanted = self.options.wait.map_or(0, |wait| i64::from(wait.replicas));
        let failure = match item {
            Item::Integer(replicas) if *replicas >= wanted => None,
            Item::Integer(_) => Some(Cow::Borrowed("not_replicated")),
            Item::Error(error) => Some(Cow::Owned(error_code(error))),
            other => return Err(format!("WAIT was answered with {other:?}")),
        };
        for (tag, kept) in self.kept.drain(..) {
            match &failure {
                None => on_reply(tag, kept.reply()),
                Some(code) => on_reply(tag, Reply::Failed { code: code.clone(), unknown: true }),
            }
        }
        Ok(())
    }
}

impl Codec for RedisCodec {
    fn greeting(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for command in self.greetings() {
            out.push(b'*');
            append_decimal(&mut out, command.len() as u64);
            out.extend_from_slice(b"\r\n");
            command.iter().for_each(|part| append_bulk(&mut out, part.as_bytes()));
        }
        Some(out)
    }

    fn greeted(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let mut used = 0;
        for command in self.greetings() {
            let Some((item, length)) = item(&bytes[used..]).map_err(|e| format!("{e}; is this Redis?"))? else {
                return Ok(None);
            };
            used += length;
            let command = command[0].as_str();
            match item {
                Item::Simple(_) => {}
                Item::Error(error) if error.starts_with(b"NOAUTH") => {
                    return Err("it wants a password: write the target as redis://:PASSWORD@HOST:PORT".to_owned());
                }
                Item::Error(error) => {
                    let cure = match command {
                        "AUTH" => "; check the user and the password of the target",
                        "SELECT" => "; check the number of the database in the target",
                        _ => "",
                    };
                    return Err(format!("{command} was refused: {}{cure}", shown(error)));
                }
                other => return Err(format!("{command} was answered with {other:?}; is this Redis?")),
            }
        }
        Ok(Some(used))
    }

    fn encode(&mut self, out: &mut Vec<u8>, tag: u64, request: &Request<'_>) {
        let expected = match *request {
            Request::Get { key } => {
                out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
                append_bulk(out, key);
                Expected::Get(tag)
            }
            Request::Put { key, value, .. } => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                append_bulk(out, key);
                append_bulk(out, value);
                Expected::Set(tag)
            }
            Request::Delete { key, .. } => {
                out.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n");
                append_bulk(out, key);
                Expected::Del(tag)
            }
            Request::Increment { key } => {
                out.extend_from_slice(b"*2\r\n$4\r\nINCR\r\n");
                append_bulk(out, key);
                Expected::Incr(tag)
            }
        };
        self.expected.push_back(expected);
        match self.options.wait {
            Some(_) if matches!(expected, Expected::Get(_)) => {}
            Some(wait) if wait.per == WaitPer::Write => self.append_wait(out, wait),
            _ => self.unwaited = true,
        }
    }

    fn end_batch(&mut self, out: &mut Vec<u8>) {
        if let Some(wait) = self.options.wait.filter(|_| self.unwaited) {
            self.append_wait(out, wait);
        }
    }

    fn decode(&mut self, bytes: &[u8], on_reply: &mut dyn FnMut(u64, Reply<'_>)) -> Result<usize, String> {
        let mut used = 0;
        while let Some((item, length)) = item(&bytes[used..])? {
            used += length;
            let expected = self.expected.pop_front().ok_or_else(|| format!("{item:?} answers nothing"))?;
            match (expected, item) {
                (Expected::Wait, item) => self.waited(&item, on_reply)?,
                (Expected::Get(tag), Item::Bulk(Some(value))) => on_reply(tag, Reply::Value { value, version: None }),
                (Expected::Get(tag), Item::Bulk(None)) => on_reply(tag, Reply::Missing),
                (Expected::Set(tag), Item::Simple(b"OK")) => self.written(tag, Kept::Written, on_reply),
                (Expected::Del(tag), Item::Integer(0)) => self.written(tag, Kept::Missing, on_reply),
                (Expected::Del(tag), Item::Integer(_)) => self.written(tag, Kept::Written, on_reply),
                (Expected::Incr(tag), Item::Integer(n)) => self.written(tag, Kept::Number(n), on_reply),
                (
                    Expected::Get(tag) | Expected::Set(tag) | Expected::Del(tag) | Expected::Incr(tag),
                    Item::Error(error),
                ) => on_reply(tag, Reply::Failed { code: Cow::Owned(error_code(error)), unknown: false }),
                (expected, item) => return Err(format!("{expected:?} was answered with {item:?}")),
            }
        }
        Ok(used)
    }
}

fn append_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    append_decimal(out, bytes.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// A number as an argument.
fn append_number(out: &mut Vec<u8>, n: u64) {
    let digits = n.checked_ilog10().map_or(1, |log| log + 1);
    out.push(b'$');
    append_decimal(out, digits.into());
    out.extend_from_slice(b"\r\n");
    append_decimal(out, n);
    out.extend_from_slice(b"\r\n");
}

/// The first word of an error says what it is.
fn error_code(error: &[u8]) -> String {
    text::code("redis", error.split(|b| *b == b' ').next().unwrap_or_default())
}

/// A reply of RESP2, but for arrays: no command that is sent is answered with one.
#[derive(PartialEq, Eq)]
enum Item<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(Option<&'a [u8]>),
}

impl std::fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Item::Simple(text) => write!(f, "+{}", shown(text)),
            Item::Error(text) => write!(f, "-{}", shown(text)),
            Item::Integer(n) => write!(f, ":{n}"),
            Item::Bulk(Some(bytes)) => write!(f, "${}", bytes.len()),
            Item::Bulk(None) => f.write_str("nil"),
        }
    }
}

/// The reply at the front, and its length.
fn item(bytes: &[u8]) -> Result<Option<(Item<'_>, usize)>, String> {
    let Some(kind) = bytes.first() else { return Ok(None) };
    if !b"+-:$".contains(kind) {
        return Err(format!("{} is no reply of Redis", shown(bytes)));
    }
    let Some((line, used)) = text::line(bytes)? else { return Ok(None) };
    let rest = line.get(1..).unwrap_or_default();
    let item = match kind {
        b'+' => Item::Simple(rest),
        b'-' => Item::Error(rest),
        b':' => {
            let number = std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok());
            Item::Integer(number.ok_or_else(|| format!("{} is no number", shown(rest)))?)
        }
        _ if rest == b"-1" => Item::Bulk(None),
        _ => {
            let block = text::block(bytes, used, text::length(rest)?)?;
            return Ok(block.map(|(bytes, used)| (Item::Bulk(Some(bytes)), used)));
        }
    };
    Ok(Some((item, used)))
}

#[cfg(test)]
mod tests;
