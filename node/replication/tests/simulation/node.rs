//! A node: its clock, its disks, its replicas, one for each partition, and how its process begins and ends.

use crate::{
    checks::Verdict,
    clients::Waiting,
    copies::Outgoing,
    disk::{Disk, media::Fate},
    queue::{Happening, MS, Time},
    world::World,
};
use kv_proto::{
    cluster_map::{ClusterMap, Configuration},
    ids::{DiskId, Member, NodeId, PartitionId},
};
use kv_replication::{
    clock::Instant64,
    replica::{Actions, Event, Replica},
};
use std::collections::BTreeMap;

/// A partition on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) partition: usize,
}

/// A clock of a node: it never goes back, and neither its beginning nor its speed is that of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) offset: u64,
    /// How far it goes while 1000 pass.
    pub(crate) per_mille: u64,
}

impl Clock {
    pub(crate) fn read(self, now: Time) -> Instant64 {
        Instant64(self.offset + (u128::from(now) * u128::from(self.per_mille) / 1000) as u64)
    }

    /// When it will show this.
    fn when(self, shows: Instant64) -> Time {
        let passed = u128::from(shows.0.saturating_sub(self.offset)) * 1000;
        passed.div_ceil(u128::from(self.per_mille)).min(u128::from(u64::MAX)) as u64
    }
}

pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) clock: Clock,
    pub(crate) up: bool,
    /// Which start of its process this is.
    pub(crate) life: u32,
    pub(crate) paused: bool,
    /// What happened to it while it stood still.
    pub(crate) missed: Vec<Happening>,
    pub(crate) parts: Vec<Part>,
    /// Its disk is slow until then.
    pub(crate) slow_until: Time,
    /// It does not reach the controller until then.
    pub(crate) cut_off_until: Time,
    /// When the controller last answered, and whether replicas were told that it does.
    heard: Instant64,
    reachable: bool,
}

/// What a node has of a partition.
pub(crate) struct Part {
    pub(crate) disk: Disk,
    /// Once the process knows a map.
    pub(crate) replica: Option<Replica>,
    /// When it will be asked whether its timeout is due.
    timer: Option<Time>,
    /// The disk is at work, and what becomes of that.
    pub(crate) writing: bool,
    pub(crate) fate: Fate,
    /// Who waits for an answer, by token.
    pub(crate) waiting: BTreeMap<u64, Waiting>,
    /// Copies of the table that are on their way, by connection.
    pub(crate) outgoing: BTreeMap<u64, Outgoing>,
}

impl Part {
    fn new(disk: Disk) -> Self {
        let (waiting, outgoing) = (BTreeMap::new(), BTreeMap::new());
        Part { disk, replica: None, timer: None, writing: false, fate: Fate::Well, waiting, outgoing }
    }
}

impl Node {
    pub(crate) fn new(at: usize, clock: Clock, disk: impl Fn(PartitionId, Member) -> Disk, partitions: u16) -> Self {
        let member = Member { node: NodeId::new(&format!("n{at}")).expect("a name"), disk: DiskId(1) };
        Node {
            member,
            clock,
            up: false,
            life: 0,
            paused: false,
            missed: Vec::new(),
            parts: (0..partitions).map(|p| Part::new(disk(PartitionId(p), member))).collect(),
            slow_until: 0,
            cut_off_until: 0,
            heard: Instant64(0),
            reachable: true,
        }
    }
}

impl World {
    pub(crate) fn part(&self, place: Place) -> &Part {
        &self.nodes[place.node].parts[place.partition]
    }

    pub(crate) fn part_mut(&mut self, place: Place) -> &mut Part {
        &mut self.nodes[place.node].parts[place.partition]
    }

    pub(crate) fn places(&self, node: usize) -> impl Iterator<Item = Place> + use<> {
        (0..self.nodes[node].parts.len()).map(move |partition| Place { node, partition })
    }

    /// What the clock of a node shows now.
    pub(crate) fn clock(&self, node: usize) -> Instant64 {
        self.nodes[node].clock.read(self.queue.now)
    }

    pub(crate) fn start(&mut self, node: usize) {
        let now = self.clock(node);
        let it = &mut self.nodes[node];
        if std::mem::replace(&mut it.up, true) {
            return;
        }
        it.life += 1;
        (it.heard, it.reachable, it.paused) = (now, true, false);
        let life = it.life;
        self.queue.push(self.queue.now + MS, Happening::Upkeep { node, life });
        // What it hears first may be old.
        if self.random.one_in(8) && !self.healing {
            let maps = &self.controller.maps;
            let map = maps[self.random.below(maps.len() as u64) as usize].clone();
            self.queue.push(self.queue.now + 2 * MS, Happening::Map { node, life, map, answers: false });
        }
    }

