//! The router's data are lost: nothing is begun beside the nodes' data, and the map is made anew from them.

use crate::common::{Cluster, kv, run, signal, until};
use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use std::{fs, process::Command};

const SHAPE: &[&str] = &["--shards", "2", "--replicas", "2", "--partitions", "8"];

fn rebuild(cluster: &Cluster, skip: &str) -> Command {
    let mut command = kv();
    command.args(["rebuild-map", "--data-dir"]).arg(cluster.dir.path().join("router"));
    for process in cluster.manifest().processes {
        if ["leader", "follower"].contains(&process.role.as_str()) && process.name != skip {
            command.args(["--node", &process.address.expect("a node listens")]);
        }
    }
    command
}

#[test]
fn the_map_is_made_anew_from_what_the_nodes_have() {
    let cluster = Cluster::start(SHAPE);
    let keys = [cluster.key_on(0, "key"), cluster.key_on(1, "key")];
    for key in &keys {
        assert_eq!(cluster.put(key, &json!("kept")).status, 200);
    }
    let lost = cluster.topology().map;
    let (code, _, stderr) = run(&mut rebuild(&cluster, ""));
    assert!(code == 2 || code == 1, "{code}");
    assert!(stderr.contains("is connected to a controller"), "{stderr}");

    signal(cluster.process("router").pid, Signal::KILL);
    cluster.supervisor.output.wait_for("its death is told", |l| l.contains("router (process").then_some(()));
    fs::remove_dir_all(cluster.dir.path().join("router")).expect("lost");
    let (_, _, stderr) = run(&mut rebuild(&cluster, "shard1-follower"));
    assert!(stderr.contains("node shard1-follower of shard 1 has not reported"), "{stderr}");
    // A node may take a moment to see that its connection has ended.
    let stdout = until("the map is made", || {
        let (code, stdout, _) = run(&mut rebuild(&cluster, ""));
        (code == 0).then_some(stdout)
    });
    assert!(stdout.contains(&format!("the map of cluster {} with its 8 partitions", lost.cluster)), "{stdout}");

    let again = Cluster::start_in(cluster.stop(), SHAPE);
    let map = again.topology().map;
    assert_eq!((map.cluster, map.replicas, &map.shards), (lost.cluster, lost.replicas, &lost.shards));
    for (was, is) in lost.partitions.iter().zip(&map.partitions) {
        let (was, is) = (was.configuration.as_ref().expect("was"), is.configuration.as_ref().expect("is"));
        assert!(is.epoch > was.epoch && is.history == was.history && is.leader == was.leader, "{was:?} {is:?}");
    }
    for key in &keys {
        assert_eq!(again.get(key).json()["value"], json!("kept"));
        assert_eq!(again.put(key, &json!("new")).status, 200);
    }
}

/// As it goes when nobody has noticed: everything is started again, the router makes a new cluster, and the nodes, which
/// do not remember the map, are refused.
#[test]
fn a_router_without_its_data_begins_nothing_and_can_still_be_given_the_map() {
    let cluster = Cluster::start(SHAPE);
    assert_eq!(cluster.put("key", &json!("kept")).status, 200);
    let dir = cluster.stop();
    fs::remove_dir_all(dir.path().join("router")).expect("lost");
    // It waits for a while for a cluster that is ready, and then leaves it as it is.
    let cluster = Cluster::start_in(dir, SHAPE);
    cluster.supervisor.output.wait_for("the nodes tell why", |l| l.contains("kv rebuild-map").then_some(()));
    let unready = cluster.send(Method::GET, "/readyz", &[], "");
    assert!(unready.json()["detail"].as_str().is_some_and(|d| d.contains("holds data of cluster")), "{unready:?}");

    signal(cluster.process("router").pid, Signal::KILL);
    cluster.supervisor.output.wait_for("its death is told", |l| l.contains("router (process").then_some(()));
    let (_, _, stderr) = run(&mut rebuild(&cluster, ""));
    assert!(stderr.contains("no node remembers the map: say by --shards"), "{stderr}");
    let (code, stdout, stderr) = run(rebuild(&cluster, "").args(SHAPE).args(["--ack", "durable"]));
    assert!(code == 0 && stdout.contains("is kept as") && stdout.contains("with its 8 partitions"), "{stdout}{stderr}");
    let again = Cluster::start_in(cluster.stop(), SHAPE);
    assert_eq!(again.get("key").json()["value"], json!("kept"));
}
