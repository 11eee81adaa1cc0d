//! What clients write: each write has a number, from which all of it follows.

use kv_proto::{
    effect::{Effect, Expiry},
    ids::{ClientId, Lsn, OperationId},
    replication::{Position, Record},
};
use kv_storage::{
    operations::Operations,
    table::{Entry, Table},
};
use std::sync::Arc;

const KEYS: u64 = 12;
const LONG_BYTES: u64 = 3000;
const SHORT_BYTES: u64 = 60;

/// The payload and the operation of a write.
pub(crate) fn write_of(number: u64) -> (Arc<[u8]>, Option<OperationId>) {
    let mixed = number.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let at = |bit: u32| mixed.rotate_right(bit);
    let key = [b'k', (at(40) % KEYS) as u8];
    let operation = OperationId { client: ClientId(9), sequence: number, known_lsn: Lsn(number / 2) };
    if at(11).is_multiple_of(4) {
        return (Effect::Delete { key: &key }.encode().into(), Some(operation));
    }
    let padding = if at(23).is_multiple_of(24) { LONG_BYTES } else { at(29) % SHORT_BYTES };
    let mut value = number.to_le_bytes().to_vec();
    value.resize(value.len() + padding as usize, number as u8);
    let expires = Expiry::from_ms(at(17) % 3 * 1_000_000_000_000);
    let content_type = if at(35).is_multiple_of(2) { "t/x" } else { "" };
    let put = Effect::Put { key: &key, content_type, value: &value, expires };
    (put.encode().into(), at(5).is_multiple_of(2).then_some(operation))
}

pub(crate) fn record_of(position: Position, number: u64) -> Record {
    let (payload, operation_id) = write_of(number);
    Record { position, operation_id, payload }
}

/// The write that a record is.
pub(crate) fn number(record: &Record) -> u64 {
    match (&record.operation_id, Effect::decode(&record.payload)) {
        (Some(operation), _) => operation.sequence,
        (None, Ok(Effect::Put { value, .. })) => u64::from_le_bytes(value[..8].try_into().expect("a number")),
        (None, other) => panic!("no write of the simulation: {other:?}"),
    }
}

/// Brings a committed record into a table and among the operations, as a node does.
pub(crate) fn apply(table: &mut Table, operations: &mut Operations, record: &Record) {
    let lsn = record.position.lsn;
    let effect = Effect::decode(&record.payload).expect("an effect");
    operations.apply(record, &effect);
    match effect {
        Effect::Put { key, content_type, value, expires } => {
            table.put(key, Entry { lsn, expires, content_type, value });
        }
        Effect::Delete { key } => table.remove(key),
        Effect::Outcome(_) | Effect::Nothing => {}
    }
}
