//! The connections of an executor with their sockets: what is read when, what is sent, and what slow readers cost.
//!
//! # The adaptive scan
//! A socket on which nothing came for a while is *armed*: a task waits on the ring until it is readable. A readable
//! socket becomes *active* and is read directly in every pass over the active sockets; after some passes in a row
//! that found nothing it is armed again. How many passes is learned per executor: passes that pay double the
//! allowance, passes in vain halve it, so that an idle or crowded machine stays cool.
//!
//! # Invariants
//! * A connection whose peer does not read is not read from once its output passes [`MAX_OUTPUT_BYTES`] (and one
//!   answer), and is closed when nothing of it could be sent for [`SEND_TIMEOUT`]. While all connections together
//!   pass [`MAX_ALL_OUTPUT_BYTES`], requests are answered by a short refusal. What is received and cannot be run yet
//!   is held to [`MAX_ALL_KEPT_BYTES`].
//! * An idle connection holds no buffer.
//! * Every connection that has output is active, or has a task that drains it.

use super::{
    Executor, Mail,
    requests::{Origin, append_response},
};
use crate::{
    clock,
    transport::{
        connection::{Connection, Input, Rejection, Role},
        socket::{Moved, Socket},
    },
};
use kv_proto::{
    codec,
    control::FromController,
    error_code::{ErrorCode, WireError},
    frame::{self, HEADER_BYTES, Kind, MAX_CHUNK_BYTES},
    hello::{Caller, Hello, Welcome},
    ids::Member,
    replication::PeerBatch,
    response::Response,
};
use kv_replication::clock::Instant64;
use slotmap::SlotMap;
use std::{os::fd::OwnedFd, sync::atomic::Ordering, time::Duration};

/// Output of one connection beyond which it is not read from, in bytes.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Requests of one connection that other executors may have to answer; with more it is not read from.
const MAX_UNDER_WAY: usize = 64;
/// Places for peers beside those of clients: a lost stream must be made again however many clients there are.
const RESERVED_FOR_PEERS: usize = 64;
/// Output of all connections of an executor beyond which reads are refused, in bytes.
const MAX_ALL_OUTPUT_BYTES: usize = 128 * 1024 * 1024;
/// Unfinished messages of all connections of an executor beyond which a client that has one is turned away, in bytes.
const MAX_ALL_KEPT_BYTES: usize = 256 * 1024 * 1024;
/// What is read at most at once, in bytes, beside what was left over.
const READ_BYTES: usize = 256 * 1024;
/// What a draining task sends at once, in bytes.
const DRAIN_BYTES: usize = 64 * 1024;
/// How long a stranger may take for its hello, and a closing connection for reading what it is told.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection may have output of which nothing can be sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer or the controller may be silent, who speak every beacon interval or ping.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// A socket that was readable again so soon after it was armed should have been scanned on.
const WORTH_SCANNING: Duration = Duration::from_micros(100);
/// An output buffer larger than this is given back once it is sent.
const KEPT_OUTPUT_BYTES: usize = 64 * 1024;

slotmap::new_key_type! {
    /// Names a connection of an executor.
    pub(crate) struct LineKey;
}

/// A connection with its socket.
pub(super) struct Line {
    socket: Socket,
    /// `None` while its requests are run.
    connection: Option<Connection>,
    /// Received and not run yet: part of a frame, or what a slow reader has to wait with.
    inbox: Vec<u8>,
    /// Bytes received and kept, those of unfinished messages included.
    kept: usize,
    /// Whether whole frames stand in the inbox.
    held_back: bool,
    outbox: Vec<u8>,
    /// How much of the outbox was sent.
    sent: usize,
    /// What the draining task has taken out of the outbox, in bytes.
    taken: usize,
    active: bool,
    /// Since when a task waits for it to be readable.
    armed: Option<Instant64>,
    draining: bool,
    passes_in_vain: u32,
    /// Answers that other executors are to give.
    under_way: usize,
    opened: Instant64,
    heard: Instant64,
    /// When something of its output was last sent, or there was none.
    sent_at: Instant64,
    /// Since when it is only to read what it was told.
    closing: Option<Instant64>,
}

