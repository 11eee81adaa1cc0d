//! What clients write: each write has a number, from which all of it follows.

use kv_proto::{
    effect::{Effect, Expiry},
    ids::{ClientId, Lsn, OperationId},
    replication::{Position, Record},
};
use std::sync::Arc;

/// How many keys a partition has.
pub(crate) const KEYS: u64 = 5;
const LONG_BYTES: u64 = 3000;
/// More than any write has.
pub(crate) const MAX_VALUE_BYTES: usize = 3100;
const SHORT_BYTES: u64 = 60;

fn mix(number: u64) -> u64 {
    number.wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

/// The payload and the operation of a write.
pub(crate) fn write_of(number: u64) -> (Arc<[u8]>, Option<OperationId>) {
    let mixed = mix(number);
    let at = |bit: u32| mixed.rotate_right(bit);
    let (key, deletes) = key_of(number);
    let key = [b'k', key];
    let operation = OperationId { client: ClientId(9), sequence: number, known_lsn: Lsn(0) };
    if deletes {
        return (Effect::Delete { key: &key }.encode().into(), Some(operation));
    }
    let padding = if at(23).is_multiple_of(24) { LONG_BYTES } else { at(29) % SHORT_BYTES };
    let mut value = number.to_le_bytes().to_vec();
    value.resize(value.len() + padding as usize, number as u8);
    let expires = Expiry::from_ms(at(17) % 3 * 1_000_000_000_000);
    let content_type = if at(35).is_multiple_of(2) { "t/x" } else { "" };
    let put = Effect::Put { key: &key, content_type, value: &value, expires };
    (put.encode().into(), Some(operation))
}

pub(crate) fn record_of(position: Position, number: u64) -> Record {
    let (payload, operation_id) = write_of(number);
    Record { position, operation_id, payload }
}

/// The write that a record is; `None` if it is none.
pub(crate) fn number(record: &Record) -> Option<u64> {
    match (&record.operation_id, Effect::decode(&record.payload)) {
        (Some(operation), _) => Some(operation.sequence),
        (None, Ok(Effect::Nothing)) => None,
        (None, other) => panic!("no write of the simulation: {other:?}"),
    }
}

/// The write that wrote a value.
pub(crate) fn number_of(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().expect("a number"))
}

/// The key that a write is of, and whether it deletes it.
pub(crate) fn key_of(number: u64) -> (u8, bool) {
    let mixed = mix(number);
    ((mixed.rotate_right(40) % KEYS) as u8, mixed.rotate_right(11).is_multiple_of(4))
}
