//! Files that earlier versions wrote are read as they were written: see `corpus/README.md`.

mod common;

use common::{
    State, at, checkpoint_of, configuration, delete,
    disk::{Disk, Media, Shared},
    identity, keyless, options, put, recover,
};
use kv_proto::{
    codec,
    control::{FromController, ToController},
    error_code::{ErrorCode, WireError},
    frame::{Decoder, Kind, append_message},
    hello::{Caller, Hello, Welcome},
    ids::{
        ClientId, ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, NodeId, OperationId, PartitionId, Version,
    },
    limits::Limits,
    replication::{PeerBatch, Record},
    request::{Condition, Operation, Request},
    response::{Answered, Response},
};
use kv_replication::replica::{LogEntry, Restored};
use kv_storage::{
    checkpoint::{self, of_file_name},
    log::{
        SegmentId,
        format::{segment_name, segment_of_name},
        gather::Gather,
        writer::Writer,
    },
    operations::Known,
    recovery::Partition,
    table::Walk,
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    num::NonZeroU64,
    path::{Path, PathBuf},
    rc::Rc,
};

const SEGMENT_BYTES: u64 = 16 * 1024;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

/// Compares with what is expected of a folder; writes both if they are not there and are to be written.
fn check(name: &str, write: fn(&Path), read: fn(&Path) -> String) {
    let folder = folder(name);
    if std::env::var_os("KV_WRITE_CORPUS").is_some() {
        if folder.exists() {
            println!("{} is there, and is not written again", folder.display());
        } else {
            fs::create_dir_all(&folder).expect("made");
            write(&folder);
            fs::write(folder.join("expected.txt"), read(&folder)).expect("written");
        }
    }
    let expected = fs::read_to_string(folder.join("expected.txt")).expect("a folder of the corpus");
    let found = read(&folder);
    for (line, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{name}, line {}: files that are there can no longer be read", line + 1);
    }
    assert_eq!(found, expected, "{name}: files that are there can no longer be read");
}

#[test]
fn a_log_of_format_1() {
    check("log-1", write_log, read_log);
}

#[test]
fn a_log_with_checkpoints_of_format_2() {
    check("log-2", write_log, |folder| read_log_with(folder, describe_with_operations));
}

#[test]
fn frames_of_version_1() {
    check("frames-2", write_frames, read_frames);
}

/// A stream that is written to.
struct Stream {
    gather: Gather,
    writer: Writer<Media>,
}

impl Stream {
    fn new(shared: &Rc<RefCell<Shared>>, generation: u64, executor: u16) -> Self {
        let mut writer = Writer::new(Media::new(shared), options(generation, executor, SEGMENT_BYTES));
        writer.open().expect("made");
        Stream { gather: Gather::default(), writer }
    }

    fn append(&mut self, partition: u16, entry: LogEntry, committed: u64) {
        self.gather.append(PartitionId(partition), &entry, Lsn(committed));
    }

    fn records(&mut self, partition: u16, committed: u64, records: &[Record]) {
        for record in records {
            self.append(partition, LogEntry::Record(record.clone()), committed);
        }
    }

    fn flush(&mut self) {
        self.writer.write(self.gather.take().into_iter().collect()).expect("written");
    }
}

/// Records of one epoch, from one LSN to another: every fourth is a delete, some have no key.
fn records(epoch: u64, lsns: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    let record = |lsn: u64| {
        let key = [b"key-", &[b'a' + (lsn % 7) as u8][..]].concat();
        let value = format!("value {lsn} of epoch {epoch}");
        match lsn {
            5 | 6 | 10 | 22 => keyless(at(epoch, lsn)),
            lsn if lsn.is_multiple_of(4) => delete(at(epoch, lsn), &key),
            _ => put(at(epoch, lsn), &key, value.as_bytes()),
        }
    };
    lsns.map(record).collect()
}

fn masked() -> Record {
    put(at(2, 15), b"masked", &b"\x01kvB".repeat(1500))
}

fn state(records: &[Record]) -> State {
    let mut state = State::default();
    records.iter().for_each(|record| state.apply(record));
    state
}

fn restored(epoch: u64, applied: Lsn, records: &[Record]) -> Restored {
    let (before, tail) = records.split_at(applied.0 as usize);
    let applied = before.last().map(|r| r.position).unwrap_or_default();
    Restored { configuration: Some(configuration(epoch, 1)), applied, tail: tail.to_vec(), ..Restored::default() }
}

