//! What clients are answered, and refusals.

#![no_main]

use kv_fuzz::round_trip;
use kv_proto::{error_code::WireError, response::Response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    round_trip!(Response, bytes);
    round_trip!(WireError, bytes);
});
