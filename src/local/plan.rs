//! Which processes a local cluster has, and how each is started: a pure function of the options and of the
//! processors that there are.

use super::{Options, Ports};
use anyhow::bail;
use serde::Serialize;
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HTTP_PORT: u16 = 5000;
const CONTROLLER_PORT: u16 = 5100;
/// Port of the leader of shard 0; its first follower has the one [`REPLICA_STEP`] above, and so on.
const FIRST_NODE_PORT: u16 = 5001;
const REPLICA_STEP: u16 = 1000;
/// With more shards, the leaders' fixed ports would reach the controller's.
const MOST_SHARDS_ON_FIXED_PORTS: u16 = CONTROLLER_PORT - FIRST_NODE_PORT;

/// What a process is, at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// The HTTP API and the controller.
    Router,
    /// A node that leads when all is well.
    Leader,
    /// A node that follows when all is well.
    Follower,
    /// The process that started the others.
    Supervisor,
}

/// All processes: the router first, then the nodes by shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) processes: Vec<Process>,
    /// Where nodes reach the controller; port 0 until the router has said it.
    pub(super) controller: SocketAddr,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) role: Role,
    /// Where it listens; port 0 until it has said it.
    pub(super) address: SocketAddr,
    /// A node's shard and the processors that its executors are pinned to.
    pub(super) node: Option<(u16, Vec<usize>)>,
}

/// What is the same for all processes of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'a> {
    pub(super) options: &'a Options,
    pub(super) controller: SocketAddr,
    pub(super) router_data: &'a Path,
    /// The folder of the nodes' folders.
    pub(super) nodes_data: &'a Path,
    pub(super) supervisor_pid: u32,
}

impl Plan {
    /// Plans the processes on `processors`, of which there is at least one.
    ///
    /// # Errors
    /// When the options cannot go together; a sentence that says what to change.
    pub(super) fn new(options: &Options, processors: &[usize]) -> anyhow::Result<Self> {
        let (shards, replicas, fixed) = (options.shards, options.replicas, options.ports == Ports::Fixed);
        if shards > options.partitions {
            bail!(
                "{shards} shards cannot share {} partitions, each needs one at least: give fewer --shards or more \
                 --partitions",
                options.partitions
            );
        }
        if fixed && shards > MOST_SHARDS_ON_FIXED_PORTS {
            bail!(
                "{shards} shards do not fit the fixed ports, which have room for {MOST_SHARDS_ON_FIXED_PORTS}: give \
                 --ports auto"
            );
        }
        let at = |port| SocketAddr::new(LOCALHOST, if fixed { port } else { 0 });
        let controller = at(CONTROLLER_PORT);
        let http = options.http.unwrap_or_else(|| at(HTTP_PORT));
        let mut processes = vec![Process { name: "router".to_owned(), role: Role::Router, address: http, node: None }];
        for (shard, replica) in (0..shards).flat_map(|s| (0..replicas).map(move |r| (s, r))) {
            let (role, name) = match replica {
                0 => (Role::Leader, format!("shard{shard}-leader")),
                1 => (Role::Follower, format!("shard{shard}-follower")),
                n => (Role::Follower, format!("shard{shard}-follower{n}")),
            };
            let address = at(FIRST_NODE_PORT + replica * REPLICA_STEP + shard);
            // With several executors a node takes that many processors in a row, and its follower the next ones.
            let first = (usize::from(shard) + usize::from(replica)) * usize::from(options.cores);
            let pin = (first..first + usize::from(options.cores)).map(|i| processors[i % processors.len()]).collect();
            processes.push(Process { name, role, address, node: Some((shard, pin)) });
        }
        let plan = Plan { processes, controller };
        plan.check_ports()?;
        Ok(plan)
    }

