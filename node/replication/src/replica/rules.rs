//! Switches for the rules of the protocol, so that tests can show that each of them is needed: with one off, the
//! simulation must find a violation.

/// The rules that can be switched off; all of them are on by default, and nobody but a test has a reason to change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A leader that was restarted has a new epoch opened before it leads on.
    pub reopen_after_restart: bool,
    /// A record is not committed before it is flushed at the leader itself.
    pub own_flush_counts: bool,
    /// A follower reports as flushed only what its log said is flushed.
    pub flush_before_report: bool,
    /// A new leader adopts the greatest log among the members', not just its own.
    pub adopt_greatest: bool,
    /// A new leader serves only once all that it adopted is committed.
    pub commit_before_serving: bool,
    /// What a new leader adopted is committed only when every member has flushed it.
    pub adopted_flushed_everywhere: bool,
    /// A Prepare is taken by the epoch and the LSN of the record before it, not by the LSN alone.
    pub match_epochs: bool,
    /// Nothing is said or done in an epoch before it is on disk.
    pub epoch_on_disk_first: bool,
    /// A message of an older epoch changes nothing.
    pub fence_epochs: bool,
    /// A follower counts until it is known to be dropped.
    pub drop_known_first: bool,
    /// A learner counts from when the leader has asked to add it.
    pub pending_add_counts: bool,
    /// A learner is added only when it has everything that is committed, and nothing that the leader lacks.
    pub add_caught_up: bool,
    /// Reads need a lease, a confirmation, or nobody who could take over.
    pub lease_for_reads: bool,
    /// A follower that has asked to take over says nothing more in that epoch.
    pub silent_after_takeover: bool,
    /// A new leader serves only when its last answer to another leader is longer ago than the grace.
    pub grace: bool,
    /// A new leader serves only when its own start is longer ago than the grace, too.
    pub grace_since_start: bool,
    /// A leader resigns an epoch only after it has left it.
    pub resign_after_leaving: bool,
    /// That an epoch was resigned counts for the next one alone.
    pub resign_names_epoch: bool,
    /// A member is a node with its disk, and not whoever has its name.
    pub disks: bool,
    /// Only an in-sync follower asks to take over.
    pub members_alone: bool,
    /// Who was no member becomes none when leadership is passed on.
    pub handoff_among_members: bool,
    /// A replica that may lack what it said it had neither takes over nor goes on alone.
    pub incomplete_never_leads: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            reopen_after_restart: true,
            own_flush_counts: true,
            flush_before_report: true,
            adopt_greatest: true,
            commit_before_serving: true,
            adopted_flushed_everywhere: true,
            match_epochs: true,
            epoch_on_disk_first: true,
            fence_epochs: true,
            drop_known_first: true,
            pending_add_counts: true,
            add_caught_up: true,
            lease_for_reads: true,
            silent_after_takeover: true,
            grace: true,
            grace_since_start: true,
            resign_after_leaving: true,
            resign_names_epoch: true,
            disks: true,
            members_alone: true,
            handoff_among_members: true,
            incomplete_never_leads: true,
        }
    }
}

impl Rules {
    /// Whether nothing is switched off.
    pub(super) fn all_on(self) -> bool {
        self == Rules::default()
    }
}
