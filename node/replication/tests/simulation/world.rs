//! A little cluster around the real core: nodes with disks, connections, a controller, and everything that can go wrong
//! with them.

use crate::{
    checks::{Checks, Verdict, ensure},
    controller::Controller,
    disk::{Disk, DiskRules, Harm, PARTITION},
    media::Fate,
    random::Random,
    writes::write_of,
};
use kv_proto::{
    cluster_map::Configuration,
    control::Change,
    ids::{DiskId, Epoch, Lsn, Member, NodeId},
    replication::PeerBody,
    stats::Role,
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, LogEntry, Options, Outcome, Replica, Restored, Token, rules::Rules},
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
    pub(crate) checkpoints: u64,
    pub(crate) copies: u64,
    /// Segments that were let go.
    pub(crate) gone: u64,
    /// Batches that were written by a process that ended before they were synced.
    pub(crate) torn: u64,
    /// Bits that were turned around, and what came of it.
    pub(crate) flipped: u64,
    pub(crate) cut_short: u64,
    pub(crate) faulty: u64,
    pub(crate) wiped: u64,
    /// Runs that end with a replica that needs a copy of the table.
    pub(crate) needs_copy: u64,
}

impl Coverage {
    pub(crate) fn counts(self) -> [u64; 15] {
        let Coverage { acknowledged, served, cuts, fetches, reads, gaps, unknown, .. } = self;
        let Coverage { checkpoints, copies, gone, torn, flipped, cut_short, faulty, wiped, .. } = self;
        [
            acknowledged,
            served,
            cuts,
            fetches,
            reads,
            gaps,
            unknown,
            checkpoints,
            copies,
            gone,
            torn,
            flipped,
            cut_short,
            faulty,
            wiped,
        ]
    }
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
        self.checkpoints += other.checkpoints;
        self.copies += other.copies;
        self.gone += other.gone;
        self.torn += other.torn;
        self.flipped += other.flipped;
        self.cut_short += other.cut_short;
        self.faulty += other.faulty;
        self.wiped += other.wiped;
        self.needs_copy += other.needs_copy;
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
    /// Whether disks are damaged and replaced.
    pub(crate) harmful: bool,
    pub(crate) rules: Rules,
    pub(crate) disk_rules: DiskRules,
}

impl Plan {
    pub(crate) fn of(seed: u64, rules: Rules, disk_rules: DiskRules) -> Self {
        let durable = !seed.is_multiple_of(3);
        let calm = [2, 4, 8, 16][(seed / 8 % 4) as usize];
        let sloppy = [1, 3, 9][(seed / 4 % 3) as usize];
        let (intervene, harmful) = (seed % 5 > 1, durable && seed / 2 % 7 < 3);
        Plan { seed, nodes: 2 + (seed % 2) as usize, durable, intervene, calm, sloppy, harmful, rules, disk_rules }
    }
}

pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) disk: Disk,
    pub(crate) up: bool,
    /// Which start of its process this is.
    pub(crate) life: u32,
    /// Something of its disk is missing.
    pub(crate) lacks: bool,
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
    pub(crate) random: Random,
    pub(crate) now: Instant64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) controller: Controller,
    /// By who made it and to whom.
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    /// What was on connections that are gone and may still arrive.
    pub(crate) late: BTreeMap<(usize, usize), VecDeque<Letter>>,
    pub(crate) checks: Checks,
    /// A member of whose disk something is missing.
    pub(crate) impaired: Option<usize>,
    disks: u128,
    pub(crate) coverage: Coverage,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let member = |i| Member { node: NodeId::new(&format!("n{i}")).expect("a name"), disk: DiskId(1) };
        let node = |i| Node {
            member: member(i),
            disk: Disk::new(member(i), plan.disk_rules, 6 + (plan.seed % 5) as usize),
            up: true,
            life: 0,
            lacks: false,
            replica: None,
            reads: VecDeque::new(),
        };
        let (rules, grace) = (plan.rules, Duration::from_millis(100 * (plan.seed / 32 % 4)));
        let message_bytes = [120, 400][(plan.seed / 16 % 2) as usize];
        World {
            options: Options { max_pending_records: 8, message_bytes, grace, rules, ..Options::default() },
            random: Random::new(plan.seed),
            now: Instant64(0),
            nodes: (0..plan.nodes).map(node).collect(),
            controller: Controller::new(member(0), (1..plan.nodes).map(member).collect()),
            links: BTreeMap::new(),
            late: BTreeMap::new(),
            checks: Checks::new(plan.durable, plan.nodes),
            impaired: None,
            disks: 1,
            coverage: Coverage::default(),
            plan,
        }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
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
                Action::Apply(record) => {
                    let digest = self.nodes[node].disk.apply(&record);
                    self.checks.apply(node, &record, digest)?;
                }
                Action::Reply { token, outcome } if token.0 < BARRIERS => match outcome {
                    Outcome::Committed => {
                        self.coverage.acknowledged += 1;
                        let members: Vec<_> = configuration
                            .members()
                            .map(|m| self.index(m.node))
                            .filter(|i| !self.nodes[*i].lacks)
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
        if appended {
            self.nodes[node].disk.hand_over();
        }
        if appended && !self.plan.durable { self.tell_flushed(node) } else { Ok(()) }
    }

    /// Writes and syncs some of what a node has appended.
    pub(crate) fn sync(&mut self, node: usize, count: usize) -> Verdict {
        self.nodes[node].disk.write(count, Fate::Well);
        self.tell_flushed(node)
    }

    pub(crate) fn sync_all(&mut self, node: usize) -> Verdict {
        while self.nodes[node].disk.unsynced() > 0 {
            self.sync(node, usize::MAX)?;
        }
        self.tell_flushed(node)
    }

    pub(crate) fn tell_flushed(&mut self, node: usize) -> Verdict {
        match self.nodes[node].disk.take_news(!self.plan.durable) {
            Some(entries) => self.give(node, Event::Flushed { entries }),
            None => Ok(()),
        }
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) -> Verdict {
        let leads = self.nodes[from].replica.as_ref().is_some_and(|r| {
            r.role() == Role::Leader && r.configuration().in_sync.iter().any(|m| m.node == self.nodes[to].member.node)
        });
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
        if !self.nodes[node].disk.can_read(after) {
            self.nodes[node].reads.push_back((to, after));
            return Ok(());
        }
        let (previous, records) = self.nodes[node].disk.read(after);
        self.give(node, Event::LogRead { to, previous, records })
    }

    pub(crate) fn crash(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].up, false) {
            return;
        }
        self.checks.crash(node);
        let unsynced = self.nodes[node].disk.unsynced() as u64;
        if unsynced > 0 && self.below(2) == 0 {
            let count = 1 + self.below(unsynced) as usize;
            self.nodes[node].disk.write(count, Fate::Fails);
            self.coverage.torn += 1;
        }
        let power = self.below(2) == 0;
        self.note_upkeep(node);
        self.nodes[node].disk.crash(power, &mut self.random);
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

    pub(crate) fn note_upkeep(&mut self, node: usize) {
        if let Some(process) = &mut self.nodes[node].disk.process {
            let upkeep = &mut process.upkeep;
            self.coverage.checkpoints += std::mem::take(&mut upkeep.checkpoints);
            self.coverage.copies += std::mem::take(&mut upkeep.copies);
            self.coverage.gone += std::mem::take(&mut upkeep.gone);
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
        let restored = self.open(node)?;
        let (mut actions, me) = (Actions::new(), self.nodes[node].member);
        let replica = Replica::new(PARTITION, me, configuration, restored, self.options, self.now, &mut actions);
        self.nodes[node].replica = Some(replica);
        self.carry_out(node, actions)
    }

    /// The log of a node is opened, with what its disk has.
    pub(crate) fn open(&mut self, node: usize) -> Result<Restored, String> {
        let disk = &mut self.nodes[node].disk;
        let restored = disk.open()?;
        if disk.faulty {
            self.coverage.faulty += 1;
            return Ok(restored);
        }
        let epoch = restored.configuration.as_ref().map(|c| c.epoch).unwrap_or_default();
        let applied = &disk.durable()[..restored.applied.lsn.0 as usize];
        let digest = disk.process.as_ref().expect("it was opened").digest();
        self.checks.restore(node, epoch, applied, digest)?;
        Ok(restored)
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
        let (payload, operation_id) = write_of(number);
        self.give(node, Event::ClientWrite { payload, operation_id, token: Token(number) })
    }

    pub(crate) fn decide_one(&mut self) {
        let waiting = self.controller.proposals.len() as u64;
        if waiting > 0 {
            let at = self.below(waiting) as usize;
            let proposal = self.controller.proposals[at].clone();
            // Carried out, lost, or carried out and repeated.
            let fate = self.below(8);
            if fate != 0 {
                self.decide(proposal.epoch, proposal.change);
            }
            if fate < 6 {
                self.controller.proposals.swap_remove(at);
            }
        }
    }

    /// The controller decides, unless a person sees that nobody who has everything would be left.
    pub(crate) fn decide(&mut self, epoch: Epoch, change: Change) {
        let members = self.controller.configurations.len();
        self.controller.decide(epoch, change);
        let whole = |m: Member| {
            let at = self.index(m.node);
            self.nodes[at].member == m && self.impaired != Some(at)
        };
        if !self.controller.current().members().any(whole) {
            self.controller.configurations.truncate(members);
        }
    }

    /// Something happens to the disk of a node that is down, if the other members have everything.
    pub(crate) fn harm(&mut self, node: usize) -> Verdict {
        let current = self.controller.current();
        let (me, id) = (self.nodes[node].member, self.nodes[node].member.node);
        let is_member = current.members().any(|m| m.node == id);
        let others: Vec<_> = current.members().filter(|m| m.node != id).map(|m| self.index(m.node)).collect();
        let whole = others.iter().all(|i| self.checks.has_all(self.nodes[*i].disk.durable()));
        let harmed = self.nodes[node].disk.faulty || !self.nodes[node].disk.is_whole();
        if self.nodes[node].up || harmed || self.impaired.is_some() || is_member && (others.is_empty() || !whole) {
            return Ok(());
        }
        if self.below(3) == 0 {
            self.replace_disk(node);
            self.coverage.wiped += 1;
        } else {
            let harm = self.nodes[node].disk.damage(&mut self.random)?;
            self.coverage.flipped += 1;
            self.coverage.cut_short += u64::from(harm == Harm::Cut);
            if harm == Harm::None {
                return Ok(());
            }
        }
        self.nodes[node].lacks = true;
        if self.controller.current().is_member(me) {
            self.impaired = Some(node);
        }
        Ok(())
    }

    /// A node has an empty disk from now on.
    pub(crate) fn replace_disk(&mut self, at: usize) {
        self.disks += 1;
        let (disk, node) = (DiskId(self.disks), &mut self.nodes[at]);
        node.member.disk = disk;
        node.disk = node.disk.replacement(node.member);
        self.checks.forget(at);
    }

    /// Whether what was missing is there again, with all that the leader may commit because of what was said before.
    fn look_after_impaired(&mut self) {
        let Some(node) = self.impaired else { return };
        let current = self.controller.current();
        let id = self.nodes[node].member.node;
        let leader = &self.nodes[self.index(current.leader.node)];
        let serves = |r: &Replica| r.configuration() == current && r.check_read().is_ok();
        let disk = &self.nodes[node].disk;
        let is_back = leader.replica.as_ref().is_some_and(serves)
            && self.nodes[node].replica.as_ref().is_some_and(|r| r.role() != Role::Refused)
            && disk.is_whole()
            && disk.durable().last().map(|r| r.position) == leader.disk.live().last().map(|r| r.position)
            && self.checks.has_all(disk.durable());
        if is_back || current.members().all(|m| m.node != id) {
            self.nodes[node].lacks = !is_back;
            self.impaired = None;
        }
    }

    pub(crate) fn check(&mut self) -> Verdict {
        self.look_after_impaired();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(replica) = &node.replica else { continue };
            if node.disk.faulty {
                ensure(replica.role() == Role::Refused, || format!("node {at} is damaged and takes part"))?;
                continue;
            }
            self.checks.replica(at, replica, &node.disk)?;
            if replica.check_read().is_ok() {
                let members = replica.configuration().members().map(|m| self.index(m.node));
                let members = members.filter(|i| !self.nodes[*i].lacks);
                let members: Vec<_> =
                    members.map(|i| (i, &self.nodes[i].disk, self.nodes[i].replica.as_ref())).collect();
                self.checks.leader((at, node.life), replica, &members)?;
            }
        }
        Ok(())
    }
}
