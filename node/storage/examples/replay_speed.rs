//! How fast a log is read back, beside reading the same bytes and their checksums alone; and what is left in a recycled
//! segment costs.
//!
//!     cargo run --release -p kv-storage --example replay_speed [RECORDS] [VALUE_BYTES] [KEYS] [RECORDS_A_BATCH]

use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{ClusterId, DiskId, Epoch, HistoryId, Lsn, Member, NodeId, PartitionId},
    replication::{Position, Record},
};
use kv_replication::replica::LogEntry;
use kv_storage::{
    log::{
        SegmentId, StreamId,
        format::{Identity, find_batch},
        gather::Gather,
        writer::{Media, StreamOptions, Writer},
    },
    recovery::Recovery,
};
use std::{collections::BTreeMap, hint::black_box, io, time::Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
const PARTITIONS: u64 = 16;

#[derive(Default)]
struct Memory {
    segments: BTreeMap<SegmentId, Vec<u8>>,
    current: Option<SegmentId>,
}

impl Media for Memory {
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()> {
        self.current = Some(id);
        self.segments.insert(id, vec![0; bytes as usize]);
        Ok(())
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        let segment = self.current.and_then(|id| self.segments.get_mut(&id)).expect("one was made");
        segment[offset as usize..][..blocks.len()].copy_from_slice(blocks);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn report(what: &str, records: u64, bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let (rate, mib) = (records as f64 / seconds / 1e6, bytes as f64 / seconds / 1024.0 / 1024.0);
    println!("{what:40} {seconds:7.3} s  {rate:6.2} M records/s  {mib:7.0} MiB/s");
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let records = numbers.next().unwrap_or(5_000_000);
    let value = vec![b'v'; numbers.next().unwrap_or(64) as usize];
    let keys = numbers.next().unwrap_or(1_000_000);
    let batch = numbers.next().unwrap_or(100);
    let identity = Identity { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
    let stream = StreamId { generation: 1, executor: 0 };
    let options = StreamOptions { cluster: ClusterId(9), identity, stream, segment_bytes: SEGMENT_BYTES };
    let mut writer = Writer::new(Memory::default(), options);
    let mut gather = Gather::default();
    let leader = Member { node: identity.node, disk: identity.disk };
    let configuration = Configuration { epoch: Epoch(1), history: HistoryId(1), leader, in_sync: vec![] };
    for partition in 0..PARTITIONS {
        let entry = LogEntry::Configuration(configuration.clone());
        gather.append(PartitionId(partition as u16), &entry, Lsn(0));
    }
    for number in 0..records {
        let (partition, lsn) = (PartitionId((number % PARTITIONS) as u16), number / PARTITIONS + 1);
        let key = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys).to_le_bytes();
        let key = [key, key].concat();
        let effect = Effect::Put { key: &key, content_type: "", value: &value, expires: None };
        let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
        let record = Record { position, operation_id: None, payload: effect.encode().into() };
        gather.append(partition, &LogEntry::Record(record), Lsn(lsn.saturating_sub(batch)));
        if number % batch == batch - 1 {
            writer.write(gather.take().into_iter().collect()).expect("written");
        }
    }
    writer.write(gather.take().into_iter().collect()).expect("written");
    let segments = std::mem::take(&mut writer.media().segments);
    let bytes: u64 = segments.values().map(|s| s.len() as u64).sum();
    println!("{records} records with values of {} bytes, {batch} a batch, {} MiB", value.len(), bytes >> 20);

    let start = Instant::now();
    let sum: u64 = segments.values().map(|s| s.iter().map(|b| u64::from(*b)).sum::<u64>()).sum();
    black_box(sum);
    report("every byte looked at", records, bytes, start);

    let start = Instant::now();
    for (id, segment) in &segments {
        let mut offset = 4096;
        while offset < segment.len() as u64 {
            let (found, length) = find_batch(&segment[offset as usize..], &identity, *id, offset);
            black_box(found);
            offset += length;
        }
    }
    report("batches found, checksums compared", records, bytes, start);

    let start = Instant::now();
    let mut recovery = Recovery::new(identity);
    for (id, segment) in &segments {
        recovery.take_segment(*id, segment).expect("it is of this disk");
    }
    let recovered = recovery.finish();
    report("read back into tables", records, bytes, start);
    let keys: u64 = recovered.partitions.values().map(|p| p.table.keys()).sum();
    assert!(recovered.partitions.values().all(|p| p.restored.fault.is_none()) && recovered.damage.is_empty());
    println!("{keys} keys");

    // The same bytes as what is left in segments that were recycled and not written to yet.
    let start = Instant::now();
    let mut recovery = Recovery::new(identity);
    for (id, segment) in &segments {
        let stream = StreamId { generation: 2, executor: 0 };
        recovery.take_segment(SegmentId { stream, number: id.number }, segment).expect("it is of this disk");
    }
    report("the same as what is left in recycled ones", records, bytes, start);
}
