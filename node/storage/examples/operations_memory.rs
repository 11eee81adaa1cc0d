//! What remembering operations takes: `cargo run --release -p kv-storage --example operations_memory -- OPERATIONS`.

use kv_proto::{
    effect::{Effect, Unchanged},
    ids::{ClientId, Epoch, Lsn, OperationId},
    replication::{Position, Record},
};
use kv_storage::operations::Operations;
use std::time::Instant;

fn main() {
    let operations = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5_000_000);
    let (put, refused) = (Effect::Delete { key: b"k" }, Effect::Outcome(Unchanged::Missing));
    for (what, effect) in [("writes", put), ("refusals", refused)] {
        let mut remembered = Operations::default();
        let (start, mut slowest) = (Instant::now(), 0);
        for n in 1..=operations {
            let id = OperationId { client: ClientId(n as u128 % 100), sequence: n, known_lsn: Lsn(n - 1) };
            let position = Position { epoch: Epoch(1), lsn: Lsn(n) };
            let record = Record { position, operation_id: Some(id), payload: [].into() };
            let before = Instant::now();
            std::hint::black_box(remembered.find(&id));
            remembered.apply(&record, &effect);
            slowest = before.elapsed().as_micros().max(slowest);
        }
        let (count, bytes) = (remembered.count(), remembered.memory_bytes());
        println!(
            "{count} of {operations} {what}: {bytes} bytes, {:.1} each; {} ns to look up and add one, at most {slowest} µs",
            bytes as f64 / count as f64,
            start.elapsed().as_nanos() / u128::from(operations),
        );
    }
}
