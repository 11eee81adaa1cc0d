//! What a disk gives back for segments of the log: any bytes, and batches with the right checksums around entries that are any
//! bytes or that follow each other in any order. Whatever comes out is a log that a replica can go on with, or a fault.

#![no_main]

use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{ClientId, ClusterId, DiskId, Epoch, HistoryId, Lsn, Member, NodeId, OperationId, PartitionId},
    replication::{Position, Record},
};
use kv_storage::{
    log::{
        SegmentId, StreamId,
        format::{self, BATCH_HEADER_BYTES, Identity},
        gather::Gather,
    },
    recovery::Recovery,
};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    segments: Vec<Segment<'a>>,
}

#[derive(Arbitrary, Debug)]
struct Segment<'a> {
    generation: u8,
    executor: u8,
    number: u8,
    /// Without a header that holds.
    headless: bool,
    batches: Vec<Batch<'a>>,
    /// What follows them, or is all that there is.
    rest: &'a [u8],
    /// Where a byte is changed in the end, and what is added to it.
    damage: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Batch<'a> {
    Bytes(&'a [u8]),
    Entries(Vec<Entry>),
    /// A number is left out.
    Missing,
}

#[derive(Arbitrary, Debug)]
enum Entry {
    Record { partition: u8, epoch: u8, lsn: u8, committed: u8, copy: bool, delete: bool, current: bool },
    Cut { partition: u8, from: u8 },
    State { partition: u8, epoch: u8, history: u8, last: (u8, u8), committed: u8, faulty: bool },
    Reset { partition: u8, epoch: u8, history: u8, base: (u8, u8) },
}

fn identity() -> Identity {
    Identity { node: NodeId::new("n").expect("a name"), disk: DiskId(1) }
}

fn at((epoch, lsn): (u8, u8)) -> Position {
    Position { epoch: Epoch(epoch.into()), lsn: Lsn(lsn.into()) }
}

fn configuration(epoch: u8, history: u8) -> Configuration {
    let leader = Member { node: identity().node, disk: identity().disk };
    Configuration { epoch: Epoch(epoch.into()), history: HistoryId(history.into()), leader, in_sync: vec![] }
}

fn put(out: &mut Vec<u8>, entry: &Entry) {
    match *entry {
        Entry::Record { partition, epoch, lsn, committed, copy, delete, current } => {
            let key = [lsn % 4];
            let put = Effect::Put { key: &key, content_type: "", value: &[epoch, lsn], expires: None };
            let effect = if delete { Effect::Delete { key: &key } } else { put };
            let position = at((epoch, lsn.max(1)));
            let id = OperationId { client: ClientId(1), sequence: (epoch % 4).into(), known_lsn: Lsn(0) };
            let operation_id = current.then_some(id);
            let record = Record { position, operation_id, payload: effect.encode().into() };
            let (partition, committed) = (PartitionId(u16::from(partition % 4)), Lsn(committed.into()));
            if copy {
                format::put_copy(out, partition, &record, committed);
            } else {
                let current = if current { position.epoch } else { Epoch(u64::MAX) };
                format::put_record(out, partition, &record, committed, current);
            }
        }
        Entry::Cut { partition, from } => {
            format::put_cut(out, PartitionId(u16::from(partition % 4)), Lsn(from.max(1).into()), Lsn(0));
        }
        Entry::State { partition, epoch, history, last, committed, faulty } => {
            let (partition, configuration) = (PartitionId(u16::from(partition % 4)), configuration(epoch, history));
            format::put_state(out, partition, &configuration, at(last), Lsn(committed.into()), faulty);
        }
        Entry::Reset { partition, epoch, history, base } => {
            let partition = PartitionId(u16::from(partition % 4));
            format::put_reset(out, partition, &configuration(epoch, history), at(base));
        }
    }
}

fuzz_target!(|input: Input| {
    let mut recovery = Recovery::new(identity());
    let mut segments: Vec<(SegmentId, &Segment)> = Vec::new();
    for segment in &input.segments {
        let stream = StreamId { generation: segment.generation.into(), executor: segment.executor.into() };
        segments.push((SegmentId { stream, number: u64::from(segment.number) + 1 }, segment));
    }
    segments.sort_by_key(|(id, _)| *id);
    segments.dedup_by_key(|(id, _)| *id);
    let (mut stream, mut number) = (None, 1);
    for (id, segment) in segments {
        if stream.replace(id.stream) != Some(id.stream) {
            number = 1;
        }
        let mut bytes = Vec::new();
        if !segment.headless {
            bytes = format::segment_header(ClusterId(9), &identity(), id, 1 << 20, number);
        }
        for batch in &segment.batches {
            let start = bytes.len();
            bytes.resize(start + BATCH_HEADER_BYTES, 0);
            let entries = match batch {
                Batch::Bytes(body) => {
                    bytes.extend_from_slice(body);
                    1
                }
                Batch::Entries(entries) => {
                    entries.iter().for_each(|entry| put(&mut bytes, entry));
                    entries.len() as u32
                }
                Batch::Missing => {
                    bytes.truncate(start);
                    number += 1;
                    continue;
                }
            };
            format::seal_batch(&mut bytes, start, &identity(), id, start as u64, number, entries);
            number += 1;
        }
        bytes.extend_from_slice(segment.rest);
        if let Some((at, by)) = segment.damage
            && !bytes.is_empty()
        {
            let at = usize::from(at) % bytes.len();
            bytes[at] = bytes[at].wrapping_add(by);
        }
        let _ = recovery.take_segment(id, &bytes);
    }
    let mut gather = Gather::default();
    for (id, partition) in recovery.finish().partitions {
        let restored = &partition.restored;
        if restored.fault.is_some() {
            assert!(
                partition.table.keys() == 0 && partition.operations.count() == 0 && restored.tail.is_empty(),
                "a fault gives nothing"
            );
        }
        let mut last = restored.applied;
        for record in &restored.tail {
            assert!(record.position.lsn == last.lsn.next() && record.position.epoch >= last.epoch, "{restored:?}");
            last = record.position;
        }
        if last.lsn > Lsn(0) {
            assert!(restored.configuration.as_ref().is_some_and(|c| c.epoch >= last.epoch), "{restored:?}");
        }
        gather.adopt(id, restored);
    }
});
