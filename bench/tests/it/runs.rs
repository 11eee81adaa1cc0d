//! What a run does: phases, operations, errors, and following a cluster that changes.

use crate::{
    servers::{Cluster, Mood, Redis, Shape},
    tool::{Echo, all_end, kvbench, run, run_json, start},
};
use rustix::process::Pid;
use std::{collections::HashSet, os::unix::process::CommandExt, process::Command, time::Duration};

/// Enough is answered while the clock runs, even on a busy machine.
const FEW_SLOTS: &str = "--connections 8 --pipeline 2";

#[test]
fn every_key_is_loaded_once_and_found() {
    let cluster = Cluster::well();
    let ran = run_json(&format!(
        "run --target {} --keys 3000 --connections 9 --threads 2 --duration 500ms --pipeline 8",
        cluster.url()
    ));
    assert_eq!(ran.code, Some(0), "{ran}");
    let json = &ran.json;
    assert_eq!((&json["schema"], &json["complete"]), (&"kvbench/2".into(), &true.into()));
    assert_eq!(
        (&json["load"]["keys"], &json["misses"], &json["errors"]),
        (&3000.into(), &0.into(), &serde_json::json!({}))
    );
    assert_eq!((&json["leaders"], &json["executors"]), (&2.into(), &4.into()));
    let puts: Vec<_> = cluster.seen().into_iter().filter(|seen| seen.what == "put").collect();
    let keys: HashSet<_> = puts.iter().map(|seen| &seen.key).collect();
    assert_eq!((puts.len(), keys.len()), (3000, 3000), "each once");
    for field in ["/ops", "/ops_per_s", "/cpu_s_per_million_ops", "/elapsed_s", "/load/keys_per_s", "/generator/cpu_s"]
    {
        assert!(ran.number(field) > 0.0, "{field}: {ran}");
    }
    for figures in ["latency_us", "service_us"] {
        let latency = ["p50", "p90", "p95", "p99", "p999", "max"].map(|p| ran.count(&format!("/{figures}/{p}")));
        assert!(latency.is_sorted() && latency[5] > 0, "{latency:?}");
    }
    let parameters = &json["parameters"];
    let expected = serde_json::json!({"op": "get", "pipeline": 8, "target": cluster.url(), "threads": 2, "workers": 1});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&parameters[name], value, "{name}");
    }
    assert!(ran.stdout.contains("operations/s") && ran.stdout.contains("p99.9"), "{ran}");
}

#[test]
fn without_a_load_reads_miss_and_writes_do_not_care() {
    let ran =
        run_json(&format!("run --target {} --keys 1000 --duration 500ms --no-load {FEW_SLOTS}", Cluster::well().url()));
    assert_eq!((ran.code, &ran.json["load"]), (Some(0), &serde_json::Value::Null), "{ran}");
    assert!(ran.json["misses"] == ran.json["ops"] && ran.count("/ops") > 0, "{ran}");
    let target = Cluster::well().url();
    let ran =
        run_json(&format!("run --target {target} --keys 1000 --duration 500ms --op put --value-size 4096 {FEW_SLOTS}"));
    assert_eq!((ran.code, &ran.json["load"], ran.count("/misses")), (Some(0), &serde_json::Value::Null, 0), "{ran}");
}

#[test]
fn errors_are_counted_by_their_codes_and_make_the_exit_code_1() {
    let target = Cluster::in_mood(Mood::Refusing).url();
    let ran = run_json(&format!("run --target {target} --keys 1000 --duration 500ms --op put {FEW_SLOTS}"));
    assert_eq!(ran.code, Some(1), "{ran}");
    let (errors, ops) = (ran.count("/errors/follower_unreachable"), ran.count("/ops"));
    assert!(errors > 0 && ops > errors && ran.stdout.contains("follower_unreachable"), "{ran}");

    let target = Cluster::in_mood(Mood::Cutting).url();
    let ran =
        run_json(&format!("run --target {target} --keys 1000 --duration 1s --op put --connections 4 --pipeline 4"));
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.count("/errors/connection_lost") > 0, "{ran}");
    assert!(ran.count("/ops") > 4 * 20, "connections were made anew: {ran}");
    assert_eq!(ran.count("/outcomes/unknown"), ran.count("/errors/connection_lost"), "{ran}");
}

