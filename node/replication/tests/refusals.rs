//! What a replica finds on its disk decides whether it may take part, and what it asks for first.

use kv_proto::{
    cluster_map::Configuration,
    control::Change,
    ids::{DiskId, Epoch, HistoryId, Lsn, Member, NodeId, PartitionId},
    replication::{Basis, PeerBody, Position, Record},
    stats::Role,
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, LogEntry, Options, Refusal, Replica, Restored},
};

fn member(name: &str, disk: u128) -> Member {
    Member { node: NodeId::new(name).expect("a name"), disk: DiskId(disk) }
}

/// `a` leads, `b` follows.
fn configuration(epoch: u64, history: u32) -> Configuration {
    Configuration {
        epoch: Epoch(epoch),
        history: HistoryId(history),
        leader: member("a", 1),
        in_sync: vec![member("b", 1)],
    }
}

fn restored(configuration: Option<Configuration>) -> Restored {
    let position = |lsn| Position { epoch: Epoch(1), lsn: Lsn(lsn) };
    let record = Record { position: position(8), operation_id: None, payload: b"x".as_slice().into() };
    Restored { configuration, applied: position(7), tail: vec![record], fault: None, incomplete: false }
}

fn start(me: Member, restored: Restored, configuration: Configuration) -> (Replica, Actions) {
    let mut out = Actions::new();
    let options = Options::default();
    let replica = Replica::new(PartitionId(0), me, configuration, restored, options, Instant64(5), &mut out);
    (replica, out)
}

#[test]
fn who_may_not_take_part_says_why_and_does_nothing() {
    let faulty = Restored { fault: Some("batch 7 is damaged".into()), ..restored(Some(configuration(3, 0))) };
    let cases = [
        ("a faulty log", member("a", 1), faulty, "batch 7 is damaged"),
        ("an older map", member("b", 1), restored(Some(configuration(4, 0))), "the map is older"),
        ("another history", member("b", 1), restored(Some(configuration(2, 1))), "another history"),
    ];
    for (name, me, restored, why) in cases {
        let (mut replica, mut out) = start(me, restored, configuration(3, 0));
        assert_eq!(replica.role(), Role::Refused, "{name}");
        let trouble = replica.trouble(Instant64(5)).expect("a reason");
        assert!(trouble.contains(why), "{name}: {trouble}");
        let beacon = PeerBody::Beacon { committed: Lsn(8), sent: 1, serving: true };
        let message = Event::Message { from: member("a", 1).node, epoch: Epoch(3), body: beacon };
        replica.handle(Instant64(6), message, &mut out);
        replica.handle(Instant64(6), Event::PeerConnected { peer: member("b", 1) }, &mut out);
        replica.handle(Instant64(6), Event::Timeout, &mut out);
        assert_eq!((out, replica.poll_timeout()), (vec![], None), "{name}");
        assert_eq!(replica.check_read(Instant64(6)), Err(Refusal::NotLeader), "{name}");
    }
}

#[test]
fn who_may_begins_with_what_its_disk_lacks() {
    let begun = || vec![Action::Append(LogEntry::Configuration(configuration(3, 0)))];
    let reopen = || vec![Action::Propose(Change::Reopen { leader: member("a", 1) })];
    let begun_to_reopen = || begun().into_iter().chain(reopen()).collect();
    let cases = [
        ("a new leader, but not of the first epoch", "a", Restored::default(), begun_to_reopen()),
        // Its disk may have forgotten that it led in this one.
        ("a leader of an older epoch", "a", restored(Some(configuration(2, 0))), begun_to_reopen()),
        ("a leader of this epoch", "a", restored(Some(configuration(3, 0))), reopen()),
        ("a new follower", "b", Restored::default(), begun()),
        ("a follower of an older epoch", "b", restored(Some(configuration(2, 0))), begun()),
        ("a follower of this epoch", "b", restored(Some(configuration(3, 0))), vec![]),
    ];
    for (name, me, restored, first) in cases {
        let lsns = [&restored.applied].into_iter().chain(restored.tail.iter().map(|r| &r.position));
        let last = lsns.map(|p| p.lsn).max().unwrap_or_default();
        let applied = restored.applied.lsn;
        let (replica, out) = start(member(me, 1), restored, configuration(3, 0));
        assert_eq!(out, first, "{name}");
        assert_eq!((replica.committed(), replica.flushed(), replica.prepared().lsn), (applied, last, last), "{name}");
    }
}

#[test]
fn a_newer_configuration_cures_what_is_not_the_logs_fault() {
    let (mut replica, mut out) = start(member("b", 1), restored(Some(configuration(4, 0))), configuration(3, 0));
    replica.handle(Instant64(6), Event::ConfigChanged(configuration(4, 0)), &mut out);
    assert_eq!((replica.role(), replica.trouble(Instant64(6)), out), (Role::Follower, None, vec![]));

    let faulty = Restored { fault: Some("damage".into()), ..Restored::default() };
    let (mut replica, mut out) = start(member("b", 1), faulty, configuration(3, 0));
    replica.handle(Instant64(6), Event::ConfigChanged(configuration(4, 0)), &mut out);
    assert_eq!((replica.role(), &out), (Role::Refused, &vec![]));
    let without = Configuration { in_sync: vec![], ..configuration(5, 0) };
    replica.handle(Instant64(6), Event::ConfigChanged(without), &mut out);
    assert_eq!((replica.role(), out), (Role::Learner, vec![]), "as a learner it can be given a copy");
}

#[test]
fn who_is_no_member_learns() {
    let faulty = Restored { fault: Some("batch 7 is damaged".into()), ..restored(Some(configuration(2, 0))) };
    let begun = vec![Action::Append(LogEntry::Configuration(configuration(3, 0)))];
    let cases = [
        ("a stranger", member("c", 1), Restored::default(), &begun, Basis::Table),
        ("another disk", member("a", 2), Restored::default(), &begun, Basis::Table),
        ("old data", member("c", 1), restored(Some(configuration(2, 0))), &begun, Basis::Table),
        ("damaged data", member("c", 1), faulty, &vec![], Basis::Nothing),
        ("data of another history", member("c", 1), restored(Some(configuration(2, 1))), &vec![], Basis::Nothing),
    ];
    for (name, me, restored, first, basis) in cases {
        let prepared = if basis == Basis::Nothing { Position::default() } else { restored.last() };
        let (mut replica, mut out) = start(me, restored, configuration(3, 0));
        assert_eq!((replica.role(), &out), (Role::Learner, first), "{name}");
        replica.handle(Instant64(6), Event::Flushed { entries: out.len() as u64 }, &mut out);
        out.clear();
        let beacon = PeerBody::Beacon { committed: Lsn(0), sent: 9, serving: true };
        replica.handle(
            Instant64(6),
            Event::Message { from: member("a", 1).node, epoch: Epoch(3), body: beacon },
            &mut out,
        );
        let [Action::Send { body: PeerBody::Report { prepared: said, answers: 9, basis: stands_on, .. }, .. }] =
            &out[..]
        else {
            panic!("{name}: {out:?}");
        };
        assert_eq!((*said, *stands_on), (prepared, basis), "{name}");
    }
}
