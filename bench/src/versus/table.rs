//! A comparison as a table: Markdown that is aligned, so that it reads well on a terminal, too. Pure.

use super::ratios::{Compared, Comparison, Ratio, Spread};
use crate::measure::{grouped, micros};
use std::fmt::Write;

/// What stands where there is nothing.
const NOTHING: &str = "--";

const HEAD: [&str; 7] = ["", "ops/s", "ratio [min..max]", "p50", "p99", "errors", "CPU us/op"];

/// The table, and under it what its ratios are worth.
pub(crate) fn table(comparison: &Comparison) -> String {
    let head = HEAD.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(comparison.series.iter().map(row)).collect();
    let widths: [usize; HEAD.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(2));
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ = if column == 0 { write!(out, "| {cell:<width$} ") } else { write!(out, "| {cell:>width$} ") };
        }
        out.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                let _ = if column == 0 {
                    write!(out, "|{:-<1$}", "", width + 2)
                } else {
                    write!(out, "|{:->1$}", ":", width + 2)
                };
            }
            out.push_str("|\n");
        }
    }
    let notes = notes(comparison);
    if !notes.is_empty() {
        let _ = write!(out, "\n{notes}");
    }
    out
}

fn row(series: &Compared) -> [String; HEAD.len()] {
    let text = |spread: Option<Spread>, text: fn(f64) -> String| spread.map_or(NOTHING.to_owned(), |s| text(s.median));
    let ratio = series.ratios.as_ref().and_then(|ratios| ratios.ops_per_s);
    let one_decimal = |us: f64| format!("{us:.1}");
    [
        // A bar would end the cell.
        series.name.replace('|', "\\|"),
        text(series.ops_per_s, |rate| grouped(rate.round() as u64)),
        ratio.map_or(NOTHING.to_owned(), |Ratio { spread, .. }| {
            format!("{:.2} [{:.2}..{:.2}]", spread.median, spread.min, spread.max)
        }),
        text(series.p50_us, |us| micros(us.round() as u64)),
        text(series.p99_us, |us| micros(us.round() as u64)),
        grouped(series.errors_total),
        text(series.cpu_us_per_op, one_decimal),
    ]
}

/// Sentences, a line each.
fn notes(comparison: &Comparison) -> String {
    let Some((baseline, others)) = comparison.series.split_first() else { return String::new() };
    let ratio = |series: &Compared| series.ratios.as_ref().and_then(|ratios| ratios.ops_per_s);
    let mut out = String::new();
    let rounds = comparison.rounds;
    let plural = if rounds == 1 { "round" } else { "rounds" };
    if !others.is_empty() && rounds > 0 {
        let _ = writeln!(out, "medians of {rounds} {plural}; ratios to {}, round by round", baseline.name);
    }
    for (series, ratio) in others.iter().filter_map(|series| Some((series, ratio(series)?))) {
        if let Some(confidence) = ratio.confidence {
            let _ = writeln!(
                out,
                "{}: the median ratio lies in {:.3}..{:.3} with {:.1} % confidence",
                series.name,
                confidence.low,
                confidence.high,
                confidence.level * 100.0
            );
        }
        if ratio.says_little() {
            let (low, high) = ratio.interval();
            let _ = writeln!(
                out,
                "{}: {low:.3}..{high:.3} includes 1, so {rounds} {plural} cannot tell its rate from that of {}; more or longer \
                 rounds on a quiet machine may",
                series.name, baseline.name
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::ratios::{compare, tests::series};
    use super::*;

    #[test]
    fn a_table_is_aligned_and_says_what_it_is_worth() {
        let text = table(&compare(&[
            series("kv://127.0.0.1:5001", &[100_000.0, 101_000.0, 99_000.0]),
            series("redis|peer", &[150_000.4, 149_000.0, 151_000.0]),
            series("again", &[101_000.0, 100_000.0, 99_000.0]),
        ]));
        let expected = "\
|                     |   ops/s |  ratio [min..max] |    p50 |     p99 | errors | CPU us/op |
|---------------------|--------:|------------------:|-------:|--------:|-------:|----------:|
| kv://127.0.0.1:5001 | 100,000 |                -- | 200 us | 1.50 ms |      3 |       2.5 |
| redis\\|peer         | 150,000 | 1.50 [1.48..1.53] | 200 us | 1.50 ms |      3 |       2.5 |
| again               | 100,000 | 1.00 [0.99..1.01] | 200 us | 1.50 ms |      3 |       2.5 |

medians of 3 rounds; ratios to kv://127.0.0.1:5001, round by round
again: 0.990..1.010 includes 1, so 3 rounds cannot tell its rate from that of kv://127.0.0.1:5001; more or longer rounds on a quiet machine may
";
        assert_eq!(text, expected);
    }

    #[test]
    fn from_five_rounds_on_the_confidence_is_told() {
        let text = table(&compare(&[series("a", &[1.0; 5]), series("b", &[2.0, 2.1, 2.2, 2.3, 2.4])]));
        assert!(text.contains("b: the median ratio lies in 2.000..2.400 with 93.8 % confidence"), "{text}");
        assert!(!text.contains("includes 1"), "{text}");
    }

    #[test]
    fn nothing_is_a_table_without_rows_or_without_numbers() {
        assert_eq!(table(&compare(&[])).lines().count(), 2);
        let text = table(&compare(&[series("a", &[]), series("b", &[])]));
        assert!(text.contains("| b  |    -- |               -- |  -- |"), "{text}");
        assert!(!text.contains("includes"), "{text}");
    }
}
