//! What carries messages between nodes, and between them and the controller.
//!
//! A connection is made by who leads to each other node, and carries both ways. What is sent on it arrives in its order, unless
//! the run has messages lost, repeated and reordered one by one. When it is lost, what was on its way to the follower may
//! still arrive, late; what was on its way to the leader does not.

use crate::{
    checks::Verdict,
    node::Place,
    queue::{Happening, MS, Time},
    world::World,
};
use kv_proto::{
    control::Proposal,
    ids::{Epoch, NodeId},
    replication::PeerBody,
    stats::Role,
};
use kv_replication::replica::{Event, Replica};
use std::collections::BTreeMap;

/// A message on its way, and the epoch that it was said in.
pub(crate) type Letter = (Epoch, PeerBody);

/// Letters of a leader that may be on their way on one connection: what has no room waits in the replica.
const ROOM: usize = 6;

#[derive(Debug)]
struct Connection {
    partition: usize,
    from: usize,
    to: usize,
    /// The lives in which it was made.
    lives: [u32; 2],
    is_open: bool,
    /// Once it is not: by how much later what was on its way to the follower arrives, if it does.
    late: Option<Time>,
    /// When the last letter arrives, by direction.
    last: [Time; 2],
    /// Letters to the follower that have not arrived.
    on_their_way: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    made: u64,
    connections: BTreeMap<u64, Connection>,
    /// Those that are open, by partition, by who made them, and to whom.
    open: BTreeMap<(usize, usize, usize), u64>,
    /// Nothing gets from the one node to the other until then.
    pub(crate) blocked: BTreeMap<(usize, usize), Time>,
}

impl Network {
    pub(crate) fn is_open(&self, connection: u64) -> bool {
        self.connections.get(&connection).is_some_and(|c| c.is_open)
    }

    fn blocked_until(&self, from: usize, to: usize) -> Time {
        self.blocked.get(&(from, to)).copied().unwrap_or(0)
    }

    /// The open connections.
    pub(crate) fn open(&self) -> Vec<u64> {
        self.open.values().copied().collect()
    }
}

/// Whether it is the leader who says this.
fn is_leaders(body: &PeerBody) -> bool {
    !matches!(body, PeerBody::Report { .. } | PeerBody::Gap { .. } | PeerBody::Tail { .. })
}

impl World {
    /// The connection that a replica made to a node.
    pub(crate) fn connection(&self, place: Place, to: NodeId) -> Option<u64> {
        self.network.open.get(&(place.partition, place.node, self.index(to))).copied()
    }

    /// Whether there is room for another Prepare.
    fn has_room(&self, connection: u64) -> bool {
        self.network.connections.get(&connection).is_some_and(|c| c.on_their_way < ROOM)
    }

    /// A replica says something.
    pub(crate) fn send(&mut self, place: Place, to: NodeId, letter: Letter) -> Verdict {
        let (node, other) = (place.node, self.index(to));
        let life = (node, self.nodes[node].life);
        self.checks[place.partition].say(life, letter.0, &letter.1, &self.nodes[node].parts[place.partition].disk)?;
        match letter.1 {
            PeerBody::Fetch { .. } => self.coverage.note("fetches", 1),
            PeerBody::Gap { .. } => self.coverage.note("gaps", 1),
            PeerBody::Resign => self.coverage.note("resigned", 1),
            _ => {}
        }
        let to_follower = is_leaders(&letter.1);
        let ends = if to_follower { (node, other) } else { (other, node) };
        if let Some(connection) = self.network.open.get(&(place.partition, ends.0, ends.1)).copied() {
            self.send_on(connection, to_follower, letter);
        }
        Ok(())
    }

