//! What a leader wants changed in its configuration: to go on without a follower, to add a learner, to pass on leadership.
//!
//! A change is asked for again and again until the epoch changes, whoever's change that was: an answer can get lost, and
//! so a change that was asked for may be carried out until then, and may have been already.
//!
//! # Invariants
//! * A follower counts until it is known to be dropped; a learner counts from when the leader asks to add it. Asking is never
//!   taken back.
//! * A learner is added only when it has everything that may be committed, and nothing that the leader has not.
//! * Leadership is passed on when nothing is pending, so that nobody is left to wonder what became of a write; unless the leader
//!   leaves, and waited for that in vain.

use super::{
    Action, Actions, Options, Replica, Role,
    leader::Leader,
    reconcile::Stage,
    stream::{Progress, Stream},
};
use crate::clock::Instant64;
use kv_proto::{
    control::Change,
    effect::Effect,
    ids::{Lsn, Member, NodeId},
    replication::{Position, Record},
};
use std::time::Duration;

/// How long the leader tries to pass on leadership before it takes writes again.
const HANDOFF_PATIENCE: Duration = Duration::from_secs(1);

/// What a leader asked for in this epoch.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// What was asked for last, and when it is to be asked for again.
    asked: Option<(Change, Instant64)>,
    /// The learner that it asked to add.
    pub(super) adding: Option<Member>,
    /// Followers that a person wants to be dropped.
    unwanted: Vec<NodeId>,
    /// Leadership is to be passed on.
    pub(super) handoff: Option<Handoff>,
}

/// To whom leadership is to pass, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handoff {
    to: Member,
    /// Whether the leader will not follow.
    leaves: bool,
    /// When to give it up.
    until: Instant64,
}

impl Wishes {
    /// Whether it was asked to drop this follower.
    pub(super) fn drops(&self, member: Member) -> bool {
        matches!(&self.asked, Some((Change::Drop { followers, .. }, _)) if followers.contains(&member))
    }
}

impl Leader {
    /// Leadership is to pass to another replica, if one can take it.
    pub(super) fn begin_handoff(&mut self, now: Instant64, to: Option<NodeId>, leaves: bool, options: &Options) {
        let able = |f: &&Progress| to.is_none_or(|to| f.member.node == to) && f.answers(now, options);
        // The one that has most is the first to have all.
        let chosen = self.followers.iter().filter(able).max_by_key(|f| f.flushed).map(|f| f.member);
        if let (Some(to), true, None) = (chosen, self.serves(), self.wishes.handoff) {
            self.wishes.handoff = Some(Handoff { to, leaves, until: now + HANDOFF_PATIENCE });
        }
    }

    /// A follower is not wanted any more.
    pub(super) fn give_up(&mut self, node: NodeId) {
        if self.followers.iter().any(|f| f.member.node == node) {
            self.wishes.unwanted.push(node);
        }
    }

    /// A learner that can be added: it has everything up to `needed`, and nothing that is not in the log.
    fn ready_learner(&self, now: Instant64, needed: Lsn, options: &Options) -> Option<Member> {
        let ready = |l: &&Progress| {
            matches!(l.stream, Stream::Open { .. })
                && l.answers(now, options)
                && (l.sound && l.flushed >= needed || !options.rules.add_caught_up)
        };
        self.learners.iter().find(ready).map(|l| l.member)
    }
}

/// What a leader looks at when it decides what to ask for.
struct Sight {
    now: Instant64,
    /// Since when the replica was awake.
    awake: Instant64,
    /// Until when whoever was never connected is waited for.
    patience: Instant64,
    me: Member,
    committed: Lsn,
    prepared: Lsn,
    /// Whether the leader may go on without a member.
    may_drop: bool,
    /// Whether the controller can be reached.
    reachable: bool,
}

