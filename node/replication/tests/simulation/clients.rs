//! Clients, and what they saw: each does one thing after the other, asks whom it takes for the leader, tries again whatever the
//! answer was, and gives up at its deadline. A write has an operation id, so that it applies once however often it is tried.

use crate::{
    checks::{Checks, Verdict},
    node::Place,
    queue::{Happening, MS, Time},
    world::World,
    writes::{KEYS, key_of, number_of, write_of},
};
use kv_checker::{
    linear::{Operation, linearizable},
    versions::{Versioned, versions_agree},
};
use kv_proto::{ids::Lsn, stats::Role};
use kv_replication::replica::{Event, Outcome, ReadCheck, Reads, Token};
use std::collections::{BTreeMap, BTreeSet};

/// How long a client tries.
const DEADLINE: Time = 2_000 * MS;
/// How long it waits for an answer before it tries again.
const PATIENCE: Time = 600 * MS;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The write with this number.
    Write(u64),
    /// The value of this key.
    Read(u8),
}

/// An attempt at an operation, on its way to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    client: usize,
    /// No other attempt of any client has this number.
    attempt: u64,
    partition: usize,
    what: Wanted,
}

/// Who waits at a node for an answer of its replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    request: Request,
    /// Where the write stands.
    lsn: Lsn,
    /// Whether it was proposed for this attempt.
    proposes: bool,
}

impl Waiting {
    /// The write whose answer is awaited.
    pub(crate) fn writes(&self) -> Option<u64> {
        match self.request.what {
            Wanted::Write(number) => Some(number),
            Wanted::Read(_) => None,
        }
    }
}

/// What a node says to a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Written(Lsn),
    /// The write that the key's value is of, and its version.
    Read(Option<(u64, Lsn)>),
    /// Nothing has happened.
    Refused,
    Unknown,
}

/// The operation that a client is at.
struct Attempt {
    partition: usize,
    what: Wanted,
    called: Time,
    /// The number of the attempt that is under way, and when it began.
    under_way: Option<(u64, Time)>,
    /// When it is tried again, if none is.
    again: Time,
    /// Nothing that was tried so far can have happened, or happen yet.
    is_certain: bool,
}

#[derive(Default)]
struct Client {
    current: Option<Attempt>,
    idle_until: Time,
    /// What it did successfully since the faults stopped.
    done: u64,
}

/// What an operation did to a key, and what it saw there.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Wrote(Option<u64>),
    Read(Option<u64>),
}

#[derive(Default)]
struct History {
    operations: Vec<Operation<Seen>>,
    /// Writes of which nothing is known.
    unknown: BTreeMap<u64, Time>,
    versions: Vec<Versioned>,
}

pub(crate) struct Clients {
    clients: Vec<Client>,
    partitions: u64,
    attempts: u64,
    writes: u64,
    /// By partition and key.
    histories: BTreeMap<(usize, u8), History>,
}

impl Clients {
    pub(crate) fn new(clients: usize, partitions: u16) -> Self {
        let clients = (0..clients).map(|_| Client::default()).collect();
        Clients { clients, partitions: partitions.into(), attempts: 0, writes: 0, histories: BTreeMap::new() }
    }

    /// Whether every client did something since the faults stopped, and is at nothing more.
    pub(crate) fn are_done(&self) -> bool {
        self.clients.iter().all(|c| c.done >= 2 && c.current.is_none())
    }

    /// What clients saw can have happened one thing after the other.
    pub(crate) fn verify(&self, checks: &[Checks]) -> Verdict {
        for ((partition, key), history) in &self.histories {
            if checks[*partition].losses > 0 {
                continue;
            }
            let place = format!("key {key} of partition {partition}");
            versions_agree(&history.versions).map_err(|(one, other)| format!("{place}: {one:?}, then {other:?}"))?;
            let seen: BTreeSet<u64> = history
                .operations
                .iter()
                .filter_map(|o| match o.what {
                    Seen::Read(value) => value,
                    Seen::Wrote(_) => None,
                })
                .collect();
            // A write that is in no log did not happen, and a value that nobody saw explains nothing.
            let matters =
                |number: &u64| checks[*partition].is_applied(*number) && (key_of(*number).1 || seen.contains(number));
            let mut operations = history.operations.clone();
            operations.extend(history.unknown.iter().filter(|(number, _)| matters(number)).map(|(number, called)| {
                Operation { called: *called, returned: None, what: Seen::Wrote(effect(*number)) }
            }));
            operations.sort_by_key(|o| o.called);
            let step = |state: &Option<u64>, what: &Seen| match what {
                Seen::Wrote(value) => Some(*value),
                Seen::Read(value) => (state == value).then_some(*state),
            };
            linearizable(None, &operations, step).map_err(|stuck| {
                let near = &operations[stuck.saturating_sub(12)..operations.len().min(stuck + 4)];
                format!("{place}: no order explains {:?}, among {near:#?}", operations[stuck])
            })?;
        }
        Ok(())
    }
}

