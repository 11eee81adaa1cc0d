//! What goes wrong, what a person does, and how it all ends.

use crate::{
    checks::{Verdict, ensure},
    disk::{Harm, media::Fate},
    node::{Node, Part, Place},
    plan::Focus,
    queue::{Happening, MS, Time},
    world::World,
};
use kv_proto::{
    cluster_map::Configuration,
    control::{Change, Proposal},
    ids::{HistoryId, Member, PartitionId},
    stats::Role,
};
use kv_replication::replica::{Event, Replica};

/// How long it may take, once faults have stopped, until everything is as it should be.
const PATIENCE: Time = 30_000 * MS;

/// Something that goes wrong, or that a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Crash,
    PowerLoss,
    Pause,
    Disconnect,
    Block,
    CutOff,
    ControllerAway,
    SlowDisk,
    DiskFails,
    DiskFull,
    Harm,
    Handoff,
    Drop,
    Stop,
    Force,
}

/// A fault and how frequent it is: by itself, and in addition where the focus is on it.
type Frequency = (Fault, u64, &'static [(Focus, u64)]);

const FAULTS: [Frequency; 15] = [
    (Fault::Crash, 8, &[(Focus::Crashes, 20), (Focus::Handoffs, 5)]),
    (Fault::PowerLoss, 1, &[(Focus::Crashes, 12)]),
    (Fault::Pause, 5, &[(Focus::Pauses, 40)]),
    (Fault::Disconnect, 8, &[(Focus::Network, 30), (Focus::Handoffs, 15)]),
    (Fault::Block, 5, &[(Focus::Network, 20)]),
    (Fault::CutOff, 3, &[(Focus::Changes, 8)]),
    (Fault::ControllerAway, 2, &[(Focus::Changes, 8)]),
    (Fault::SlowDisk, 3, &[(Focus::Pauses, 6)]),
    (Fault::DiskFails, 2, &[(Focus::Crashes, 6)]),
    (Fault::DiskFull, 1, &[(Focus::Crashes, 2)]),
    (Fault::Harm, 4, &[(Focus::Crashes, 6)]),
    (Fault::Handoff, 4, &[(Focus::Changes, 20), (Focus::Handoffs, 100)]),
    (Fault::Drop, 3, &[(Focus::Changes, 15)]),
    (Fault::Stop, 2, &[(Focus::Changes, 8)]),
    (Fault::Force, 3, &[(Focus::Changes, 6)]),
];

impl World {
    fn any_node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    fn any_place(&mut self) -> Place {
        let node = self.any_node();
        Place { node, partition: self.random.below(self.plan.partitions.into()) as usize }
    }

    /// A while that is mostly short and sometimes longer than everybody's patience.
    fn a_while(&mut self) -> Time {
        let upto = [60, 300, 1_200, 4_000][self.random.below(4) as usize];
        self.random.below(upto * MS)
    }

    /// Something goes wrong.
    pub(crate) fn fault(&mut self) -> Verdict {
        if self.healing {
            return Ok(());
        }
        let calm = self.plan.calm * MS;
        let next = self.queue.now + calm / 2 + self.random.below(calm);
        self.queue.push(next, Happening::Fault);
        let focus = self.plan.focus;
        let more = |on: &[(Focus, u64)]| on.iter().find(|(on, _)| *on == focus).map_or(0, |(_, more)| *more);
        // Handing over to and fro needs that little else happens.
        let common = |common: u64| if focus == Focus::Handoffs { common.div_ceil(8) } else { common };
        let weigh = |(_, by_itself, on): &Frequency| common(*by_itself) + more(on);
        let mut drawn = self.random.below(FAULTS.iter().map(weigh).sum());
        let fault = FAULTS.iter().find(|fault| {
            let weight = weigh(fault);
            let hit = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            hit
        });
        self.happens_wrong(fault.expect("one is drawn").0)
    }

    fn happens_wrong(&mut self, fault: Fault) -> Verdict {
        let (place, now, takes) = (self.any_place(), self.queue.now, self.a_while());
        let (node, life) = (place.node, self.nodes[place.node].life);
        self.tell(|| format!("{fault:?} of node {node} for {} ms", takes / MS));
        match fault {
            Fault::Crash => self.crash_and_start(node, takes),
            Fault::PowerLoss => {
                for node in 0..self.nodes.len() {
                    self.crash(node, true);
                    let down = self.a_while();
                    self.queue.push(now + down, Happening::Start { node });
                }
            }
            Fault::Pause if self.nodes[node].up && !self.nodes[node].paused => {
                self.coverage.note("pauses", 1);
                self.nodes[node].paused = true;
                self.queue.push(now + takes, Happening::Wake { node, life });
            }
            Fault::Disconnect => {
                let open = self.network.open();
                if !open.is_empty() {
                    let nth = self.random.below(open.len() as u64) as usize;
                    self.disconnect(open[nth])?;
                }
            }
            Fault::Block => {
                let other = self.any_node();
                self.network.blocked.insert((node, other), now + takes);
                if self.random.one_in(2) {
                    self.network.blocked.insert((other, node), now + takes);
                }
            }
            Fault::CutOff => self.nodes[node].cut_off_until = now + takes,
            Fault::ControllerAway => self.controller.away_until = now + takes,
            Fault::SlowDisk => self.nodes[node].slow_until = now + takes,
            Fault::DiskFails => self.part_mut(place).fate = Fate::Fails,
            Fault::DiskFull => self.part_mut(place).fate = Fate::Full,
            Fault::Harm if self.plan.harmful => self.harm(place)?,
            Fault::Handoff => {
                let to = self.random.one_in(2).then(|| self.any_node()).map(|to| self.nodes[to].member.node);
                let leaves = self.random.one_in(2) && self.all_disks_are_sound();
                return self.ask_leader(place.partition, Event::Handoff { to, leaves });
            }
            Fault::Drop => {
                let node = self.nodes[node].member.node;
                return self.ask_leader(place.partition, Event::DropFollower { node });
            }
            Fault::Stop if self.nodes[node].up && !self.nodes[node].paused => {
                let leaves = self.all_disks_are_sound();
                for place in self.places(node) {
                    self.give(place, Event::Handoff { to: None, leaves })?;
                }
                self.queue.push(now + self.random.below(1_200 * MS), Happening::Stop { node, life });
            }
            Fault::Force if self.plan.forced => self.force(node)?,
            Fault::Pause | Fault::Harm | Fault::Stop | Fault::Force => {}
        }
        Ok(())
    }

    fn crash_and_start(&mut self, node: usize, down: Time) {
        let power = self.random.one_in(2);
        self.crash(node, power);
        self.queue.push(self.queue.now + down, Happening::Start { node });
    }

    /// A person asks whoever leads.
    fn ask_leader(&mut self, partition: usize, event: Event) -> Verdict {
        let leads = |n: &usize| {
            let node = &self.nodes[*n];
            !node.paused && node.parts[partition].replica.as_ref().is_some_and(|r| r.role() == Role::Leader)
        };
        match (0..self.nodes.len()).find(leads) {
            Some(node) => self.give(Place { node, partition }, event),
            None => Ok(()),
        }
    }

    /// Nobody leaves a partition to a replica that may turn out to be damaged.
    fn all_disks_are_sound(&self) -> bool {
        let there = |member: Member| self.nodes.iter().any(|n| n.member == member);
        let configurations = (0..self.checks.len()).filter_map(|partition| self.controller.configuration(partition));
        self.nodes.iter().flat_map(|n| &n.parts).all(|part| part.disk.is_sound())
            && configurations.flat_map(Configuration::members).all(there)
    }

    /// Whether all that is committed is on the disks of members other than this node, and will be there whatever becomes of what
    /// is on its way to the controller.
    fn is_dispensable(&self, node: usize) -> bool {
        let others_have = |partition: usize| {
            let Some(configuration) = self.controller.configuration(partition) else { return false };
            let last = self.checks[partition].last();
            let mut others = configuration.members().filter(|m| m.node != self.nodes[node].member.node).peekable();
            others.peek().is_some()
                && others.all(|member| {
                    let other = &self.nodes[self.index(member.node)];
                    let disk = &other.parts[partition].disk;
                    other.member == member && disk.is_sound() && self.checks[partition].holds(&disk.durable, last)
                })
        };
        let passes = |part: &Part| part.replica.as_ref().is_some_and(Replica::is_handing_off);
        let changes = self.queue.has_proposals() || self.nodes.iter().flat_map(|n| &n.parts).any(passes);
        !changes && (0..self.checks.len()).all(others_have)
    }

    /// Something happens to the disk of a node, if others have everything.
    fn harm(&mut self, place: Place) -> Verdict {
        let node = place.node;
        let sound = self.places(node).all(|p| self.part(p).disk.is_sound());
        if !sound || !self.is_dispensable(node) {
            return Ok(());
        }
        let down = self.a_while();
        self.crash_and_start(node, down);
        // What it said before it went down counts.
        if !self.is_dispensable(node) {
            return Ok(());
        }
        if self.random.one_in(3) {
            self.replace_disks(node);
            return Ok(());
        }
        let (member, partition) = (self.nodes[node].member, place.partition);
        let current = self.controller.configuration(partition).expect("it was created");
        // Nor may anybody count on it who has not heard yet that it is no member any more.
        let counts =
            |n: &Node| n.parts[partition].replica.as_ref().is_some_and(|r| r.configuration().is_member(member));
        let may_cut = !current.is_member(member)
            && !self.nodes.iter().any(counts)
            && self.checks[partition].adding(current.epoch) != Some(member);
        let part = &mut self.nodes[node].parts[partition];
        let harm = part.disk.damage(may_cut, &mut self.random)?;
        if part.disk.is_unreadable() {
            self.replace_disks(node);
        }
        self.coverage.note("bits turned", u64::from(harm != Harm::None));
        self.coverage.note("ends cut off", u64::from(harm == Harm::Cut));
        Ok(())
    }

    /// A person stops everybody else, and declares that what this node has is all there is; unless it is known to have what was
    /// given up before.
    fn force(&mut self, node: usize) -> Verdict {
        let up = self.nodes[node].up;
        let log = |part: &Part| if up { part.disk.live.clone() } else { part.disk.durable.clone() };
        let able = |p: Place| {
            let (part, checks) = (self.part(p), &self.checks[p.partition]);
            part.disk.is_sound() && checks.agrees(&log(part)) && self.controller.configuration(p.partition).is_some()
        };
        if !self.places(node).all(able) {
            return Ok(());
        }
        // This one is started again, so that nothing that is still on its way to it does anything to its table.
        for at in 0..self.nodes.len() {
            let down = if at == node { MS } else { 500 * MS + self.a_while() };
            self.crash_and_start(at, down);
        }
        let log = |part: &Part| part.disk.durable.clone();
        if !self
            .places(node)
            .all(|p| self.part(p).disk.is_sound() && self.checks[p.partition].agrees(&log(self.part(p))))
        {
            return Ok(());
        }
        for place in self.places(node) {
            let current = self.controller.configuration(place.partition).expect("it was created");
            let (epoch, history) = (current.epoch, HistoryId(current.history.0 + 1));
            let kept = log(self.part(place));
            self.checks[place.partition].lose_all_but(std::iter::once(&kept));
            let change = Change::ForceRecover { leader: self.nodes[node].member, history };
            let partition = PartitionId(place.partition as u16);
            self.force_decision(&Proposal { id: u128::MAX - u128::from(self.queue.now), partition, epoch, change })?;
        }
        Ok(())
    }

    /// No more faults: everything is served, equal and complete within a bounded time.
    pub(crate) fn heal(&mut self) -> Verdict {
        self.healing = true;
        self.network.blocked.clear();
        self.controller.away_until = 0;
        let now = self.queue.now;
        for node in 0..self.nodes.len() {
            let it = &mut self.nodes[node];
            (it.slow_until, it.cut_off_until) = (0, 0);
            let life = it.life;
            self.queue.push(now + 10 * MS, Happening::Start { node });
            self.queue.push(now + 10 * MS, Happening::Wake { node, life });
        }
        // What was lost alone is sent again on another connection.
        if self.plan.datagrams {
            self.network.open().into_iter().try_for_each(|connection| self.disconnect(connection))?;
        }
        let clients = self.plan.clients;
        (0..clients).for_each(|client| self.queue.push(now + 20 * MS, Happening::Client { client }));
        let (mut next, mut rescued) = (now, false);
        loop {
            self.step()?;
            if self.queue.now < next {
                continue;
            }
            next = self.queue.now + 50 * MS;
            let Err(why) = self.is_well() else { break };
            if self.queue.now > now + PATIENCE / 3 && !self.plan.durable() && !std::mem::replace(&mut rescued, true) {
                self.rescue()?;
            }
            ensure(self.queue.now < now + PATIENCE, || format!("30 s after the last fault: {why}"))?;
        }
        for (partition, checks) in self.checks.iter().enumerate() {
            for (node, it) in self.nodes.iter().enumerate() {
                checks.settled(node, it.parts[partition].replica.as_ref().ok_or("a replica is gone")?)?;
            }
            self.coverage.note("epochs served", checks.epochs_served());
        }
        self.clients.verify(&self.checks)
    }

    /// Where memory is enough, those who may lack something can wait for ever for one whose log is damaged: a person decides.
    fn rescue(&mut self) -> Verdict {
        for partition in 0..self.checks.len() {
            let current = self.controller.configuration(partition).ok_or("it was never created")?;
            let leader = self.index(current.leader.node);
            let damaged = |n: &&Node| current.is_member(n.member) && !n.parts[partition].disk.is_sound();
            if self.nodes.iter().any(|n| damaged(&n)) {
                self.force(leader)?;
            }
        }
        Ok(())
    }

    /// Whether every partition has all its replicas, serves, and all of them have the same; and the clients are done.
    fn is_well(&self) -> Verdict {
        for partition in 0..self.checks.len() {
            let current = self.controller.configuration(partition).ok_or("it was never created")?;
            let leader = self.index(current.leader.node);
            let replicas: Vec<&Replica> =
                self.nodes.iter().filter_map(|n| n.parts[partition].replica.as_ref()).collect();
            let complete = self.nodes.iter().all(|n| current.is_member(n.member)) && replicas.len() == self.nodes.len();
            ensure(complete, || {
                format!("partition {partition} is not complete: {current:?}, {}", self.troubles(partition))
            })?;
            let leads = self.nodes[leader].parts[partition].replica.as_ref().ok_or("no leader")?;
            let now = self.clock(leader);
            let serves =
                leads.check_write(now).is_ok() && leads.check_read(now).is_ok() && leads.trouble(now).is_none();
            ensure(serves, || format!("partition {partition} is not served: {}", self.troubles(partition)))?;
            let same = |r: &&Replica| {
                r.configuration() == current
                    && r.prepared() == leads.prepared()
                    && r.committed() == leads.prepared().lsn
            };
            ensure(replicas.iter().all(same), || format!("not all have everything: {}", self.troubles(partition)))?;
        }
        ensure(self.clients.are_done(), || "clients are not done".to_owned())
    }

    /// What the replicas of a partition say of themselves.
    fn troubles(&self, partition: usize) -> String {
        let say = |(at, node): (usize, &Node)| {
            let replica = node.parts[partition].replica.as_ref();
            let trouble = replica.map(|r| (r.role(), r.prepared(), r.committed(), r.trouble(self.clock(at))));
            format!("\n  node {at} up {} paused {} {trouble:?}", node.up, node.paused)
        };
        self.nodes.iter().enumerate().map(say).collect()
    }
}
