//! `kvbench` against real clusters: every way in, and leaders that it kills.

use crate::{
    common::{Cluster, Spawned, run, runs},
    nodes::{FOLLOWER, LEADER, PAIR, leaders, start_node, until_whole},
};
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::SystemTime,
};

/// Leadership stays where it is, so that a test knows who is killed.
const STAYS: [&str; 2] = ["--rebalance-after-s", "0"];

/// Cargo tells a test where the programs of its own package are, and this one is of another. `cargo test --workspace` builds
/// both into one folder before any test runs. `cargo test -p kv` does not: then it is built here, which takes minutes when
/// nothing of it is there yet. It is also built if a source is newer, so that no test is about an old program.
static KVBENCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let kv = Path::new(env!("CARGO_BIN_EXE_kv"));
    let (kvbench, profile) = (kv.with_file_name("kvbench"), kv.parent().expect("a folder"));
    if !is_new(&kvbench) {
        let name = profile.file_name().and_then(|name| name.to_str()).expect("named after the profile");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "kvbench", "--profile", if name == "debug" { "dev" } else { name }]);
        build.arg("--target-dir").arg(profile.parent().expect("the target folder"));
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo starts");
        assert!(built.status.success(), "{build:?}: {}", String::from_utf8_lossy(&built.stderr));
    }
    kvbench
});

/// Whether a program is there and newer than its sources, which cargo has listed beside it.
fn is_new(program: &Path) -> bool {
    let modified = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let (Some(built), Ok(list)) = (modified(program), fs::read_to_string(program.with_extension("d"))) else {
        return false;
    };
    // As in a makefile: "program: source source", with spaces in names escaped.
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources).replace("\\ ", "\0");
    let mut sources = sources.split_whitespace().map(|source| source.replace('\0', " "));
    sources.all(|source| modified(Path::new(&source)).is_some_and(|changed| changed <= built))
}

/// A run that has ended.
#[derive(Debug)]
struct Ran {
    code: i32,
    told: String,
    json: Value,
}

impl Ran {
    #[track_caller]
    fn number(&self, pointer: &str) -> u64 {
        let number = self.json.pointer(pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("no {pointer}: {self:?}"))
    }

    /// Everything that was written is there, and everything was looked at.
    #[track_caller]
    fn assert_kept(&self) {
        assert!(self.number("/verify/acked") > 0, "{self:?}");
        for what in ["lost", "violations", "not_audited", "histories_undecided"] {
            assert_eq!(self.number(&format!("/verify/{what}")), 0, "{what}: {self:?}");
        }
        assert!(self.number("/verify/history_operations") > 0, "{self:?}");
    }

    #[track_caller]
    fn assert_nobody_was_killed(&self, why: &str) {
        assert_eq!(self.code, 1, "{self:?}");
        assert!(self.json["kill"]["error"].as_str().is_some_and(|error| error.contains(why)), "{self:?}");
        assert!(self.told.contains("nobody was killed: "), "{self:?}");
        self.assert_kept();
    }
}

/// `kvbench run` on a cluster, with values that are checked. Requests have a long time, since the machine may be busy.
fn kvbench(cluster: &Cluster, target: &str, flags: &str) -> Ran {
    let json = cluster.dir.path().join("kvbench.json");
    let mut command = Command::new(&*KVBENCH);
    command.args(["run", "--target", target, "--verify", "--keys", "1000", "--view", "none", "--json"]).arg(&json);
    command.args(flags.split_whitespace());
    let (code, stdout, stderr) = run(&mut command);
    let text = fs::read(&json).unwrap_or_else(|e| panic!("{e}: {code} {stdout} {stderr}"));
    fs::remove_file(&json).expect("it is there");
    Ran { code, told: stdout + &stderr, json: serde_json::from_slice(&text).expect("JSON") }
}

/// `kvbench run` that kills a leader of the processes that a file names.
fn kill(cluster: &Cluster, target: &str, file: &Path, times: &str) -> Ran {
    let flags = format!("--op get=30,put=70 --connections 8 --threads 2 --cluster {} {times}", file.display());
    kvbench(cluster, target, &flags)
}

fn node(cluster: &Cluster, name: &str) -> String {
    cluster.process(name).address.expect("a node listens")
}

#[test]
fn every_way_in_keeps_what_is_promised() {
    let cluster = Cluster::start(&[&["--shards", "2", "--partitions", "8"][..], &STAYS].concat());
    let leader = node(&cluster, "shard1-leader");
    for (target, threads, leaders) in [
        (cluster.url.clone(), 1, 1),
        (format!("{}/v1", cluster.url), 2, 1),
        // Any node tells where the others are.
        (format!("kv://{}", node(&cluster, "shard0-follower")), 3, 2),
        (format!("kv+one://{leader}"), 2, 1),
    ] {
        let flags = format!(
            "--workload ycsb-a --duration 1s --deadline 10s --connections 12 --threads {threads} --seed {}",
            rand::random::<u32>()
        );
        let ran = kvbench(&cluster, &target, &flags);
        assert_eq!(ran.code, 0, "{target}: {ran:?}");
        ran.assert_kept();
        assert_eq!(ran.json["errors"], json!({}), "{ran:?}");
        assert_eq!((ran.number("/leaders"), ran.number("/parameters/threads")), (leaders, threads), "{ran:?}");
        for kind in ["get", "put"] {
            assert!(ran.number(&format!("/kinds/{kind}/ops")) > 0, "{ran:?}");
        }
        // Only what this node leads is asked for.
        let asked = ran.number("/verify/keys");
        assert_eq!(asked < 1000, target.starts_with("kv+one"), "{asked} of 1000 keys: {ran:?}");
    }
    until_whole(&cluster);
}