/// What a write makes of its key.
fn effect(number: u64) -> Option<u64> {
    (!key_of(number).1).then_some(number)
}

impl World {
    /// A client goes on: it begins something, tries again, or gives up.
    pub(crate) fn go_on(&mut self, at: usize) -> Verdict {
        let (now, healing) = (self.queue.now, self.healing);
        let client = &mut self.clients.clients[at];
        let Some(attempt) = &client.current else {
            if now >= client.idle_until && !(healing && client.done >= 2) {
                self.begin_operation(at);
            }
            return Ok(());
        };
        if now < attempt.called + DEADLINE {
            if now >= attempt.under_way.map_or(attempt.again, |(_, since)| since + PATIENCE) {
                self.try_once(at);
            }
            return Ok(());
        }
        let attempt = client.current.take().expect("it was just there");
        if let Wanted::Write(number) = attempt.what
            && !(attempt.is_certain && attempt.under_way.is_none())
        {
            self.leave_unknown(attempt.partition, number, attempt.called);
        }
        self.rest(at);
        Ok(())
    }

    fn leave_unknown(&mut self, partition: usize, number: u64, called: Time) {
        self.coverage.note("unknown outcomes", 1);
        let history = self.clients.histories.entry((partition, key_of(number).0)).or_default();
        history.unknown.insert(number, called);
    }

    fn rest(&mut self, client: usize) {
        let upto = if self.random.one_in(8) { 400 } else { self.plan.rest_ms };
        let rest = self.random.below(upto);
        let until = self.queue.now + (1 + rest) * MS;
        self.clients.clients[client].idle_until = until;
        self.queue.push(until, Happening::Client { client });
    }

    fn begin_operation(&mut self, client: usize) {
        let partition = self.random.below(self.clients.partitions) as usize;
        let writes = self.random.below(5) < 3;
        let what = if writes {
            self.clients.writes += 1;
            Wanted::Write(self.clients.writes)
        } else {
            Wanted::Read(self.random.below(KEYS) as u8)
        };
        let called = self.queue.now;
        let attempt = Attempt { partition, what, called, under_way: None, again: called, is_certain: true };
        self.clients.clients[client].current = Some(attempt);
        self.queue.push(called + DEADLINE, Happening::Client { client });
        self.try_once(client);
    }

    /// Asks whom the map says to lead, or somebody else who believes that.
    fn try_once(&mut self, client: usize) {
        self.clients.attempts += 1;
        let number = self.clients.attempts;
        let now = self.queue.now;
        let Some(attempt) = &mut self.clients.clients[client].current else { return };
        attempt.is_certain &= attempt.under_way.is_none();
        attempt.under_way = Some((number, now));
        let (partition, what) = (attempt.partition, attempt.what);
        self.queue.push(now + PATIENCE, Happening::Client { client });
        let by_map = self.controller.configuration(partition).map(|c| c.leader.node);
        let believes =
            |at: &usize| self.nodes[*at].parts[partition].replica.as_ref().is_some_and(|r| r.role() == Role::Leader);
        let others: Vec<usize> = (0..self.nodes.len()).filter(believes).collect();
        let node = match by_map {
            Some(id) if others.is_empty() || self.random.below(4) > 0 => self.index(id),
            _ if others.is_empty() => self.random.below(self.nodes.len() as u64) as usize,
            _ => others[self.random.below(others.len() as u64) as usize],
        };
        let request = Request { client, attempt: number, partition, what };
        if let Some(at) = self.client_delay() {
            self.queue.push(at, Happening::Request { node, request });
        }
    }

    /// When something arrives that is on its way to a client or from it; `None` if it gets lost.
    fn client_delay(&mut self) -> Option<Time> {
        if !self.healing && self.random.one_in(60) {
            return None;
        }
        let long = !self.healing && self.random.one_in(40);
        let delay = if long { self.random.below(1_000 * MS) } else { MS / 20 + self.random.below(2 * MS) };
        Some(self.queue.now + delay)
    }

