//! What one thread of the load is about: which operation comes next and when, which requests wait for which place, and what
//! becomes of those that are answered. No I/O: the lanes carry requests, the pacer keeps the time.
//!
//! Operations are drawn from the whole key space, whoever leads what, and each request waits for a free slot of a connection to
//! where it belongs: so a hot place is as hot as the workload makes it.
//!
//! # Invariants
//! * In a closed loop as many operations are under way as there are slots, or users. In an open one their requests are in slots, and
//!   at most [`MAX_WAITING`] wait for one.
//! * Every operation of an open loop whose intended start came is counted once: answered, failed or dropped. Those of a closed loop
//!   that are under way at the end are timed, but not counted.
//! * Whenever an operation may start or a request waits, a lane that can take it is awake.

use super::{
    operation::{Action, Ended, Expected, Ns, Operation, Part, SoFar},
    pace::Pace,
    places::Places,
    plan::{Home, Place, Plan},
    setup::Setup,
};
use crate::{
    lock::lock,
    measure::{Answer, Ending, Recorder},
    target::Request,
    verify::{Judged, Trace},
    workload::{Draw, Drawn, Kind, Stamp},
};
use kv_client::proto::ids::PartitionId;
use rand::rngs::SmallRng;
use slab::Slab;
use std::{
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// Most requests that wait for a slot; what comes then is dropped.
const MAX_WAITING: usize = 1_000_000;
/// Most operations that start before the lanes get their turn.
const MAX_STARTS: usize = 256;
/// Starts that are later than this are counted as late.
const LATE: Ns = 1_000_000;
/// What the keys of counters end in.
const COUNTER: &[u8] = b":n";
/// How often a key is drawn again that belongs to no place of the load, or is judged and asked for too often just now.
const REDRAWS: u32 = 100_000;
const REDRAWS_OF_JUDGED: u32 = 100;

/// Where operations come from.
pub(crate) enum Source {
    Nothing,
    /// Without an end.
    Draw(Box<Draw>),
    /// An operation for each of these keys.
    Keys(Keys),
}

/// Every `step`th of the first keys, or of those in a list.
pub(crate) struct Keys {
    pub(crate) kind: Kind,
    pub(crate) list: Option<Arc<Vec<u32>>>,
    pub(crate) next: u64,
    pub(crate) step: u64,
    pub(crate) end: u64,
    /// Those that failed, which are asked again when all others are through.
    pub(crate) again: VecDeque<u32>,
    /// Decides how long values are.
    pub(crate) random: Box<SmallRng>,
}

/// What other threads see of a unit while it works.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) recorder: Mutex<Recorder>,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
}

/// What becomes of an operation that was drawn.
enum Started {
    /// There was none to draw.
    Nothing,
    /// Its requests wait.
    Waits,
    /// This is its request.
    Here(Part),
}

pub(crate) struct Unit {
    setup: Arc<Setup>,
    shown: Arc<Shown>,
    source: Source,
    pace: Pace,
    places: Places,
    plan_version: u64,
    /// Whether anybody needs to know the partitions of keys.
    locates: bool,
    operations: Slab<Operation>,
    /// The number of the next value.
    number: u64,
    is_stopped: bool,
    /// When the phase began, or something was answered well last.
    succeeded: Ns,
    /// What fails is asked again if something was answered well within so long.
    persistence: Ns,
    key: Vec<u8>,
    value: Vec<u8>,
    /// The last answer, and how many were like it, while a batch is settled.
    last: Option<(Answer, u64)>,
}

impl Unit {
    /// A unit of `lanes` connections that has nothing to do yet. Its values have numbers from `index << 40` on.
    pub(crate) fn new(setup: Arc<Setup>, shown: Arc<Shown>, index: u32, lanes: usize) -> Unit {
        let (plan_version, plan) = setup.routes.current();
        Unit {
            shown,
            source: Source::Nothing,
            pace: Pace::Saturated { free: 0 },
            plan_version,
            locates: locates(&setup, &plan),
            operations: Slab::new(),
            places: Places::new(plan, lanes),
            number: u64::from(index) << 40,
            is_stopped: true,
            succeeded: 0,
            persistence: 0,
            key: Vec::new(),
            value: Vec::new(),
            last: None,
            setup,
        }
    }

