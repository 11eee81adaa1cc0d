//! A node that cannot use its data folder says why and how to cure it, ends, and changes nothing in it.

use crate::{
    common::{Cluster, kv, local, run},
    mounts::Disk,
};
use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

const FLAGS: [&str; 4] = ["--max-value-bytes", "65536", "--segment-bytes", "1152KiB"];

/// `kv node`, which would find no controller.
fn node(dir: &Path, id: &str) -> Command {
    let mut command = kv();
    command.args(["node", "--id", id, "--listen", "127.0.0.1:0", "--controller", "127.0.0.1:1", "--data-dir"]);
    command.arg(dir).args(FLAGS);
    command
}

/// All files in a folder with what is in them, and all folders.
fn content(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(content(&path));
        }
        all.insert(path.clone(), fs::read(&path).ok());
    }
    all
}

#[track_caller]
fn refused((code, stdout, stderr): (i32, String, String), words: &[&str]) {
    assert_eq!(code, 1, "{words:?}: {stdout}{stderr}");
    assert!(!stdout.contains("listening"), "{words:?}: {stdout}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.contains("error: ")).collect();
    assert!(errors.len() == 1 && words.iter().all(|w| errors[0].contains(w)), "{words:?}: {stderr}");
}

/// The folder of a node that has kept something, of a cluster that has stopped.
fn used_folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let environment =
        [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];
    let cluster = Cluster::start_as(dir, &["--shards", "1", "--replicas", "1"], &environment);
    for i in 0..200 {
        let path = format!("/v1/kv/{i}");
        assert_eq!(cluster.send(hyper::Method::PUT, &path, &[], vec![b'v'; 60_000]).status, 204);
    }
    let dir = cluster.stop();
    let node = dir.path().join("nodes/shard0-leader");
    (dir, node)
}

/// The files in a folder of a node's folder, in order.
fn files(node: &Path, folder: &str, suffix: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(node.join(folder)).expect("there").flatten().map(|e| e.path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.to_str().is_some_and(|p| p.ends_with(suffix))).collect();
    all.sort();
    assert!(!all.is_empty(), "{folder}");
    all
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("a text");
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).expect("writable");
}

#[test]
fn what_is_in_the_folder_cannot_be_used() {
    let (_dir, used) = used_folder();
    type Change = fn(&Path);
    let cases: &[(&str, Change, &[&str])] = &[
        ("b", |_| {}, &["belongs to node shard0-leader, and this is node b", "--id shard0-leader"]),
        (
            "shard0-leader",
            |dir| replace(&dir.join("node.json"), "\"format\":1", "\"format\":2"),
            &["node.json has format 2", "a newer kv"],
        ),
        (
            "shard0-leader",
            |dir| fs::write(dir.join("node.json"), "{\"format\":1,").expect("writable"),
            &["node.json is damaged", "put back a copy"],
        ),
        (
            "shard0-leader",
            |dir| fs::remove_file(dir.join("node.json")).expect("there"),
            &["node.json is missing, though there is a log", "put back a copy"],
        ),
        (
            "shard0-leader",
            |dir| {
                let log = files(dir, "log", ".log").pop().expect("a segment");
                // What a later version would write there: see docs/wal.md.
                let mut head = [&b"kv-wal\r\n"[..], &2u32.to_le_bytes()].concat();
                head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
                File::options().write(true).open(log).and_then(|f| f.write_all_at(&head, 0)).expect("writable");
            },
            &[".log: log format 2", "a newer kv"],
        ),
        (
            "shard0-leader",
            |dir| fs::remove_dir_all(dir.join("log")).expect("there"),
            &["/log is missing: put back a copy"],
        ),
        (
            "shard0-leader",
            |dir| fs::remove_dir_all(dir.join("checkpoints")).expect("there"),
            &["/checkpoints is missing: put back a copy"],
        ),
        (
            "shard0-leader",
            |dir| files(dir, "log", ".log").iter().for_each(|log| fs::remove_file(log).expect("there")),
            &["the log in", "is not whole", "Put the files back"],
        ),
    ];
    for (id, change, words) in cases {
        let copy = tempfile::tempdir().expect("a directory");
        let dir = copy.path().join("node");
        assert_eq!(run(Command::new("cp").arg("-a").arg(&used).arg(&dir)).0, 0);
        change(&dir);
        let before = content(&dir);
        refused(run(&mut node(&dir, id)), words);
        assert!(content(&dir) == before, "{words:?}: something was changed");
    }
}