    /// A request reaches a node.
    pub(crate) fn handle_request(&mut self, node: usize, request: Request) -> Verdict {
        let (place, now) = (Place { node, partition: request.partition }, self.clock(node));
        let waiting = Waiting { request, lsn: Lsn(0), proposes: false };
        let Some(replica) = &self.part(place).replica else {
            self.answer(waiting, Answer::Refused);
            return Ok(());
        };
        let token = Token(request.attempt);
        match request.what {
            Wanted::Read(_) => match replica.check_read(now) {
                Ok(ReadCheck::Now) if !self.random.one_in(6) => {
                    self.coverage.note("leased reads", 1);
                    self.answer_read_of(place, waiting);
                    Ok(())
                }
                Ok(_) => {
                    self.coverage.note("barriers", 1);
                    self.part_mut(place).waiting.insert(token.0, waiting);
                    self.give(place, Event::ClientBarrier { token })
                }
                Err(_) => {
                    self.answer(waiting, Answer::Refused);
                    Ok(())
                }
            },
            Wanted::Write(number) => {
                if replica.check_read(now).is_err() {
                    self.answer(waiting, Answer::Refused);
                    return Ok(());
                }
                let (payload, operation_id) = write_of(number);
                let disk = &self.part(place).disk;
                let process = disk.process.as_ref().expect("it is running");
                let pending = disk.live.from(process.applied.lsn.next());
                let done = operation_id.and_then(|id| process.recall(pending, &id));
                let lsn = done.unwrap_or(replica.prepared().lsn.next());
                let waiting = Waiting { lsn, proposes: done.is_none(), ..waiting };
                self.part_mut(place).waiting.insert(token.0, waiting);
                if done.is_some() {
                    self.coverage.note("recalled writes", 1);
                    return self.give(place, Event::ClientBarrier { token });
                }
                self.checks[place.partition].propose(number);
                self.give(place, Event::ClientWrite { payload, operation_id, token })
            }
        }
    }

    fn answer_read_of(&mut self, place: Place, waiting: Waiting) {
        let Wanted::Read(key) = waiting.request.what else { unreachable!("it is a read") };
        let process = self.part(place).disk.process.as_ref().expect("it is running");
        let found = process.table.get(&[b'k', key]).map(|entry| (number_of(entry.value), entry.lsn));
        self.answer(waiting, Answer::Read(found));
    }

    /// A replica has an answer for who waited.
    pub(crate) fn handle_reply(&mut self, place: Place, waiting: Waiting, outcome: Outcome) -> Verdict {
        match (outcome, waiting.request.what) {
            (Outcome::Committed, Wanted::Write(_)) => self.answer(waiting, Answer::Written(waiting.lsn)),
            (Outcome::Committed, Wanted::Read(_)) => {
                self.coverage.note("confirmed reads", u64::from(self.plan.reads == Reads::Confirm));
                self.answer_read_of(place, waiting);
            }
            (Outcome::Refused(_), what) => {
                if let Wanted::Write(number) = what
                    && waiting.proposes
                {
                    self.checks[place.partition].refuse(number);
                }
                self.answer(waiting, Answer::Refused);
            }
            (Outcome::Unknown, _) => self.answer(waiting, Answer::Unknown),
        }
        Ok(())
    }

    /// An answer goes out to a client.
    pub(crate) fn answer(&mut self, waiting: Waiting, answer: Answer) {
        let Request { client, attempt, .. } = waiting.request;
        if let Some(at) = self.client_delay() {
            self.queue.push(at, Happening::Answer { client, attempt, answer });
        }
    }

    pub(crate) fn handle_answer(&mut self, at: usize, number: u64, answer: Answer) -> Verdict {
        let now = self.queue.now;
        let client = &mut self.clients.clients[at];
        let is_it = |a: &&mut Attempt| a.under_way.is_some_and(|(under_way, _)| under_way == number);
        let Some(attempt) = client.current.as_mut().filter(is_it) else { return Ok(()) };
        attempt.under_way = None;
        attempt.is_certain &= !matches!(answer, Answer::Unknown);
        attempt.again = now + self.random.below(120 * MS);
        let (partition, again) = (attempt.partition, attempt.again);
        match (answer, attempt.what) {
            (Answer::Written(lsn), Wanted::Write(number)) => {
                let key = key_of(number).0;
                self.finish(at, (partition, key), Seen::Wrote(effect(number)), Some(lsn));
            }
            (Answer::Read(found), Wanted::Read(key)) => {
                let (value, version) = (found.map(|f| f.0), found.map(|f| f.1));
                self.finish(at, (partition, key), Seen::Read(value), version);
            }
            (Answer::Refused | Answer::Unknown, _) => {
                self.coverage.note("refusals", 1);
                self.queue.push(again, Happening::Client { client: at });
            }
            (answer, what) => unreachable!("{answer:?} to {what:?}"),
        }
        Ok(())
    }

    /// A client's operation has returned.
    fn finish(&mut self, at: usize, key: (usize, u8), what: Seen, version: Option<Lsn>) {
        let returned = self.queue.now;
        let client = &mut self.clients.clients[at];
        let called = client.current.take().expect("it is at an operation").called;
        client.done += u64::from(self.healing);
        let history = self.clients.histories.entry(key).or_default();
        history.operations.push(Operation { called, returned: Some(returned), what });
        if let Some(version) = version {
            let makes = matches!(what, Seen::Wrote(_));
            history.versions.push(Versioned { called, returned, version: version.0, makes });
        }
        self.rest(at);
    }
}
