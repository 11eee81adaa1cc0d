//! Golden scripts: a few replicas, the connections between them, and commands that make things happen one at a
//! time. Each script under `scripts/` holds the commands and what they led to; run with `UPDATE_GOLDENFILES=1` to
//! write the latter anew, and read the difference.
//!
//! * `options [min_in_sync=N] [memory]`, before the next: how many replicas writes need, and whether memory is enough for them
//! * `cluster leader follower…`: makes all of them, with epoch 1 on their disks
//! * `connect A B [DISK]`, `disconnect A B`: A's connection to B; what is on its way is lost
//! * `write NODE TEXT`, `barrier NODE`
//! * `flush NODE [count=N]`: all entries, or the next N, are on disk · `send NODE`: the Prepares that it has for others
//! * `deliver FROM TO [count=N]`, `lose FROM TO [count=N]`, `keep FROM TO` and `late FROM TO`: what is on its way is set
//!   aside, to arrive late
//! * `restart NODE [lose=N] [committed=LSN] [epoch=N]`: it crashes, loses the last N entries that are not flushed (all), or
//!   N of all entries with `memory=N`, and starts with everything up to LSN in its table (what it knew), in the newest
//!   configuration or an older one · `wipe NODE`: it starts with another disk
//! * `read NODE PEER [lost]`: its log is read for the peer, or does not reach back so far · `copy NODE PEER`: its table is sent
//!   to the peer, `kept NODE`: what came is on disk
//! * `config EPOCH leader follower…`: everyone learns it · `decide`: the controller carries out what was proposed ·
//!   `forget`: what was proposed gets lost · `learn NODE`: it learns the newest configuration · `controller NODE gone|back`
//! * `handoff NODE [PEER|leave]`, `drop NODE PEER`
//! * `tick MS`, `settle` (flushes, sends and delivers until nothing is left to do), `status`

use goldenscript::{Command, Context};
use kv_proto::{
    cluster_map::Configuration,
    control::{Change, Proposal},
    ids::{DiskId, Epoch, HistoryId, Lsn, Member, NodeId, PartitionId},
    replication::{Basis, PeerBody, Position, Record},
};
use kv_replication::{
    clock::Instant64,
    configuration,
    replica::{Action, Actions, Event, LogEntry, Options, Replica, Restored, Token},
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

/// The entries of a node's log, and how many are flushed.
#[derive(Default)]
struct Disk {
    entries: Vec<LogEntry>,
    flushed: usize,
    /// Entries that were there when the replica was made.
    before: usize,
    /// The records that are in the copy of a table that it received.
    copied: Vec<Record>,
}

impl Disk {
    /// The records that are not void.
    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for entry in &self.entries {
            match entry {
                LogEntry::Record(record) => records.push(record.clone()),
                LogEntry::Cut { from } => records.truncate(from.0 as usize - 1),
                LogEntry::Configuration(_) => {}
                LogEntry::Reset { .. } => records.clone_from(&self.copied),
            }
        }
        records
    }

    fn restore(&self, committed: Lsn, incomplete: bool) -> Restored {
        let mut records = self.records();
        let tail = records.split_off((committed.0 as usize).min(records.len()));
        let configuration = self.entries.iter().rev().find_map(|entry| match entry {
            LogEntry::Configuration(configuration) | LogEntry::Reset { configuration, .. } => {
                Some(configuration.clone())
            }
            LogEntry::Record(_) | LogEntry::Cut { .. } => None,
        });
        let applied = records.last().map(|r| r.position).unwrap_or_default();
        Restored { configuration, applied, tail, fault: None, incomplete }
    }
}