/// Kinds of operations, and how many requests each of them is.
#[test]
fn all_kinds_of_operations_are_carried_out() {
    let cluster = Cluster::start(Shape { nodes: 1, executors: 1, ..Shape::default() });
    let ran = run_json(&format!(
        "run --target {} --keys 500 --connections 2 --pipeline 2 --duration 700ms --batch-size 7 \
         --op get=1,put=1,insert=1,delete=1,cas=1,rmw=1,scan=1,batch=1",
        cluster.url()
    ));
    assert_eq!((ran.code, ran.error_count()), (Some(0), 0), "{ran}");
    let kinds = ["get", "put", "insert", "delete", "cas", "rmw", "scan", "batch"];
    assert!(kinds.iter().all(|kind| ran.count(&format!("/kinds/{kind}/ops")) > 0), "{ran}");
    let of_kinds: u64 = kinds.iter().map(|kind| ran.count(&format!("/kinds/{kind}/ops"))).sum();
    assert_eq!(of_kinds, ran.count("/ops"), "{ran}");
    // Keys that were inserted lie beyond those that were loaded, each once.
    let inserted: Vec<_> =
        cluster.seen().into_iter().filter(|seen| seen.key.as_slice() >= b"key:000000000500".as_slice()).collect();
    let puts: Vec<_> = inserted.iter().filter(|seen| seen.what == "put").map(|seen| &seen.key).collect();
    let keys: HashSet<_> = puts.iter().collect();
    let inserts = ran.count("/kinds/insert/ops") as usize;
    assert!(puts.len() == keys.len() && (inserts..=inserts + 4).contains(&puts.len()), "{inserts} {}", puts.len());

    // One connection that sends one request after the other: what it sends for each operation can be counted.
    for (kind, requests) in [("batch", 7.0), ("rmw", 2.0), ("cas", 2.0), ("get", 1.0)] {
        let cluster = Cluster::start(Shape { nodes: 1, executors: 1, ..Shape::default() });
        let target = cluster.url();
        let ran = run_json(&format!(
            "run --target {target} --keys 50 --connections 1 --pipeline 1 --duration 400ms --batch-size 7 --op {kind} --load"
        ));
        assert_eq!((ran.code, ran.count("/conflicts")), (Some(0), 0), "{ran}");
        let (sent, ops) = ((cluster.seen().len() - 50) as f64, ran.number("/ops"));
        assert!(sent >= ops * requests && sent <= (ops + 1.0) * requests, "{kind}: {sent} requests: {ran}");
    }
}

#[test]
fn workloads_with_a_name_run_as_they_are() {
    for name in ["ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f", "original"] {
        let cluster = Cluster::well();
        let keys = if name == "original" { "" } else { "--keys 300" };
        let ran = run_json(&format!(
            "run --target {} --workload {name} {keys} --duration 500ms --connections 8 --pipeline 4 --threads 2 --think 10ms-50ms",
            cluster.url()
        ));
        assert_eq!((ran.code, ran.error_count()), (Some(0), 0), "{name}: {ran}");
        assert!(ran.count("/ops") > 0, "{name}: {ran}");
        assert_eq!(ran.json["parameters"]["workload"], name);
        if name == "original" {
            assert!(cluster.seen().iter().all(|seen| seen.key == b"sample_key"), "one key");
        }
    }
    let ran = run_json(&format!(
        "run --target {} --workload ycsb-e --keys 300 --duration 500ms {FEW_SLOTS}",
        Cluster::well().url()
    ));
    assert_eq!((ran.code, ran.error_count()), (Some(0), 0), "{ran}");
    assert!(ran.json["parameters"]["think"].is_null() && ran.count("/kinds/scan/ops") > 0, "{ran}");
}

/// A warm-up is the beginning of what is asked, not the same once more.
#[test]
fn the_seed_decides_what_is_asked() {
    let asked = |flags: &str| {
        let cluster = Cluster::start(Shape { nodes: 1, executors: 1, ..Shape::default() });
        let ran = run(&format!(
            "run --target {} --keys 1000 --no-load --op get=1,put=1,delete=1 --connections 1 --pipeline 1 {flags}",
            cluster.url()
        ));
        assert_eq!(ran.code, Some(0), "{ran}");
        cluster.seen().into_iter().map(|seen| (seen.what, seen.key)).collect::<Vec<_>>()
    };
    // A busy machine gets more time.
    let asked = |flags: &str| {
        let tries = ["--duration 200ms", "--duration 2s", "--duration 10s"].into_iter();
        tries.map(|duration| asked(&format!("{duration} {flags}"))).find(|asked| asked.len() > 50).expect("enough")
    };
    let are_same = |a: &[_], b: &[_]| {
        let both = a.len().min(b.len());
        a[..both] == b[..both]
    };
    let first = asked("--seed 7");
    assert!(are_same(&first, &asked("--seed 7")));
    assert!(are_same(&first, &asked("--seed 7 --warmup 50ms")));
    assert!(!are_same(&first, &asked("--seed 8")));
}

