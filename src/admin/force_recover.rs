//! `kv admin force-recover`: what is known of each replica, what would be lost, and a confirmation before it is.

use super::{EXIT_NOT_ALL, ForceRecoverOptions, Outcomes, decode, partitions, refusals};
use crate::{
    http::Api,
    output,
    status::{self, Topology, table},
};
use anyhow::bail;
use hyper::Method;
use kv_proto::{
    cluster_map::Configuration,
    ids::{Lsn, NodeId, PartitionId},
    stats::ReplicaStats,
};
use serde_json::json;
use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

pub(super) async fn run(options: ForceRecoverOptions) -> anyhow::Result<ExitCode> {
    let api = Api::new(&options.cluster)?;
    let topology = status::topology(&api).await?;
    let chosen = choose(&topology, &options.partitions, options.led_by)?;
    if topology.map.node(options.leader).is_none() {
        bail!("the cluster has no node {}; `kv status` lists its nodes", options.leader);
    }
    let reports: Vec<Report<'_>> =
        chosen.iter().map(|(id, c)| Report { id: *id, configuration: c, topology: &topology }).collect();
    output::line(replicas(&reports));
    for loss in losses(&reports, options.leader) {
        output::line(loss);
    }
    if !options.i_know_the_old_leader_is_stopped && !confirmed(&reports)? {
        output::line("nothing was changed");
        return Ok(ExitCode::from(EXIT_NOT_ALL));
    }
    let body = json!({
        "leader": options.leader,
        "partitions": chosen.iter().map(|(id, c)| json!({"partition": id, "epoch": c.epoch})).collect::<Vec<_>>(),
        "old_leader_is_stopped": true,
    });
    let path = "/v1/admin/force-recover";
    let answer = api.send(Method::POST, path, Some("application/json"), body.to_string()).await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    let outcomes: Outcomes = decode(&answer.body)?;
    let n = outcomes.accepted.len();
    output::line(format!(
        "{} {} a new history, led by {} alone; other nodes that come back copy from it, and what else they had is void",
        partitions(n),
        if n == 1 { "begins" } else { "begin" },
        options.leader
    ));
    let failures = refusals(&outcomes.refused);
    for failure in &failures {
        eprintln!("kv: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_ALL) })
}

type Chosen<'a> = Vec<(PartitionId, &'a Configuration)>;

fn choose<'a>(topology: &'a Topology, asked: &[u16], led_by: Option<NodeId>) -> anyhow::Result<Chosen<'a>> {
    let map = &topology.map;
    if let Some(unknown) = asked.iter().find(|p| **p >= map.partition_count()) {
        bail!("the cluster has no partition {unknown}, only 0 to {}", map.partition_count() - 1);
    }
    let is_chosen = |id: PartitionId, c: &Configuration| match led_by {
        Some(node) => c.leader.node == node,
        None => asked.contains(&id.0),
    };
    let configured = map.partitions().filter_map(|(id, p)| Some((id, p.configuration.as_ref()?)));
    let chosen: Chosen<'_> = configured.filter(|(id, c)| is_chosen(*id, c)).collect();
    match led_by {
        _ if !chosen.is_empty() => Ok(chosen),
        Some(node) => bail!("{node} leads no partition"),
        None => bail!("the partition was never created, so that there is nothing to recover"),
    }
}

/// A partition and what is known of its replicas.
struct Report<'a> {
    id: PartitionId,
    configuration: &'a Configuration,
    topology: &'a Topology,
}

impl<'a> Report<'a> {
    /// The nodes of its shard.
    fn nodes(&self) -> &'a [NodeId] {
        let map = &self.topology.map;
        let shard = map.partitions[usize::from(self.id.0)].shard;
        map.shards.get(usize::from(shard.0)).map_or(&[], |s| &s.nodes)
    }

    /// A node's replica, if it answers and has one; else why not.
    fn replica(&self, node: NodeId) -> Result<&'a ReplicaStats, String> {
        let report = self.topology.nodes.iter().find(|n| n.node == node).ok_or("was not asked")?;
        let stats = report.stats.as_ref().ok_or("does not answer")?;
        stats.replicas.iter().find(|r| r.partition == self.id).ok_or_else(|| "has no replica of it".to_owned())
    }

    /// What a node is by the map.
    fn is_now(&self, node: NodeId) -> &'static str {
        if self.configuration.leader.node == node {
            "leader"
        } else if self.configuration.in_sync.iter().any(|m| m.node == node) {
            "in sync"
        } else {
            "not in sync"
        }
    }

    /// What `leader` would lose, as far as it can be known.
    fn loss(&self, leader: NodeId) -> String {
        let own = match self.replica(leader) {
            Ok(replica) => replica.prepared_lsn,
            Err(why) => return format!("{leader} {why}, so that it cannot lead"),
        };
        if self.configuration.in_sync.iter().any(|m| m.node == leader) {
            return format!(
                "nothing, if the disk of {leader} is whole: it is in sync, and takes over by itself; look at `kv status` before \
                 you force it"
            );
        }
        let others = self.nodes().iter().filter(|n| **n != leader);
        let more: Vec<String> = others
            .clone()
            .filter_map(|n| Some((n, self.replica(*n).ok()?.prepared_lsn)))
            .filter(|(_, lsn)| *lsn > own)
            .map(|(n, lsn)| format!("{} that {n} has", records(own, lsn)))
            .collect();
        let silent: Vec<String> = others
            .filter(|n| self.configuration.members().any(|m| m.node == **n) && self.replica(**n).is_err())
            .map(|n| format!("whatever {n} has after LSN {own}, which nobody can see"))
            .collect();
        match [more, silent].concat() {
            all if all.is_empty() => "nothing that can be seen".to_owned(),
            all => all.join(", and "),
        }
    }
}