fn write_log(folder: &Path) {
    let shared = Shared { disk: Disk::default(), honest: true, moments: Vec::new(), full: 0 };
    let shared = Rc::new(RefCell::new(shared));
    let mut checkpoints: BTreeMap<(PartitionId, Lsn), Vec<u8>> = BTreeMap::new();

    // Partition 0: an epoch changes, records are cut. 1: quiet. 2: will be reset. 3: will be faulty. 4: a reset without a copy.
    let (mut first, mut second) = (Stream::new(&shared, 1, 0), Stream::new(&shared, 1, 1));
    for partition in [0, 1, 2] {
        first.append(partition, LogEntry::Configuration(configuration(1, 1)), 0);
        first.records(partition, 0, &records(1, 1..=6));
        first.flush();
    }
    for partition in [3, 4] {
        second.append(partition, LogEntry::Configuration(configuration(1, 1)), 0);
        second.records(partition, 0, &records(1, 1..=3));
    }
    second.flush();
    first.records(0, 4, &records(1, 7..=9));
    first.append(0, LogEntry::Configuration(configuration(2, 1)), 5);
    first.append(0, LogEntry::Cut { from: Lsn(8) }, 5);
    first.records(0, 5, &records(2, 8..=12));
    first.flush();
    let of_0 = [records(1, 1..=7), records(2, 8..=12)].concat();

    // The next generation has one stream; a checkpoint of partition 0 starts at 5 and ends at 11.
    let mut only = Stream::new(&shared, 2, 0);
    only.gather.adopt(PartitionId(0), &restored(2, Lsn(5), &of_0));
    for partition in [1, 2] {
        only.gather.adopt(PartitionId(partition), &restored(1, Lsn(0), &records(1, 1..=6)));
    }
    only.gather.adopt(
        PartitionId(3),
        &Restored {
            configuration: Some(configuration(1, 1)),
            fault: Some("something was damaged".to_owned()),
            ..Restored::default()
        },
    );
    only.gather.adopt(PartitionId(4), &restored(1, Lsn(0), &records(1, 1..=3)));
    only.flush();
    let header = checkpoint::Header {
        cluster: common::CLUSTER,
        partition: PartitionId(0),
        configuration: configuration(2, 1),
        start: at(1, 5),
    };
    let (mut encoder, mut bytes) = checkpoint::Encoder::new(identity(), &header);
    let (mut growing, mut walk) = (state(&of_0[..5]), Walk::new());
    let (piece, after) = encoder.take_operations(&growing.operations, Lsn(0), 50).expect("there are some");
    bytes.extend(piece);
    walk.next_chunk(&growing.table, 100, &mut |key, entry| encoder.push(key, entry));
    bytes.extend(encoder.take_chunk());
    of_0[5..8].iter().for_each(|record| growing.apply(record));
    bytes.extend(encoder.take_operations(&growing.operations, after, 1000).expect("there are more").0);
    of_0[8..11].iter().for_each(|record| growing.apply(record));
    while !walk.next_chunk(&growing.table, 100, &mut |key, entry| encoder.push(key, entry)) {
        bytes.extend(encoder.take_chunk());
    }
    bytes.extend(encoder.finish(Lsn(11), growing.table.digest(), growing.operations.digest()));
    checkpoints.insert((PartitionId(0), Lsn(5)), bytes);
    only.records(0, 11, &records(2, 13..=14));
    // A value that looks like batches, which makes a mask.
    only.records(0, 11, &[masked()]);
    only.flush();
    // Copies forward, out of order.
    for record in records(1, 1..=4).iter().rev() {
        only.gather.copy(PartitionId(1), record, Lsn(4));
    }
    only.flush();
    for (id, configuration, base) in [(2, configuration(4, 2), at(3, 20)), (4, configuration(3, 1), at(2, 9))] {
        only.gather.append(PartitionId(id), &LogEntry::Reset { configuration, base }, base.lsn);
    }
    only.flush();
    let of_2 = [records(1, 1..=6), records(3, 7..=20)].concat();
    let copy = checkpoint_of(PartitionId(2), &configuration(4, 2), at(3, 20), &state(&of_2));
    checkpoints.insert((PartitionId(2), Lsn(20)), copy);
    only.records(2, 20, &records(4, 21..=22));
    only.flush();

    // The last generation, on the other executor: a torn tail.
    let mut last = Stream::new(&shared, 3, 1);
    let of_0 = [of_0, records(2, 13..=14), vec![masked()]].concat();
    last.gather.adopt(PartitionId(0), &restored(2, Lsn(11), &of_0));
    last.records(0, 12, &records(2, 16..=17));
    last.flush();
    let room = last.writer.room();
    last.records(0, 16, &records(2, 18..=19));
    last.flush();
    let torn = last.writer.segment().expect("one was made");

    let disk = &mut shared.borrow_mut().disk;
    let torn = &mut disk.segments.get_mut(&torn).expect("it is there").durable;
    torn[(SEGMENT_BYTES - room) as usize + 100..].fill(0);
    for (id, segment) in &disk.segments {
        fs::write(folder.join(segment_name(*id)), &segment.durable).expect("written");
    }
    for ((partition, start), bytes) in checkpoints {
        fs::write(folder.join(checkpoint::file_name(partition, start)), bytes).expect("written");
    }
}

