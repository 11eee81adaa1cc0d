//! Flags that say when leadership passes on, and what a leader needs to serve.

use clap::{Args, ValueEnum};
use kv_replication::replica;
use std::time::Duration;

/// A leader that was restarted has about so many beacon intervals to begin its next epoch, before it may serve in it.
const BEACONS_TO_BEGIN_IN: u64 = 3;

/// When a replica is given up, and what a leader needs to serve. The same on every node of a cluster.
#[derive(Args, Clone, Debug)]
pub struct FailoverOptions {
    /// Milliseconds between the beacons of a leader to its followers.
    #[arg(long, env = "KV_BEACON_INTERVAL_MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub beacon_interval_ms: u64,

    /// Milliseconds of a follower's silence after which its leader goes on without it. (A follower whose connection breaks is
    /// left out at once.)
    #[arg(long, env = "KV_SUSPECT_AFTER_MS", default_value_t = 1000)]
    pub suspect_after_ms: u64,

    /// Milliseconds for which a leader may serve reads by itself after it sent a beacon that every follower answered.
    #[arg(long, env = "KV_LEASE_MS", default_value_t = 1000)]
    pub lease_ms: u64,

    /// Milliseconds after its last answer to a silent leader after which a follower takes over. It must be longer than
    /// --lease-ms, by as much as clocks of different machines may differ in their rates.
    #[arg(long, env = "KV_GRACE_MS", default_value_t = 1500)]
    pub grace_ms: u64,

    /// Milliseconds for which a node that was just started waits for the others before it goes on without them.
    #[arg(long, env = "KV_START_PATIENCE_MS", default_value_t = 4000)]
    pub start_patience_ms: u64,

    /// What a leader needs to serve a read: 'lease', a promise of its followers that is renewed by beacons; 'confirm', a round
    /// trip to its followers, which holds even where whole machines are paused (virtual machines that are moved or saved).
    #[arg(long, env = "KV_READS", value_enum, default_value_t = ReadMode::Lease)]
    pub reads: ReadMode,

    /// How many in-sync replicas, the leader among them, a partition needs to take writes. With 2, a leader that lost its only
    /// follower refuses writes until another one has caught up.
    #[arg(long, env = "KV_MIN_IN_SYNC", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7))]
    pub min_in_sync: u16,

    /// Seconds after which leadership goes back to the node that is preferred to lead a partition, once that is in sync
    /// again; 0 is never.
    #[arg(long, env = "KV_REBALANCE_AFTER_S", default_value_t = 10)]
    pub rebalance_after_s: u64,
}

/// What a leader needs to serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReadMode {
    /// A lease.
    Lease,
    /// A round trip to every follower.
    Confirm,
}

impl FailoverOptions {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// A sentence that names them.
    pub fn check(&self) -> Result<(), String> {
        let (beacon, suspect) = (self.beacon_interval_ms, self.suspect_after_ms);
        if suspect < 3 * beacon {
            return Err(format!(
                "--suspect-after-ms {suspect} must be at least three times --beacon-interval-ms {beacon}, \
                 or one late beacon makes a follower suspect"
            ));
        }
        let (lease, grace) = (self.lease_ms, self.grace_ms);
        if lease < 3 * beacon {
            return Err(format!(
                "--lease-ms {lease} must be at least three times --beacon-interval-ms {beacon}, or a late beacon ends a lease"
            ));
        }
        if grace < lease + lease / 5 {
            return Err(format!(
                "--grace-ms {grace} must be longer than --lease-ms {lease} by a fifth: give at least --grace-ms {}, so that no \
                 two leaders serve while clocks run at different rates",
                lease + lease / 5
            ));
        }
        Ok(())
    }

    /// The flags, as they are given to another process.
    #[must_use]
    pub fn arguments(&self) -> Vec<(&'static str, String)> {
        let reads = self.reads.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        vec![
            ("--beacon-interval-ms", self.beacon_interval_ms.to_string()),
            ("--suspect-after-ms", self.suspect_after_ms.to_string()),
            ("--lease-ms", self.lease_ms.to_string()),
            ("--grace-ms", self.grace_ms.to_string()),
            ("--start-patience-ms", self.start_patience_ms.to_string()),
            ("--reads", reads),
            ("--min-in-sync", self.min_in_sync.to_string()),
            ("--rebalance-after-s", self.rebalance_after_s.to_string()),
        ]
    }

    pub(crate) fn rebalance_after(&self) -> Option<Duration> {
        (self.rebalance_after_s > 0).then(|| Duration::from_secs(self.rebalance_after_s))
    }

    pub(crate) fn replica(&self) -> replica::Options {
        let before_the_end_of_grace = BEACONS_TO_BEGIN_IN * self.beacon_interval_ms;
        replica::Options {
            beacon_interval: Duration::from_millis(self.beacon_interval_ms),
            suspect_after: Duration::from_millis(self.suspect_after_ms),
            lease: Duration::from_millis(self.lease_ms),
            grace: Duration::from_millis(self.grace_ms),
            start_patience: Duration::from_millis(self.start_patience_ms),
            reopen_after: Duration::from_millis(self.grace_ms.saturating_sub(before_the_end_of_grace)),
            reads: match self.reads {
                ReadMode::Lease => replica::Reads::Lease,
                ReadMode::Confirm => replica::Reads::Confirm,
            },
            min_in_sync: self.min_in_sync,
            ..replica::Options::default()
        }
    }
}