    /// The process ends, in the middle of whatever it does; with the power or without.
    pub(crate) fn crash(&mut self, node: usize, power: bool) {
        if !self.nodes[node].up {
            return;
        }
        self.coverage.note("crashes", 1);
        self.tell(|| format!("n{node} crashes"));
        for place in self.places(node) {
            let unsynced = self.part_mut(place).disk.unsynced() as u64;
            if unsynced > 0 && self.random.one_in(2) {
                let count = 1 + self.random.below(unsynced) as usize;
                self.part_mut(place).disk.write(count, Fate::Fails);
                self.coverage.note("batches torn", 1);
            }
        }
        self.end(node, power);
    }

    /// The process ends in order.
    pub(crate) fn stop(&mut self, node: usize) {
        self.coverage.note("clean stops", 1);
        for place in self.places(node) {
            self.note_upkeep(place);
            let part = self.part_mut(place);
            let complete = part.replica.as_ref().is_some_and(|r| !r.is_incomplete());
            part.disk.stop(complete);
        }
        self.end(node, false);
    }

    fn end(&mut self, node: usize, power: bool) {
        for place in self.places(node) {
            self.note_upkeep(place);
            let part = &mut self.nodes[node].parts[place.partition];
            part.disk.crash(power, &mut self.random);
            (part.replica, part.timer, part.writing, part.fate) = (None, None, false, Fate::Well);
            part.outgoing.clear();
            let waiting = std::mem::take(&mut part.waiting);
            waiting.into_values().for_each(|waiting| self.answer(waiting, crate::clients::Answer::Unknown));
        }
        let it = &mut self.nodes[node];
        (it.up, it.paused) = (false, false);
        it.missed.clear();
        self.end_connections(node);
        if !self.plan.durable() {
            (0..self.checks.len()).for_each(|partition| self.note_losses(partition));
        }
    }

    /// Where memory is enough, what no member has any more is lost.
    pub(crate) fn note_losses(&mut self, partition: usize) {
        let Some(configuration) = self.controller.configuration(partition) else { return };
        let members = self.nodes.iter().filter(|n| configuration.is_member(n.member));
        let logs = members.map(|n| if n.up { &n.parts[partition].disk.live } else { &n.parts[partition].disk.durable });
        let before = self.checks[partition].losses;
        self.checks[partition].lose_all_but(logs);
        self.coverage.note("losses of memory", self.checks[partition].losses - before);
    }

    fn note_upkeep(&mut self, place: Place) {
        let done = self.part_mut(place).disk.take_done();
        self.coverage.note("checkpoints", done.checkpoints);
        self.coverage.note("records copied forward", done.copies);
        self.coverage.note("segments gone", done.gone);
    }

    /// A node has empty disks from now on.
    pub(crate) fn replace_disks(&mut self, at: usize) {
        self.disks += 1;
        self.coverage.note("wiped disks", 1);
        let node = &mut self.nodes[at];
        node.member.disk = DiskId(self.disks);
        for part in &mut node.parts {
            part.disk = part.disk.replacement(node.member);
        }
        self.checks.iter_mut().for_each(|checks| checks.forget(at));
    }

    /// A node learns the map, which may be an old one.
    pub(crate) fn learn(&mut self, node: usize, map: &ClusterMap, answers: bool) -> Verdict {
        if answers {
            self.nodes[node].heard = self.clock(node);
        }
        for place in self.places(node) {
            let Some(configuration) = map.configuration(PartitionId(place.partition as u16)) else { continue };
            if !self.nodes[node].up {
                return Ok(());
            }
            if self.part(place).replica.is_some() {
                self.give(place, Event::ConfigChanged(configuration.clone()))?;
            } else {
                self.begin(place, configuration.clone())?;
            }
        }
        Ok(())
    }

    /// The log of a partition is opened, and its replica made from what the disk has.
    fn begin(&mut self, place: Place, configuration: Configuration) -> Verdict {
        let Ok(restored) = self.part_mut(place).disk.open()? else {
            // A person gives it another disk.
            self.end(place.node, false);
            self.replace_disks(place.node);
            self.queue.push(self.queue.now + 50 * MS, Happening::Start { node: place.node });
            return Ok(());
        };
        self.tell(|| format!("n{} comes back with {restored:?}", place.node));
        let disk = &self.nodes[place.node].parts[place.partition].disk;
        if disk.faulty {
            self.coverage.note("faulty logs", 1);
        } else {
            let digest = disk.process.as_ref().expect("it was opened").digest();
            let (epoch, applied) = (disk.durable.epoch(), restored.applied);
            self.checks[place.partition].restore(place.node, epoch, applied, digest)?;
        }
        let (me, options, now) = (self.nodes[place.node].member, self.plan.options(), self.clock(place.node));
        let mut actions = Actions::new();
        let id = PartitionId(place.partition as u16);
        let replica = Replica::new(id, me, configuration, restored, options, now, &mut actions);
        self.part_mut(place).replica = Some(replica);
        if !self.nodes[place.node].reachable {
            self.give(place, Event::Controller { reachable: false })?;
        }
        self.carry_out(place, actions)?;
        self.settle(place)
    }

