//! One connection of the load: keeps requests in flight, and says when each was answered.
//!
//! # Invariants
//! * At most `pipeline` requests are in flight, each in a slot of its own.
//! * Every request that was sent ends once: by its answer, or by what became of its connection.

use super::{
    clock::Clock,
    operation::{Ended, Ns, Part},
    plan::Place,
    setup::Setup,
    unit::{Shown, Unit},
};
use crate::target::{Broken, Connection, Reply};
use std::{
    cell::RefCell,
    future::Future,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{sleep, sleep_until},
};

/// Pause before a lost connection is made anew, and between the attempts; later attempts come less often.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const LONG_RECONNECT_PAUSE: Duration = Duration::from_millis(200);
const QUICK_ATTEMPTS: u32 = 100;
/// How long nothing new is asked after answers that were nothing but failures, so that refusals do not fill the processors.
const REFUSED_PAUSE: Ns = 10_000_000;
/// How long a connection to a place that is no longer of use waits for its answers.
const MOVE_PATIENCE: Ns = 200_000_000;

/// How connections to places are made.
pub(crate) trait Connect {
    type Connection: Connection;

    fn connect(&self, place: &Place) -> impl Future<Output = Result<Self::Connection, Broken>>;
}

pub(crate) struct Lane<C: Connect> {
    /// Among the lanes of its unit.
    index: usize,
    setup: Arc<Setup>,
    shown: Arc<Shown>,
    connect: Rc<C>,
    clock: Clock,
    /// `None` after it was lost.
    connection: Option<C::Connection>,
    /// Where the connection goes.
    place: Place,
    notify: Rc<Notify>,
    window: Window,
    /// When something was heard last, or the first of what is in flight was sent.
    heard: Ns,
    /// Until when nothing new is asked.
    paused_until: Ns,
    /// Attempts to connect that have failed in a row.
    attempts: u32,
}

/// The requests in flight.
struct Window {
    /// A slot's index is its request's tag.
    slots: Vec<Option<Part>>,
    free: Vec<usize>,
    /// What was answered in one batch; kept for its capacity.
    batch: Vec<(Part, Ended)>,
    /// There was an answer to nothing: which of the others belong to what cannot be said any more.
    is_confused: bool,
}

enum Next {
    Answered(Result<(), Broken>),
    Woken,
    Silent,
}

impl<C: Connect> Lane<C> {
    /// A lane with its connection.
    ///
    /// # Errors
    /// When there is nobody to connect to.
    pub(crate) async fn open(
        setup: Arc<Setup>,
        shown: Arc<Shown>,
        connect: Rc<C>,
        unit: Rc<RefCell<Unit>>,
        index: usize,
    ) -> Result<Lane<C>, Broken> {
        let place = unit.borrow_mut().place(index).clone();
        let connection = Some(connect.connect(&place).await?);
        unit.borrow_mut().connected(index, true);
        let (clock, notify) = (setup.clock, unit.borrow().notify(index));
        let slots = (0..setup.pipeline).map(|_| None).collect();
        let free = (0..setup.pipeline).rev().collect();
        let window = Window { slots, free, batch: Vec::new(), is_confused: false };
        let (heard, paused_until, attempts) = (0, 0, 0);
        Ok(Lane {
            index,
            setup,
            shown,
            connect,
            clock,
            connection,
            place,
            notify,
            window,
            heard,
            paused_until,
            attempts,
        })
    }

    /// Carries requests until the phase is over and nothing is in flight.
    pub(crate) async fn drive(&mut self, unit: &RefCell<Unit>) {
        loop {
            unit.borrow_mut().busy(self.index);
            let leaves = self.leave(unit);
            if self.connection.is_none() {
                if unit.borrow().is_over() {
                    return;
                }
                self.reopen(unit).await;
                continue;
            }
            let Some(connection) = &mut self.connection else { continue };
            let now = self.clock.now();
            if self.window.in_flight() == 0 {
                self.heard = now;
            }
            let fills = !leaves && now >= self.paused_until;
            if fills {
                let mut unit = unit.borrow_mut();
                self.window.fill(&mut unit, self.index, connection, &self.shown, now);
                if !self.window.free.is_empty() {
                    unit.idle(self.index);
                }
            }
            let in_flight = self.window.in_flight();
            if in_flight == 0 && unit.borrow().is_over() {
                return;
            }
            let patience = if leaves { MOVE_PATIENCE } else { self.setup.deadline.as_nanos() as Ns };
            let limit = if in_flight == 0 { Ns::MAX / 2 } else { self.heard.saturating_add(patience) };
            let until = if fills || leaves { limit } else { limit.min(self.paused_until) };
            let next = tokio::select! {
                biased;
                answered = self.window.exchange(connection, &self.setup), if in_flight > 0 => Next::Answered(answered),
                () = self.notify.notified(), if !leaves => Next::Woken,
                () = sleep_until(self.clock.instant(until).into()) => if until < limit { Next::Woken } else { Next::Silent },
            };
            let now = self.clock.now();
            let lost = match next {
                Next::Woken => continue,
                Next::Answered(Ok(())) => None,
                Next::Answered(Err(broken)) => Some(broken.code),
                Next::Silent => Some(if leaves { "connection_lost" } else { "deadline_exceeded" }),
            };
            self.heard = now;
            self.settle(&mut unit.borrow_mut(), lost, now);
            // With a node that answers fast enough this lane would go on by itself for long, and the others wait.
            tokio::task::yield_now().await;
        }
    }

