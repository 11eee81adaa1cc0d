//! A copy of another replica's table takes the place of what a replica has, and the process or the power ends at any step of it:
//! what is read back is the old table, before the reset is on disk; the copy, once it has its name; and in between a fault that
//! says that it was not completed.

mod common;

use common::{
    State, at, checkpoint_of, configuration, delete, digest,
    disk::{Disk, Media, Shared},
    keyless, options, put,
    random::Random,
    recover,
};
use kv_proto::{
    effect::Effect,
    ids::{Lsn, PartitionId},
    replication::Record,
};
use kv_replication::replica::LogEntry;
use kv_storage::{
    copy::{self, CopyWalk},
    log::{gather::Gather, writer::Writer},
};
use std::{cell::RefCell, collections::BTreeMap, ops::RangeInclusive, rc::Rc};

const P: PartitionId = PartitionId(2);
const SEGMENT_BYTES: u64 = 20 * 1024;
/// Where the copy starts and ends.
const START: u64 = 12;
const END: u64 = 19;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Old,
    NotCompleted,
    Copy,
}

fn records(epoch: u64, lsns: RangeInclusive<u64>) -> Vec<Record> {
    let record = |lsn: u64| match lsn % 7 {
        0 => delete(at(epoch, lsn), &[(lsn % 5) as u8]),
        1 => keyless(at(epoch, lsn)),
        _ => put(at(epoch, lsn), &[(lsn % 5) as u8], &[epoch as u8; 300]),
    };
    lsns.map(record).collect()
}

fn state(records: &[Record]) -> State {
    let mut state = State::default();
    records.iter().for_each(|record| state.apply(record));
    state
}

/// The copy as a learner has it in memory: loaded part by part while the leader's table changes, then brought up to its end.
fn loaded(leaders: &[Record]) -> State {
    let mut leader = state(&leaders[..START as usize]);
    let (mut walk, mut copied) = (CopyWalk::default(), State::default());
    let mut changes = leaders[START as usize..END as usize].iter();
    loop {
        let change = changes.next();
        let (part, last) = walk.next_part(&leader.table, &leader.operations, 1);
        copy::take_part(&part, &mut copied.table, &mut copied.operations).expect("a part");
        if last {
            change.into_iter().chain(changes.by_ref()).for_each(|record| leader.apply(record));
            break;
        }
        change.into_iter().for_each(|record| leader.apply(record));
    }
    for record in &leaders[START as usize..END as usize] {
        let effect = Effect::decode(&record.payload).expect("an effect");
        copied.operations.apply(record, &effect);
        match effect {
            Effect::Put { key, content_type, value, expires } => {
                let lsn = record.position.lsn;
                let entry = kv_storage::table::Entry { lsn, expires, content_type, value };
                copied.table.put_if_newer(key, entry);
            }
            Effect::Delete { key } => copied.table.remove_if_older(record.position.lsn, key),
            Effect::Outcome(_) | Effect::Nothing => {}
        }
    }
    let ends = (copy::digest(&copied.table, &copied.operations), copy::digest(&leader.table, &leader.operations));
    assert_eq!(ends.0, ends.1);
    copied
}

struct World {
    random: Random,
    shared: Rc<RefCell<Shared>>,
    old: Vec<Record>,
    leaders: Vec<Record>,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    /// Whatever a loss of power at this moment leaves is one of these.
    fn check(&mut self, disk: &Disk, step: &'static str, allowed: &[Found]) {
        for round in 0..8 {
            let image = if round == 0 { disk.image_of_cache() } else { disk.image_after_power_loss(&mut self.random) };
            let (mut recovered, _) = recover(&disk.checkpoints, &image).expect("files of this disk");
            assert_eq!(recovered.damage, [] as [String; 0], "{step}");
            let found = recovered.partitions.remove(&P).expect("it has something");
            let applied = found.restored.applied.lsn.0 as usize;
            let as_of = |records: &[Record]| {
                applied <= records.len()
                    && digest(&found.table, &found.operations) == state(&records[..applied]).digest()
            };
            let found = match &found.restored.fault {
                Some(fault) if fault.contains("was not completed") => Found::NotCompleted,
                Some(fault) => panic!("{step}: {fault}"),
                None if found.restored.configuration.as_ref().is_some_and(|c| c.epoch.0 < 4) => {
                    assert!(as_of(&self.old), "{step}: the old table, up to {applied}");
                    Found::Old
                }
                None => {
                    assert!(as_of(&self.leaders) && applied as u64 >= END, "{step}: the copy, up to {applied}");
                    Found::Copy
                }
            };
            assert!(allowed.contains(&found), "{step}: {found:?} is not one of {allowed:?}");
            *self.seen.entry(step).or_default() += 1;
        }
    }

