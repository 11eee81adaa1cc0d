//! What the tests of the protocols share: a store in words, and codecs fed in pieces.

use super::{Codec, Reply, Request};
use kv_client::proto::ids::{HistoryId, Lsn, Version};
use proptest::prelude::*;
use std::collections::HashMap;

/// A reply in words, as `3: value abc 0-17`.
pub(super) fn told(tag: u64, reply: &Reply<'_>) -> String {
    let version = |v: &Option<Version>| v.map_or(String::new(), |v| format!(" {v}"));
    match reply {
        Reply::TooOld { .. } => unreachable!("only nodes know operation ids"),
        Reply::Value { value, version: v } => format!("{tag}: value {}{}", value.escape_ascii(), version(v)),
        Reply::Missing => format!("{tag}: missing"),
        Reply::Written { version: v } => format!("{tag}: written{}", version(v)),
        Reply::Number(n) => format!("{tag}: number {n}"),
        Reply::Conflict => format!("{tag}: conflict"),
        Reply::Failed { code, unknown } => format!("{tag}: {code}{}", if *unknown { ", unknown" } else { "" }),
    }
}

pub(super) fn version(lsn: u64) -> Version {
    Version { history: HistoryId(0), lsn: Lsn(lsn) }
}

pub(super) fn get(key: &str) -> Request<'_> {
    Request::Get { key: key.as_bytes() }
}

pub(super) fn put<'a>(key: &'a str, value: &'a str) -> Request<'a> {
    Request::Put { key: key.as_bytes(), value: value.as_bytes(), only_if: None, operation_id: None }
}

pub(super) fn put_if<'a>(key: &'a str, value: &'a str, lsn: u64) -> Request<'a> {
    let only_if = Some(version(lsn));
    Request::Put { key: key.as_bytes(), value: value.as_bytes(), only_if, operation_id: None }
}

pub(super) fn delete(key: &str) -> Request<'_> {
    Request::Delete { key: key.as_bytes(), operation_id: None }
}

pub(super) fn increment(key: &str) -> Request<'_> {
    Request::Increment { key: key.as_bytes() }
}

/// One batch, with tags from 0.
pub(super) fn encode(codec: &mut impl Codec, requests: &[Request<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, request) in requests.iter().enumerate() {
        codec.encode(&mut out, tag as u64, request);
    }
    codec.end_batch(&mut out);
    out
}

/// What comes of `pieces`, each fed when the one before was decoded; an error if bytes are left over.
pub(super) fn decode<'a>(
    codec: &mut impl Codec,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<String>, String> {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let used = codec.decode(&buffer, &mut |tag, reply| out.push(told(tag, &reply)))?;
        buffer.drain(..used);
    }
    if buffer.is_empty() { Ok(out) } else { Err(format!("{} is left over", buffer.escape_ascii())) }
}

