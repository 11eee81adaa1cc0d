//! What is read back from logs that are written entry by entry.

use super::*;
use crate::{
    checkpoint::{Footer, Header},
    log::{
        StreamId,
        format::{put_copy, put_cut, put_record, put_reset, put_state, seal_batch, segment_header},
    },
};
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{ClusterId, DiskId, Epoch, HistoryId, Lsn, Member, NodeId},
    replication::Record,
};

const SEGMENT_BYTES: usize = 64 * 1024;

fn identity() -> Identity {
    Identity { node: NodeId::new("n").expect("a name"), disk: DiskId(1) }
}

fn configuration(epoch: u64, history: u32) -> Configuration {
    let leader = Member { node: identity().node, disk: identity().disk };
    Configuration { epoch: Epoch(epoch), history: HistoryId(history), leader, in_sync: vec![] }
}

fn at(epoch: u64, lsn: u64) -> Position {
    Position { epoch: Epoch(epoch), lsn: Lsn(lsn) }
}

/// The record at this place: its value is where it stands.
fn record(epoch: u64, lsn: u64) -> Record {
    let (key, value) = ((lsn % 4).to_le_bytes(), [epoch, lsn].map(u64::to_le_bytes).concat());
    let effect = Effect::Put { key: &key, content_type: "", value: &value, expires: None };
    Record { position: at(epoch, lsn), operation_id: None, payload: effect.encode().into() }
}

fn table(records: &[(u64, u64)]) -> Table {
    let mut table = Table::default();
    for (epoch, lsn) in records {
        let record = record(*epoch, *lsn);
        let Ok(Effect::Put { key, content_type, value, expires }) = Effect::decode(&record.payload) else { continue };
        table.put(key, crate::table::Entry { lsn: record.position.lsn, expires, content_type, value });
    }
    table
}

/// A step of writing a log of partition 0, by (epoch, LSN) where a position is meant; and of changing it afterwards.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// The next entries are of this stream: generation, executor, number of the segment.
    Segment(u64, u16, u64),
    /// A batch ends.
    Batch,
    /// A batch ends, and is damaged later.
    Lost,
    /// A batch ends whose header is intact and whose body is not.
    Torn,
    Record(u64, u64),
    Copied(u64, u64),
    Cut(u64),
    /// Of an epoch and history; the last record; whether it is faulty.
    State(u64, u32, (u64, u64), bool),
    Reset(u64, u32, (u64, u64)),
    /// What the entries from here on say to be committed.
    Committed(u64),
    /// The next entry is of partition 1: a record.
    Other(u64, u64),
}

use Do::{Batch, Committed, Copied, Cut, Lost, Other, Reset, Segment, State, Torn};

/// The segments that these steps make.
fn write(steps: &[Do]) -> BTreeMap<SegmentId, Vec<u8>> {
    let mut segments: BTreeMap<SegmentId, Vec<u8>> = BTreeMap::new();
    let mut numbers: BTreeMap<StreamId, u64> = BTreeMap::new();
    let mut id = SegmentId { stream: StreamId { generation: 1, executor: 0 }, number: 1 };
    let (mut body, mut committed, mut current, partition) = (Vec::new(), Lsn(0), Epoch(0), PartitionId(0));
    for step in steps.iter().chain(&[Batch]) {
        match *step {
            Segment(..) | Batch | Lost | Torn => {
                if !body.is_empty() {
                    let number = numbers.entry(id.stream).or_insert(1);
                    let segment = segments.entry(id).or_insert_with(|| {
                        segment_header(ClusterId(9), &identity(), id, SEGMENT_BYTES as u64, *number)
                    });
                    let start = segment.len();
                    segment.resize(start + format::BATCH_HEADER_BYTES, 0);
                    segment.append(&mut body);
                    let entries = count(&segment[start + format::BATCH_HEADER_BYTES..]);
                    seal_batch(segment, start, &identity(), id, start as u64, *number, entries);
                    *number += 1;
                    match step {
                        Lost => segment[start..].fill(0),
                        Torn => segment[start + format::BATCH_HEADER_BYTES] ^= 1,
                        _ => {}
                    }
                }
                if let Segment(generation, executor, number) = *step {
                    id = SegmentId { stream: StreamId { generation, executor }, number };
                    let next = *numbers.entry(id.stream).or_insert(1);
                    segments.insert(id, segment_header(ClusterId(9), &identity(), id, SEGMENT_BYTES as u64, next));
                }
            }
            Do::Record(epoch, lsn) => put_record(&mut body, partition, &record(epoch, lsn), committed, current),
            Copied(epoch, lsn) => put_copy(&mut body, partition, &record(epoch, lsn), committed),
            Cut(from) => put_cut(&mut body, partition, Lsn(from), committed),
            State(epoch, history, (e, l), faulty) => {
                current = Epoch(epoch);
                put_state(&mut body, partition, &configuration(epoch, history), at(e, l), committed, faulty);
            }
            Reset(epoch, history, (e, l)) => {
                current = Epoch(epoch);
                put_reset(&mut body, partition, &configuration(epoch, history), at(e, l));
            }
            Committed(lsn) => committed = Lsn(lsn),
            Other(epoch, lsn) => put_record(&mut body, PartitionId(1), &record(epoch, lsn), Lsn(0), Epoch(1)),
        }
    }
    segments
}