    /// A node looks after its connections, its logs and the controller.
    pub(crate) fn upkeep(&mut self, node: usize) -> Verdict {
        let (life, now) = (self.nodes[node].life, self.queue.now);
        let next = now + (20 + self.random.below(80)) * MS;
        self.queue.push(next, Happening::Upkeep { node, life });
        if self.nodes[node].parts[0].replica.is_none() || self.random.one_in(4) {
            self.poll(node);
        }
        let silence = self.clock(node).since(self.nodes[node].heard).as_millis();
        let reachable = silence < 1_500;
        let news = std::mem::replace(&mut self.nodes[node].reachable, reachable) != reachable;
        for place in self.places(node) {
            if !self.nodes[node].up {
                return Ok(());
            }
            if news {
                self.give(place, Event::Controller { reachable })?;
            }
            self.look_after_connections(place)?;
            self.keep_short(place)?;
        }
        Ok(())
    }

    /// The next thing that keeps a log short.
    fn keep_short(&mut self, place: Place) -> Verdict {
        let part = &mut self.nodes[place.node].parts[place.partition];
        let Some(replica) = part.replica.as_ref().filter(|r| r.has_entered()) else { return Ok(()) };
        let starts = part.outgoing.values().map(|copy| copy.start.lsn);
        let needed = starts.chain(replica.log_needed_after()).min();
        for _ in 0..=self.random.below(4) {
            part.disk.keep_short(replica, needed, &mut self.random);
        }
        if part.disk.take_copy_kept() {
            self.coverage.note("copies kept", 1);
            self.give(place, Event::CopyKept)?;
        }
        self.settle(place)
    }

    /// Has the replica asked again when its timeout is due, or a little later.
    pub(crate) fn arm(&mut self, place: Place) {
        let clock = self.nodes[place.node].clock;
        let Some(due) = self.part(place).replica.as_ref().and_then(Replica::poll_timeout) else { return };
        let due = clock.when(due).max(self.queue.now) + 10_000;
        if self.part(place).timer.is_none_or(|timer| timer > due) {
            let life = self.nodes[place.node].life;
            self.part_mut(place).timer = Some(due);
            let late = if self.random.one_in(8) { self.random.below(20 * MS) } else { 0 };
            self.queue.push(due + late, Happening::Timer { place, life });
        }
    }

    pub(crate) fn handle_timer(&mut self, place: Place) -> Verdict {
        self.part_mut(place).timer = None;
        let now = self.clock(place.node);
        if self.part(place).replica.as_ref().and_then(Replica::poll_timeout).is_some_and(|due| due <= now) {
            return self.give(place, Event::Timeout);
        }
        self.arm(place);
        Ok(())
    }

    /// Has the disk written to, if there is something and it is not at work.
    pub(crate) fn work(&mut self, place: Place) {
        let life = self.nodes[place.node].life;
        let slow = self.nodes[place.node].slow_until > self.queue.now;
        let part = &mut self.nodes[place.node].parts[place.partition];
        if part.writing || part.disk.unsynced() == 0 {
            return;
        }
        part.writing = true;
        let takes = match (slow, self.plan.durable()) {
            (true, _) => self.random.below(2_500 * MS),
            (false, true) => MS / 10 + self.random.below(3 * MS),
            (false, false) => MS / 10 + self.random.below(100 * MS),
        };
        self.queue.push(self.queue.now + takes, Happening::Synced { place, life });
    }

    /// The disk has written something of what it was given.
    pub(crate) fn handle_synced(&mut self, place: Place) -> Verdict {
        let life = self.nodes[place.node].life;
        let part = &mut self.nodes[place.node].parts[place.partition];
        part.writing = false;
        let unsynced = part.disk.unsynced() as u64;
        let count = if self.healing || self.random.one_in(2) {
            usize::MAX
        } else {
            1 + self.random.below(unsynced.max(1)) as usize
        };
        let fate = std::mem::replace(&mut part.fate, Fate::Well);
        if !part.disk.write(count, fate) {
            let power = self.random.one_in(2);
            self.coverage.note("failed syncs", 1);
            self.end(place.node, power);
            let down = self.random.below(1_500 * MS);
            self.queue.push(self.queue.now + down, Happening::Start { node: place.node });
            return Ok(());
        }
        // The process may end before the log can say so.
        if self.random.one_in(4) {
            let takes = self.random.below(MS);
            self.queue.push(self.queue.now + takes, Happening::Told { place, life });
            self.work(place);
            return Ok(());
        }
        self.tell_flushed(place)?;
        self.settle(place)
    }
}
