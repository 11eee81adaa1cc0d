//! A little cluster around the real core: nodes with disks, connections, a controller, and everything that can go wrong
//! with them.

use crate::{
    checks::{Checks, Verdict},
    controller::Controller,
    disk::Disk,
};
use kv_proto::{
    cluster_map::Configuration,
    ids::{DiskId, Epoch, Lsn, Member, NodeId, PartitionId},
    replication::PeerBody,
    stats::Role,
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, LogEntry, Options, Outcome, Replica, Token, rules::Rules},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Tokens from here on are of barriers.
const BARRIERS: u64 = 1 << 32;

/// A message on its way, and the epoch that it was said in.
pub(crate) type Letter = (Epoch, PeerBody);

/// How often what the simulation is for happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) acknowledged: u64,
    /// Epochs in which somebody served.
    pub(crate) served: u64,
    pub(crate) cuts: u64,
    pub(crate) fetches: u64,
    pub(crate) reads: u64,
    pub(crate) gaps: u64,
    pub(crate) unknown: u64,
}

impl std::ops::AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.served += other.served;
        self.cuts += other.cuts;
        self.fetches += other.fetches;
        self.reads += other.reads;
        self.gaps += other.gaps;
        self.unknown += other.unknown;
    }
}

/// What differs between runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// Whether a write is acknowledged when it is on disk, or when it is in memory everywhere.
    pub(crate) durable: bool,
    /// Whether the leader is replaced, and members are dropped and added.
    pub(crate) intervene: bool,
    /// How rare crashes and lost connections are.
    pub(crate) calm: u64,
    /// How rare it is that everything goes well for a moment.
    pub(crate) sloppy: u64,
    pub(crate) rules: Rules,
}

impl Plan {
    pub(crate) fn of(seed: u64, rules: Rules) -> Self {
        let durable = !seed.is_multiple_of(3);
        let calm = [2, 4, 8, 16][(seed / 8 % 4) as usize];
        let sloppy = [1, 3, 9][(seed / 4 % 3) as usize];
        Plan { seed, nodes: 2 + (seed % 2) as usize, durable, intervene: seed % 5 > 1, calm, sloppy, rules }
    }
}

pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) disk: Disk,
    pub(crate) up: bool,
    /// Which start of its process this is.
    pub(crate) life: u32,
    /// Once the process knows a map.
    pub(crate) replica: Option<Replica>,
    pub(crate) reads: VecDeque<(NodeId, Lsn)>,
}