impl Line {
    fn role(&self) -> Role {
        self.connection.as_ref().map_or(Role::Stranger, Connection::role)
    }

    /// Whether its requests may be run, or its answers have to be taken first.
    fn may_run(&self) -> bool {
        self.unsent() <= MAX_OUTPUT_BYTES && self.under_way < MAX_UNDER_WAY
    }

    fn unsent(&self) -> usize {
        self.outbox.len() - self.sent + self.taken
    }
}

/// All connections of an executor.
pub(super) struct Lines {
    all: SlotMap<LineKey, Line>,
    active: Vec<LineKey>,
    /// Those to which something was appended since the last time that output was sent.
    with_output: Vec<LineKey>,
    output_bytes: usize,
    kept_bytes: usize,
    passes: u32,
    scratch: Vec<u8>,
}

impl Default for Lines {
    fn default() -> Self {
        Lines {
            all: SlotMap::with_key(),
            active: Vec::new(),
            with_output: Vec::new(),
            output_bytes: 0,
            kept_bytes: 0,
            passes: 1,
            scratch: vec![0; READ_BYTES + HEADER_BYTES + MAX_CHUNK_BYTES],
        }
    }
}

impl Lines {
    pub(super) fn all_sent(&self) -> bool {
        self.all.values().all(|l| l.unsent() == 0)
    }

    /// Whether slow readers hold so much that nothing large may be answered.
    pub(super) fn output_is_full(&self) -> bool {
        self.output_bytes > MAX_ALL_OUTPUT_BYTES
    }

    pub(super) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub(super) fn role(&self, key: LineKey) -> Option<Role> {
        self.all.get(key).map(Line::role)
    }

    /// Output of a connection that is not on its way, in bytes.
    pub(super) fn unsent(&self, key: LineKey) -> usize {
        self.all.get(key).map_or(0, Line::unsent)
    }

    /// Takes a connection out, and what it holds out of the sums.
    fn forget(&mut self, key: LineKey) -> Option<Line> {
        let line = self.all.remove(key)?;
        self.output_bytes -= line.unsent();
        self.kept_bytes -= line.kept;
        Some(line)
    }

    fn activate(&mut self, key: LineKey) {
        if let Some(line) = self.all.get_mut(key)
            && !line.active
        {
            line.active = true;
            line.passes_in_vain = 0;
            self.active.push(key);
        }
    }
}

impl Executor {
    /// Takes in a new connection, on which `received` came in already. `None` if there are too many.
    pub(super) fn add_line(&mut self, socket: Socket, role: Role, received: &[u8]) -> Option<LineKey> {
        let limit = self.shared.settings.max_connections + RESERVED_FOR_PEERS;
        if self.shared.connections.fetch_add(1, Ordering::Relaxed) >= limit && role == Role::Stranger {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            let mut out = Vec::new();
            Rejection::from(self.too_many_connections()).append_to(&mut out);
            let _ = socket.send(&out);
            socket.shut_down();
            return None;
        }
        let now = clock::now();
        let key = self.lines.all.insert(Line {
            socket,
            connection: Some(Connection::new(role, self.shared.settings.limits)),
            inbox: Vec::new(),
            kept: 0,
            held_back: false,
            outbox: Vec::new(),
            sent: 0,
            taken: 0,
            active: false,
            armed: None,
            draining: false,
            passes_in_vain: 0,
            under_way: 0,
            opened: now,
            heard: now,
            sent_at: now,
            closing: None,
        });
        self.run_received(key, received);
        self.lines.activate(key);
        self.wake_scanner();
        Some(key)
    }