/// Has a leader of everything killed while it is loaded.
#[track_caller]
fn kill_and_be_replaced(cluster: &Cluster, target: &str, victim: &str) {
    let pid = cluster.process(victim).pid;
    let file = cluster.dir.path().join("cluster.json");
    // Nobody waits until another leads, so that there are failures.
    let ran = kill(cluster, target, &file, "--kill-leader-at 2s --duration 8s --deadline 500ms");
    assert_eq!(ran.code, 0, "failures are what was asked for: {ran:?}");
    ran.assert_kept();
    let (kill, partitions) = (&ran.json["kill"], cluster.topology().map.partition_count());
    assert_eq!((&kill["node"], &kill["pid"], &kill["error"]), (&json!(victim), &json!(pid), &Value::Null), "{ran:?}");
    assert_eq!(kill["led"], json!((0..partitions).collect::<Vec<_>>()), "{ran:?}");
    assert!(!runs(pid) && ran.told.contains(&format!("killed {victim} (pid {pid})")), "{ran:?}");
    let windows = kill["windows"].as_array().expect("a list");
    let of = |window: &Value| window["partition"].as_u64();
    assert!(windows.iter().map(of).eq((0..u64::from(partitions)).map(Some)), "each has one: {ran:?}");
    assert!(windows.iter().all(|window| window["is_open"] == false), "all were written again: {ran:?}");
    let longest = windows.iter().filter_map(|window| window["ms"].as_u64()).max().expect("there are partitions");
    assert!(longest > 0 && longest == ran.number("/kill/longest_ms"), "{ran:?}");
    println!("{target}: {longest} ms without {victim}, {}", ran.json["errors"]);

    let errors = ran.json["errors"].as_object().expect("counts by code");
    let codes = ["unreachable", "connection_lost", "deadline_exceeded", "not_leader", "not_ready"];
    assert!(codes.iter().any(|code| errors.contains_key(*code)), "{ran:?}");
    let count: u64 = errors.values().filter_map(Value::as_u64).sum();
    let outcomes = [ran.number("/outcomes/not_applied"), ran.number("/outcomes/unknown")];
    assert!(outcomes[1] > 0, "what was under way at the kill: {ran:?}");
    assert_eq!(count, outcomes[0] + outcomes[1], "{ran:?}");
}

/// Natively and by HTTP. Between the two whoever is left is spared, as there would be no cluster without it.
#[test]
fn a_leader_that_is_killed_costs_a_moment_and_no_write() {
    let cluster = Cluster::start(&[&PAIR[..], &STAYS].concat());
    let native = format!("kv://{}", node(&cluster, FOLLOWER));
    kill_and_be_replaced(&cluster, &native, LEADER);

    let file = cluster.dir.path().join("cluster.json");
    let ran = kill(&cluster, &native, &file, "--kill-leader-at 300ms --duration 1s");
    ran.assert_nobody_was_killed("shard0-follower leads 8 partitions, 8 of which no other node could take over");
    assert_eq!(leaders(&cluster), [FOLLOWER]);

    let _leader = start_node(&cluster, LEADER, &STAYS);
    until_whole(&cluster);
    kill_and_be_replaced(&cluster, &format!("{}/v1", cluster.url), FOLLOWER);
    assert_eq!(leaders(&cluster), [LEADER]);
}

/// The process ids of a file that is left over are those of others by now, or of nobody.
#[test]
fn an_old_file_kills_nobody() {
    let cluster = Cluster::start(&[&PAIR[..], &STAYS].concat());
    let leader = cluster.process(LEADER).pid;
    let mut ended = Spawned::start(&mut Command::new("true"));
    ended.wait();
    let stranger = Spawned::start(Command::new("sleep").arg("1000"));
    let file = cluster.dir.path().join("old.json");
    for (pid, why) in [
        (ended.pid(), format!("{LEADER} (pid {}) does not run any more", ended.pid())),
        (stranger.pid(), format!("pid {} is not {LEADER}; was the cluster started anew", stranger.pid())),
    ] {
        let text = fs::read_to_string(cluster.dir.path().join("cluster.json")).expect("the cluster runs");
        let old = text.replace(&format!("\"pid\": {leader},"), &format!("\"pid\": {pid},"));
        assert_ne!(old, text, "the leader has another process");
        fs::write(&file, old).expect("written");
        let target = format!("kv://{}", node(&cluster, FOLLOWER));
        kill(&cluster, &target, &file, "--kill-leader-at 300ms --duration 1s").assert_nobody_was_killed(&why);
        assert!(runs(stranger.pid()) && runs(leader), "{why}");
    }
}
