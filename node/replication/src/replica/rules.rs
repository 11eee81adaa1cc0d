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
    /// A new leader serves only once all that it adopted is committed, which is flushed at every member.
    pub commit_before_serving: bool,
    /// A Prepare is taken by the epoch and the LSN of the record before it, not by the LSN alone.
    pub match_epochs: bool,
    /// Nothing is said or done in an epoch before it is on disk.
    pub epoch_on_disk_first: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            reopen_after_restart: true,
            own_flush_counts: true,
            flush_before_report: true,
            adopt_greatest: true,
            commit_before_serving: true,
            match_epochs: true,
            epoch_on_disk_first: true,
        }
    }
}

impl Rules {
    /// Whether nothing is switched off.
    pub(super) fn all_on(self) -> bool {
        self == Rules::default()
    }
}