    fn too_many_connections(&self) -> WireError {
        let limit = self.shared.settings.max_connections;
        WireError::new(ErrorCode::TooManyConnections, format!("the node has {limit} client connections already"))
    }

    /// Takes over a connection from another executor, and answers its hello.
    pub(super) fn adopt(&mut self, fd: OwnedFd, id: u64, hello: &Hello) {
        let role = role_of(hello);
        if let Some(key) = self.add_line(Socket::adopt(fd), role, &[]) {
            self.welcome(key, id);
        }
    }

    /// One pass over the active connections: reads and runs what is there. Says whether any is left to scan.
    pub(super) fn scan(&mut self) -> bool {
        let mut at = 0;
        while at < self.lines.active.len() {
            let key = self.lines.active[at];
            if self.read_line(key) {
                at += 1;
            } else {
                self.lines.active.swap_remove(at);
                if let Some(line) = self.lines.all.get_mut(key) {
                    line.active = false;
                    self.park(key);
                }
            }
        }
        self.finish();
        self.lines.has_active()
    }

    /// Reads a connection once. Says whether it stays active.
    fn read_line(&mut self, key: LineKey) -> bool {
        let Some(line) = self.lines.all.get_mut(key) else { return false };
        if !line.may_run() {
            return self.passed_in_vain(key);
        }
        let mut scratch = std::mem::take(&mut self.lines.scratch);
        let left = line.inbox.len();
        scratch[..left].copy_from_slice(&line.inbox);
        let moved = match line.held_back {
            true => Moved::Bytes(0),
            false => line.socket.receive(&mut scratch[left..left + READ_BYTES]),
        };
        let stays = match moved {
            Moved::Bytes(n) => {
                let paid = line.passes_in_vain > 0;
                line.passes_in_vain = 0;
                if n > 0 {
                    line.heard = clock::now();
                }
                if paid {
                    self.allow_more_passes();
                }
                self.run_received(key, &scratch[..left + n])
            }
            Moved::WouldBlock => self.passed_in_vain(key),
            Moved::Closed => {
                self.remove_line(key);
                false
            }
        };
        self.lines.scratch = scratch;
        stays
    }

    /// Runs what a connection has received and keeps the rest. Says whether the connection is still there.
    fn run_received(&mut self, key: LineKey, bytes: &[u8]) -> bool {
        let used = self.handle_bytes(key, bytes);
        let Some(line) = self.lines.all.get_mut(key) else { return false };
        line.inbox.clear();
        line.inbox.extend_from_slice(&bytes[used..]);
        if line.inbox.is_empty() {
            line.inbox = Vec::new();
        }
        let kept = line.inbox.len() + line.connection.as_ref().map_or(0, Connection::held_bytes);
        self.lines.kept_bytes = self.lines.kept_bytes + kept - line.kept;
        line.kept = kept;
        let closing = line.closing.is_some();
        if kept > 0 && self.lines.kept_bytes > MAX_ALL_KEPT_BYTES && line.role() == Role::Client && !closing {
            let error =
                WireError::new(ErrorCode::Overloaded, "too many unfinished messages on all connections together");
            self.reject(key, &error.into());
        }
        true
    }

    /// Scanning on paid, or would have: it saves an arming.
    fn allow_more_passes(&mut self) {
        self.lines.passes = (self.lines.passes * 2).max(1).min(self.shared.settings.scan_passes);
    }

    /// Counts a pass that found nothing. Says whether the connection may have another.
    fn passed_in_vain(&mut self, key: LineKey) -> bool {
        let line = &mut self.lines.all[key];
        line.passes_in_vain += 1;
        let stays = line.passes_in_vain <= self.lines.passes;
        if !stays {
            self.lines.passes /= 2;
        }
        stays
    }

