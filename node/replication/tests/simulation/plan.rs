//! What differs between runs, and what happened in them.

use crate::{disk::DiskRules, random::Random};
use kv_proto::cluster_map::AckMode;
use kv_replication::replica::{Options, Reads, rules::Rules};
use std::{collections::BTreeMap, time::Duration};

/// What differs between runs. All of it follows from the seed, and the rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) partitions: u16,
    pub(crate) ack: AckMode,
    pub(crate) reads: Reads,
    pub(crate) min_in_sync: u16,
    /// Whether messages are lost, repeated and reordered one by one, and not only with their connections.
    pub(crate) datagrams: bool,
    /// How rare such a message is that is late by far.
    pub(crate) late_one_in: u64,
    /// Milliseconds between two faults, on average.
    pub(crate) calm: u64,
    /// Which faults are frequent.
    pub(crate) focus: Focus,
    /// Whether disks are damaged and replaced.
    pub(crate) harmful: bool,
    /// Whether a person forces a recovery.
    pub(crate) forced: bool,
    pub(crate) clients: usize,
    /// How long clients rest at most, mostly.
    pub(crate) rest_ms: u64,
    /// For how long there are faults.
    pub(crate) faulty_ms: u64,
    pub(crate) beacon_ms: u64,
    pub(crate) start_patience_ms: u64,
    pub(crate) message_bytes: usize,
    pub(crate) max_pending: usize,
    pub(crate) rules: Rules,
    pub(crate) disk_rules: DiskRules,
}

/// Which faults are frequent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Focus {
    Everything,
    /// Processes end and are started again.
    Crashes,
    /// Connections and directions of them are lost.
    Network,
    /// Processes stand still, clocks go wrong.
    Pauses,
    /// What a person asks for, and the controller that is slow to do it.
    Changes,
    /// Leadership goes to and fro, and what was said of it is late.
    Handoffs,
}

impl Plan {
    pub(crate) fn of(seed: u64, rules: Rules, disk_rules: DiskRules) -> Self {
        let mut random = Random::new(seed.wrapping_add(1).wrapping_mul(0x2545_F491_4F6C_DD1D));
        for _ in 0..4 {
            random.below(2);
        }
        let focuses =
            [Focus::Everything, Focus::Crashes, Focus::Network, Focus::Pauses, Focus::Changes, Focus::Handoffs];
        let durable = !random.one_in(3);
        Plan {
            seed,
            nodes: 2 + random.below(2) as usize,
            partitions: if random.one_in(4) { 2 } else { 1 },
            ack: if durable { AckMode::Durable } else { AckMode::Replicated },
            reads: if random.one_in(3) { Reads::Confirm } else { Reads::Lease },
            min_in_sync: if random.one_in(4) { 2 } else { 1 },
            datagrams: random.one_in(4),
            late_one_in: [10, 60][random.below(2) as usize],
            calm: [120, 250, 500, 1000][random.below(4) as usize],
            focus: focuses[random.below(6) as usize],
            harmful: durable && random.one_in(3),
            forced: random.one_in(16),
            clients: 2 + random.below(6) as usize,
            rest_ms: [4, 40, 200][random.below(3) as usize],
            faulty_ms: 4_000 + random.below(5_000),
            beacon_ms: [100, 250][random.below(2) as usize],
            start_patience_ms: [100, 2_000][random.below(2) as usize],
            message_bytes: [120, 400][random.below(2) as usize],
            max_pending: 4 + random.below(12) as usize,
            rules,
            disk_rules,
        }
    }

    pub(crate) fn durable(&self) -> bool {
        self.ack == AckMode::Durable
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            beacon_interval: Duration::from_millis(self.beacon_ms),
            start_patience: Duration::from_millis(self.start_patience_ms),
            reads: self.reads,
            min_in_sync: self.min_in_sync,
            durable: self.durable(),
            message_bytes: self.message_bytes,
            max_pending_records: self.max_pending,
            rules: self.rules,
            ..Options::default()
        }
    }
}

/// How often what the simulation is for happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// What some run out of many has to reach.
    pub(crate) const EXPECTED: [&'static str; 37] = [
        "acknowledged writes",
        "added learners",
        "barriers",
        "batches torn",
        "bits turned",
        "checkpoints",
        "clean stops",
        "confirmed reads",
        "connections lost",
        "copies begun",
        "copies kept",
        "crashes",
        "cuts",
        "drops",
        "duplicates",
        "ends cut off",
        "epochs served",
        "faulty logs",
        "fetches",
        "forced recoveries",
        "gaps",
        "handoffs",
        "late messages",
        "leased reads",
        "losses of memory",
        "pauses",
        "reads of logs",
        "recalled writes",
        "records copied forward",
        "refusals",
        "reopened",
        "resets",
        "resigned",
        "segments gone",
        "takeovers",
        "unknown outcomes",
        "wiped disks",
    ];

    pub(crate) fn note(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// What did not happen.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        Coverage::EXPECTED.into_iter().filter(|what| self.0.get(what).is_none_or(|times| *times == 0)).collect()
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        other.0.iter().for_each(|(what, times)| self.note(what, *times));
    }
}
