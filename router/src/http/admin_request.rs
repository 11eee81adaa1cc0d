//! The bodies of `/v1/admin/…`, and what they come to in a cluster: pure.

use super::{error::ApiError, survey::Answers};
use hyper::StatusCode;
use kv_proto::{
    cluster_map::{ClusterMap, Configuration},
    ids::{Epoch, Member, NodeId, PartitionId},
    request::AdminCommand,
    stats::Role,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeSet;

/// `POST /v1/admin/handoff`: one of the first three says which partitions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Handoff {
    partitions: Option<Vec<PartitionId>>,
    /// Those that this node leads.
    led_by: Option<NodeId>,
    /// All that the node in `to` can take over; without it, all.
    #[serde(default)]
    all: bool,
    to: Option<NodeId>,
}

/// `POST /v1/admin/drop`: `partitions` or `all` says which.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drop {
    partitions: Option<Vec<PartitionId>>,
    /// All that the node follows in sync.
    #[serde(default)]
    all: bool,
    /// Who is dropped.
    node: NodeId,
}

/// `POST /v1/admin/force-recover`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForceRecover {
    /// Who leads from then on.
    pub(super) leader: NodeId,
    pub(super) partitions: Vec<Forced>,
    /// What a person made sure of.
    #[serde(default)]
    pub(super) old_leader_is_stopped: bool,
}

/// A partition as the person saw it who wants to recover it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forced {
    pub(super) partition: PartitionId,
    pub(super) epoch: Epoch,
}

/// Reads a body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { "body_wrong_shape" } else { "body_not_json" };
        bad_request(code, format!("the body is not what this address takes: {error}"))
    })
}

fn bad_request(code: &'static str, detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, detail)
}

fn conflict(code: &'static str, detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, detail)
}

impl Handoff {
    /// The commands that it stands for.
    pub(super) fn commands(&self, map: &ClusterMap) -> Result<Vec<AdminCommand>, ApiError> {
        let to = self.to;
        to.map_or(Ok(()), |node| known(map, node))?;
        let chosen = match (&self.partitions, self.led_by, self.all) {
            (Some(partitions), None, false) => checked(map, partitions)?,
            (None, Some(node), false) => {
                known(map, node)?;
                let led = those(map, |c| c.leader.node == node);
                some(led, || format!("{node} leads no partition"))?
            }
            (None, None, true) => {
                let with = |c: &Configuration| match to {
                    Some(to) => c.in_sync.iter().any(|m| m.node == to),
                    None => true,
                };
                some(those(map, with), || match to {
                    Some(to) => format!("{to} is an in-sync follower of no partition, so that it can take over none"),
                    None => "no partition has a leader yet".to_string(),
                })?
            }
            _ => {
                let detail = r#"the body names either "partitions": [3, 5], or "led_by": "NODE", or "all": true"#;
                return Err(bad_request("body_wrong_shape", detail));
            }
        };
        Ok(chosen.into_iter().map(|partition| AdminCommand::Handoff { partition, to }).collect())
    }
}

impl Drop {
    /// The commands that it stands for.
    pub(super) fn commands(&self, map: &ClusterMap) -> Result<Vec<AdminCommand>, ApiError> {
        let node = self.node;
        known(map, node)?;
        let chosen = match (&self.partitions, self.all) {
            (Some(partitions), false) => checked(map, partitions)?,
            (None, true) => {
                let followed = those(map, |c| c.in_sync.iter().any(|m| m.node == node));
                some(followed, || format!("{node} is an in-sync follower of no partition"))?
            }
            _ => {
                let detail = r#"the body names either "partitions": [3, 5], or "all": true"#;
                return Err(bad_request("body_wrong_shape", detail));
            }
        };
        Ok(chosen.into_iter().map(|partition| AdminCommand::Drop { partition, node }).collect())
    }
}

fn those(map: &ClusterMap, with: impl Fn(&Configuration) -> bool) -> Vec<PartitionId> {
    map.partitions().filter(|(_, p)| p.configuration.as_ref().is_some_and(&with)).map(|(id, _)| id).collect()
}

fn some(partitions: Vec<PartitionId>, why: impl Fn() -> String) -> Result<Vec<PartitionId>, ApiError> {
    if partitions.is_empty() { Err(conflict("nothing_to_do", why())) } else { Ok(partitions) }
}

fn known(map: &ClusterMap, node: NodeId) -> Result<(), ApiError> {
    if map.node(node).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = map.nodes.iter().map(|n| n.id.as_str()).collect();
    let detail = format!("the cluster has no node {node}; it has {}", names.join(", "));
    Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_node", detail))
}

/// Each partition once; all of them must exist.
fn checked(map: &ClusterMap, partitions: &[PartitionId]) -> Result<Vec<PartitionId>, ApiError> {
    if partitions.is_empty() {
        return Err(bad_request("body_wrong_shape", "\"partitions\" names none"));
    }
    if let Some(unknown) = partitions.iter().find(|p| p.0 >= map.partition_count()) {
        let detail = format!("the cluster has no partition {unknown}, only 0 to {}", map.partition_count() - 1);
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_partition", detail));
    }
    Ok(partitions.iter().copied().collect::<BTreeSet<_>>().into_iter().collect())
}

