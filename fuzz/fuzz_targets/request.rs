//! What clients ask.

#![no_main]

use kv_fuzz::round_trip;
use kv_proto::request::Request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    round_trip!(Request, bytes);
});