fn read_log(folder: &Path) -> String {
    read_log_with(folder, describe)
}

fn read_log_with(folder: &Path, describe: fn(&mut String, &Partition)) -> String {
    let (mut segments, mut checkpoints) = (BTreeMap::<SegmentId, Vec<u8>>::new(), BTreeMap::new());
    for file in fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        let bytes = fs::read(&path).expect("read");
        if let Some(id) = segment_of_name(name) {
            segments.insert(id, bytes);
        } else if let Some(id) = of_file_name(name) {
            checkpoints.insert(id, bytes);
        }
    }
    let (recovered, scanned) = recover(&checkpoints, &segments).expect("a format that is known");
    let mut out = String::new();
    for scanned in scanned {
        let last: Vec<_> = scanned.sealed.last.iter().map(|(p, l)| format!("{p}:{l}")).collect();
        let resets: Vec<_> = scanned.sealed.resets.iter().map(|(p, l)| format!("{p}:{l}")).collect();
        let states: Vec<_> = scanned.states.iter().map(ToString::to_string).collect();
        let id = scanned.sealed.id;
        let _ =
            writeln!(out, "{id}: records {last:?}, resets {resets:?}, states {states:?}, damage {:?}", scanned.damage);
    }
    let _ = writeln!(out, "damage {:?}", recovered.damage);
    for (id, partition) in &recovered.partitions {
        let _ = writeln!(out, "\npartition {id}");
        describe(&mut out, partition);
    }
    out
}

fn describe(out: &mut String, partition: &Partition) {
    let Partition { table, restored, released, index, .. } = partition;
    if let Some(c) = &restored.configuration {
        let members: Vec<_> = c.members().map(|m| format!("{}/{}", m.node, m.disk)).collect();
        let _ = writeln!(out, "  configuration: epoch {}, history {}, {members:?}", c.epoch, c.history);
    }
    if let Some(fault) = &restored.fault {
        let _ = writeln!(out, "  fault: {fault}");
    }
    let _ = writeln!(out, "  applied {}, released {}, digest {:016x}", restored.applied, released.lsn, table.digest());
    let mut entries = BTreeMap::new();
    Walk::new().next_chunk(table, usize::MAX, &mut |key, entry| {
        let expires = entry.expires.map(kv_proto::effect::Expiry::ms);
        let value = entry.value.escape_ascii().to_string();
        let value = if value.len() > 60 { format!("{} bytes", entry.value.len()) } else { value };
        entries
            .insert(key.to_vec(), format!("LSN {}, {:?}, expires {expires:?}: {value}", entry.lsn, entry.content_type));
    });
    for (key, entry) in entries {
        let _ = writeln!(out, "  {}: {entry}", key.escape_ascii());
    }
    for record in &restored.tail {
        let id = record.operation_id.map(|id| format!("{}/{}/{}", id.client, id.sequence, id.known_lsn));
        let payload = record.payload.escape_ascii().to_string();
        let payload = if payload.len() > 120 { format!("{} bytes", record.payload.len()) } else { payload };
        let _ = writeln!(out, "  then {}, operation {id:?}: {payload}", record.position);
    }
    for place in index.find(Lsn(1), usize::MAX) {
        let _ = writeln!(out, "  LSN {} to {} at byte {} of {}", place.first, place.last, place.offset, place.segment);
    }
}

fn describe_with_operations(out: &mut String, partition: &Partition) {
    describe(out, partition);
    let operations = &partition.operations;
    let _ = writeln!(out, "  {} operations, digest {:016x}", operations.count(), operations.digest());
    for sequence in 0..=30 {
        let known = operations.find(&OperationId { client: ClientId(9), sequence, known_lsn: Lsn(0) });
        if known != Known::New {
            let _ = writeln!(out, "  operation {sequence}: {known:?}");
        }
    }
}