fn records(own: Lsn, other: Lsn) -> String {
    match other.0 - own.0 {
        1 => "1 record".to_owned(),
        n => format!("{n} records"),
    }
}

/// A line for each replica.
fn replicas(reports: &[Report<'_>]) -> String {
    let header = ["PARTITION", "EPOCH", "NODE", "IN THE MAP", "ITS EPOCH", "ITS LAST LSN", "KEYS", "STATE"];
    let mut rows = Vec::new();
    for report in reports {
        for node in report.nodes() {
            let mut row = vec![report.id.to_string(), report.configuration.epoch.to_string()];
            row.extend([node.to_string(), report.is_now(*node).to_owned()]);
            match report.replica(*node) {
                Ok(replica) => {
                    let (epoch, lsn, keys) = (replica.epoch, replica.prepared_lsn, replica.keys);
                    row.extend([epoch.to_string(), lsn.to_string(), keys.to_string()]);
                    row.push(match &replica.trouble {
                        Some(trouble) => format!("{}: {trouble}", replica.role.as_str()),
                        None => format!("answers, as {}", replica.role.as_str()),
                    });
                }
                Err(why) => {
                    row.extend(std::iter::repeat_n("unknown".to_owned(), 3));
                    row.push(why);
                }
            }
            rows.push(row);
        }
    }
    table(&header, &[2, 3, 7], rows)
}

/// What is lost, told once for all partitions that lose the same.
fn losses(reports: &[Report<'_>], leader: NodeId) -> Vec<String> {
    let mut losses = std::collections::BTreeMap::<String, Vec<PartitionId>>::new();
    for report in reports {
        losses.entry(report.loss(leader)).or_default().push(report.id);
    }
    let told = |(loss, which): (String, Vec<PartitionId>)| match which[..] {
        [partition] => format!("lost in partition {partition}: {loss}"),
        _ => format!("lost in each of {}: {loss}", partitions(which.len())),
    };
    losses.into_iter().map(told).collect()
}

/// Whether a person at a terminal types what has to be true.
fn confirmed(reports: &[Report<'_>]) -> anyhow::Result<bool> {
    let mut old: Vec<String> = reports.iter().map(|r| r.configuration.leader.node.to_string()).collect();
    old.sort_unstable();
    old.dedup();
    let sentence = format!("{} {} stopped", old.join(" and "), if old.len() == 1 { "is" } else { "are" });
    if !io::stdin().is_terminal() {
        bail!("make sure that {sentence} for good, then add --i-know-the-old-leader-is-stopped; nothing was changed");
    }
    print!("Two leaders would serve if that is not so. Type \"{sentence}\" to go on: ");
    io::stdout().flush()?;
    let mut typed = String::new();
    io::stdin().read_line(&mut typed)?;
    Ok(typed.trim() == sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;
    use kv_proto::stats::Role;

    fn id(name: &str) -> NodeId {
        name.parse().expect("a node id")
    }

    fn report(topology: &Topology) -> Report<'_> {
        let configuration = topology.map.configuration(PartitionId(0)).expect("created");
        Report { id: PartitionId(0), configuration, topology }
    }

    fn alone(topology: &mut Topology) {
        topology.map.partitions[0].configuration.as_mut().expect("created").in_sync.clear();
    }

    #[test]
    fn what_is_lost_is_told_as_far_as_it_is_known() {
        let follower = id("shard0-follower");
        let replica = |applied| samples::replica(0, Role::Learner, applied, "aa");
        // The leader has 7 records.
        let mut topology = samples::topology(Some(vec![replica(5)]));
        assert!(report(&topology).loss(follower).starts_with("nothing, if the disk of shard0-follower is whole"));
        alone(&mut topology);
        assert_eq!(report(&topology).loss(follower), "2 records that shard0-leader has");
        topology.nodes[1].stats = None;
        topology.nodes[1].error = Some("refused".to_owned());
        let loss = "whatever shard0-leader has after LSN 5, which nobody can see";
        assert_eq!(report(&topology).loss(follower), loss);
        assert_eq!(losses(&[report(&topology)], follower), [format!("lost in partition 0: {loss}")]);
        let text = replicas(&[report(&topology)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1].join(" "), "0 1 shard0-leader leader unknown unknown unknown does not answer");
        assert_eq!(lines[2].join(" "), "0 1 shard0-follower not in sync 1 5 10 answers, as learner");
        let mut silent = samples::topology(None);
        alone(&mut silent);
        assert_eq!(report(&silent).loss(follower), "shard0-follower does not answer, so that it cannot lead");
    }

    #[test]
    fn partitions_are_named_or_those_of_a_leader() {
        let topology = samples::topology(None);
        let chosen = |asked: &[u16], led_by: Option<&str>| {
            let chosen = choose(&topology, asked, led_by.map(id)).map_err(|e| e.to_string())?;
            Ok::<_, String>(chosen.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        };
        assert_eq!(chosen(&[1], None), Ok(vec![1]));
        assert_eq!(chosen(&[], Some("shard0-leader")), Ok(vec![0, 1]));
        assert_eq!(chosen(&[], Some("shard0-follower")), Err("shard0-follower leads no partition".to_owned()));
        assert_eq!(chosen(&[0, 2], None), Err("the cluster has no partition 2, only 0 to 1".to_owned()));
    }
}