    /// Runs every whole message at the front of `bytes` and says how many bytes were used. Of what a slow reader
    /// sends, the rest is left until it has read its answers.
    fn handle_bytes(&mut self, key: LineKey, bytes: &[u8]) -> usize {
        let now = clock::now();
        let mut used = 0;
        while let Some(line) = self.lines.all.get_mut(key) {
            if line.closing.is_some() {
                return bytes.len();
            }
            if !line.may_run() {
                line.held_back = true;
                return used;
            }
            // A deadline counts from when the request was read, also if it had to wait here.
            let read_at = line.heard;
            let room = MAX_OUTPUT_BYTES - line.unsent();
            // Both are moved out while requests are run, which may touch any other connection.
            let Some(mut connection) = line.connection.take() else { return used };
            let mut outbox = std::mem::take(&mut line.outbox);
            let before = outbox.len();
            let role = connection.role();
            let next = loop {
                if outbox.len() - before > room || self.lines.all[key].under_way >= MAX_UNDER_WAY {
                    break Next::HoldBack;
                }
                match connection.receive(&bytes[used..]) {
                    Ok((n, input)) => {
                        used += n;
                        match input {
                            Some(Input::Request { id, body, request }) => {
                                let origin = Origin { executor: self.index, line: key, id, bytes: body.len() };
                                let deadline = read_at + Duration::from_millis(u64::from(request.deadline_ms));
                                self.handle_request(now, origin, deadline, &request, body, &mut outbox);
                            }
                            Some(Input::BadRequest { id, error }) => {
                                append_response(&mut outbox, id, &Response::Error(error));
                            }
                            Some(Input::Hello { id, hello }) => break Next::Hello(id, hello),
                            Some(Input::Peer(batch)) => break Next::Peer(batch),
                            Some(Input::Controller(message)) => break Next::Controller(message),
                            None => break Next::Wait,
                        }
                    }
                    Err(rejection) => break Next::Reject(rejection),
                }
            };
            let line = self.lines.all.get_mut(key).expect("running a request removes no connection");
            line.connection = Some(connection);
            line.held_back = matches!(next, Next::HoldBack);
            let meanwhile = std::mem::replace(&mut line.outbox, outbox);
            if line.outbox.len() > before {
                self.lines.output_bytes += line.outbox.len() - before;
                self.lines.with_output.push(key);
            }
            line.outbox.extend_from_slice(&meanwhile);
            match next {
                Next::Wait | Next::HoldBack => break,
                Next::Hello(id, hello) if used == bytes.len() => self.handle_hello(key, id, hello),
                Next::Hello(..) => {
                    let message = "nothing may follow a hello until it is answered";
                    self.reject(key, &WireError::new(ErrorCode::BadFrame, message).into());
                }
                Next::Peer(batch) => {
                    self.handle_room(role, batch.room);
                    for message in batch.messages {
                        self.handle_peer_message(now, key, role, message);
                    }
                }
                Next::Controller(message) => self.handle_controller(message),
                Next::Reject(rejection) => self.reject(key, &rejection),
            }
        }
        used
    }

    fn handle_hello(&mut self, key: LineKey, id: u64, hello: Hello) {
        let mine = self.view.as_ref().map(|v| v.map.cluster);
        if let (Some(theirs), Some(mine)) = (hello.cluster, mine)
            && theirs != mine
        {
            let message = format!("this node belongs to cluster {mine}, not to {theirs}");
            self.reject(key, &WireError::new(ErrorCode::WrongCluster, message).into());
            return;
        }
        if matches!(hello.caller, Caller::Node | Caller::Controller) {
            let message = "this is a node, not the controller; give the controller's address, by default port 5100";
            self.reject(key, &WireError::new(ErrorCode::BadFrame, message).into());
            return;
        }
        let connections = self.shared.connections.load(Ordering::Relaxed);
        if hello.caller == Caller::Client && connections > self.shared.settings.max_connections {
            self.reject(key, &self.too_many_connections().into());
            return;
        }
        let executors = self.shared.mail.len();
        match hello.executor {
            Some(wanted) if usize::from(wanted.0) >= executors => {
                let message = format!("executor {wanted} is not there, this node has {executors}");
                self.reject(key, &WireError::new(ErrorCode::BadFrame, message).into());
            }
            Some(wanted) if wanted != self.index => {
                // The other executor has the connection from here on; dropping this descriptor does not close it.
                if let Some(line) = self.lines.forget(key) {
                    self.shared.connections.fetch_sub(1, Ordering::Relaxed);
                    if let Ok(fd) = line.socket.give_up() {
                        self.shared.mail[usize::from(wanted.0)].send(Mail::Adopt { fd, id, hello });
                    }
                }
            }
            _ => {
                if let Some(connection) = &mut self.lines.all[key].connection {
                    connection.set_role(role_of(&hello));
                }
                self.welcome(key, id);
            }
        }
    }

