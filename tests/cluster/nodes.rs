//! The nodes of a cluster of one shard, killed and started again by hand, as a person does it.

use crate::common::{Cluster, Spawned, kv, run, signal, until_ok};
use hyper::{Method, StatusCode};
use kv_proto::stats::ReplicaStats;
use rustix::process::Signal;

pub(crate) const PAIR: [&str; 4] = ["--shards", "1", "--partitions", "8"];
pub(crate) const LEADER: &str = "shard0-leader";
pub(crate) const FOLLOWER: &str = "shard0-follower";

/// Who leads, each once, in their order.
pub(crate) fn leaders(cluster: &Cluster) -> Vec<String> {
    let map = cluster.topology().map;
    let mut leaders: Vec<_> =
        map.partitions().map(|(id, _)| map.configuration(id).expect("created").leader.node.to_string()).collect();
    leaders.sort_unstable();
    leaders.dedup();
    leaders
}

/// Waits until every partition is led by this node.
#[track_caller]
pub(crate) fn until_led_by(cluster: &Cluster, node: &str) {
    until_ok(&format!("{node} leads"), || {
        let leaders = leaders(cluster);
        if leaders == [node] { Ok(()) } else { Err(format!("{leaders:?} lead")) }
    });
}

/// Waits until a node leads or follows every partition of its shard.
#[track_caller]
pub(crate) fn until_in_sync(cluster: &Cluster, node: &str) {
    until_ok(&format!("{node} is in sync"), || {
        let map = cluster.topology().map;
        let is_member = |id| map.configuration(id).is_some_and(|c| c.members().any(|m| m.node.as_str() == node));
        let shard = map.nodes.iter().find(|n| n.id.as_str() == node).map(|n| n.shard);
        match map.partitions().filter(|(id, p)| Some(p.shard) == shard && !is_member(*id)).count() {
            0 => Ok(()),
            n => Err(format!("{n} partitions are without it: {:?}", replicas(cluster, node))),
        }
    });
}

#[track_caller]
pub(crate) fn until_put(cluster: &Cluster, key: &str, value: &str) {
    until_ok(&format!("{key} is written"), || {
        let answer = cluster.send(Method::PUT, &format!("/v1/kv/{key}"), &[], value.to_owned());
        if answer.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// Waits until every partition has its followers again.
#[track_caller]
pub(crate) fn until_whole(cluster: &Cluster) {
    until_ok("every partition has its in-sync follower", || {
        let answer = cluster.send(Method::GET, "/readyz", &[], "");
        match answer.status {
            StatusCode::OK if answer.json()["status"] == "ready" => Ok(()),
            _ => Err(run(&mut cluster.kv(&["status", "--partitions"])).1),
        }
    });
    until_ok("all replicas agree", || cluster.check_replicas());
}

/// The replicas of a node, as it says they are; none while it does not answer.
pub(crate) fn replicas(cluster: &Cluster, node: &str) -> Vec<ReplicaStats> {
    let reports = cluster.topology().nodes.into_iter().filter(|n| n.node == node);
    reports.filter_map(|n| n.stats).flat_map(|s| s.replicas).collect()
}

/// Kills a node, of a cluster without `--restart`, and waits until its end is reported.
#[track_caller]
pub(crate) fn kill(cluster: &Cluster, name: &str) {
    let pid = cluster.process(name).pid;
    signal(pid, Signal::KILL);
    let report = format!("{name} (process {pid}) was killed");
    cluster.supervisor.output.wait_for("its death is reported", |line| line.contains(&report).then_some(()));
}

/// Starts a node of shard 0 again that has ended, on its data, with these flags beside. It listens at another address: anybody
/// may have the port by now.
pub(crate) fn start_node(cluster: &Cluster, id: &str, flags: &[&str]) -> Spawned {
    let controller = cluster.supervisor.output.wait_for("the router says where its controller listens", |line| {
        Some(line.split_once(" controller=")?.1.trim().to_owned())
    });
    let mut node = kv();
    node.args(["node", "--id", id, "--shard", "0", "--listen", "127.0.0.1:0", "--controller", &controller]);
    node.args(["--role", if id == LEADER { "leader" } else { "follower" }]);
    node.arg("--data-dir").arg(cluster.dir.path().join("nodes").join(id)).args(flags);
    Spawned::start(&mut node)
}
