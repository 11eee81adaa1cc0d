//! A new leader on its way to serving: it records its epoch, learns what every follower has, adopts the greatest log,
//! and waits until that is committed. See the essay in the parent module.
//!
//! # Invariants
//! * Nothing is streamed and nothing is committed before the leader knows what its log is.
//! * What is adopted keeps the positions that it had.
//! * Nothing is served before all that was adopted is committed, and the grace is over.

use super::{
    Action, Actions, Options, Replica, Role,
    leader::{Leader, silence},
    log::Taken,
};
use crate::clock::Instant64;
use kv_proto::{
    ids::{Lsn, Member, NodeId},
    replication::{PeerBody, Position, Record},
};

/// How far a leader is on the way to serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its epoch is not on disk yet.
    Recording,
    /// It waits for every follower to say what it has, or for the greatest log among theirs.
    Adopting(Option<Fetch>),
    /// It knows its log, and streams it.
    Settling {
        /// The last record that was adopted.
        last: Lsn,
        /// Whether nothing but the grace is missing.
        waits_for_grace: bool,
    },
    /// It serves.
    Serving,
}

/// The log of a follower that the leader is adopting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    from: NodeId,
    /// What was asked for last: the records after this one.
    after: Position,
    /// Whether something came since the last beacon.
    moves: bool,
    /// Why it cannot go on.
    stuck: Option<Stuck>,
}

/// Why a log cannot be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stuck {
    /// It does not reach back so far; in a sentence.
    TooShort(String),
    /// What was sent is not to be believed; in a sentence.
    Doubt(String),
}

impl Fetch {
    fn ask(&self, out: &mut Actions) {
        out.push(Action::Send { to: self.from, body: PeerBody::Fetch { after: self.after } });
    }
}

impl Leader {
    /// Whether what is in the log will stay in it.
    pub(super) fn knows_its_log(&self) -> bool {
        matches!(self.stage, Stage::Settling { .. } | Stage::Serving)
    }

    /// A connection is gone or another one: what was asked for on it will not come.
    pub(super) fn forget_fetch(&mut self, node: NodeId) {
        if let Stage::Adopting(fetch) = &mut self.stage {
            fetch.take_if(|f| f.from == node);
        }
    }

    /// What was asked for may have got lost.
    pub(super) fn repeat_fetch(&mut self, out: &mut Actions) {
        if let Stage::Adopting(Some(fetch)) = &mut self.stage
            && fetch.stuck.is_none()
            && !std::mem::take(&mut fetch.moves)
        {
            fetch.ask(out);
        }
    }

    /// The follower whose log cannot be fetched because it does not reach back so far.
    pub(super) fn stuck_on(&self) -> Option<Member> {
        let Stage::Adopting(Some(Fetch { from, stuck: Some(Stuck::TooShort(_)), .. })) = &self.stage else {
            return None;
        };
        self.followers.iter().map(|f| f.member).find(|member| member.node == *from)
    }

    /// Why the leader does not serve yet.
    pub(super) fn reconciling(&self, now: Instant64, options: &Options, grace_end: Instant64) -> String {
        let missing = self.followers.iter().find(|f| match self.stage {
            Stage::Adopting(_) => f.report.is_none(),
            _ => !f.answers(now, options),
        });
        let effect = "nothing is served";
        match (&self.stage, missing) {
            (Stage::Recording, _) => format!("the epoch is not on disk yet: {effect}"),
            (Stage::Adopting(Some(Fetch { stuck: Some(Stuck::TooShort(why) | Stuck::Doubt(why)), .. })), _) => {
                format!("{why}: {effect}")
            }
            (_, Some(follower)) => {
                format!("{}, and a new leader has to hear every member: {effect} yet", silence(follower))
            }
            (Stage::Adopting(Some(fetch)), None) => {
                format!("the new leader takes over the log of follower {}: {effect} yet", fetch.from)
            }
            (Stage::Settling { waits_for_grace: true, .. }, None) => {
                let left = grace_end.since(now).as_millis();
                format!("the new leader waits {left} ms until no older one can be serving: {effect} yet")
            }
            (_, None) => format!("the new leader waits until every follower has its log: {effect} yet"),
        }
    }
}

