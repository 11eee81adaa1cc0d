//! Mail between the executors of a node.
//!
//! A request that arrives at another executor than the one that owns its partition is passed on as it is, and its
//! answer comes back ready to be sent. A routing client calls the right executor, so this is the exception.
//!
//! # Invariants
//! * What an executor has under way to the others is bounded ([`MAX_FORWARDED`]), and with it every mailbox.

use super::{
    Executor,
    report::Reporting,
    requests::{Origin, append_response},
};
use crate::{
    clock,
    storage::{Gone, ReadLog},
};
use kv_proto::{
    cluster_map::ClusterMap,
    codec,
    control::Proposal,
    error_code::{ErrorCode, WireError},
    hello::Hello,
    ids::{ExecutorIndex, Lsn, PartitionId},
    replication::Record,
    request::Request,
    response::Response,
    stats::{NodeStats, ReplicaStats},
};
use kv_replication::clock::Instant64;
use kv_storage::log::writer::Flushed;
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

/// How many requests an executor may have under way to others.
const MAX_FORWARDED: usize = 1024;
/// Bytes that their bodies may take in all.
const MAX_FORWARDED_BYTES: usize = 64 * 1024 * 1024;

/// What one executor has for another.
pub(crate) enum Mail {
    /// A connection whose caller wants this executor.
    Adopt {
        /// Its socket.
        fd: OwnedFd,
        /// The id of the hello's frame.
        id: u64,
        /// What the caller said.
        hello: Hello,
    },
    /// A request for a partition that this executor owns.
    Forward {
        /// Whom to answer.
        origin: Origin,
        /// When nobody waits any more.
        deadline: Instant64,
        /// The encoded request.
        body: Vec<u8>,
    },
    /// The answer to a forwarded request.
    Answer {
        /// The request.
        origin: Origin,
        /// What to send on it.
        frames: Vec<u8>,
    },
    /// What the node knows of the cluster has changed.
    View(Arc<View>),
    /// Add your statistics.
    Collect(Arc<Collection>),
    /// All have added theirs.
    Collected(Arc<Collection>),
    /// Add what you have to the report of the node.
    Report(Arc<Reporting>),
    /// All have added theirs.
    Reported(Arc<Reporting>),
    /// A batch of the log is on disk.
    Flushed(Box<Flushed>),
    /// What was read from the log.
    LogRead {
        /// What was asked for.
        read: ReadLog,
        /// What was found, by LSN.
        records: BTreeMap<Lsn, Record>,
    },
    /// A checkpoint is published, or has failed.
    Checkpointed {
        /// Whether it is published.
        published: bool,
    },
    /// These segments of the log are gone.
    SegmentsGone(Gone),
    /// Changes of configurations to ask the controller for.
    Propose(Vec<Proposal>),
    /// Whether the controller can be reached.
    Controller {
        /// Whether it can.
        reachable: bool,
    },
    /// Pass on leadership, if that is wanted; then take nothing new, finish what is under way, and end.
    Stop(Stop),
}

/// How a node is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Alone, while others go on: leadership passes to them first.
    HandingOff,
    /// With everything else.
    AtOnce,
}

/// What a node knows of the cluster, and which of its executors owns what.
#[derive(Debug, PartialEq)]
pub(crate) struct View {
    /// The cluster map.
    pub(crate) map: ClusterMap,
    /// The owner of each partition that this node hosts, by partition.
    owners: Vec<Option<ExecutorIndex>>,
}

impl View {
    /// The view of a new map: a partition that this node hosts keeps its owner, or is given to the executor that
    /// has the fewest.
    pub(crate) fn new(map: ClusterMap, before: Option<&View>, node: kv_proto::ids::NodeId, executors: usize) -> View {
        let mut owners = before.map(|v| v.owners.clone()).unwrap_or_default();
        owners.resize(map.partitions.len(), None);
        let mut load = vec![0; executors];
        for owner in owners.iter().flatten() {
            load[usize::from(owner.0)] += 1;
        }
        for (owner, partition) in owners.iter_mut().zip(&map.partitions) {
            let in_shard = map.shards.get(usize::from(partition.shard.0)).is_some_and(|s| s.nodes.contains(&node));
            let hosted = partition.configuration.is_some() && in_shard;
            if hosted && owner.is_none() {
                let least = (0..executors).min_by_key(|e| load[*e]).expect("a node has executors");
                load[least] += 1;
                *owner = Some(ExecutorIndex(least as u16));
            }
        }
        View { map, owners }
    }

    /// The executor that owns a partition, if this node hosts it.
    pub(crate) fn owner(&self, id: PartitionId) -> Option<ExecutorIndex> {
        *self.owners.get(usize::from(id.0))?
    }

    /// All partitions that this node hosts, with their owners.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (PartitionId, ExecutorIndex)> + '_ {
        self.owners.iter().enumerate().filter_map(|(id, owner)| Some((PartitionId(id as u16), (*owner)?)))
    }
}

/// Statistics on their way through all executors.
pub(crate) struct Collection {
    origin: Origin,
    inner: Mutex<Collected>,
}

struct Collected {
    missing: usize,
    requests: u64,
    replicas: Vec<ReplicaStats>,
}

