//! Which processes a local cluster has, and how each is started: a pure function of the options and of the
//! processors that there are.

use super::{Options, Ports};
use anyhow::bail;
use serde::Serialize;
use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HTTP_PORT: u16 = 5000;
const CONTROLLER_PORT: u16 = 5100;
/// From the ports of one router to those of the next.
const ROUTER_STEP: u16 = 10;
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

/// All processes: the routers first, then the nodes by shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) processes: Vec<Process>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) role: Role,
    /// Where it listens; port 0 until it has said it.
    pub(super) address: SocketAddr,
    /// Where a router's controller listens; port 0 until it has said it.
    pub(super) controller: Option<SocketAddr>,
    /// A node's shard and the processors that its executors are pinned to.
    pub(super) node: Option<(u16, Vec<usize>)>,
}

/// What is the same for all processes of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common<'a> {
    pub(super) options: &'a Options,
    /// Where the controllers listen, separated by commas.
    pub(super) controllers: &'a str,
    /// The folder of the routers' folders.
    pub(super) routers_data: &'a Path,
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
        let http = options.http.unwrap_or_else(|| at(HTTP_PORT));
        let mut processes = Vec::new();
        for router in 0..options.routers {
            let name = if router == 0 { "router".to_owned() } else { format!("router{}", router + 1) };
            let mut address = http;
            if router > 0 && (!fixed || http.port() == 0) {
                address.set_port(0);
            } else {
                let Some(port) = http.port().checked_add(router * ROUTER_STEP) else {
                    bail!("the ports of {} routers from {http} on do not exist: give a lower --http", options.routers);
                };
                address.set_port(port);
            }
            let controller = Some(at(CONTROLLER_PORT + router * ROUTER_STEP));
            processes.push(Process { name, role: Role::Router, address, controller, node: None });
        }
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
            processes.push(Process { name, role, address, controller: None, node: Some((shard, pin)) });
        }
        let plan = Plan { processes };
        plan.check_ports()?;
        Ok(plan)
    }

    /// How many of the processes are routers; they are the first.
    pub(super) fn routers(&self) -> usize {
        self.processes.iter().filter(|p| p.role == Role::Router).count()
    }

    /// Where the controllers listen, separated by commas.
    pub(super) fn controllers(&self) -> String {
        let addresses: Vec<_> = self.processes.iter().filter_map(|p| Some(p.controller?.to_string())).collect();
        addresses.join(",")
    }

    /// Gives controllers the ports that are chosen by the system but have to be known before the first of them starts:
    /// several controllers are told of each other.
    pub(super) fn settle_controllers(
        &mut self,
        mut free: impl FnMut(SocketAddr) -> io::Result<SocketAddr>,
    ) -> io::Result<()> {
        if self.routers() > 1 {
            for controller in self.processes.iter_mut().filter_map(|p| p.controller.as_mut()) {
                if controller.port() == 0 {
                    *controller = free(*controller)?;
                }
            }
        }
        Ok(())
    }

    /// Every port that is not chosen by the system, with the name of who listens there.
    pub(super) fn fixed_addresses(&self) -> impl Iterator<Item = (String, SocketAddr)> {
        let own = |p: &Process| (p.name.clone(), p.address);
        let controller = |p: &Process| Some((format!("the controller of {}", p.name), p.controller?));
        let all = self.processes.iter().flat_map(move |p| std::iter::once(own(p)).chain(controller(p)));
        all.filter(|(_, address)| address.port() != 0)
    }

    /// Ports that routers take may be those of others: that of `--http`, and those after it.
    fn check_ports(&self) -> anyhow::Result<()> {
        let fixed: Vec<_> = self.fixed_addresses().collect();
        for router in self.processes.iter().filter(|p| p.role == Role::Router && p.address.port() != 0) {
            let port = router.address.port();
            if let Some((name, _)) = fixed.iter().find(|(name, a)| *name != router.name && a.port() == port) {
                bail!(
                    "port {port}, which {} needs, is the fixed one of {name}: give --http another port, or --ports auto",
                    router.name
                );
            }
        }
        Ok(())
    }

    /// The first line that a person sees.
    pub(super) fn headline(&self, options: &Options) -> String {
        let plural = |n: u16, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
        format!(
            "starting {}{} with {} each, {}, in {}",
            if options.routers == 1 { String::new() } else { format!("{} routers and ", options.routers) },
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
            flag("--controller", text(&common.controllers));
            flag("--cores", text(&options.cores));
            flag("--pin", text(&pin.join(",")));
            flag("--data-dir", common.nodes_data.join(&self.name).into());
            for (name, value) in options.failover.arguments() {
                flag(name, value.into());
            }
        } else {
            flag("--id", text(&self.name));
            flag("--http", text(&self.address));
            if let Some(controller) = &self.controller {
                flag("--controller-listen", text(controller));
            }
            if options.routers > 1 {
                flag("--controller-peers", text(&common.controllers));
            }
            flag("--data-dir", common.routers_data.join(&self.name).into());
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
        assert_eq!(plan.controllers(), "127.0.0.1:5100");
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
            assert_eq!(plan.controllers(), "127.0.0.1:0", "{line}");
        }
    }

    #[test]
    fn what_cannot_be_planned_is_a_sentence() {
        for (line, sentence) in [
            ("--shards 100 --partitions 200", "100 shards do not fit the fixed ports"),
            ("--shards 65", "65 shards cannot share 64 partitions"),
            ("--http 127.0.0.1:5001", "port 5001, which router needs, is the fixed one of shard0-leader"),
            ("--http 0.0.0.0:6003", "port 6003, which router needs, is the fixed one of shard2-follower"),
            ("--http 127.0.0.1:5100", "port 5100, which router needs, is the fixed one of the controller of router"),
            ("--routers 3 --shards 10", "port 5010, which router2 needs, is the fixed one of shard9-leader"),
            ("--routers 3 --http 127.0.0.1:65530", "the ports of 3 routers from 127.0.0.1:65530 on do not exist"),
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
        for (line, processes) in
            [("--shards 99 --partitions 99 --replicas 5", 99 * 5 + 2), ("--shards 9 --routers 3", 9 * 2 + 6)]
        {
            let plan = Plan::new(&options(line), &[0]).expect("valid");
            let ports: std::collections::HashSet<_> = plan.fixed_addresses().map(|(_, a)| a.port()).collect();
            assert_eq!(ports.len(), processes, "{line}");
        }
    }

    fn command_line(plan: &Plan, options: &Options, process: usize) -> OsString {
        let common = Common {
            options,
            controllers: &plan.controllers(),
            routers_data: Path::new("d"),
            nodes_data: Path::new("d/nodes"),
            supervisor_pid: 42,
        };
        plan.processes[process].arguments(common).join(std::ffi::OsStr::new(" "))
    }

    #[test]
    fn arguments() {
        let options = options("--cores 2 --ports auto --ack replicated");
        let mut plan = Plan::new(&options, &[0, 3]).expect("valid");
        plan.processes[0].controller.as_mut().expect("a router").set_port(7);
        let line = |i: usize| command_line(&plan, &options, i);
        assert_eq!(
            line(0),
            "router --id router --http 127.0.0.1:0 --controller-listen 127.0.0.1:7 --data-dir d/router --shards 3 \
             --replicas 2 --partitions 64 --ack replicated --supervisor-pid 42"
        );
        assert_eq!(
            line(2),
            "node --id shard0-follower --shard 0 --role follower --listen 127.0.0.1:0 --controller 127.0.0.1:7 \
             --cores 2 --pin 0,3 --data-dir d/nodes/shard0-follower --beacon-interval-ms 100 --suspect-after-ms 1000 \
             --lease-ms 1000 --grace-ms 1500 --start-patience-ms 4000 --reads lease --min-in-sync 1 --rebalance-after-s 10 \
             --supervisor-pid 42"
        );
    }

    #[test]
    fn three_routers() {
        let summary = |line: &str| {
            let plan = Plan::new(&options(line), &[0]).expect("valid");
            let routers = plan.processes[..plan.routers()].iter();
            routers.map(|p| format!("{} {} {}", p.name, p.address, p.controller.expect("a router"))).collect::<Vec<_>>()
        };
        assert_eq!(
            summary("--routers 3"),
            [
                "router 127.0.0.1:5000 127.0.0.1:5100",
                "router2 127.0.0.1:5010 127.0.0.1:5110",
                "router3 127.0.0.1:5020 127.0.0.1:5120"
            ]
        );
        assert_eq!(summary("--routers 3 --http 0.0.0.0:80")[2], "router3 0.0.0.0:100 127.0.0.1:5120");
        assert_eq!(summary("--routers 3 --ports auto --http [::1]:80")[1], "router2 [::1]:0 127.0.0.1:0");

        let options = options("--routers 3 --ports auto --shards 1");
        let mut plan = Plan::new(&options, &[0]).expect("valid");
        let mut next = 6;
        plan.settle_controllers(|mut address| {
            next += 1;
            address.set_port(next);
            Ok(address)
        })
        .expect("free");
        let line = |i: usize| command_line(&plan, &options, i);
        assert_eq!(
            line(1),
            "router --id router2 --http 127.0.0.1:0 --controller-listen 127.0.0.1:8 --controller-peers \
             127.0.0.1:7,127.0.0.1:8,127.0.0.1:9 --data-dir d/router2 --shards 1 --replicas 2 --partitions 64 --ack durable \
             --supervisor-pid 42"
        );
        let node = line(3).into_string().expect("text");
        assert!(node.contains("--controller 127.0.0.1:7,127.0.0.1:8,127.0.0.1:9 "), "{node}");
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
