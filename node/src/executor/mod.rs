//! The pump of an executor: everything that happens comes in here, is given to the core, and what the core wants
//! done is carried out.
//!
//! An executor owns its partitions and its connections, and shares nothing with the others but mail. All tasks of
//! the executor (scanner, mail, timer, links) change its state only through methods of [`Executor`] that do not
//! wait, and end a batch of them by [`Executor::finish`]; so no borrow lives across an `.await`, and nothing needs a
//! lock.
//!
//! * `lines`: connections with their sockets: the adaptive scan, sending, slow readers
//! * `requests`: what clients ask
//! * `links`: the streams to followers
//! * `expiry`: entries that have expired
//! * `memory`: how much of it the node takes
//! * `leadership`: when it passes to another node on purpose
//! * `forward`: mail to and from the other executors
//! * `log`, `checkpoint`: what goes to disk, and what keeps that short
//! * `copies`: copies of a table, to replicas that are too far behind for the log
//! * `membership`: registration with the controller, and the map from it
//! * `tasks`: who waits for what
//!
//! # Invariants
//! * After `finish`, everything that the core wanted done is done or on its way, and every answer is in its
//!   connection's outbox.
//! * What waits for an answer is bounded, and is answered by its deadline.

mod checkpoint;
mod copies;
mod expiry;
mod forward;
mod leadership;
mod lines;
mod links;
mod log;
mod membership;
mod memory;
mod report;
mod requests;
mod tasks;

pub(crate) use forward::{Mail, Stop, View};
pub(crate) use lines::LineKey;
pub(crate) use log::start_stream;
pub(crate) use memory::Memory;
pub(crate) use tasks::run;

use crate::{
    clock,
    fatal::Heartbeat,
    mailbox::Sender,
    options::Settings,
    partition::Partition,
    storage::{Storage, Stream},
};
use kv_proto::{
    cluster_map::{AckMode, Configuration},
    control::Proposal,
    ids::{ExecutorIndex, Member, PartitionId},
    stats::Role,
};
use kv_replication::{
    clock::Instant64,
    replica::{self, Action, Actions, Event, Token},
};
use lines::Lines;
use links::Links;
use requests::Waiting;
use slotmap::{KeyData, SlotMap};
use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tasks::Wakes;

/// How soon the time is told again while somebody waits for an answer.
const BUSY_TICK: Duration = Duration::from_millis(10);
/// How soon it is told again while nothing is due.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// How often silent connections are looked for, and the controller is pinged.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// What all executors of a node know of it.
pub(crate) struct Shared {
    /// The node and its disk.
    pub(crate) me: Member,
    /// What it was told at its start.
    pub(crate) settings: Settings,
    /// Where to send mail to each executor.
    pub(crate) mail: Vec<Sender<Mail>>,
    /// What each executor shows the watchdog.
    pub(crate) heartbeats: Vec<Heartbeat>,
    /// Open connections of all executors.
    pub(crate) connections: AtomicUsize,
    /// Memory that all executors take.
    pub(crate) memory: Memory,
    /// What it keeps on its disk.
    pub(crate) storage: Arc<Storage>,
    /// A part of the ids of its proposals that no other process has.
    pub(crate) proposals: u64,
    /// When the node started.
    pub(crate) started: Instant64,
    /// While the node stops: how many executors may still pass on leadership, and how many take requests.
    pub(crate) passing_on: AtomicUsize,
    pub(crate) taking: AtomicUsize,
}

