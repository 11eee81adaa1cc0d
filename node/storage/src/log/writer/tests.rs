use super::*;
use crate::{log::gather::Gather, recovery::Recovery};
use kv_proto::{
    effect::Effect,
    ids::{DiskId, Epoch, HistoryId, Member, NodeId},
    replication::Record,
};
use kv_replication::replica::{LogEntry, Restored};

const SEGMENT_BYTES: u64 = 16 * 1024;

#[derive(Debug, PartialEq, Eq)]
enum Call {
    Create(u64),
    Write(u64, usize),
    Sync,
}

/// Keeps what it is told, and fails when it should.
#[derive(Debug, Default)]
struct Log {
    calls: Vec<Call>,
    segments: BTreeMap<SegmentId, Vec<u8>>,
    current: Option<SegmentId>,
    fail: Option<(&'static str, io::ErrorKind)>,
}

impl Log {
    fn answer(&mut self, what: &str) -> io::Result<()> {
        self.fail.take_if(|(fails, _)| *fails == what).map_or(Ok(()), |(_, kind)| Err(kind.into()))
    }
}

impl Media for Log {
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()> {
        self.calls.push(Call::Create(id.number));
        self.answer("create")?;
        self.segments.insert(id, vec![0; bytes as usize]);
        self.current = Some(id);
        Ok(())
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        self.calls.push(Call::Write(offset, blocks.len()));
        self.answer("write")?;
        assert_eq!(blocks.as_ptr().align_offset(BLOCK_BYTES), 0);
        let segment = self.segments.get_mut(&self.current.expect("one was made")).expect("it is there");
        segment[offset as usize..][..blocks.len()].copy_from_slice(blocks);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.calls.push(Call::Sync);
        self.answer("sync")
    }
}

fn identity() -> Identity {
    Identity { node: NodeId::new("n").expect("a name"), disk: DiskId(1) }
}

fn writer() -> Writer<Log> {
    let stream = StreamId { generation: 1, executor: 0 };
    let options = StreamOptions { cluster: ClusterId(9), identity: identity(), stream, segment_bytes: SEGMENT_BYTES };
    Writer::new(Log::default(), options)
}

fn configuration(epoch: u64) -> Configuration {
    let leader = Member { node: identity().node, disk: identity().disk };
    Configuration { epoch: Epoch(epoch), history: HistoryId(1), leader, in_sync: vec![] }
}

fn record(lsn: u64, bytes: usize) -> LogEntry {
    let effect = Effect::Put { key: b"k", content_type: "", value: &vec![7; bytes], expires: None };
    let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
    LogEntry::Record(Record { position, operation_id: None, payload: effect.encode().into() })
}

fn chunk(gather: &mut Gather, entries: &[LogEntry], committed: u64) -> Chunk {
    entries.iter().for_each(|entry| gather.append(PartitionId(3), entry, Lsn(committed)));
    gather.take().expect("there is something")
}

fn recover(log: &Log) -> Restored {
    let mut recovery = Recovery::new(identity());
    for (id, bytes) in &log.segments {
        let scanned = recovery.take_segment(*id, bytes).expect("it is of this disk");
        assert_eq!(scanned.damage, None);
    }
    recovery.finish().partitions.remove(&PartitionId(3)).expect("a partition").restored
}

#[test]
fn a_batch_is_written_and_synced_and_a_full_segment_followed_by_one_with_the_states() {
    let (mut writer, mut gather) = (writer(), Gather::default());
    writer.open().expect("made");
    assert_eq!(writer.media().calls, [Call::Create(1), Call::Write(0, 8192), Call::Sync]);
    assert_eq!(writer.room(), 8192);
    let first = chunk(&mut gather, &[LogEntry::Configuration(configuration(1)), record(1, 10)], 0);
    let second = chunk(&mut gather, &[record(2, 10), record(3, 10)], 1);
    let flushed = writer.write(vec![first, second]).expect("written");
    assert_eq!(flushed.sealed, None);
    assert_eq!(flushed.parts.iter().map(|p| (p.entries, p.committed.0)).collect::<Vec<_>>(), [(2, 0), (2, 1)]);
    let place = |number, offset, first, last| {
        let segment = SegmentId { stream: StreamId { generation: 1, executor: 0 }, number };
        (PartitionId(3), Place { segment, offset, first: Lsn(first), last: Lsn(last) })
    };
    assert_eq!(flushed.places, [place(1, 8192, 1, 1), place(1, 8192, 2, 3)]);
    writer.media().calls.clear();
    // 4,064 bytes fit into the last block with the header, one more does not.
    let flushed = writer.write(vec![chunk(&mut gather, &[record(4, 4064 - 32 - 13)], 1)]).expect("written");
    assert_eq!((flushed.sealed, writer.room()), (None, 0));
    let flushed = writer.write(vec![chunk(&mut gather, &[record(5, 10)], 2)]).expect("written");
    let sealed = flushed.sealed.expect("the first is full");
    assert_eq!((sealed.id.number, sealed.last), (1, [(PartitionId(3), Lsn(4))].into()));
    assert_eq!(flushed.places, [place(2, 4096, 5, 5)]);
    // One write and one sync, of header, states and batch together.
    let calls = [Call::Write(12_288, 4096), Call::Sync, Call::Create(2), Call::Write(0, 8192), Call::Sync];
    assert_eq!(writer.media().calls, calls);
    // The second segment says all that matters of the first.
    let second = writer.media().segments.split_off(&place(2, 0, 0, 0).1.segment);
    let (id, bytes) = second.first_key_value().expect("it is there");
    let batch = format::read_batch(&bytes[4096..], &identity(), *id, 4096).expect("a batch");
    let state = format::read_entry(&mut &batch.body[..]).expect("an entry");
    assert_eq!((batch.number, batch.entries, state.committed), (4, 2, Lsn(1)));
    let last = Position { epoch: Epoch(1), lsn: Lsn(4) };
    assert_eq!(state.content, format::Content::State { configuration: configuration(1), last, faulty: false });
    writer.media().segments.extend(second);
    let restored = recover(writer.media());
    assert_eq!((restored.applied.lsn, restored.tail.len(), restored.fault), (Lsn(2), 3, None));
}

#[test]
fn a_disk_that_is_full_is_asked_again_and_nothing_is_lost() {
    let (mut writer, mut gather) = (writer(), Gather::default());
    writer.open().expect("made");
    let first = chunk(&mut gather, &[LogEntry::Configuration(configuration(1)), record(1, 7000)], 0);
    writer.write(vec![first]).expect("written");
    let mut chunks = vec![chunk(&mut gather, &[record(2, 10)], 1), chunk(&mut gather, &[record(3, 10)], 1)];
    for _ in 0..3 {
        writer.media().fail = Some(("create", io::ErrorKind::StorageFull));
        let before = writer.media().calls.len();
        let Err(WriteError::Full(back)) = writer.write(chunks) else { panic!("it is full") };
        assert_eq!((back.len(), writer.media().calls.len()), (2, before + 1), "nothing is written");
        chunks = back;
    }
    let flushed = writer.write(chunks).expect("there is room now");
    assert_eq!((flushed.parts.len(), flushed.sealed.is_some()), (2, true));
    let restored = recover(writer.media());
    assert_eq!((restored.applied.lsn, restored.tail.len(), restored.fault), (Lsn(1), 2, None));
}

#[test]
fn after_an_error_nothing_is_written() {
    for (what, number) in [("create", 2), ("write", 1), ("sync", 1)] {
        let (mut writer, mut gather) = (writer(), Gather::default());
        writer.open().expect("made");
        let size = if what == "create" { 8200 } else { 10 };
        let first = chunk(&mut gather, &[LogEntry::Configuration(configuration(1)), record(1, size)], 0);
        writer.media().fail = Some((what, io::ErrorKind::Other));
        let error = writer.write(vec![first]).expect_err("it fails");
        let WriteError::Failed { segment, .. } = error else { panic!("{error}") };
        assert_eq!(segment.number, number, "{what}");
        let calls = writer.media().calls.len();
        let second = chunk(&mut gather, &[record(2, 10)], 0);
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.write(vec![second]).is_ok()));
        assert!(again.is_err(), "{what}: it goes on");
        assert_eq!(writer.media().calls.len(), calls);
    }
}

