//! The streams between the executors of replicas.
//!
//! A leader's executor calls each executor of the other nodes of the shard that hosts a partition which it leads, and
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
    ids::{DiskId, Epoch, ExecutorIndex, Member, NodeId, PartitionId},
    replication::{PeerBatch, PeerBody, PeerMessage, Record, TAKES_NOTHING},
    stats,
};
use kv_replication::{clock::Instant64, replica::Event};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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
    /// Partitions that may have something to send to their followers, each once.
    queue: VecDeque<PartitionId>,
    batches: HashMap<LineKey, Batch>,
}

/// A node that follows partitions which this executor leads.
#[derive(Default)]
struct Peer {
    address: String,
    /// Which of its executors owns which of these partitions; `None` until it said so.
    partitions: BTreeMap<PartitionId, Option<ExecutorIndex>>,
    /// The connections to its executors, and the disk that it had when they were made.
    lines: BTreeMap<ExecutorIndex, (LineKey, DiskId)>,
    /// Bytes that the logs of its executors have room for, as they last said.
    room: BTreeMap<ExecutorIndex, u64>,
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

/// Whether it is the leader who says this.
fn is_leaders(body: &PeerBody) -> bool {
    match body {
        PeerBody::Prepare { .. }
        | PeerBody::Beacon { .. }
        | PeerBody::Fetch { .. }
        | PeerBody::Resign
        | PeerBody::CopyBegin { .. }
        | PeerBody::CopyPart { .. }
        | PeerBody::CopyEnd { .. } => true,
        PeerBody::Report { .. } | PeerBody::Gap { .. } | PeerBody::Tail { .. } => false,
    }
}

fn message_bytes(body: &PeerBody) -> usize {
    match body {
        PeerBody::Prepare { records, .. } | PeerBody::Tail { records, .. } => {
            64 + records.iter().map(Record::wire_bytes).sum::<usize>()
        }
        PeerBody::CopyPart { bytes, .. } => 64 + bytes.len(),
        _ => 64,
    }
}

impl Links {
    pub(super) fn line_to(&self, node: NodeId, id: PartitionId) -> Option<LineKey> {
        let peer = self.peers.get(&node)?;
        let executor = (*peer.partitions.get(&id)?)?;
        peer.lines.get(&executor).map(|(line, _)| *line)
    }

    /// The nodes to which there may be a way for a partition.
    fn peers_with(&self, id: PartitionId) -> impl Iterator<Item = NodeId> + '_ {
        let known = move |peer: &Peer| peer.partitions.get(&id).is_some_and(Option::is_some);
        self.peers.iter().filter(move |(_, peer)| known(peer)).map(|(node, _)| *node)
    }

    /// What is sent takes room at the follower, until it says what room it has then.
    fn take_room(&mut self, node: NodeId, id: PartitionId, bytes: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(Some(executor)) = peer.partitions.get(&id)
            && let Some(room) = peer.room.get_mut(executor)
            && ![u64::MAX, TAKES_NOTHING].contains(room)
        {
            *room = room.saturating_sub(bytes).max(TAKES_NOTHING + 1);
        }
    }
}

