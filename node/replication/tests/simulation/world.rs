//! A little cluster around the real core: nodes with disks, connections, a controller, and everything that can go wrong
//! with them.

use crate::{
    checks::{Checks, Verdict, ensure},
    controller::Controller,
    disk::Disk,
};
use kv_proto::{
    cluster_map::Configuration,
    control::Change,
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
type Letter = (Epoch, PeerBody);

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

struct Node {
    member: Member,
    disk: Disk,
    up: bool,
    /// Which start of its process this is.
    life: u32,
    /// Once the process knows a map.
    replica: Option<Replica>,
    reads: VecDeque<(NodeId, Lsn)>,
}

/// A connection that a leader made to a follower.
#[derive(Default)]
struct Link {
    there: VecDeque<Letter>,
    back: VecDeque<Letter>,
    /// The process at its other end is gone; who made it has not noticed.
    dead: bool,
}

pub(crate) struct World {
    plan: Plan,
    options: Options,
    random: u64,
    now: Instant64,
    nodes: Vec<Node>,
    controller: Controller,
    /// By who made it and to whom.
    links: BTreeMap<(usize, usize), Link>,
    /// What was on connections that are gone and may still arrive.
    late: BTreeMap<(usize, usize), VecDeque<Letter>>,
    checks: Checks,
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
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    pub(crate) fn coverage(&self) -> Coverage {
        Coverage { served: self.checks.epochs_served(), ..self.coverage }
    }

    fn any_node(&mut self) -> usize {
        self.below(self.plan.nodes as u64) as usize
    }

    fn index(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|n| n.member.node == id).expect("a node")
    }

    fn give(&mut self, node: usize, event: Event) -> Verdict {
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
    fn sync(&mut self, node: usize, count: usize) -> Verdict {
        self.nodes[node].disk.sync(count);
        self.tell_flushed(node)
    }

    fn tell_flushed(&mut self, node: usize) -> Verdict {
        let disk = &self.nodes[node].disk;
        let entries = if self.plan.durable { disk.flushed_entries() } else { disk.replicated_entries() };
        self.give(node, Event::Flushed { entries })
    }

    fn connect(&mut self, from: usize, to: usize) -> Verdict {
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

    fn disconnect(&mut self, from: usize, to: usize) -> Verdict {
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

    fn hear_late(&mut self, from: usize, to: usize) -> Verdict {
        while let Some(letter) = self.late.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
            self.hear(from, to, Some(letter))?;
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize) -> Verdict {
        let id = self.nodes[to].member.node;
        while self.links.contains_key(&(from, to))
            && let Some(body) = self.nodes[from].replica.as_mut().and_then(|r| r.poll_prepare(id))
        {
            self.carry_out(from, vec![Action::Send { to: id, body }])?;
        }
        Ok(())
    }

    fn hear(&mut self, from: usize, to: usize, letter: Option<Letter>) -> Verdict {
        let Some((epoch, body)) = letter else { return Ok(()) };
        self.give(to, Event::Message { from: self.nodes[from].member.node, epoch, body })
    }

    fn deliver(&mut self, from: usize, to: usize) -> Verdict {
        let letter = self.links.get_mut(&(from, to)).filter(|l| !l.dead).and_then(|l| l.there.pop_front());
        self.hear(from, to, letter)?;
        let letter = self.links.get_mut(&(from, to)).and_then(|l| l.back.pop_front());
        self.hear(to, from, letter)
    }

    fn answer_read(&mut self, node: usize) -> Verdict {
        let Some((to, after)) = self.nodes[node].reads.pop_front() else { return Ok(()) };
        let (previous, records) = self.nodes[node].disk.read(after, 3);
        self.give(node, Event::LogRead { to, previous, records })
    }

    fn crash(&mut self, node: usize) {
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

    fn start(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].up, true) {
            self.nodes[node].life += 1;
        }
    }

    /// A node learns a configuration, which may be an old one.
    fn learn(&mut self, node: usize, configuration: Configuration) -> Verdict {
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

    fn pass(&mut self, millis: u64) -> Verdict {
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
    fn write(&mut self, number: u64) -> Verdict {
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

    fn propose(&mut self, node: usize, number: u64) -> Verdict {
        self.checks.propose(number);
        let payload = number.to_le_bytes().as_slice().into();
        self.give(node, Event::ClientWrite { payload, operation_id: None, token: Token(number) })
    }

    fn decide_one(&mut self) {
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

    /// Something happens.
    pub(crate) fn step(&mut self, number: u64) -> Verdict {
        let (node, other) = (self.any_node(), self.any_node());
        match self.below(40) {
            0..7 => {
                for burst in 0..=self.below(4) {
                    self.write(number * 32 + burst)?;
                }
            }
            7..10 => {
                let unsynced = self.nodes[node].disk.unsynced() as u64;
                if self.nodes[node].up && unsynced > 0 {
                    let count = 1 + self.below(unsynced) as usize;
                    self.nodes[node].disk.sync(count);
                    // A crash may come before the log can say so.
                    if self.below(4) > 0 {
                        self.tell_flushed(node)?;
                    }
                }
            }
            10..13 => self.send(node, other)?,
            13..21 => {
                self.deliver(node, other)?;
                self.deliver(other, node)?;
            }
            21..23 => {
                let millis = self.below(400);
                self.pass(millis)?;
            }
            29 if self.below(self.plan.calm) == 0 => self.disconnect(node, other)?,
            29 | 30 => {
                let letter = self.late.get_mut(&(node, other)).and_then(VecDeque::pop_front);
                self.hear(node, other, letter)?;
            }
            31 => self.connect(node, other)?,
            34 if self.below(2 * self.plan.calm) == 0 => self.crash(node),
            34 => self.start(node),
            35 => self.answer_read(node)?,
            36 => self.decide_one(),
            37 => {
                let configurations = self.controller.configurations.len() as u64;
                let back = if self.below(8) == 0 { self.below(configurations) } else { 0 };
                let configuration = self.controller.configurations[(configurations - 1 - back) as usize].clone();
                self.learn(node, configuration)?;
            }
            38 | 39 if self.plan.intervene && self.below(self.plan.calm) < 2 => {
                if self.plan.durable && self.below(4) == 0 {
                    self.usurp(number * 32 + 10)?;
                } else {
                    self.intervene()?;
                }
            }
            _ if self.below(self.plan.sloppy) == 0 => self.work()?,
            _ => {}
        }
        self.check()
    }

    /// Everything goes well for a moment: what was written is sent, written to disk, and answered.
    fn work(&mut self) -> Verdict {
        self.pass(20)?;
        self.decide_one();
        for from in 0..self.nodes.len() {
            if self.below(8) == 0 {
                self.start(from);
                self.learn(from, self.controller.current().clone())?;
            }
            for to in 0..self.nodes.len() {
                self.connect(from, to)?;
                self.send(from, to)?;
                self.deliver(from, to)?;
            }
            let count = self.nodes[from].disk.unsynced();
            if self.nodes[from].up && self.below(2) == 0 {
                self.sync(from, count)?;
            }
        }
        Ok(())
    }

    /// A person, who sees everything, puts another in the place of a leader that is down and cannot lead on in its epoch;
    /// leaves one out; or takes one back once it holds everything that is committed. Replicas do that by rules that are
    /// not there yet.
    fn intervene(&mut self) -> Verdict {
        let current = self.controller.current().clone();
        let (epoch, leader) = (current.epoch, current.leader);
        let at = self.index(leader.node);
        let begun = |disk: &Disk| disk.epoch() == epoch;
        // Where memory is enough, who may have lost what is known only as long as the members stay the same.
        let what = if self.plan.durable { self.below(6) } else { 2 };
        if what > 0 && self.nodes[at].up && begun(&self.nodes[at].disk) && self.below(2) == 0 {
            self.crash(at);
        }
        let is_over = !self.nodes[at].up && begun(&self.nodes[at].disk);
        let chosen = self.below(2) as usize;
        let follower = current.in_sync.get(chosen % current.in_sync.len().max(1)).copied();
        let rest = current.in_sync.iter().copied().filter(|m| Some(*m) != follower);
        match (what, follower) {
            (0, Some(follower)) => self.controller.decide(epoch, Change::Drop { leader, followers: vec![follower] }),
            (1, Some(follower)) if is_over => {
                let in_sync = rest.take(self.below(2) as usize).collect();
                self.controller.decide(epoch, Change::Takeover { follower, in_sync });
            }
            (2, Some(to)) if is_over => {
                let in_sync = rest.chain([leader]).collect();
                self.controller.decide(epoch, Change::Handoff { leader, to, in_sync });
            }
            (3.., _) if is_over => {
                let outside = (0..self.nodes.len()).find(|n| !current.is_member(self.nodes[*n].member));
                if let Some(learner) = outside {
                    self.catch_up(learner, at)?;
                    let learner = self.nodes[learner].member;
                    self.controller.decide(epoch, Change::Add { leader, learner });
                }
            }
            _ => {}
        }
        if self.below(2) == 0 {
            for node in 0..self.nodes.len() {
                self.start(node);
                self.learn(node, self.controller.current().clone())?;
            }
        }
        Ok(())
    }

    /// The worst moments for it: a leader that has what it sent nobody is replaced, the next one as well, and the first is
    /// taken back.
    fn usurp(&mut self, number: u64) -> Verdict {
        for _ in 0..60 {
            self.work()?;
        }
        let (first, second) = (self.index(self.controller.current().leader.node), self.below(2) as usize);
        self.write_alone(first, number)?;
        self.crash(first);
        let (epoch, leader) = (self.controller.current().epoch, self.controller.current().leader);
        let mut others = self.controller.current().in_sync.clone();
        if others.is_empty() || self.nodes[first].disk.epoch() != epoch {
            return Ok(());
        }
        let follower = others.swap_remove(second % others.len());
        self.controller.decide(epoch, Change::Takeover { follower, in_sync: others });
        let second = self.index(follower.node);
        for _ in 0..60 {
            self.work()?;
        }
        self.write_alone(second, number + 10)?;
        self.crash(second);
        let (epoch, now_leads) = (self.controller.current().epoch, self.controller.current().leader);
        let begun = self.nodes[second].disk.epoch() == epoch;
        if now_leads == follower && begun && !self.controller.current().is_member(leader) {
            self.catch_up(first, second)?;
            self.controller.decide(epoch, Change::Add { leader: follower, learner: leader });
        }
        // What is streamed to cure that is lost in part.
        for _ in 0..self.below(40) {
            self.work()?;
            if self.below(4) == 0 {
                self.send(second, first)?;
                self.disconnect(second, first)?;
            }
        }
        Ok(())
    }

    /// A leader takes writes and syncs them, and sends nothing.
    fn write_alone(&mut self, node: usize, number: u64) -> Verdict {
        for number in number..number + self.below(8) {
            if self.nodes[node].replica.as_ref().is_some_and(|r| r.check_write(self.now).is_ok()) {
                self.propose(node, number)?;
            }
        }
        let count = self.below(self.nodes[node].disk.unsynced() as u64 + 1) * self.below(2);
        let count = count as usize;
        if self.nodes[node].up { self.sync(node, count) } else { Ok(()) }
    }

    /// Brings everything that is committed onto the disk of a node that is no member. What else it has stays, unless it
    /// stands in the way.
    fn catch_up(&mut self, node: usize, leader: usize) -> Verdict {
        self.crash(node);
        let committed = self.nodes[leader].disk.durable()[..self.checks.committed()].to_vec();
        for record in committed {
            let (lsn, log) = (record.position.lsn, self.nodes[node].disk.durable());
            match log.get(lsn.0 as usize - 1) {
                Some(here) if here.position == record.position => continue,
                Some(_) => {
                    let cut = LogEntry::Cut { from: lsn };
                    self.checks.append(node, &cut, log)?;
                    self.nodes[node].disk.append(cut, Lsn(0));
                }
                None => {}
            }
            let disk = &mut self.nodes[node].disk;
            disk.append(LogEntry::Record(record), Lsn(0));
            disk.sync(disk.unsynced());
        }
        self.nodes[node].disk.crash(0);
        Ok(())
    }

    fn check(&mut self) -> Verdict {
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

    /// Lets time pass without faults.
    fn run_well(&mut self, millis: u64) -> Verdict {
        for _ in 0..millis / 50 {
            self.pass(50)?;
            self.controller.proposals.drain(..).collect::<Vec<_>>().into_iter().for_each(|proposal| {
                self.controller.decide(proposal.epoch, proposal.change);
            });
            let current = self.controller.current().clone();
            for node in 0..self.nodes.len() {
                self.learn(node, current.clone())?;
                for other in 0..self.nodes.len() {
                    self.connect(node, other)?;
                    self.send(node, other)?;
                    while self.links.get(&(node, other)).is_some_and(|l| !l.there.is_empty() || !l.back.is_empty()) {
                        self.deliver(node, other)?;
                    }
                }
                while !self.nodes[node].reads.is_empty() {
                    self.answer_read(node)?;
                }
                self.sync(node, self.nodes[node].disk.unsynced())?;
            }
            self.check()?;
        }
        Ok(())
    }

    /// No more faults: everything is served and equal within a bounded time.
    pub(crate) fn heal(&mut self, number: u64) -> Verdict {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        for (from, to) in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&(from, to)].dead {
                self.disconnect(from, to)?;
            }
        }
        self.run_well(4_000)?;
        let leader = self.index(self.controller.current().leader.node);
        let replica = self.nodes[leader].replica.as_ref().ok_or("no leader in the end")?;
        let trouble = replica.trouble(self.now);
        ensure(replica.check_write(self.now).is_ok() && trouble.is_none(), || {
            format!("node {leader} does not serve in the end: {trouble:?}")
        })?;
        let before = self.checks.committed();
        self.propose(leader, number)?;
        self.run_well(400)?;
        ensure(self.checks.committed() == before + 1, || "a last write does not commit".into())?;
        for member in self.controller.current().members() {
            let node = self.index(member.node);
            self.checks.settled(node, self.nodes[node].replica.as_ref().ok_or("a member is gone in the end")?)?;
        }
        Ok(())
    }
}