    fn welcome(&mut self, key: LineKey, id: u64) {
        let welcome = Welcome {
            cluster: self.view.as_ref().map(|v| v.map.cluster),
            node: self.shared.me.node,
            disk: self.shared.me.disk,
            executor: self.index,
            executors: self.shared.mail.len() as u16,
            limits: self.shared.settings.limits,
        };
        self.append_to_line(key, |out| {
            frame::append_message(out, Kind::Welcome, id, |body| codec::encode_into(body, &welcome));
        });
    }

    /// Tells the other end why the connection is of no use, and closes it once that is read, or after a moment.
    fn reject(&mut self, key: LineKey, rejection: &Rejection) {
        let Some(line) = self.lines.all.get_mut(key) else { return };
        line.closing = Some(clock::now());
        let from = line.socket.peer_address();
        tracing::debug!(?from, error = %rejection.error, "connection rejected");
        self.append_to_line(key, |out| rejection.append_to(out));
    }

    /// Appends to a connection's output, if it is still there.
    pub(super) fn append_to_line(&mut self, key: LineKey, append: impl FnOnce(&mut Vec<u8>)) {
        if let Some(line) = self.lines.all.get_mut(key) {
            let before = line.outbox.len();
            append(&mut line.outbox);
            self.lines.output_bytes += line.outbox.len() - before;
            self.lines.with_output.push(key);
        }
    }

    /// Sends what was appended, as far as the sockets take it; the rest is drained by a task.
    pub(super) fn send_output(&mut self) {
        // Closing a connection may append to others.
        while let Some(key) = self.lines.with_output.pop() {
            let Some(line) = self.lines.all.get_mut(key) else { continue };
            if line.draining || line.sent == line.outbox.len() {
                continue;
            }
            match line.socket.send(&line.outbox[line.sent..]) {
                Moved::Bytes(n) => {
                    line.sent += n;
                    self.lines.output_bytes -= n;
                }
                Moved::WouldBlock => {}
                Moved::Closed => {
                    self.remove_line(key);
                    continue;
                }
            }
            if line.sent == line.outbox.len() {
                line.sent = 0;
                line.outbox.clear();
                if line.outbox.capacity() > KEPT_OUTPUT_BYTES {
                    line.outbox = Vec::new();
                }
                if line.closing.is_some() {
                    line.socket.end_output();
                }
                self.resume(key);
            } else {
                line.draining = true;
                line.sent_at = clock::now();
                self.spawn_drain(key);
            }
        }
    }

    /// Takes what a draining task is to send next; `None` when there is nothing left.
    pub(super) fn take_output(&mut self, key: LineKey) -> Option<Vec<u8>> {
        let line = self.lines.all.get_mut(key)?;
        self.lines.output_bytes -= line.taken;
        line.taken = 0;
        line.sent_at = clock::now();
        if line.sent == line.outbox.len() {
            line.draining = false;
            line.sent = 0;
            line.outbox = Vec::new();
            if line.closing.is_some() {
                line.socket.end_output();
            }
            self.resume(key);
            return None;
        }
        let end = line.outbox.len().min(line.sent + DRAIN_BYTES);
        let piece = line.outbox[line.sent..end].to_vec();
        line.sent = end;
        line.taken = piece.len();
        Some(piece)
    }