#[test]
fn a_folder_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let lock = File::create(dir.path().join("lock")).expect("writable");
    flock(&lock, FlockOperation::LockExclusive).expect("locked");
    refused(run(&mut node(dir.path(), "a")), &["is in use by another process", "another --data-dir"]);
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing was made");
}

#[test]
fn a_folder_that_cannot_be_made_or_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("writable");
    refused(
        run(&mut node(&file.join("data"), "a")),
        &["cannot make the folder", "choose a folder that can be written"],
    );

    let Some(disk) = Disk::tmpfs(4) else { return };
    fs::create_dir(disk.path().join("empty")).expect("writable");
    disk.make_read_only();
    for folder in ["missing", "empty"] {
        refused(
            run(&mut node(&disk.path().join(folder), "a")),
            &["Read-only file system", "mount the file system for writing"],
        );
    }
    let cluster = tempfile::tempdir().expect("a directory");
    disk.be(&cluster.path().join("nodes"));
    let (code, stdout, stderr) = run(local(cluster.path()).args(["--shards", "1", "--restart"]));
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("mount the file system for writing"), "the sentence of the process: {stderr}");
}

/// A folder of root's, and a node that runs as somebody else.
#[test]
fn a_folder_of_another_user() {
    if !geteuid().is_root() {
        return println!("skipped: this needs root");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("kv");
    fs::copy(env!("CARGO_BIN_EXE_kv"), &program).expect("copied");
    for (path, mode) in [(dir.path(), "755"), (&program, "755")] {
        assert_eq!(run(Command::new("chmod").arg(mode).arg(path)).0, 0);
    }
    let own = dir.path().join("own");
    fs::create_dir(&own).expect("writable");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    command.args(["node", "--id", "a", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&own).args(FLAGS);
    refused(run(&mut command), &["Permission denied", "chown -R"]);
    assert_eq!(fs::read_dir(&own).expect("there").count(), 0);
}

/// The start that failed is no start: the next one, with room, finds nothing missing.
#[test]
fn no_room_at_the_very_start() {
    let Some(disk) = Disk::tmpfs(1) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    disk.be(&dir.path().join("nodes"));
    let start = || {
        let mut command = local(dir.path());
        command.args(["--shards", "1", "--replicas", "1"]);
        command.envs([
            ("KV_MAX_VALUE_BYTES", "65536"),
            ("KV_SEGMENT_BYTES", "1152KiB"),
            ("KV_MAX_LOG_BYTES", "3456KiB"),
        ]);
        command
    };
    for _ in 0..3 {
        let (code, stdout, stderr) = run(&mut start());
        assert_eq!(code, 1, "{stdout}{stderr}");
        assert!(stderr.contains("no room on the disk; make room on the disk, or choose another folder"), "{stderr}");
        assert!(stderr.contains("the cluster cannot start: shard0-leader"), "{stderr}");
    }
    disk.resize(16);
    let mut supervisor = crate::common::Spawned::start(&mut start());
    supervisor.output.wait_for("it is ready", |l| l.starts_with("ready ").then_some(()));
    crate::common::signal(supervisor.pid(), rustix::process::Signal::INT);
    assert_eq!(supervisor.wait().code(), Some(0));
}

#[test]
fn another_size_of_segments() {
    let (dir, _) = used_folder();
    let environment = [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "4MiB")];
    let cluster = Cluster::start_as(dir, &["--shards", "1", "--replicas", "1"], &environment);
    for i in 0..200 {
        assert_eq!(cluster.send(hyper::Method::GET, &format!("/v1/kv/{i}"), &[], "").body.len(), 60_000);
    }
}