#[test]
fn one_node_alone_is_asked_for_what_it_leads() {
    let cluster = Cluster::well();
    for node in [0, 1] {
        let before = cluster.seen().len();
        let ran = run_json(&format!(
            "run --target kv+one://{} --keys 500 --op get --duration 500ms --no-load {FEW_SLOTS}",
            cluster.address(node)
        ));
        assert_eq!((ran.code, ran.error_count(), ran.count("/leaders")), (Some(0), 0, 1), "{ran}");
        let seen = &cluster.seen()[before..];
        assert!(!seen.is_empty() && seen.iter().all(|seen| seen.node == node && seen.well), "{ran}");
    }
}

/// Requests that were under way fail; all others go to the new leader at once.
#[test]
fn leadership_that_passes_in_the_middle_is_followed() {
    for pace in ["", "--rate 2000"] {
        let cluster = Cluster::well();
        let mut command = kvbench(&format!(
            "run --target {} --verify --keys 500 --op get=50,put=40,delete=5,cas=5 --duration 1500ms --threads 2 --connections 8 \
             --view lines {pace}",
            cluster.url()
        ));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        let running = start(command.arg("--json").arg(&path), |line| line.starts_with("run:"));
        cluster.until_more(300);
        // All of a node's partitions at first, then some of them back.
        cluster.lead(1, 0..8);
        let before = cluster.seen().len();
        cluster.until_more(300);
        let meanwhile =
            cluster.seen()[before..].iter().filter(|seen| seen.well).map(|seen| seen.node).collect::<HashSet<_>>();
        cluster.lead(0, 2..5);
        let ran = running.end_json(&path);
        assert_eq!(meanwhile, HashSet::from([1]), "{ran}");
        let last: HashSet<_> = cluster.seen().iter().rev().take(500).map(|seen| seen.node).collect();
        assert_eq!(last, HashSet::from([0, 1]), "{ran}");
        assert!(ran.errors_but(&["not_leader", "connection_lost"]).is_empty(), "{ran}");
        let (errors, ops) = (ran.error_count(), ran.count("/ops"));
        assert!(errors > 0 && errors < ops / 5, "{ran}");
        assert_eq!((ran.count("/verify/violations"), ran.count("/verify/not_audited")), (0, 0), "{ran}");
    }
}

/// What was run until then is reported, and it is said that it is a part.
#[test]
fn an_interrupt_ends_the_run_and_keeps_its_part() {
    let folder = tempfile::tempdir().expect("a folder");
    for (what, during, flags) in [
        ("measurement", "run:", "--keys 1000"),
        ("load", "load:", "--keys 10000000"),
        ("verified", "run:", "--keys 100 --verify"),
    ] {
        let cluster = Cluster::well();
        let path = folder.path().join(format!("{what}.json"));
        let mut command = kvbench(&format!("run --target {} --duration 10m --view lines {flags}", cluster.url()));
        let running = start(command.arg("--json").arg(&path), |line| line.starts_with(during));
        cluster.until_more(500);
        running.interrupt();
        let ran = running.end_json(&path);
        assert_eq!((ran.code, &ran.json["complete"]), (Some(0), &false.into()), "{what}: {ran}");
        assert!(ran.stderr.contains("interrupted"), "{what}: {ran}");
        assert!(ran.json["warnings"].to_string().contains("interrupted"), "{what}: {ran}");
        let (loaded, ops) = (ran.count("/load/keys"), ran.count("/ops"));
        match what {
            "load" => assert!(loaded > 0 && loaded < 10_000_000 && ops == 0, "{ran}"),
            "verified" => assert!(ran.count("/verify/audited") == 100 && ran.count("/verify/violations") == 0, "{ran}"),
            _ => assert!(loaded == 1000 && ops > 0 && ran.number("/elapsed_s") < 60.0, "{ran}"),
        }
    }
}

/// Who does not want to wait for what is under way gets no result.
#[test]
fn a_second_interrupt_ends_it_at_once() {
    let echo = Echo::start("--delay 1h");
    let mut command = kvbench(&format!("run --target {} --no-load --deadline 1h --view lines", echo.url()));
    let mut running = start(&mut command, |line| line.starts_with("run:"));
    running.interrupt();
    running.wait_for(|line| line.starts_with("interrupted"));
    running.interrupt();
    let ran = running.end();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran}");
    assert!(ran.stderr.contains("interrupted again"), "{ran}");
}

