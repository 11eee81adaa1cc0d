//! One connection that many callers share: their requests leave together, their answers are matched by id.
//!
//! Callers append their frames to one buffer; one task (the driver) owns the socket, sends the whole buffer
//! at once, reads, and hands answers out. Has no map and retries nothing.
//!
//! # Invariants
//! * At most `max_in_flight` requests are unanswered, at most [`SEND_BUDGET_BYTES`] (or one request) unsent; further
//!   callers wait for room until their deadlines.
//! * Every request gets its answer or a reason, once; a caller that goes away leaves nothing behind but its place,
//!   until the answer or the end of the connection.
//! * No lock is held across an await.
//! * A node that sends no byte for [`Heartbeat::quiet`], and none within [`Heartbeat::answer_within`] of a ping, is
//!   taken for gone, even while its sockets live on.

use crate::{
    Error,
    answer::Answer,
    socket::{Cause, Socket},
    waiting::{Lost, UnknownId, Waiting},
};
use kv_proto::{
    codec,
    error_code::Outcome,
    frame::{self, Kind},
    hello::Welcome,
    ids::OperationId,
    limits::Limits,
    request::{Operation, Request},
};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, Sleep, sleep_until, timeout_at},
};

/// How many bytes may wait to be sent.
const SEND_BUDGET_BYTES: usize = 8 * 1024 * 1024;
/// What a request may need beside key, value and content type: header and fixed fields of all of its frames.
const REQUEST_OVERHEAD_BYTES: usize = 256;
/// The id of pings; no place has it.
const PING_ID: u64 = u64::MAX;

/// When a silent node is asked whether it is there, and how long it may take to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    pub(crate) quiet: Duration,
    pub(crate) answer_within: Duration,
}

/// A connection, as its users see it. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    welcome: Welcome,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tells the driver that there is something to send, or that nobody needs it any more.
    wake: Notify,
    /// Places for unanswered requests.
    places: Semaphore,
    /// Bytes that may wait to be sent.
    budget: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    outgoing: Vec<u8>,
    /// Share of the budget that `outgoing` takes.
    reserved: usize,
    /// Position in the socket's stream behind the last byte that was appended.
    appended: u64,
    waiting: Waiting,
    closed: Option<Arc<str>>,
    released: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place and for `cost` bytes of the send budget, and takes them. Ends at once when the connection is
    /// closed, which [`Shared::push`] reports.
    async fn make_room(&self, cost: usize) {
        let Ok(place) = self.places.acquire().await else { return };
        let Ok(bytes) = self.budget.acquire_many(cost as u32).await else { return };
        // The driver gives them back: the place with the answer, the bytes once they are sent.
        place.forget();
        bytes.forget();
    }

    /// Appends a request for which room was made.
    fn push(
        &self,
        operation: Operation<'_>,
        operation_id: Option<OperationId>,
        deadline: Instant,
        cost: usize,
    ) -> Result<Pending<'_>, Lost> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
        let request = Request { deadline_ms, operation_id, operation };
        let (place, wake) = {
            let mut state = self.state();
            if let Some(cause) = &state.closed {
                return Err(Lost { sent: false, cause: Arc::clone(cause) });
            }
            let wake = state.outgoing.is_empty();
            let id = state.waiting.next_id();
            state.append(id, &request);
            state.reserved += cost;
            let end = state.appended;
            (state.waiting.insert(end), wake)
        };
        // With bytes in the buffer the driver has been woken and has not looked yet.
        if wake {
            self.wake.notify_one();
        }
        Ok(Pending { shared: self, place: Some(place) })
    }
}

impl State {
    fn append(&mut self, id: u64, request: &Request<'_>) {
        let before = self.outgoing.len();
        frame::append_message(&mut self.outgoing, Kind::Request, id, |body| codec::encode_into(body, request));
        self.appended += (self.outgoing.len() - before) as u64;
    }
}

/// A request that was appended. Dropped before it is answered, it gives its place up.
struct Pending<'a> {
    shared: &'a Shared,
    place: Option<usize>,
}