    /// A letter goes out on a connection.
    pub(crate) fn send_on(&mut self, connection: u64, to_follower: bool, letter: Letter) {
        let Some(c) = self.network.connections.get(&connection) else { return };
        let (from, to) = if to_follower { (c.from, c.to) } else { (c.to, c.from) };
        let blocked = self.network.blocked_until(from, to);
        let single = self.plan.datagrams && !self.healing;
        if single && self.random.one_in(24) {
            return;
        }
        // What is said once in an epoch is rare: it comes again, and late.
        let once = matches!(letter.1, PeerBody::Resign);
        let times = if single && (once || self.random.one_in(24)) { 2 } else { 1 };
        self.coverage.note("duplicates", times - 1);
        for time in 0..times {
            let now = self.queue.now;
            let late = single && (once && time > 0 || self.random.one_in(self.plan.late_one_in));
            let delay = match self.random.below(if self.healing { 16 } else { 20 }) {
                _ if late => self.random.below(3_000 * MS),
                0..16 => 50_000 + self.random.below(MS),
                16..19 => self.random.below(10 * MS),
                _ => self.random.below(300 * MS),
            };
            let c = self.network.connections.get_mut(&connection).expect("it was just there");
            let mut at = (now + delay).max(blocked);
            if !single {
                at = at.max(c.last[usize::from(to_follower)] + 1);
                c.last[usize::from(to_follower)] = at;
            }
            c.on_their_way += usize::from(to_follower);
            let letter = letter.clone();
            self.queue.push(at, Happening::Letter { connection, to_follower, late: false, letter });
        }
    }

    /// A letter arrives, if its connection is still what it was.
    pub(crate) fn handle_letter(&mut self, connection: u64, to_follower: bool, late: bool, letter: Letter) -> Verdict {
        let Some(c) = self.network.connections.get_mut(&connection) else { return Ok(()) };
        let (from, to, partition) = (c.from, c.to, c.partition);
        let (node, end, sender) = if to_follower { (to, 1, from) } else { (from, 0, to) };
        if !self.nodes[node].up || self.nodes[node].life != c.lives[end] {
            return Ok(());
        }
        if self.nodes[node].paused {
            self.nodes[node].missed.push(Happening::Letter { connection, to_follower, late, letter });
            return Ok(());
        }
        if c.is_open {
            c.on_their_way -= usize::from(to_follower);
        } else if !to_follower {
            return Ok(());
        } else if !late {
            if let Some(by) = c.late {
                let at = self.queue.now + by;
                self.queue.push(at, Happening::Letter { connection, to_follower, late: true, letter });
            }
            return Ok(());
        } else {
            self.coverage.note("late messages", 1);
        }
        let place = Place { node, partition };
        let from_id = self.nodes[sender].member.node;
        self.give(place, Event::Message { from: from_id, epoch: letter.0, body: letter.1 })?;
        if to_follower && self.nodes[sender].up && !self.nodes[sender].paused {
            self.pump(Place { node: sender, partition })?;
        }
        Ok(())
    }

    /// The Prepares that a replica has for others, as far as there is room.
    pub(crate) fn pump(&mut self, place: Place) -> Verdict {
        for other in 0..self.nodes.len() {
            let Some(connection) = self.network.open.get(&(place.partition, place.node, other)).copied() else {
                continue;
            };
            let to = self.nodes[other].member.node;
            while self.has_room(connection) {
                let now = self.clock(place.node);
                let Some(replica) = &mut self.part_mut(place).replica else { return Ok(()) };
                let epoch = replica.configuration().epoch;
                let Some(body) = replica.poll_prepare(now, to) else { break };
                self.send(place, to, (epoch, body))?;
            }
        }
        Ok(())
    }