    /// Begins a phase, in which what fails is asked again as long as anything was answered well within `persistence`.
    pub(crate) fn begin(&mut self, source: Source, pace: Pace, persistence: Ns, now: Ns) {
        assert!(self.operations.is_empty(), "operations of the last phase are under way");
        (self.source, self.pace, self.persistence, self.succeeded) = (source, pace, persistence, now);
        self.is_stopped = false;
    }

    /// Nothing new begins. In an open loop what was due is still asked, until it is overdue; else what is in flight is waited for.
    pub(crate) fn stop(&mut self, now: Ns) {
        if self.is_stopped {
            return;
        }
        if self.pace.is_scheduled() {
            self.start_what_is_due(now);
        }
        self.is_stopped = true;
        if !self.pace.is_scheduled() {
            self.abandon_all();
        }
        self.wake_all();
    }

    /// What waits is given up.
    pub(crate) fn abandon_all(&mut self) {
        let shown = Arc::clone(&self.shown);
        for part in self.places.drain() {
            let has_ended = self.abandon(part);
            lock(&shown.recorder).dropped += u64::from(has_ended && self.pace.is_scheduled());
        }
        self.show_waiting();
        self.wake_all();
    }

    /// Ends the phase; says what operations came from.
    pub(crate) fn end(&mut self) -> Source {
        std::mem::replace(&mut self.source, Source::Nothing)
    }

    /// Whether the phase is over, but for what is in flight.
    pub(crate) fn is_over(&self) -> bool {
        let has_more = match &self.source {
            Source::Nothing => false,
            Source::Draw(_) => !self.is_stopped,
            Source::Keys(keys) => !self.is_stopped && (keys.next < keys.end || !keys.again.is_empty()),
        };
        let waits_for_others = !self.is_stopped || self.pace.is_scheduled();
        !has_more && (self.operations.is_empty() || !waits_for_others)
    }

    pub(crate) fn notify(&self, lane: usize) -> Rc<Notify> {
        self.places.notify(lane)
    }

    fn wake_all(&self) {
        self.places.wake_all();
        self.pace.wake();
    }

    /// Who waits for the end of the phase is told when it is there.
    fn wake_if_over(&self) {
        if self.is_over() {
            self.wake_all();
        }
    }

    /// Wakes lanes for operations that may start, wherever they belong. For when the lane whose operations ended will not start others.
    fn wake_for_free(&mut self) {
        if !self.is_stopped {
            self.places.wake(self.pace.free());
        }
    }

    /// Where a lane belongs now.
    pub(crate) fn place(&mut self, lane: usize) -> &Place {
        self.maybe_take_plan();
        self.places.place(lane)
    }

    /// Takes the newest plan: the lanes get their places, and what waits its queues.
    fn maybe_take_plan(&mut self) {
        if self.setup.routes.version() == self.plan_version {
            return;
        }
        let (version, plan) = self.setup.routes.current();
        self.locates = locates(&self.setup, &plan);
        self.plan_version = version;
        self.places.take_plan(plan).into_iter().for_each(|part| self.dispatch(part));
        self.wake_all();
    }

    /// A lane has its connection, or has lost it.
    pub(crate) fn connected(&mut self, lane: usize, is_connected: bool) {
        self.places.connected(lane, is_connected);
        if !is_connected {
            // Its operations have ended, and it cannot start others.
            self.wake_for_free();
        }
    }

    /// A lane cannot connect. What waits for its place fails, unless another lane goes there.
    pub(crate) fn not_connected(&mut self, lane: usize, code: &str, now: Ns) {
        self.places.connected(lane, false);
        let place = self.places.of_lane(lane);
        let shown = Arc::clone(&self.shown);
        let mut recorder = lock(&shown.recorder);
        recorder.failed_connects += 1;
        if self.places.is_reached(place) {
            return;
        }
        let failed = || Ended::Failed { code: code.to_owned(), unknown: false };
        for part in self.places.take_queue(place) {
            self.answered(part, failed(), now, &mut recorder);
        }
        if !self.places.is_any_reached() && !self.persists(now) {
            self.fail_the_rest(code, &mut recorder);
        }
        self.record_last(&mut recorder);
        self.show_waiting();
        self.wake_for_free();
    }

