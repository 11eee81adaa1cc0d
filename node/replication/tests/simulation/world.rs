//! The cluster: what happens to it is taken from the queue one by one, given to whom it is for, and what comes of it is put back.

use crate::{
    checks::{Checks, Counted, Verdict, ensure},
    clients::{Clients, Waiting},
    controller::Controller,
    disk::Disk,
    network::Network,
    node::{Clock, Node, Place},
    plan::{Coverage, Plan},
    queue::{Happening, MS, Queue},
    random::Random,
};
use kv_proto::{
    control::{Change, Proposal},
    ids::{Member, NodeId, PartitionId},
    replication::PeerBody,
    stats::Role,
};
use kv_replication::replica::{Action, Actions, Event, LogEntry, Outcome, ReadCheck, Refusal, Replica};
use std::collections::BTreeSet;

/// More than any run has: who has more does the same thing again and again.
const MAX_EVENTS: u64 = 100_000;

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) queue: Queue,
    pub(crate) nodes: Vec<Node>,
    pub(crate) controller: Controller,
    pub(crate) network: Network,
    pub(crate) clients: Clients,
    /// By partition.
    pub(crate) checks: Vec<Checks>,
    /// There are no more faults.
    pub(crate) healing: bool,
    /// Disks that there ever were.
    pub(crate) disks: u128,
    proposals: u128,
    /// Those of a leader that had everything, and leave somebody out: it may have been the last who had what is in memory, and be
    /// gone when they are decided.
    partings: BTreeSet<u128>,
    pub(crate) coverage: Coverage,
    /// Whether everything that happens is printed.
    trace: bool,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let node = |at| {
            let clock = Clock { offset: random.below(10_000_000 * MS), per_mille: 900 + random.below(201) };
            let disk = |partition: PartitionId, member| {
                Disk::new(partition, member, plan.disk_rules, 6 + (plan.seed % 5) as usize)
            };
            Node::new(at, clock, disk, plan.partitions)
        };
        let nodes: Vec<Node> = (0..plan.nodes).map(node).collect();
        let lenient = !(plan.rules.members_alone && plan.rules.handoff_among_members);
        let mut world = World {
            controller: Controller::new(plan.nodes as u16, plan.partitions, plan.ack, lenient),
            network: Network::default(),
            clients: Clients::new(plan.clients, plan.partitions),
            checks: (0..plan.partitions).map(|_| Checks::new(plan.durable(), plan.nodes)).collect(),
            healing: false,
            disks: 1,
            proposals: 0,
            partings: BTreeSet::new(),
            coverage: Coverage::default(),
            trace: std::env::var_os("KV_SIM_TRACE").is_some(),
            queue: Queue::default(),
            nodes,
            random,
            plan,
        };
        for node in 0..plan.nodes {
            world.controller.register(world.nodes[node].member);
        }
        (0..plan.nodes).for_each(|node| world.start(node));
        for client in 0..plan.clients {
            let begins = 50 * MS + world.random.below(100 * MS);
            world.queue.push(begins, Happening::Client { client });
        }
        world.queue.push(300 * MS, Happening::Fault);
        world
    }

    pub(crate) fn index(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|n| n.member.node == id).expect("a node")
    }

    /// Prints what happens, if somebody wants to look at it.
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:9.3} {}", self.queue.now as f64 / MS as f64, what());
        }
    }

    /// The next thing happens.
    pub(crate) fn step(&mut self) -> Verdict {
        let happening = self.queue.pop().ok_or("nothing happens any more")?;
        ensure(self.queue.count() < MAX_EVENTS, || "two go round and round".to_owned())?;
        self.happen(happening)
    }

    fn happen(&mut self, happening: Happening) -> Verdict {
        if let Some((node, life)) = happening.process() {
            let it = &mut self.nodes[node];
            if life.is_some_and(|life| life != it.life || !it.up) {
                return Ok(());
            }
            if it.paused {
                it.missed.push(happening);
                return Ok(());
            }
        }
        self.tell(|| format!("{happening:?}"));
        match happening {
            Happening::Letter { connection, to_follower, late, letter } => {
                self.handle_letter(connection, to_follower, late, letter)
            }
            Happening::Lost { connection } => self.disconnect(connection),
            Happening::Timer { place, .. } => self.handle_timer(place),
            Happening::Synced { place, .. } => self.handle_synced(place),
            Happening::Told { place, .. } => {
                self.tell_flushed(place)?;
                self.settle(place)
            }
            Happening::Read { place, to, after, .. } => self.answer_read(place, to, after),
            Happening::Slice { place, connection, .. } => self.send_slice(place, connection),
            Happening::Upkeep { node, .. } => self.upkeep(node),
            Happening::Wake { node, life } => self.wake(node, life),
            Happening::Stop { node, .. } => {
                self.stop(node);
                let down = self.random.below(2_500 * MS);
                self.queue.push(self.queue.now + down, Happening::Start { node });
                Ok(())
            }
            Happening::Start { node } => {
                self.start(node);
                Ok(())
            }
            Happening::Proposal(proposal) => self.decide(&proposal),
            Happening::Poll { node, life, member } => {
                let is_there = self.nodes[node].life == life && self.nodes[node].up;
                if is_there && self.controller.away_until <= self.queue.now {
                    self.controller.register(member);
                    self.push_map(node, true);
                }
                Ok(())
            }
            Happening::Map { node, map, answers, .. } => self.learn(node, &map, answers),
            Happening::Request { node, request } => self.handle_request(node, request),
            Happening::Answer { client, attempt, answer } => self.handle_answer(client, attempt, answer),
            Happening::Client { client } => self.go_on(client),
            Happening::Fault => self.fault(),
        }
    }

    /// A process goes on that stood still; what happened meanwhile is there all at once.
    fn wake(&mut self, node: usize, life: u32) -> Verdict {
        if self.nodes[node].life != life || !std::mem::replace(&mut self.nodes[node].paused, false) {
            return Ok(());
        }
        for happening in std::mem::take(&mut self.nodes[node].missed) {
            self.happen(happening)?;
        }
        Ok(())
    }

    /// The controller decides, if it is there.
    fn decide(&mut self, proposal: &Proposal) -> Verdict {
        if self.controller.away_until > self.queue.now { Ok(()) } else { self.force_decision(proposal) }
    }

    pub(crate) fn force_decision(&mut self, proposal: &Proposal) -> Verdict {
        let partition = usize::from(proposal.partition.0);
        let before = self.controller.configuration(partition).cloned();
        if !self.controller.propose(proposal) {
            return Ok(());
        }
        let after = self.controller.configuration(partition).expect("it was created").clone();
        self.coverage.note(
            match proposal.change {
                Change::Create { .. } => "created",
                Change::Drop { .. } => "drops",
                Change::Takeover { .. } => "takeovers",
                Change::Reopen { .. } => "reopened",
                Change::Add { .. } => "added learners",
                Change::Handoff { .. } => "handoffs",
                Change::ForceRecover { .. } => "forced recoveries",
            },
            1,
        );
        let was_member = |member: &Member| before.as_ref().is_none_or(|b| b.is_member(*member));
        let admits = matches!(proposal.change, Change::Add { .. } | Change::ForceRecover { .. });
        if let Some(stranger) = after.members().find(|m| !was_member(m)).filter(|_| !admits) {
            return Err(format!("{stranger} was no member and is one in epoch {}", after.epoch));
        }
        if self.partings.contains(&proposal.id) {
            self.note_losses(partition);
        }
        (0..self.nodes.len()).for_each(|node| self.push_map(node, false));
        Ok(())
    }

    /// Gives an event to a replica, carries out what it wants, and sees to all that this may have made possible.
    pub(crate) fn give(&mut self, place: Place, event: Event) -> Verdict {
        let (now, mut actions) = (self.clock(place.node), Actions::new());
        let Some(replica) = &mut self.part_mut(place).replica else { return Ok(()) };
        replica.handle(now, event, &mut actions);
        self.carry_out(place, actions)?;
        self.settle(place)
    }

    /// What is there to be done after every event: to send, to write, to be awoken; and to check.
    pub(crate) fn settle(&mut self, place: Place) -> Verdict {
        self.pump(place)?;
        self.work(place);
        self.arm(place);
        self.check(place)
    }

    pub(crate) fn carry_out(&mut self, place: Place, actions: Actions) -> Verdict {
        let replica = self.part(place).replica.as_ref().expect("who acts has a replica");
        let (configuration, committed) = (replica.configuration().clone(), replica.committed());
        let (node, epoch, life) = (place.node, configuration.epoch, self.nodes[place.node].life);
        let leads = configuration.leader == self.nodes[node].member
            && self.controller.configuration(place.partition).is_some_and(|c| c.epoch == epoch);
        let mut appended = false;
        for action in actions {
            self.tell(|| format!("n{node} p{} e{epoch}: {action:?}", place.partition));
            match action {
                Action::Append(entry) => {
                    self.coverage.note("cuts", u64::from(matches!(entry, LogEntry::Cut { .. })));
                    self.coverage.note("resets", u64::from(matches!(entry, LogEntry::Reset { .. })));
                    let part = &mut self.nodes[node].parts[place.partition];
                    self.checks[place.partition].append(node, &entry, &part.disk)?;
                    part.disk.append(entry, committed);
                    appended = true;
                }
                Action::ReadLog { to, after } => {
                    self.coverage.note("reads of logs", 1);
                    let takes = self.random.below(10 * MS);
                    self.queue.push(self.queue.now + takes, Happening::Read { place, life, to, after });
                }
                Action::Resign { to, epoch } => self.send(place, to, (epoch, PeerBody::Resign))?,
                Action::SendCopy { to, sent } => self.begin_copy(place, to, sent)?,
                Action::ResetTable => self.part_mut(place).disk.reset_table(),
                Action::LoadTable { bytes } => self.part_mut(place).disk.load(&bytes)?,
                Action::KeepTable { end, digest } => self.part_mut(place).disk.keep_table(end, digest)?,
                Action::Propose(change) => {
                    match &change {
                        Change::Takeover { .. } => self.checks[place.partition].ask_to_take_over((node, life), epoch),
                        Change::Add { learner, .. } => self.checks[place.partition].ask_to_add(epoch, *learner),
                        _ => {}
                    }
                    self.proposals += 1;
                    let parts = matches!(change, Change::Drop { .. } | Change::Handoff { .. });
                    let (checks, log) = (&self.checks[place.partition], &self.part(place).disk.live);
                    if parts && !self.plan.durable() && checks.holds(log, checks.last()) {
                        self.partings.insert(self.proposals);
                    }
                    let partition = PartitionId(place.partition as u16);
                    self.propose(node, Proposal { id: self.proposals, partition, epoch, change });
                }
                Action::Apply(record) => {
                    let digest = self.part_mut(place).disk.apply(&record)?;
                    self.checks[place.partition].apply(node, &record, digest, leads)?;
                }
                Action::Reply { token, outcome } => {
                    let Some(waiting) = self.part_mut(place).waiting.remove(&token.0) else { continue };
                    self.reply(place, waiting, outcome, &configuration)?;
                }
                Action::Send { to, body } => self.send(place, to, (epoch, body))?,
            }
        }
        if appended {
            self.part_mut(place).disk.hand_over();
        }
        if appended && !self.plan.durable() { self.tell_flushed(place) } else { Ok(()) }
    }

    fn reply(
        &mut self,
        place: Place,
        waiting: Waiting,
        outcome: Outcome,
        configuration: &kv_proto::cluster_map::Configuration,
    ) -> Verdict {
        if outcome == Outcome::Committed
            && let Some(number) = waiting.writes()
        {
            self.coverage.note("acknowledged writes", 1);
            let members: Vec<Member> = configuration.members().collect();
            let counted = counted(&self.nodes, place.partition, members.into_iter());
            self.checks[place.partition].acknowledge(number, &counted)?;
        }
        self.handle_reply(place, waiting, outcome)
    }

    pub(crate) fn tell_flushed(&mut self, place: Place) -> Verdict {
        let in_memory = !self.plan.durable();
        match self.part_mut(place).disk.take_news(in_memory) {
            Some(entries) => self.give(place, Event::Flushed { entries }),
            None => Ok(()),
        }
    }

    fn answer_read(&mut self, place: Place, to: NodeId, after: kv_proto::ids::Lsn) -> Verdict {
        let disk = &self.part(place).disk;
        if !disk.can_read(after) {
            let life = self.nodes[place.node].life;
            self.queue.push(self.queue.now + 20 * MS, Happening::Read { place, life, to, after });
            return Ok(());
        }
        let (previous, records) = disk.read(after);
        self.give(place, Event::LogRead { to, previous, records })
    }

    /// What must hold, of the replica to which something happened and of who leads by it.
    fn check(&mut self, place: Place) -> Verdict {
        let Place { node, partition } = place;
        let part = &self.nodes[node].parts[partition];
        let Some(replica) = &part.replica else { return Ok(()) };
        self.checks[partition].replica(node, replica, &part.disk)?;
        if part.disk.faulty {
            let serves = matches!(replica.role(), Role::Leader | Role::Follower);
            return if serves { Err(format!("node {node} is damaged and takes part")) } else { Ok(()) };
        }
        let now = self.clock(node);
        let check = replica.check_read(now);
        if matches!(check, Err(Refusal::NotLeader | Refusal::NotReady)) {
            return Ok(());
        }
        let configuration = replica.configuration();
        if part.disk.durable.epoch() < configuration.epoch && self.plan.rules.epoch_on_disk_first {
            return Ok(()); // It has done nothing in its epoch yet.
        }
        let members: Vec<_> =
            configuration.members().chain(self.checks[partition].adding(configuration.epoch)).collect();
        let counted = counted(&self.nodes, partition, members.into_iter());
        self.checks[partition].leader((node, self.nodes[node].life), replica, &counted)?;
        self.check_readers(partition)
    }

    /// Whoever would answer a read at once.
    fn check_readers(&self, partition: usize) -> Verdict {
        for (node, it) in self.nodes.iter().enumerate().filter(|(_, n)| n.up) {
            let reads = |r: &&Replica| r.check_read(self.clock(node)) == Ok(ReadCheck::Now);
            if let Some(replica) = it.parts[partition].replica.as_ref().filter(reads) {
                self.checks[partition].reads(node, replica)?;
            }
        }
        Ok(())
    }
}

/// Those of these members whose disks are there, and what was on them.
fn counted(nodes: &[Node], partition: usize, members: impl Iterator<Item = Member>) -> Vec<Counted<'_>> {
    let there = members.filter_map(|m| nodes.iter().position(|n| n.member == m));
    let counted = there.map(|node| {
        let part = &nodes[node].parts[partition];
        Counted { node, disk: &part.disk, replica: part.replica.as_ref() }
    });
    counted.filter(|c| c.disk.is_sound()).collect()
}
