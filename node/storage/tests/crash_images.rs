//! Damage anywhere: whatever happens to the files of a log or a checkpoint, nothing wrong comes back from them.
//!
//! A log of a few hundred records of three partitions is cut at every byte, bits are flipped all over it, and files are
//! missing, exchanged, or of somebody else. What is read back is a partition as it was, or, where the end of the log is what was
//! damaged, as it was one batch earlier; or the partition is faulty. A partition that lost nothing is whole.

mod common;

use common::{
    State, at, checkpoint_of, configuration, delete, digest,
    disk::{Disk, Image, Media, Shared},
    identity, keyless,
    model::Log,
    options, put,
    random::Random,
    recover,
};
use kv_proto::ids::{DiskId, Lsn, PartitionId};
use kv_replication::replica::LogEntry;
use kv_storage::{
    checkpoint,
    log::{
        SegmentId,
        format::{self, FormatError, Identity},
        gather::Gather,
        writer::Writer,
    },
    recovery::{Recovered, Recovery},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

const SEGMENT_BYTES: u64 = 20 * 1024;
const PARTITIONS: u16 = 3;

/// A batch of the log.
struct Written {
    segment: SegmentId,
    offset: usize,
    /// With its header, without padding.
    bytes: usize,
    /// Who has entries in it, other than states at the beginning of a segment.
    concerned: BTreeSet<PartitionId>,
    /// How everything is once it is on disk.
    after: BTreeMap<PartitionId, Log>,
}

struct Sample {
    image: Image,
    batches: Vec<Written>,
}

/// Writes until three segments are full, over what another generation left in them.
fn sample() -> Sample {
    let random = &mut Random(1);
    let mut logs: BTreeMap<PartitionId, Log> = (0..PARTITIONS).map(|id| (PartitionId(id), Log::default())).collect();
    let mut shared = Shared { disk: Disk::default(), honest: true, moments: Vec::new(), full: 0 };
    for _ in 0..3 {
        shared
            .disk
            .spares
            .push((0..SEGMENT_BYTES).map(|i| if i % 4096 < 4 { b"kvB\x01"[i as usize % 4096] } else { 7 }).collect());
    }
    let shared = Rc::new(RefCell::new(shared));
    let mut writer = Writer::new(Media::new(&shared), options(3, 0, SEGMENT_BYTES));
    let (mut gather, mut batches) = (Gather::default(), Vec::new());
    writer.open().expect("made");
    for batch in 0.. {
        let mut concerned = BTreeSet::new();
        for (id, log) in &mut logs {
            if batch > 0 && random.one_in(3) {
                continue;
            }
            concerned.insert(*id);
            if batch == 0 || random.one_in(6) {
                let next = log.next_configuration();
                gather.append(*id, &LogEntry::Configuration(next.clone()), log.committed());
                log.configuration = Some(next);
                if log.last() > log.committed() && random.one_in(2) {
                    gather.append(*id, &LogEntry::Cut { from: log.last() }, log.committed());
                    log.records.pop();
                }
            }
            for _ in 0..1 + random.below(15) {
                let at = at(log.epoch(), log.last().0 + 1);
                let key = random.below(20).to_le_bytes();
                let record = match random.below(12) {
                    0..3 => delete(at, &key),
                    3 => keyless(at),
                    _ => put(at, &key, &[at.lsn.0 as u8; 90]),
                };
                gather.append(*id, &LogEntry::Record(record.clone()), log.committed());
                log.records.push(record);
            }
        }
        let chunk = gather.take().expect("there is something");
        let (body, room) = (chunk.body.len(), writer.room());
        if writer.segment().is_some_and(|s| s.number == 3) && room < body as u64 + 32 {
            break;
        }
        let flushed = writer.write(vec![chunk]).expect("written");
        let place = flushed.places[0].1;
        let bytes = shared.borrow().disk.segments[&place.segment].cached();
        let bytes = format::batch_bytes(&bytes[place.offset as usize..]);
        batches.push(Written {
            segment: place.segment,
            offset: place.offset as usize,
            bytes,
            concerned,
            after: logs.clone(),
        });
        for log in logs.values_mut() {
            // All but the last few are committed.
            let (mut state, from) = (State::default(), log.committed());
            for (lsn, record) in (1..=log.last().0.saturating_sub(3)).zip(&log.records) {
                state.apply(record);
                if Lsn(lsn) > from {
                    log.digests.push(state.digest());
                }
            }
        }
    }
    for written in &mut batches {
        // What is known to be committed later was so for good before.
        for (id, log) in &mut written.after {
            let more = &logs[id].digests;
            if logs[id].records.starts_with(&log.records[..log.records.len().min(more.len() - 1)]) {
                log.digests.clone_from(more);
                log.digests.truncate(log.records.len() + 1);
            }
        }
    }
    let image = shared.borrow().disk.image_of_cache();
    assert_eq!(image.len(), 3);
    Sample { image, batches }
}

impl Sample {
    fn end(&self) -> &BTreeMap<PartitionId, Log> {
        &self.batches.last().expect("there are batches").after
    }

    fn recover(&self, image: &Image) -> Recovered {
        recover(&BTreeMap::new(), image).expect("it is of this disk").0
    }

    /// Whether an image with this one batch damaged, if it is one, is read as it should be.
    fn check(&self, image: &Image, damaged: Option<usize>, what: &str) {
        let recovered = self.recover(image);
        let last = self.batches.len() - 1;
        let before = match damaged {
            Some(batch) if batch == last => &self.batches[last - 1].after,
            _ => self.end(),
        };
        for (id, log) in before {
            let found = recovered.partitions.get(id);
            let Some(batch) = damaged.filter(|batch| *batch != last) else {
                log.check(*id, found).unwrap_or_else(|error| panic!("{what}: {error}"));
                continue;
            };
            let written = &self.batches[batch];
            let is_faulty = match found {
                Some(found) => found.restored.fault.is_some(),
                None => !recovered.damage.is_empty(),
            };
            assert!(!recovered.damage.is_empty(), "{what}: the damage is not noticed");
            if !is_faulty {
                log.check(*id, found).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            if !written.concerned.contains(id) {
                // Each segment begins with the states of all, which say whether something is missing.
                let told = self.batches[batch..].iter().any(|w| w.segment != written.segment);
                assert!(
                    !told || !is_faulty,
                    "{what}: partition {id} lost nothing: {:?}",
                    found.map(|f| &f.restored.fault)
                );
            }
        }
    }

    /// The batch that has this byte.
    fn batch_at(&self, segment: SegmentId, byte: usize) -> Option<usize> {
        self.batches.iter().position(|w| w.segment == segment && (w.offset..w.offset + w.bytes).contains(&byte))
    }

    fn flip(&self, segment: SegmentId, byte: usize, random: &mut Random) {
        let mut image = self.image.clone();
        let bit = random.below(8);
        image.get_mut(&segment).expect("it is there")[byte] ^= 1 << bit;
        self.check(&image, self.batch_at(segment, byte), &format!("{segment}, byte {byte}, bit {bit}"));
    }
}

#[test]
fn a_log_cut_at_any_byte_is_whole_up_to_the_last_batch_that_is() {
    let sample = sample();
    let (last, bytes) = sample.image.last_key_value().expect("three");
    let used = sample.batches.last().map(|w| w.offset + w.bytes).expect("there are batches");
    for cut in 0..used {
        let mut image = sample.image.clone();
        let segment = image.get_mut(last).expect("it is there");
        if cut % 2 == 0 {
            segment.truncate(cut);
        } else {
            segment[cut..].fill(0);
        }
        let recovered = sample.recover(&image);
        assert_eq!(recovered.damage, [""; 0], "cut at {cut}");
        // The header of a segment is written with its first batch, which is whole without it.
        let is_whole = |w: &&Written| {
            let range = w.offset..w.offset + w.bytes;
            image[&w.segment].get(range.clone()) == Some(&sample.image[&w.segment][range])
        };
        let whole = sample.batches.iter().filter(is_whole).count();
        for (id, log) in &sample.batches[whole - 1].after {
            log.check(*id, recovered.partitions.get(id)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        }
    }
    assert!(used > bytes.len() / 2);
}

fn flip_all(first: usize) {
    let (sample, random) = (sample(), &mut Random(2 + first as u64));
    let middle = *sample.image.keys().nth(1).expect("three");
    for byte in (first..SEGMENT_BYTES as usize).step_by(2) {
        sample.flip(middle, byte, random);
    }
}

#[test]
fn a_bit_that_flips_anywhere_in_a_segment_never_makes_anything_wrong() {
    flip_all(0);
}

/// The other half, so that two cores share them.
#[test]
fn a_bit_that_flips_anywhere_else_in_a_segment_never_makes_anything_wrong() {
    flip_all(1);
}

#[test]
fn bits_that_flip_in_the_first_or_last_segment_neither() {
    let (sample, random) = (sample(), &mut Random(3));
    for segment in [sample.image.keys().next(), sample.image.keys().last()].into_iter().flatten() {
        for byte in (0..SEGMENT_BYTES as usize).step_by(11) {
            sample.flip(*segment, byte, random);
        }
        for written in sample.batches.iter().filter(|w| w.segment == *segment) {
            (written.offset..written.offset + 32).for_each(|byte| sample.flip(*segment, byte, random));
        }
    }
}

#[test]
fn several_blocks_that_are_lost_never_make_anything_wrong() {
    let (sample, random) = (sample(), &mut Random(4));
    for round in 0..2000 {
        let mut image = sample.image.clone();
        for bytes in image.values_mut() {
            for block in bytes.chunks_mut(4096) {
                match random.below(40) {
                    0 => block.fill(0),
                    1 => block[random.below(8) as usize * 512..][..512].fill(0xff),
                    _ => {}
                }
            }
        }
        let recovered = sample.recover(&image);
        for (id, end) in sample.end() {
            let found = recovered.partitions.get(id);
            let is_faulty = found.is_some_and(|f| f.restored.fault.is_some());
            let nothing = found.is_none() && !recovered.damage.is_empty();
            // The whole log, or up to a batch if everything behind is gone.
            let as_of_some_batch = || sample.batches.iter().any(|w| w.after[id].check(*id, found).is_ok());
            assert!(
                is_faulty || nothing || end.check(*id, found).is_ok() || as_of_some_batch(),
                "round {round}, partition {id}: {:?}",
                found.map(|f| &f.restored)
            );
        }
    }
}

#[test]
fn segments_that_are_missing_are_noticed() {
    let sample = sample();
    let ids: Vec<SegmentId> = sample.image.keys().copied().collect();
    for missing in &ids[..2] {
        let mut image = sample.image.clone();
        image.remove(missing);
        let recovered = sample.recover(&image);
        for id in sample.end().keys() {
            let fault = recovered.partitions[id].restored.fault.as_deref().unwrap_or_default();
            assert!(fault.contains("gap") || fault.contains("missing"), "{missing}, partition {id}: {fault:?}");
        }
    }
    // Of the last one nobody can know: it is as if it had never been made. The next generation's states would tell.
    let mut image = sample.image.clone();
    image.remove(&ids[2]);
    let recovered = sample.recover(&image);
    let before = sample.batches.iter().rfind(|w| w.segment == ids[1]).expect("there are some");
    for (id, log) in &before.after {
        log.check(*id, recovered.partitions.get(id)).expect("as of the end of the second");
    }
}

#[test]
fn segments_under_wrong_names_are_noticed() {
    let sample = sample();
    let ids: Vec<SegmentId> = sample.image.keys().copied().collect();
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        let mut image = sample.image.clone();
        let (one, other) = (image[&ids[a]].clone(), image[&ids[b]].clone());
        image.insert(ids[a], other);
        image.insert(ids[b], one);
        let recovered = sample.recover(&image);
        assert!(!recovered.damage.is_empty(), "{a} and {b} exchanged");
        for id in sample.end().keys() {
            let found = recovered.partitions.get(id);
            assert!(found.is_none_or(|f| f.restored.fault.is_some()), "{a} and {b} exchanged, partition {id}");
        }
    }
}

#[test]
fn segments_of_others_are_refused_or_count_for_nothing() {
    let sample = sample();
    let (id, bytes) = sample.image.last_key_value().expect("three");
    let mut recovery = Recovery::new(Identity { disk: DiskId(1), ..identity() });
    assert_eq!(
        recovery.take_segment(*id, bytes),
        Err(FormatError::OtherDisk { node: identity().node, disk: identity().disk })
    );
    let mut future = bytes.clone();
    future[8..12].copy_from_slice(&2u32.to_le_bytes());
    let mut recovery = Recovery::new(identity());
    assert!(recovery.take_segment(*id, &future).is_ok(), "one bit is no other version");
    let checksum = crc32c::crc32c(&future[..12]).to_le_bytes();
    future[12..16].copy_from_slice(&checksum);
    assert_eq!(recovery.take_segment(*id, &future), Err(FormatError::OtherFormat(2)));
    // A segment of an earlier generation that became one of the next, and was not written to before the power went.
    let mut image = sample.image.clone();
    let stream = kv_storage::log::StreamId { generation: 4, executor: 0 };
    image.insert(SegmentId { stream, number: 1 }, sample.image[id].clone());
    sample.check(&image, None, "a segment without a header of its own");
}

#[test]
fn a_checkpoint_that_was_cut_or_has_a_flipped_bit_is_never_read() {
    let (mut state, mut random) = (State::default(), Random(5));
    for lsn in 1..=60 {
        state.apply(&put(at(2, lsn), &random.below(40).to_le_bytes(), &[lsn as u8; 50]));
    }
    let bytes = checkpoint_of(PartitionId(1), &configuration(2, 1), at(2, 60), &state);
    let read = |bytes: &[u8]| checkpoint::read(&mut &bytes[..], &identity());
    let found = read(&bytes).expect("it is whole");
    assert_eq!((found.header.start, found.footer.end), (at(2, 60), Lsn(60)));
    assert_eq!(digest(&found.table, &found.operations), state.digest());
    for cut in 0..bytes.len() {
        assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        let mut flipped = bytes.clone();
        flipped[cut] ^= 1 << random.below(8);
        assert!(read(&flipped).is_err(), "a bit of byte {cut} flipped");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(read(&longer).is_err(), "a byte more");
    let other = Identity { disk: DiskId(1), ..identity() };
    let error = checkpoint::read(&mut &bytes[..], &other).err().expect("another's").to_string();
    assert!(error.contains("belongs to node"), "{error}");
}
