//! What happens in the simulation, in which mixture, and how it ends.

use crate::{
    checks::{Verdict, ensure},
    disk::Disk,
    world::{Link, World},
};
use kv_proto::{control::Change, ids::Lsn};
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
                    // Bounded, so that a fault that makes two go round and round is a failure, not a hang.
                    let is_empty = |link: &Link| link.there.is_empty() && link.back.is_empty();
                    for _ in 0..1000 {
                        if self.links.get(&(node, other)).is_none_or(is_empty) {
                            break;
                        }
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
        let before = replica.prepared().lsn;
        self.propose(leader, number)?;
        self.run_well(400)?;
        let after = self.nodes[leader].replica.as_ref().map(Replica::committed);
        ensure(after == Some(before.next()), || format!("a last write does not commit after {before}: {after:?}"))?;
        for member in self.controller.current().members() {
            let node = self.index(member.node);
            self.checks.settled(node, self.nodes[node].replica.as_ref().ok_or("a member is gone in the end")?)?;
        }
        Ok(())
    }
}