fn count(mut body: &[u8]) -> u32 {
    let mut entries = 0;
    while !body.is_empty() {
        format::read_entry(&mut body).expect("an entry");
        entries += 1;
    }
    entries
}

/// A checkpoint: where it starts and its history, the records that its table has, and where it ends with which.
type Checkpoint<'a> = (Position, u32, &'a [(u64, u64)], u64, &'a [(u64, u64)]);

fn read(checkpoint: Option<Checkpoint<'_>>, segments: &BTreeMap<SegmentId, Vec<u8>>) -> Recovered {
    let mut recovery = Recovery::new(identity());
    let take = |recovery: &mut Recovery| {
        if let Some((start, history, has, end, of)) = checkpoint {
            let configuration = configuration(start.epoch.0, history);
            let header = Header { cluster: ClusterId(9), partition: PartitionId(0), configuration, start };
            let (digest, operations_digest) = (table(of).digest(), Some(0));
            let footer = Footer { end: Lsn(end), entries: 0, digest, operations_digest };
            let (table, operations) = (table(has), Operations::default());
            recovery.take_checkpoint(crate::checkpoint::Checkpoint { header, table, operations, footer });
        }
    };
    take(&mut recovery);
    for (id, bytes) in segments {
        recovery.take_segment(*id, bytes).expect("it is of this disk");
        if recovery.awaiting_copies() == [PartitionId(0)] {
            take(&mut recovery);
        }
    }
    recovery.finish()
}

/// What becomes of partition 0: its records, those that are applied before a bar; or what its fault says.
fn outcome(checkpoint: Option<Checkpoint<'_>>, segments: &BTreeMap<SegmentId, Vec<u8>>) -> String {
    let recovered = read(checkpoint, segments);
    let Some(partition) = recovered.partitions.get(&PartitionId(0)) else { return "nothing".to_owned() };
    if let Some(fault) = &partition.restored.fault {
        assert!(partition.table.keys() == 0 && partition.restored.applied == Position::default(), "it gives something");
        return format!("fault: {fault}");
    }
    // What is in the table is told by the values of the newest records.
    let (applied, tail) = (partition.restored.applied, &partition.restored.tail);
    let mut out: Vec<String> = Vec::new();
    for key in 0..4u64 {
        if let Some(entry) = partition.table.get(&key.to_le_bytes()) {
            let word = |at: usize| u64::from_le_bytes(entry.value[at..at + 8].try_into().expect("8 bytes"));
            assert_eq!(entry.lsn.0, word(8));
            out.push(format!("{}.{}", word(0), word(8)));
        }
    }
    out.sort_by_key(|r| r.split('.').next_back().and_then(|l| l.parse::<u64>().ok()));
    out.push(format!("| {}.{}", applied.epoch, applied.lsn));
    out.extend(tail.iter().map(|r| format!("{}.{}", r.position.epoch, r.position.lsn)));
    out.join(" ")
}