#[derive(Default)]
struct Script {
    options: Options,
    now: Instant64,
    tokens: u64,
    replicas: BTreeMap<NodeId, Replica>,
    disks: BTreeMap<NodeId, Disk>,
    /// Every configuration that there was.
    configurations: Vec<Configuration>,
    proposals: Vec<(Epoch, Change)>,
    late: BTreeMap<(NodeId, NodeId), VecDeque<Letter>>,
    /// What of its log a node reads, and for whom.
    reads: BTreeMap<(NodeId, NodeId), Lsn>,
    /// Copies of tables that are to be sent.
    copies: BTreeMap<(NodeId, NodeId), u64>,
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
            format!("Prepare after {} committed {committed} [{}]", position(*previous), texts(records))
        }
        PeerBody::Beacon { committed, serving, .. } => {
            format!("Beacon committed {committed}{}", if *serving { "" } else { " not serving" })
        }
        PeerBody::Report { prepared, flushed, applied, basis, .. } => {
            let basis = if *basis == Basis::Table { String::new() } else { format!(" on {basis:?}").to_lowercase() };
            format!("Report prepared {} flushed {flushed} applied {applied}{basis}", position(*prepared))
        }
        PeerBody::Resign => "Resign".to_owned(),
        PeerBody::CopyBegin { start, .. } => format!("CopyBegin up to {}", position(*start)),
        PeerBody::CopyPart { number, .. } => format!("CopyPart {number}"),
        PeerBody::CopyEnd { parts, end, .. } => format!("CopyEnd of {parts} at {end}"),
        PeerBody::Gap { prepared } => format!("Gap prepared {}", position(*prepared)),
        PeerBody::Fetch { after } => format!("Fetch after {}", position(*after)),
        PeerBody::Tail { previous, records, last } => {
            format!("Tail after {} [{}] last {}", position(*previous), texts(records), position(*last))
        }
    };
    format!("e{epoch} {body}")
}

fn texts(records: &[Record]) -> String {
    records.iter().map(|r| format!("{}={}", position(r.position), text(&r.payload))).collect::<Vec<_>>().join(" ")
}

fn configuration_text(configuration: &Configuration) -> String {
    let members: Vec<_> = configuration.members().map(|m| m.node.to_string()).collect();
    format!("epoch {} of {}", configuration.epoch, members.join(" "))
}

fn change_text(change: &Change) -> String {
    match change {
        Change::Reopen { leader } => format!("Reopen by {}", leader.node),
        Change::Drop { leader, followers } => format!("Drop of {} by {}", names(followers), leader.node),
        Change::Takeover { follower, in_sync } => format!("Takeover by {} with [{}]", follower.node, names(in_sync)),
        Change::Add { leader, learner } => format!("Add of {} by {}", learner.node, leader.node),
        Change::Handoff { leader, to, in_sync } => {
            format!("Handoff by {} to {} with [{}]", leader.node, to.node, names(in_sync))
        }
        Change::Create { .. } | Change::ForceRecover { .. } => format!("{change:?}"),
    }
}

fn names(members: &[Member]) -> String {
    members.iter().map(|m| m.node.to_string()).collect::<Vec<_>>().join(" ")
}

