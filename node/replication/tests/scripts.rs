//! Golden scripts: a few replicas, the connections between them, and commands that make things happen one at a
//! time. Each script under `scripts/` holds the commands and what they led to; run with `UPDATE_GOLDENFILES=1` to
//! write the latter anew, and read the difference.
//!
//! Commands: `cluster leader follower…`, `connect A B`, `disconnect A B`, `restart NODE` (with another disk),
//! `write NODE TEXT`, `barrier NODE`, `flush NODE`, `send NODE`, `deliver FROM TO [count=N]`, `lose FROM TO [count=N]`, `tick MS`, `settle`,
//! `config EPOCH leader follower…`, `status`.

use goldenscript::{Command, Context};
use kv_proto::{
    cluster_map::Configuration,
    ids::{DiskId, Epoch, HistoryId, Member, NodeId, PartitionId},
    replication::{PeerBody, Position},
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, Options, Replica, Token},
};
use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    fmt::Write,
    path::Path,
    time::Duration,
};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// A message on its way: the epoch it was said in, and what it says.
type Letter = (Epoch, PeerBody);

#[derive(Default)]
struct Script {
    now: Instant64,
    tokens: u64,
    replicas: BTreeMap<NodeId, Replica>,
    /// What was sent and not delivered, by connection: (from, to). A connection that is not there has no entry.
    network: BTreeMap<(NodeId, NodeId), VecDeque<Letter>>,
    applied: BTreeMap<NodeId, Vec<String>>,
}

fn position(at: Position) -> String {
    format!("{}.{}", at.epoch, at.lsn)
}