#[test]
fn a_faulty_partition_stays_so_from_segment_to_segment_until_it_is_reset() {
    let (mut writer, mut gather) = (writer(), Gather::default());
    writer.open().expect("made");
    let fault = Some("damaged".to_owned());
    let restored = Restored { configuration: Some(configuration(1)), fault, ..Restored::default() };
    gather.adopt(PartitionId(3), &restored);
    gather.append(PartitionId(3), &LogEntry::Configuration(configuration(2)), Lsn(0));
    writer.write(gather.take().into_iter().collect()).expect("written");
    let other = record(1, 8200);
    gather.append(PartitionId(4), &other, Lsn(0));
    writer.write(gather.take().into_iter().collect()).expect("written");
    let segment = writer.segment().expect("the second");
    assert_eq!(segment.number, 2);
    let second = writer.media().segments[&segment].clone();
    let found = recover(&Log { segments: [(segment, second)].into(), ..Log::default() });
    assert!(found.fault.is_some_and(|f| f.contains("earlier start")));
    assert_eq!(found.configuration, Some(configuration(2)));
    let base = Position { epoch: Epoch(1), lsn: Lsn(9) };
    gather.append(PartitionId(3), &LogEntry::Reset { configuration: configuration(3), base }, base.lsn);
    let flushed = writer.write(gather.take().into_iter().collect()).expect("written");
    assert_eq!(flushed.parts[0].reset, Some(Lsn(9)));
    assert!(recover(writer.media()).fault.is_some_and(|f| f.contains("not completed")));
}