/// The state of an executor.
pub(crate) struct Executor {
    index: ExecutorIndex,
    shared: Arc<Shared>,
    this: Weak<RefCell<Executor>>,
    view: Option<Arc<View>>,
    /// The partitions that this executor owns, by their id.
    partitions: Vec<Option<Box<Partition>>>,
    owned: Vec<PartitionId>,
    log: log::Log,
    checkpoints: checkpoint::Checkpoints,
    copies: copies::Copies,
    /// Proposals of this batch.
    proposals: Vec<Proposal>,
    lines: Lines,
    links: Links,
    waiting: SlotMap<requests::WaitingKey, Waiting>,
    /// Requests under way to other executors, and what their bodies take in all.
    forwarded: usize,
    forwarded_bytes: usize,
    /// Bytes of records that the replicas hold because they are not applied yet, or not at every follower.
    held_bytes: usize,
    memory: memory::OwnMemory,
    /// Whether the last sweep left entries that have expired.
    sweep_again: bool,
    requests: u64,
    /// How it is to stop, once it is to.
    stopping: Option<Stop>,
    draining: bool,
    leadership: leadership::Leadership,
    /// The connection to the controller; executor 0 has it.
    controller: Option<LineKey>,
    last_sweep: Instant64,
    wakes: Wakes,
    actions: Actions,
}

impl Executor {
    fn new(index: ExecutorIndex, shared: Arc<Shared>, stream: Stream) -> Rc<RefCell<Executor>> {
        let segment_bytes = shared.settings.storage.segment_bytes;
        Rc::new_cyclic(|this: &Weak<RefCell<Executor>>| {
            RefCell::new(Executor {
                index,
                shared,
                this: this.clone(),
                view: None,
                partitions: Vec::new(),
                owned: Vec::new(),
                log: log::Log::new(stream, segment_bytes),
                checkpoints: checkpoint::Checkpoints::default(),
                copies: copies::Copies::default(),
                proposals: Vec::new(),
                lines: Lines::default(),
                links: Links::default(),
                waiting: SlotMap::with_key(),
                forwarded: 0,
                forwarded_bytes: 0,
                held_bytes: 0,
                memory: memory::OwnMemory::default(),
                sweep_again: false,
                requests: 0,
                stopping: None,
                draining: false,
                leadership: leadership::Leadership::default(),
                controller: None,
                last_sweep: clock::now(),
                wakes: Wakes::default(),
                actions: Actions::new(),
            })
        })
    }

    fn partition(&mut self, id: PartitionId) -> Option<&mut Partition> {
        self.partitions.get_mut(usize::from(id.0))?.as_deref_mut()
    }

    /// What the node knows of the cluster has changed. The caller ends the batch by `finish`.
    pub(crate) fn handle_view(&mut self, view: Arc<View>) {
        let now = clock::now();
        let mut refused: Option<(usize, String)> = None;
        self.log.set_mode(view.map.ack);
        self.view = Some(view.clone());
        self.partitions.resize_with(view.map.partitions.len(), || None);
        for (id, configuration) in view.map.partitions().filter_map(|(id, p)| Some((id, p.configuration.as_ref()?))) {
            if view.owner(id) != Some(self.index) {
                continue;
            }
            if self.partition(id).is_some() {
                self.give(now, id, Event::ConfigChanged(configuration.clone()));
            } else {
                self.add_partition(now, id, configuration.clone());
                let replica = &self.partitions[usize::from(id.0)].as_ref().expect("it was just added").replica;
                if let (Role::Refused, Some(why)) = (replica.role(), replica.trouble(now)) {
                    refused = Some((refused.map_or(1, |(count, _)| count + 1), why));
                }
            }
        }
        if let Some((partitions, why)) = refused {
            tracing::error!(partitions, "this node refuses its role: {why}");
        }
        self.update_links();
    }

    /// This executor owns a partition from now on: with what was restored of it, if anything was.
    fn add_partition(&mut self, now: Instant64, id: PartitionId, configuration: Configuration) {
        let shared = self.shared.clone();
        let restored = shared.storage.take_restored(id);
        self.log.gather.adopt(id, &restored.restored);
        let mut actions = std::mem::take(&mut self.actions);
        let durable = self.view.as_ref().is_none_or(|view| view.map.ack == AckMode::Durable);
        let options = replica::Options { durable, ..shared.settings.replica };
        let mut partition = Partition::new(id, shared.me, configuration, restored, options, now, &mut actions);
        partition.kept.checkpoint_bytes = shared.storage.checkpoint_bytes(id);
        self.actions = actions;
        self.held_bytes += partition.replica.held_bytes();
        self.count_table(0, partition.memory_bytes());
        self.partitions[usize::from(id.0)] = Some(Box::new(partition));
        self.owned.push(id);
        self.carry_out(id);
        if !self.leadership.controller_reachable {
            self.give(now, id, Event::Controller { reachable: false });
        }
    }

