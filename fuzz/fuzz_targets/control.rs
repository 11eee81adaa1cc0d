//! What nodes and the controller say to each other.

#![no_main]

use kv_fuzz::round_trip;
use kv_proto::control::{FromController, ToController};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    round_trip!(ToController, bytes);
    round_trip!(FromController, bytes);
});
