//! Judges what clients of a key-value store saw: whether a store that keeps its promises can have given these answers.
//!
//! Nothing here runs, waits, or asks for the time: who makes the load hands over what was asked, what was answered, and when. The
//! load tool does so, the seeded simulation of the replication core, and the tests of whole clusters.
//!
//! # What is judged by what
//!
//! | judge | of | needs | finds |
//! |---|---|---|---|
//! | [`register::History`] | one key, some thousands of operations | unique values | any answers that no single register can have given |
//! | [`ledger::Ledger`] | every key, any number of operations | unique values, and an audit at the end; better with versions | acknowledged writes that are lost, values that nobody wrote, stale reads, writes that were applied twice |
//! | [`versions`] | one key, operations that are all at hand | versions | real time that does not agree with versions |
//! | [`linear`] | any object | its rules, as a function | what the first one is made of |
//!
//! A history is *linearizable* if its operations can be put in one order that the object allows, each at a moment between its
//! call and its return. [`linear`] searches that order as Wing and Gong do (*Testing and Verifying Concurrent Objects*, 1993),
//! and never tries again from what Lowe calls a configuration, which operations are done and what state that left (*Testing for
//! Linearizability*, 2017). Linearizability is local: if each key's history is linearizable, the whole is. So keys are judged one
//! by one, where few operations overlap.
//!
//! The search needs the whole history in memory and may take long, so it is for a sample of the keys. The ledger keeps a hundred
//! bytes of a key, and judges each answer when it comes.
//!
//! # Values and clocks
//!
//! Every write of a key has a value that no other write of it has, and whose number can be told from the bytes that are read.
//! That is what makes both judges cheap: a value names its write. A write that is tried again is the same write, called when it
//! was called first.
//!
//! Times are of one clock. Taken early at a call and late at a return, they make operations longer than they were: that can
//! only hide an offence.
//!
//! # It accuses nobody wrongly
//!
//! Every rule holds for any store that is linearizable, whatever was lost, late or tried again on the way:
//!
//! * A write without an answer may have happened at any time since its call, or may yet, or never. A timeout, a lost connection
//!   and an answer that says "unknown" are such. Only what the store says was not applied counts as that.
//! * What a cut-off history lacks is held against nobody; [`register`] says why that is sound.
//! * What is left out before the search, so that it stays small, changes no verdict; `judged` says why.
//! * A search that takes too many steps says so and accuses nobody ([`register::Checked::Undecided`]).
//! * The ledger holds answers only against what it had been told before their call, which had returned by then. Where its
//!   lists are full, it is lenient and says so ([`ledger::Ledger::is_lenient`]).
//! * Versions of different histories are not compared: a person who forces a recovery with loss begins a new one.
//!
//! # What is not noticed
//!
//! * By the ledger, that a value was missing for a while, and of stores without versions reads of any value but those that were
//!   overwritten last: it does not know of requests that are under way. The history of a sampled key has both.
//! * By the ledger, a missing value at the audit, if any delete of that key stayed in doubt.
//! * By the ledger, a lost write whose key belongs to another history since: a person decided that.
//! * A write that was applied twice with nothing in between, where there are no versions: nobody can tell.
//! * Anything across keys. Single keys are all that the store promises.
//! * What no request touched: a key that is not read after its last write has been audited by nobody.

mod entry;
mod judged;
pub mod ledger;
pub mod linear;
mod offence;
pub mod register;
pub mod versions;
mod violation;

pub use offence::{Line, Offence, Part};
pub use violation::Violation;
