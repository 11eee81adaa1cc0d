//! Whether a store kept what it promised, judged by what its clients saw.
//!
//! Values are unique and say which write they come from. Of every key a ledger knows what was acknowledged and what is in doubt: that is
//! looked for at the end, and versions must agree with real time while the load goes on. Of some keys the whole history is kept,
//! and must be linearizable. What judges is the crate `kv-checker`; here stands what it is told.

mod judge;
mod verdict;
mod windows;

pub(crate) use judge::{Judge, Judged, Trace};
pub(crate) use verdict::Verdict;
pub(crate) use windows::{Window, Windows};