#[test]
fn a_run_without_an_answer_is_no_success() {
    let target = Cluster::well().url();
    let ran = run_json(&format!("run --target {target} --no-load --think 1h --duration 200ms"));
    assert_eq!((ran.code, ran.count("/ops"), ran.error_count()), (Some(1), 0, 0), "{ran}");
    assert!(ran.stderr.contains("nothing was answered"), "{ran}");
}

#[test]
fn writes_with_ids_are_asked_again_when_nobody_knows_what_became_of_them() {
    for (flags, again) in [("--operation-ids", true), ("", false)] {
        let target = Cluster::in_mood(Mood::Breaking).url();
        let ran = run_json(&format!(
            "run --target {target} --keys 100 --op put --connections 8 --pipeline 2 --duration 500ms {flags}"
        ));
        assert_eq!(ran.count("/retried") > 0, again, "{flags}: {ran}");
        let errors = ran.error_count();
        // At the end nothing is asked again.
        assert!(if again { errors <= 16 && errors < ran.count("/retried") } else { errors > 0 }, "{flags}: {ran}");
        assert!(ran.errors_but(&["connection_lost"]).is_empty(), "{flags}: {ran}");
    }
}

#[test]
fn other_stores_are_loaded_by_their_own_protocol() {
    let ran = run_json(&format!(
        "run --target {} --keys 300 --op get=50,put=40,delete=5,rmw=5 --duration 500ms --connections 4 --threads 2 --pipeline 4",
        Redis::start(None).url()
    ));
    assert_eq!((ran.code, ran.error_count()), (Some(0), 0), "{ran}");
    assert_eq!((ran.count("/leaders"), ran.count("/executors")), (1, 1), "{ran}");
}

#[test]
fn without_arguments_it_explains_itself() {
    let ran = run("");
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("Usage: kvbench") && ran.stdout.contains("kvbench run --op put"), "{ran}");
}

/// The dead node's partitions pass to the other one as soon as it is dead.
#[test]
fn a_killed_leader_is_reported_with_what_it_cost() {
    let (cluster, folder) = (Cluster::well(), tempfile::tempdir().expect("a folder"));
    let (json, file) = (folder.path().join("out.json"), folder.path().join("cluster.json"));
    // Who leads most is killed.
    cluster.lead(0, [0, 1, 2, 4, 6].into_iter());
    // It stands for the node's process, and is called as it.
    let mut victim = Command::new("sleep").arg0("a").arg("1000").spawn().expect("a process");
    let node = |name: &str, role: &str, pid: u32, index| serde_json::json!({"name": name, "role": role, "pid": pid, "address": cluster.address(index)});
    let manifest = serde_json::json!({"processes": [node("a", "leader", victim.id(), 0), node("b", "follower", 0, 1)]});
    std::fs::write(&file, manifest.to_string()).expect("written");
    let mut command = kvbench(&format!(
        "run --target {} --op put --keys 500 --verify --duration 1500ms --kill-leader-at 400ms --view lines --cluster {}",
        cluster.url(),
        file.display()
    ));
    let pid = victim.id();
    let running = start(command.arg("--json").arg(&json), |line| line.starts_with("run:"));
    let is_dead = all_end(&[Pid::from_child(&victim)]);
    victim.kill().and_then(|()| victim.wait()).expect("it is dead now");
    // For so long nobody leads them.
    std::thread::sleep(Duration::from_millis(200));
    cluster.lead(1, [0, 1, 2, 4, 6].into_iter());
    let ran = running.end_json(&json);
    // Failures are what was asked for.
    assert!(is_dead && ran.code == Some(0), "{ran}");
    let kill = &ran.json["kill"];
    assert_eq!((&kill["node"], &kill["pid"]), (&"a".into(), &pid.into()), "{ran}");
    assert_eq!((&kill["led"], &kill["at_s"]), (&serde_json::json!([0, 1, 2, 4, 6]), &0.4.into()), "{ran}");
    assert_eq!(kill["windows"].as_array().map(Vec::len), Some(8), "{ran}");
    assert!(ran.stdout.contains("killed a") && ran.stdout.contains("its partitions (5)"), "{ran}");
    assert_eq!((ran.count("/verify/violations"), ran.count("/verify/not_audited")), (0, 0), "{ran}");
    let events: Vec<_> =
        ran.json["series"].as_array().expect("seconds").iter().filter_map(|p| p["event"].as_str()).collect();
    assert!(events.len() == 1 && events[0].starts_with("killed a "), "{ran}");
}