    fn check_now(&mut self, step: &'static str, allowed: Found) {
        let disk = self.shared.borrow().disk.clone();
        self.check(&disk, step, &[allowed]);
    }

    /// Writes a batch, and looks at every moment of it.
    fn flush(&mut self, writer: &mut Writer<Media>, gather: &mut Gather, step: &'static str, allowed: &[Found]) {
        self.shared.borrow_mut().moments.clear();
        writer.write(gather.take().into_iter().collect()).expect("written");
        let moments = std::mem::take(&mut self.shared.borrow_mut().moments);
        for disk in moments {
            self.check(&disk, step, allowed);
        }
        let last = *allowed.last().expect("one");
        self.check_now(step, last);
    }
}

/// `history` is that of the leader; the old checkpoint starts at `old_start`, the old log ends at `old_last`.
fn install(history: u32, old_start: u64, old_last: u64) {
    let shared = Rc::new(RefCell::new(Shared { disk: Disk::default(), honest: true, moments: Vec::new(), full: 0 }));
    let mut writer = Writer::new(Media::new(&shared), options(1, 0, SEGMENT_BYTES));
    let mut gather = Gather::default();
    let (old, leaders) = (records(1, 1..=old_last), records(4, 1..=40));
    let mut world = World { random: Random(7), shared: shared.clone(), old, leaders, seen: BTreeMap::new() };
    writer.open().expect("made");
    gather.append(P, &LogEntry::Configuration(configuration(1, 1)), Lsn(0));
    for record in &world.old {
        gather.append(P, &LogEntry::Record(record.clone()), Lsn(record.position.lsn.0 - 1));
    }
    writer.write(gather.take().into_iter().collect()).expect("written");
    let old_state = state(&world.old[..old_start as usize]);
    let old_checkpoint = checkpoint_of(P, &configuration(1, 1), at(1, old_start), &old_state);
    shared.borrow_mut().disk.checkpoints.insert((P, Lsn(old_start)), old_checkpoint);
    world.check_now("as it was", Found::Old);

    let (configuration, base) = (configuration(4, history), at(4, START));
    let reset = LogEntry::Reset { configuration: configuration.clone(), base };
    gather.append(P, &reset, base.lsn);
    world.flush(&mut writer, &mut gather, "the reset", &[Found::Old, Found::NotCompleted]);
    let copied = loaded(&world.leaders);
    for record in world.leaders.clone().iter().take(END as usize).skip(START as usize) {
        gather.append(P, &LogEntry::Record(record.clone()), Lsn(record.position.lsn.0 - 1));
        if record.position.lsn.0 % 3 == 0 || record.position.lsn == Lsn(END) {
            world.flush(&mut writer, &mut gather, "the records", &[Found::NotCompleted]);
        }
    }
    shared.borrow_mut().disk.checkpoints.clear();
    world.check_now("the old checkpoint is removed", Found::NotCompleted);
    // It is begun when all up to its end is applied.
    let checkpoint = checkpoint_of(P, &configuration, at(4, END), &copied);
    shared.borrow_mut().disk.checkpoints.insert((P, Lsn(END)), checkpoint);
    world.check_now("the copy has its name", Found::Copy);
    for record in world.leaders.clone().iter().skip(END as usize) {
        gather.append(P, &LogEntry::Record(record.clone()), Lsn(record.position.lsn.0 - 1));
        if record.position.lsn.0 % 7 == 0 {
            world.flush(&mut writer, &mut gather, "what follows", &[Found::Copy]);
        }
    }
    assert_eq!(world.seen.len(), 6, "{:?}", world.seen);
}

#[test]
fn a_replica_that_is_behind_is_given_a_copy() {
    install(1, 5, 9);
}

#[test]
fn a_replica_with_more_of_another_history_is_given_a_copy() {
    install(2, 30, 33);
}

#[test]
fn a_replica_with_records_that_nobody_committed_is_given_a_copy() {
    install(1, 8, 25);
}
