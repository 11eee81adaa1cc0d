//! What is measured: recorders of stretches of time, and what is known of the tool's own part in them.

mod recorder;
mod units;
mod wire;

pub(crate) use recorder::{Answer, Ending, KindRecorder, Latency, Recorder, histogram};
pub(crate) use units::{grouped, micros, seconds};
pub(crate) use wire::WireRecorder;
