//! A run as lines: one a second, for logs and for terminals that cannot be drawn on. Pure.

use super::{Interval, per_second};
use crate::measure::{Latency, grouped, micros};

/// Widest line, in characters.
const WIDTH: usize = 120;

/// The lines of an interval: what happened to the cluster, if something did, and how the load went. Each ends with a newline.
pub(super) fn lines(interval: &Interval<'_>) -> String {
    let mut out = String::new();
    if let Some(event) = interval.event {
        // 5 and 4 as in the line below, so that the exclamation mark stands where the seconds end.
        out += &cut(&format!("{:>5}   {}", "!", clean(event)));
        out.push('\n');
    }
    out += &cut(&load(interval));
    out.push('\n');
    out
}

fn load(interval: &Interval<'_>) -> String {
    let recorded = interval.recorded;
    let rate = per_second(recorded.ops(), interval.length).round() as u64;
    let mut line = format!("{:>5} s  {:>11} ops/s", interval.elapsed.as_secs(), grouped(rate));
    let latency = Latency::of(&recorded.all().response);
    for (name, of) in [("p50", (|l| l.p50) as fn(Latency) -> u64), ("p99", |l| l.p99), ("p99.9", |l| l.p999)] {
        let us = latency.map_or_else(|| "--".to_owned(), |latency| micros(of(latency)));
        line += &format!("  {name} {us:>9}");
    }
    let count = |n: u64, what: &str| (n > 0).then(|| format!("  {} {what}", grouped(n)));
    // What has gone wrong before what is only nice to know: what does not fit is left out.
    let more = [
        interval.done.map(|done| format!("  {:>3.0} %", done.clamp(0.0, 1.0) * 100.0)),
        count(recorded.error_count(), "errors"),
        count(recorded.dropped, "dropped"),
        count(recorded.late, "late"),
        interval.asked_per_s.map(|asked| format!("  asked {}/s", grouped(asked.round() as u64))),
    ];
    for part in more.into_iter().flatten() {
        if line.chars().count() + part.chars().count() <= WIDTH {
            line += &part;
        }
    }
    line
}

/// A sentence as one line: control characters could do anything to a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn cut(line: &str) -> String {
    line.chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::samples::Sample, *};

    #[test]
    fn a_second_is_a_line() {
        let mut busy = Sample::busy();
        let all = lines(&busy.interval());
        assert_eq!(
            all,
            "    !   killed shard0-leader\n   12 s        1,000 ops/s  p50    500 us  p99    990 us  p99.9    999 us   40 %  \
             12 errors  1 dropped  7 late\n"
        );
        // In the rare case that all of it is there at once, the asked rate is what is left out.
        assert!(!all.contains("asked"));
        (busy.event, busy.recorded.late, busy.recorded.dropped) = (None, 0, 0);
        assert!(lines(&busy.interval()).ends_with("  12 errors  asked 1,013/s\n"));
        assert_eq!(
            lines(&Sample::idle().interval()),
            "   12 s            0 ops/s  p50        --  p99        --  p99.9        --\n"
        );
    }

    #[test]
    fn no_line_is_wider_than_a_log_bears_nor_more_than_a_line() {
        for sample in [Sample::idle(), Sample::busy(), Sample::all_kinds(), Sample::huge()] {
            let text = lines(&sample.interval());
            assert_eq!(text.lines().count(), 1 + usize::from(sample.event.is_some()), "{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= WIDTH && !line.contains(char::is_control)),
                "{text}"
            );
        }
    }
}
