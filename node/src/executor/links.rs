//! The streams between the executors of replicas.
//!
//! A leader's executor calls each executor of its followers' nodes that owns a partition which it leads, and
//! streams all their common partitions on that one connection; the answers come back on it. Which executor owns
//! what is the peer's own choice, so it is asked first.
//!
//! # Invariants
//! * At most one connection to each executor of a peer, made by one task for each peer node.
//! * No more than [`MAX_QUEUED_BYTES`] of records (and one Prepare) stand in a connection's output, so that a beacon
//!   never waits long behind them; what has no room stays in the core's log.

use super::{Executor, LineKey};
use crate::{clock, transport::connection::Role};
use kv_proto::{
    codec,
    frame::{self, Kind},
    hello::Welcome,
    ids::{ExecutorIndex, Member, NodeId, PartitionId},
    replication::{PeerBatch, PeerBody, PeerMessage},
};
use kv_replication::replica::{Action, Event};
use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

/// Bytes of records that may stand in the output to a peer.
const MAX_QUEUED_BYTES: usize = 256 * 1024;
/// A frame of several messages is closed before it passes this, in bytes.
const BATCH_BYTES: usize = 48 * 1024;

/// All streams of an executor.
#[derive(Default)]
pub(super) struct Links {
    peers: BTreeMap<NodeId, Peer>,
    /// Where a followed partition's leader was last heard.
    leader_lines: HashMap<PartitionId, LineKey>,
    /// Partitions that may have something to send to their followers.
    touched: Vec<PartitionId>,
    batches: HashMap<LineKey, Batch>,
}

/// A node that follows partitions which this executor leads.
#[derive(Default)]
struct Peer {
    address: String,
    /// Which of its executors owns which of these partitions; `None` until it said so.
    partitions: BTreeMap<PartitionId, Option<ExecutorIndex>>,
    lines: BTreeMap<ExecutorIndex, LineKey>,
}

/// Messages that go out in one frame.
#[derive(Default)]
struct Batch {
    messages: Vec<PeerMessage>,
    bytes: usize,
}

/// What the task of a peer has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LinkTask {
    /// Ask the node at this address which of its executors owns what.
    AskOwners(String),
    /// Call this executor of the node at this address.
    Call(String, ExecutorIndex),
    /// Nothing, until something changes.
    Wait,
}

fn message_bytes(body: &PeerBody) -> usize {
    match body {
        PeerBody::Prepare { records, .. } => 64 + records.iter().map(|r| r.payload.len() + 64).sum::<usize>(),
        _ => 64,
    }
}

impl Links {
    /// The partition may have something to send.
    pub(super) fn touch(&mut self, id: PartitionId) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    /// The leader of a followed partition was heard on this connection, and is answered there.
    pub(super) fn remember_leader(&mut self, id: PartitionId, line: LineKey) {
        self.leader_lines.insert(id, line);
    }

    fn line_to(&self, node: NodeId, id: PartitionId) -> Option<LineKey> {
        let peer = self.peers.get(&node)?;
        let executor = (*peer.partitions.get(&id)?)?;
        peer.lines.get(&executor).copied()
    }
}

impl Executor {
    /// Brings the streams in line with the map: one to each executor that owns a follower of what is led here.
    pub(super) fn update_links(&mut self) {
        let Some(view) = self.view.clone() else { return };
        let me = self.shared.me;
        let mut new = Vec::new();
        for id in &self.owned {
            let Some(configuration) = view.map.configuration(*id).filter(|c| c.leader == me) else { continue };
            for follower in &configuration.in_sync {
                let peer = self.links.peers.entry(follower.node).or_insert_with(|| {
                    new.push(follower.node);
                    Peer::default()
                });
                peer.partitions.entry(*id).or_insert(None);
            }
        }
        new.into_iter().for_each(|node| self.spawn_link_task(node));
        for (node, peer) in &mut self.links.peers {
            if let Some(node) = view.map.node(*node) {
                peer.address.clone_from(&node.address);
            }
        }
        self.wake_link_tasks();
    }

    /// What the task of a peer has to do next.
    pub(super) fn link_task(&self, node: NodeId) -> LinkTask {
        let Some(peer) = self.links.peers.get(&node).filter(|p| !p.address.is_empty()) else { return LinkTask::Wait };
        if peer.partitions.values().any(Option::is_none) {
            return LinkTask::AskOwners(peer.address.clone());
        }
        let missing = peer.partitions.values().flatten().find(|e| !peer.lines.contains_key(e));
        missing.map_or(LinkTask::Wait, |executor| LinkTask::Call(peer.address.clone(), *executor))
    }