    /// Nobody is there whom the rest of the keys could be asked of.
    fn fail_the_rest(&mut self, code: &str, recorder: &mut Recorder) {
        if let Source::Keys(keys) = &mut self.source {
            while keys.next < keys.end || keys.again.pop_front().is_some() {
                if keys.next < keys.end {
                    keys.next += keys.step;
                }
                recorder.failed(keys.kind, code, false);
            }
        }
        self.wake_if_over();
    }

    /// A lane has something to do, or cannot do anything: it is not to be woken for a request.
    pub(crate) fn busy(&mut self, lane: usize) {
        self.places.busy(lane);
    }

    /// A lane has a free slot and nothing to put into it: it is woken when there is something.
    pub(crate) fn idle(&mut self, lane: usize) {
        self.places.idle(lane);
    }

    /// Whether whoever is refused would ask again at once.
    pub(crate) fn is_impatient(&self) -> bool {
        !self.pace.is_scheduled()
    }

    /// The next request for a lane; `None` if there is none now.
    pub(crate) fn take(&mut self, lane: usize, now: Ns) -> Option<Part> {
        let place = self.places.of_lane(lane);
        loop {
            if let Some(part) = self.places.pop(place) {
                if self.is_overdue(&part, now) {
                    let has_ended = self.abandon(part);
                    lock(&self.shown.recorder).dropped += u64::from(has_ended);
                    self.wake_if_over();
                    continue;
                }
                return Some(part);
            }
            if self.is_stopped || !self.pace.draws_at_once() {
                return None;
            }
            match self.start(now, now, Some(place)) {
                Started::Nothing => {
                    self.wake_if_over();
                    return None;
                }
                Started::Waits => {}
                Started::Here(part) => return Some(part),
            }
        }
    }

    /// Whether an operation of an open loop was not sent in time.
    fn is_overdue(&self, part: &Part, now: Ns) -> bool {
        let operation = &self.operations[part.operation];
        self.pace.is_scheduled()
            && operation.sent.is_none()
            && now.saturating_sub(operation.intended) > self.setup.deadline.as_nanos() as Ns
    }

    /// Starts operations whose time has come, as many as may be at a time. When to come again, if that is known.
    pub(crate) fn arrive(&mut self, now: Ns) -> Option<Ns> {
        if self.is_stopped {
            return None;
        }
        let shown = Arc::clone(&self.shown);
        let mut waiting = self.places.waiting();
        for _ in 0..MAX_STARTS {
            let due = self.pace.due()?;
            if due > now {
                return Some(due);
            }
            self.pace.take_due();
            let mut is_dropped = false;
            if self.pace.is_scheduled() {
                let mut recorder = lock(&shown.recorder);
                recorder.due += 1;
                is_dropped = waiting >= MAX_WAITING;
            }
            if is_dropped || matches!(self.start(due, now, None), Started::Nothing) {
                lock(&shown.recorder).dropped += u64::from(self.pace.is_scheduled());
                self.pace.finished(now);
            } else {
                waiting += 1;
            }
        }
        self.pace.due()
    }

    /// What was due and did not start for want of time starts now, or, if that is too much, never.
    fn start_what_is_due(&mut self, now: Ns) {
        for _ in 0..MAX_WAITING / MAX_STARTS {
            if self.arrive(now).is_none_or(|next| next > now) {
                return;
            }
        }
        let mut count = 0;
        while self.pace.due().is_some_and(|due| due <= now) {
            self.pace.take_due();
            count += 1;
        }
        let mut recorder = lock(&self.shown.recorder);
        recorder.due += count;
        recorder.not_begun += count;
        recorder.dropped += count;
    }