impl Collection {
    pub(super) fn new(origin: Origin, executors: usize) -> Self {
        Collection { origin, inner: Mutex::new(Collected { missing: executors, requests: 0, replicas: Vec::new() }) }
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    /// Adds an executor's part; true if it was the last.
    pub(super) fn add(&self, replicas: Vec<ReplicaStats>, requests: u64) -> bool {
        let mut collected = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        collected.replicas.extend(replicas);
        collected.requests += requests;
        collected.missing -= 1;
        collected.missing == 0
    }
}

impl Executor {
    /// Passes a request on to the executor that owns its partition.
    pub(super) fn forward(
        &mut self,
        owner: ExecutorIndex,
        origin: Origin,
        deadline: Instant64,
        body: &[u8],
    ) -> Result<(), WireError> {
        if self.forwarded >= MAX_FORWARDED || self.forwarded_bytes + body.len() > MAX_FORWARDED_BYTES {
            let message = "too many requests are under way between the executors of this node";
            return Err(WireError::new(ErrorCode::Overloaded, message));
        }
        self.expect_answer(origin.line);
        self.forwarded_bytes += origin.bytes;
        self.shared.mail[usize::from(owner.0)].send(Mail::Forward { origin, deadline, body: body.to_vec() });
        Ok(())
    }

    /// Takes in a mail. The caller ends the batch by `finish`.
    pub(super) fn handle_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Adopt { fd, id, hello } => self.adopt(fd, id, &hello),
            Mail::Forward { origin, deadline, body } => self.handle_forwarded(origin, deadline, &body),
            Mail::Answer { origin, frames } => {
                self.forwarded_bytes -= origin.bytes;
                self.handle_answered(origin.line);
                self.append_to_line(origin.line, |out| out.extend_from_slice(&frames));
            }
            Mail::View(view) => self.handle_view(view),
            Mail::Collect(collection) => self.add_stats(&collection),
            Mail::Collected(collection) => self.answer_stats(&collection),
            Mail::Report(reporting) => self.add_report(&reporting),
            Mail::Reported(reporting) => self.answer_report(&reporting),
            Mail::Flushed(flushed) => self.handle_flushed(&flushed),
            Mail::LogRead { read, records } => match read.to {
                Some(to) => self.handle_log_read(&read, to, records),
                None => self.note_read(records),
            },
            Mail::Checkpointed { published } => self.note_checkpoint(published),
            Mail::SegmentsGone(gone) => self.handle_segments_gone(&gone),
            Mail::Propose(proposals) => self.send_to_controller(proposals),
            Mail::Controller { reachable } => self.handle_controller_reachable(reachable),
            Mail::Stop(stop) => self.stopping = Some(stop),
        }
    }

    fn handle_forwarded(&mut self, origin: Origin, deadline: Instant64, body: &[u8]) {
        let now = clock::now();
        let mut out = Vec::new();
        match codec::decode::<Request>(body) {
            Ok(request) => self.handle_request(now, origin, deadline, &request, body, &mut out),
            Err(error) => {
                let error = WireError::new(ErrorCode::Malformed, error.to_string());
                append_response(&mut out, origin.id, &Response::Error(error));
            }
        }
        if !out.is_empty() {
            self.shared.mail[usize::from(origin.executor.0)].send(Mail::Answer { origin, frames: out });
        }
    }

    fn answer_stats(&mut self, collection: &Collection) {
        let mut collected = collection.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replicas = std::mem::take(&mut collected.replicas);
        replicas.sort_by_key(|r| r.partition);
        let stats = NodeStats {
            node: self.shared.me.node,
            disk: self.shared.me.disk,
            uptime_s: clock::now().since(self.shared.started).as_secs(),
            connections: self.shared.connections.load(Ordering::Relaxed) as u64,
            requests: collected.requests,
            memory_bytes: self.shared.memory.bytes(),
            max_memory_bytes: self.shared.settings.max_memory_bytes,
            generation: self.shared.storage.generation,
            log_bytes: self.shared.storage.catalog().all_bytes(),
            disk_full: self.shared.storage.is_full(),
            replicas,
        };
        self.handle_answered(collection.origin.line);
        self.answer(collection.origin, &Response::Stats(Box::new(stats)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Configuration, Partition, Shard},
        ids::{ClusterId, DiskId, Epoch, HistoryId, MapVersion, Member, NodeId, ShardId},
    };

    fn map(leaders: &[Option<&str>]) -> ClusterMap {
        let partition = |leader: &Option<&str>| Partition {
            shard: ShardId(u16::from(*leader == Some("other"))),
            configuration: leader.map(|name| Configuration {
                epoch: Epoch(1),
                history: HistoryId(0),
                leader: Member { node: NodeId::new(name).expect("a name"), disk: DiskId(1) },
                in_sync: vec![],
            }),
        };
        ClusterMap {
            cluster: ClusterId(1),
            version: MapVersion(1),
            replicas: 1,
            ack: AckMode::Durable,
            shards: [["me", "peer"], ["other", "peer"]]
                .map(|names| Shard { nodes: names.map(|name| NodeId::new(name).expect("a name")).to_vec() })
                .to_vec(),
            nodes: vec![],
            partitions: leaders.iter().map(partition).collect(),
        }
    }

    #[test]
    fn partitions_are_spread_over_executors_and_stay_where_they_are() {
        let me = NodeId::new("me").expect("a name");
        let owners = |view: &View| view.owners.iter().map(|o| o.map(|e| e.0)).collect::<Vec<_>>();
        let first = View::new(map(&[Some("me"), Some("other"), None, Some("peer"), Some("me")]), None, me, 2);
        assert_eq!(owners(&first), [Some(0), None, None, Some(1), Some(0)]);
        let second =
            View::new(map(&[Some("me"), Some("peer"), Some("me"), Some("me"), Some("me")]), Some(&first), me, 2);
        assert_eq!(owners(&second), [Some(0), Some(1), Some(0), Some(1), Some(0)]);
    }
}
