//! What replicas say to each other, and the records that they keep.

#![no_main]

use kv_fuzz::round_trip;
use kv_proto::{effect::Effect, replication::PeerBatch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    round_trip!(PeerBatch, bytes);
    if let Ok(effect) = Effect::decode(bytes) {
        assert_eq!(effect.encode(), bytes, "{effect:?}");
    }
});
