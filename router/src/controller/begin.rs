//! Puts a map into the folder of a controller that is about to start.

use super::{
    error::OpenError,
    kept::Kept,
    old_file,
    raft::{
        disk::{Disk, NAME},
        state_machine::State,
    },
};
use crate::rebuild::RebuildError;
use kv_replication::cluster::Cluster;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Leaves `cluster` in `dir` for the controller that starts there next. A cluster that the folder has is set aside if it never
/// had a partition; where it then is.
pub(crate) fn begin_with(dir: &Path, cluster: Cluster) -> Result<Option<PathBuf>, RebuildError> {
    let write = |source| RebuildError::Write { dir: dir.to_path_buf(), source };
    let (file, aside) = (dir.join(NAME), dir.join(format!("{NAME}.replaced")));
    let is_there = file.try_exists().map_err(write)?;
    let disk = Disk::open(dir)?;
    let damaged = |e| OpenError::damaged(&file, &e);
    let kept = disk.read::<State>("applied").map_err(damaged)?.and_then(|state| state.cluster);
    if let Some(Kept(kept)) = old_file::read(dir).map_err(OpenError::from)?.or(kept)
        && kept.map.partitions.iter().any(|p| p.configuration.is_some())
    {
        return Err(OpenError::HasMap { dir: dir.to_path_buf(), cluster: kept.map.cluster }.into());
    }
    // The lock is held until the map is there; the open file goes with its name.
    fs::rename(&file, &aside).map_err(write)?;
    old_file::write(dir, &cluster.into()).map_err(write)?;
    drop(disk);
    if !is_there {
        // What was made to look inside.
        fs::remove_file(&aside).map_err(write)?;
    }
    Ok(is_there.then_some(aside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{
        config_store::{
            ConfigStore,
            tests::{SHAPE, alone, register},
        },
        old_file,
    };
    use kv_proto::ids::ClusterId;

    #[tokio::test]
    async fn a_controller_begins_with_the_map_that_was_left_for_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut cluster = Cluster::new(ClusterId(5), SHAPE).expect("possible");
        for name in ["a", "b"] {
            cluster.apply(&register(name, 1)).expect(name);
        }
        assert_eq!(begin_with(dir.path(), cluster.clone()).expect("an empty folder"), None);
        let error = begin_with(dir.path(), cluster.clone()).expect_err("twice").to_string();
        assert!(error.contains("has the map of cluster"), "{error}");
        let store = ConfigStore::open(dir.path(), SHAPE, &alone()).await.expect("opened");
        assert_eq!(*store.get(), cluster);
        let error = begin_with(dir.path(), cluster.clone()).expect_err("it runs").to_string();
        assert!(error.contains("in use by another process"), "{error}");
        store.stop().await;
        let error = begin_with(dir.path(), cluster).expect_err("it has one").to_string();
        assert!(error.contains("has the map of cluster"), "{error}");
        assert_eq!(old_file::read(dir.path()).expect("none"), None);
    }

    /// What a router makes that was started without its folder.
    #[tokio::test]
    async fn a_cluster_without_partitions_is_set_aside() {
        let dir = tempfile::tempdir().expect("a folder");
        ConfigStore::open(dir.path(), SHAPE, &alone()).await.expect("opened").stop().await;
        let cluster = Cluster::new(ClusterId(5), SHAPE).expect("possible");
        let aside = begin_with(dir.path(), cluster.clone()).expect("nothing is lost");
        assert!(aside.is_some_and(|path| path.exists()));
        let store = ConfigStore::open(dir.path(), SHAPE, &alone()).await.expect("opened");
        assert_eq!(*store.get(), cluster);
    }
}
