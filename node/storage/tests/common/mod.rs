//! What the tests of crashes share: a disk in memory, how a node reads it back, and small makers.

#![allow(dead_code)]

pub(crate) mod disk;
pub(crate) mod model;
pub(crate) mod random;

use kv_proto::{
    cluster_map::Configuration,
    effect::{Effect, Expiry, Unchanged},
    ids::{ClientId, ClusterId, DiskId, Epoch, HistoryId, Lsn, Member, NodeId, OperationId, PartitionId},
    replication::{Position, Record},
};
use kv_storage::{
    checkpoint,
    log::{
        SegmentId, StreamId,
        format::{self, Content, FormatError, Identity},
        index::Index,
        writer::StreamOptions,
    },
    operations::Operations,
    recovery::{Recovered, Recovery, Scanned},
    table::{Table, Walk},
};
use std::collections::BTreeMap;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);

pub(crate) fn identity() -> Identity {
    Identity { node: NodeId::new("shard0-leader").expect("a name"), disk: DiskId(0xd15c) }
}

pub(crate) fn at(epoch: u64, lsn: u64) -> Position {
    Position { epoch: Epoch(epoch), lsn: Lsn(lsn) }
}

pub(crate) fn configuration(epoch: u64, history: u32) -> Configuration {
    let member = |node: &str, disk| Member { node: NodeId::new(node).expect("a name"), disk: DiskId(disk) };
    let follower = member("shard0-follower", 7);
    let in_sync = if epoch.is_multiple_of(3) { vec![] } else { vec![follower] };
    Configuration { epoch: Epoch(epoch), history: HistoryId(history), leader: member("shard0-leader", 0xd15c), in_sync }
}

pub(crate) fn put(at: Position, key: &[u8], value: &[u8]) -> Record {
    let effect =
        Effect::Put { key, content_type: "t/x", value, expires: Expiry::from_ms(at.lsn.0 % 3 * 1_000_000_000_000) };
    record(at, &effect)
}

pub(crate) fn delete(at: Position, key: &[u8]) -> Record {
    record(at, &Effect::Delete { key })
}

/// A record without a key.
pub(crate) fn keyless(at: Position) -> Record {
    let current = Lsn(at.lsn.0 / 3);
    let effects = [Unchanged::Missing, Unchanged::ConditionFailed { current }].map(Effect::Outcome);
    record(at, if at.lsn.0.is_multiple_of(5) { &Effect::Nothing } else { &effects[at.lsn.0 as usize % 3 % 2] })
}

fn record(position: Position, effect: &Effect<'_>) -> Record {
    let known_lsn = Lsn(position.lsn.0 / 2);
    let operation_id = OperationId { client: ClientId(9), sequence: position.lsn.0, known_lsn };
    let operation_id = position.lsn.0.is_multiple_of(2).then_some(operation_id);
    Record { position, operation_id, payload: effect.encode().into() }
}

/// What a partition has of the records that it has applied.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) table: Table,
    pub(crate) operations: Operations,
}

impl State {
    pub(crate) fn apply(&mut self, record: &Record) {
        let lsn = record.position.lsn;
        let effect = Effect::decode(&record.payload).expect("an effect");
        self.operations.apply(record, &effect);
        match effect {
            Effect::Put { key, content_type, value, expires } => {
                self.table.put(key, kv_storage::table::Entry { lsn, expires, content_type, value });
            }
            Effect::Delete { key } => self.table.remove(key),
            Effect::Outcome(_) | Effect::Nothing => {}
        }
    }

    /// Equal states have equal digests.
    pub(crate) fn digest(&self) -> u64 {
        digest(&self.table, &self.operations)
    }
}

pub(crate) fn digest(table: &Table, operations: &Operations) -> u64 {
    table.digest().wrapping_add(operations.digest().rotate_left(1))
}

pub(crate) fn options(generation: u64, executor: u16, segment_bytes: u64) -> StreamOptions {
    let stream = StreamId { generation, executor };
    StreamOptions { cluster: CLUSTER, identity: identity(), stream, segment_bytes }
}

