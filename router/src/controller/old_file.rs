//! The file that earlier versions kept the cluster map in: `DATA_DIR/cluster-map.json`.
//!
//! ```json
//! {"format": 1, "checksum": "9ae0daaf", "cluster": {"map": {…}, "carried_out": ["00…2a", null, …]}}
//! ```
//!
//! (A [`sealed_json`] file.) It is taken over at the first start of a version that keeps its data otherwise, and then kept
//! aside under another name. That is also the way in which `kv rebuild-map` hands over a map.
//!
//! # Invariants
//! * A file that is not whole, or of a format that this version does not know, is an error and never an empty cluster.
//! * Every file that an earlier version wrote is read (`tests/corpus/`).

use super::kept::Kept;
use kv_proto::sealed_json::{self, OpenError};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const NAME: &str = "cluster-map.json";
/// Its name once what it says is kept elsewhere.
const TAKEN_OVER: &str = "cluster-map.json.taken-over";
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
         file, or move it away and have `kv rebuild-map` ask the nodes"
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

/// Reads the cluster that an earlier version kept in `dir`; `None` if there is none.
pub(super) fn read(dir: &Path) -> Result<Option<Kept>, FileError> {
    let path = dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Read { path, source }),
    };
    sealed_json::open(CONTENT, FORMAT, &bytes).map(Some).map_err(|error| match error {
        OpenError::Damaged(what) => FileError::Damaged { path, what },
        OpenError::OtherFormat(format) => FileError::OtherFormat { path, format },
    })
}

/// Writes a file where there is none. It is whole and on disk, or not there.
pub(super) fn write(dir: &Path, cluster: &Kept) -> io::Result<()> {
    let bytes = sealed_json::seal(CONTENT, FORMAT, cluster)?;
    let beside = dir.join(format!("{NAME}.new"));
    let mut file = File::create(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&beside, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

/// Gives the file its other name, once what it says is kept elsewhere.
pub(super) fn set_aside(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(NAME), dir.join(TAKEN_OVER))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{super::kept::tests::cluster, *};
    use kv_proto::cluster_map::AckMode;
    use kv_replication::cluster::Shape;

    #[test]
    fn a_file_is_read_until_it_is_set_aside() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read(dir.path()).expect("no file"), None);
        write(dir.path(), &cluster().into()).expect("written");
        assert_eq!(read(dir.path()).expect("read"), Some(cluster().into()));
        set_aside(dir.path()).expect("renamed");
        assert_eq!(read(dir.path()).expect("no file"), None);
        assert!(dir.path().join(TAKEN_OVER).exists());
    }

    /// Of the time when no file said what a write waits for.
    #[test]
    fn a_file_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cluster-map-without-ack.json");
        fs::copy(corpus, dir.path().join(NAME)).expect("copied");
        let Kept(cluster) = read(dir.path()).expect("read").expect("a cluster");
        assert_eq!(cluster.shape(), Shape { shards: 1, replicas: 2, partitions: 4, ack: AckMode::Durable });
        assert!(cluster.map.is_complete() && cluster.carried_out.iter().all(Option::is_some));
    }

    /// Every byte of the file matters, and every shorter file is noticed.
    #[test]
    fn a_damaged_file_is_refused_and_never_taken_for_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(NAME);
        write(dir.path(), &cluster().into()).expect("written");
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
                Ok(Some(other)) => assert_eq!(other, cluster().into(), "byte {at}: only spaces may change"),
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
}
