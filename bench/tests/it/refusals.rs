//! What cannot run: a sentence that says why and what would help, and exit code 2.

use crate::{
    servers::{Cluster, Mood, Redis, http},
    tool::{Echo, Ran, run},
};
use std::{net::TcpListener, process::Command};

fn is_refused(ran: &Ran, flags: &str, said: &str) {
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{flags}: {ran}");
    assert!(ran.stderr.contains(said), "{flags} should say {said:?}: {ran}");
    assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("RUST_BACKTRACE"), "{flags}: {ran}");
}

/// No server is asked.
#[test]
fn flags_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = folder.path().file_name().expect("it has a name");
    let same = folder.path().join("a").display().to_string();
    let dotted = folder.path().join("..").join(name).join("a").display().to_string();
    for (flags, said) in [
        ("walk", "unrecognized subcommand"),
        ("run --target kv://", "neither the name of a host nor an IP address"),
        ("run --target 127.0.0.1", "names no port"),
        ("run --target kv://host:99999", "ports are numbers from 1 to 65535"),
        ("run --target kv://a/b", "leave it out"),
        ("run --target https://127.0.0.1:1", "needs TLS"),
        ("run --target ftp://127.0.0.1:1", "there is no target ftp://, but kv://"),
        ("run --op push", "\"push\" is no kind of operation; there are get, put"),
        ("run --op get=0", "no kind has a weight above 0"),
        ("run --op incr", "kv offers no incr, but redis:// and memcached:// do"),
        ("run --target redis://127.0.0.1:1 --op cas", "redis offers no cas"),
        ("run --op get --workload ycsb-a", "cannot be used with"),
        ("run --workload ycsb-x", "invalid value"),
        ("run --rate 0", "impossible"),
        ("run --rate 1000M", "impossible"),
        ("run --rate fast", "is no rate"),
        ("run --rate 10 --think 1s", "cannot be used with"),
        ("run --think 2s-1s", "ends before it begins"),
        ("run --duration 0s", "measures nothing"),
        ("run --duration soon", "invalid value"),
        ("run --duration 18446744073709551615s", "longer than 30 days"),
        ("run --warmup 500000000000y", "longer than 30 days"),
        ("run --think 1s-18446744073709551615s", "longer than 30 days"),
        ("run --deadline 18446744073709551615s", "longer than 30 days"),
        ("run --deadline 0s", "--deadline"),
        ("run --keys 0", "--keys"),
        ("run --value-size 0-x", "--value-size"),
        ("run --value-size @/no/such/file", "/no/such/file"),
        ("run --connections 1 --threads 2", "at least one connection a thread"),
        ("run --connections 3 --threads 2 --workers 2", "at least one connection a thread"),
        ("run --connections 10000 --pipeline 4096 --value-size 1000", "in flight"),
        ("run --verify --no-load", "leave --no-load out"),
        ("run --verify --value-size 8", "--value-size 32 or more"),
        ("run --verify --workers 2", "--verify needs all answers in one process"),
        ("run --verify --target redis://127.0.0.1:1 --op incr", "--verify does not judge counters"),
        ("run --verify --keys 100000000", "use --keys 10000000 or less"),
        ("run --verify-keys 10", "--verify"),
        ("run --op put --kill-leader-at 11s", "--kill-leader-at 11s is not within the --duration of 10s"),
        ("run --op put --kill-leader-at 1s --workers 2", "--kill-leader-at needs all answers in one process"),
        ("run --op get --kill-leader-at 1s", "add writes"),
        ("run --op put --kill-leader-at 1s --cluster /no/such/cluster.json", "/no/such/cluster.json does not say"),
        ("run --cluster cluster.json", "--kill-leader-at"),
        ("run --json /no/such/folder/out.json", "/no/such/folder/out.json"),
        ("run --csv /no/such/folder/out.csv", "/no/such/folder/out.csv"),
        ("run --hdr-log /no/such/folder/out.hlog", "/no/such/folder/out.hlog"),
        (&format!("run --json {same} --csv {same}"), "two results cannot both be written to"),
        (&format!("run --json {same} --csv {dotted}"), "two results cannot both be written to"),
        ("run --json - --csv /dev/stdout", "two results cannot both be written to"),
        ("versus --target kv://127.0.0.1:1", "one --target has nothing to be compared with"),
        ("versus --target redis://127.0.0.1:1 --target kv://127.0.0.1:2 --op incr", "kv://127.0.0.1:2"),
        ("echo --delay 2days", "longer than a day"),
        ("echo --stall-at 1s", "--stall-for"),
    ] {
        is_refused(&run(flags), flags, said);
    }
}

