//! Writes that are asked for again and again, while their answers are lost and leadership passes to and fro: each is
//! applied once, and whoever is answered is answered the same.
//!
//! Two partitions with the core between them; what is on disk is a list of entries. Leadership passes by the word of a person,
//! who makes sure that the old leader hears it at once or is down. The core's own simulation is elsewhere: this one is of what
//! [`Partition`] decides.

use super::*;
use kv_proto::{
    control::{Change, Proposal},
    ids::{ClientId, DiskId, Epoch, NodeId},
    replication::PeerBody,
};
use kv_replication::{
    configuration,
    replica::{Options, Outcome, Restored},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

const WRITES: u64 = 60;
const KEYS: u64 = 3;
const SEEDS: u64 = 150;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A node: its process, if it runs, and its disk.
struct Host {
    member: Member,
    partition: Option<Partition>,
    /// What was appended; so much of it is on disk.
    log: Vec<LogEntry>,
    on_disk: usize,
    /// What its log had when its process started, and how much the process was told since.
    restored: usize,
    /// What it was sent.
    inbox: VecDeque<(Epoch, PeerBody)>,
}

struct World {
    random: Random,
    now: Instant64,
    configuration: Configuration,
    hosts: Vec<Host>,
    connected: bool,
    /// Who waits at a process that runs: the write, and what was decided of it.
    waiting: BTreeMap<u64, (u64, Decision)>,
    tokens: u64,
    answers: BTreeMap<u64, Decision>,
    leaders: u64,
    again: u64,
}

/// The records of a log.
fn records(log: &[LogEntry]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for entry in log {
        match entry {
            LogEntry::Record(record) => {
                records.truncate(record.position.lsn.0 as usize - 1);
                records.push(record.clone());
            }
            LogEntry::Cut { from } => records.truncate(from.0 as usize - 1),
            LogEntry::Configuration(_) => {}
            LogEntry::Reset { .. } => panic!("nobody is sent a copy here"),
        }
    }
    records
}

fn configuration_of(log: &[LogEntry]) -> Option<Configuration> {
    let of = |entry: &LogEntry| if let LogEntry::Configuration(c) = entry { Some(c.clone()) } else { None };
    log.iter().rev().find_map(of)
}

/// What is asked by a write: of few keys, mostly on conditions, so that many are refused.
fn write_of(number: u64) -> (Effect<'static>, Condition) {
    let key = &[b"a", b"b", b"c"][(number % KEYS) as usize][..];
    let condition = [Condition::Any, Condition::Absent, Condition::Present][(number / KEYS % 3) as usize];
    match number / KEYS % 4 {
        0 => (Effect::Delete { key }, condition),
        _ => (Effect::Put { key, content_type: "", value: b"value", expires: None }, condition),
    }
}

fn id_of(number: u64) -> OperationId {
    OperationId { client: ClientId(1), sequence: number, known_lsn: Lsn(0) }
}

impl World {
    fn new(seed: u64) -> Self {
        let member = |name| Member { node: NodeId::new(name).expect("a name"), disk: DiskId(1) };
        let host = |name| Host {
            member: member(name),
            partition: None,
            log: Vec::new(),
            on_disk: 0,
            restored: 0,
            inbox: VecDeque::new(),
        };
        let (leader, in_sync) = (member("a"), vec![member("b")]);
        World {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: Instant64(0),
            configuration: Configuration { epoch: Epoch(1), history: HistoryId(7), leader, in_sync },
            hosts: vec![host("a"), host("b")],
            connected: false,
            waiting: BTreeMap::new(),
            tokens: 0,
            answers: BTreeMap::new(),
            leaders: 0,
            again: 0,
        }
    }

    fn leader(&self) -> usize {
        self.hosts.iter().position(|h| h.member == self.configuration.leader).expect("one of the two")
    }

    fn start(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.partition.is_some() {
            return;
        }
        host.restored = host.log.len();
        let tail = records(&host.log);
        let restored = Restored { configuration: configuration_of(&host.log), tail, ..Restored::default() };
        let restored = recovery::Partition { restored, ..recovery::Partition::default() };
        let (options, mut out) = (Options::default(), Actions::new());
        let (id, configuration) = (PartitionId(0), self.configuration.clone());
        host.partition = Some(Partition::new(id, host.member, configuration, restored, options, self.now, &mut out));
        self.carry_out(at, out);
    }

    fn crash(&mut self, at: usize) {
        if self.hosts[at].partition.is_none() {
            return;
        }
        self.disconnect();
        if at == self.leader() {
            self.waiting.clear();
        }
        let host = &mut self.hosts[at];
        host.partition = None;
        host.log.truncate(host.on_disk);
    }

    fn disconnect(&mut self) {
        if std::mem::take(&mut self.connected) {
            self.hosts.iter_mut().for_each(|h| h.inbox.clear());
            let (leader, peer) = (self.leader(), self.hosts[1 - self.leader()].member.node);
            self.give(leader, Event::PeerLost { peer });
        }
    }

    fn connect(&mut self) {
        if !self.connected && self.hosts.iter().all(|h| h.partition.is_some()) {
            self.connected = true;
            let (leader, peer) = (self.leader(), self.hosts[1 - self.leader()].member);
            self.give(leader, Event::PeerConnected { peer });
        }
    }

    fn give(&mut self, at: usize, event: Event) {
        let mut out = Actions::new();
        if let Some(partition) = &mut self.hosts[at].partition {
            partition.handle(self.now, event, &mut out);
            self.carry_out(at, out);
        }
    }

    fn carry_out(&mut self, at: usize, actions: Actions) {
        for action in actions {
            let host = &mut self.hosts[at];
            match action {
                Action::Append(entry) => host.log.push(entry),
                Action::Apply(record) => host.partition.as_mut().expect("it acts").apply(&record),
                Action::Send { body, .. } => {
                    let epoch = host.partition.as_ref().expect("it acts").replica.configuration().epoch;
                    if self.connected {
                        self.hosts[1 - at].inbox.push_back((epoch, body));
                    }
                }
                Action::Reply { token, outcome } => {
                    let Some((number, decision)) = self.waiting.remove(&token.0) else { continue };
                    if outcome == Outcome::Committed {
                        let first = *self.answers.entry(number).or_insert(decision);
                        assert_eq!(first, decision, "write {number} is answered in two ways");
                    }
                }
                Action::Propose(change) => {
                    let epoch = host.partition.as_ref().expect("it acts").replica.configuration().epoch;
                    self.decide(epoch, change);
                }
                Action::Resign { epoch, .. } => {
                    if self.connected {
                        self.hosts[1 - at].inbox.push_back((epoch, PeerBody::Resign));
                    }
                }
                Action::SendCopy { .. } | Action::ResetTable | Action::LoadTable { .. } | Action::KeepTable { .. } => {
                    panic!("nobody is sent a copy here")
                }
                Action::ReadLog { to, after } => {
                    let records = records(&host.log);
                    let at_lsn = |lsn: Lsn| lsn.0.checked_sub(1).map(|at| records[at as usize].position);
                    let previous = at_lsn(after).unwrap_or_default();
                    let records = records[after.0 as usize..].to_vec();
                    self.give(at, Event::LogRead { to, previous, records });
                }
            }
        }
    }

    fn decide(&mut self, epoch: Epoch, change: Change) {
        let proposal = Proposal { id: 0, partition: PartitionId(0), epoch, change };
        if configuration::apply(Some(&self.configuration), &proposal).is_ok() {
            self.disconnect();
        }
        // Whoever lost the connection may have had another decision made.
        if let Ok(next) = configuration::apply(Some(&self.configuration), &proposal) {
            self.configuration = next;
            self.leaders += 1;
            for at in 0..2 {
                self.give(at, Event::ConfigChanged(self.configuration.clone()));
            }
        }
    }

    fn flush(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.partition.is_some() && host.on_disk < host.log.len() {
            host.on_disk = host.log.len();
            let entries = (host.on_disk - host.restored) as u64;
            self.give(at, Event::Flushed { entries });
        }
    }

    fn send(&mut self) {
        let (leader, to) = (self.leader(), self.hosts[1 - self.leader()].member.node);
        while self.connected
            && let Some(partition) = &mut self.hosts[leader].partition
            && let Some(body) = partition.replica.poll_prepare(self.now, to)
        {
            self.carry_out(leader, vec![Action::Send { to, body }]);
        }
    }

    fn deliver(&mut self, at: usize) {
        if let Some((epoch, body)) = self.hosts[at].inbox.pop_front() {
            let from = self.hosts[1 - at].member.node;
            self.give(at, Event::Message { from, epoch, body });
        }
    }

    fn pass(&mut self) {
        self.now = self.now + Duration::from_millis(50);
        for at in 0..2 {
            let due = self.hosts[at].partition.as_ref().and_then(|p| p.replica.poll_timeout());
            if due.is_some_and(|due| due <= self.now) {
                self.give(at, Event::Timeout);
            }
        }
    }

    /// A write is asked for, perhaps not for the first time, and perhaps though somebody still waits for it.
    fn ask(&mut self, number: u64) {
        let (at, now) = (self.leader(), self.now);
        let Some(partition) = &mut self.hosts[at].partition else { return };
        let (effect, condition) = write_of(number);
        self.tokens += 1;
        let (token, mut out) = (Token(self.tokens), Actions::new());
        self.again +=
            u64::from(partition.replica.check_read(now).is_ok() && partition.recall(&id_of(number)).is_some());
        if let Ok(decision) = partition.write(now, 0, effect, condition, Some(id_of(number)), token, &mut out) {
            self.waiting.insert(token.0, (number, decision));
        }
        self.carry_out(at, out);
    }

    /// Another leads, if the leader had begun its epoch: so it cannot lead on.
    fn hand_over(&mut self) {
        let (at, leader) = (self.leader(), self.configuration.leader);
        if configuration_of(&self.hosts[at].log[..self.hosts[at].on_disk]).is_some_and(|c| c == self.configuration) {
            let to = self.hosts[1 - at].member;
            if !self.configuration.in_sync.contains(&to) {
                return;
            }
            self.decide(self.configuration.epoch, Change::Handoff { leader, to, in_sync: vec![leader] });
        }
    }

    fn go_well(&mut self) {
        for at in 0..2 {
            self.start(at);
        }
        self.connect();
        self.pass();
        self.send();
        for at in 0..2 {
            self.flush(at);
            while !self.hosts[at].inbox.is_empty() {
                self.deliver(at);
            }
        }
    }

    fn step(&mut self) {
        let at = self.random.below(2) as usize;
        match self.random.below(100) {
            0..25 => {
                let open: Vec<u64> = (0..WRITES).filter(|number| !self.answers.contains_key(number)).take(6).collect();
                let asked = self.random.below(open.len().max(1) as u64) as usize;
                if let Some(number) = open.get(asked) {
                    self.ask(*number);
                }
            }
            25..28 => {
                let number = self.random.below(WRITES);
                if self.answers.contains_key(&number) {
                    self.ask(number);
                }
            }
            28..36 => self.flush(at),
            36..44 => self.send(),
            44..56 => self.deliver(at),
            56..60 => self.pass(),
            60 => self.crash(at),
            61 => self.hand_over(),
            62..66 => self.start(at),
            66 => self.disconnect(),
            67..70 => self.connect(),
            _ => self.go_well(),
        }
    }

    /// All is applied, once, and it is what was answered.
    fn check_end(&self) {
        let partition = |at: usize| self.hosts[at].partition.as_ref().expect("it runs");
        let digests = [0, 1].map(|at| (partition(at).digest(), partition(at).operations().digest()));
        assert_eq!(digests[0], digests[1]);
        let records = records(&self.hosts[self.leader()].log);
        let mut found = BTreeMap::new();
        for record in &records {
            let Some(id) = record.operation_id else { continue };
            let effect = Effect::decode(&record.payload).expect("an effect");
            let done = Done::of(record.position.lsn, &effect).expect("a write");
            assert!(found.insert(id.sequence, done).is_none(), "write {} has two records", id.sequence);
        }
        let version = |lsn| Version { history: HistoryId(7), lsn };
        for number in 0..WRITES {
            let expected = match found[&number] {
                Done::Written(lsn) => Decision::Proposed(version(lsn)),
                Done::Unchanged(Unchanged::Missing) => Decision::Missing,
                Done::Unchanged(Unchanged::ConditionFailed { current }) => {
                    Decision::ConditionFailed((current > Lsn(0)).then(|| version(current)))
                }
            };
            assert_eq!(self.answers[&number], expected, "write {number}");
        }
    }
}

#[test]
fn a_write_is_applied_once_whoever_leads_when_it_is_asked_for_again() {
    let (mut leaders, mut again) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        let mut steps = 0;
        while (world.answers.len() as u64) < WRITES {
            world.step();
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: {} of {WRITES} are answered", world.answers.len());
        }
        for _ in 0..200 {
            world.go_well();
        }
        world.check_end();
        (leaders, again) = (leaders + world.leaders, again + world.again);
    }
    assert!(leaders > 2 * SEEDS && again > 5 * SEEDS, "{leaders} epochs, {again} asked for again");
}
