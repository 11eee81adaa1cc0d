//! Why a controller's store cannot be opened, or does not carry out a command.

use super::old_file::FileError;
use kv_proto::ids::ClusterId;
use kv_replication::cluster::InvalidShape;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or used.
    #[error(
        "cannot use the data folder {dir}, which must be a folder that this user may write; choose another by --data-dir"
    )]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error(
        "the data folder {dir} is in use by another process, a router or the supervisor of `kv local` (whose router \
         keeps its data in the folder `router` in it): stop it, or give this one another --data-dir"
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The file of an earlier version cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is kept cannot be read.
    #[error(
        "{path} cannot be read ({what}): move it away; one of several controllers then learns everything from the others, \
         and for an only one `kv rebuild-map` asks the nodes"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The folder that shall begin with a map has one.
    #[error("{dir} has the map of cluster {cluster}: choose an empty folder by --data-dir, or move this one away")]
    HasMap {
        /// The folder.
        dir: PathBuf,
        /// Whose map.
        cluster: ClusterId,
    },
    /// The folder has a map of each kind, and the older kind is not the older map.
    #[error(
        "{dir} has a `controller.redb` and a `cluster-map.json` that says something else: move the one away that is not of \
         the cluster"
    )]
    TwoMaps {
        /// The folder.
        dir: PathBuf,
    },
    /// No cluster can have these numbers.
    #[error(transparent)]
    Shape(#[from] InvalidShape),
    /// The cluster in the folder was made otherwise.
    #[error(
        "the cluster in {dir} was made with --{flag} {kept}, which cannot be changed to {asked}: start with --{flag} {kept}, \
         or use another --data-dir for another cluster"
    )]
    OtherShape {
        /// The folder.
        dir: PathBuf,
        /// What differs.
        flag: &'static str,
        /// As the cluster was made.
        kept: String,
        /// As it was asked for now.
        asked: String,
    },
    /// One of several controllers was started as the only one.
    #[error("the controller in {dir} is one of {voters}, and cannot go on alone: start it with --controller-peers")]
    NotAlone {
        /// The folder.
        dir: PathBuf,
        /// How many there are.
        voters: usize,
    },
    /// The consensus cannot be started.
    #[error("the controller cannot start: {0}")]
    Consensus(String),
}

impl OpenError {
    pub(crate) fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Self {
        OpenError::Damaged { path: path.to_path_buf(), what: what.to_string() }
    }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// The node cannot register; a sentence that says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// No leader answered in time; the command may still be carried out.
    #[error("no majority of the controllers answered in time; whether the change was made is not known")]
    NoLeader,
    /// The change may have been written or not; the store is of no use any more.
    #[error("the controller cannot tell whether it wrote the cluster map, and stops: {0}")]
    Unknown(String),
}
