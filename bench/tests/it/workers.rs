//! A load by several processes.

use crate::{
    servers::{Cluster, Seen},
    tool::{all_end, children, kvbench, run_json, start},
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{os::unix::process::CommandExt, path::Path, thread::sleep, time::Duration};

#[test]
fn what_workers_did_is_put_together() {
    let cluster = Cluster::well();
    let slots = 12 * 4;
    let ran = run_json(&format!(
        "run --target {} --workers 2 --threads 2 --keys 1000 --op get=1,put=1 --connections 16 --pipeline 3 --duration 800ms",
        cluster.url()
    ));
    assert_eq!((ran.code, ran.error_count(), &ran.json["complete"]), (Some(0), 0, &true.into()), "{ran}");
    assert_eq!((ran.count("/load/keys"), ran.count("/misses")), (1000, 0), "each loads its part: {ran}");
    assert_eq!((ran.count("/leaders"), ran.count("/executors"), ran.count("/parameters/workers")), (2, 4, 2), "{ran}");
    let seen: Vec<Seen> = cluster.seen();
    let ops = ran.count("/ops") as usize;
    // What is answered after the end is not counted.
    assert!(seen.len() >= ops + 1000 && seen.len() <= ops + 1000 + slots, "{} seen: {ran}", seen.len());
    for kind in ["get", "put"] {
        let loaded = if kind == "put" { 1000 } else { 0 };
        let (seen, ops) =
            (seen.iter().filter(|seen| seen.what == kind).count(), ran.count(&format!("/kinds/{kind}/ops")));
        assert!(seen >= ops as usize + loaded && seen <= ops as usize + loaded + slots, "{kind}: {seen} seen: {ran}");
    }
    // By Little's law, as if it were one process: so the latencies of both are in it.
    let under_way = ran.number("/ops_per_s") * ran.number("/latency_us/mean") / 1e6;
    assert!((0.8..1.1).contains(&(under_way / slots as f64)), "{under_way} under way: {ran}");
    let latency = ["p50", "p90", "p99", "max"].map(|p| ran.count(&format!("/latency_us/{p}")));
    assert!(latency.is_sorted() && latency[0] > 0, "{ran}");
}

/// An open loop is shared out, too.
#[test]
fn workers_share_out_a_rate() {
    let target = Cluster::well().url();
    let ran = run_json(&format!(
        "run --target {target} --workers 2 --keys 100 --op put --connections 8 --rate 1000 --arrivals constant --duration 1s"
    ));
    assert!(ran.is_well(), "{ran}");
    assert!((990..=1001).contains(&ran.count("/open_loop/due")), "{ran}");
    assert_eq!(ran.count("/ops") + ran.count("/open_loop/dropped"), ran.count("/open_loop/due"), "{ran}");
}

/// A terminal tells all processes, another program the first alone.
#[test]
fn an_interrupt_ends_all_workers_and_keeps_their_part() {
    for whole_group in [false, true] {
        let (cluster, folder) = (Cluster::well(), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("out.json");
        let mut command = workers(&cluster, &path);
        let running = start(command.process_group(0), |line| line.starts_with("run:"));
        sleep(Duration::from_millis(500));
        let workers = children(running.pid());
        assert_eq!(workers.len(), 2);
        if whole_group {
            kill_process_group(running.pid(), Signal::INT).expect("they run");
        } else {
            running.interrupt();
        }
        let ran = running.end_json(&path);
        assert_eq!((ran.code, &ran.json["complete"]), (Some(0), &false.into()), "{ran}");
        assert!(ran.count("/ops") > 0 && ran.stderr.contains("interrupted"), "{ran}");
        assert!(all_end(&workers), "no worker is left");
    }
}

#[test]
fn a_worker_that_dies_is_told_of() {
    for killed in [0, 1] {
        let (cluster, folder) = (Cluster::well(), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("out.json");
        let running = start(&mut workers(&cluster, &path), |line| line.starts_with("run:"));
        sleep(Duration::from_millis(200));
        let workers = children(running.pid());
        assert_eq!(workers.len(), 2);
        kill_process(workers[killed], Signal::KILL).expect("it runs");
        let ran = running.end();
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran}");
        let told = ran.stderr.lines().find(|line| line.starts_with("kvbench: worker ")).unwrap_or_default();
        assert!(told.contains("it ended in the middle of the load: signal: 9"), "{ran}");
        assert!(!path.exists(), "half a result is none");
        assert!(all_end(&workers), "no worker is left");
    }
}

/// Workers whose leader is gone have nobody to work for.
#[test]
fn workers_end_with_their_leader() {
    let (cluster, folder) = (Cluster::well(), tempfile::tempdir().expect("a folder"));
    let running = start(&mut workers(&cluster, &folder.path().join("out.json")), |line| line.starts_with("run:"));
    let workers: Vec<Pid> = children(running.pid());
    assert_eq!(workers.len(), 2);
    kill_process(running.pid(), Signal::KILL).expect("it runs");
    running.end();
    assert!(all_end(&workers), "no worker is left");
}

fn workers(cluster: &Cluster, json: &Path) -> std::process::Command {
    let target = cluster.url();
    let mut command = kvbench(&format!(
        "run --target {target} --workers 2 --keys 100 --connections 8 --pipeline 2 --duration 10m --view lines"
    ));
    command.arg("--json").arg(json);
    command
}