impl Replica {
    /// Takes a leader as far on its way to serving as it can go by now, and has the log read where a stream needs it.
    pub(super) fn advance(&mut self, now: Instant64, out: &mut Actions) {
        let (acts, grace_end, rules) = (self.acts(), self.grace_end(), self.options.rules);
        loop {
            let Role::Leader(leader) = &mut self.role else { return };
            if acts && !leader.greeted {
                leader.greeted = true;
                for member in &self.connected {
                    leader.handle_connected(now, *member, self.committed, rules.disks, out);
                }
            }
            match &mut leader.stage {
                Stage::Recording if acts => leader.stage = Stage::Adopting(None),
                Stage::Adopting(fetch @ None) => {
                    if leader.followers.iter().any(|f| f.report.is_none()) {
                        return;
                    }
                    let reports = leader.followers.iter().filter_map(|f| Some((f.report?.prepared, f.member.node)));
                    let (greatest, own) = (reports.max(), self.log.last());
                    if let Some((_, from)) = greatest.filter(|(position, _)| *position > own && rules.adopt_greatest) {
                        let fetch = fetch.insert(Fetch { from, after: own, moves: true, stuck: None });
                        fetch.ask(out);
                        return;
                    }
                    leader.stage = Stage::Settling { last: own.lsn, waits_for_grace: false };
                    // Everyone said what they have, and all of it is here: whoever is in the way can be dropped.
                    self.incomplete = false;
                    for progress in leader.all_mut() {
                        if let Some(report) = progress.report {
                            progress.open(report, self.log.tail());
                        }
                    }
                    self.maybe_commit(now, out);
                }
                Stage::Settling { last, waits_for_grace } => {
                    let settled = self.committed >= *last || !rules.commit_before_serving;
                    if settled && now >= grace_end {
                        leader.stage = Stage::Serving;
                    } else {
                        *waits_for_grace = settled;
                        break;
                    }
                }
                Stage::Serving => break,
                Stage::Recording | Stage::Adopting(Some(_)) => return,
            }
        }
        if acts {
            self.tend_learners(now, out);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.all_mut().for_each(|f| f.maybe_read(self.log.tail(), out));
            if acts {
                leader.maybe_ask(now, self.committed, &self.options, out);
            }
        }
    }

    /// A part of the log that is being adopted.
    pub(super) fn handle_tail(
        &mut self,
        from: NodeId,
        previous: Position,
        records: Vec<Record>,
        last: Position,
        out: &mut Actions,
    ) {
        let (me, base, epoch) = (self.me.node, self.log.tail().base(), self.configuration.epoch);
        let Role::Leader(leader) = &mut self.role else { return };
        let Stage::Adopting(Some(fetch)) = &mut leader.stage else { return };
        if fetch.from != from || fetch.stuck.is_some() {
            return;
        }
        fetch.moves = true;
        if records.is_empty() && previous != last {
            fetch.stuck = Some(Stuck::TooShort(format!(
                "{me} needs a copy of the table of follower {from}, whose log does not reach back so far"
            )));
            return;
        }
        let end = records.last().map(|r| r.position);
        match self.log.take(epoch, previous, records, self.committed, true, out) {
            Taken::Contradiction(lsn) => {
                let why = format!("follower {from} contradicts what is committed on {me} at LSN {lsn}");
                fetch.stuck = Some(Stuck::Doubt(why));
            }
            // What was asked for is not there: what is committed here is.
            Taken::Gap if fetch.after != base => {
                fetch.after = base;
                fetch.ask(out);
            }
            Taken::Gap => {
                let why = format!("follower {from} sends what does not go with its last record");
                fetch.stuck = Some(Stuck::Doubt(why));
            }
            Taken::Appended | Taken::Nothing => match end {
                Some(end) if end < last => {
                    fetch.after = end;
                    fetch.ask(out);
                }
                _ => {
                    leader.stage = Stage::Adopting(None);
                    if let Some(report) = leader.progress(from).and_then(|f| f.report.as_mut()) {
                        report.prepared = last;
                    }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::Configuration,
        ids::{DiskId, Epoch, HistoryId, Member},
    };

    #[test]
    fn a_connection_that_is_lost_takes_its_fetch_with_it() {
        let node = |name| NodeId::new(name).expect("a name");
        let fetch = Fetch { from: node("f"), after: Position::default(), moves: true, stuck: None };
        let leader = Member { node: node("l"), disk: DiskId(1) };
        let configuration = Configuration { epoch: Epoch(2), history: HistoryId(0), leader, in_sync: vec![] };
        let mut leader = Leader::new(&configuration, Instant64(0));
        leader.stage = Stage::Adopting(Some(fetch.clone()));
        leader.handle_lost(node("g"));
        assert_eq!(leader.stage, Stage::Adopting(Some(fetch)));
        leader.handle_lost(node("f"));
        assert_eq!(leader.stage, Stage::Adopting(None));
    }
}