/// What a record says; the empty one that a leader makes has no text.
fn text(payload: &[u8]) -> String {
    if payload.iter().all(u8::is_ascii_graphic) {
        String::from_utf8_lossy(payload).into_owned()
    } else {
        "nothing".to_owned()
    }
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
                Action::Append(entry) => {
                    match &entry {
                        LogEntry::Record(record) => {
                            writeln!(out, "{node} appends {}={}", position(record.position), text(&record.payload))?;
                        }
                        LogEntry::Cut { from } => writeln!(out, "{node} appends a cut from {from}")?,
                        LogEntry::Configuration(configuration) => {
                            writeln!(out, "{node} appends {}", configuration_text(configuration))?;
                        }
                        LogEntry::Reset { configuration, base } => {
                            let (base, configuration) = (position(*base), configuration_text(configuration));
                            writeln!(out, "{node} appends a reset to {base} in {configuration}")?;
                        }
                    }
                    self.disks.entry(node).or_default().entries.push(entry);
                }
                Action::ReadLog { to, after } => {
                    writeln!(out, "{node} reads its log after {after} for {to}")?;
                    self.reads.insert((node, to), after);
                }
                Action::Propose(change) => {
                    writeln!(out, "{node} proposes {}", change_text(&change))?;
                    self.proposals.push((epoch, change));
                }
                Action::Resign { to, epoch } => {
                    let letter_ = (epoch, PeerBody::Resign);
                    writeln!(out, "{node} -> {to}: {}", letter(&letter_))?;
                    if let Some(queue) = self.network.get_mut(&(node, to)) {
                        queue.push_back(letter_);
                    }
                }
                Action::SendCopy { to, sent } => {
                    writeln!(out, "{node} is to send a copy of its table to {to}")?;
                    self.copies.insert((node, to), sent);
                }
                Action::ResetTable => {
                    writeln!(out, "{node} empties its table")?;
                    self.applied.remove(&node);
                }
                Action::LoadTable { bytes } => {
                    let texts = String::from_utf8_lossy(&bytes).into_owned();
                    writeln!(out, "{node} loads [{texts}]")?;
                    self.applied.entry(node).or_default().extend(texts.split_whitespace().map(str::to_owned));
                }
                Action::KeepTable { end, .. } => writeln!(out, "{node} is to keep its table from {end} on")?,
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

    fn flush(&mut self, node: NodeId, count: usize, out: &mut String) -> Fallible<()> {
        let disk = self.disks.entry(node).or_default();
        disk.flushed = disk.flushed.saturating_add(count).min(disk.entries.len());
        let entries = (disk.flushed - disk.before) as u64;
        self.give(node, Event::Flushed { entries }, out)
    }

    /// Makes the replica of a node from its disk.
    fn start(&mut self, me: Member, committed: Lsn, configuration: Configuration, out: &mut String) -> Fallible<()> {
        let disk = self.disks.entry(me.node).or_default();
        (disk.before, disk.flushed) = (disk.entries.len(), disk.entries.len());
        let restored = disk.restore(committed, disk.before > 0 && !self.options.durable);
        self.applied
            .insert(me.node, disk.records().iter().take(committed.0 as usize).map(|r| text(&r.payload)).collect());
        let mut actions = Actions::new();
        let (id, options) = (PartitionId(0), self.options);
        let replica = Replica::new(id, me, configuration, restored, options, self.now, &mut actions);
        self.replicas.insert(me.node, replica);
        self.carry_out(me.node, actions, out)
    }

    /// Everything that was said to a node, and by it, is lost.
    fn cut_off(&mut self, node: NodeId, out: &mut String) -> Fallible<()> {
        let links: Vec<_> = self.network.keys().copied().filter(|(from, to)| *from == node || *to == node).collect();
        for (from, to) in links {
            self.network.remove(&(from, to));
            if to == node {
                self.give(from, Event::PeerLost { peer: node }, out)?;
            }
        }
        self.late.retain(|(_, to), _| *to != node);
        self.reads.retain(|(reader, _), _| *reader != node);
        Ok(())
    }

    fn send(&mut self, node: NodeId, out: &mut String) -> Fallible<()> {
        for to in self.replicas.keys().copied().collect::<Vec<_>>() {
            while self.network.contains_key(&(node, to))
                && let Some(body) = self.replicas.get_mut(&node).ok_or("no such node")?.poll_prepare(self.now, to)
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
                if self.disks.get(&node).is_some_and(|disk| disk.flushed < disk.entries.len()) {
                    self.flush(node, usize::MAX, out)?;
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

    /// Sends the copy of the table that a leader wanted to send.
    fn copy(&mut self, leader: NodeId, learner: NodeId, out: &mut String) -> Fallible<()> {
        let sent = self.copies.remove(&(leader, learner)).ok_or("no copy is wanted")?;
        let end = self.replicas[&leader].committed();
        let records = self.disks[&leader].records()[..end.0 as usize].to_vec();
        let start = records.last().map(|r| r.position).unwrap_or_default();
        let bytes = records.iter().map(|r| text(&r.payload)).collect::<Vec<_>>().join(" ").into_bytes();
        self.disks.entry(learner).or_default().copied = records;
        for body in [
            PeerBody::CopyBegin { start, sent },
            PeerBody::CopyPart { sent, number: 0, bytes },
            PeerBody::CopyEnd { sent, parts: 1, end, digest: 0 },
        ] {
            self.carry_out(leader, vec![Action::Send { to: learner, body }], out)?;
        }
        self.give(leader, Event::CopySent { to: learner, start }, out)
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
        let mut number = |name| args.take_key(name).map(str::parse::<u64>).transpose();
        let [lose, memory] = [number("lose")?, number("memory")?].map(|n| n.map(|n| n as usize));
        let (committed, epoch, count) = (number("committed")?, number("epoch")?, number("count")?);
        let min_in_sync = number("min_in_sync")?;
        let count = count.map_or(usize::MAX, |count| count as usize);
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        args.reject_next()?;
        let node = |at: usize| -> Fallible<NodeId> { Ok(words.get(at).ok_or("a node is missing")?.parse()?) };
        let nodes = |from: usize| -> Fallible<Vec<NodeId>> { (from..words.len()).map(node).collect() };
        match command.name.as_str() {
            "options" => {
                self.options.min_in_sync = min_in_sync.map_or(1, |n| n as u16);
                self.options.durable = !words.contains(&"memory");
            }
            "cluster" => {
                let nodes = nodes(0)?;
                let configuration = self.configuration(1, &nodes);
                self.configurations.push(configuration.clone());
                for node in nodes {
                    self.start(self.member(node), Lsn(0), configuration.clone(), &mut out)?;
                    self.flush(node, usize::MAX, &mut out)?;
                }
            }
            "connect" => {
                let disk = words.get(2).map_or(Ok(1), |disk| disk.parse())?;
                self.connect(node(0)?, node(1)?, DiskId(disk), &mut out)?;
            }
            "disconnect" => {
                self.network.remove(&(node(0)?, node(1)?));
                self.network.remove(&(node(1)?, node(0)?));
                self.give(node(0)?, Event::PeerLost { peer: node(1)? }, &mut out)?;
            }
            "restart" => {
                let node = node(0)?;
                let known = self.replicas[&node].committed();
                self.cut_off(node, &mut out)?;
                let disk = self.disks.entry(node).or_default();
                disk.flushed = if memory.is_some() { 0 } else { disk.flushed };
                let unflushed = disk.entries.len() - disk.flushed;
                disk.entries.truncate(disk.entries.len() - lose.or(memory).unwrap_or(usize::MAX).min(unflushed));
                let configuration = match epoch {
                    Some(epoch) => self.configurations.iter().find(|c| c.epoch == Epoch(epoch)),
                    None => self.configurations.last(),
                };
                let configuration = configuration.ok_or("no such epoch")?.clone();
                self.start(self.member(node), committed.map_or(known, Lsn), configuration, &mut out)?;
            }
            "wipe" => {
                let me = Member { node: node(0)?, disk: DiskId(2) };
                let configuration = self.configurations.last().ok_or("no cluster")?.clone();
                let leader = configuration.leader.node;
                self.cut_off(me.node, &mut out)?;
                self.disks.remove(&me.node);
                self.start(me, Lsn(0), configuration, &mut out)?;
                if leader != me.node {
                    self.connect(leader, me.node, me.disk, &mut out)?;
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
            "flush" => self.flush(node(0)?, count, &mut out)?,
            "read" => {
                let (node, to) = (node(0)?, node(1)?);
                let after = self.reads.remove(&(node, to)).ok_or("nothing is read")?;
                let records = self.disks[&node].records();
                let mut previous = after.0.checked_sub(1).map(|at| records[at as usize].position).unwrap_or_default();
                let mut records = records[after.0 as usize..].to_vec();
                records.truncate(count);
                if words.get(2) == Some(&"lost") {
                    records.clear();
                    previous.epoch = Epoch(0);
                }
                self.give(node, Event::LogRead { to, previous, records }, &mut out)?;
            }
            "copy" => self.copy(node(0)?, node(1)?, &mut out)?,
            "kept" => self.give(node(0)?, Event::CopyKept, &mut out)?,
            "controller" => {
                let reachable = words.get(1) == Some(&"back");
                self.give(node(0)?, Event::Controller { reachable }, &mut out)?;
            }
            "handoff" => {
                let leaves = words.last() == Some(&"leave");
                let to = if leaves || words.len() < 2 { None } else { Some(node(1)?) };
                self.give(node(0)?, Event::Handoff { to, leaves }, &mut out)?;
            }
            "drop" => self.give(node(0)?, Event::DropFollower { node: node(1)? }, &mut out)?,
            "send" => self.send(node(0)?, &mut out)?,
            "lose" => {
                let queue = self.network.get_mut(&(node(0)?, node(1)?)).ok_or("no such connection")?;
                queue.drain(..count.min(queue.len()));
            }
            "keep" => {
                let way = (node(0)?, node(1)?);
                let queue = self.network.get_mut(&way).ok_or("no such connection")?;
                self.late.entry(way).or_default().extend(queue.drain(..));
            }
            "late" => {
                let way = (node(0)?, node(1)?);
                for (epoch, body) in self.late.remove(&way).ok_or("nothing is late")? {
                    self.give(way.1, Event::Message { from: way.0, epoch, body }, &mut out)?;
                }
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
                self.configurations.push(configuration.clone());
                for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                    self.give(node, Event::ConfigChanged(configuration.clone()), &mut out)?;
                }
            }
            "decide" => {
                for (epoch, change) in std::mem::take(&mut self.proposals) {
                    let proposal = Proposal { id: 0, partition: PartitionId(0), epoch, change };
                    match configuration::apply(self.configurations.last(), &proposal) {
                        Ok(next) => {
                            writeln!(out, "controller: {}", configuration_text(&next))?;
                            self.configurations.push(next);
                        }
                        Err(refusal) => writeln!(out, "controller: {refusal}")?,
                    }
                }
            }
            "forget" => self.proposals.clear(),
            "learn" => {
                let newest = self.configurations.last().ok_or("no cluster")?.clone();
                self.give(node(0)?, Event::ConfigChanged(newest), &mut out)?;
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
