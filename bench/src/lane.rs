//! One connection of the load: keeps its requests in flight, and times each.
//!
//! # Invariants
//! * At most `pipeline` requests are in flight, each in a slot of its own.
//! * Every request that was sent is recorded once: by its answer, or by what became of its connection. Good
//!   answers that come after the end are not counted, since the time ended before them.

use crate::{
    keyspace::{self, KEY_BYTES},
    options::Op,
    plan,
    recorder::Recorder,
};
use kv_client::{ConnectOptions, Error, Pipeline};
use kv_proto::{
    ids::ClusterId,
    request::{Condition, Operation, Request},
    response::Response,
};
use rand::{RngExt, rngs::SmallRng};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// Pause before a lost connection is made anew, and between the attempts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What all lanes of a thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) cluster: ClusterId,
    pub(crate) pipeline: usize,
    pub(crate) deadline: Duration,
    pub(crate) value: Vec<u8>,
    /// Ends the phase.
    pub(crate) stop: Arc<AtomicBool>,
    recorder: Mutex<Recorder>,
}

impl Shared {
    pub(crate) fn new(
        cluster: ClusterId,
        pipeline: usize,
        deadline: Duration,
        value: Vec<u8>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Shared { cluster, pipeline, deadline, value, stop, recorder: Mutex::new(Recorder::new()) }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was recorded since the last time.
    pub(crate) fn take_recorded(&self) -> Recorder {
        std::mem::replace(&mut *self.recorder(), Recorder::new())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Lane {
    plan: plan::Lane,
    shared: Arc<Shared>,
    /// `None` after it was lost.
    pipeline: Option<Pipeline>,
    window: Window,
    rng: SmallRng,
}

/// The requests in flight.
#[derive(Debug)]
struct Window {
    /// When the request in a slot was sent; the slot's index is the request's id.
    sent: Vec<Option<Instant>>,
    free: Vec<usize>,
    /// What the answers of one batch were; kept for its capacity.
    batch: Vec<Outcome>,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Good { sent: Instant, miss: bool },
    Bad(&'static str),
}

/// Which request comes next.
enum Next<I> {
    Random(Op),
    Put(I),
}

impl Lane {
    pub(crate) async fn connect(plan: plan::Lane, shared: Arc<Shared>, seed: u64) -> Result<Lane, Error> {
        let rng = keyspace::rng(seed, u64::from(plan.index));
        let window =
            Window { sent: vec![None; shared.pipeline], free: (0..shared.pipeline).collect(), batch: Vec::new() };
        let mut lane = Lane { plan, shared, pipeline: None, window, rng };
        lane.pipeline = Some(lane.open().await?);
        Ok(lane)
    }

    async fn open(&self) -> Result<Pipeline, Error> {
        let target = &self.plan.target;
        let (cluster, executor) = (Some(self.shared.cluster), Some(target.executor));
        let options = ConnectOptions { cluster, executor, timeout: self.shared.deadline };
        let pipeline = Pipeline::connect(&target.address, &options).await?;
        let node = pipeline.welcome().node;
        if node != target.node {
            let cause = format!("{node} answers at its address {}", target.address);
            return Err(Error::Unreachable { node: target.node.to_string(), cause });
        }
        Ok(pipeline)
    }

    /// Writes this connection's share of the keys.
    pub(crate) async fn load(&mut self) {
        let keys = self.plan.keys_to_load();
        self.drive(Next::Put(keys)).await;
    }

    /// Asks for random keys until it is told to stop.
    pub(crate) async fn run(&mut self, op: Op) {
        self.drive(Next::Random::<std::iter::Empty<u32>>(op)).await;
    }

    async fn drive(&mut self, mut next: Next<impl Iterator<Item = u32>>) {
        let deadline = self.shared.deadline;
        loop {
            if self.pipeline.is_none() {
                if self.shared.stopped() {
                    return;
                }
                self.reopen().await;
            }
            self.fill(&mut next);
            let Some(pipeline) = &mut self.pipeline else { continue };
            if pipeline.in_flight() == 0 {
                return;
            }
            let failure = match timeout(deadline, self.window.exchange(pipeline)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.code()),
                Err(_) => Some("deadline_exceeded"),
            };
            self.record();
            // With a node that answers fast enough this lane would go on by itself for long, and the others wait.
            tokio::task::yield_now().await;
            if let Some(code) = failure {
                self.pipeline = None;
                self.shared.recorder().failed(code, self.window.clear());
            }
        }
    }

    /// Puts a request into every free slot, as long as there are requests.
    fn fill(&mut self, next: &mut Next<impl Iterator<Item = u32>>) {
        let Some(pipeline) = &mut self.pipeline else { return };
        if self.shared.stopped() {
            return;
        }
        let deadline_ms = self.shared.deadline.as_millis() as u32;
        let keys = &self.plan.target.keys;
        let now = Instant::now();
        while let Some(slot) = self.window.free.last().copied() {
            let (op, index) = match next {
                Next::Random(op) => (*op, keys[self.rng.random_range(0..keys.len())]),
                Next::Put(keys) => match keys.next() {
                    Some(index) => (Op::Put, index),
                    None => return,
                },
            };
            let key: [u8; KEY_BYTES] = keyspace::key(index);
            let (key, value) = (key.as_slice(), self.shared.value.as_slice());
            let operation = match op {
                Op::Get => Operation::Get { key },
                Op::Put => Operation::Put { key, value, content_type: "", condition: Condition::Any, ttl_ms: None },
            };
            pipeline.push(slot as u64, &Request { deadline_ms, operation_id: None, operation });
            self.window.sent[slot] = Some(now);
            self.window.free.pop();
        }
    }

    /// Records what came in one batch: one lock and one look at the clock for all of it.
    fn record(&mut self) {
        let now = Instant::now();
        let stopped = self.shared.stopped();
        let mut recorder = self.shared.recorder();
        for outcome in self.window.batch.drain(..) {
            match outcome {
                Outcome::Good { sent, miss } if !stopped => recorder.answered(now.duration_since(sent), miss),
                Outcome::Good { .. } => {}
                Outcome::Bad(code) => recorder.failed(code, 1),
            }
        }
    }

    async fn reopen(&mut self) {
        sleep(RECONNECT_PAUSE).await;
        match self.open().await {
            Ok(pipeline) => self.pipeline = Some(pipeline),
            Err(error) => self.shared.recorder().failed(error.code(), 1),
        }
    }
}

impl Window {
    /// Sends what was pushed, and takes at least one answer.
    async fn exchange(&mut self, pipeline: &mut Pipeline) -> Result<(), Error> {
        pipeline.flush().await?;
        pipeline.receive(|id, response| self.take(id, &response)).await?;
        Ok(())
    }

    fn take(&mut self, id: u64, response: &Response<'_>) {
        let slot = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(sent) = self.sent.get_mut(slot).and_then(Option::take) else {
            self.batch.push(Outcome::Bad("protocol_error"));
            return;
        };
        self.free.push(slot);
        self.batch.push(match response {
            Response::Value { .. } | Response::Written { .. } => Outcome::Good { sent, miss: false },
            Response::Missing { .. } => Outcome::Good { sent, miss: true },
            Response::Error(e) => Outcome::Bad(e.code.as_str()),
            _ => Outcome::Bad("protocol_error"),
        });
    }

    /// Frees all slots: their connection is gone. Says how many requests were in them.
    fn clear(&mut self) -> u64 {
        let mut lost = 0;
        for (slot, sent) in self.sent.iter_mut().enumerate() {
            if sent.take().is_some() {
                self.free.push(slot);
                lost += 1;
            }
        }
        lost
    }
}
