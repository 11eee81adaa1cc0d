//! A node's connection: bytes as they come, and one sealed message of any kind, since the fuzzer guesses no checksum.

#![no_main]

use kv_proto::frame::{Kind, append_message};
use libfuzzer_sys::fuzz_target;

const KINDS: [Kind; 6] =
    [Kind::Hello, Kind::Refusal, Kind::Request, Kind::Response, Kind::Replication, Kind::FromController];

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (kind, cut, bytes) = input;
    kv_node::fuzzing::connection(bytes, usize::from(cut));
    let mut sealed = Vec::new();
    append_message(&mut sealed, KINDS[usize::from(kind) % KINDS.len()], 1, |body| body.extend_from_slice(bytes));
    kv_node::fuzzing::connection(&sealed, usize::from(cut));
});
