//! A connection without its socket: received bytes in, checked messages out.
//!
//! # Invariants
//! * Before a hello was accepted nothing else is taken, and no more than a hello's bytes are held.
//! * Only what the caller said it is may be said: a client sends requests, a peer replicates.
//! * Whatever the bytes are, the answer is a message or a typed refusal.

use kv_proto::{
    codec,
    control::FromController,
    effect::Effect,
    error_code::{ErrorCode, WireError},
    frame::{self, Decoder, FrameError, Kind, Message},
    hello::{Hello, MAX_HELLO_BYTES},
    ids::{ExecutorIndex, Member},
    limits::Limits,
    replication::{PeerBatch, PeerBody},
    request::Request,
};

/// Longest message of the controller, in bytes: a map of the greatest size.
const MAX_CONTROL_BYTES: usize = 16 * 1024 * 1024;

/// Who is at the other end, and so what may come from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nobody knows yet: a hello is awaited.
    Stranger,
    /// A client, which sends requests.
    Client,
    /// A node that leads something, which called to stream its partitions, or to ask who owns them.
    PeerIn {
        /// The member that it says it is.
        member: Member,
    },
    /// A follower's executor, which was called to be streamed to.
    PeerOut {
        /// The member that it said it is.
        member: Member,
        /// Which of its executors.
        executor: ExecutorIndex,
    },
    /// The controller, which was called.
    Controller,
}

/// What came in.
#[derive(Debug, PartialEq)]
pub(crate) enum Input<'a> {
    /// A stranger says who it is.
    Hello {
        /// The frame's id.
        id: u64,
        /// What it says.
        hello: Hello,
    },
    /// A request; `body` is its bytes, to forward it as it is.
    Request {
        /// The frame's id.
        id: u64,
        /// The encoded request.
        body: &'a [u8],
        /// The request.
        request: Request<'a>,
    },
    /// A frame with a request that cannot be understood.
    BadRequest {
        /// The frame's id.
        id: u64,
        /// Why.
        error: WireError,
    },
    /// What replicas say.
    Peer(PeerBatch),
    /// What the controller says.
    Controller(FromController),
}

/// The state of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    decoder: Decoder,
    role: Role,
    limits: Limits,
}

/// Why a connection is of no use any more, and what to tell the other end before it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// Why.
    pub(crate) error: WireError,
    /// Whether the other end speaks HTTP, and would understand nothing else.
    http: bool,
}

impl From<WireError> for Rejection {
    fn from(error: WireError) -> Self {
        Rejection { error, http: false }
    }
}

impl From<FrameError> for Rejection {
    fn from(error: FrameError) -> Self {
        let code = match error {
            FrameError::UnsupportedVersion(_) => ErrorCode::UnsupportedVersion,
            _ => ErrorCode::BadFrame,
        };
        Rejection { error: WireError::new(code, error.to_string()), http: error == FrameError::Http }
    }
}

impl Rejection {
    /// Appends what to tell the other end, in words that it understands.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        if self.http {
            let text = &self.error.message;
            let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length:";
            out.extend_from_slice(format!("{head} {}\r\n\r\n{text}\n", text.len() + 1).as_bytes());
        } else {
            frame::append_message(out, Kind::Refusal, 0, |body| codec::encode_into(body, &self.error));
        }
    }
}

fn malformed(error: &impl std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::Malformed, error.to_string())
}

impl Connection {
    /// A connection in which `role` is at the other end.
    pub(crate) fn new(role: Role, limits: Limits) -> Self {
        let mut connection = Connection { decoder: Decoder::new(0), role, limits };
        connection.set_role(role);
        connection
    }

    /// Who is at the other end.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// From now on `role` is known to be at the other end.
    pub(crate) fn set_role(&mut self, role: Role) {
        self.role = role;
        self.decoder.set_limit(match role {
            Role::Stranger => MAX_HELLO_BYTES,
            Role::Client | Role::PeerIn { .. } | Role::PeerOut { .. } => self.limits.max_message_bytes(),
            Role::Controller => MAX_CONTROL_BYTES,
        });
    }