    /// Every port that is not chosen by the system, with the name of who listens there.
    pub(super) fn fixed_addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let processes = self.processes.iter().map(|p| (p.name.as_str(), p.address));
        processes.chain([("controller", self.controller)]).filter(|(_, address)| address.port() != 0)
    }

    /// `--http` is the one port that can be one of the others.
    fn check_ports(&self) -> anyhow::Result<()> {
        let http = self.processes[0].address;
        match self.fixed_addresses().skip(1).find(|(_, a)| http.port() != 0 && a.port() == http.port()) {
            Some((name, _)) => {
                bail!("port {} is the fixed one of {name}: give --http another port, or --ports auto", http.port())
            }
            None => Ok(()),
        }
    }

    /// The first line that a person sees.
    pub(super) fn headline(&self, options: &Options) -> String {
        let plural = |n: u16, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
        format!(
            "starting {} with {} each, {}, in {}",
            plural(options.shards, "shard"),
            plural(options.replicas, "replica"),
            plural(options.partitions, "partition"),
            options.data_dir.display()
        )
    }
}

impl Process {
    /// The arguments that start it.
    pub(super) fn arguments(&self, common: Common<'_>) -> Vec<OsString> {
        let options = common.options;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        let text = |value: &dyn ToString| OsString::from(value.to_string());
        if let Some((shard, pin)) = &self.node {
            let pin: Vec<_> = pin.iter().map(ToString::to_string).collect();
            flag("--id", text(&self.name));
            flag("--shard", text(shard));
            flag("--role", text(if self.role == Role::Leader { &"leader" } else { &"follower" }));
            flag("--listen", text(&self.address));
            flag("--controller", text(&common.controller));
            flag("--cores", text(&options.cores));
            flag("--pin", text(&pin.join(",")));
            flag("--data-dir", common.nodes_data.join(&self.name).into());
        } else {
            flag("--id", text(&self.name));
            flag("--http", text(&self.address));
            flag("--controller-listen", text(&common.controller));
            flag("--data-dir", common.router_data.into());
            flag("--shards", text(&options.shards));
            flag("--replicas", text(&options.replicas));
            flag("--partitions", text(&options.partitions));
            flag("--ack", text(&options.ack));
        }
        flag("--supervisor-pid", text(&common.supervisor_pid));
        arguments.insert(0, if self.node.is_some() { "node".into() } else { "router".into() });
        arguments
    }
}

/// Where a process said that it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    /// Said by the router only.
    pub(super) controller: Option<SocketAddr>,
}

impl Listening {
    /// Reads `listening ADDRESS`, or `listening http=ADDRESS controller=ADDRESS`; `None` for any other line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let said = line.strip_prefix("listening ")?.trim();
        if let Ok(address) = said.parse() {
            return Some(Listening { address, controller: None });
        }
        let (http, controller) = said.split_once(' ')?;
        Some(Listening {
            address: http.strip_prefix("http=")?.parse().ok()?,
            controller: Some(controller.strip_prefix("controller=")?.parse().ok()?),
        })
    }
}