fn check(name: &str, checkpoint: Option<Checkpoint<'_>>, steps: &[Do], expected: &str) {
    let found = outcome(checkpoint, &write(steps));
    let matches = match expected.strip_prefix("fault: ") {
        Some(part) => found.starts_with("fault: ") && found.contains(part),
        None => found == expected,
    };
    assert!(matches, "{name}:\n{steps:?}\n  found {found}\nwanted {expected}");
}

const NEW: Do = State(1, 1, (0, 0), false);
const R: fn(u64, u64) -> Do = Do::Record;

#[test]
fn a_record_or_cut_makes_void_what_stood_there_and_behind() {
    let cases: &[(&str, &[Do], &str)] = &[
        ("nothing was committed", &[NEW, R(1, 1), R(1, 2)], "| 0.0 1.1 1.2"),
        ("a commit point", &[NEW, R(1, 1), R(1, 2), Committed(1), R(1, 3)], "1.1 | 1.1 1.2 1.3"),
        (
            "a record over others",
            &[NEW, R(1, 1), R(1, 2), R(1, 3), State(2, 1, (1, 3), false), R(2, 2)],
            "| 0.0 1.1 2.2",
        ),
        ("a cut", &[NEW, R(1, 1), R(1, 2), R(1, 3), Cut(2)], "| 0.0 1.1"),
        ("a cut of everything", &[NEW, R(1, 1), Cut(1)], "| 0.0"),
        ("a cut of nothing", &[NEW, R(1, 1), Cut(2), Cut(9)], "| 0.0 1.1"),
        (
            "and others in their place",
            &[NEW, R(1, 1), R(1, 2), State(2, 1, (1, 2), false), Cut(2), R(2, 2)],
            "| 0.0 1.1 2.2",
        ),
        (
            "a state behind a torn tail",
            &[NEW, R(1, 1), R(1, 2), Segment(2, 0, 1), State(1, 1, (1, 1), false)],
            "| 0.0 1.1",
        ),
        (
            "what was committed",
            &[NEW, R(1, 1), Committed(1), R(1, 2), Cut(1)],
            "fault: takes back the record with LSN 1",
        ),
        ("a commit point beyond what is there", &[NEW, R(1, 1), Committed(9), R(1, 2)], "1.1 1.2 | 1.2"),
        ("a gap", &[NEW, R(1, 1), R(1, 3)], "fault: a gap behind LSN 1"),
        (
            "a state of more than there is",
            &[NEW, R(1, 1), Segment(2, 0, 1), State(1, 1, (1, 2), false)],
            "fault: a gap",
        ),
        ("records without configuration", &[R(1, 1)], "fault: without the configuration"),
        ("of an older epoch behind", &[NEW, State(2, 1, (0, 0), false), R(2, 1), R(1, 2)], "fault: of an older epoch"),
        (
            "the same, committed",
            &[State(2, 1, (0, 0), false), R(2, 1), R(1, 2), Committed(2), Cut(3)],
            "fault: of an older epoch",
        ),
    ];
    for (name, steps, expected) in cases {
        check(name, None, steps, expected);
    }
}

#[test]
fn a_partition_that_moves_between_executors_is_read_in_the_order_in_which_it_was_written() {
    let steps = [
        Segment(1, 1, 1),
        NEW,
        R(1, 1),
        R(1, 2),
        R(1, 3),
        Segment(2, 0, 1),
        State(2, 1, (1, 3), false),
        Cut(3),
        R(2, 3),
        R(2, 4),
        Segment(3, 1, 1),
        State(3, 1, (2, 4), false),
        R(3, 4),
        Committed(4),
        R(3, 5),
    ];
    check("1, 0, 1", None, &steps, "1.1 1.2 2.3 3.4 | 3.4 3.5");
}

