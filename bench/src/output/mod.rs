//! What people and programs see of a run, while it goes on and after it.

mod csv;
mod hdr_log;
mod lines;
mod live;
mod out_file;
mod terminal;
mod view;

pub(crate) use csv::Csv;
pub(crate) use hdr_log::HdrLog;
pub(crate) use out_file::{OutFile, OutStream, is_same_place};
pub(crate) use view::{View, ViewChoice};

use crate::measure::Recorder;
use std::time::Duration;

/// A second of a phase.
#[derive(Debug)]
pub(crate) struct Interval<'a> {
    /// `load`, `warmup`, `run` or `audit`.
    pub(crate) phase: &'static str,
    /// Since the phase began, at the end of the interval.
    pub(crate) elapsed: Duration,
    pub(crate) length: Duration,
    /// What happened in it.
    pub(crate) recorded: &'a Recorder,
    /// What has happened since the phase began.
    pub(crate) total: &'a Recorder,
    /// How much of the phase is done, 0 to 1, if that is known.
    pub(crate) done: Option<f64>,
    /// Requests that are under way, and operations that wait for a free place.
    pub(crate) in_flight: u64,
    pub(crate) waiting: u64,
    /// Operations a second that are asked for, in an open loop.
    pub(crate) asked_per_s: Option<f64>,
    /// What happened to the cluster, as `killed shard0-leader`; mostly nothing.
    pub(crate) event: Option<&'a str>,
}

/// A rate; 0 for no time at all.
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod samples;
