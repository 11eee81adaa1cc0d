//! The follower: takes Prepares from the leader of its epoch and says what it has on disk.
//!
//! # Invariants
//! * A Prepare is taken by the position of the record before it, never by count.
//! * Nothing is reported as flushed before the log said so.
//! * A record is applied only when it is known to be committed and is flushed here.

use super::{Action, Actions, tail::Tail};
use kv_proto::{
    ids::{Epoch, Lsn},
    replication::{PeerBody, Position, Record},
};

/// What a Prepare led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Records were appended; the answer follows when they are flushed.
    Appended,
    /// Everything in it was here already.
    Nothing,
    /// What it follows is not here.
    Gap,
}

/// Appends the records of a Prepare of `epoch` that are not here yet.
pub(super) fn take_prepare(
    tail: &mut Tail,
    epoch: Epoch,
    previous: Position,
    records: Vec<Record>,
    out: &mut Actions,
) -> Taken {
    let known = previous.lsn < tail.base().lsn || tail.position_at(previous.lsn) == Some(previous);
    let follows = |(at, record): (usize, &Record)| {
        let before = if at == 0 { previous } else { records[at - 1].position };
        record.position.lsn == before.lsn.next()
            && (before.epoch..=epoch).contains(&record.position.epoch)
            && (record.position.lsn != tail.base().lsn || record.position == tail.base())
    };
    if !known || !records.iter().enumerate().all(follows) {
        return Taken::Gap;
    }
    let mut taken = Taken::Nothing;
    for record in records {
        let here = tail.position_at(record.position.lsn);
        if record.position.lsn <= tail.base().lsn || here == Some(record.position) {
            continue;
        }
        if here.is_some() || record.position.epoch < tail.last().epoch {
            // Another record stands there or before, which does not go with this one.
            return Taken::Gap;
        }
        out.push(Action::Append(record.clone()));
        tail.push(record);
        taken = Taken::Appended;
    }
    taken
}

/// The answer that says what is here.
pub(super) fn report(tail: &Tail, flushed: Lsn, applied: Lsn) -> PeerBody {
    PeerBody::Report { prepared: tail.last(), flushed, applied }
}