    /// Bytes held for a message that is not complete.
    pub(crate) fn held_bytes(&self) -> usize {
        self.decoder.held_bytes()
    }

    /// Takes the next message from the front of `bytes`: how many bytes were used, and what came in if a message
    /// was complete.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub(crate) fn receive<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Option<Input<'a>>), Rejection> {
        let (used, message) = self.decoder.decode(bytes)?;
        let Some(message) = message else { return Ok((used, None)) };
        Ok((used, Some(understand(self.role, &self.limits, message)?)))
    }
}

fn understand<'a>(role: Role, limits: &Limits, message: Message<'a>) -> Result<Input<'a>, WireError> {
    let Message { kind, id, body } = message;
    match (role, kind) {
        (Role::Stranger, Kind::Hello) => {
            let hello = codec::decode(body).map_err(|e| malformed(&e))?;
            Ok(Input::Hello { id, hello })
        }
        // A peer asks which executor owns what.
        (Role::Client | Role::PeerIn { .. }, Kind::Request) => Ok(match codec::decode::<Request>(body) {
            Ok(request) => Input::Request { id, body, request },
            Err(error) => Input::BadRequest { id, error: malformed(&error) },
        }),
        (Role::PeerIn { .. } | Role::PeerOut { .. }, Kind::Replication) => {
            let batch: PeerBatch = codec::decode(body).map_err(|e| malformed(&e))?;
            check_effects(&batch, limits)?;
            Ok(Input::Peer(batch))
        }
        (Role::Controller, Kind::FromController) => {
            Ok(Input::Controller(codec::decode(body).map_err(|e| malformed(&e))?))
        }
        (Role::PeerOut { .. } | Role::Controller, Kind::Refusal) => {
            Err(codec::decode::<WireError>(body).unwrap_or_else(|e| malformed(&e)))
        }
        (role, kind) => {
            let who = match role {
                Role::Stranger => "a caller that has not said hello",
                Role::Client => "a client",
                Role::PeerIn { .. } | Role::PeerOut { .. } => "a peer",
                Role::Controller => "the controller",
            };
            Err(WireError::new(ErrorCode::BadFrame, format!("a frame of kind {kind:?} from {who}")))
        }
    }
}