    /// Gives an event to a partition and carries out what follows from it.
    fn give(&mut self, now: Instant64, id: PartitionId, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        if let Some(partition) = self.partition(id) {
            let held = partition.replica.held_bytes();
            partition.handle(now, event, &mut actions);
            let holds = partition.replica.held_bytes();
            self.held_bytes = self.held_bytes + holds - held;
        }
        self.actions = actions;
        self.carry_out(id);
    }

    /// Carries out what a partition wants done.
    fn carry_out(&mut self, id: PartitionId) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Append(entry) => {
                    let partition = self.partition(id).expect("a partition that acts is owned");
                    partition.kept.handle_append(&entry);
                    let committed = partition.replica.committed();
                    self.log.gather.append(id, &entry, committed);
                    self.touch(id);
                }
                Action::ReadLog { to, after } => self.read_log(id, to, after),
                Action::Propose(change) => self.propose(id, change),
                Action::SendCopy { to, sent } => self.begin_copy(id, to, sent),
                Action::ResetTable => self.reset_table(id),
                Action::LoadTable { bytes } => self.load_table(id, &bytes),
                Action::KeepTable { end, digest } => self.keep_table(id, end, digest),
                Action::Resign { to, epoch } => self.resign(id, to, epoch),
                Action::Send { to, body } => self.send_to_peer(id, to, body),
                Action::Apply(record) => {
                    let partition = self.partition(id).expect("a partition that acts is owned");
                    let before = partition.memory_bytes();
                    partition.apply(&record);
                    let after = partition.memory_bytes();
                    self.count_table(before, after);
                }
                Action::Reply { token, outcome } => self.reply(KeyData::from_ffi(token.0).into(), outcome),
            }
        }
        self.actions = actions;
    }

    /// Ends a batch of events: the log is flushed, followers are sent what is new, answers go out.
    fn finish(&mut self) {
        self.write_log();
        self.send_proposals();
        self.tell_memory();
        self.send_prepares();
        self.send_output();
    }

    /// What is due by time: beacons, deadlines, entries that expire, silent connections.
    fn handle_tick(&mut self, now: Instant64) {
        for at in 0..self.owned.len() {
            let id = self.owned[at];
            let due = self.partition(id).and_then(|p| p.replica.poll_timeout());
            if due.is_some_and(|due| due <= now) {
                self.give(now, id, Event::Timeout);
            }
        }
        self.sweep_expired(now);
        self.expire_waiting(now);
        if now.since(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = now;
            self.close_silent_lines(now);
            self.ping_controller();
            self.watch_log();
            self.maybe_return_leadership(now);
        }
        self.finish();
    }

    /// How long until something is due.
    fn next_tick(&self, now: Instant64) -> Duration {
        if !self.waiting.is_empty() || self.sweep_again {
            return BUSY_TICK;
        }
        let owned = self.owned.iter().filter_map(|id| self.partitions[usize::from(id.0)].as_ref());
        let due = owned.filter_map(|p| p.replica.poll_timeout()).map(|due| due.since(now)).min();
        due.unwrap_or(IDLE_TICK).min(IDLE_TICK)
    }

    /// Whether everything that was asked is answered and sent.
    fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.forwarded == 0 && self.lines.all_sent()
    }
}

/// The token of what nobody waits for.
pub(crate) fn nobody() -> Token {
    token(slotmap::Key::null())
}

/// The token under which the core knows a waiting client.
fn token(key: requests::WaitingKey) -> Token {
    Token(slotmap::Key::data(&key).as_ffi())
}
