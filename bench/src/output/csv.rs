//! A run as comma-separated values: a row a second for all operations and for each kind of them. The columns' names are a
//! format that programs rely on: new ones come last.

use super::{Interval, OutStream, per_second};
use crate::measure::{KindRecorder, Latency};
use std::{fmt::Write, path::Path};

/// Latencies are in microseconds: `pNN_us` from the intended start to the answer, `service_` from the sending. Empty where nothing
/// was answered, and from `due` on in rows of one kind, because these are counted for all kinds together.
const HEADER: &str = "phase,second,kind,ops,ops_per_s,errors,misses,p50_us,p90_us,p99_us,p999_us,max_us,\
                      service_p50_us,service_p99_us,due,late,dropped,in_flight,waiting\n";

/// The file.
#[derive(Debug)]
pub(crate) struct Csv {
    stream: OutStream,
}

impl Csv {
    /// # Errors
    /// When nothing can be written there; see [`OutStream::create`].
    pub(crate) fn create(path: &Path) -> anyhow::Result<Csv> {
        Ok(Csv { stream: OutStream::create(path)? })
    }

    /// Writes an interval's rows.
    ///
    /// # Errors
    /// Once, when it cannot be written; see [`OutStream::append`].
    pub(crate) fn interval(&mut self, interval: &Interval<'_>) -> anyhow::Result<()> {
        let mut text = String::new();
        if !self.stream.is_begun() {
            text.push_str(HEADER);
        }
        rows(&mut text, interval);
        self.stream.append(text.as_bytes())
    }

    /// # Errors
    /// When rows were lost.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.stream.finish()
    }
}

fn rows(out: &mut String, interval: &Interval<'_>) {
    let recorded = interval.recorded;
    row(out, interval, "all", &recorded.all(), recorded.error_count());
    let _ = writeln!(
        out,
        ",{},{},{},{},{}",
        recorded.due, recorded.late, recorded.dropped, interval.in_flight, interval.waiting
    );
    for (kind, recorder) in recorded.kinds() {
        row(out, interval, kind.name(), recorder, recorder.errors);
        out.push_str(",,,,,\n");
    }
}

/// The columns that rows of all kinds have, without the end of the line.
fn row(out: &mut String, interval: &Interval<'_>, kind: &str, recorder: &KindRecorder, errors: u64) {
    let (second, ops) = (interval.elapsed.as_secs_f64(), recorder.ops);
    let rate = per_second(ops, interval.length);
    let _ = write!(out, "{},{second:.3},{kind},{ops},{rate:.1},{errors},{}", interval.phase, recorder.misses);
    let (response, service) = (Latency::of(&recorder.response), Latency::of(&recorder.service));
    for us in [
        response.map(|l| l.p50),
        response.map(|l| l.p90),
        response.map(|l| l.p99),
        response.map(|l| l.p999),
        response.map(|l| l.max),
        service.map(|l| l.p50),
        service.map(|l| l.p99),
    ] {
        out.push(',');
        if let Some(us) = us {
            let _ = write!(out, "{us}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::samples::Sample, *};

    #[test]
    fn a_second_is_a_row_for_all_and_one_for_each_kind() {
        let mut text = HEADER.to_owned();
        rows(&mut text, &Sample::busy().interval());
        let expected = "\
phase,second,kind,ops,ops_per_s,errors,misses,p50_us,p90_us,p99_us,p999_us,max_us,service_p50_us,service_p99_us,due,late,dropped,in_flight,waiting
run,12.000,all,1000,1000.0,12,100,500,900,990,999,1000,250,495,1013,7,1,800,3
run,12.000,get,500,500.0,2,100,499,899,989,999,999,249,494,,,,,
run,12.000,put,500,500.0,10,0,500,900,990,1000,1000,250,495,,,,,
";
        assert_eq!(text, expected);
    }

    #[test]
    fn every_row_has_as_many_columns_as_the_header() {
        for sample in [Sample::idle(), Sample::busy(), Sample::huge(), Sample::all_kinds()] {
            let mut text = HEADER.to_owned();
            rows(&mut text, &sample.interval());
            for line in text.lines() {
                assert_eq!(line.matches(',').count(), 18, "{line}");
            }
        }
    }

    #[test]
    fn a_second_of_nothing_has_no_latencies() {
        let mut text = String::new();
        rows(&mut text, &Sample::idle().interval());
        assert_eq!(text, "run,12.000,all,0,0.0,0,0,,,,,,,,0,0,0,0,0\n");
    }

    #[test]
    fn the_header_stands_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.csv");
        let mut csv = Csv::create(&path).expect("possible");
        for _ in 0..2 {
            csv.interval(&Sample::idle().interval()).expect("written");
        }
        csv.finish().expect("whole");
        let text = std::fs::read_to_string(&path).expect("there");
        assert_eq!((text.lines().count(), text.matches("phase").count()), (3, 1));
    }
}