impl ForceRecover {
    /// Who leads from then on, if it can be told and answers.
    pub(super) fn new_leader(&self, map: &ClusterMap, answers: &Answers) -> Result<Member, ApiError> {
        if !self.old_leader_is_stopped {
            let detail = "a forced recovery loses what the new leader lacks, and two leaders could serve if the old one still \
                          runs: make sure that it is stopped, then send \"old_leader_is_stopped\": true";
            return Err(bad_request("not_confirmed", detail));
        }
        known(map, self.leader)?;
        let partitions: Vec<PartitionId> = self.partitions.iter().map(|f| f.partition).collect();
        if checked(map, &partitions)?.len() < partitions.len() {
            return Err(bad_request("body_wrong_shape", "\"partitions\" names one twice"));
        }
        match answers.get(&self.leader) {
            Some(Ok(stats)) => Ok(Member { node: self.leader, disk: stats.disk }),
            answer => {
                let why = answer.and_then(|a| a.as_ref().err()).map_or("it was not asked", String::as_str);
                let detail = format!("{} cannot lead, since it does not answer ({why}): start it first", self.leader);
                Err(conflict("leader_unreachable", detail))
            }
        }
    }
}

/// Why a partition is not to be recovered by force; `None` if nothing speaks against it.
pub(super) fn why_not_forced(
    partition: PartitionId,
    new_leader: NodeId,
    map: &ClusterMap,
    answers: &Answers,
) -> Option<String> {
    let replica = |node: NodeId| {
        let stats = answers.get(&node)?.as_ref().ok()?;
        Some((stats.disk, stats.replicas.iter().find(|r| r.partition == partition)?))
    };
    if replica(new_leader).is_none() {
        return Some(format!("{new_leader} has no replica of it: name a node of its shard"));
    }
    let leader = map.configuration(partition)?.leader;
    let (disk, now) = replica(leader.node)?;
    let leads = disk == leader.disk && now.role == Role::Leader;
    // Who is named may be the leader itself, when it cannot serve.
    let named = leader.node == new_leader && now.trouble.is_some();
    (leads && !named).then(|| {
        format!(
            "its leader {} answers and leads: `kv admin handoff` passes leadership without loss, and what is stopped can \
             be recovered",
            leader.node
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_stats::node_stats;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{ClusterId, DiskId, ShardId},
        stats::NodeStats,
    };
    use kv_replication::cluster::{Cluster, Command, Shape};

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("a node id")
    }

    /// Two shards of two; `a` leads the partitions of shard 0, `c` those of shard 1.
    fn map() -> ClusterMap {
        let shape = Shape { shards: 2, replicas: 2, partitions: 4, ack: AckMode::Durable };
        let mut cluster = Cluster::new(ClusterId(1), shape).expect("possible");
        for (name, shard) in [("a", 0), ("b", 0), ("c", 1), ("d", 1)] {
            let node = Node {
                id: id(name),
                disk: DiskId(1),
                shard: ShardId(shard),
                prefers_to_lead: ["a", "c"].contains(&name),
                address: "127.0.0.1:1".to_string(),
                executors: 1,
            };
            cluster.apply(&Command::Register { cluster: None, node }).expect("registered");
        }
        cluster.map
    }

    fn of_shard(map: &ClusterMap, shard: u16) -> Vec<u16> {
        map.partitions().filter(|(_, p)| p.shard == ShardId(shard)).map(|(id, _)| id.0).collect()
    }

    fn chosen(commands: Result<Vec<AdminCommand>, ApiError>) -> Result<Vec<u16>, (u16, &'static str)> {
        let commands = commands.map_err(|e| (e.status.as_u16(), e.code))?;
        Ok(commands.iter().map(|c| c.partition().0).collect())
    }

    #[test]
    fn handoffs() {
        let map = map();
        for (body, expected) in [
            (r#"{"partitions": [3, 1, 3]}"#, Ok(vec![1, 3])),
            (r#"{"partitions": [3], "to": "d"}"#, Ok(vec![3])),
            (r#"{"led_by": "a"}"#, Ok(of_shard(&map, 0))),
            (r#"{"led_by": "a", "to": "b"}"#, Ok(of_shard(&map, 0))),
            (r#"{"led_by": "b"}"#, Err((409, "nothing_to_do"))),
            (r#"{"all": true}"#, Ok(vec![0, 1, 2, 3])),
            (r#"{"all": true, "to": "d"}"#, Ok(of_shard(&map, 1))),
            (r#"{"all": true, "to": "c"}"#, Err((409, "nothing_to_do"))),
            (r#"{"all": true, "to": "x"}"#, Err((404, "unknown_node"))),
            (r#"{"led_by": "x"}"#, Err((404, "unknown_node"))),
            (r#"{"partitions": [4]}"#, Err((404, "unknown_partition"))),
            (r#"{"partitions": []}"#, Err((400, "body_wrong_shape"))),
            (r#"{"partitions": [1], "all": true}"#, Err((400, "body_wrong_shape"))),
            (r#"{"all": false}"#, Err((400, "body_wrong_shape"))),
            ("{}", Err((400, "body_wrong_shape"))),
            (r#"{"partition": 1}"#, Err((400, "body_wrong_shape"))),
            (r#"{"partitions": [65536]}"#, Err((400, "body_wrong_shape"))),
            ("", Err((400, "body_not_json"))),
        ] {
            let commands = parse::<Handoff>(body.as_bytes()).and_then(|handoff| handoff.commands(&map));
            assert_eq!(chosen(commands), expected, "{body}");
        }
    }

    #[test]
    fn drops() {
        let map = map();
        for (body, expected) in [
            (r#"{"partitions": [3], "node": "d"}"#, Ok(vec![3])),
            (r#"{"all": true, "node": "b"}"#, Ok(of_shard(&map, 0))),
            (r#"{"all": true, "node": "a"}"#, Err((409, "nothing_to_do"))),
            (r#"{"all": true, "node": "x"}"#, Err((404, "unknown_node"))),
            (r#"{"node": "b"}"#, Err((400, "body_wrong_shape"))),
            (r#"{"all": true}"#, Err((400, "body_wrong_shape"))),
        ] {
            let commands = parse::<Drop>(body.as_bytes()).and_then(|drop| drop.commands(&map));
            assert_eq!(chosen(commands), expected, "{body}");
        }
    }

    fn stats(node: &str, disk: u128, role: Role, trouble: Option<&str>, partitions: &[u16]) -> NodeStats {
        node_stats((id(node), DiskId(disk)), partitions, role, 1, trouble)
    }

    #[test]
    fn a_forced_recovery_must_be_confirmed_and_its_leader_must_answer() {
        let map = map();
        let one = of_shard(&map, 0)[0];
        let answering = Answers::from([(id("b"), Ok(stats("b", 9, Role::Follower, None, &[one])))]);
        let silent = Answers::from([(id("b"), Err("refused".to_string()))]);
        let partitions = format!(r#""partitions": [{{"partition": {one}, "epoch": 1}}]"#);
        let confirmed = r#""old_leader_is_stopped": true"#;
        for (body, answers, expected) in [
            (format!(r#"{{"leader": "b", {partitions}, {confirmed}}}"#), &answering, Ok(DiskId(9))),
            (format!(r#"{{"leader": "b", {partitions}}}"#), &answering, Err("not_confirmed")),
            (format!(r#"{{"leader": "b", {partitions}, {confirmed}}}"#), &silent, Err("leader_unreachable")),
            (format!(r#"{{"leader": "x", {partitions}, {confirmed}}}"#), &answering, Err("unknown_node")),
            (format!(r#"{{"leader": "b", "partitions": [], {confirmed}}}"#), &answering, Err("body_wrong_shape")),
            (
                format!(r#"{{"leader": "b", "partitions": [{{"partition": 9, "epoch": 1}}], {confirmed}}}"#),
                &answering,
                Err("unknown_partition"),
            ),
            (format!(r#"{{"leader": "b", "partitions": [{one}], {confirmed}}}"#), &answering, Err("body_wrong_shape")),
        ] {
            let leader = parse::<ForceRecover>(body.as_bytes()).and_then(|force| force.new_leader(&map, answers));
            assert_eq!(leader.map(|m| m.disk).map_err(|e| e.code), expected, "{body}");
        }
    }

    #[test]
    fn a_partition_whose_leader_serves_is_not_recovered_by_force() {
        let map = map();
        let one = of_shard(&map, 0)[0];
        let (a, b) = (|role, disk, trouble| Ok(stats("a", disk, role, trouble, &[one])), id("b"));
        let gone = || Err("refused".to_string());
        let follower = || Ok(stats("b", 1, Role::Follower, None, &[one]));
        for (of_a, of_b, new_leader, refused) in [
            (gone(), follower(), b, None),
            (a(Role::Leader, 1, None), follower(), b, Some("its leader a answers and leads")),
            (a(Role::Leader, 1, Some("no follower")), follower(), b, Some("its leader a answers and leads")),
            // It lost its disk, or its log is damaged.
            (a(Role::Leader, 2, None), follower(), b, None),
            (a(Role::Refused, 1, Some("damaged")), follower(), b, None),
            (a(Role::Refused, 1, Some("damaged")), gone(), id("a"), None),
            (a(Role::Leader, 1, None), follower(), id("a"), Some("its leader a answers and leads")),
            (gone(), Ok(stats("b", 1, Role::Follower, None, &[])), b, Some("b has no replica of it")),
            (gone(), follower(), id("c"), Some("c has no replica of it")),
        ] {
            let answers = Answers::from([(id("a"), of_a), (b, of_b)]);
            let why = why_not_forced(PartitionId(one), new_leader, &map, &answers);
            match (&why, refused) {
                (Some(why), Some(refused)) => assert!(why.contains(refused), "{why}"),
                (why, refused) => assert_eq!(why.as_deref(), refused),
            }
        }
    }
}