    /// Draws the next operation. If it is a single request to the place `asking`, that is handed over; else it waits.
    fn start(&mut self, intended: Ns, now: Ns, asking: Option<usize>) -> Started {
        let Some((drawn, partition, home)) = self.draw() else { return Started::Nothing };
        self.pace.started();
        let Drawn { kind, key, length, span, .. } = drawn;
        let began_late = now.saturating_sub(intended) > LATE;
        let so_far = SoFar::Well(Ending::Done);
        let operation = Operation { kind, length, intended, began_late, sent: None, left: span, so_far };
        let operation = self.operations.insert(operation);
        let action = match kind {
            Kind::Get | Kind::Cas | Kind::Rmw => Action::Get,
            Kind::Put | Kind::Insert => self.put(length, None),
            Kind::Delete => Action::Delete,
            Kind::Incr => Action::Increment,
            Kind::Scan | Kind::Batch => {
                let setup = Arc::clone(&self.setup);
                for key in setup.workload.span(&drawn) {
                    let action = if kind == Kind::Scan { Action::Get } else { self.put(length, None) };
                    let (partition, home) = self.locate(key);
                    let part = self.part(operation, key, partition, action, now);
                    self.places.push(part, home);
                }
                return Started::Waits;
            }
        };
        let part = self.part(operation, key, partition, action, now);
        if asking.is_some_and(|place| home == Home::At(place)) {
            return Started::Here(part);
        }
        self.places.push(part, home);
        Started::Waits
    }

    /// The next operation whose first key may be asked for now.
    fn draw(&mut self) -> Option<(Drawn, PartitionId, Home)> {
        let (mut elsewhere, mut judged) = (0, 0);
        loop {
            let may_wait = matches!(self.source, Source::Keys(_));
            let drawn = match &mut self.source {
                Source::Nothing => return None,
                Source::Draw(draw) => draw.next(),
                Source::Keys(keys) => {
                    let key = if keys.next < keys.end {
                        let key = keys.list.as_ref().map_or(keys.next as u32, |list| list[keys.next as usize]);
                        keys.next += keys.step;
                        key
                    } else {
                        keys.again.pop_front()?
                    };
                    let length = self.setup.workload.sizes.draw(&mut keys.random);
                    Drawn { kind: keys.kind, key, length, span: 1, number: 0 }
                }
            };
            let (partition, home) = self.locate(drawn.key);
            if home == Home::Elsewhere {
                elsewhere += 1;
                if may_wait || elsewhere < REDRAWS {
                    continue;
                }
            }
            let is_admitted = may_wait || self.setup.judge.as_ref().is_none_or(|judge| judge.admits(drawn.key));
            if is_admitted {
                return Some((drawn, partition, home));
            }
            judged += 1;
            if judged == REDRAWS_OF_JUDGED {
                // Requests of these keys are under way: their answers bring the next try.
                return None;
            }
        }
    }

    /// The partition of a key, and where that belongs now. Number 0 if nobody needs to know.
    fn locate(&mut self, key: u32) -> (PartitionId, Home) {
        if !self.locates {
            return (PartitionId(0), Home::At(0));
        }
        self.setup.workload.names.key(key, &mut self.key);
        let plan = self.places.plan();
        let partition = plan.partition(&self.key);
        (partition, plan.home(partition))
    }

    fn put(&mut self, length: u32, only_if: Option<Box<Expected>>) -> Action {
        self.number += 1;
        Action::Put { number: self.number, length, only_if }
    }

    /// A new request; from now on its key is under way.
    fn part(&self, operation: usize, key: u32, partition: PartitionId, action: Action, now: Ns) -> Part {
        let setup = &self.setup;
        if let Some(judge) = &setup.judge {
            judge.enter(key);
        }
        let is_traced = setup.judge.is_some() || (setup.operation_ids.is_some() && action.is_write());
        let give_up = now + setup.deadline.as_nanos() as Ns;
        let trace = is_traced.then(|| Box::new(Trace::new(give_up)));
        Part { operation, key, partition, action, trace }
    }

    /// A request joins those that wait, once more: its partition may have another leader now.
    fn dispatch(&mut self, mut part: Part) {
        let home;
        (part.partition, home) = self.locate(part.key);
        self.places.push(part, home);
    }

