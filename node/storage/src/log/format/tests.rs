//! The bytes as they stand on disks: golden, so that no change of the code changes them unseen.

use super::*;
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{ClientId, HistoryId, Member, OperationId, PartitionId},
    replication::Record,
};

fn identity() -> Identity {
    Identity { node: NodeId::new("n1").expect("a name"), disk: DiskId(0x0d15_c000) }
}

fn id() -> SegmentId {
    SegmentId { stream: StreamId { generation: 3, executor: 1 }, number: 2 }
}

fn configuration() -> Configuration {
    let member = |node: &str, disk| Member { node: NodeId::new(node).expect("a name"), disk: DiskId(disk) };
    let (leader, follower) = (member("n1", 0x0d15_c000), member("n2", 2));
    Configuration { epoch: Epoch(5), history: HistoryId(1), leader, in_sync: vec![follower] }
}

fn at(epoch: u64, lsn: u64) -> Position {
    Position { epoch: Epoch(epoch), lsn: Lsn(lsn) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn record(operation_id: Option<OperationId>) -> Record {
    let effect = Effect::Put { key: b"k", content_type: "t", value: b"v", expires: None };
    Record { position: at(5, 0x11), operation_id, payload: effect.encode().into() }
}

/// An entry, its bytes, and what it says.
fn entries() -> Vec<(Vec<u8>, &'static str, Content)> {
    let partition = PartitionId(0x0102);
    let make = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    let operation_id = OperationId { client: ClientId(0xc1), sequence: 7, known_lsn: Lsn(3) };
    let (plain, with_id, configuration) = (record(None), record(Some(operation_id)), configuration());
    let members = "0500000000000000010000000200\
                   00c0150d000000000000000000000000026e31\
                   02000000000000000000000000000000026e32";
    let state = |last, faulty| Content::State { configuration: configuration.clone(), last, faulty };
    let effect = "010101000000000000000000".to_owned() + "6b7476";
    let hex = |text: String| -> &'static str { text.leak() };
    vec![
        (
            make(&|out| put_record(out, partition, &plain, Lsn(0x10), Epoch(5))),
            hex(format!("2f000000010802010500000000000000 11000000000000001000000000000000 {effect}")),
            Content::Record { record: plain.clone(), copy: false, current: true },
        ),
        (
            make(&|out| put_copy(out, partition, &with_id, Lsn(0x11))),
            hex(format!(
                "4f000000010302010500000000000000 11000000000000001100000000000000 \
                 c1000000000000000000000000000000 07000000000000000300000000000000 {effect}"
            )),
            Content::Record { record: with_id.clone(), copy: true, current: false },
        ),
        (
            make(&|out| put_cut(out, partition, Lsn(0x12), Lsn(0x11))),
            "20000000020002010000000000000000 12000000000000001100000000000000",
            Content::Cut { from: Lsn(0x12) },
        ),
        (
            make(&|out| put_state(out, partition, &configuration, at(4, 0x11), Lsn(0x10), false)),
            hex(format!("54000000030002010400000000000000 11000000000000001000000000000000 {members}")),
            state(at(4, 0x11), false),
        ),
        (
            make(&|out| put_state(out, partition, &configuration, at(0, 0), Lsn(0), true)),
            hex(format!("54000000030402010000000000000000 00000000000000000000000000000000 {members}")),
            state(at(0, 0), true),
        ),
        (
            make(&|out| put_reset(out, partition, &configuration, at(4, 0x11))),
            hex(format!("54000000040002010400000000000000 11000000000000001100000000000000 {members}")),
            Content::Reset { configuration: configuration.clone(), base: at(4, 0x11) },
        ),
    ]
}

#[test]
fn golden_bytes_of_entries() {
    for (bytes, golden, content) in entries() {
        assert_eq!(hex(&bytes), golden.replace(' ', ""), "{content:?}");
        let mut body = &bytes[..];
        let entry = read_entry(&mut body).expect("an entry");
        assert_eq!((entry.partition, entry.content, body), (PartitionId(0x0102), content, &[][..]));
    }
}

#[test]
fn golden_bytes_of_a_segment_header() {
    let bytes = segment_header(ClusterId(0xc1), &identity(), id(), 65_536, 9);
    assert_eq!(bytes.len(), BLOCK_BYTES);
    let golden = "6b762d77616c0d0a 01000000 b7086dd6 c1000000000000000000000000000000 00c0150d000000000000000000000000 \
                  0300000000000000 0100000000000000 0200000000000000 0000010000000000 0900000000000000 026e31";
    assert_eq!(hex(&bytes[..91]), golden.replace(' ', ""));
    assert!(bytes[91..BLOCK_BYTES - 4].iter().all(|byte| *byte == 0));
    assert_eq!(hex(&bytes[BLOCK_BYTES - 4..]), "a16fa0a9", "its checksum");
    assert_eq!(check_segment_header(&bytes, &identity(), id()), Ok(9));
}

#[test]
fn golden_bytes_of_a_batch() {
    let mut out = vec![0xee; 4096];
    out.resize(4096 + BATCH_HEADER_BYTES, 0);
    put_cut(&mut out, PartitionId(1), Lsn(2), Lsn(1));
    seal_batch(&mut out, 4096, &identity(), id(), 8192, 9, 1);
    assert_eq!(out.len(), 8192);
    let golden = "6b764201 3d93c2c8 0900000000000000 20000000 01000000 00000000 f3ca15da";
    assert_eq!(hex(&out[4096..4128]), golden.replace(' ', ""));
    assert!(out[4160..].iter().all(|byte| *byte == 0));
    let batch = read_batch(&out[4096..], &identity(), id(), 8192).expect("a batch");
    assert_eq!((batch.number, batch.entries, &*batch.body), (9, 1, &out[4128..4160]));
    assert_eq!(batch_bytes(&out[4096..]), 64);
}

#[test]
fn bytes_count_only_at_the_place_that_they_were_written_for() {
    let mut out = vec![0; BATCH_HEADER_BYTES];
    put_cut(&mut out, PartitionId(1), Lsn(2), Lsn(1));
    seal_batch(&mut out, 0, &identity(), id(), 8192, 9, 1);
    assert!(read_batch(&out, &identity(), id(), 8192).is_some());
    let stream = id().stream;
    for other in [
        SegmentId { number: 3, ..id() },
        SegmentId { stream: StreamId { executor: 0, ..stream }, ..id() },
        SegmentId { stream: StreamId { generation: 4, ..stream }, ..id() },
    ] {
        assert_eq!(find_batch(&out, &identity(), other, 8192), (Found::Nothing, 4096));
    }
    let disk = Identity { disk: DiskId(1), ..identity() };
    let node = Identity { node: NodeId::new("n2").expect("a name"), ..identity() };
    assert_eq!(read_batch(&out, &identity(), id(), 4096), None);
    assert_eq!((read_batch(&out, &disk, id(), 8192), read_batch(&out, &node, id(), 8192)), (None, None));
    out[40] ^= 1;
    assert_eq!(find_batch(&out, &identity(), id(), 8192), (Found::Torn { number: 9 }, 4096));
    assert_eq!(find_batch(&out[..50], &identity(), id(), 8192), (Found::Torn { number: 9 }, 4096));
}

#[test]
fn what_clients_write_never_looks_like_a_batch() {
    // A batch in a batch, at the place that it would be valid for.
    let offset = 16_384;
    let mut inner = vec![0; BATCH_HEADER_BYTES];
    put_cut(&mut inner, PartitionId(1), Lsn(2), Lsn(1));
    seal_batch(&mut inner, 0, &identity(), id(), offset + 4096, 10, 1);
    for masks in 0..4u32 {
        let mut out = vec![0; 4096];
        out.extend_from_slice(&inner);
        // Blocks that a small mask would make look like one.
        for mask in 1..=masks {
            let start = out.len();
            out.resize(start + 4096, 0);
            out[start..start + 4].copy_from_slice(&(u32::from_le_bytes(BATCH_MAGIC) ^ mask).to_le_bytes());
        }
        out.extend_from_slice(&[1, 2, 3]);
        let body = out[BATCH_HEADER_BYTES..].to_vec();
        seal_batch(&mut out, 0, &identity(), id(), offset, 9, 1);
        assert_eq!(u32::from_le_bytes(out[24..28].try_into().expect("4 bytes")), masks + 1);
        for block in (4096..out.len()).step_by(4096) {
            let found = find_batch(&out[block..], &identity(), id(), offset + block as u64);
            assert_eq!(found, (Found::Nothing, 4096));
        }
        let batch = read_batch(&out, &identity(), id(), offset).expect("a batch");
        assert_eq!(*batch.body, body);
    }
}

#[test]
fn a_flipped_bit_in_a_header_is_damage_and_nothing_else() {
    let bytes = segment_header(ClusterId(0xc1), &identity(), id(), 65_536, 9);
    for byte in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[byte] ^= 1 << (byte % 8);
        let found = check_segment_header(&flipped, &identity(), id());
        assert!(matches!(found, Err(FormatError::Damaged(_))), "byte {byte}: {found:?}");
        assert!(check_segment_header(&bytes[..byte], &identity(), id()).is_err(), "{byte} bytes");
    }
    let other = SegmentId { number: 3, ..id() };
    assert_eq!(check_segment_header(&bytes, &identity(), other), Err(FormatError::OtherSegment(id())));
    let disk = Identity { disk: DiskId(1), ..identity() };
    let found = check_segment_header(&bytes, &disk, id());
    assert_eq!(found, Err(FormatError::OtherDisk { node: identity().node, disk: identity().disk }));
    let mut future = bytes;
    future[8] = 2;
    let checksum = crc32c::crc32c(&future[..12]).to_le_bytes();
    future[12..16].copy_from_slice(&checksum);
    future[16..].fill(9);
    assert_eq!(check_segment_header(&future, &identity(), id()), Err(FormatError::OtherFormat(2)));
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let (mut records, mut others) = (Vec::new(), Vec::new());
    put_record(&mut records, PartitionId(1), &record(None), Lsn(0), Epoch(4));
    put_cut(&mut others, PartitionId(1), Lsn(1), Lsn(0));
    let changed = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        read_entry(&mut &bytes[..]).map_err(|e| e.to_string())
    };
    for (bytes, at, to, what) in [
        (&records, 0, 0x30, "ends too early"),
        (&records, 0, 3, "ends too early"),
        (&records, 0, 0x22, "without an effect"),
        (&records, 4, 9, "unknown kind"),
        (&records, 5, 4, "unknown flags"),
        (&records, 15, 0x80, "cannot be"),
        (&records, 23, 0x80, "cannot be"),
        (&records, 31, 0x80, "cannot be"),
        (&records, 16, 0, "a record that cannot be"),
        (&records, 32, 7, "without an effect"),
        (&others, 16, 0, "a record that cannot be"),
        (&others, 4, 3, "ends too early"),
        (&others, 5, 1, "unknown flags"),
    ] {
        let error = changed(bytes, at, to).expect_err(what);
        assert!(error.contains(what), "byte {at} is {to}: {error}");
    }
    let longer = [&[0x21, 0, 0, 0], &others[4..], &[0]].concat();
    assert!(read_entry(&mut &longer[..]).is_err());
}

#[test]
fn names_are_those_of_segments_alone() {
    assert_eq!(segment_name(id()), "0000000003-0001-0000000002.log");
    assert_eq!(segment_of_name("0000000003-0001-0000000002.log"), Some(id()));
    for name in [
        "spare-1",
        "3-1-2.log",
        "+000000003-0001-0000000002.log",
        "0000000003-0001-0000000002.log.new",
        "a-b-c.log",
        "0000000003-65536-0000000002.log",
        "0000000003-0001-0000000002-1.log",
    ] {
        assert_eq!(segment_of_name(name), None, "{name}");
    }
}