/// Checks what comes of `bytes` in answer to `requests`: whole, byte by byte, and cut in two anywhere.
pub(super) fn check<C: Codec>(make: impl Fn() -> C, requests: &[Request<'_>], bytes: &[u8], expected: &[&str]) {
    let fed = |pieces: Vec<&[u8]>| {
        let mut codec = make();
        encode(&mut codec, requests);
        decode(&mut codec, pieces)
    };
    let expected = Ok(expected.iter().map(ToString::to_string).collect());
    assert_eq!(fed(vec![bytes]), expected, "{}", bytes.escape_ascii());
    assert_eq!(fed(bytes.chunks(1).collect()), expected, "byte by byte: {}", bytes.escape_ascii());
    for cut in 0..bytes.len() {
        let (a, b) = bytes.split_at(cut);
        assert_eq!(fed(vec![a, b]), expected, "cut at {cut}: {}", bytes.escape_ascii());
    }
}

/// Checks that `bytes` in answer to `requests` are told to be wrong.
pub(super) fn check_wrong<C: Codec>(make: impl Fn() -> C, requests: &[Request<'_>], bytes: &[u8]) {
    let mut codec = make();
    encode(&mut codec, requests);
    let mut ignore = |_, _: Reply<'_>| {};
    assert!(codec.decode(bytes, &mut ignore).is_err(), "{}", bytes.escape_ascii());
}

/// A store.
#[derive(Debug, Default)]
pub(super) struct Model {
    values: HashMap<Vec<u8>, (Vec<u8>, u64)>,
    writes: u64,
}

/// What a store says; the protocols have words of their own for it.
#[derive(Debug)]
pub(super) enum Said {
    Value(Vec<u8>, Version),
    Missing,
    Written(Version),
    Number(i64),
    Conflict,
}

impl Model {
    pub(super) fn apply(&mut self, request: &Request<'_>) -> Said {
        match *request {
            Request::Get { key } => match self.values.get(key) {
                Some((value, lsn)) => Said::Value(value.clone(), version(*lsn)),
                None => Said::Missing,
            },
            Request::Put { key, value, only_if, .. } => match (only_if, self.values.get(key)) {
                (Some(_), None) => Said::Missing,
                (Some(v), Some((_, lsn))) if v != version(*lsn) => Said::Conflict,
                _ => self.write(key, value.to_vec()),
            },
            Request::Delete { key, .. } => match self.values.remove(key) {
                Some(_) => {
                    self.writes += 1;
                    Said::Written(version(self.writes))
                }
                None => Said::Missing,
            },
            Request::Increment { key } => {
                let number = self
                    .values
                    .get(key)
                    .map_or(0, |(value, _)| std::str::from_utf8(value).expect("digits").parse().expect("a counter"));
                self.write(key, i64::to_string(&(number + 1)).into_bytes());
                Said::Number(number + 1)
            }
        }
    }

    fn write(&mut self, key: &[u8], value: Vec<u8>) -> Said {
        self.writes += 1;
        self.values.insert(key.to_vec(), (value, self.writes));
        Said::Written(version(self.writes))
    }
}

impl Said {
    /// In words, with versions where the protocol tells them.
    pub(super) fn told(&self, tag: u64, of_reads: bool, of_writes: bool) -> String {
        let reply = match self {
            Said::Value(value, v) => Reply::Value { value, version: of_reads.then_some(*v) },
            Said::Missing => Reply::Missing,
            Said::Written(v) => Reply::Written { version: of_writes.then_some(*v) },
            Said::Number(n) => Reply::Number(*n),
            Said::Conflict => Reply::Conflict,
        };
        told(tag, &reply)
    }
}

/// A request that owns its bytes. Counters have keys of their own.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Get(String),
    Put(String, String),
    PutIf(String, String, u64),
    Delete(String),
    Increment(String),
}

impl Asked {
    pub(super) fn request(&self) -> Request<'_> {
        match self {
            Asked::Get(key) => get(key),
            Asked::Put(key, value) => put(key, value),
            Asked::PutIf(key, value, lsn) => put_if(key, value, *lsn),
            Asked::Delete(key) => delete(key),
            Asked::Increment(key) => increment(key),
        }
    }
}

/// Batches of requests for few keys, so that they meet.
pub(super) fn batches(conditions: bool, increments: bool) -> impl Strategy<Value = Vec<Vec<Asked>>> {
    let key = "[a-d%/]";
    let value = "(\\PC|[\"\\\\\r\n]){0,20}";
    let one = prop_oneof![
        6 => key.prop_map(Asked::Get),
        2 => (key, value).prop_map(|(k, v)| Asked::Put(k, v)),
        u32::from(conditions) => (key, value, 0u64..10).prop_map(|(k, v, lsn)| Asked::PutIf(k, v, lsn)),
        1 => key.prop_map(Asked::Delete),
        u32::from(increments) => "n[ab]".prop_map(Asked::Increment),
    ];
    prop::collection::vec(prop::collection::vec(one, 1..30), 1..5)
}

/// Asks a store through a codec, with a server made of `serve`, which takes requests from bytes and writes what the store says; the
/// bytes come back in pieces of `piece`. Checks that everything is answered as the store would, each with its tag.
pub(super) fn check_pipeline(
    codec: &mut impl Codec,
    batches: &[Vec<Asked>],
    versions: (bool, bool),
    piece: usize,
    mut serve: impl FnMut(&mut Model, &[u8]) -> Vec<u8>,
) {
    let (mut near, mut far) = (Model::default(), Model::default());
    let (mut answers, mut expected) = (Vec::new(), Vec::new());
    let mut tag = 0;
    for batch in batches {
        let mut out = Vec::new();
        for asked in batch {
            codec.encode(&mut out, tag, &asked.request());
            expected.push(near.apply(&asked.request()).told(tag, versions.0, versions.1));
            tag += 1;
        }
        codec.end_batch(&mut out);
        answers.extend(serve(&mut far, &out));
    }
    assert_eq!(decode(codec, answers.chunks(piece)), Ok(expected));
}
