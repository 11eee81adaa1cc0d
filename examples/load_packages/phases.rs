//! What is done with the packages, phase by phase, over many connections at a time. A phase ends with the first
//! answer that is not the one that it must be.

use crate::{
    http::{Connection, authority, percent_encode},
    stanzas::Item,
};
use anyhow::{Context, bail};
use hyper::{Method, StatusCode, body::Bytes};
use serde_json::{Value, json};
use std::{
    fmt,
    io::{IsTerminal, Write, stderr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const CLEAR_LINE: &str = "\r\x1b[K";

/// What is done with every package, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `POST /put`, the stanza as a JSON string.
    Put,
    /// `GET /get`, compared.
    Get,
    /// `GET /v1/kv/{key}`, compared.
    GetRaw,
    /// `DELETE /delete`, every second package.
    DeleteHalf,
    /// `GET /get`: every second package is gone, the others are there, compared.
    CheckHalf,
}

impl Phase {
    /// In order.
    pub(crate) const ALL: [Phase; 5] = [Phase::Put, Phase::Get, Phase::GetRaw, Phase::DeleteHalf, Phase::CheckHalf];

    fn as_str(self) -> &'static str {
        match self {
            Phase::Put => "put through POST /put",
            Phase::Get => "read and compared through GET /get",
            Phase::GetRaw => "read and compared through GET /v1/kv/{key}",
            Phase::DeleteHalf => "deleted through DELETE /delete",
            Phase::CheckHalf => "found gone or there through GET /get",
        }
    }

    /// Whether the phase has something to do with the package at this position.
    fn concerns(self, position: usize) -> bool {
        self != Phase::DeleteHalf || is_deleted(position)
    }
}

fn is_deleted(position: usize) -> bool {
    position.is_multiple_of(2)
}

/// What a phase has done.
#[derive(Debug)]
pub(crate) struct Done {
    phase: Phase,
    /// Packages.
    pub(crate) keys: usize,
    /// Bytes of their stanzas.
    pub(crate) bytes: usize,
    /// How long it took.
    pub(crate) seconds: f64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, keys, seconds) = (self.phase.as_str(), self.keys, self.seconds);
        let rate = keys as f64 / seconds.max(1e-9);
        write!(f, "{keys} keys, {} bytes {phase}: {seconds:.1} s ({rate:.0} keys/s)", self.bytes)
    }
}

/// The packages and where they go.
#[derive(Debug)]
pub(crate) struct Load {
    items: Vec<Item>,
    authority: String,
    connections: usize,
}

impl Load {
    /// Does no I/O.
    pub(crate) fn new(items: Vec<Item>, url: &str, connections: usize) -> anyhow::Result<Self> {
        Ok(Load { items, authority: authority(url)?, connections })
    }

    /// Runs one phase over all packages.
    pub(crate) async fn run(self: Arc<Self>, phase: Phase) -> anyhow::Result<Done> {
        let started = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..self.connections {
            workers.spawn(self.clone().work(phase, next.clone()));
        }
        let mut progress = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                Some(ended) = workers.join_next() => ended??,
                _ = progress.tick(), if !workers.is_empty() => self.show_progress(phase, &next),
                else => break,
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        if stderr().is_terminal() {
            let _ = write!(stderr(), "{CLEAR_LINE}");
        }
        let concerned = || self.items.iter().enumerate().filter(|(i, _)| phase.concerns(*i)).map(|(_, item)| item);
        Ok(Done { phase, keys: concerned().count(), bytes: concerned().map(|i| i.stanza.len()).sum(), seconds })
    }

    fn show_progress(&self, phase: Phase, next: &AtomicUsize) {
        if stderr().is_terminal() {
            let done = next.load(Ordering::Relaxed).min(self.items.len());
            let _ = write!(stderr(), "{CLEAR_LINE}{done} of {} {}", self.items.len(), phase.as_str());
        }
    }

    /// One connection: takes packages until none is left.
    async fn work(self: Arc<Self>, phase: Phase, next: Arc<AtomicUsize>) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.authority).await?;
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.items.get(position) else { return Ok(()) };
            if phase.concerns(position) {
                let done = step(&mut connection, phase, position, item).await;
                done.with_context(|| format!("package {} was to be {}", item.key, phase.as_str()))?;
            }
        }
    }
}

async fn step(connection: &mut Connection, phase: Phase, position: usize, item: &Item) -> anyhow::Result<()> {
    let key = percent_encode(&item.key);
    let missing = json!({"status": "Key not found"});
    match phase {
        Phase::Put => {
            let body = json!({"key": item.key, "value": item.stanza}).to_string();
            let answer = connection.send(Method::POST, "/put", Some(body)).await?;
            expect_json(answer, StatusCode::OK, &json!({"status": "Successful"}))
        }
        Phase::GetRaw => {
            let (status, body) = connection.send(Method::GET, &format!("/v1/kv/{key}"), None).await?;
            if status != StatusCode::OK || body != item.stanza.as_bytes() {
                bail!("expected the {} bytes of the stanza, got {}", item.stanza.len(), told(status, &body));
            }
            Ok(())
        }
        Phase::DeleteHalf => {
            let answer = connection.send(Method::DELETE, &format!("/delete?key={key}"), None).await?;
            expect_json(answer, StatusCode::OK, &json!({"status": "Delete successful"}))
        }
        Phase::CheckHalf if is_deleted(position) => {
            let answer = connection.send(Method::GET, &format!("/get?key={key}"), None).await?;
            expect_json(answer, StatusCode::NOT_FOUND, &missing)
        }
        Phase::Get | Phase::CheckHalf => {
            let answer = connection.send(Method::GET, &format!("/get?key={key}"), None).await?;
            expect_json(answer, StatusCode::OK, &json!({"key": item.key, "value": item.stanza}))
        }
    }
}

fn expect_json(
    (status, body): (StatusCode, Bytes),
    expected_status: StatusCode,
    expected: &Value,
) -> anyhow::Result<()> {
    // Other members may stand beside those that are expected.
    let parsed: Option<Value> = serde_json::from_slice(&body).ok();
    let holds = |body: &Value| {
        expected.as_object().is_some_and(|members| members.iter().all(|(name, value)| body.get(name) == Some(value)))
    };
    if status != expected_status || !parsed.as_ref().is_some_and(holds) {
        bail!("expected {expected_status} with {expected}, got {}", told(status, &body));
    }
    Ok(())
}

/// An answer in a sentence, cut short.
fn told(status: StatusCode, body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
    format!("{status} with {} bytes: {text}", body.len())
}