impl Future for Pending<'_> {
    type Output = Result<Answer, Lost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let place = self.place.expect("not polled after its answer");
        let answer = self.shared.state().waiting.poll(place, context.waker());
        match answer {
            Some(result) => {
                self.place = None;
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.shared.state().waiting.abandon(place);
        }
    }
}

impl Connection {
    /// Starts the driver of a greeted connection on the current runtime.
    pub(crate) fn start(socket: Socket, welcome: Welcome, max_in_flight: usize, heartbeat: Heartbeat) -> Connection {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { appended: socket.taken(), ..State::default() }),
            wake: Notify::new(),
            places: Semaphore::new(max_in_flight),
            budget: Semaphore::new(SEND_BUDGET_BYTES),
        });
        tokio::spawn(Driver::new(socket, Arc::clone(&shared), heartbeat).run());
        Connection { shared, welcome }
    }

    /// What the node takes.
    pub(crate) fn limits(&self) -> Limits {
        self.welcome.limits
    }

    /// Whether the connection is of no use any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.places.is_closed()
    }

    /// Asks, and waits for the answer until `deadline`. The outcome in the error is the request's.
    pub(crate) async fn call(
        &self,
        operation: Operation<'_>,
        operation_id: Option<OperationId>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let is_write = matches!(operation, Operation::Put { .. } | Operation::Delete { .. } | Operation::Admin(_));
        let outcome = |sent| if sent && is_write { Outcome::Unknown } else { Outcome::NotApplied };
        let node = || self.welcome.node.to_string();
        let lost = |lost: Lost| {
            let (cause, outcome) = (lost.cause.to_string(), outcome(lost.sent));
            Error::ConnectionLost { node: node(), cause, outcome }
        };
        let cost = match operation {
            Operation::Put { key, value, content_type, .. } => key.len() + value.len() + content_type.len(),
            Operation::Get { key } | Operation::Delete { key, .. } => key.len(),
            Operation::Map | Operation::Stats | Operation::Ping | Operation::Admin(_) | Operation::Report => 0,
        };
        let cost = (cost + REQUEST_OVERHEAD_BYTES).min(SEND_BUDGET_BYTES);
        let room = self.shared.make_room(cost);
        if timeout_at(deadline, room).await.is_err() {
            return Err(Error::Busy { node: self.welcome.node });
        }
        let pending = self.shared.push(operation, operation_id, deadline, cost).map_err(lost)?;
        match timeout_at(deadline, pending).await {
            Ok(result) => result.map_err(lost),
            Err(_) => Err(Error::DeadlineExceeded { node: node(), outcome: outcome(true) }),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.state().released = true;
        self.shared.wake.notify_one();
    }
}

/// Owns the socket. Whatever ends it, its callers are told: see its `Drop`.
struct Driver {
    socket: Socket,
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    /// Share of the budget that the bytes in the socket's buffer take.
    sending_reserved: usize,
    /// An empty buffer to change for the filled one of the callers.
    spare: Vec<u8>,
    last_received: Instant,
    ping_sent: Option<Instant>,
    pings_unanswered: usize,
    /// Kept for their capacity.
    answers: Vec<(u64, Answer)>,
    wakers: Vec<Waker>,
    cause: Cause,
}

impl Driver {
    fn new(socket: Socket, shared: Arc<Shared>, heartbeat: Heartbeat) -> Self {
        Driver {
            socket,
            shared,
            heartbeat,
            sending_reserved: 0,
            spare: Vec::new(),
            last_received: Instant::now(),
            ping_sent: None,
            pings_unanswered: 0,
            answers: Vec::new(),
            wakers: Vec::new(),
            cause: "its task was ended".to_owned(),
        }
    }

    async fn run(mut self) {
        if let Err(cause) = self.drive().await {
            self.cause = cause;
        }
    }