#[test]
fn a_state_tells_records_that_were_cut_in_a_segment_that_was_let_go() {
    // Generation 1 is kept for somebody else; in generation 2 the records 2 and 3 were cut and others written, and the segment
    // with that was let go.
    let old = [NEW, R(1, 1), Committed(1), R(1, 2), R(1, 3), R(1, 4)];
    let cases: &[(&str, &[Do], &str)] = &[
        (
            "the same LSN, another record",
            &[Segment(2, 0, 2), State(2, 1, (2, 3), false), Committed(3), Copied(1, 1), Copied(2, 2), Copied(2, 3)],
            "1.1 2.2 2.3 | 2.3",
        ),
        (
            "committed before the copies come",
            &[Segment(2, 0, 2), Committed(3), State(2, 1, (2, 3), false), Batch, Copied(2, 2), Copied(2, 3), R(2, 4)],
            "1.1 2.2 2.3 | 2.3 2.4",
        ),
        (
            "copies out of order, and twice",
            &[
                Segment(2, 0, 2),
                State(2, 1, (2, 3), false),
                Committed(3),
                Copied(2, 3),
                Copied(2, 2),
                Copied(2, 3),
                Copied(1, 1),
            ],
            "1.1 2.2 2.3 | 2.3",
        ),
        ("no copies", &[Segment(2, 0, 2), State(2, 1, (2, 3), false)], "fault: a gap behind LSN 1"),
        (
            "a cut behind the copies",
            &[
                Segment(2, 0, 2),
                State(2, 1, (2, 5), false),
                Committed(3),
                Copied(2, 2),
                Copied(2, 3),
                Cut(4),
                Segment(3, 0, 1),
                State(2, 1, (2, 3), false),
                R(2, 4),
            ],
            "1.1 2.2 2.3 | 2.3 2.4",
        ),
        (
            "a copy of what a state does not know",
            &[Segment(2, 0, 2), State(2, 1, (1, 1), false), Committed(1), Copied(2, 2)],
            "1.1 | 1.1",
        ),
        ("an epoch that nobody knew", &[Segment(2, 0, 1), State(2, 1, (0, 2), false), R(2, 3)], "1.1 | 1.1 1.2 2.3"),
    ];
    for (name, steps, expected) in cases {
        check(name, None, &[&old, *steps].concat(), expected);
    }
}

