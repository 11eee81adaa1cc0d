//! `kv doctor`: says whether this machine can run a node, and what cures it if not.

use crate::{EXIT_ERROR, output};
use kv_node::probe::{self, Finding, Verdict};
use std::process::ExitCode;

/// What the doctor is asked.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Executors that a node shall have
    #[arg(long, env = "KV_CORES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    cores: u16,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let findings = probe::check(options.cores.into());
    output::line(report(&findings));
    if findings.iter().any(|f| f.verdict == Verdict::Bad) { ExitCode::from(EXIT_ERROR) } else { ExitCode::SUCCESS }
}

fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Poor => "weak",
            Verdict::Bad => "BAD ",
        };
        text += &format!("{mark}  {:<14} {}\n", finding.name, finding.seen);
        if !finding.ok() {
            text += &format!("      {:<14} cure: {}\n", "", finding.cure);
        }
    }
    text += if findings.iter().any(|f| f.verdict == Verdict::Bad) {
        "A node cannot run on this machine until what is marked BAD is cured."
    } else {
        "A node can run on this machine."
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict) -> Finding {
        let cure = if verdict == Verdict::Good { "" } else { "do this" };
        Finding { name: "thing", verdict, seen: "as it is".to_owned(), cure: cure.to_owned() }
    }

    #[test]
    fn reports() {
        let can = "A node can run on this machine.";
        let cannot = "A node cannot run on this machine until what is marked BAD is cured.";
        for (verdict, expected) in [
            (Verdict::Good, format!("ok    thing          as it is\n{can}")),
            (Verdict::Poor, format!("weak  thing          as it is\n{:21}cure: do this\n{can}", "")),
            (Verdict::Bad, format!("BAD   thing          as it is\n{:21}cure: do this\n{cannot}", "")),
        ] {
            assert_eq!(report(&[finding(verdict)]), expected);
        }
    }
}
