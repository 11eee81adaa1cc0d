//! Seeded simulation of the core: a leader and its followers, connections that break, what was on them lost or late, logs
//! that flush late, clocks that advance. Every step checks what must always hold; when the faults stop, everything
//! that was proposed must be everywhere.
//!
//! `KV_SIM_SEEDS=100000` runs that many seeds, `KV_SIM_SEED=7` replays one.

use kv_proto::{
    cluster_map::Configuration,
    ids::{DiskId, Epoch, HistoryId, Lsn, Member, NodeId, PartitionId},
    replication::PeerBody,
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, Options, Outcome, Replica, Token},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// The leader is node 0.
struct Simulation {
    random: u64,
    now: Instant64,
    replicas: Vec<Replica>,
    nodes: Vec<NodeId>,
    /// By follower: what is on the way to it, and back. `None` while there is no connection.
    network: Vec<Option<(VecDeque<PeerBody>, VecDeque<PeerBody>)>>,
    /// By follower: what was on the way to it when its connection broke, and may still arrive.
    late: Vec<VecDeque<PeerBody>>,
    applied: Vec<Vec<u64>>,
    proposed: BTreeSet<u64>,
    acknowledged: BTreeMap<u64, Lsn>,
    refused: BTreeSet<u64>,
}

impl Simulation {
    fn new(seed: u64, followers: usize) -> Self {
        let nodes: Vec<NodeId> = (0..=followers).map(|i| NodeId::new(&format!("n{i}")).expect("a name")).collect();
        let member = |node: &NodeId| Member { node: *node, disk: DiskId(1) };
        let configuration = Configuration {
            epoch: Epoch(1),
            history: HistoryId(0),
            leader: member(&nodes[0]),
            in_sync: nodes[1..].iter().map(member).collect(),
        };
        let options = Options { max_pending_records: 8, ..Options::default() };
        let replica = |node| Replica::new(PartitionId(0), member(node), configuration.clone(), options, Instant64(0));
        Simulation {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            now: Instant64(0),
            replicas: nodes.iter().map(replica).collect(),
            network: vec![None; followers],
            late: vec![VecDeque::new(); followers],
            applied: vec![Vec::new(); nodes.len()],
            nodes,
            proposed: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// xorshift64: the tests need a sequence that a seed fixes, not a good one.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    fn give(&mut self, node: usize, event: Event) {
        let mut actions = Actions::new();
        self.replicas[node].handle(self.now, event, &mut actions);
        self.carry_out(node, actions);
    }

    fn carry_out(&mut self, node: usize, actions: Actions) {
        for action in actions {
            match action {
                Action::Append(_) => {}
                Action::Apply(record) => {
                    let number = u64::from_le_bytes(record.payload[..].try_into().expect("8 bytes"));
                    self.applied[node].push(number);
                }
                Action::Reply { token, outcome } => match outcome {
                    Outcome::Committed => {
                        let lsn = self.replicas[0].committed();
                        self.acknowledged.insert(token.0, lsn);
                        // Flushed at every member, or the acknowledgement was a lie.
                        let at = self.applied[0].len() as u64;
                        assert!(
                            self.replicas.iter().all(|r| r.flushed().0 >= at),
                            "acknowledged before it was everywhere"
                        );
                    }
                    Outcome::Refused(_) => {
                        self.proposed.remove(&token.0);
                        self.refused.insert(token.0);
                    }
                    Outcome::Unknown => panic!("nothing ends the epoch"),
                },
                Action::Send { to, body } => {
                    let to = self.nodes.iter().position(|n| *n == to).expect("a node");
                    let follower = if node == 0 { to } else { node };
                    if let Some((there, back)) = &mut self.network[follower - 1] {
                        if node == 0 { there.push_back(body) } else { back.push_back(body) }
                    }
                }
            }
        }
    }

    fn connect(&mut self, follower: usize) {
        self.network[follower - 1] = Some(Default::default());
        self.give(0, Event::PeerConnected { peer: Member { node: self.nodes[follower], disk: DiskId(1) } });
    }

    fn disconnect(&mut self, follower: usize) {
        if let Some((there, _)) = self.network[follower - 1].take() {
            self.late[follower - 1].extend(there);
        }
        self.give(0, Event::PeerLost { peer: self.nodes[follower] });
    }

    fn flush(&mut self, node: usize, upto: u64) {
        self.give(node, Event::Flushed { lsn: Lsn(upto) });
    }

    fn send(&mut self, follower: usize) {
        let to = self.nodes[follower];
        while let Some(body) = self.replicas[0].poll_prepare(to) {
            self.carry_out(0, vec![Action::Send { to, body }]);
        }
    }

    fn deliver(&mut self, follower: usize, back: bool) -> bool {
        let Some((there, from)) = &mut self.network[follower - 1] else { return false };
        let Some(body) = (if back { from } else { there }).pop_front() else { return false };
        let (from, to) = if back { (follower, 0) } else { (0, follower) };
        self.give(to, Event::Message { from: self.nodes[from], epoch: Epoch(1), body });
        true
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        if self.replicas[0].poll_timeout().is_some_and(|due| due <= self.now) {
            self.give(0, Event::Timeout);
        }
    }

    fn step(&mut self, number: u64) {
        let nodes = self.nodes.len() as u64;
        let follower = 1 + self.below(nodes - 1) as usize;
        match self.below(16) {
            0..4 => {
                self.proposed.insert(number);
                let payload = number.to_le_bytes().as_slice().into();
                self.give(0, Event::ClientWrite { payload, operation_id: None, token: Token(number) });
            }
            4..7 => {
                let node = self.below(nodes) as usize;
                let (flushed, prepared) = (self.replicas[node].flushed().0, self.replicas[node].prepared().lsn.0);
                if flushed < prepared {
                    let upto = flushed + 1 + self.below(prepared - flushed);
                    self.flush(node, upto);
                }
            }
            7..9 => self.send(follower),
            9..11 => drop(self.deliver(follower, false)),
            11..13 => drop(self.deliver(follower, true)),
            13 => {
                let millis = self.below(400);
                self.pass(millis);
            }
            14 if self.below(3) == 0 => self.disconnect(follower),
            14 => {
                if let Some(body) = self.late[follower - 1].pop_front() {
                    self.give(follower, Event::Message { from: self.nodes[0], epoch: Epoch(1), body });
                }
            }
            _ => {
                if self.network[follower - 1].is_none() {
                    self.connect(follower);
                }
            }
        }
    }

    fn check(&self) {
        let leader = &self.replicas[0];
        for (node, replica) in self.replicas.iter().enumerate() {
            assert!(replica.committed() <= replica.flushed() && replica.flushed() <= replica.prepared().lsn);
            assert!(leader.committed() <= replica.flushed(), "committed what node {node} has not flushed");
            assert!(replica.committed() <= leader.committed());
            assert!(self.applied[0].starts_with(&self.applied[node]), "node {node} applied something else");
            assert_eq!(self.applied[node].len() as u64, replica.committed().0);
        }
        assert!(self.acknowledged.keys().all(|n| self.applied[0].contains(n)), "acknowledged and not applied");
        assert!(self.applied[0].iter().all(|n| !self.refused.contains(n)), "refused and applied");
    }

    /// No more faults: everything proposed is everywhere within a bounded number of rounds.
    fn heal(&mut self) {
        for follower in 1..self.nodes.len() {
            if self.network[follower - 1].is_none() {
                self.connect(follower);
            }
        }
        for _ in 0..50 {
            self.pass(100);
            for node in 0..self.nodes.len() {
                if node > 0 {
                    self.send(node);
                    while self.deliver(node, false) {}
                }
                self.flush(node, self.replicas[node].prepared().lsn.0);
                if node > 0 {
                    while self.deliver(node, true) {}
                }
            }
            self.check();
        }
        let all: Vec<u64> = self.proposed.iter().copied().collect();
        for (node, applied) in self.applied.iter().enumerate() {
            assert_eq!(*applied, all, "node {node} lacks something, or has it in another order");
        }
        assert_eq!(self.acknowledged.keys().copied().collect::<Vec<_>>(), all, "not everyone was answered");
        assert!(self.replicas[0].check_write(self.now).is_ok());
    }
}

fn run(seed: u64) {
    let mut simulation = Simulation::new(seed, 1 + (seed % 2) as usize);
    for number in 0..400 {
        simulation.step(number);
        simulation.check();
    }
    simulation.heal();
}

#[test]
fn nothing_acknowledged_is_lost_whatever_breaks() {
    let number = |name| std::env::var(name).ok().map(|v: String| v.parse().expect("a number"));
    let seeds = match number("KV_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KV_SIM_SEEDS").unwrap_or(500),
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!(
                "failed with seed {seed}; replay it by KV_SIM_SEED={seed} cargo test -p kv-replication --test simulation"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