    /// Another executor has given an answer that a connection waited for.
    pub(super) fn handle_answered(&mut self, key: LineKey) {
        self.forwarded -= 1;
        if let Some(line) = self.lines.all.get_mut(key) {
            line.under_way -= 1;
            self.resume(key);
        }
    }

    /// A connection has an answer more to wait for, from another executor.
    pub(super) fn expect_answer(&mut self, key: LineKey) {
        self.forwarded += 1;
        if let Some(line) = self.lines.all.get_mut(key) {
            line.under_way += 1;
        }
    }

    /// Goes on with a connection that was held back, if it may run again.
    fn resume(&mut self, key: LineKey) {
        if self.lines.all.get(key).is_some_and(|line| line.held_back && line.may_run()) {
            self.lines.activate(key);
            self.wake_scanner();
        }
    }

    /// A connection's socket is readable, or was closed.
    pub(super) fn handle_readable(&mut self, key: LineKey) {
        if let Some(line) = self.lines.all.get_mut(key) {
            let armed = line.armed.take();
            if armed.is_some_and(|since| clock::now().since(since) < WORTH_SCANNING) {
                self.allow_more_passes();
            }
            self.lines.activate(key);
            self.wake_scanner();
        }
    }

    /// Nothing came for a while: a task waits until something does. A connection that is held back goes on when it
    /// may run again ([`Executor::resume`]).
    fn park(&mut self, key: LineKey) {
        let line = &mut self.lines.all[key];
        if line.outbox.is_empty() {
            line.outbox = Vec::new();
        }
        if line.armed.is_none() && !line.held_back {
            line.armed = Some(clock::now());
            self.spawn_arm(key);
        }
    }

    /// Closes connections on which nothing came for too long.
    pub(super) fn close_silent_lines(&mut self, now: Instant64) {
        let idle = self.shared.settings.idle_timeout;
        let silent = |line: &Line| {
            if line.draining && now.since(line.sent_at) > SEND_TIMEOUT {
                return true;
            }
            let limit = match line.role() {
                _ if line.closing.is_some() => return now.since(line.closing.unwrap_or(now)) > CLOSE_TIMEOUT,
                Role::Stranger => return now.since(line.opened) > HELLO_TIMEOUT,
                Role::Client => idle,
                Role::PeerIn { .. } | Role::PeerOut { .. } | Role::Controller => PEER_TIMEOUT,
            };
            now.since(line.heard) > limit
        };
        let keys: Vec<LineKey> = self.lines.all.iter().filter(|(_, line)| silent(line)).map(|(key, _)| key).collect();
        for key in keys {
            self.remove_line(key);
        }
    }

    /// Closes a connection and forgets it.
    pub(super) fn remove_line(&mut self, key: LineKey) {
        let Some(line) = self.lines.forget(key) else { return };
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        line.socket.shut_down();
        match line.role() {
            Role::PeerOut { member, executor } => self.handle_link_lost(key, member.node, executor),
            Role::Controller => self.handle_controller_lost(),
            Role::Stranger | Role::Client | Role::PeerIn { .. } => {}
        }
    }

    pub(super) fn line_socket(&self, key: LineKey) -> Option<Socket> {
        self.lines.all.get(key).map(|l| l.socket.clone())
    }
}

/// What is to be done once a connection is in its place again.
enum Next {
    /// Nothing until there are more bytes.
    Wait,
    /// Nothing until there is room for more output.
    HoldBack,
    Hello(u64, Hello),
    Peer(PeerBatch),
    Controller(FromController),
    Reject(Rejection),
}

fn role_of(hello: &Hello) -> Role {
    match hello.caller {
        Caller::Client | Caller::Node | Caller::Controller => Role::Client,
        Caller::Peer { node, disk } => Role::PeerIn { member: Member { node, disk } },
    }
}