fn letter((epoch, body): &Letter) -> String {
    let body = match body {
        PeerBody::Prepare { previous, committed, records } => {
            let records: Vec<_> =
                records.iter().map(|r| format!("{}={}", position(r.position), text(&r.payload))).collect();
            format!("Prepare after {} committed {committed} [{}]", position(*previous), records.join(" "))
        }
        PeerBody::Beacon { committed } => format!("Beacon committed {committed}"),
        PeerBody::Report { prepared, flushed, applied } => {
            format!("Report prepared {} flushed {flushed} applied {applied}", position(*prepared))
        }
        PeerBody::Gap { prepared } => format!("Gap prepared {}", position(*prepared)),
    };
    format!("e{epoch} {body}")
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

impl Script {
    fn member(&self, node: NodeId) -> Member {
        Member { node, disk: DiskId(1) }
    }

    fn configuration(&self, epoch: u64, nodes: &[NodeId]) -> Configuration {
        Configuration {
            epoch: Epoch(epoch),
            history: HistoryId(0),
            leader: self.member(nodes[0]),
            in_sync: nodes[1..].iter().map(|n| self.member(*n)).collect(),
        }
    }

    /// Gives an event to a node and writes down what it does about it.
    fn give(&mut self, node: NodeId, event: Event, out: &mut String) -> Fallible<()> {
        let mut actions = Actions::new();
        self.replicas.get_mut(&node).ok_or("no such node")?.handle(self.now, event, &mut actions);
        self.carry_out(node, actions, out)
    }

    fn carry_out(&mut self, node: NodeId, actions: Actions, out: &mut String) -> Fallible<()> {
        let epoch = self.replicas[&node].configuration().epoch;
        for action in actions {
            match action {
                Action::Append(record) => {
                    writeln!(out, "{node} appends {}={}", position(record.position), text(&record.payload))?;
                }
                Action::Apply(record) => {
                    writeln!(out, "{node} applies {}={}", position(record.position), text(&record.payload))?;
                    self.applied.entry(node).or_default().push(text(&record.payload));
                }
                Action::Reply { token, outcome } => writeln!(out, "{node} answers #{}: {outcome:?}", token.0)?,
                Action::Send { to, body } => {
                    let letter_ = (epoch, body);
                    match self.network.get_mut(&(node, to)) {
                        Some(queue) => {
                            writeln!(out, "{node} -> {to}: {}", letter(&letter_))?;
                            queue.push_back(letter_);
                        }
                        None => writeln!(out, "{node} -> {to} (no connection): {}", letter(&letter_))?,
                    }
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, node: NodeId, out: &mut String) -> Fallible<()> {
        let lsn = self.replicas[&node].prepared().lsn;
        self.give(node, Event::Flushed { lsn }, out)
    }

    fn send(&mut self, node: NodeId, out: &mut String) -> Fallible<()> {
        for to in self.replicas.keys().copied().collect::<Vec<_>>() {
            while self.network.contains_key(&(node, to))
                && let Some(body) = self.replicas.get_mut(&node).ok_or("no such node")?.poll_prepare(to)
            {
                self.carry_out(node, vec![Action::Send { to, body }], out)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, count: usize, out: &mut String) -> Fallible<()> {
        for _ in 0..count {
            let Some((epoch, body)) = self.network.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { break };
            self.give(to, Event::Message { from, epoch, body }, out)?;
        }
        Ok(())
    }

    /// Flushes, sends and delivers until nothing is left to do.
    fn settle(&mut self, out: &mut String) -> Fallible<()> {
        for _ in 0..100 {
            let before = out.len();
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                if self.replicas[&node].flushed() < self.replicas[&node].prepared().lsn {
                    self.flush(node, out)?;
                }
                self.send(node, out)?;
            }
            for (from, to) in self.network.keys().copied().collect::<Vec<_>>() {
                self.deliver(from, to, usize::MAX, out)?;
            }
            if out.len() == before {
                return Ok(());
            }
        }
        Err("it does not settle".into())
    }

    fn connect(&mut self, leader: NodeId, follower: NodeId, disk: DiskId, out: &mut String) -> Fallible<()> {
        self.network.insert((leader, follower), VecDeque::new());
        self.network.insert((follower, leader), VecDeque::new());
        self.give(leader, Event::PeerConnected { peer: Member { node: follower, disk } }, out)
    }

    fn status(&self) -> String {
        let mut out = String::new();
        for (node, replica) in &self.replicas {
            let applied = self.applied.get(node).map(|a| a.join(" ")).unwrap_or_default();
            let _ = writeln!(
                out,
                "{node} {} prepared {} flushed {} committed {} applied [{applied}]{}",
                replica.role().as_str(),
                position(replica.prepared()),
                replica.flushed(),
                replica.committed(),
                replica.trouble(self.now).map(|t| format!(" trouble: {t}")).unwrap_or_default(),
            );
        }
        out
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Fallible<String> {
        let mut out = String::new();
        let mut args = command.consume_args();
        let count = args.take_key("count").map_or(Ok(usize::MAX), str::parse)?;
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        args.reject_next()?;
        let node = |at: usize| -> Fallible<NodeId> { Ok(words.get(at).ok_or("a node is missing")?.parse()?) };
        let nodes = |from: usize| -> Fallible<Vec<NodeId>> { (from..words.len()).map(node).collect() };
        match command.name.as_str() {
            "cluster" => {
                let nodes = nodes(0)?;
                let configuration = self.configuration(1, &nodes);
                for node in nodes {
                    let (me, id) = (self.member(node), PartitionId(0));
                    let replica = Replica::new(id, me, configuration.clone(), Options::default(), self.now);
                    self.replicas.insert(node, replica);
                }
            }
            "connect" => self.connect(node(0)?, node(1)?, DiskId(1), &mut out)?,
            "disconnect" => {
                self.network.remove(&(node(0)?, node(1)?));
                self.network.remove(&(node(1)?, node(0)?));
                self.give(node(0)?, Event::PeerLost { peer: node(1)? }, &mut out)?;
            }
            "restart" => {
                let node = node(0)?;
                let configuration = self.replicas[&node].configuration().clone();
                let (leader, me) = (configuration.leader.node, Member { node, disk: DiskId(2) });
                let replica = Replica::new(PartitionId(0), me, configuration, Options::default(), self.now);
                self.replicas.insert(node, replica);
                self.applied.remove(&node);
                if leader != node {
                    self.connect(leader, node, DiskId(2), &mut out)?;
                }
            }
            "write" => {
                self.tokens += 1;
                let payload = words.get(1).ok_or("a text is missing")?.as_bytes().into();
                let token = Token(self.tokens);
                self.give(node(0)?, Event::ClientWrite { payload, operation_id: None, token }, &mut out)?;
            }
            "barrier" => {
                self.tokens += 1;
                self.give(node(0)?, Event::ClientBarrier { token: Token(self.tokens) }, &mut out)?;
            }
            "flush" => self.flush(node(0)?, &mut out)?,
            "send" => self.send(node(0)?, &mut out)?,
            "lose" => {
                let queue = self.network.get_mut(&(node(0)?, node(1)?)).ok_or("no such connection")?;
                queue.drain(..count.min(queue.len()));
            }
            "deliver" => self.deliver(node(0)?, node(1)?, count, &mut out)?,
            "tick" => {
                let millis = words.first().ok_or("milliseconds are missing")?.parse()?;
                self.now = self.now + Duration::from_millis(millis);
                for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                    if self.replicas[&node].poll_timeout().is_some_and(|due| due <= self.now) {
                        self.give(node, Event::Timeout, &mut out)?;
                    }
                }
            }
            "settle" => self.settle(&mut out)?,
            "config" => {
                let epoch = words.first().ok_or("an epoch is missing")?.parse()?;
                let configuration = self.configuration(epoch, &nodes(1)?);
                for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                    self.give(node, Event::ConfigChanged(configuration.clone()), &mut out)?;
                }
            }
            "status" => out = self.status(),
            other => return Err(format!("unknown command {other}").into()),
        }
        Ok(out)
    }
}

#[test]
fn scripts() {
    let mut scripts: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts"))
        .expect("the folder of scripts")
        .map(|entry| entry.expect("readable").path())
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        goldenscript::run(&mut Script::default(), &script).unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    }
}
