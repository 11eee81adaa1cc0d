//! Kills a leader of a cluster on this machine, which `kv local` has written down.

use crate::engine::{self, Cluster};
use anyhow::{Context, bail, ensure};
use kv_client::{
    Address,
    proto::{
        cluster_map::ClusterMap,
        ids::{ClusterId, NodeId},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

/// The part of `cluster.json` that matters here.
#[derive(Deserialize)]
struct Manifest {
    processes: Vec<Process>,
}

#[derive(Clone, Debug, Deserialize)]
struct Process {
    name: String,
    role: String,
    pid: i32,
    address: Option<String>,
}

/// The nodes of a cluster on this machine.
#[derive(Debug)]
pub(crate) struct Victims {
    nodes: BTreeMap<NodeId, i32>,
    addresses: BTreeSet<Address>,
    cluster: Cluster,
}

/// Who was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Killed {
    pub(crate) node: String,
    pub(crate) pid: i32,
    /// Partitions that it led.
    pub(crate) led: Vec<u16>,
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "killed {} (pid {}), which led {} partitions", self.node, self.pid, self.led.len())
    }
}

impl Victims {
    /// Those that this file names.
    ///
    /// # Errors
    /// When there is no such file, or no such cluster.
    pub(crate) async fn find(file: &Path) -> anyhow::Result<Victims> {
        let what = || {
            format!(
                "{} does not say which processes there are; --cluster names the cluster.json in the data folder of `kv local`",
                file.display()
            )
        };
        let text = std::fs::read_to_string(file).with_context(what)?;
        let manifest: Manifest = serde_json::from_str(&text).with_context(what)?;
        let is_node = |process: &&Process| matches!(process.role.as_str(), "leader" | "follower");
        let processes: Vec<&Process> = manifest.processes.iter().filter(is_node).collect();
        let address = |process: &&Process| process.address.as_ref()?.parse().ok();
        let addresses: BTreeSet<Address> = processes.iter().filter_map(address).collect();
        let nodes = processes.iter().filter_map(|process| Some((process.name.parse().ok()?, process.pid))).collect();
        let Some(cluster) = engine::ask_all(addresses.clone(), None).await else {
            bail!("none of the nodes in {} answers; is that cluster running?", file.display());
        };
        Ok(Victims { nodes, addresses, cluster })
    }

    pub(crate) fn partitions(&self) -> u16 {
        self.cluster.map.partition_count()
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster.map.cluster
    }

    /// Kills the node that leads most, of those that another can replace; where there is one replica only, of all.
    ///
    /// # Errors
    /// When there is none that can be killed.
    pub(crate) async fn strike(self) -> anyhow::Result<Killed> {
        let Victims { nodes, addresses, cluster } = self;
        let Cluster { map, .. } = engine::ask_all(addresses, Some(&cluster)).await.unwrap_or(cluster);
        let (node, pid, led) = choose(&map, &nodes)?;
        // The number may be another process by now. Of one that has ended and is not forgotten yet this is empty.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ensure!(
            !command.is_empty(),
            "{node} (pid {pid}) does not run any more; start it again by `kv local`, which writes the file anew"
        );
        let is_it = command.split(|byte| *byte == 0).any(|word| word == node.to_string().as_bytes());
        ensure!(is_it, "pid {pid} is not {node}; was the cluster started anew since the file was written?");
        let process = Pid::from_raw(pid).with_context(|| format!("{pid} is no process id"))?;
        kill_process(process, Signal::KILL).with_context(|| format!("{node} (pid {pid}) cannot be killed"))?;
        Ok(Killed { node: node.to_string(), pid, led })
    }
}

/// Who is to be killed, its process, and the partitions that it leads.
fn choose(map: &ClusterMap, nodes: &BTreeMap<NodeId, i32>) -> anyhow::Result<(NodeId, i32, Vec<u16>)> {
    let mut led: BTreeMap<NodeId, Vec<u16>> = BTreeMap::new();
    // How many of them are nowhere else, though they should be.
    let mut alone: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (partition, p) in map.partitions() {
        let Some(configuration) = &p.configuration else { continue };
        let leader = configuration.leader.node;
        led.entry(leader).or_default().push(partition.0);
        if map.replicas > 1 && configuration.in_sync.is_empty() {
            *alone.entry(leader).or_default() += 1;
        }
    }
    let known = led.into_iter().filter_map(|(node, led)| Some((node, *nodes.get(&node)?, led)));
    let (node, pid, led) = known
        .max_by_key(|(node, _, led)| (!alone.contains_key(node), led.len()))
        .context("no node of the file leads any partition")?;
    if let Some(alone) = alone.get(&node) {
        bail!(
            "{node} leads {} partitions, {alone} of which no other node could take over; start the nodes that are down, and wait \
             until `kv status` says that the cluster is ready",
            led.len()
        );
    }
    Ok((node, pid, led))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::samples::map;

    #[test]
    fn the_leader_of_most_is_killed_unless_it_is_the_last_one() {
        let nodes = [("a", 1), ("b", 2)].map(|(name, pid)| (NodeId::new(name).expect("a name"), pid)).into();
        let chosen = |map: ClusterMap| choose(&map, &nodes).map(|(_, pid, led)| (pid, led)).map_err(|e| e.to_string());
        assert_eq!(chosen(map(2, &[&["b", "a"], &["a", "b"], &["b", "a"]])), Ok((2, vec![0, 2])));
        assert_eq!(chosen(map(1, &[&["a"]])), Ok((1, vec![0])), "there is to be no other");
        assert_eq!(chosen(map(2, &[&["a", "b"], &["b"], &["b"]])), Ok((1, vec![0])), "b has some that nobody else has");
        assert_eq!(chosen(map(2, &[&["c", "a"], &["a", "b"], &["c", "a"]])), Ok((1, vec![1])), "c is not in the file");
        for (map, words) in [
            (map(2, &[&["c", "a"]]), "no node of the file leads any partition"),
            (map(2, &[&["b"], &["b", "a"]]), "b leads 2 partitions, 1 of which no other node could take over"),
        ] {
            let why = chosen(map).expect_err(words);
            assert!(why.contains(words), "{why}");
        }
    }
}