/// Every record must be one that can be applied: what is in the log is never doubted again.
fn check_effects(batch: &PeerBatch, limits: &Limits) -> Result<(), WireError> {
    for message in &batch.messages {
        let (PeerBody::Prepare { records, .. } | PeerBody::Tail { records, .. }) = &message.body else { continue };
        for record in records {
            let effect = Effect::decode(&record.payload).map_err(|e| malformed(&e))?;
            effect.key().map_or(Ok(()), |key| limits.check_key(key))?;
            if let Effect::Put { content_type, value, .. } = effect {
                limits.check_value(content_type, value)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        frame::append_message,
        hello::Caller,
        ids::{DiskId, Epoch, Lsn, NodeId, PartitionId},
        replication::{PeerMessage, Position, Record},
        request::Operation,
    };
    use proptest::prelude::*;

    fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_message(&mut out, kind, 7, |b| b.extend_from_slice(body));
        out
    }

    fn hello() -> Hello {
        Hello { cluster: None, caller: Caller::Client, executor: None }
    }

    fn get() -> Request<'static> {
        Request { deadline_ms: 5, operation_id: None, operation: Operation::Get { key: b"k" } }
    }

    fn batch(payload: Vec<u8>) -> PeerBatch {
        let position = Position { epoch: Epoch(1), lsn: Lsn(1) };
        let records = vec![Record { position, operation_id: None, payload: payload.into() }];
        let body = PeerBody::Prepare { previous: Position::default(), committed: Lsn(0), records };
        PeerBatch { room: 0, messages: vec![PeerMessage { partition: PartitionId(0), epoch: Epoch(1), body }] }
    }

    fn peer() -> Role {
        Role::PeerIn { member: Member { node: NodeId::new("peer").expect("a name"), disk: DiskId(1) } }
    }

    fn code(role: Role, bytes: &[u8]) -> Result<bool, ErrorCode> {
        let mut connection = Connection::new(role, Limits::default());
        connection.receive(bytes).map(|(_, input)| input.is_some()).map_err(|e| e.error.code)
    }

    #[test]
    fn each_caller_may_say_only_what_it_is_for() {
        let put = Effect::Put { key: b"k", content_type: "", value: b"v", expires: None }.encode();
        let (hello, get, batch) = (
            message(Kind::Hello, &codec::encode(&hello())),
            message(Kind::Request, &codec::encode(&get())),
            message(Kind::Replication, &codec::encode(&batch(put))),
        );
        let bad = Err(ErrorCode::BadFrame);
        for (role, answers) in [
            (Role::Stranger, [Ok(true), bad, bad]),
            (Role::Client, [bad, Ok(true), bad]),
            (peer(), [bad, Ok(true), Ok(true)]),
            (Role::Controller, [bad, bad, bad]),
        ] {
            assert_eq!([code(role, &hello), code(role, &get), code(role, &batch)], answers, "{role:?}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_applied_never_gets_into_a_log() {
        let too_long = vec![0; Limits::default().max_value_bytes as usize + 1];
        for payload in [
            vec![],
            vec![9; 40],
            Effect::Delete { key: b"" }.encode(),
            vec![3, 0, 1, 0, b'k'],
            Effect::Put { key: b"k", content_type: "", value: &too_long, expires: None }.encode(),
        ] {
            assert!(code(peer(), &message(Kind::Replication, &codec::encode(&batch(payload)))).is_err());
        }
    }

    #[test]
    fn strangers_are_held_to_a_hello() {
        let mut bytes = Vec::new();
        append_message(&mut bytes, Kind::Hello, 0, |b| b.extend_from_slice(&[0; MAX_HELLO_BYTES + 1]));
        assert_eq!(code(Role::Stranger, &bytes), Err(ErrorCode::BadFrame));
        assert_eq!(code(Role::Stranger, b"GET / HTTP/1.1\r\n\r\n"), Err(ErrorCode::BadFrame));
        assert_eq!(code(Role::Stranger, &[0xC5, 0x4B, 99, 0]), Err(ErrorCode::UnsupportedVersion));
        assert_eq!(code(Role::Stranger, &[0xC5]), Ok(false));
    }

    #[test]
    fn a_browser_is_told_in_its_own_words_that_this_is_the_wrong_port() {
        let mut connection = Connection::new(Role::Stranger, Limits::default());
        let rejection = connection.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect_err("no frame");
        let mut out = Vec::new();
        rejection.append_to(&mut out);
        let text = String::from_utf8(out).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.starts_with("HTTP/1.1 400 ") && head.ends_with(&format!("Content-Length: {}", body.len())),
            "{text}"
        );
        assert!(body.contains("binary port"), "{text}");
    }

    #[test]
    fn a_request_that_makes_no_sense_costs_an_answer_and_not_the_connection() {
        let mut bytes = Vec::new();
        append_message(&mut bytes, Kind::Request, 9, |b| b.extend_from_slice(&[0xFF; 30]));
        let mut connection = Connection::new(Role::Client, Limits::default());
        let (_, input) = connection.receive(&bytes).expect("the frame is whole");
        assert!(matches!(input, Some(Input::BadRequest { id: 9, .. })));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), role in 0..3usize) {
            let role = [Role::Stranger, Role::Client, peer()][role];
            let _ = code(role, &bytes);
        }
    }
}
