//! What happens in the simulation, in which mixture, and how it ends.

use crate::{
    checks::{Verdict, ensure},
    disk::Disk,
    media::Fate,
    world::{Link, Node, World},
};
use kv_proto::{cluster_map::Configuration, control::Change, ids::Lsn, stats::Role};
use kv_replication::replica::{LogEntry, Replica};
use std::collections::VecDeque;

impl World {
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
                if unsynced > 0 {
                    let count = 1 + self.below(unsynced) as usize;
                    let fate = if self.below(12) == 0 { Fate::Full } else { Fate::Well };
                    self.nodes[node].disk.write(count, fate);
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
            21 => {
                let millis = self.below(400);
                self.pass(millis)?;
            }
            29 if self.below(self.plan.calm) == 0 => self.disconnect(node, other)?,
            29 | 30 => {
                let letter = self.late.get_mut(&(node, other)).and_then(VecDeque::pop_front);
                self.hear(node, other, letter)?;
            }
            31 => self.connect(node, other)?,
            22 | 32 | 33 => self.keep_short(node),
            34 if self.below(2 * self.plan.calm) == 0 => self.crash(node),
            34 => {
                if self.plan.harmful && self.below(2) == 0 {
                    self.harm(node)?;
                }
                self.start(node);
            }
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
            if self.below(2) == 0 {
                self.sync_all(from)?;
            }
            if self.below(4) == 0 {
                self.keep_short(from);
            }
        }
        Ok(())
    }

    /// The next thing that keeps a node's log short.
    fn keep_short(&mut self, node: usize) {
        // Who lost what was in memory only needs it from a log, as long as no replica can be sent a copy of a table.
        let log = self.nodes[node].disk.live();
        let has_all = |other: &Node| match &self.nodes[node].disk.process {
            Some(process) => {
                let applied = process.applied.lsn.0 as usize;
                other.disk.durable().get(..applied) == Some(&log[..applied])
            }
            None => false,
        };
        let may_release = self.plan.durable || self.nodes.iter().all(has_all);
        let node = &mut self.nodes[node];
        if let Some(replica) = node.replica.as_ref().filter(|r| r.role() != Role::Refused) {
            node.disk.keep_short(replica, may_release, &mut self.random);
        }
    }

    /// A person puts another in the place of a leader that takes no part, or leaves out a follower that does not. `patient`
    /// gives who lost the end of its log the time to get it from the others.
    fn repair(&mut self, patient: bool) {
        let current = self.controller.current().clone();
        let refuses = |node: &Node| node.replica.as_ref().is_some_and(|r| r.role() == Role::Refused);
        let lacks = |node: &Node| !patient && !self.checks.has_all(node.disk.durable());
        for (at, node) in self.nodes.iter().enumerate() {
            let id = node.member.node;
            let is_out = refuses(node) || self.impaired == Some(at) && lacks(node);
            if !is_out || node.replica.as_ref().is_some_and(|r| r.configuration() != &current) {
                continue;
            }
            let change = if current.leader.node == id {
                let mut rest = current.in_sync.iter().copied();
                let Some(follower) = rest.next() else { continue };
                Change::Takeover { follower, in_sync: rest.collect() }
            } else if let Some(member) = current.in_sync.iter().find(|m| m.node == id) {
                Change::Drop { leader: current.leader, followers: vec![*member] }
            } else {
                continue;
            };
            assert_eq!(self.impaired, Some(at), "who refuses its role has a reason");
            return self.decide(current.epoch, change);
        }
    }

    /// A person, who sees everything, puts another in the place of a leader that is down and cannot lead on in its epoch;
    /// leaves one out; or takes one back once it holds everything that is committed. Replicas do that by rules that are
    /// not there yet.
    fn intervene(&mut self) -> Verdict {
        let current = self.controller.current().clone();
        let (epoch, leader) = (current.epoch, current.leader);
        let at = self.index(leader.node);
        let begun = |disk: &Disk| disk.epoch() == epoch;
        if self.impaired.is_some() && self.below(2) == 0 {
            self.repair(true);
            return Ok(());
        }
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
            (0, Some(follower)) => self.decide(epoch, Change::Drop { leader, followers: vec![follower] }),
            (1, Some(follower)) if is_over => {
                let in_sync = rest.take(self.below(2) as usize).collect();
                self.decide(epoch, Change::Takeover { follower, in_sync });
            }
            (2, Some(to)) if is_over => {
                let in_sync = rest.chain([leader]).collect();
                self.decide(epoch, Change::Handoff { leader, to, in_sync });
            }
            (3.., _) if is_over => {
                let outside =
                    (0..self.nodes.len()).find(|n| current.members().all(|m| m.node != self.nodes[*n].member.node));
                if let Some(learner) = outside {
                    self.catch_up(learner, &current)?;
                    let learner = self.nodes[learner].member;
                    self.decide(epoch, Change::Add { leader, learner });
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
        self.decide(epoch, Change::Takeover { follower, in_sync: others });
        let second = self.index(follower.node);
        for _ in 0..60 {
            self.work()?;
        }
        self.write_alone(second, number + 10)?;
        self.crash(second);
        let (epoch, now_leads) = (self.controller.current().epoch, self.controller.current().leader);
        let begun = self.nodes[second].disk.epoch() == epoch;
        let current = self.controller.current().clone();
        if now_leads == follower && begun && current.members().all(|m| m.node != leader.node) {
            self.catch_up(first, &current)?;
            let leader = self.nodes[first].member;
            self.decide(epoch, Change::Add { leader: follower, learner: leader });
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
        let unsynced = self.nodes[node].disk.unsynced() as u64;
        let count = self.below(unsynced + 1) * self.below(2);
        self.sync(node, count as usize)
    }

    /// Brings everything that is committed onto the disk of a node that is no member, or onto an empty one in its place if it
    /// is damaged. What else it has stays, unless it stands in the way.
    fn catch_up(&mut self, node: usize, current: &Configuration) -> Verdict {
        self.crash(node);
        self.open(node)?;
        if !self.nodes[node].disk.is_whole() {
            self.replace_disk(node);
            self.open(node)?;
        }
        // What it takes part in is older than what it learns when it is a member.
        if self.nodes[node].disk.configuration().is_none_or(|c| c.epoch < current.epoch) {
            self.nodes[node].disk.append(LogEntry::Configuration(current.clone()), Lsn(0));
        }
        for record in self.checks.committed_records() {
            let (lsn, log) = (record.position.lsn, self.nodes[node].disk.live());
            match log.get(lsn.0 as usize - 1) {
                Some(here) if here.position == record.position => continue,
                Some(_) => {
                    let cut = LogEntry::Cut { from: lsn };
                    self.checks.append(node, &cut, log)?;
                    self.nodes[node].disk.append(cut, Lsn(0));
                }
                None => {}
            }
            self.nodes[node].disk.append(LogEntry::Record(record), Lsn(0));
            self.nodes[node].disk.hand_over();
        }
        self.nodes[node].lacks = false;
        self.nodes[node].disk.write_all();
        self.nodes[node].disk.crash(true, &mut self.random);
        Ok(())
    }

    /// Lets time pass without faults.
    fn run_well(&mut self, millis: u64) -> Verdict {
        for _ in 0..millis / 50 {
            self.pass(50)?;
            self.controller.proposals.drain(..).collect::<Vec<_>>().into_iter().for_each(|proposal| {
                self.decide(proposal.epoch, proposal.change);
            });
            let current = self.controller.current().clone();
            for node in 0..self.nodes.len() {
                self.learn(node, current.clone())?;
                for other in 0..self.nodes.len() {
                    self.connect(node, other)?;
                    self.send(node, other)?;
                    // Bounded, so that a fault that makes two go round and round is a failure, not a hang.
                    let is_empty = |link: &Link| link.there.is_empty() && link.back.is_empty();
                    for _ in 0..1000 {
                        if self.links.get(&(node, other)).is_none_or(is_empty) {
                            break;
                        }
                        self.deliver(node, other)?;
                    }
                }
                self.sync_all(node)?;
                for _ in 0..self.nodes[node].reads.len() {
                    self.answer_read(node)?;
                }
                self.keep_short(node);
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
        if self.impaired.is_some() {
            self.run_well(2_000)?;
            self.repair(false);
        }
        self.run_well(4_000)?;
        let leader = self.index(self.controller.current().leader.node);
        let replica = self.nodes[leader].replica.as_ref().ok_or("no leader in the end")?;
        let trouble = replica.trouble(self.now);
        if !self.plan.durable && trouble.as_ref().is_some_and(|t| t.contains("needs a copy of the table")) {
            // It lost from memory what is in no log any more, and there are no copies yet.
            self.coverage.needs_copy += 1;
            return Ok(());
        }
        ensure(replica.check_write(self.now).is_ok() && trouble.is_none(), || {
            format!("node {leader} does not serve in the end: {trouble:?}")
        })?;
        let before = replica.prepared().lsn;
        self.propose(leader, number)?;
        self.run_well(400)?;
        let after = self.nodes[leader].replica.as_ref().map(Replica::committed);
        ensure(after == Some(before.next()), || format!("a last write does not commit after {before}: {after:?}"))?;
        for member in self.controller.current().members() {
            let node = self.index(member.node);
            self.checks.settled(node, self.nodes[node].replica.as_ref().ok_or("a member is gone in the end")?)?;
        }
        (0..self.nodes.len()).for_each(|node| self.note_upkeep(node));
        Ok(())
    }
}