#[test]
fn a_checkpoint_counts_once_the_log_reaches_its_end() {
    let first: &[(u64, u64)] = &[(1, 1), (1, 2)];
    let third: &[(u64, u64)] = &[(1, 1), (1, 2), (1, 3)];
    let log = [NEW, R(1, 1), R(1, 2), R(1, 3), R(1, 4)];
    let cases: &[(&str, Checkpoint<'_>, &[Do], &str)] = &[
        ("it ended where it started", (at(1, 2), 1, first, 2, first), &log, "1.1 1.2 | 1.2 1.3 1.4"),
        (
            "and more was committed since",
            (at(1, 2), 1, first, 2, first),
            &[NEW, R(1, 1), R(1, 2), R(1, 3), Committed(3), R(1, 4)],
            "1.1 1.2 1.3 | 1.3 1.4",
        ),
        ("what was in it when it ended was committed", (at(1, 2), 1, third, 3, third), &log, "1.1 1.2 1.3 | 1.3 1.4"),
        ("another table", (at(1, 2), 1, first, 3, first), &log, "fault: do not make the table"),
        ("the log does not reach it", (at(1, 2), 1, third, 3, third), &log[..3], "fault: does not reach LSN 3"),
        ("no log at all", (at(1, 2), 1, first, 2, first), &[], "1.1 1.2 | 1.2"),
        ("no log, and it ended later", (at(1, 2), 1, third, 3, third), &[], "fault: does not reach LSN 3"),
        ("a log that begins behind it", (at(1, 2), 1, first, 2, first), &[State(1, 1, (1, 4), false)], "fault: a gap"),
        (
            "a log that begins just there",
            (at(1, 2), 1, first, 2, first),
            &[State(1, 1, (1, 2), false), R(1, 3)],
            "1.1 1.2 | 1.2 1.3",
        ),
        (
            // The epoch changed while the walk went on: record 3 is another one in the end.
            "a record that was cut while it was made",
            (at(1, 2), 1, first, 3, &[(1, 1), (1, 2), (2, 3)]),
            &[NEW, R(1, 1), R(1, 2), R(1, 3), State(2, 1, (1, 3), false), Cut(3), R(2, 3), Committed(3), R(2, 4)],
            "1.1 1.2 2.3 | 2.3 2.4",
        ),
        (
            "old states before it",
            (at(2, 3), 1, &[(1, 1), (2, 3)], 3, &[(1, 1), (2, 3)]),
            &[
                NEW,
                R(1, 1),
                R(1, 2),
                R(1, 3),
                State(2, 1, (1, 3), false),
                Cut(2),
                Batch,
                State(2, 1, (1, 1), false),
                R(2, 2),
                R(2, 3),
            ],
            "1.1 2.3 | 2.3",
        ),
    ];
    for (name, checkpoint, steps, expected) in cases {
        check(name, Some(*checkpoint), steps, expected);
    }
}

#[test]
fn after_damage_only_who_is_known_to_have_lost_nothing_goes_on() {
    let damage = "fault: may have been its own";
    let cases: &[(&str, &[Do], &str)] = &[
        ("a torn tail", &[NEW, R(1, 1), Batch, R(1, 2), Lost], "| 0.0 1.1"),
        ("a torn tail with an intact header", &[NEW, R(1, 1), Batch, R(1, 2), Torn], "| 0.0 1.1"),
        ("nothing was lost", &[NEW, R(1, 1), Batch, Other(1, 1), Lost, R(1, 2)], "| 0.0 1.1 1.2"),
        ("what follows was begun and is torn", &[NEW, R(1, 1), Batch, R(1, 2), Lost, R(1, 3), Torn], damage),
        ("a record was lost", &[NEW, R(1, 1), Batch, R(1, 2), Lost, R(1, 3)], "fault: "),
        ("nothing comes behind", &[NEW, R(1, 1), Batch, Other(1, 1), Lost, Other(1, 2)], damage),
        ("the first entries", &[NEW, R(1, 1), Lost, R(1, 2)], "fault: "),
        (
            // LSN 3 follows LSN 2, and 2 is another record by now.
            "a cut and what was written in its place",
            &[NEW, R(1, 1), R(1, 2), State(2, 1, (1, 2), false), Batch, Cut(2), R(2, 2), Lost, R(2, 3)],
            damage,
        ),
        (
            "the same, and a state behind it",
            &[
                NEW,
                R(1, 1),
                R(1, 2),
                State(2, 1, (1, 2), false),
                Batch,
                Cut(2),
                R(2, 2),
                Lost,
                State(2, 1, (2, 2), false),
            ],
            "fault: a gap",
        ),
        (
            "the same, and more that would settle it",
            &[
                NEW,
                R(1, 1),
                R(1, 2),
                State(2, 1, (1, 2), false),
                Batch,
                Cut(2),
                R(2, 2),
                Lost,
                R(2, 3),
                R(2, 4),
                Cut(5),
            ],
            damage,
        ),
        (
            // Its last record was read behind the damage, and says nothing of LSN 2 and 3. (Seed 6079 of the simulation.)
            "the same, and a state behind what follows",
            &[
                NEW,
                R(1, 1),
                R(1, 2),
                R(1, 3),
                R(1, 4),
                State(2, 1, (1, 4), false),
                Batch,
                Cut(2),
                R(2, 2),
                R(2, 3),
                Lost,
                Committed(2),
                R(2, 4),
                State(2, 1, (2, 4), false),
                R(2, 5),
            ],
            "fault: a gap",
        ),
        (
            "a state that means what is there",
            &[NEW, R(1, 1), R(1, 2), Batch, Other(1, 1), Lost, State(2, 1, (1, 2), false), R(2, 3)],
            "| 0.0 1.1 1.2 2.3",
        ),
        (
            "a cut, even to what was applied: a configuration may be missing",
            &[NEW, R(1, 1), Committed(1), R(1, 2), R(1, 3), Batch, Other(1, 1), Lost, Cut(2)],
            damage,
        ),
        ("a cut to what was not", &[NEW, R(1, 1), R(1, 2), R(1, 3), Batch, Other(1, 1), Lost, Cut(3)], damage),
        (
            // What the damage may have made void is not applied.
            "a commit point behind it",
            &[NEW, R(1, 1), R(1, 2), Batch, Other(1, 1), Lost, Committed(2), R(2, 3)],
            damage,
        ),
        (
            // Records of epoch 1 go on coming from who is ahead; but no replica goes back behind a configuration.
            "a configuration",
            &[NEW, R(1, 1), Batch, State(2, 1, (1, 1), false), Lost, R(1, 2)],
            damage,
        ),
        ("a configuration and its records", &[NEW, R(1, 1), Batch, State(2, 1, (1, 1), false), Lost, R(2, 2)], damage),
        (
            "a record behind what was applied",
            &[
                NEW,
                R(1, 1),
                State(2, 1, (1, 1), false),
                Committed(1),
                R(1, 2),
                Batch,
                Other(1, 1),
                Lost,
                Cut(2),
                R(2, 2),
            ],
            "1.1 | 1.1 2.2",
        ),
        ("a reset", &[NEW, R(1, 1), Batch, R(1, 2), Lost, Reset(2, 1, (1, 9))], "fault: was not completed"),
        ("a state that knows of it", &[NEW, R(1, 1), Batch, State(1, 1, (0, 0), true)], "fault: at an earlier start"),
        (
            "and what follows",
            &[NEW, R(1, 1), Batch, State(1, 1, (0, 0), true), State(2, 1, (0, 0), false), R(2, 1)],
            "fault: at an earlier start",
        ),
        (
            "damage in another stream of its generation",
            &[
                Segment(1, 0, 1),
                NEW,
                R(1, 1),
                Segment(2, 0, 1),
                State(1, 1, (1, 1), false),
                R(1, 2),
                Segment(2, 1, 1),
                Other(1, 1),
                Batch,
                Other(1, 2),
                Lost,
                Other(1, 3),
            ],
            "| 0.0 1.1 1.2",
        ),
    ];
    for (name, steps, expected) in cases {
        check(name, None, steps, expected);
    }
}

#[test]
fn segments_that_are_missing_or_empty_are_damage_if_others_follow() {
    let first = [NEW, R(1, 1)];
    let second = [Segment(1, 0, 2), State(1, 1, (1, 1), false), R(1, 2)];
    let third = [Segment(1, 0, 3), State(1, 1, (1, 2), false), R(1, 3)];
    let whole = write(&[&first[..], &second, &third].concat());
    let id = |number| SegmentId { stream: StreamId { generation: 1, executor: 0 }, number };
    assert_eq!(outcome(None, &whole), "| 0.0 1.1 1.2 1.3");
    for (missing, expected) in [(1, "a gap"), (2, "a gap"), (3, "| 0.0 1.1 1.2")] {
        let mut removed = whole.clone();
        removed.remove(&id(missing));
        let mut emptied = whole.clone();
        emptied.insert(id(missing), vec![0; SEGMENT_BYTES]);
        for (image, noticed) in [(removed, missing == 2), (emptied, missing < 3)] {
            assert!(outcome(None, &image).contains(expected), "{missing}: {}", outcome(None, &image));
            assert_eq!(!read(None, &image).damage.is_empty(), noticed, "{missing}");
        }
    }
    // The header of what follows says how many batches there were before it, though its first is torn.
    let mut image = write(&[&first[..], &second, &[Lost], &third, &[Torn]].concat());
    assert!(outcome(None, &image).contains("may have been its own"));
    image.get_mut(&id(3)).expect("it is there")[BLOCK_BYTES..].fill(0);
    assert!(outcome(None, &image).contains("may have been its own"));
    // A generation of which only the first segment was made.
    let mut image = whole.clone();
    let next = SegmentId { stream: StreamId { generation: 2, executor: 0 }, number: 1 };
    for content in [vec![], vec![0; SEGMENT_BYTES], vec![7; SEGMENT_BYTES], whole[&id(2)].clone()] {
        image.insert(next, content);
        assert_eq!(outcome(None, &image), "| 0.0 1.1 1.2 1.3");
        assert_eq!(read(None, &image).damage, [""; 0]);
    }
}

#[test]
fn a_reset_is_complete_with_the_table_of_its_history_or_faulty() {
    let old = [NEW, R(1, 1), Committed(1), R(1, 2), R(1, 3), Committed(0)];
    let copy: &[(u64, u64)] = &[(1, 1), (1, 2), (2, 3), (2, 4)];
    let later: &[(u64, u64)] = &[(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)];
    let reset = [Reset(2, 1, (2, 4)), R(2, 5), Committed(5), R(2, 6)];
    let cases: &[(&str, Option<Checkpoint<'_>>, &[Do], &str)] = &[
        ("no table", None, &reset, "fault: was not completed"),
        (
            "its own old one",
            Some((at(1, 2), 1, &[(1, 1), (1, 2)], 2, &[(1, 1), (1, 2)])),
            &reset,
            "fault: was not completed",
        ),
        ("the copy", Some((at(2, 4), 1, copy, 5, later)), &reset, "1.2 2.3 2.4 2.5 | 2.5 2.6"),
        ("a later one", Some((at(2, 5), 1, later, 5, later)), &reset, "1.2 2.3 2.4 2.5 | 2.5 2.6"),
        (
            "a copy, and the log does not reach its end",
            Some((at(2, 4), 1, copy, 5, later)),
            &reset[..1],
            "fault: does not reach",
        ),
        (
            // What was committed in a history that a person gave up does not count.
            "of a shorter history",
            Some((at(3, 2), 2, &[(1, 1), (3, 2)], 2, &[(1, 1), (3, 2)])),
            &[Committed(3), R(1, 4), Committed(2), Reset(3, 2, (3, 2)), R(3, 3)],
            "1.1 3.2 | 3.2 3.3",
        ),
        (
            "a longer table of the history that was given up",
            Some((at(1, 3), 1, &[(1, 1), (1, 2), (1, 3)], 3, &[(1, 1), (1, 2), (1, 3)])),
            &[Reset(3, 2, (3, 2)), R(3, 3)],
            "fault: was not completed",
        ),
        (
            "reset twice",
            Some((at(3, 2), 2, &[(1, 1), (3, 2)], 2, &[(1, 1), (3, 2)])),
            &[Reset(2, 1, (2, 4)), Batch, State(2, 1, (0, 0), true), Reset(3, 2, (3, 2)), R(3, 3)],
            "1.1 3.2 | 3.2 3.3",
        ),
    ];
    for (name, checkpoint, steps, expected) in cases {
        check(name, *checkpoint, &[&old, *steps].concat(), expected);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_used_makes_its_partition_faulty_and_keeps_its_configuration() {
    let mut recovery = Recovery::new(identity());
    recovery.refuse_checkpoint(PartitionId(0), "its checkpoint is damaged".to_owned());
    for (id, bytes) in write(&[NEW, R(1, 1), State(2, 1, (1, 1), false), R(2, 2)]) {
        recovery.take_segment(id, &bytes).expect("it is of this disk");
    }
    let partition = &recovery.finish().partitions[&PartitionId(0)];
    assert!(partition.restored.fault.as_ref().is_some_and(|f| f.contains("is damaged")));
    assert_eq!(partition.restored.configuration, Some(configuration(2, 1)), "it never goes back behind that");
}

#[test]
fn what_is_scanned_says_who_needs_a_segment() {
    let segments = write(&[NEW, R(1, 1), R(1, 2), Other(1, 7), Reset(2, 1, (2, 4)), R(2, 5)]);
    let (id, bytes) = segments.first_key_value().expect("one");
    let scanned = Recovery::new(identity()).take_segment(*id, bytes).expect("it is of this disk");
    let last = [(0, 5), (1, 7)].map(|(p, l)| (PartitionId(p), Lsn(l)));
    assert_eq!(scanned.sealed.last, last.into());
    assert_eq!(scanned.sealed.resets, [(PartitionId(0), Lsn(4))].into());
    assert_eq!((scanned.states, scanned.damage), ([PartitionId(0)].into(), None));
}

#[test]
fn entries_that_nobody_can_read_are_damage_to_those_that_may_be_meant() {
    let mut segments = write(&[NEW, R(1, 1), Other(1, 1)]);
    let (id, segment) = segments.first_entry().map(|e| (*e.key(), e.into_mut())).expect("one");
    let start = segment.len();
    segment.resize(start + format::BATCH_HEADER_BYTES, 0);
    segment.extend_from_slice(&[0; 40]);
    seal_batch(segment, start, &identity(), id, start as u64, 2, 1);
    assert!(outcome(None, &segments).contains("may have been its own"));
}
