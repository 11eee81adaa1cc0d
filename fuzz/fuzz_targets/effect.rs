//! The payloads of records, as they are applied to a table: what decodes has one encoding and can be applied.

#![no_main]

use kv_proto::{effect::Effect, ids::Lsn};
use kv_storage::table::{Entry, Table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|effects: Vec<Vec<u8>>| {
    let mut table = Table::default();
    for (lsn, bytes) in (1..).map(Lsn).zip(&effects) {
        let Ok(effect) = Effect::decode(bytes) else { continue };
        assert_eq!(effect.encode(), *bytes, "{effect:?}");
        match effect {
            Effect::Put { key, content_type, value, expires } => {
                let entry = Entry { lsn, expires, content_type, value };
                table.put_if_newer(key, entry);
                assert_eq!(table.get(key), Some(entry));
            }
            Effect::Delete { key } => {
                table.remove_if_older(lsn, key);
                assert_eq!(table.get(key), None);
            }
            Effect::Outcome(_) | Effect::Nothing => {}
        }
    }
});
