//! What `kv local` writes about itself: `cluster.json`, for people and programs that want to know which processes
//! there are, and `local.json`, which remembers the shape of the cluster that the data belong to.

use super::{Options, SUPERVISOR, plan::Role};
use anyhow::bail;
use kv_proto::cluster_map::AckMode;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::Path};

/// The content of `cluster.json`.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    /// The URL of the HTTP API.
    pub(super) http: String,
    pub(super) processes: Vec<Entry>,
}

/// One process in `cluster.json`; roles as at the start.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) pid: u32,
    /// The supervisor listens nowhere.
    pub(super) address: Option<SocketAddr>,
    /// Where a router's controller listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) controller: Option<SocketAddr>,
}

impl Manifest {
    /// The file's text for these children and this supervisor.
    pub(super) fn new(http: String, mut children: Vec<Entry>, supervisor_pid: u32) -> Self {
        let name = SUPERVISOR.to_owned();
        children.push(Entry { name, role: Role::Supervisor, pid: supervisor_pid, address: None, controller: None });
        Manifest { http, processes: children }
    }

    pub(super) fn text(&self) -> String {
        json(self)
    }
}

/// The content of `local.json`: what cannot change while the data stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    #[serde(default = "one")]
    routers: u16,
    shards: u16,
    replicas: u16,
    partitions: u16,
    #[serde(default)]
    ack: AckMode,
}

/// What there was before there could be several.
fn one() -> u16 {
    1
}

impl Shape {
    pub(super) fn of(options: &Options) -> Self {
        let Options { routers, shards, replicas, partitions, ack, .. } = *options;
        Shape { routers, shards, replicas, partitions, ack }
    }

    pub(super) fn text(&self) -> String {
        json(self)
    }

    /// Refuses a shape that differs from the one that the data in `dir` have; only routers may become more.
    pub(super) fn check(&self, old: &Shape, dir: &Path) -> anyhow::Result<()> {
        if self.routers < old.routers {
            bail!(
                "{} holds a cluster with {} controllers, of which one cannot go on alone: give --routers {}",
                dir.display(),
                old.routers,
                old.routers
            );
        }
        let pairs = [
            ("--shards", old.shards.to_string(), self.shards.to_string()),
            ("--replicas", old.replicas.to_string(), self.replicas.to_string()),
            ("--partitions", old.partitions.to_string(), self.partitions.to_string()),
            ("--ack", old.ack.to_string(), self.ack.to_string()),
        ];
        let mut differing = pairs.iter().filter(|(_, old, new)| old != new).peekable();
        if differing.peek().is_none() {
            return Ok(());
        }
        let (had, asked): (Vec<_>, Vec<_>) =
            differing.map(|(flag, old, new)| (format!("{flag} {old}"), format!("{flag} {new}"))).unzip();
        bail!(
            "{} holds a cluster made with {}, not with {}: give the old value again, or another --data-dir",
            dir.display(),
            had.join(" "),
            asked.join(" ")
        )
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data have a JSON text") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_manifest_names_every_process_and_the_supervisor() {
        let entry = |name: &str, role, pid, address: &str| Entry {
            name: name.to_owned(),
            role,
            pid,
            address: Some(address.parse().expect("an address")),
            controller: (role == Role::Router).then(|| "127.0.0.1:5100".parse().expect("an address")),
        };
        let children = vec![
            entry("router", Role::Router, 10, "127.0.0.1:5000"),
            entry("shard0-leader", Role::Leader, 11, "127.0.0.1:5001"),
            entry("shard0-follower", Role::Follower, 12, "127.0.0.1:6001"),
        ];
        let text = Manifest::new("http://127.0.0.1:5000".to_owned(), children, 9).text();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON"),
            json!({"http": "http://127.0.0.1:5000", "processes": [
                {"name": "router", "role": "router", "pid": 10, "address": "127.0.0.1:5000",
                 "controller": "127.0.0.1:5100"},
                {"name": "shard0-leader", "role": "leader", "pid": 11, "address": "127.0.0.1:5001"},
                {"name": "shard0-follower", "role": "follower", "pid": 12, "address": "127.0.0.1:6001"},
                {"name": "supervisor", "role": "supervisor", "pid": 9, "address": null},
            ]})
        );
    }

    #[test]
    fn other_shapes_on_old_data_are_refused_with_what_differs() {
        let old = Shape { routers: 1, shards: 3, replicas: 2, partitions: 64, ack: AckMode::Durable };
        let check = |new: &Shape| new.check(&old, Path::new("dir")).map_err(|e| e.to_string());
        assert_eq!(check(&old), Ok(()));
        let refused = "dir holds a cluster made with --shards 3, not with --shards 4: give the old value again, or \
                       another --data-dir";
        assert_eq!(check(&Shape { shards: 4, ..old.clone() }), Err(refused.to_owned()));
        assert_eq!(check(&Shape { routers: 3, ..old.clone() }), Ok(()));
        let three = Shape { routers: 3, ..old.clone() };
        let refused = old.check(&three, Path::new("dir")).expect_err("fewer").to_string();
        assert_eq!(
            refused,
            "dir holds a cluster with 3 controllers, of which one cannot go on alone: give --routers 3"
        );
        let refused = check(&Shape { replicas: 1, partitions: 8, ..old.clone() }).expect_err("differs");
        assert!(refused.contains("--replicas 2 --partitions 64, not with --replicas 1 --partitions 8"), "{refused}");
        let refused = check(&Shape { ack: AckMode::Replicated, ..old.clone() }).expect_err("differs");
        assert!(refused.contains("made with --ack durable, not with --ack replicated"), "{refused}");
    }

    #[test]
    fn a_shape_that_an_earlier_version_remembered_waits_for_the_disks() {
        let old: Shape = serde_json::from_str(r#"{"shards": 3, "replicas": 2, "partitions": 64}"#).expect("read");
        assert_eq!(old, Shape { routers: 1, shards: 3, replicas: 2, partitions: 64, ack: AckMode::Durable });
    }
}
