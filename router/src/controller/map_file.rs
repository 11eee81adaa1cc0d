//! The file that the cluster map is kept in: `DATA_DIR/cluster-map.json`.
//!
//! ```json
//! {"format": 1, "checksum": "9ae0daaf", "cluster": {"map": {…}, "carried_out": ["00…2a", null, …]}}
//! ```
//!
//! (A [`sealed_json`] file.) A new version is written beside the old one,
//! synced, renamed over it, and the folder is synced: at every moment there is one whole file.
//!
//! # Invariants
//! * A file that is not whole, or of a format that this version does not know, is an error and never an empty cluster.
//! * Every file that an earlier version wrote is read (`tests/corpus/`).

use kv_proto::{
    cluster_map::ClusterMap,
    ids::{ClientId, PartitionId},
    sealed_json::{self, OpenError},
};
use kv_replication::cluster::Cluster;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const NAME: &str = "cluster-map.json";
/// The name of what it holds.
const CONTENT: &str = "cluster";
const FORMAT: u64 = 1;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{path} is damaged ({what}); the cluster's configurations cannot be known without it: put back a copy of the \
         file, or move it away to begin an empty cluster (its nodes must then begin empty too)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another version of this program wrote it.
    #[error("{path} has format {format}, and this version of kv knows only format {FORMAT}: start it with a newer kv")]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
}

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The old file stands.
    #[error("{0}")]
    NotWritten(io::Error),
    /// Either file may stand after a crash.
    #[error("{0}")]
    Unknown(io::Error),
}

/// Ids of proposals are written like the other 128-bit ids: JSON numbers of that size are lost on most readers.
#[derive(Serialize, Deserialize)]
struct Kept<M> {
    map: M,
    carried_out: Vec<Option<ClientId>>,
}

/// Reads the cluster that is kept in `dir`; `None` if there is none yet.
pub(super) fn read(dir: &Path) -> Result<Option<Cluster>, FileError> {
    let path = dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Read { path, source }),
    };
    let damaged = |what: String| FileError::Damaged { path: path.clone(), what };
    let kept: Kept<ClusterMap> = sealed_json::open(CONTENT, FORMAT, &bytes).map_err(|error| match error {
        OpenError::Damaged(what) => damaged(what),
        OpenError::OtherFormat(format) => FileError::OtherFormat { path: path.clone(), format },
    })?;
    let carried_out = kept.carried_out.into_iter().map(|id| id.map(|id| id.0)).collect();
    let cluster = Cluster { map: kept.map, carried_out };
    check(&cluster).map_err(damaged)?;
    Ok(Some(cluster))
}

/// What the rest of the program takes for granted of a cluster.
fn check(cluster: &Cluster) -> Result<(), String> {
    let map = &cluster.map;
    if cluster.carried_out.len() != map.partitions.len() || map.partitions.is_empty() {
        return Err("it has another number of partitions than of proposals".to_string());
    }
    let unplaced = |(id, p): (PartitionId, &kv_proto::cluster_map::Partition)| {
        (usize::from(p.shard.0) >= map.shards.len()).then_some(id)
    };
    if let Some(partition) = map.partitions().find_map(unplaced) {
        return Err(format!("partition {partition} is in a shard that does not exist"));
    }
    match map.shards.iter().flat_map(|s| &s.nodes).find(|node| map.node(**node).is_none()) {
        Some(node) => Err(format!("a shard names node {node}, which has not registered")),
        None => Ok(()),
    }
}