    /// Who leads has a connection to each other node; who does not, gives them up at some time.
    pub(crate) fn look_after_connections(&mut self, place: Place) -> Verdict {
        let Some(replica) = &self.part(place).replica else { return Ok(()) };
        let leads = replica.role() == Role::Leader;
        for other in (0..self.nodes.len()).filter(|other| *other != place.node) {
            let open = self.network.open.get(&(place.partition, place.node, other)).copied();
            match open {
                None if leads => self.connect(place, other)?,
                Some(connection) if !leads && self.random.one_in(6) => self.disconnect(connection)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn connect(&mut self, place: Place, to: usize) -> Verdict {
        let (from, now) = (place.node, self.queue.now);
        let blocked = self.network.blocked_until(from, to).max(self.network.blocked_until(to, from)) > now;
        if blocked || !self.nodes[to].up || self.nodes[to].paused || self.part(place).replica.is_none() {
            return Ok(());
        }
        self.network.made += 1;
        let (connection, lives) = (self.network.made, [self.nodes[from].life, self.nodes[to].life]);
        let partition = place.partition;
        let made =
            Connection { partition, from, to, lives, is_open: true, late: None, last: [now; 2], on_their_way: 0 };
        self.network.connections.insert(connection, made);
        self.network.open.insert((partition, from, to), connection);
        self.give(place, Event::PeerConnected { peer: self.nodes[to].member })
    }

    /// A connection is gone, and who made it knows.
    pub(crate) fn disconnect(&mut self, connection: u64) -> Verdict {
        let Some(c) = self.network.connections.get(&connection).filter(|c| c.is_open) else { return Ok(()) };
        let (partition, from, to) = (c.partition, c.from, c.to);
        if self.nodes[from].paused {
            let life = self.nodes[from].life;
            debug_assert_eq!(life, c.lives[0]);
            self.nodes[from].missed.push(Happening::Lost { connection });
            return Ok(());
        }
        self.close(connection);
        self.coverage.note("connections lost", 1);
        let (place, peer) = (Place { node: from, partition }, self.nodes[to].member.node);
        self.give(place, Event::PeerLost { peer })?;
        if !self.nodes[from].up || !self.random.one_in(2) {
            return Ok(());
        }
        let leads = self.part(place).replica.as_ref().is_some_and(|r: &Replica| r.role() == Role::Leader);
        if leads && !self.network.open.contains_key(&(partition, from, to)) { self.connect(place, to) } else { Ok(()) }
    }

    fn close(&mut self, connection: u64) {
        let late = match self.random.below(4) {
            0 => None,
            1 => Some(self.random.below(2_500 * MS)),
            _ => Some(self.random.below(20 * MS)),
        };
        let Some(c) = self.network.connections.get_mut(&connection) else { return };
        (c.is_open, c.late) = (false, late.filter(|_| !self.healing));
        self.network.open.remove(&(c.partition, c.from, c.to));
    }

    /// The process of a node is gone: so are the connections that it made, and who made one to it will notice.
    pub(crate) fn end_connections(&mut self, node: usize) {
        let open: Vec<_> = self.network.open.iter().map(|(ends, connection)| (*ends, *connection)).collect();
        for ((_, from, to), connection) in open {
            if from == node {
                self.close(connection);
            } else if to == node {
                let slow = self.random.one_in(4) && !self.healing;
                let takes = if slow { self.random.below(3_000 * MS) } else { self.random.below(30 * MS) };
                self.queue.push(self.queue.now + takes, Happening::Lost { connection });
            }
        }
    }

    /// How long something takes to the controller or from it; `None` if it gets lost.
    fn controller_delay(&mut self, node: usize) -> Option<Time> {
        if self.nodes[node].cut_off_until > self.queue.now || !self.healing && self.random.one_in(12) {
            return None;
        }
        let long = !self.healing && self.random.one_in(12);
        let delay = if long { self.random.below(1_500 * MS) } else { MS / 10 + self.random.below(4 * MS) };
        Some(self.queue.now + delay)
    }

    pub(crate) fn propose(&mut self, node: usize, proposal: Proposal) {
        let times = if !self.healing && self.random.one_in(12) { 2 } else { 1 };
        for _ in 0..times {
            if let Some(at) = self.controller_delay(node) {
                self.queue.push(at, Happening::Proposal(proposal.clone()));
            }
        }
    }

    /// A node asks for the map.
    pub(crate) fn poll(&mut self, node: usize) {
        let (life, member) = (self.nodes[node].life, self.nodes[node].member);
        if let Some(at) = self.controller_delay(node) {
            self.queue.push(at, Happening::Poll { node, life, member });
        }
    }

    /// The map as it is now goes out to a node.
    pub(crate) fn push_map(&mut self, node: usize, answers: bool) {
        let (life, map) = (self.nodes[node].life, self.controller.map().clone());
        if self.nodes[node].up
            && let Some(at) = self.controller_delay(node)
        {
            self.queue.push(at, Happening::Map { node, life, map, answers });
        }
    }
}
