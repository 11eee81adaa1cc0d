//! The simulation is tested itself: with a rule off it must find a violation, within so many seeds.
//!
//! What it cannot show to be needed:
//! * That an old cut must not be obeyed late: there are no messages that cut. What comes closest, a Prepare of an older epoch
//!   that is taken, is here.

use crate::{
    disk::DiskRules,
    outcome,
    plan::{Focus, Plan},
};
use kv_proto::cluster_map::AckMode;
use kv_replication::replica::{Reads, rules::Rules};

/// A switch that turns a rule off, and the seeds within which that is noticed.
struct Mutation {
    name: &'static str,
    seeds: u64,
    /// Turns the rule off, and makes of any run one in which it matters.
    apply: fn(&mut Plan),
}

const MUTATIONS: [Mutation; 23] = [
    Mutation {
        name: "resume in the same epoch after a restart",
        seeds: 100,
        apply: |p| p.rules.reopen_after_restart = false,
    },
    Mutation {
        name: "commit alone while the answer to Drop is unknown",
        seeds: 300,
        apply: |p| {
            p.rules.drop_known_first = false;
            p.focus = Focus::Network;
        },
    },
    Mutation { name: "promote a learner", seeds: 300, apply: |p| p.rules.members_alone = false },
    Mutation { name: "take messages of an older epoch", seeds: 300, apply: |p| p.rules.fence_epochs = false },
    Mutation { name: "match Prepares by their LSN alone", seeds: 1000, apply: |p| p.rules.match_epochs = false },
    Mutation { name: "ignore a pending Add", seeds: 1000, apply: |p| p.rules.pending_add_counts = false },
    Mutation { name: "serve reads without a lease", seeds: 300, apply: |p| p.rules.lease_for_reads = false },
    Mutation {
        name: "serve before what was adopted is committed",
        seeds: 300,
        apply: |p| p.rules.commit_before_serving = false,
    },
    Mutation {
        name: "count the leader's own unflushed record",
        seeds: 100,
        apply: |p| p.rules.own_flush_counts = false,
    },
    Mutation { name: "answer a Prepare before its sync", seeds: 100, apply: |p| p.rules.flush_before_report = false },
    Mutation {
        name: "forget having asked to take over, without the grace",
        seeds: 300,
        apply: |p| {
            p.rules.silent_after_takeover = false;
            p.rules.grace = false;
        },
    },
    Mutation {
        name: "answer after having asked to take over",
        seeds: 300,
        apply: |p| p.rules.silent_after_takeover = false,
    },
    Mutation { name: "no grace", seeds: 300, apply: |p| p.rules.grace = false },
    Mutation {
        name: "no grace since the own start",
        seeds: 1000,
        apply: |p| {
            p.rules.grace_since_start = false;
            p.focus = Focus::Crashes;
        },
    },
    Mutation {
        name: "no disk id",
        seeds: 1000,
        apply: |p| {
            p.rules.disks = false;
            p.ack = AckMode::Durable;
            p.harmful = true;
        },
    },
    Mutation {
        name: "commit what was adopted before all have flushed it",
        seeds: 1000,
        apply: |p| {
            p.rules.adopted_flushed_everywhere = false;
        },
    },
    Mutation {
        name: "adopt nothing of the followers",
        seeds: 1000,
        apply: |p| {
            p.rules.adopt_greatest = false;
            p.nodes = 3;
        },
    },
    Mutation {
        name: "resign before leaving",
        seeds: 1000,
        apply: |p| {
            p.rules.resign_after_leaving = false;
            p.focus = Focus::Changes;
        },
    },
    Mutation {
        name: "take a Resign for another epoch",
        seeds: 1000,
        apply: |p| {
            p.rules.resign_names_epoch = false;
            p.focus = Focus::Changes;
        },
    },
    Mutation { name: "add a learner that is not caught up", seeds: 300, apply: |p| p.rules.add_caught_up = false },
    Mutation {
        name: "replicated, and whoever may lack something leads",
        seeds: 1000,
        apply: |p| {
            p.rules.incomplete_never_leads = false;
            p.ack = AckMode::Replicated;
            p.harmful = false;
        },
    },
    Mutation {
        name: "act in an epoch before it is on disk",
        seeds: 300,
        apply: |p| p.rules.epoch_on_disk_first = false,
    },
    Mutation {
        name: "reads by confirmation without one",
        seeds: 300,
        apply: |p| {
            p.rules.lease_for_reads = false;
            p.reads = Reads::Confirm;
        },
    },
];

const DISK_MUTATIONS: [Mutation; 5] = [
    Mutation { name: "acknowledge before the sync", seeds: 100, apply: |p| p.disk_rules.sync_first = false },
    Mutation {
        name: "count what was restored, though it was not synced",
        seeds: 300,
        apply: |p| p.disk_rules.sync_at_start = false,
    },
    Mutation {
        name: "publish a checkpoint before the log is on disk to its end",
        seeds: 300,
        apply: |p| {
            p.disk_rules.publish_when_on_disk = false;
            p.ack = AckMode::Replicated;
            p.harmful = false;
        },
    },
    Mutation {
        name: "let segments go before the copies of what they have are on disk",
        seeds: 1000,
        apply: |p| {
            p.disk_rules.copies_on_disk_first = false;
        },
    },
    Mutation {
        name: "tell of a configuration or a cut before it is on disk",
        seeds: 300,
        apply: |p| {
            p.disk_rules.barriers = false;
            p.ack = AckMode::Replicated;
            p.harmful = false;
        },
    },
];

/// Whether every mutation is noticed; as many as are not are said.
fn notice(mutations: &[Mutation]) {
    let mut missed = Vec::new();
    for Mutation { name, seeds, apply } in mutations {
        let mutated = |seed| {
            let mut plan = Plan::of(seed, Rules::default(), DiskRules::default());
            apply(&mut plan);
            plan
        };
        match (0..*seeds).find_map(|seed| Some((seed, outcome(mutated(seed)).err()?))) {
            Some((seed, violation)) => {
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
