//! Several routers, whose controllers keep the cluster map together.

use crate::common::{Cluster, Http, kv, run, runs, signal, until};
use hyper::{Method, StatusCode, body::Bytes};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

const THREE: &[&str] = &["--routers", "3", "--shards", "1", "--partitions", "4", "--restart"];

/// The routers' names and the HTTP APIs at which they answer now.
fn routers(cluster: &Cluster) -> Vec<(String, Http)> {
    let processes = cluster.manifest().processes.into_iter().filter(|p| p.role == "router");
    processes.map(|p| (p.name, Http::new(&format!("http://{}", p.address.expect("it listens"))))).collect()
}

fn controllers(http: &Http) -> Option<Value> {
    let answer = http.try_send(Method::GET, "/v1/controllers", &[], Bytes::new()).ok()?;
    (answer.status == StatusCode::OK).then(|| answer.json())
}

/// The name of the router whose controller leads.
fn leader(cluster: &Cluster) -> String {
    until("one of three leads", || {
        let leads = |(name, http): (String, Http)| {
            let standing = controllers(&http)?;
            (standing["id"] == standing["leader"] && standing["voters"].as_array()?.len() == 3).then_some(name)
        };
        routers(cluster).into_iter().find_map(leads)
    })
}

fn put(http: &Http, key: &str) -> Option<()> {
    let answer = http.try_send(Method::PUT, &format!("/v1/kv/{key}"), &[], Bytes::from("v")).ok()?;
    (answer.status == StatusCode::NO_CONTENT).then_some(())
}

/// A leader of a partition that was restarted serves only once a change was agreed on.
#[test]
fn changes_are_agreed_on_while_the_leading_controller_is_frozen_and_when_it_is_killed() {
    let cluster = Cluster::start(THREE);
    for (how, key) in [(Signal::STOP, "a"), (Signal::KILL, "b")] {
        let frozen = leader(&cluster);
        let pid = cluster.process(&frozen).pid;
        signal(pid, how);
        signal(cluster.process("shard0-leader").pid, Signal::KILL);
        for (name, http) in routers(&cluster).into_iter().filter(|(name, _)| *name != frozen) {
            until(&format!("{name} takes writes"), || put(&http, key));
        }
        if how == Signal::STOP {
            signal(pid, Signal::CONT);
        } else {
            until("it is started again", || (cluster.process(&frozen).pid != pid && !runs(pid)).then_some(()));
        }
        for (name, http) in routers(&cluster) {
            until(&format!("{name} takes writes"), || put(&http, key));
        }
    }
}

#[test]
fn one_router_becomes_three_of_which_one_may_lose_its_folder() {
    let one = Cluster::start(&["--shards", "1", "--partitions", "4"]);
    assert_eq!(one.put("key", &json!("kept")).status, 200);
    let three = Cluster::start_in(one.stop(), THREE);
    assert_eq!(three.get("key").json()["value"], json!("kept"));
    leader(&three);
    let dir = three.stop();

    let mut fewer = kv();
    fewer.args(["local", "--ports", "auto", "--shards", "1", "--partitions", "4", "--data-dir"]).arg(dir.path());
    let (code, _, stderr) = run(&mut fewer);
    assert!(code == 1 && stderr.contains("a cluster with 3 controllers"), "{code} {stderr}");

    fs::remove_dir_all(dir.path().join("router2")).expect("lost");
    let three = Cluster::start_in(dir, THREE);
    assert_eq!(three.get("key").json()["value"], json!("kept"));
    let (_, second) = routers(&three).swap_remove(1);
    until("the one that lost its folder has a vote again", || {
        let standing = controllers(&second)?;
        let own = standing["voters"].as_array()?.iter().any(|v| v["id"] == standing["id"]);
        own.then_some(())
    });
}