impl Leader {
    fn wanted(&mut self, sight: &Sight, options: &Options) -> Option<Change> {
        let Sight { now, me, committed, .. } = *sight;
        let is_gone = |f: &&Progress| {
            f.is_gone(now, sight.awake, sight.patience, options) || self.wishes.unwanted.contains(&f.member.node)
        };
        let gone: Vec<Member> = self.followers.iter().filter(is_gone).map(|f| f.member).collect();
        if !gone.is_empty() && sight.may_drop {
            return Some(Change::Drop { leader: me, followers: gone });
        }
        // Who has more than can be fetched had better lead, and this one learn.
        if let Some(to) = self.stuck_on() {
            return Some(Change::Handoff { leader: me, to, in_sync: Vec::new() });
        }
        let needed = match self.stage {
            Stage::Settling { last, .. } => committed.max(last),
            Stage::Serving => committed,
            Stage::Recording | Stage::Adopting(_) => return None,
        };
        if self.wishes.adding.is_none() && self.wishes.handoff.is_none() && sight.reachable {
            self.wishes.adding = self.ready_learner(now, needed, options);
        }
        if let Some(learner) = self.wishes.adding {
            return Some(Change::Add { leader: me, learner });
        }
        let Handoff { to, leaves, until } = self.wishes.handoff?;
        if now >= until {
            self.wishes.handoff = None;
            return None;
        }
        let strangers = self.learners.iter().filter(|_| !options.rules.handoff_among_members);
        let others = self.followers.iter().chain(strangers).map(|f| f.member).filter(|m| *m != to);
        let in_sync = others.chain((!leaves).then_some(me)).collect();
        // Whoever leaves may do so since nothing of its own comes to disk any more.
        let waited = leaves && now + HANDOFF_PATIENCE / 2 >= until;
        (committed == sight.prepared || waited).then_some(Change::Handoff { leader: me, to, in_sync })
    }
}

impl Replica {
    /// Asks the controller for what the leader wants changed.
    pub(super) fn maybe_propose(&mut self, now: Instant64, out: &mut Actions) {
        let options = self.options;
        let sight = Sight {
            now,
            awake: self.awake_since,
            patience: self.patience_end(),
            me: self.me,
            committed: self.committed,
            prepared: self.log.last().lsn,
            may_drop: !self.incomplete || !options.rules.incomplete_never_leads,
            reachable: self.controller_reachable,
        };
        if !self.acts() {
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(change) = leader.wanted(&sight, &options) else { return };
        let again = |(asked, next): &(Change, Instant64)| *asked == change && now < *next;
        if leader.wishes.asked.as_ref().is_some_and(again) {
            return;
        }
        if !options.rules.resign_after_leaving
            && let Change::Handoff { to, .. } = change
        {
            out.push(Action::Resign { to: to.node, epoch: self.configuration.epoch });
        }
        leader.wishes.asked = Some((change.clone(), now + options.propose_interval));
        out.push(Action::Propose(change));
    }

    /// Sees to the learners that are stuck.
    ///
    /// One that has more records than the leader, which nobody committed, cannot be brought to cut them by any record of the
    /// leader's: so the leader makes one. It has its epoch, which is newer than any of theirs.
    pub(super) fn tend_learners(&mut self, now: Instant64, out: &mut Actions) {
        let epoch = self.configuration.epoch;
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.knows_its_log() {
            return;
        }
        let mut marks = false;
        for learner in leader.learners.iter_mut().filter(|l| l.stream == Stream::Diverged) {
            if self.log.last().epoch == epoch {
                learner.stream = Stream::NeedsCopy;
            } else {
                (learner.stream, marks) = (Stream::Asked, true);
            }
        }
        let options = self.options;
        let stuck = leader.learners.iter_mut().filter(|l| l.is_stuck(now, &options));
        let asks = stuck.map(Progress::ask_anew).count() > 0 || marks;
        if marks {
            let position = Position { epoch, lsn: self.log.last().lsn.next() };
            let payload = Effect::Nothing.encode().into();
            self.log.push(Record { position, operation_id: None, payload }, out);
        }
        if asks {
            leader.send_beacons(now, self.committed, out);
        }
        for learner in leader.learners.iter_mut().filter(|l| l.stream == Stream::NeedsCopy) {
            let sent = leader.lease.next_stamp(now);
            learner.begin_copy(sent);
            out.push(Action::SendCopy { to: learner.member.node, sent });
        }
    }
}
