//! A small HTTP client that sends what it is told, right or wrong.

use std::{collections::HashMap, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// A bound that is never reached unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A connection.
pub(crate) struct Http {
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> Http {
        Http { stream: TcpStream::connect(address).await.expect("a connection"), received: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    /// A request with its length told, and its answer.
    pub(crate) async fn ask(&mut self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{request} HTTP/1.1\r\nhost: x\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || request.starts_with("P") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        self.send(&[head.as_bytes(), b"\r\n", body].concat()).await;
        let answer = if request.starts_with("HEAD") { self.answer_without_body().await } else { self.answer().await };
        answer.unwrap_or_else(|| panic!("the connection was closed instead of answering {request}"))
    }

    /// The next answer; `None` if the connection was closed before one came.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.answer_without_body().await?;
        let length = if answer.status == 204 || answer.status == 304 || answer.status < 200 {
            0
        } else {
            answer.header("content-length").parse().expect("a length")
        };
        while self.received.len() < length {
            assert!(self.receive().await, "the connection was closed in the middle of an answer");
        }
        answer.body = self.received.drain(..length).collect();
        Some(answer)
    }

    async fn answer_without_body(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.receive().await {
                return None;
            }
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let head = String::from_utf8(head).expect("a text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok()).expect("a status");
        let header = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_string()));
        Some(Answer { status, headers: lines.filter_map(header).collect(), body: Vec::new() })
    }

    /// Receives more; false at the end of the connection.
    async fn receive(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
        read.expect("an answer or an end").is_ok_and(|n| n > 0)
    }

    /// Waits until the other end closes.
    pub(crate) async fn closed(mut self) {
        while self.receive().await {}
    }
}