/// Replaces the file.
pub(super) fn write(dir: &Path, cluster: &Cluster) -> Result<(), WriteError> {
    let carried_out = cluster.carried_out.iter().map(|id| id.map(ClientId)).collect();
    let kept = Kept { map: &cluster.map, carried_out };
    let bytes = sealed_json::seal(CONTENT, FORMAT, &kept).map_err(|e| WriteError::NotWritten(e.into()))?;

    let (path, beside) = (dir.join(NAME), dir.join(format!("{NAME}.new")));
    let written = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    written().map_err(WriteError::NotWritten)?;
    fs::rename(&beside, &path).map_err(WriteError::Unknown)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(WriteError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        cluster_map::{AckMode, Node},
        ids::{ClusterId, DiskId, NodeId, ShardId},
    };
    use kv_replication::cluster::{Command, Shape};

    fn cluster() -> Cluster {
        let shape = Shape { shards: 1, replicas: 1, partitions: 3, ack: AckMode::Replicated };
        let mut cluster = Cluster::new(ClusterId(u128::MAX), shape).expect("possible");
        let node = Node {
            id: NodeId::new("n").expect("a node id"),
            disk: DiskId(7),
            shard: ShardId(0),
            prefers_to_lead: true,
            address: "127.0.0.1:1".to_string(),
            executors: 2,
        };
        cluster.apply(&Command::Register { cluster: None, node }).expect("registered");
        cluster.carried_out[1] = Some(u128::MAX - 1);
        cluster
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read(dir.path()).expect("no file"), None);
        write(dir.path(), &cluster()).expect("written");
        assert_eq!(read(dir.path()).expect("read"), Some(cluster()));
        write(dir.path(), &cluster()).expect("written again");
        let names: Vec<_> =
            fs::read_dir(dir.path()).expect("a folder").map(|f| f.expect("a file").file_name()).collect();
        assert_eq!(names, ["cluster-map.json"]);
    }

    /// Of the time when no file said what a write waits for.
    #[test]
    fn a_file_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cluster-map-without-ack.json");
        fs::copy(corpus, dir.path().join(NAME)).expect("copied");
        let cluster = read(dir.path()).expect("read").expect("a cluster");
        assert_eq!(cluster.shape(), Shape { shards: 1, replicas: 2, partitions: 4, ack: AckMode::Durable });
        assert!(cluster.map.is_complete() && cluster.carried_out.iter().all(Option::is_some));
        write(dir.path(), &cluster).expect("written");
        assert_eq!(read(dir.path()).expect("read again"), Some(cluster));
    }

    #[test]
    fn a_remnant_of_a_write_that_was_cut_short_is_not_read() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &cluster()).expect("written");
        fs::write(dir.path().join("cluster-map.json.new"), b"{\"format\": 1, ").expect("a remnant");
        assert_eq!(read(dir.path()).expect("read"), Some(cluster()));
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &cluster()).expect("written");
        std::os::unix::fs::symlink("/dev/full", dir.path().join("cluster-map.json.new")).expect("a full disk");
        let mut next = cluster();
        next.map.nodes.clear();
        assert!(matches!(write(dir.path(), &next), Err(WriteError::NotWritten(_))));
        assert_eq!(read(dir.path()).expect("read"), Some(cluster()));
    }

    /// Every byte of the file matters, and every shorter file is noticed.
    #[test]
    fn a_damaged_file_is_refused_and_never_taken_for_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(NAME);
        write(dir.path(), &cluster()).expect("written");
        let good = fs::read(&path).expect("bytes");
        for end in 0..good.len() - 2 {
            fs::write(&path, &good[..end]).expect("a cut file");
            assert!(matches!(read(dir.path()), Err(FileError::Damaged { .. })), "cut at {end}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("a changed file");
            match read(dir.path()) {
                Ok(Some(other)) => assert_eq!(other, cluster(), "byte {at}: only spaces may change"),
                Ok(None) => panic!("byte {at}: taken for no cluster"),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn a_file_of_another_format_is_refused_whatever_else_it_says() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(NAME), br#"{"format": 2, "everything": "else"}"#).expect("written");
        let error = read(dir.path()).expect_err("another format");
        assert!(error.to_string().contains("has format 2"), "{error}");
    }

    #[test]
    fn a_file_that_contradicts_itself_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        for (what, change) in [
            ("number of partitions", (|c| c.carried_out.truncate(1)) as fn(&mut Cluster)),
            ("a shard that does not exist", |c| c.map.partitions[2].shard = ShardId(1)),
            ("which has not registered", |c| c.map.nodes.clear()),
        ] {
            let mut cluster = cluster();
            change(&mut cluster);
            write(dir.path(), &cluster).expect("written");
            let error = read(dir.path()).expect_err(what);
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