impl Executor {
    /// Brings the streams in line with the map: one to each executor that hosts what is led here.
    pub(super) fn update_links(&mut self) {
        let Some(view) = self.view.clone() else { return };
        let now = clock::now();
        let mut new = Vec::new();
        for at in 0..self.owned.len() {
            let id = self.owned[at];
            if view.map.configuration(id).is_none_or(|c| c.leader != self.shared.me) {
                self.end_streams(now, id);
                continue;
            }
            let Some(partition) = view.map.partitions.get(usize::from(id.0)) else { continue };
            let Some(shard) = view.map.shards.get(usize::from(partition.shard.0)) else { continue };
            for node in shard.nodes.iter().filter(|node| **node != self.shared.me.node) {
                let peer = self.links.peers.entry(*node).or_insert_with(|| {
                    new.push(*node);
                    Peer::default()
                });
                peer.partitions.entry(id).or_insert(None);
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

    /// A partition is led elsewhere, so that nothing is streamed from here any more. Connections of which nothing is left are
    /// silent from now on, and end by that.
    fn end_streams(&mut self, now: Instant64, id: PartitionId) {
        let peers = self.links.peers.iter_mut();
        let left: Vec<NodeId> = peers.filter_map(|(node, p)| p.partitions.remove(&id).map(|_| *node)).collect();
        for peer in left {
            self.give(now, id, Event::PeerLost { peer });
        }
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
        let mut connected = Vec::new();
        for (id, executor) in owners {
            if let Some(owner) = peer.partitions.get_mut(id)
                && owner.replace(*executor).is_none()
                && let Some((_, disk)) = peer.lines.get(executor)
            {
                connected.push((*id, Member { node, disk: *disk }));
            }
        }
        let done = peer.partitions.values().all(Option::is_some);
        let now = clock::now();
        for (id, peer) in connected {
            self.give(now, id, Event::PeerConnected { peer });
        }
        self.finish();
        done
    }

    /// A peer does not have the executor that it was asked for: what it said of its owners is old.
    pub(super) fn forget_owners(&mut self, node: NodeId, executor: ExecutorIndex) {
        if let Some(peer) = self.links.peers.get_mut(&node) {
            peer.partitions.values_mut().filter(|o| **o == Some(executor)).for_each(|owner| *owner = None);
        }
    }

    /// An executor of a peer accepted a call, which has become a connection.
    pub(super) fn handle_link(&mut self, line: LineKey, welcome: &Welcome) {
        let Some(peer) = self.links.peers.get_mut(&welcome.node) else { return };
        peer.lines.insert(welcome.executor, (line, welcome.disk));
        self.handle_peer(Member { node: welcome.node, disk: welcome.disk }, welcome.executor);
        self.wake_link_tasks();
    }

    /// An executor of a peer is connected, with the disk that it has now.
    fn handle_peer(&mut self, member: Member, executor: ExecutorIndex) {
        let now = clock::now();
        for id in self.common_partitions(member.node, executor) {
            self.give(now, id, Event::PeerConnected { peer: member });
        }
        self.finish();
    }

    /// A connection to an executor of a peer is gone.
    pub(super) fn handle_link_lost(&mut self, line: LineKey, node: NodeId, executor: ExecutorIndex) {
        self.links.batches.remove(&line);
        let Some(peer) = self.links.peers.get_mut(&node) else { return };
        if peer.lines.get(&executor).is_none_or(|(current, _)| *current != line) {
            return;
        }
        peer.lines.remove(&executor);
        peer.room.remove(&executor);
        // It may be another process now, with partitions elsewhere.
        self.forget_owners(node, executor);
        let Some(peer) = self.links.peers.get(&node) else { return };
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
        let line = match &body {
            body if is_leaders(body) => self.links.line_to(to, id),
            _ => self.links.leader_lines.get(&id).copied(),
        };
        let Some(epoch) = self.partition(id).map(|p| p.replica.configuration().epoch) else { return };
        if let Some(line) = line {
            self.queue_message(line, PeerMessage { partition: id, epoch, body });
        }
    }

    /// Queues that nothing is served any more in an epoch that is over, where its leader had a way to the next one.
    pub(super) fn resign(&mut self, id: PartitionId, to: NodeId, epoch: Epoch) {
        if let Some(line) = self.links.line_to(to, id) {
            self.queue_message(line, PeerMessage { partition: id, epoch, body: PeerBody::Resign });
        }
    }

    fn queue_message(&mut self, line: LineKey, message: PeerMessage) {
        let bytes = message_bytes(&message.body);
        let batch = self.links.batches.entry(line).or_default();
        if batch.bytes + bytes > BATCH_BYTES && !batch.messages.is_empty() {
            let full = mem::take(batch);
            self.append_batch(line, full);
        }
        let batch = self.links.batches.entry(line).or_default();
        batch.bytes += bytes;
        batch.messages.push(message);
    }

    fn append_batch(&mut self, line: LineKey, batch: Batch) {
        if matches!(self.lines.role(line), Some(Role::PeerIn { .. } | Role::PeerOut { .. })) {
            let batch = PeerBatch { room: self.log_room(), messages: batch.messages };
            self.append_to_line(line, |out| {
                frame::append_message(out, Kind::Replication, 0, |body| codec::encode_into(body, &batch));
            });
        }
    }

    /// A replica of another node says something. A leader is believed on the connection that it made, and only as the member
    /// that the configuration names; a follower or learner on the one that was made to it.
    pub(super) fn handle_peer_message(&mut self, now: Instant64, line: LineKey, role: Role, message: PeerMessage) {
        let id = message.partition;
        // Not known yet, or another executor's: whoever says it says it again.
        let (me, stops) = (self.shared.me, self.stopping.is_some());
        let Some(configuration) = self.partition(id).map(|p| p.replica.configuration()) else { return };
        let from_leader = is_leaders(&message.body);
        // Who is about to stop does not come back in sync before.
        if stops && from_leader && !configuration.is_member(me) {
            return;
        }
        let from = match role {
            // Who resigns leads no more; the core knows who may.
            Role::PeerIn { member } if message.body == PeerBody::Resign => member.node,
            Role::PeerIn { member } if from_leader && configuration.leader == member => member.node,
            // The core knows which disk is at the other end, and what that is to it.
            Role::PeerOut { member, .. } if !from_leader => member.node,
            _ => return,
        };
        if from_leader && message.epoch == configuration.epoch {
            self.links.leader_lines.insert(id, line);
        }
        self.give(now, id, Event::Message { from, epoch: message.epoch, body: message.body });
        // A report may say that something has to be sent, or sent again.
        self.touch(id);
    }

    /// A peer says what room the log of one of its executors has.
    pub(super) fn handle_room(&mut self, role: Role, room: u64) {
        if let Role::PeerOut { member, executor } = role
            && let Some(peer) = self.links.peers.get_mut(&member.node)
        {
            let before = peer.room.insert(executor, room);
            if room == TAKES_NOTHING && before != Some(room) {
                self.do_without(member.node, executor);
            }
        }
    }

    /// The disk of a follower takes nothing: what is led here goes on without it, and has it catch up when it does again.
    fn do_without(&mut self, node: NodeId, executor: ExecutorIndex) {
        let now = clock::now();
        for id in self.common_partitions(node, executor) {
            self.give(now, id, Event::DropFollower { node });
        }
    }

    /// The follower of a partition whose log has the least room, and how much.
    pub(super) fn fullest_follower(&self, id: PartitionId) -> Option<(NodeId, u64)> {
        let in_sync = &self.partitions.get(usize::from(id.0))?.as_ref()?.replica.configuration().in_sync;
        let peers = self.links.peers.iter().filter(|(node, _)| in_sync.iter().any(|m| m.node == **node));
        let followers = peers.filter_map(|(node, peer)| {
            let executor = (*peer.partitions.get(&id)?)?;
            Some((*node, *peer.room.get(&executor)?))
        });
        followers.min_by_key(|(_, room)| *room)
    }

    /// If the partition is led here, it may have something to send to its followers.
    pub(super) fn touch(&mut self, id: PartitionId) {
        if let Some(partition) = self.partitions.get_mut(usize::from(id.0)).and_then(Option::as_mut)
            && partition.replica.role() == stats::Role::Leader
            && !mem::replace(&mut partition.queued, true)
        {
            self.links.queue.push_back(id);
        }
    }

    /// Sends followers what they were not sent yet, as far as there is room on the way, and closes the frames. Each
    /// partition has its turn once; what it cannot send it is asked for again when there is room.
    pub(super) fn send_prepares(&mut self) {
        let now = clock::now();
        for _ in 0..self.links.queue.len() {
            let Some(id) = self.links.queue.pop_front() else { break };
            let Some(partition) = self.partition(id) else { continue };
            partition.queued = false;
            let peers: Vec<NodeId> = self.links.peers_with(id).collect();
            for peer in peers {
                if !self.send_copy_parts(id, peer) || !self.send_prepares_to(now, id, peer) {
                    self.touch(id);
                }
            }
        }
        for (line, batch) in mem::take(&mut self.links.batches) {
            self.append_batch(line, batch);
        }
    }

    /// Whether more may be put into the output to a peer.
    pub(super) fn has_room_to(&self, line: LineKey) -> bool {
        let queued = self.links.batches.get(&line).map_or(0, |b| b.bytes);
        self.lines.unsent(line) + queued <= MAX_QUEUED_BYTES
    }

    /// Sends a follower what it was not sent yet; false when there is no room for all of it. Without a connection
    /// there is nothing to send: the follower is asked what it has on the next one.
    fn send_prepares_to(&mut self, now: Instant64, id: PartitionId, follower: NodeId) -> bool {
        let Some(line) = self.links.line_to(follower, id) else { return true };
        loop {
            if !self.has_room_to(line) {
                return false;
            }
            let Some(body) = self.partition(id).and_then(|p| p.replica.poll_prepare(now, follower)) else {
                return true;
            };
            self.links.take_room(follower, id, message_bytes(&body) as u64);
            self.send_to_peer(id, follower, body);
        }
    }
}
