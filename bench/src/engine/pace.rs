//! When operations start: at once when a slot is free, when a user has thought, or by a schedule.

use super::operation::Ns;
use crate::workload::{Schedule, Think};
use rand::rngs::SmallRng;
use std::{cmp::Reverse, collections::BinaryHeap, rc::Rc};
use tokio::sync::Notify;

pub(crate) enum Pace {
    /// Closed loop: as many operations as there are slots, always.
    Saturated { free: usize },
    /// Closed loop of users who think before each operation.
    Users {
        think: Think,
        random: Box<SmallRng>,
        /// When users who think will have thought.
        ready: BinaryHeap<Reverse<Ns>>,
        /// Wakes the pacer: somebody is ready earlier than it believes.
        wake: Rc<Notify>,
    },
    /// Open loop: operations start when they should, whatever becomes of those before.
    Scheduled { schedule: Box<Schedule>, began: Ns, next: Option<Ns>, wake: Rc<Notify> },
}

impl Pace {
    /// So many users, who all think first.
    pub(crate) fn users(count: usize, think: Think, mut random: SmallRng, now: Ns) -> Pace {
        let ready = (0..count).map(|_| Reverse(now + think.draw(&mut random).as_nanos() as Ns)).collect();
        Pace::Users { think, random: Box::new(random), ready, wake: Rc::default() }
    }

    pub(crate) fn scheduled(mut schedule: Schedule, began: Ns) -> Pace {
        let next = schedule.next().map(|start| began + start.as_nanos() as Ns);
        Pace::Scheduled { schedule: Box::new(schedule), began, next, wake: Rc::default() }
    }

    /// What the pacer waits for beside the time; `None` if there is nothing for a pacer to do.
    pub(crate) fn waker(&self) -> Option<Rc<Notify>> {
        match self {
            Pace::Saturated { .. } => None,
            Pace::Users { wake, .. } | Pace::Scheduled { wake, .. } => Some(Rc::clone(wake)),
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker() {
            waker.notify_one();
        }
    }

    pub(crate) fn is_scheduled(&self) -> bool {
        matches!(self, Pace::Scheduled { .. })
    }

    /// How many operations may start as soon as somebody asks for them.
    pub(crate) fn free(&self) -> usize {
        if let Pace::Saturated { free } = self { *free } else { 0 }
    }

    pub(crate) fn draws_at_once(&self) -> bool {
        self.free() > 0
    }

    /// When the next operation starts.
    pub(crate) fn due(&self) -> Option<Ns> {
        match self {
            Pace::Saturated { .. } => None,
            Pace::Users { ready, .. } => ready.peek().map(|Reverse(at)| *at),
            Pace::Scheduled { next, .. } => *next,
        }
    }

    /// The operation that is due starts, or is dropped.
    pub(crate) fn take_due(&mut self) {
        match self {
            Pace::Saturated { .. } => {}
            Pace::Users { ready, .. } => drop(ready.pop()),
            Pace::Scheduled { schedule, began, next, .. } => {
                *next = schedule.next().map(|start| *began + start.as_nanos() as Ns);
            }
        }
    }

    /// An operation started.
    pub(crate) fn started(&mut self) {
        if let Pace::Saturated { free } = self {
            *free -= 1;
        }
    }

    /// An operation ended.
    pub(crate) fn finished(&mut self, now: Ns) {
        match self {
            Pace::Saturated { free } => *free += 1,
            Pace::Users { think, random, ready, wake } => {
                let at = now + think.draw(random).as_nanos() as Ns;
                if ready.peek().is_none_or(|Reverse(next)| at < *next) {
                    wake.notify_one();
                }
                ready.push(Reverse(at));
            }
            Pace::Scheduled { .. } => {}
        }
    }
}
