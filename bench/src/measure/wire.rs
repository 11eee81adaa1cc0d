//! A recorder as it goes from a worker process to the one that puts all together: JSON, with histograms in their own
//! compact form.

use super::recorder::{Failure, KindRecorder, Recorder};
use crate::workload::Kind;
use anyhow::{Context, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireRecorder {
    kinds: Vec<WireKind>,
    errors: BTreeMap<String, Failure>,
    due: u64,
    late: u64,
    late_by_generator: u64,
    retried: u64,
    dropped: u64,
    not_begun: u64,
    failed_connects: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireKind {
    kind: Kind,
    response: String,
    service: String,
    ops: u64,
    misses: u64,
    conflicts: u64,
    errors: u64,
}

impl WireRecorder {
    pub(crate) fn new(recorder: &Recorder) -> WireRecorder {
        let kind = |(kind, of): (Kind, &KindRecorder)| WireKind {
            kind,
            response: encode(&of.response),
            service: encode(&of.service),
            ops: of.ops,
            misses: of.misses,
            conflicts: of.conflicts,
            errors: of.errors,
        };
        WireRecorder {
            kinds: recorder.kinds().map(kind).collect(),
            errors: recorder.errors.clone(),
            due: recorder.due,
            late: recorder.late,
            late_by_generator: recorder.late_by_generator,
            retried: recorder.retried,
            dropped: recorder.dropped,
            not_begun: recorder.not_begun,
            failed_connects: recorder.failed_connects,
        }
    }

    /// # Errors
    /// When it is not what a worker of this version makes.
    pub(crate) fn into_recorder(self) -> anyhow::Result<Recorder> {
        let WireRecorder { kinds, errors, due, late, late_by_generator, retried, dropped, not_begun, failed_connects } =
            self;
        let mut recorder = Recorder {
            errors,
            due,
            late,
            late_by_generator,
            retried,
            dropped,
            not_begun,
            failed_connects,
            ..Recorder::default()
        };
        for WireKind { kind, response, service, ops, misses, conflicts, errors } in kinds {
            let (response, service) = (decode(&response)?, decode(&service)?);
            recorder.add_kind(kind, &KindRecorder { response, service, ops, misses, conflicts, errors });
        }
        Ok(recorder)
    }
}

fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes).expect("a histogram fits into memory");
    BASE64_STANDARD.encode(bytes)
}

fn decode(text: &str) -> anyhow::Result<Histogram<u64>> {
    let bytes = BASE64_STANDARD.decode(text).context("a histogram is no base64")?;
    let read: Histogram<u64> =
        Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|e| anyhow::anyhow!("no histogram: {e:?}"))?;
    let mut histogram = super::histogram();
    ensure!(read.high() == histogram.high() && read.sigfig() == histogram.sigfig(), "a histogram of another scale");
    histogram.add(&read).map_err(|e| anyhow::anyhow!("no histogram of this scale: {e:?}"))?;
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::{super::Ending, *};

    #[test]
    fn a_recorder_survives_the_way() {
        let mut recorder = Recorder {
            due: 1,
            late: 2,
            late_by_generator: 3,
            retried: 4,
            dropped: 5,
            not_begun: 6,
            failed_connects: 7,
            ..Recorder::default()
        };
        for n in 1..1000 {
            let kind = if n % 3 == 0 { Kind::Put } else { Kind::Get };
            recorder.answered(kind, n * n * 1000, n * 1000, if n % 7 == 0 { Ending::Miss } else { Ending::Done });
        }
        recorder.failed(Kind::Put, "overloaded", true);
        let text = serde_json::to_string(&WireRecorder::new(&recorder)).expect("JSON");
        let wire: WireRecorder = serde_json::from_str(&text).expect("the same JSON");
        let read = wire.into_recorder().expect("a recorder");
        // Only the greatest latency is rounded on the way, to what the histogram tells apart.
        assert_eq!(serde_json::to_string(&WireRecorder::new(&read)).expect("JSON"), text);
    }

    #[test]
    fn what_no_worker_sends_is_refused() {
        for text in ["", "AAAA", "not base64"] {
            assert!(decode(text).is_err(), "{text}");
        }
        let other = Histogram::<u64>::new(2).expect("valid");
        assert!(decode(&encode(&other)).is_err());
    }
}
