//! What a run leaves: JSON, CSV, and logs of histograms.

use crate::{
    servers::Cluster,
    tool::{Echo, kvbench, run, run_json},
};
use base64::Engine;
use hdrhistogram::{
    Histogram,
    serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    },
};
use std::{collections::BTreeMap, path::Path};

/// The histograms of a log, all intervals of each tag together.
fn histograms(path: &Path) -> BTreeMap<String, Histogram<u64>> {
    let log = std::fs::read(path).expect("a log");
    let mut all: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for entry in IntervalLogIterator::new(&log) {
        let LogEntry::Interval(interval) = entry.expect("well-formed") else { continue };
        let bytes = base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).expect("base64");
        let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram");
        let tag = interval.tag().expect("tagged").as_str().to_owned();
        let first = || Histogram::new_from(&histogram);
        all.entry(tag).or_insert_with(first).add(&histogram).expect("the same bounds");
    }
    all
}

#[test]
fn all_outputs_of_a_run_say_the_same() {
    let (cluster, folder) = (Cluster::well(), tempfile::tempdir().expect("a folder"));
    let (csv, log) = (folder.path().join("a.csv"), folder.path().join("a.hlog"));
    let ran = run_json(&format!(
        "run --target {} --keys 500 --op get=2,put=1 --threads 2 --connections 8 --duration 2500ms --rate 1500 --csv {} --hdr-log {}",
        cluster.url(),
        csv.display(),
        log.display()
    ));
    assert!(ran.is_well(), "{ran}");
    let logged = histograms(&log);
    assert_eq!(logged.keys().collect::<Vec<_>>(), ["get", "load.put", "put"]);
    assert_eq!(logged["load.put"].len(), 500);
    let csv = std::fs::read_to_string(&csv).expect("rows");
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().expect("a header");
    assert_eq!(head[..4], ["phase", "second", "kind", "ops"]);
    let rows: Vec<_> = lines.collect();
    assert!(rows.iter().all(|row| row.len() == head.len()), "{csv}");
    let sum = |phase: &str, kind: &str| -> u64 {
        let of = rows.iter().filter(|row| row[0] == phase && row[2] == kind);
        of.map(|row| row[3].parse::<u64>().expect("a number")).sum()
    };
    for kind in ["get", "put"] {
        let (ops, max) =
            (ran.count(&format!("/kinds/{kind}/ops")), ran.count(&format!("/kinds/{kind}/latency_us/max")));
        assert_eq!((logged[kind].len(), sum("run", kind)), (ops, ops), "{kind}: {ran}");
        let p99 = ran.count(&format!("/kinds/{kind}/latency_us/p99"));
        assert_eq!((logged[kind].value_at_quantile(0.99), logged[kind].max()), (p99, max), "{kind}: {ran}");
    }
    assert_eq!((sum("run", "all"), sum("load", "all")), (ran.count("/ops"), 500));
    let series = ran.json["series"].as_array().expect("seconds");
    let of_series: u64 = series.iter().filter_map(|point| point["ops"].as_u64()).sum();
    assert_eq!((of_series, series.len()), (ran.count("/ops"), 3), "{ran}");
}

#[test]
fn a_result_on_stdout_is_alone_there() {
    let echo = Echo::start("");
    for path in ["-", "/dev/stdout"] {
        let ran = run(&format!(
            "run --target {} --no-load --duration 400ms --connections 2 --pipeline 2 --json {path}",
            echo.url()
        ));
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran}"));
        assert_eq!((ran.code, &json["schema"]), (Some(0), &"kvbench/2".into()), "{ran}");
    }
}

/// The disk is full when the result comes: the run is not done, and that is said; what can be kept is.
#[test]
fn a_full_disk_is_told_of() {
    let echo = Echo::start("");
    let target = echo.url();
    let flags = format!("run --target {target} --no-load --duration 1200ms --connections 2 --pipeline 2");
    for output in ["--json", "--csv", "--hdr-log"] {
        let ran = run(&format!("{flags} {output} /dev/full"));
        assert_eq!(ran.code, Some(2), "{output}: {ran}");
        assert!(ran.stderr.contains("/dev/full") && ran.stderr.contains("No space left"), "{output}: {ran}");
        assert!(ran.stdout.contains("operations/s"), "what was measured is shown: {output}: {ran}");
        assert!(!ran.stderr.contains("panicked"), "{output}: {ran}");
    }
}

/// An older result is better than half of a new one.
#[test]
fn on_a_disk_that_is_full_the_older_result_stays() {
    let (echo, folder) = (Echo::start(""), tempfile::tempdir().expect("a folder"));
    // In a mount namespace of its own the disk is gone with the shell.
    let script = format!(
        "mount -t tmpfs -o size=16k none {0} || exit 77\necho older > {0}/out.json\nhead -c 100k /dev/zero > {0}/filling\n\
         {1} run --target {2} --no-load --duration 400ms --connections 2 --pipeline 2 --json {0}/out.json\necho exit $?\ncat {0}/out.json\n",
        folder.path().display(),
        env!("CARGO_BIN_EXE_kvbench"),
        echo.url(),
    );
    let output = std::process::Command::new("unshare").args(["--mount", "sh", "-c", &script]).output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        other => return println!("skipped: this needs root and mounts: {other:?}"),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("exit 2\nolder\n"), "{stdout}\n{stderr}");
    assert!(
        stderr.contains("No space left") && stderr.contains("the older file is there as it was"),
        "{stdout}\n{stderr}"
    );
}

#[test]
fn nothing_is_left_where_nothing_was_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut command = kvbench("run --target 127.0.0.1:1 --no-load");
    for (flag, name) in [("--json", "a.json"), ("--csv", "a.csv"), ("--hdr-log", "a.hlog")] {
        command.arg(flag).arg(at(name));
    }
    assert_eq!(command.output().expect("kvbench starts").status.code(), Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
