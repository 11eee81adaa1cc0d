//! `kv rebuild-map`: has the nodes of a cluster say what they have, and leaves the map that follows from it in the data
//! folder of a router that is about to start. What is taken and why that is safe stands in `kv_replication::rebuild`.

use crate::controller::{self, error::OpenError};
use kv_proto::{
    cluster_map::AckMode,
    codec,
    error_code::WireError,
    frame::{Decoder, Kind, append_message},
    hello::{Caller, Hello},
    ids::NodeId,
    limits::HIGHEST_MAX_VALUE_BYTES,
    report::NodeReport,
    request::{Operation, Request},
    response::Response,
};
use kv_replication::rebuild::{self, Asked, Refusal};
use std::{io, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long a node may take to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `kv rebuild-map`.
#[derive(Clone, Debug, clap::Args)]
pub struct RebuildOptions {
    /// Data folder of the router that shall start with the map; that of a stopped router whose map is lost, or a new one. Of
    /// several routers, the others must start with empty folders
    #[arg(long, env = "KV_DATA_DIR", default_value = "./kv-data/router", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Address of a node, again for each node of the cluster. They run, and all routers are stopped
    #[arg(long = "node", required = true, value_name = "HOST:PORT")]
    pub nodes: Vec<String>,

    /// How many shards the cluster was made with; needed only if every node was started again since, as the next three
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,

    /// How many nodes each shard has
    #[arg(long, value_name = "N")]
    pub replicas: Option<u16>,

    /// How many partitions there are
    #[arg(long, value_name = "N")]
    pub partitions: Option<u16>,

    /// What a write waits for
    #[arg(long, value_name = "durable|replicated")]
    pub ack: Option<AckMode>,

    /// Name of a node that is gone for good, or whose disk was replaced: what only it knew is given up, which may be
    /// acknowledged writes. May be given again
    #[arg(long, value_name = "NODE")]
    pub without: Vec<NodeId>,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A node cannot be asked.
    #[error("the node at {address} does not report ({why}): start it, and let it run while it finds no controller")]
    Silent {
        /// Where it should be.
        address: String,
        /// Why not.
        why: String,
    },
    /// The reports do not make a map.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] OpenError),
    /// The map cannot be written.
    #[error("cannot write the map into {dir}")]
    Write {
        /// The folder.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the map and leaves it in the folder; what a person should know of it, line by line.
///
/// # Errors
/// When a node does not report, the reports do not make a map, or the folder has one.
pub async fn rebuild_map(options: &RebuildOptions) -> Result<Vec<String>, RebuildError> {
    let mut reports = Vec::new();
    for address in &options.nodes {
        let asked = timeout(REPORT_TIMEOUT, ask(address)).await;
        let silent = |why: String| RebuildError::Silent { address: address.clone(), why };
        reports.push(asked.map_err(|_| silent(format!("no answer within {REPORT_TIMEOUT:?}")))?.map_err(silent)?);
    }
    let RebuildOptions { shards, replicas, partitions, ack, .. } = *options;
    let asked = Asked { shards, replicas, partitions, ack, without: options.without.iter().copied().collect() };
    let cluster = rebuild::rebuild(&reports, &asked)?;
    let (id, count) = (cluster.map.cluster, cluster.map.partition_count());
    let mut lines: Vec<String> = reports
        .iter()
        .flat_map(|report| report.replicas.iter().map(move |r| (report.node.id, r)))
        .filter_map(|(node, r)| {
            Some(format!("{node} cannot use what it has of partition {}: {}", r.partition, r.fault.as_ref()?))
        })
        .collect();
    let dir = options.data_dir.clone();
    let written = tokio::task::spawn_blocking(move || controller::begin_with(&dir, cluster)).await;
    let set_aside =
        written.map_err(|e| RebuildError::Write { dir: options.data_dir.clone(), source: io::Error::other(e) })??;
    if let Some(path) = set_aside {
        lines.push(format!("what the folder had, a cluster without partitions, is kept as {}", path.display()));
    }
    lines.push(format!(
        "the map of cluster {id} with its {count} partitions is in {}: start this router, and any others with empty folders",
        options.data_dir.display()
    ));
    Ok(lines)
}

/// Asks one node.
async fn ask(address: &str) -> Result<NodeReport, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(|e| text(&e))?;
    let hello = Hello { cluster: None, caller: Caller::Client, executor: None };
    let deadline_ms = REPORT_TIMEOUT.as_millis() as u32;
    let request = Request { deadline_ms, operation_id: None, operation: Operation::Report };
    let (mut decoder, mut input) = (Decoder::new(HIGHEST_MAX_VALUE_BYTES), Vec::new());
    let questions = [(Kind::Hello, codec::encode(&hello)), (Kind::Request, codec::encode(&request))];
    for (question, body) in questions {
        let mut out = Vec::new();
        append_message(&mut out, question, 1, |b| b.extend_from_slice(&body));
        stream.write_all(&out).await.map_err(|e| text(&e))?;
        loop {
            let (used, message) = decoder.decode(&input).map_err(|e| text(&e))?;
            let answer = message.map(|m| match (m.kind, question) {
                (Kind::Welcome, Kind::Hello) => Ok(None),
                (Kind::Response, Kind::Request) => match codec::decode::<Response>(m.body) {
                    Ok(Response::Report(report)) => Ok(Some(*report)),
                    Ok(Response::Error(error)) => Err(error.message),
                    Ok(_) => Err("it answers something else".to_owned()),
                    Err(error) => Err(error.to_string()),
                },
                (Kind::Refusal, _) => {
                    Err(codec::decode::<WireError>(m.body).map_or_else(|e| e.to_string(), |e| e.message))
                }
                (kind, _) => Err(format!("it answers by a {kind:?}")),
            });
            input.drain(..used);
            match answer {
                Some(Ok(Some(report))) => return Ok(report),
                Some(Ok(None)) => break,
                Some(Err(why)) => return Err(why),
                None => {}
            }
            if stream.read_buf(&mut input).await.map_err(|e| text(&e))? == 0 {
                return Err("it closed the connection".to_owned());
            }
        }
    }
    Err("it did not answer".to_owned())
}
