//! The binary protocol, spoken by hand.

use kv_proto::{
    codec,
    frame::{Decoder, Kind, append_message},
    hello::{Caller, Hello, Welcome},
    ids::{ExecutorIndex, OperationId},
    limits::Limits,
    request::{Operation, Request},
    response::{NodeView, Response},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A blocking caller of the binary protocol.
pub(crate) struct Call {
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
    decoder: Decoder,
}

impl Call {
    /// A client of an executor, or of any.
    pub(crate) fn client(address: &str, executor: Option<u16>) -> (Self, Welcome) {
        Call::connect(address, Caller::Client, executor)
    }

    pub(crate) fn connect(address: &str, caller: Caller, executor: Option<u16>) -> (Self, Welcome) {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let decoder = Decoder::new(Limits::default().max_message_bytes());
        let mut call = Call { stream, received: Vec::new(), decoder };
        let hello = Hello { cluster: None, caller, executor: executor.map(ExecutorIndex) };
        let mut out = Vec::new();
        append_message(&mut out, Kind::Hello, 7, |body| codec::encode_into(body, &hello));
        call.stream.write_all(&out).expect("sends");
        let welcome = call.next(|kind, id, body| {
            assert_eq!((kind, id), (Kind::Welcome, 7));
            codec::decode(body).expect("a welcome")
        });
        (call, welcome)
    }

    /// Hands the next message to `read`.
    pub(crate) fn next<T>(&mut self, read: impl FnOnce(Kind, u64, &[u8]) -> T) -> T {
        let mut buffer = [0; 4096];
        loop {
            let (used, message) = self.decoder.decode(&self.received).expect("frames");
            if let Some(message) = message {
                let result = read(message.kind, message.id, message.body);
                self.received.drain(..used);
                return result;
            }
            self.received.drain(..used);
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert_ne!(n, 0, "the node closed the connection");
            self.received.extend_from_slice(&buffer[..n]);
        }
    }

    pub(crate) fn send(&mut self, requests: &[(u64, Operation)]) {
        let requests: Vec<_> = requests.iter().map(|(id, operation)| (*id, None, *operation)).collect();
        self.send_with(&requests);
    }

    /// The same with an operation id for each, or none.
    pub(crate) fn send_with(&mut self, requests: &[(u64, Option<OperationId>, Operation)]) {
        let mut out = Vec::new();
        for (id, operation_id, operation) in requests {
            let request = Request { deadline_ms: 30_000, operation_id: *operation_id, operation: *operation };
            append_message(&mut out, Kind::Request, *id, |body| codec::encode_into(body, &request));
        }
        self.stream.write_all(&out).expect("sends");
    }

    /// A word for the next response, and its id.
    pub(crate) fn response(&mut self) -> (u64, String) {
        self.next(|kind, id, body| {
            assert_eq!(kind, Kind::Response);
            let word = match codec::decode(body).expect("a response") {
                Response::Value { value, .. } => String::from_utf8_lossy(value).into_owned(),
                Response::Written { .. } => "written".to_owned(),
                Response::Missing { .. } => "missing".to_owned(),
                other => format!("{other:?}"),
            };
            (id, word)
        })
    }

    pub(crate) fn view(&mut self) -> NodeView {
        self.send(&[(1, Operation::Map)]);
        self.next(|_, _, body| match codec::decode(body) {
            Ok(Response::Map(view)) => *view,
            other => panic!("{other:?}"),
        })
    }
}