/// The URL under which the machine itself reaches an address.
pub(super) fn url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { LOCALHOST } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        Line::parse_from(std::iter::once("kv").chain(line.split_whitespace())).options
    }

    fn summary(plan: &Plan) -> Vec<String> {
        plan.processes.iter().map(|p| format!("{} {:?} {} {:?}", p.name, p.role, p.address, p.node)).collect()
    }

    #[test]
    fn the_default_plan() {
        let plan = Plan::new(&options(""), &[0, 1]).expect("valid");
        assert_eq!(plan.controller.to_string(), "127.0.0.1:5100");
        assert_eq!(
            summary(&plan),
            [
                "router Router 127.0.0.1:5000 None",
                "shard0-leader Leader 127.0.0.1:5001 Some((0, [0]))",
                "shard0-follower Follower 127.0.0.1:6001 Some((0, [1]))",
                "shard1-leader Leader 127.0.0.1:5002 Some((1, [1]))",
                "shard1-follower Follower 127.0.0.1:6002 Some((1, [0]))",
                "shard2-leader Leader 127.0.0.1:5003 Some((2, [0]))",
                "shard2-follower Follower 127.0.0.1:6003 Some((2, [1]))",
            ]
        );
    }

    #[test]
    fn third_replicas_and_several_cores_on_processors_that_do_not_start_at_0() {
        let plan = Plan::new(&options("--shards 1 --replicas 3 --cores 2"), &[4, 5, 6, 7]).expect("valid");
        assert_eq!(
            summary(&plan)[1..],
            [
                "shard0-leader Leader 127.0.0.1:5001 Some((0, [4, 5]))",
                "shard0-follower Follower 127.0.0.1:6001 Some((0, [6, 7]))",
                "shard0-follower2 Follower 127.0.0.1:7001 Some((0, [4, 5]))",
            ]
        );
    }

    #[test]
    fn free_ports_but_for_an_explicit_http_address() {
        for (line, http) in [
            ("--ports auto", "127.0.0.1:0"),
            ("--ports auto --http 127.0.0.1:5000", "127.0.0.1:5000"),
            ("--ports auto --http [::1]:80", "[::1]:80"),
        ] {
            let plan = Plan::new(&options(line), &[0]).expect(line);
            assert_eq!(plan.processes[0].address.to_string(), http, "{line}");
            assert!(plan.processes[1..].iter().all(|p| p.address.port() == 0), "{line}");
            assert_eq!(plan.controller.port(), 0, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_planned_is_a_sentence() {
        for (line, sentence) in [
            ("--shards 100 --partitions 200", "100 shards do not fit the fixed ports"),
            ("--shards 65", "65 shards cannot share 64 partitions"),
            ("--http 127.0.0.1:5001", "port 5001 is the fixed one of shard0-leader"),
            ("--http 0.0.0.0:6003", "port 6003 is the fixed one of shard2-follower"),
            ("--http 127.0.0.1:5100", "port 5100 is the fixed one of controller"),
        ] {
            let error = Plan::new(&options(line), &[0]).expect_err(line).to_string();
            assert!(error.starts_with(sentence), "{line}: {error}");
        }
        for line in ["--shards 99 --partitions 99", "--shards 200 --partitions 200 --ports auto", "--http 0.0.0.0:80"] {
            assert!(Plan::new(&options(line), &[0]).is_ok(), "{line}");
        }
    }

    #[test]
    fn no_two_processes_share_a_fixed_port() {
        let plan = Plan::new(&options("--shards 99 --partitions 99 --replicas 5"), &[0]).expect("valid");
        let ports: std::collections::HashSet<_> = plan.fixed_addresses().map(|(_, a)| a.port()).collect();
        assert_eq!(ports.len(), 99 * 5 + 2);
    }

    #[test]
    fn arguments() {
        let options = options("--cores 2 --ports auto --ack replicated");
        let mut plan = Plan::new(&options, &[0, 3]).expect("valid");
        plan.controller.set_port(7);
        let common = Common {
            options: &options,
            controller: plan.controller,
            router_data: Path::new("d/router"),
            nodes_data: Path::new("d/nodes"),
            supervisor_pid: 42,
        };
        let line = |i: usize| plan.processes[i].arguments(common).join(std::ffi::OsStr::new(" "));
        assert_eq!(
            line(0),
            "router --id router --http 127.0.0.1:0 --controller-listen 127.0.0.1:7 --data-dir d/router --shards 3 \
             --replicas 2 --partitions 64 --ack replicated --supervisor-pid 42"
        );
        assert_eq!(
            line(2),
            "node --id shard0-follower --shard 0 --role follower --listen 127.0.0.1:0 --controller 127.0.0.1:7 \
             --cores 2 --pin 0,3 --data-dir d/nodes/shard0-follower --supervisor-pid 42"
        );
    }

    #[test]
    fn listening_lines() {
        let listening = |address: &str, controller: Option<&str>| {
            let parse = |text: &str| text.parse().expect("an address");
            Some(Listening { address: parse(address), controller: controller.map(parse) })
        };
        for (line, parsed) in [
            ("listening 127.0.0.1:5001", listening("127.0.0.1:5001", None)),
            ("listening http=127.0.0.1:5000 controller=[::1]:1", listening("127.0.0.1:5000", Some("[::1]:1"))),
            ("listening", None),
            ("listening somewhere", None),
            ("listening http=127.0.0.1:5000", None),
            ("not listening 127.0.0.1:5001", None),
        ] {
            assert_eq!(Listening::parse(line), parsed, "{line}");
        }
    }

    #[test]
    fn urls_reach_an_address_that_means_all_of_the_machine() {
        for (address, expected) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
        ] {
            assert_eq!(url(address.parse().expect("an address")), expected);
        }
    }
}