    /// Hands the request of a part to `push`; from now on it is asked.
    pub(crate) fn send(&mut self, part: &mut Part, now: Ns, push: impl FnOnce(&Request<'_>)) {
        let operation = &mut self.operations[part.operation];
        if operation.sent.is_none() {
            operation.sent = Some(now);
            if self.pace.is_scheduled() && now.saturating_sub(operation.intended) > LATE {
                let mut recorder = lock(&self.shown.recorder);
                recorder.late += 1;
                recorder.late_by_generator += u64::from(operation.began_late);
            }
        }
        let setup = &self.setup;
        setup.workload.names.key(part.key, &mut self.key);
        let mut operation_id = None;
        if let Some(trace) = &mut part.trace {
            if let Some(ids) = setup.operation_ids.as_ref().filter(|_| part.action.is_write()) {
                if trace.is_open {
                    lock(&self.shown.recorder).retried += 1;
                }
                let new = || ids.next(part.partition, self.places.plan().partitions().unwrap_or(1));
                operation_id = Some(*trace.operation_id.get_or_insert_with(new));
            }
            if let Some(judge) = &setup.judge {
                judge.called(part.key, &part.action, trace, now);
            }
        }
        let key = self.key.as_slice();
        push(&match part.action {
            Action::Get => Request::Get { key },
            Action::Put { number, length, ref only_if } => {
                let value = match &setup.judge {
                    Some(judge) => {
                        let stamp = Stamp { run: judge.run(), key: part.key, number };
                        setup.values.stamped(stamp, length as usize, &mut self.value);
                        self.value.as_slice()
                    }
                    None => setup.values.plain(number, length as usize),
                };
                Request::Put { key, value, only_if: only_if.as_ref().map(|e| e.version), operation_id }
            }
            Action::Delete => Request::Delete { key, operation_id },
            Action::Increment => {
                // Counters are keys of their own: other values are no numbers.
                self.key.extend_from_slice(COUNTER);
                Request::Increment { key: &self.key }
            }
        });
    }

    /// Takes note of what was answered.
    pub(crate) fn settle(&mut self, answers: impl Iterator<Item = (Part, Ended)>, now: Ns) {
        let shown = Arc::clone(&self.shown);
        let mut recorder = lock(&shown.recorder);
        for (part, ended) in answers {
            self.answered(part, ended, now, &mut recorder);
        }
        self.record_last(&mut recorder);
        drop(recorder);
        self.show_waiting();
    }

    fn show_waiting(&self) {
        if self.pace.is_scheduled() {
            self.shown.waiting.store(self.places.waiting(), Relaxed);
        }
    }

    /// A request is answered, or will never be.
    fn answered(&mut self, mut part: Part, ended: Ended, now: Ns, recorder: &mut Recorder) {
        match &ended {
            Ended::Failed { code, .. } if self.setup.routes.is_trouble(code) => self.setup.routes.trouble(),
            Ended::Failed { .. } => {}
            Ended::Written { version } => {
                self.succeeded = now;
                if let (Some(ids), Some(version)) = (&self.setup.operation_ids, version) {
                    ids.learn(part.partition, *version);
                }
                if let Some(windows) = &self.setup.windows {
                    windows.written(part.partition, now);
                }
            }
            _ => self.succeeded = now,
        }
        if self.asks_again(&mut part, &ended, now) {
            self.dispatch(part);
            return;
        }
        let judged = self.judge(&mut part, &ended, now);
        let operation = &mut self.operations[part.operation];
        let reads_first = matches!(operation.kind, Kind::Cas | Kind::Rmw) && part.action == Action::Get;
        let goes_on = match &ended {
            Ended::Value { .. } => reads_first,
            Ended::Missing => reads_first && operation.kind == Kind::Rmw,
            _ => false,
        };
        if goes_on && (!self.is_stopped || self.pace.is_scheduled()) {
            let only_if = match ended {
                Ended::Value { version, .. } if operation.kind == Kind::Cas => version,
                _ => None,
            };
            let only_if = only_if.map(|version| Box::new(Expected { version, held: judged.held }));
            let length = operation.length;
            let action = self.put(length, only_if);
            let (partition, home) = self.locate(part.key);
            let part = self.part(part.operation, part.key, partition, action, now);
            self.places.push(part, home);
            return;
        }
        operation.so_far.add(ended, part.action.is_write(), judged.is_open);
        operation.left -= 1;
        if operation.left == 0 {
            let operation = self.operations.remove(part.operation);
            if matches!(operation.so_far, SoFar::Failed(_))
                && self.persists(now)
                && let Source::Keys(keys) = &mut self.source
            {
                keys.again.push_back(part.key);
                self.pace.finished(now);
            } else {
                self.finish(&operation, now, recorder);
            }
        }
    }

    /// Whether keys that fail are asked again, whatever the reason.
    fn persists(&self, now: Ns) -> bool {
        !self.is_stopped && now < self.succeeded.saturating_add(self.persistence)
    }

    /// Whether a request that failed is asked again, a write under the same id.
    fn asks_again(&self, part: &mut Part, ended: &Ended, now: Ns) -> bool {
        let (is_unknown, committed) = match ended {
            Ended::Failed { unknown, .. } => (*unknown, None),
            Ended::TooOld { committed } => (false, Some(*committed)),
            _ => return false,
        };
        let ids = self.setup.operation_ids.as_ref();
        if let (Some(ids), Some(committed)) = (ids, committed) {
            ids.begin_anew(part.partition, committed);
        }
        let Some(trace) = &mut part.trace else { return false };
        trace.is_open |= is_unknown && part.action.is_write();
        if committed.is_some() && !trace.is_open {
            // Nothing was applied under that id.
            trace.operation_id = None;
        }
        let may_ask = ids.is_some() && part.action.is_write() && !self.is_stopped && now < trace.give_up;
        match committed {
            Some(_) => may_ask && !trace.is_open,
            None => may_ask && trace.is_open,
        }
    }

    fn judge(&self, part: &mut Part, ended: &Ended, now: Ns) -> Judged {
        match (&self.setup.judge, part.trace.take()) {
            (Some(judge), Some(trace)) => judge.ended(part.key, &part.action, *trace, ended, now),
            (_, trace) => Judged { is_open: trace.is_some_and(|trace| trace.is_open), held: None },
        }
    }

    /// A request that will not be asked, or not again. Says whether its operation has ended by that.
    fn abandon(&mut self, mut part: Part) -> bool {
        let ended = Ended::Failed { code: String::new(), unknown: false };
        self.judge(&mut part, &ended, 0);
        let operation = &mut self.operations[part.operation];
        operation.left -= 1;
        let has_ended = operation.left == 0;
        if has_ended {
            self.operations.remove(part.operation);
        }
        has_ended
    }

    /// Records the answers that were alike.
    fn record_last(&mut self, recorder: &mut Recorder) {
        if let Some((answer, count)) = self.last.take() {
            recorder.all_answered(answer, count);
        }
    }

    fn finish(&mut self, operation: &Operation, now: Ns, recorder: &mut Recorder) {
        let sent = operation.sent.unwrap_or(now);
        match &operation.so_far {
            SoFar::Well(ending) => {
                let answer = Answer {
                    kind: operation.kind,
                    response_ns: now.saturating_sub(operation.intended),
                    service_ns: now.saturating_sub(sent),
                    ending: *ending,
                    is_in_time: !self.is_stopped || self.pace.is_scheduled(),
                };
                match &mut self.last {
                    Some((last, count)) if *last == answer => *count += 1,
                    _ => {
                        self.record_last(recorder);
                        self.last = Some((answer, 1));
                    }
                }
            }
            SoFar::Failed(failed) => recorder.failed(operation.kind, &failed.code, failed.unknown),
        }
        self.pace.finished(now);
        self.wake_if_over();
    }
}

fn locates(setup: &Setup, plan: &Plan) -> bool {
    setup.operation_ids.is_some() || setup.windows.is_some() || !plan.is_simple()
}

#[cfg(test)]
mod tests;
