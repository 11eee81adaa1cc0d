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
//! * `forward`: mail to and from the other executors
//! * `membership`: registration with the controller, and the map from it
//! * `tasks`: who waits for what
//!
//! # Invariants
//! * After `finish`, everything that the core wanted done is done or on its way, and every answer is in its
//!   connection's outbox.
//! * What waits for an answer is bounded, and is answered by its deadline.

mod forward;
mod lines;
mod links;
mod membership;
mod requests;
mod tasks;

pub(crate) use forward::{Mail, View};
pub(crate) use lines::LineKey;
pub(crate) use tasks::run;

use crate::{clock, fatal::Heartbeat, mailbox::Sender, options::Settings, partition::Partition, wal::Wal};
use kv_proto::{
    ids::{ExecutorIndex, Member, PartitionId},
    stats::Role,
};
use kv_replication::{
    clock::Instant64,
    replica::{Action, Actions, Event, Replica, Restored, Token},
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
    /// When the node started.
    pub(crate) started: Instant64,
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
    wal: Wal,
    lines: Lines,
    links: Links,
    waiting: SlotMap<requests::WaitingKey, Waiting>,
    /// Requests under way to other executors, and what their bodies take in all.
    forwarded: usize,
    forwarded_bytes: usize,
    /// Bytes of records that the replicas hold because they are not applied yet, or not at every follower.
    held_bytes: usize,
    requests: u64,
    draining: bool,
    /// The connection to the controller; executor 0 has it.
    controller: Option<LineKey>,
    last_sweep: Instant64,
    wakes: Wakes,
    actions: Actions,
}

impl Executor {
    fn new(index: ExecutorIndex, shared: Arc<Shared>) -> Rc<RefCell<Executor>> {
        Rc::new_cyclic(|this: &Weak<RefCell<Executor>>| {
            RefCell::new(Executor {
                index,
                shared,
                this: this.clone(),
                view: None,
                partitions: Vec::new(),
                owned: Vec::new(),
                wal: Wal::default(),
                lines: Lines::default(),
                links: Links::default(),
                waiting: SlotMap::with_key(),
                forwarded: 0,
                forwarded_bytes: 0,
                held_bytes: 0,
                requests: 0,
                draining: false,
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
        self.partitions.resize_with(view.map.partitions.len(), || None);
        for (id, configuration) in view.map.partitions().filter_map(|(id, p)| Some((id, p.configuration.as_ref()?))) {
            if view.owner(id) != Some(self.index) {
                continue;
            }
            if self.partition(id).is_some() {
                self.give(now, id, Event::ConfigChanged(configuration.clone()));
            } else {
                let options = self.shared.settings.replica;
                let (me, restored) = (self.shared.me, Restored::default());
                let replica = Replica::new(id, me, configuration.clone(), restored, options, now, &mut self.actions);
                self.held_bytes += replica.held_bytes();
                if let (Role::Refused, Some(why)) = (replica.role(), replica.trouble(now)) {
                    refused = Some((refused.map_or(1, |(count, _)| count + 1), why));
                }
                self.partitions[usize::from(id.0)] = Some(Box::new(Partition::new(replica)));
                self.owned.push(id);
                self.carry_out(id);
            }
        }
        if let Some((partitions, why)) = refused {
            tracing::error!(partitions, "this node refuses its role: {why}");
        }
        self.view = Some(view);
        self.update_links();
    }

    /// Gives an event to a partition and carries out what follows from it.
    fn give(&mut self, now: Instant64, id: PartitionId, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        if let Some(partition) = self.partition(id) {
            let held = partition.replica.held_bytes();
            partition.replica.handle(now, event, &mut actions);
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
                    self.wal.append(id, &entry);
                    self.touch(id);
                }
                Action::ReadLog { to, after } => {
                    tracing::debug!(partition = %id, %to, %after, "the log cannot be read back yet");
                }
                Action::Propose(change) => {
                    tracing::debug!(partition = %id, ?change, "changes are not proposed yet");
                }
                Action::Send { to, body } => self.send_to_peer(id, to, body),
                Action::Apply(record) => {
                    let partition = self.partition(id).expect("a partition that acts is owned");
                    partition.apply(&record);
                }
                Action::Reply { token, outcome } => self.reply(KeyData::from_ffi(token.0).into(), outcome),
            }
        }
        self.actions = actions;
    }

    /// Ends a batch of events: the log is flushed, followers are sent what is new, answers go out.
    fn finish(&mut self) {
        loop {
            let flushed = self.wal.take_flushed();
            if flushed.is_empty() {
                break;
            }
            let now = clock::now();
            for (partition, entries) in flushed {
                self.give(now, partition, Event::Flushed { entries });
            }
        }
        self.send_prepares();
        self.send_output();
    }

    /// What is due by time: beacons, deadlines, silent connections.
    fn handle_tick(&mut self, now: Instant64) {
        for at in 0..self.owned.len() {
            let id = self.owned[at];
            let due = self.partition(id).and_then(|p| p.replica.poll_timeout());
            if due.is_some_and(|due| due <= now) {
                self.give(now, id, Event::Timeout);
            }
        }
        self.expire_waiting(now);
        if now.since(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = now;
            self.close_silent_lines(now);
            self.ping_controller();
        }
        self.finish();
    }

    /// How long until something is due.
    fn next_tick(&self, now: Instant64) -> Duration {
        if !self.waiting.is_empty() {
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

/// The token under which the core knows a waiting client.
fn token(key: requests::WaitingKey) -> Token {
    Token(slotmap::Key::data(&key).as_ffi())
}