/// A whole checkpoint of what did not change meanwhile.
pub(crate) fn checkpoint_of(
    partition: PartitionId,
    configuration: &Configuration,
    start: Position,
    state: &State,
) -> Vec<u8> {
    let header = checkpoint::Header { cluster: CLUSTER, partition, configuration: configuration.clone(), start };
    let (mut encoder, mut out) = checkpoint::Encoder::new(identity(), &header);
    let (mut walk, mut after) = (Walk::new(), Lsn(0));
    while let Some((piece, next)) = encoder.take_operations(&state.operations, after, 500) {
        out.extend(piece);
        after = next;
    }
    while !walk.next_chunk(&state.table, 500, &mut |key, entry| encoder.push(key, entry)) {
        out.extend(encoder.take_chunk());
    }
    out.extend(encoder.finish(start.lsn, state.table.digest(), state.operations.digest()));
    out
}

/// What a node reads back from these files, as its shell does it.
pub(crate) fn recover(
    checkpoints: &BTreeMap<(PartitionId, Lsn), Vec<u8>>,
    segments: &BTreeMap<SegmentId, Vec<u8>>,
) -> Result<(Recovered, Vec<Scanned>), FormatError> {
    let mut recovery = Recovery::new(identity());
    // Of several checkpoints of a partition the newest is the last.
    let newest: BTreeMap<PartitionId, &Vec<u8>> = checkpoints.iter().map(|((id, _), bytes)| (*id, bytes)).collect();
    let take = |recovery: &mut Recovery, partition: PartitionId| {
        let Some(bytes) = newest.get(&partition) else { return };
        match checkpoint::read(&mut &bytes[..], &identity()) {
            Ok(checkpoint) => recovery.take_checkpoint(checkpoint),
            Err(error) => recovery.refuse_checkpoint(partition, error.to_string()),
        }
    };
    newest.keys().for_each(|partition| take(&mut recovery, *partition));
    let mut scanned = Vec::new();
    for (id, bytes) in segments {
        scanned.push(recovery.take_segment(*id, bytes)?);
        recovery.awaiting_copies().into_iter().for_each(|partition| take(&mut recovery, partition));
    }
    Ok((recovery.finish(), scanned))
}

/// The records that an index leads to, read as the node's worker does it.
pub(crate) fn read_index(
    index: &Index,
    partition: PartitionId,
    segments: &BTreeMap<SegmentId, Vec<u8>>,
) -> Result<BTreeMap<Lsn, Record>, String> {
    let mut records = BTreeMap::new();
    for place in index.find(Lsn(1), usize::MAX) {
        let bytes = &segments.get(&place.segment).ok_or_else(|| format!("{} is gone", place.segment))?;
        let batch = format::read_batch(&bytes[place.offset as usize..], &identity(), place.segment, place.offset);
        let batch = batch.ok_or_else(|| format!("no batch at {place:?}"))?;
        let mut body = &*batch.body;
        while !body.is_empty() {
            let entry = format::read_entry(&mut body).map_err(|e| e.to_string())?;
            if let Content::Record { record, .. } = entry.content
                && entry.partition == partition
                && (place.first..=place.last).contains(&record.position.lsn)
            {
                records.insert(record.position.lsn, record);
            }
        }
    }
    Ok(records)
}

/// The entries of a partition in the order of the log, to be looked at when a test fails.
pub(crate) fn dump(image: &BTreeMap<SegmentId, Vec<u8>>, partition: PartitionId) -> String {
    let mut out = String::new();
    for (id, bytes) in image {
        let mut offset = format::BLOCK_BYTES as u64;
        while let Some(rest) = bytes.get(offset as usize..).filter(|rest| !rest.is_empty()) {
            let (found, length) = format::find_batch(rest, &identity(), *id, offset);
            if let format::Found::Batch(batch) = found {
                let mut body = &*batch.body;
                while !body.is_empty() {
                    let entry = format::read_entry(&mut body).expect("an entry");
                    if entry.partition != partition {
                        continue;
                    }
                    let what = match &entry.content {
                        Content::Record { record, copy, current } => {
                            format!("record {} copy {copy} current {current}", record.position)
                        }
                        Content::Cut { from } => format!("cut {from}"),
                        Content::State { configuration: c, last, faulty } => {
                            format!("state epoch {} history {} last {last} faulty {faulty}", c.epoch, c.history)
                        }
                        Content::Reset { base, configuration: c } => {
                            format!("reset {base} epoch {} history {}", c.epoch, c.history)
                        }
                    };
                    out += &format!("{id} batch {} committed {}: {what}\n", batch.number, entry.committed);
                }
            }
            offset += length;
        }
    }
    out
}