/// A connection that a leader made to a follower.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) there: VecDeque<Letter>,
    pub(crate) back: VecDeque<Letter>,
    /// The process at its other end is gone; who made it has not noticed.
    pub(crate) dead: bool,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    options: Options,
    random: u64,
    pub(crate) now: Instant64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) controller: Controller,
    /// By who made it and to whom.
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    /// What was on connections that are gone and may still arrive.
    pub(crate) late: BTreeMap<(usize, usize), VecDeque<Letter>>,
    pub(crate) checks: Checks,
    coverage: Coverage,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let member = |i| Member { node: NodeId::new(&format!("n{i}")).expect("a name"), disk: DiskId(1) };
        let node = |i| Node {
            member: member(i),
            disk: Disk::default(),
            up: true,
            life: 0,
            replica: None,
            reads: VecDeque::new(),
        };
        let (rules, grace) = (plan.rules, Duration::from_millis(100 * (plan.seed / 32 % 4)));
        let message_bytes = [80, 220][(plan.seed / 16 % 2) as usize];
        World {
            options: Options { max_pending_records: 8, message_bytes, grace, rules, ..Options::default() },
            random: plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            now: Instant64(0),
            nodes: (0..plan.nodes).map(node).collect(),
            controller: Controller::new(member(0), (1..plan.nodes).map(member).collect()),
            links: BTreeMap::new(),
            late: BTreeMap::new(),
            checks: Checks::new(plan.durable, plan.nodes),
            coverage: Coverage::default(),
            plan,
        }
    }

    /// xorshift64: the tests need a sequence that a seed fixes, not a good one.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    pub(crate) fn coverage(&self) -> Coverage {
        Coverage { served: self.checks.epochs_served(), ..self.coverage }
    }

    pub(crate) fn any_node(&mut self) -> usize {
        self.below(self.plan.nodes as u64) as usize
    }

    pub(crate) fn index(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|n| n.member.node == id).expect("a node")
    }

    pub(crate) fn give(&mut self, node: usize, event: Event) -> Verdict {
        let mut actions = Actions::new();
        let Some(replica) = &mut self.nodes[node].replica else { return Ok(()) };
        replica.handle(self.now, event, &mut actions);
        self.carry_out(node, actions)
    }

    fn carry_out(&mut self, node: usize, actions: Actions) -> Verdict {
        let replica = self.nodes[node].replica.as_ref().expect("who acts has a replica");
        let (configuration, committed) = (replica.configuration().clone(), replica.committed());
        let mut appended = false;
        for action in actions {
            match action {
                Action::Append(entry) => {
                    self.coverage.cuts += u64::from(matches!(entry, LogEntry::Cut { .. }));
                    self.checks.append(node, &entry, self.nodes[node].disk.live())?;
                    self.nodes[node].disk.append(entry, committed);
                    appended = true;
                }
                Action::ReadLog { to, after } => {
                    self.coverage.reads += 1;
                    self.nodes[node].reads.push_back((to, after));
                }
                Action::Propose(change) => self.controller.propose(configuration.epoch, change),
                Action::Apply(record) => self.checks.apply(node, &record)?,
                Action::Reply { token, outcome } if token.0 < BARRIERS => match outcome {
                    Outcome::Committed => {
                        self.coverage.acknowledged += 1;
                        let members: Vec<_> = configuration
                            .members()
                            .map(|m| self.index(m.node))
                            .map(|i| (i, &self.nodes[i].disk))
                            .collect();
                        self.checks.acknowledge(token.0, &members)?;
                    }
                    Outcome::Refused(_) => self.checks.refuse(token.0),
                    Outcome::Unknown => self.coverage.unknown += 1,
                },
                Action::Reply { .. } => {}
                Action::Send { to, body } => {
                    self.checks.speak(node, configuration.epoch);
                    let to = self.index(to);
                    let letter = (configuration.epoch, body);
                    self.coverage.fetches += u64::from(matches!(letter.1, PeerBody::Fetch { .. }));
                    self.coverage.gaps += u64::from(matches!(letter.1, PeerBody::Gap { .. }));
                    match letter.1 {
                        PeerBody::Prepare { .. } | PeerBody::Beacon { .. } | PeerBody::Fetch { .. } => {
                            if let Some(link) = self.links.get_mut(&(node, to)) {
                                link.there.push_back(letter);
                            }
                        }
                        PeerBody::Report { .. } | PeerBody::Gap { .. } | PeerBody::Tail { .. } => {
                            if let Some(link) = self.links.get_mut(&(to, node)) {
                                link.back.push_back(letter);
                            }
                        }
                    }
                }
            }
        }
        if appended && !self.plan.durable { self.tell_flushed(node) } else { Ok(()) }
    }

    /// Syncs some entries of a node.
    pub(crate) fn sync(&mut self, node: usize, count: usize) -> Verdict {
        self.nodes[node].disk.sync(count);
        self.tell_flushed(node)
    }

    pub(crate) fn tell_flushed(&mut self, node: usize) -> Verdict {
        let disk = &self.nodes[node].disk;
        let entries = if self.plan.durable { disk.flushed_entries() } else { disk.replicated_entries() };
        self.give(node, Event::Flushed { entries })
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) -> Verdict {
        let leads = self.nodes[from]
            .replica
            .as_ref()
            .is_some_and(|r| r.role() == Role::Leader && r.configuration().in_sync.contains(&self.nodes[to].member));
        if !leads || !self.nodes[to].up || self.links.contains_key(&(from, to)) {
            return Ok(());
        }
        self.links.insert((from, to), Link::default());
        let peer = self.nodes[to].member;
        self.give(from, Event::PeerConnected { peer })
    }

    pub(crate) fn disconnect(&mut self, from: usize, to: usize) -> Verdict {
        let Some(link) = self.links.remove(&(from, to)) else { return Ok(()) };
        for letter in link.there {
            if !link.dead && self.below(2) == 0 {
                self.late.entry((from, to)).or_default().push_back(letter);
            }
        }
        let peer = self.nodes[to].member.node;
        self.give(from, Event::PeerLost { peer })?;
        if self.below(2) == 0 {
            self.connect(from, to)?;
            self.hear_late(from, to)?;
        }
        Ok(())
    }

    pub(crate) fn hear_late(&mut self, from: usize, to: usize) -> Verdict {
        while let Some(letter) = self.late.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.hear(from, to, Some(letter))?;
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, from: usize, to: usize) -> Verdict {
        let id = self.nodes[to].member.node;
        while self.links.contains_key(&(from, to))
            && let Some(body) = self.nodes[from].replica.as_mut().and_then(|r| r.poll_prepare(id))
        {
            self.carry_out(from, vec![Action::Send { to: id, body }])?;
        }
        Ok(())
    }

    pub(crate) fn hear(&mut self, from: usize, to: usize, letter: Option<Letter>) -> Verdict {
        let Some((epoch, body)) = letter else { return Ok(()) };
        self.give(to, Event::Message { from: self.nodes[from].member.node, epoch, body })
    }

    pub(crate) fn deliver(&mut self, from: usize, to: usize) -> Verdict {
        let letter = self.links.get_mut(&(from, to)).filter(|l| !l.dead).and_then(|l| l.there.pop_front());
        self.hear(from, to, letter)?;
        let letter = self.links.get_mut(&(from, to)).and_then(|l| l.back.pop_front());
        self.hear(to, from, letter)
    }

    pub(crate) fn answer_read(&mut self, node: usize) -> Verdict {
        let Some((to, after)) = self.nodes[node].reads.pop_front() else { return Ok(()) };
        let (previous, records) = self.nodes[node].disk.read(after, 3);
        self.give(node, Event::LogRead { to, previous, records })
    }

    pub(crate) fn crash(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].up, false) {
            return;
        }
        self.checks.crash(node);
        let lost = self.below(self.nodes[node].disk.unsynced() as u64 + 1) as usize;
        self.nodes[node].disk.crash(lost);
        self.nodes[node].replica = None;
        self.nodes[node].reads.clear();
        self.late.retain(|(_, to), _| *to != node);
        for (_, link) in self.links.iter_mut().filter(|((_, to), _)| *to == node) {
            link.dead = true;
            link.there.clear();
        }
        while let Some(((from, to), link)) = self.links.extract_if(.., |(from, _), _| *from == node).next() {
            if !link.dead {
                self.late.entry((from, to)).or_default().extend(link.there);
            }
        }
    }

    pub(crate) fn start(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].up, true) {
            self.nodes[node].life += 1;
        }
    }

    /// A node learns a configuration, which may be an old one.
    pub(crate) fn learn(&mut self, node: usize, configuration: Configuration) -> Verdict {
        let is_host = self.nodes[node].up;
        if !is_host || self.nodes[node].replica.is_some() {
            return self.give(node, Event::ConfigChanged(configuration));
        }
        let restored = self.nodes[node].disk.restore();
        let epoch = restored.configuration.as_ref().map(|c| c.epoch).unwrap_or_default();
        let applied = restored.applied.lsn.0 as usize;
        self.checks.restore(node, epoch, &self.nodes[node].disk.durable()[..applied])?;
        let (mut actions, me) = (Actions::new(), self.nodes[node].member);
        let replica = Replica::new(PartitionId(0), me, configuration, restored, self.options, self.now, &mut actions);
        self.nodes[node].replica = Some(replica);
        self.carry_out(node, actions)
    }

    pub(crate) fn pass(&mut self, millis: u64) -> Verdict {
        self.now = self.now + Duration::from_millis(millis);
        for node in 0..self.nodes.len() {
            let due = self.nodes[node].replica.as_ref().and_then(Replica::poll_timeout);
            if due.is_some_and(|due| due <= self.now) {
                self.give(node, Event::Timeout)?;
            }
        }
        Ok(())
    }

    /// A client asks whoever leads, or believes that it does.
    pub(crate) fn write(&mut self, number: u64) -> Verdict {
        let (any, leader) = (self.any_node(), self.index(self.controller.current().leader.node));
        let node = if self.below(4) == 0 { any } else { leader };
        if self.nodes[node].replica.as_ref().is_none_or(|r| r.role() != Role::Leader) {
            return Ok(());
        }
        if self.below(6) == 0 {
            return self.give(node, Event::ClientBarrier { token: Token(BARRIERS + number) });
        }
        self.propose(node, number)
    }

    pub(crate) fn propose(&mut self, node: usize, number: u64) -> Verdict {
        self.checks.propose(number);
        let payload = number.to_le_bytes().as_slice().into();
        self.give(node, Event::ClientWrite { payload, operation_id: None, token: Token(number) })
    }

    pub(crate) fn decide_one(&mut self) {
        let waiting = self.controller.proposals.len() as u64;
        if waiting > 0 {
            let at = self.below(waiting) as usize;
            let proposal = self.controller.proposals[at].clone();
            // Carried out, lost, or carried out and repeated.
            let fate = self.below(8);
            if fate != 0 {
                self.controller.decide(proposal.epoch, proposal.change);
            }
            if fate < 6 {
                self.controller.proposals.swap_remove(at);
            }
        }
    }

    pub(crate) fn check(&mut self) -> Verdict {
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(replica) = &node.replica else { continue };
            self.checks.replica(at, replica, &node.disk)?;
            if replica.check_read().is_ok() {
                let members = replica.configuration().members().map(|m| self.index(m.node));
                let members: Vec<_> =
                    members.map(|i| (i, &self.nodes[i].disk, self.nodes[i].replica.as_ref())).collect();
                self.checks.leader((at, node.life), replica, &members)?;
            }
        }
        Ok(())
    }
}
