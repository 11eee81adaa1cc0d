//! Whatever a peer says, in whatever order, a replica neither panics nor lets go of what is committed.

use kv_proto::{
    cluster_map::Configuration,
    ids::{DiskId, Epoch, HistoryId, Lsn, Member, NodeId, PartitionId},
    replication::{Basis, PeerBody, Position, Record},
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, LogEntry, Options, Replica, Restored, Token},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Hear(PeerBody),
    Write,
    Flush(u64),
    Connect,
    Lose,
    Time(u64),
    Send,
    Read(Position, Vec<Record>),
    Epoch,
}

/// Numbers that are near what is there, and some that are as far as can be.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..6u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1)]
}

fn position() -> impl Strategy<Value = Position> {
    let any = (prop_oneof![1 => Just(0u64), 6 => Just(1), 1 => Just(2), 1 => Just(u64::MAX)], number())
        .prop_map(|(epoch, lsn)| Position { epoch: Epoch(epoch), lsn: Lsn(lsn) });
    // The beginning of every log.
    prop_oneof![1 => Just(Position::default()), 2 => any]
}

fn record(position: Position) -> Record {
    Record { position, operation_id: None, payload: b"x".as_slice().into() }
}

/// What is said to stand before the records, and the records: mostly dense, as an honest leader sends them, but from
/// anywhere and of any epoch.
fn prepare() -> impl Strategy<Value = (Position, Vec<Record>)> {
    prop_oneof![
        3 => (position(), 0..2u64, 0..5u64).prop_map(|(previous, epoch, count)| {
            let lsns = (1..=count).map(|i| Lsn(previous.lsn.0.saturating_add(i)));
            (previous, lsns.map(|lsn| record(Position { epoch: Epoch(epoch), lsn })).collect())
        }),
        1 => (position(), prop::collection::vec(position().prop_map(record), 0..4)),
    ]
}

fn basis() -> impl Strategy<Value = Basis> {
    prop_oneof![Just(Basis::Table), Just(Basis::Copy), Just(Basis::Nothing)]
}

fn body() -> impl Strategy<Value = PeerBody> {
    prop_oneof![
        4 => (prepare(), number())
            .prop_map(|((previous, records), committed)| PeerBody::Prepare { previous, committed: Lsn(committed), records }),
        2 => (number(), number(), any::<bool>())
            .prop_map(|(committed, sent, serving)| PeerBody::Beacon { committed: Lsn(committed), sent, serving }),
        4 => (position(), number(), number(), number(), basis()).prop_map(|(prepared, flushed, applied, answers, basis)| {
            PeerBody::Report { prepared, flushed: Lsn(flushed), applied: Lsn(applied), answers, basis }
        }),
        1 => Just(PeerBody::Resign),
        1 => (position(), number()).prop_map(|(start, sent)| PeerBody::CopyBegin { start, sent }),
        1 => (number(), 0..3u32).prop_map(|(sent, number)| PeerBody::CopyPart { sent, number, bytes: Vec::new() }),
        1 => (number(), 0..3u32, number())
            .prop_map(|(sent, parts, end)| PeerBody::CopyEnd { sent, parts, end: Lsn(end), digest: 0 }),
        1 => position().prop_map(|prepared| PeerBody::Gap { prepared }),
        1 => position().prop_map(|after| PeerBody::Fetch { after }),
        3 => (prepare(), position()).prop_map(|((previous, records), last)| PeerBody::Tail { previous, records, last }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => body().prop_map(Step::Hear),
        2 => Just(Step::Write),
        3 => (0..4u64).prop_map(Step::Flush),
        2 => Just(Step::Connect),
        1 => Just(Step::Lose),
        1 => any::<u32>().prop_map(|nanos| Step::Time(u64::from(nanos))),
        2 => Just(Step::Send),
        1 => prepare().prop_map(|(previous, records)| Step::Read(previous, records)),
        1 => Just(Step::Epoch),
    ]
}

fn run(leads: bool, steps: Vec<Step>) {
    let member = |name: &str| Member { node: NodeId::new(name).expect("a name"), disk: DiskId(1) };
    let (me, liar) = (member("me"), member("liar"));
    let (leader, follower) = if leads { (me, liar) } else { (liar, me) };
    let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync: vec![follower] };
    let mut now = Instant64(0);
    let mut out = Actions::new();
    let restored = Restored::default();
    let mut replica =
        Replica::new(PartitionId(0), me, configuration.clone(), restored, Options::default(), now, &mut out);
    let (mut applied, mut appended, mut flushed) = (Lsn(0), out.len() as u64, 0);
    for (number, step) in (0..).zip(steps) {
        let mut out = Actions::new();
        let event = match step {
            Step::Hear(body) => Event::Message { from: liar.node, epoch: replica.configuration().epoch, body },
            Step::Read(previous, records) => Event::LogRead { to: liar.node, previous, records },
            Step::Epoch => {
                let epoch = replica.configuration().epoch.next();
                Event::ConfigChanged(Configuration { epoch, ..configuration.clone() })
            }
            Step::Write => {
                let payload = b"w".as_slice().into();
                Event::ClientWrite { payload, operation_id: None, token: Token(number) }
            }
            Step::Flush(some) => {
                flushed = (flushed + some).min(appended);
                Event::Flushed { entries: flushed }
            }
            Step::Connect => Event::PeerConnected { peer: liar },
            Step::Lose => Event::PeerLost { peer: liar.node },
            Step::Time(nanos) => {
                now = Instant64(now.0 + nanos);
                Event::Timeout
            }
            Step::Send => {
                while replica.poll_prepare(now, liar.node).is_some() {}
                continue;
            }
        };
        replica.handle(now, event, &mut out);
        for action in out {
            match action {
                Action::Apply(record) => {
                    assert_eq!(record.position.lsn, applied.next(), "applied out of order, or twice");
                    applied = record.position.lsn;
                }
                Action::Append(LogEntry::Cut { from }) => {
                    assert!(from > applied, "what is committed is cut");
                    appended += 1;
                }
                Action::Append(_) => appended += 1,
                _ => {}
            }
        }
        assert!(applied == replica.committed() && replica.committed() <= replica.flushed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_follower_survives_any_leader(steps in prop::collection::vec(step(), 0..60)) {
        run(false, steps);
    }

    #[test]
    fn a_leader_survives_any_follower(steps in prop::collection::vec(step(), 0..60)) {
        run(true, steps);
    }
}