#[test]
fn servers_that_cannot_be_loaded_are_refused() {
    let (well, lost) = (Cluster::well(), Cluster::in_mood(Mood::Lost));
    let (kv, echo, http) = (well.url(), Echo::start(""), http());
    let redis = Redis::start(None).url();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let kv_as = |scheme: &str| format!("run --target {scheme}://{}", well.address(0));
    for (flags, said) in [
        (format!("run --target {free}"), "cannot be reached"),
        (format!("run --target redis://{free}"), "check that the target runs"),
        (format!("run --target http://{free}"), "check that the target runs"),
        (format!("run --target {free} --workers 2 --connections 8"), "cannot be reached"),
        (format!("run --target {}", lost.url()), "controller"),
        (format!("run --target {kv} --connections 3"), "--connections 4 or more"),
        (format!("run --target {kv} --connections 7 --threads 2"), "--connections 8 or more"),
        (format!("run --target {kv} --connections 7 --workers 2"), "--connections 8 or more"),
        (format!("run --target {kv} --value-size 4097"), "more than"),
        (format!("run --target kv://{http}"), http.as_str()),
        (format!("run --target redis://{http}"), "is this Redis?"),
        (format!("run --target {}", redis.replace("redis", "kv")), "127.0.0.1"),
        (kv_as("redis"), "127.0.0.1"),
        (kv_as("memcached"), "127.0.0.1"),
        (format!("run --target redis://{}", echo.address()), "127.0.0.1"),
    ] {
        is_refused(&run(&flags), &flags, said);
    }
}

/// A result that has no place is told of before anything is sent.
#[test]
fn places_of_results_are_looked_at_before_the_run() {
    let cluster = Cluster::well();
    let ran = run(&format!("run --target {} --json /no/such/folder/out.json", cluster.url()));
    is_refused(&ran, "--json", "/no/such/folder/out.json");
    assert_eq!(cluster.seen(), []);
}

/// A file about a cluster that does not run any more kills nobody.
#[test]
fn a_cluster_of_the_dead_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cluster.json");
    let (well, free) = (Cluster::well(), TcpListener::bind("127.0.0.1:0").expect("a port"));
    let free = free.local_addr().expect("bound");
    let mut dead = Command::new("true").spawn().expect("a process");
    let pid = dead.id();
    dead.wait().expect("it ends");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    let flags = format!(
        "run --target {} --op put --keys 100 --duration 1s --kill-leader-at 300ms --cluster {}",
        well.url(),
        file.display()
    );
    for (text, said) in [
        ("{".to_owned(), "does not say which processes there are"),
        ("{}".to_owned(), "does not say which processes there are"),
        (r#"{"processes":[]}"#.to_owned(), "none of the nodes"),
        (
            format!(r#"{{"processes":[{{"name":"a","role":"leader","pid":{pid},"address":"{free}"}}]}}"#),
            "is that cluster running?",
        ),
    ] {
        write(&text);
        is_refused(&run(&flags), &text, said);
    }
    // The nodes answer, and the processes in the file are others or none: this is seen when the blow falls.
    for (pid, said) in [(pid, format!("pid {pid}")), (std::process::id(), "was the cluster started anew".to_owned())] {
        let [a, b] = [0, 1].map(|node| well.address(node).to_owned());
        write(&format!(
            r#"{{"processes":[{{"name":"a","role":"leader","pid":{pid},"address":"{a}"}},{{"name":"b","role":"follower","pid":{pid},"address":"{b}"}}]}}"#
        ));
        let ran = run(&flags);
        assert_eq!(ran.code, Some(1), "{ran}");
        assert!(ran.stdout.contains("nobody was killed") && ran.stdout.contains(&said), "{said}: {ran}");
    }
}
