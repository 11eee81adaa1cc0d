//! The simulation is tested itself: with a rule off it must find a violation, within so many seeds.
//!
//! What it does not show to be needed:
//! * That an old cut must not be obeyed late: there are no messages that cut.
//! * That messages of an older epoch are not taken (`fence_epochs`), which is a second line: all that they say names positions,
//!   so that what is not of the current leader's log contradicts it; the run goes on, if not for long. A leader hears nothing of
//!   an older connection, and a follower nothing of another leader.
//! * That a new leader waits for the grace since its own start (`grace_since_start`), another one: whoever asks to take over has
//!   waited for it before it asked.

use crate::{
    disk::DiskRules,
    outcome,
    plan::{Focus, Plan},
};
use kv_proto::cluster_map::AckMode;
use kv_replication::replica::{Reads, rules::Rules};

/// A rule, the seeds within which it is noticed that it is off, and what turns it off and makes of any run one in which it
/// matters.
type Mutation = (&'static str, u64, fn(&mut Plan));

const MUTATIONS: [Mutation; 22] = [
    ("resume in the same epoch after a restart", 50, |p| p.rules.reopen_after_restart = false),
    ("commit alone while the answer to Drop is unknown", 50, |p| p.rules.drop_known_first = false),
    ("promote a learner", 100, |p| {
        p.rules.members_alone = false;
        p.focus = Focus::Network;
    }),
    ("hand over to who was no member", 500, |p| {
        p.rules.handoff_among_members = false;
        (p.focus, p.nodes) = (Focus::Handoffs, 3);
    }),
    ("match Prepares by their LSN alone", 1000, |p| {
        p.rules.match_epochs = false;
        p.datagrams = true;
    }),
    ("ignore a pending Add", 50, |p| p.rules.pending_add_counts = false),
    ("serve reads without a lease", 100, |p| {
        p.rules.lease_for_reads = false;
        (p.reads, p.focus, p.calm) = (Reads::Lease, Focus::Pauses, 500);
    }),
    ("serve reads without a confirmation", 100, |p| {
        p.rules.lease_for_reads = false;
        (p.reads, p.focus, p.calm) = (Reads::Confirm, Focus::Pauses, 500);
    }),
    ("serve before what was adopted is committed", 100, |p| {
        p.rules.commit_before_serving = false;
        p.focus = Focus::Handoffs;
    }),
    ("count the leader's own unflushed record", 50, |p| p.rules.own_flush_counts = false),
    ("answer a Prepare before its sync", 50, |p| p.rules.flush_before_report = false),
    ("forget having asked to take over, without the grace", 200, |p| {
        (p.rules.silent_after_takeover, p.rules.grace) = (false, false);
    }),
    ("answer after having asked to take over", 1000, |p| {
        p.rules.silent_after_takeover = false;
        (p.focus, p.calm) = (Focus::Pauses, 500);
    }),
    ("no grace", 200, |p| {
        p.rules.grace = false;
        p.focus = Focus::Handoffs;
    }),
    ("no disk id", 200, |p| {
        p.rules.disks = false;
        (p.ack, p.harmful) = (AckMode::Durable, true);
    }),
    ("commit what was adopted before all have flushed it", 600, |p| {
        p.rules.adopted_flushed_everywhere = false;
        (p.focus, p.calm, p.rest_ms) = (Focus::Pauses, 250, 4);
    }),
    ("adopt nothing of the followers", 100, |p| {
        p.rules.adopt_greatest = false;
        (p.ack, p.harmful) = (AckMode::Replicated, false);
        (p.focus, p.calm, p.rest_ms) = (Focus::Crashes, 250, 4);
    }),
    ("resign before leaving", 100, |p| {
        p.rules.resign_after_leaving = false;
        p.focus = Focus::Handoffs;
    }),
    ("take a Resign for another epoch", 1000, |p| {
        p.rules.resign_names_epoch = false;
        (p.focus, p.calm, p.reads, p.nodes) = (Focus::Handoffs, 250, Reads::Lease, 2);
        (p.datagrams, p.late_one_in, p.min_in_sync) = (true, 60, 1);
    }),
    ("add a learner that is not caught up", 50, |p| p.rules.add_caught_up = false),
    ("acknowledge from memory, and whoever may lack something leads", 1000, |p| {
        p.rules.incomplete_never_leads = false;
        (p.ack, p.harmful, p.min_in_sync) = (AckMode::Replicated, false, 1);
        (p.focus, p.calm, p.start_patience_ms, p.rest_ms) = (Focus::Crashes, 1000, 0, 4);
    }),
    ("act in an epoch before it is on disk", 50, |p| p.rules.epoch_on_disk_first = false),
];

const DISK_MUTATIONS: [Mutation; 5] = [
    ("acknowledge before the sync", 50, |p| p.disk_rules.sync_first = false),
    ("count what was restored, though it was not synced", 100, |p| {
        p.disk_rules.sync_at_start = false;
        (p.focus, p.calm, p.ack, p.harmful) = (Focus::Crashes, 120, AckMode::Replicated, false);
    }),
    ("publish a checkpoint before the log is on disk to its end", 200, |p| {
        p.disk_rules.publish_when_on_disk = false;
        (p.ack, p.harmful) = (AckMode::Replicated, false);
    }),
    ("let segments go before the copies of what they have are on disk", 1000, |p| {
        p.disk_rules.copies_on_disk_first = false;
        (p.focus, p.calm) = (Focus::Crashes, 120);
    }),
    ("tell of a configuration or a cut before it is on disk", 50, |p| {
        p.disk_rules.barriers = false;
        (p.ack, p.harmful) = (AckMode::Replicated, false);
    }),
];

/// As the runs are in which a mutation is tried, with all rules.
pub(crate) fn like(name: &str, plan: Plan) -> Plan {
    Plan { rules: plan.rules, disk_rules: plan.disk_rules, ..mutated(name, plan) }
}

pub(crate) fn mutated(name: &str, mut plan: Plan) -> Plan {
    let is_it = |(known, _, _): &&Mutation| known.starts_with(name);
    let (_, _, mutate) = MUTATIONS.iter().chain(&DISK_MUTATIONS).find(is_it).expect("a mutation");
    mutate(&mut plan);
    plan
}

/// Every mutation is noticed, in a run in which nothing is to be noticed without it.
fn notice(mutations: &[Mutation]) {
    let mut missed = Vec::new();
    for (name, seeds, mutate) in mutations {
        let mutated = |seed| {
            let mut plan = Plan::of(seed, Rules::default(), DiskRules::default());
            mutate(&mut plan);
            plan
        };
        match (0..*seeds).find_map(|seed| Some((seed, outcome(mutated(seed)).err()?))) {
            Some((seed, violation)) => {
                let plan = like(name, Plan::of(seed, Rules::default(), DiskRules::default()));
                let with_all_rules = outcome(plan).err();
                assert_eq!(with_all_rules, None, "with all rules: {plan:?}");
                println!("{name}: {} of {seeds} seeds: {}", seed + 1, violation.lines().next().unwrap_or_default());
            }
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
}

#[test]
fn every_rule_is_needed() {
    notice(&MUTATIONS);
}

#[test]
fn every_rule_of_the_disk_is_needed() {
    notice(&DISK_MUTATIONS);
}