    /// Runs until nobody needs the connection (`Ok`) or it is broken.
    async fn drive(&mut self) -> Result<(), Cause> {
        let mut timer = std::pin::pin!(sleep_until(self.last_received + self.heartbeat.quiet));
        loop {
            if !self.send()? {
                return Ok(());
            }
            tokio::select! {
                biased;
                ready = self.socket.ready(self.socket.interest()) => {
                    if ready?.is_readable() && self.receive()? && self.ping_sent.take().is_some() {
                        timer.as_mut().reset(self.last_received + self.heartbeat.quiet);
                    }
                }
                // Callers that can run now append first, so that one write carries them all: about half the CPU time
                // a request with 64 callers on two threads.
                () = self.shared.wake.notified() => tokio::task::yield_now().await,
                () = &mut timer => self.handle_quiet(timer.as_mut())?,
            }
        }
    }

    /// Sends what callers appended, until there is no more of it or no room; false when nobody needs the connection
    /// any more.
    fn send(&mut self) -> Result<bool, Cause> {
        loop {
            if !self.socket.has_unsent() {
                let mut state = self.shared.state();
                if state.released {
                    return Ok(false);
                }
                if state.outgoing.is_empty() {
                    return Ok(true);
                }
                std::mem::swap(&mut self.spare, &mut state.outgoing);
                self.sending_reserved = std::mem::take(&mut state.reserved);
                drop(state);
                self.socket.swap_outgoing(&mut self.spare);
            }
            self.socket.try_flush()?;
            if self.socket.has_unsent() {
                return Ok(true);
            }
            // Those who appended meanwhile may have woken nobody: look again.
            self.shared.budget.add_permits(std::mem::take(&mut self.sending_reserved));
        }
    }

    /// Reads and hands answers out; false when nothing was there.
    fn receive(&mut self) -> Result<bool, Cause> {
        if self.socket.try_read()? == 0 {
            return Ok(false);
        }
        self.last_received = Instant::now();
        let mut pongs = 0;
        let drained = self.socket.drain(|id, response| {
            if id == PING_ID {
                pongs += 1;
            } else {
                self.answers.push((id, response.into()));
            }
        });
        // What came before bytes that cannot be read is good all the same.
        let delivered = self.deliver();
        drained?;
        delivered?;
        self.pings_unanswered =
            self.pings_unanswered.checked_sub(pongs).ok_or("the node answered a ping that was not sent")?;
        Ok(true)
    }

    fn deliver(&mut self) -> Result<(), Cause> {
        let count = self.answers.len();
        if count == 0 {
            return Ok(());
        }
        let mut result = Ok(());
        {
            let mut state = self.shared.state();
            for (id, answer) in self.answers.drain(..) {
                match state.waiting.answer(id, answer) {
                    Ok(waker) => self.wakers.extend(waker),
                    Err(UnknownId) => result = Err(format!("the node answered request {id}, which does not wait")),
                }
            }
        }
        if result.is_ok() {
            self.shared.places.add_permits(count);
        }
        self.wakers.drain(..).for_each(Waker::wake);
        result
    }

    /// The timer fired: asks a quiet node whether it is there, or gives it up.
    fn handle_quiet(&mut self, timer: Pin<&mut Sleep>) -> Result<(), Cause> {
        let Heartbeat { quiet, answer_within } = self.heartbeat;
        let now = Instant::now();
        let next = match self.ping_sent {
            Some(at) if now >= at + answer_within => {
                let silence = now.duration_since(self.last_received).as_millis();
                return Err(format!("the node has been silent for {silence} ms and does not answer a ping"));
            }
            Some(at) => at + answer_within,
            None if now >= self.last_received + quiet => {
                let deadline_ms = answer_within.as_millis().try_into().unwrap_or(u32::MAX);
                let ping = Request { deadline_ms, operation_id: None, operation: Operation::Ping };
                self.shared.state().append(PING_ID, &ping);
                self.ping_sent = Some(now);
                self.pings_unanswered += 1;
                now + answer_within
            }
            None => self.last_received + quiet,
        };
        timer.reset(next);
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let cause: Arc<str> = std::mem::take(&mut self.cause).into();
        let wakers = {
            let mut state = self.shared.state();
            state.outgoing = Vec::new();
            state.closed = Some(Arc::clone(&cause));
            state.waiting.close(self.socket.taken(), &cause)
        };
        self.shared.places.close();
        self.shared.budget.close();
        wakers.into_iter().for_each(Waker::wake);
    }
}