    /// Takes note of what was answered, and of everything in flight if the connection is lost.
    fn settle(&mut self, unit: &mut Unit, lost: Option<&str>, now: Ns) {
        let is_refused = self.window.batch.iter().all(|(_, ended)| matches!(ended, Ended::Failed { .. }));
        if is_refused && unit.is_impatient() {
            self.paused_until = now + REFUSED_PAUSE;
        }
        if let Some(code) = lost {
            self.connection = None;
            self.window.lose(code);
        }
        self.window.settle(unit, &self.shown, now);
        if lost.is_some() {
            unit.connected(self.index, false);
        }
    }

    /// Whether the connection is of no use where it goes and only waits for its answers; it is given up when there are none.
    fn leave(&mut self, unit: &RefCell<Unit>) -> bool {
        let mut unit = unit.borrow_mut();
        if *unit.place(self.index) == self.place {
            return false;
        }
        if self.connection.is_some() && self.window.in_flight() > 0 {
            return true;
        }
        self.place = unit.place(self.index).clone();
        self.connection = None;
        self.attempts = 0;
        unit.connected(self.index, false);
        false
    }

    async fn reopen(&mut self, unit: &RefCell<Unit>) {
        match self.connect.connect(&self.place).await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.attempts = 0;
                unit.borrow_mut().connected(self.index, true);
            }
            Err(broken) => {
                let now = self.clock.now();
                unit.borrow_mut().not_connected(self.index, broken.code, now);
                self.setup.routes.trouble();
                self.attempts += 1;
                sleep(if self.attempts < QUICK_ATTEMPTS { RECONNECT_PAUSE } else { LONG_RECONNECT_PAUSE }).await;
            }
        }
    }
}

impl Window {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a request into every free slot, as long as there are requests.
    fn fill(&mut self, unit: &mut Unit, lane: usize, connection: &mut impl Connection, shown: &Shown, now: Ns) {
        let before = self.free.len();
        while let Some(slot) = self.free.last().copied() {
            let Some(mut part) = unit.take(lane, now) else { break };
            unit.send(&mut part, now, |request| connection.push(slot as u64, request));
            self.slots[slot] = Some(part);
            self.free.pop();
        }
        if before > self.free.len() {
            shown.in_flight.fetch_add(before - self.free.len(), Relaxed);
        }
    }

    /// Sends what was pushed, and takes at least one answer.
    async fn exchange(&mut self, connection: &mut impl Connection, setup: &Setup) -> Result<(), Broken> {
        connection.flush().await?;
        connection.receive(|tag, reply| self.take(tag, reply, setup)).await?;
        if self.is_confused {
            return Err(Broken { code: "protocol_error", cause: "there was an answer to nothing".to_owned() });
        }
        Ok(())
    }

    fn take(&mut self, tag: u64, reply: Reply<'_>, setup: &Setup) {
        let slot = usize::try_from(tag).unwrap_or(usize::MAX);
        let Some(part) = self.slots.get_mut(slot).and_then(Option::take) else {
            self.is_confused = true;
            return;
        };
        self.free.push(slot);
        let ended = match reply {
            Reply::Value { value, version } => match &setup.judge {
                None => Ended::Value { version, held: None },
                Some(judge) => judge.read(&setup.values, part.key, value, version),
            },
            Reply::Missing => Ended::Missing,
            Reply::Written { version } => Ended::Written { version },
            Reply::Number(_) => Ended::Written { version: None },
            Reply::Conflict => Ended::Conflict,
            Reply::TooOld { committed } => Ended::TooOld { committed },
            Reply::Failed { code, unknown } => Ended::Failed { code: code.into_owned(), unknown },
        };
        self.batch.push((part, ended));
    }

    /// All requests in flight fail: their connection is gone.
    fn lose(&mut self, code: &str) {
        self.is_confused = false;
        for (slot, part) in self.slots.iter_mut().enumerate() {
            if let Some(part) = part.take() {
                self.free.push(slot);
                let unknown = part.action.is_write();
                self.batch.push((part, Ended::Failed { code: code.to_owned(), unknown }));
            }
        }
    }

    fn settle(&mut self, unit: &mut Unit, shown: &Shown, now: Ns) {
        shown.in_flight.fetch_sub(self.batch.len(), Relaxed);
        unit.settle(self.batch.drain(..), now);
    }
}