fn write_frames(folder: &Path) {
    let mut out = Vec::new();
    let mut add = |kind, id, body: Vec<u8>| append_message(&mut out, kind, id, |out| out.extend_from_slice(&body));
    let peer = Caller::Peer { node: NodeId::new("shard0-leader").expect("a name"), disk: DiskId(0xd15c) };
    for (cluster, caller, executor) in [
        (None, Caller::Client, None),
        (Some(ClusterId(0xc1)), peer, Some(ExecutorIndex(3))),
        (Some(ClusterId(0xc1)), Caller::Node, None),
    ] {
        add(Kind::Hello, 0, codec::encode(&Hello { cluster, caller, executor }));
    }
    let mut error = WireError::new(ErrorCode::NotLeader, "another node leads it");
    add(Kind::Refusal, 0, codec::encode(&error));
    error.configuration = Some(Box::new((PartitionId(7), configuration(4, 1))));
    add(Kind::Refusal, 0, codec::encode(&error));
    let (cluster, node, disk) = (Some(ClusterId(0xc1)), identity().node, identity().disk);
    let (executor, limits) = (ExecutorIndex(1), Limits::default());
    add(Kind::Welcome, 0, codec::encode(&Welcome { cluster, node, disk, executor, executors: 2, limits }));
    let version = Version { history: HistoryId(2), lsn: Lsn(9) };
    let (condition, ttl_ms) = (Condition::Version(version), NonZeroU64::new(60_000));
    let operations = [
        Operation::Get { key: b"key" },
        Operation::Put { key: b"key", value: b"value", content_type: "text/plain", condition, ttl_ms },
        Operation::Delete { key: b"key", condition: Condition::Present },
        Operation::Map,
        Operation::Stats,
        Operation::Ping,
    ];
    for (id, operation) in (1..).zip(operations) {
        let operation_id = OperationId { client: ClientId(5), sequence: 6, known_lsn: Lsn(7) };
        let operation_id = operation.key().map(|_| operation_id);
        add(Kind::Request, id, codec::encode(&Request { deadline_ms: 2000, operation_id, operation }));
    }
    let at = Answered { partition: PartitionId(3), epoch: Epoch(4) };
    let responses = [
        Response::Value {
            at,
            version,
            content_type: "text/plain",
            value: b"value",
            expires_in_ms: NonZeroU64::new(1500),
        },
        Response::Missing { at },
        Response::Written { at, version },
        Response::ConditionFailed { at, current: Some(version) },
        Response::Pong,
        Response::Error(error),
    ];
    for (id, response) in (1..).zip(responses) {
        add(Kind::Response, id, codec::encode(&response));
    }
    // A message of more than one frame.
    let long = vec![b'x'; 300_000];
    add(
        Kind::Response,
        7,
        codec::encode(&Response::Value { at, version, content_type: "", value: &long, expires_in_ms: None }),
    );
    add(Kind::ToController, 1, codec::encode(&ToController::Ping));
    let answers = [
        FromController::Registered { cluster: ClusterId(0xc1) },
        FromController::Refused("it is of another cluster".to_owned()),
        FromController::Decided(vec![None, Some("the epoch is another one".to_owned())]),
        FromController::Pong,
    ];
    for (id, answer) in (0..).zip(answers) {
        add(Kind::FromController, id, codec::encode(&answer));
    }
    fs::write(folder.join("frames.bin"), out).expect("written");
}

fn read_frames(folder: &Path) -> String {
    let bytes = fs::read(folder.join("frames.bin")).expect("read");
    let (mut decoder, mut rest, mut out) = (Decoder::new(1 << 20), &bytes[..], String::new());
    loop {
        let (used, message) = decoder.decode(rest).expect("frames");
        if let Some(message) = message {
            let text = match message.kind {
                Kind::Hello => format!("{:?}", codec::decode::<Hello>(message.body)),
                Kind::Welcome => format!("{:?}", codec::decode::<Welcome>(message.body)),
                Kind::Refusal => format!("{:?}", codec::decode::<WireError>(message.body)),
                Kind::Request => format!("{:?}", codec::decode::<Request<'_>>(message.body)),
                Kind::Response => format!("{:?}", codec::decode::<Response<'_>>(message.body)),
                Kind::ToController => format!("{:?}", codec::decode::<ToController>(message.body)),
                Kind::FromController => format!("{:?}", codec::decode::<FromController>(message.body)),
                Kind::Replication => format!("{:?}", codec::decode::<PeerBatch>(message.body)),
                Kind::Consensus => String::from_utf8_lossy(message.body).into_owned(),
            };
            let text = if text.len() > 1000 { format!("{} bytes", message.body.len()) } else { text };
            let _ = writeln!(out, "{:?} {}: {text}", message.kind, message.id);
        } else if used == 0 {
            assert!(rest.is_empty(), "{} bytes are left", rest.len());
            return out;
        }
        rest = &rest[used..];
    }
}
