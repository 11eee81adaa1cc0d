//! The first message of a connection and its answer.

#![no_main]

use kv_fuzz::round_trip;
use kv_proto::hello::{Hello, Welcome};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    round_trip!(Hello, bytes);
    round_trip!(Welcome, bytes);
});
