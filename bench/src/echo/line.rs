//! One connection: everything that was read is answered, and sent as one piece.
//!
//! # Invariants
//! * At most [`MAX_OUTGOING`] bytes and one answer wait to be sent; while they do, nothing more is decoded.
//! * Answers leave in the order of their requests, none before it is due.

use super::{
    Echo,
    answers::{LIMITS, Next, refuse},
};
use crate::alarm::Alarm;
use kv_proto::{
    error_code::ErrorCode,
    frame::{Decoder, HEADER_BYTES, MAX_CHUNK_BYTES},
};
use std::{collections::VecDeque, io, net::SocketAddr, time::Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Room for reading, which grows for longer frames.
const READ_BYTES: usize = 64 * 1024;
/// The longest that a frame can be.
const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_CHUNK_BYTES;
const MAX_OUTGOING: usize = 1024 * 1024;

/// Serves a connection until the caller closes it, or was refused.
pub(super) async fn serve(mut stream: TcpStream, echo: &Echo) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let here = stream.local_addr()?;
    let alarm = if echo.is_timed() { Some(Alarm::new()?) } else { None };
    let (mut reader, mut writer) = stream.split();
    let mut line = Line::new(here);
    loop {
        if let Some(alarm) = &alarm {
            while let Some(end) = echo.stalled_until(Instant::now()) {
                alarm.until(end).await?;
            }
        }
        line.answer(echo);
        let due = line.release();
        if line.closing && line.outgoing.is_empty() {
            return Ok(());
        }
        let reads = line.has_room();
        let (space, unsent) = line.buffers();
        tokio::select! {
            biased;
            sent = writer.write(unsent), if !unsent.is_empty() => line.sent(sent?),
            read = reader.read(space), if reads => match read? {
                0 => return Ok(()),
                n => line.end += n,
            },
            rung = ring(alarm.as_ref(), due), if due.is_some() => rung?,
        }
    }
}

/// Waits until `due`.
async fn ring(alarm: Option<&Alarm>, due: Option<Instant>) -> io::Result<()> {
    match alarm.zip(due) {
        Some((alarm, due)) => alarm.until(due).await,
        None => std::future::pending().await,
    }
}

/// What was read and is not answered, what was answered and is not sent.
#[derive(Debug)]
struct Line {
    here: SocketAddr,
    decoder: Decoder,
    /// Read bytes stand at `start..end`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
    sent: usize,
    /// Bytes of `outgoing` that are due.
    ready: usize,
    /// Up to which byte of `outgoing` answers are due when.
    later: VecDeque<(Instant, usize)>,
    /// The caller was refused.
    closing: bool,
}

impl Line {
    fn new(here: SocketAddr) -> Line {
        Line {
            here,
            decoder: Decoder::new(LIMITS.max_message_bytes()),
            incoming: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            outgoing: Vec::new(),
            sent: 0,
            ready: 0,
            later: VecDeque::new(),
            closing: false,
        }
    }

    /// Answers every message that is complete, as long as there is room for answers.
    fn answer(&mut self, echo: &Echo) {
        let (before, mut asked) = (self.outgoing.len(), false);
        while self.has_room() {
            let (used, message) = match self.decoder.decode(&self.incoming[self.start..self.end]) {
                Ok(decoded) => decoded,
                Err(e) => {
                    refuse(&mut self.outgoing, ErrorCode::BadFrame, e.to_string());
                    self.closing = true;
                    break;
                }
            };
            self.start += used;
            let Some(message) = message else { break };
            match echo.answers.append(&mut self.outgoing, &message, self.here) {
                Next::Answered => asked = true,
                Next::Greeted => {}
                Next::Close => self.closing = true,
            }
        }
        if self.outgoing.len() == before {
            return;
        }
        if !echo.is_timed() {
            self.ready = self.outgoing.len();
            return;
        }
        let now = Instant::now();
        if asked {
            echo.asked(now);
        }
        // A greeting and what the cluster looks like are there at once: callers wait for them only for so long.
        self.later.push_back((if asked { now + echo.delay } else { now }, self.outgoing.len()));
    }

    fn has_room(&self) -> bool {
        !self.closing && self.outgoing.len() - self.sent < MAX_OUTGOING
    }

    /// Makes ready what is due; says when the next answer is.
    fn release(&mut self) -> Option<Instant> {
        if self.later.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some((due, end)) = self.later.front().copied() {
            if due > now {
                return Some(due);
            }
            self.ready = end;
            self.later.pop_front();
        }
        None
    }

    /// Where to read to, and what to send.
    fn buffers(&mut self) -> (&mut [u8], &[u8]) {
        if self.start > 0 {
            // Mostly nothing, else a part of a frame.
            self.incoming.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.incoming.len() && self.end < MAX_FRAME_BYTES {
            self.incoming.resize(MAX_FRAME_BYTES, 0);
        }
        (&mut self.incoming[self.end..], &self.outgoing[self.sent..self.ready])
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.outgoing.len() {
            self.outgoing.clear();
            (self.sent, self.ready) = (0, 0);
        } else if self.sent >= MAX_OUTGOING {
            self.outgoing.drain(..self.sent);
            self.ready -= self.sent;
            self.later.iter_mut().for_each(|(_, end)| *end -= self.sent);
            self.sent = 0;
        }
    }
}
