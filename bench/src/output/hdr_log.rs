//! A run as an interval log of HdrHistogram (version 1.3: V2 histograms, deflated, in base64), which HistogramLogProcessor,
//! HistogramLogAnalyzer and their like read: whole histograms of each second, so that any percentile of any stretch can be had
//! afterwards.
//!
//! Values, `Interval_Max` included, are microseconds from the intended start to the answer. The tag is the kind of operation; those of other phases than the
//! run have the phase before it (`load.put`), so that they are not taken for it. Times count from the log's beginning.

use super::{Interval, OutStream};
use anyhow::Context;
use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriterBuilder, Tag},
};
use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

const LEGEND: &str = "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// The file.
pub(crate) struct HdrLog {
    stream: OutStream,
    serializer: V2DeflateSerializer,
    /// When the first interval began.
    began: Option<Instant>,
}

impl HdrLog {
    /// # Errors
    /// When nothing can be written there; see [`OutStream::create`].
    pub(crate) fn create(path: &Path) -> anyhow::Result<HdrLog> {
        Ok(HdrLog { stream: OutStream::create(path)?, serializer: V2DeflateSerializer::new(), began: None })
    }

    /// Writes the histograms of an interval that has just ended.
    ///
    /// # Errors
    /// Once, when it cannot be written; see [`OutStream::append`].
    pub(crate) fn interval(&mut self, interval: &Interval<'_>) -> anyhow::Result<()> {
        let mut text = Vec::new();
        let now = Instant::now();
        let began = *self.began.get_or_insert_with(|| now.checked_sub(interval.length).unwrap_or(now));
        if !self.stream.is_begun() {
            let wall = SystemTime::now();
            header(&mut text, wall.checked_sub(now - began).unwrap_or(wall));
        }
        let start = now.duration_since(began).saturating_sub(interval.length);
        histograms(&mut text, &mut self.serializer, interval, start)?;
        self.stream.append(&text)
    }

    /// # Errors
    /// When intervals were lost.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.stream.finish()
    }
}

/// The lines before the first histogram.
fn header(out: &mut Vec<u8>, began: SystemTime) {
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Logged with kvbench; values are microseconds]")
        .with_start_time(began)
        .with_base_time(began)
        .begin_log_with(out, &mut V2DeflateSerializer::new())
        .map(drop)
        .expect("memory takes all bytes");
    out.extend_from_slice(LEGEND.as_bytes());
}

/// A line for each kind of operation. `start` counts from the log's beginning.
fn histograms(
    out: &mut Vec<u8>,
    serializer: &mut V2DeflateSerializer,
    interval: &Interval<'_>,
    start: Duration,
) -> anyhow::Result<()> {
    for (kind, recorder) in interval.recorded.kinds() {
        let name = kind.name();
        let tag = if interval.phase == "run" { name.to_owned() } else { format!("{}.{name}", interval.phase) };
        IntervalLogWriterBuilder::new()
            .begin_log_with(out, serializer)
            .context("no histogram log")?
            .write_histogram(&recorder.response, start, interval.length, Tag::new(&tag))
            .with_context(|| format!("the histogram of {tag} cannot be encoded"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::samples::Sample, *};
    use base64::Engine;
    use hdrhistogram::{
        Histogram,
        serialization::{
            Deserializer,
            interval_log::{IntervalLogIterator, LogEntry},
        },
    };

    fn read(line: &str) -> Histogram<u64> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(line).expect("base64");
        Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram")
    }

    #[test]
    fn what_is_logged_is_read_back() {
        let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        header(&mut text, SystemTime::UNIX_EPOCH + Duration::from_millis(1_500));
        let busy = Sample::busy();
        let interval = busy.interval();
        histograms(&mut text, &mut serializer, &interval, Duration::from_millis(11_000)).expect("encoded");
        let load = Interval { phase: "load", ..busy.interval() };
        histograms(&mut text, &mut serializer, &load, Duration::from_millis(12_000)).expect("encoded");
        let entries: Vec<_> = IntervalLogIterator::new(&text).map(|entry| entry.expect("well-formed")).collect();
        let [LogEntry::StartTime(start), LogEntry::BaseTime(base), ..] = entries[..] else { panic!("{entries:?}") };
        assert_eq!((start, base), (Duration::from_millis(1_500), Duration::from_millis(1_500)));
        let mut seen = Vec::new();
        for entry in &entries[2..] {
            let LogEntry::Interval(entry) = entry else { panic!("{entry:?}") };
            let histogram = read(entry.encoded_histogram());
            let tag = entry.tag().expect("tagged").as_str().to_owned();
            assert_eq!(entry.duration(), Duration::from_secs(1));
            seen.push((
                tag,
                entry.start_timestamp().as_secs(),
                entry.max(),
                histogram.len(),
                histogram.value_at_quantile(0.5),
            ));
        }
        let expected = [
            ("get", 11, 999.0, 499),
            ("put", 11, 1000.0, 500),
            ("load.get", 12, 999.0, 499),
            ("load.put", 12, 1000.0, 500),
        ]
        .map(|(tag, start, max, p50)| (tag.to_owned(), start, max, 500, p50));
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_header_stands_once_and_times_grow_over_phases() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.hlog");
        let mut log = HdrLog::create(&path).expect("possible");
        let busy = Sample::busy();
        for phase in ["load", "run"] {
            log.interval(&Interval { phase, ..busy.interval() }).expect("written");
        }
        log.finish().expect("whole");
        let text = std::fs::read_to_string(&path).expect("there");
        assert_eq!((text.matches("#[BaseTime").count(), text.matches("HISTFAAA").count()), (1, 4), "{text}");
        let first = text.lines().find(|line| line.starts_with("Tag=")).expect("an interval");
        assert!(first.starts_with("Tag=load.get,0.000,1.000,999.000,HISTFAAA"), "{first}");
    }
}
