//! What the judge found.

use crate::measure::grouped;
use serde::Serialize;
use std::fmt;

/// Most findings that are told to people.
const MAX_TOLD: usize = 10;

/// What was checked and what was found; the names of the fields are part of the result's schema.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// Writes that were acknowledged.
    pub(crate) acked: u64,
    /// Keys whose last acknowledged write is not there, nor one that can have followed it.
    pub(crate) lost: u64,
    /// Whatever cannot have happened, the lost ones included.
    pub(crate) violations: u64,
    /// Keys of which anything was asked.
    pub(crate) keys: u64,
    /// Keys that were read at the end.
    pub(crate) audited: u64,
    /// Keys that nobody answered for at the end.
    pub(crate) not_audited: u64,
    /// Whether a person ended the audit.
    pub(crate) interrupted: bool,
    /// Keys with so many writes in doubt that their audit can find little.
    pub(crate) lenient_keys: u64,
    /// Keys whose histories were kept, and the operations in those that were checked.
    pub(crate) histories: u64,
    pub(crate) history_operations: u64,
    /// Histories that were not kept to the end, since they grew too long.
    pub(crate) histories_cut_off: u64,
    /// Histories whose check was given up as too long.
    pub(crate) histories_undecided: u64,
    /// The first of what was found, in words.
    pub(crate) findings: Vec<String>,
}

impl Verdict {
    /// Adds what another part of the histories came to.
    pub(crate) fn add(&mut self, other: Verdict) {
        self.keys += other.keys;
        self.lenient_keys += other.lenient_keys;
        self.histories += other.histories;
        self.history_operations += other.history_operations;
        self.histories_cut_off += other.histories_cut_off;
        self.histories_undecided += other.histories_undecided;
    }

    /// Whether nothing was found, and everything was looked at.
    pub(crate) fn is_good(&self) -> bool {
        self.violations == 0 && self.not_audited == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = grouped;
        writeln!(f, "acknowledged    {:>16}   writes", n(self.acked))?;
        writeln!(
            f,
            "lost            {:>16}   keys whose last write is not there; {} were read at the end",
            n(self.lost),
            n(self.audited)
        )?;
        writeln!(
            f,
            "violations      {:>16}   in all; {} operations on {} keys were put in order",
            n(self.violations),
            n(self.history_operations),
            n(self.histories)
        )?;
        let not_audited = if self.interrupted {
            "keys were not read at the end: the audit was interrupted"
        } else {
            "keys could not be read at the end: nobody answered for them"
        };
        for (count, what) in [
            (self.not_audited, not_audited),
            (self.lenient_keys, "keys had so many writes in doubt that little can be said of them"),
            (self.histories_cut_off, "histories were kept only up to their limit"),
            (self.histories_undecided, "histories were too tangled to be put in order in time"),
        ] {
            if count > 0 {
                writeln!(f, "                {:>16}   {what}", n(count))?;
            }
        }
        let told = self.findings.iter().take(MAX_TOLD);
        for finding in told {
            writeln!(f, "\n{finding}")?;
        }
        let told = self.findings.len().min(MAX_TOLD) as u64;
        if self.violations > told {
            writeln!(f, "\nand {} more", n(self.violations - told))?;
        }
        Ok(())
    }
}
