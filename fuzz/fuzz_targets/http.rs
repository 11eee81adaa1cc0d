//! What the router reads from addresses and bodies.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        kv_router::fuzzing::query(text);
    }
    kv_router::fuzzing::put_body(bytes);
});
