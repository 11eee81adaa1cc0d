//! Processes of a cluster that are killed, and started again by hand just as they were started before.

use crate::common::{Cluster, Spawned, kv, runs, signal, until};
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How a process was started. A node finds itself another port, since anybody may have the old one by now; a router has its
/// own again, where everybody looks for it.
pub(crate) struct Recipe {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Recipe {
    pub(crate) fn start(&self) -> Spawned {
        let mut command = kv();
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Spawned::start(&mut command)
    }

    /// Where it keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        let at = self.arguments.iter().position(|a| a == "--data-dir").expect("told by the supervisor");
        Path::new(&self.arguments[at + 1]).to_owned()
    }
}

/// The texts in a file of /proc, each of which ends with a zero.
fn texts(pid: u32, file: &str) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("it runs");
    bytes.split(|b| *b == 0).filter(|t| !t.is_empty()).map(|t| String::from_utf8_lossy(t).into_owned()).collect()
}

/// Sends a signal that ends a process, and waits for its end.
pub(crate) fn end(pid: u32, how: Signal) {
    signal(pid, how);
    until("it ends", || (!runs(pid)).then_some(()));
}

impl Cluster {
    /// How to start a process, which runs, again.
    pub(crate) fn recipe(&self, name: &str) -> Recipe {
        let process = self.process(name);
        let mut arguments = texts(process.pid, "cmdline").split_off(1);
        let mut set = |flag: &str, value: &str| {
            if let Some(at) = arguments.iter().position(|a| a == flag) {
                value.clone_into(&mut arguments[at + 1]);
            }
        };
        if process.role == "router" {
            set("--http", &process.address.expect("it listens"));
            let says = |l: &str| Some(l.split_once(" controller=")?.1.trim().to_owned());
            set("--controller-listen", &self.supervisor.output.wait_for("the router says where it listens", says));
        }
        // It is no child of the supervisor.
        if let Some(at) = arguments.iter().position(|a| a == "--supervisor-pid") {
            arguments.drain(at..at + 2);
        }
        let environment = texts(process.pid, "environ").into_iter().filter(|text| text.starts_with("KV_"));
        let environment = environment.filter_map(|t| t.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
        Recipe { arguments, environment: environment.collect() }
    }

    /// Kills a process by `kill -9`, and says how to start it again.
    pub(crate) fn kill(&self, name: &str) -> Recipe {
        let recipe = self.recipe(name);
        end(self.process(name).pid, Signal::KILL);
        recipe
    }

    /// The names of the nodes that lead partitions of a shard, without repetition.
    pub(crate) fn leaders(&self, shard: u16) -> Vec<String> {
        let map = self.topology().map;
        let of_shard = map.partitions.iter().filter(|p| p.shard.0 == shard);
        let leader = |p: &kv_proto::cluster_map::Partition| Some(p.configuration.as_ref()?.leader.node.to_string());
        let mut leaders: Vec<_> = of_shard.filter_map(leader).collect();
        leaders.sort_unstable();
        leaders.dedup();
        leaders
    }
}

/// Looks for so long whether something goes on to hold, and panics with what is said to be wrong.
pub(crate) fn hold(what: &str, how_long: Duration, mut broken: impl FnMut() -> Option<String>) {
    let end = Instant::now() + how_long;
    while Instant::now() < end {
        if let Some(why) = broken() {
            panic!("{what}: {why}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