    /// A peer says which of its executors owns what. Says whether nothing is left to ask.
    pub(super) fn handle_owners(&mut self, node: NodeId, owners: &[(PartitionId, ExecutorIndex)]) -> bool {
        let Some(peer) = self.links.peers.get_mut(&node) else { return true };
        for (id, executor) in owners {
            if let Some(owner) = peer.partitions.get_mut(id) {
                *owner = Some(*executor);
            }
        }
        peer.partitions.values().all(Option::is_some)
    }

    /// An executor of a peer accepted a call, which has become a connection.
    pub(super) fn handle_link(&mut self, line: LineKey, welcome: &Welcome) {
        let Some(peer) = self.links.peers.get_mut(&welcome.node) else { return };
        peer.lines.insert(welcome.executor, line);
        let now = clock::now();
        let member = Member { node: welcome.node, disk: welcome.disk };
        for id in self.common_partitions(welcome.node, welcome.executor) {
            self.give(now, id, Event::PeerConnected { peer: member });
        }
        self.finish();
        self.wake_link_tasks();
    }

    /// A connection to an executor of a peer is gone.
    pub(super) fn handle_link_lost(&mut self, line: LineKey, node: NodeId, executor: ExecutorIndex) {
        self.links.batches.remove(&line);
        let Some(peer) = self.links.peers.get_mut(&node) else { return };
        if peer.lines.get(&executor) == Some(&line) {
            peer.lines.remove(&executor);
        }
        // It may be another process now, with partitions elsewhere.
        for owner in peer.partitions.values_mut().filter(|o| **o == Some(executor)) {
            *owner = None;
        }
        let now = clock::now();
        let led: Vec<PartitionId> = peer.partitions.iter().filter(|(_, o)| o.is_none()).map(|(id, _)| *id).collect();
        for id in led {
            self.give(now, id, Event::PeerLost { peer: node });
        }
        self.wake_link_tasks();
    }

    fn common_partitions(&self, node: NodeId, executor: ExecutorIndex) -> Vec<PartitionId> {
        let Some(peer) = self.links.peers.get(&node) else { return Vec::new() };
        peer.partitions.iter().filter(|(_, owner)| **owner == Some(executor)).map(|(id, _)| *id).collect()
    }

    /// Queues what the core of a partition says to its replica at another node. Without a way there it is dropped:
    /// the core repeats itself.
    pub(super) fn send_to_peer(&mut self, id: PartitionId, to: NodeId, body: PeerBody) {
        let line = match body {
            PeerBody::Prepare { .. } | PeerBody::Beacon { .. } => self.links.line_to(to, id),
            PeerBody::Report { .. } | PeerBody::Gap { .. } => self.links.leader_lines.get(&id).copied(),
        };
        let Some(line) = line else { return };
        let Some(epoch) = self.partition(id).map(|p| p.replica.configuration().epoch) else { return };
        let bytes = message_bytes(&body);
        let batch = self.links.batches.entry(line).or_default();
        if batch.bytes + bytes > BATCH_BYTES && !batch.messages.is_empty() {
            let full = mem::take(batch);
            self.append_batch(line, full);
        }
        let batch = self.links.batches.entry(line).or_default();
        batch.bytes += bytes;
        batch.messages.push(PeerMessage { partition: id, epoch, body });
    }

    fn append_batch(&mut self, line: LineKey, batch: Batch) {
        if matches!(self.lines.role(line), Some(Role::PeerIn { .. } | Role::PeerOut { .. })) {
            let batch = PeerBatch { messages: batch.messages };
            self.append_to_line(line, |out| {
                frame::append_message(out, Kind::Replication, 0, |body| codec::encode_into(body, &batch));
            });
        }
    }

    /// Sends followers what they were not sent yet, as far as there is room on the way, and closes the frames.
    pub(super) fn send_prepares(&mut self) {
        let mut actions = mem::take(&mut self.actions);
        for id in mem::take(&mut self.links.touched) {
            let Some(partition) = self.partition(id) else { continue };
            let followers: Vec<NodeId> = partition.replica.configuration().in_sync.iter().map(|m| m.node).collect();
            for follower in followers {
                let Some(line) = self.links.line_to(follower, id) else { continue };
                if self.lines.unsent(line) > MAX_QUEUED_BYTES {
                    self.links.touch(id);
                    continue;
                }
                let Some(partition) = self.partition(id) else { continue };
                partition.replica.poll_prepares(follower, &mut actions);
                for action in actions.drain(..) {
                    if let Action::Send { to, body } = action {
                        self.send_to_peer(id, to, body);
                    }
                }
            }
        }
        self.actions = actions;
        for (line, batch) in mem::take(&mut self.links.batches) {
            self.append_batch(line, batch);
        }
    }
}
