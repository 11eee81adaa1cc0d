//! The data directory: locked for one supervisor, and remembering the shape of its cluster.
//!
//! | file | is |
//! |---|---|
//! | `lock` | locked by the running supervisor, whose process id it holds |
//! | `local.json` | the shape of the cluster that the data belong to |
//! | `cluster.json` | the running processes; there only while they run |
//! | `router/`, `router2/`, … | the routers' own directories, with the cluster map |
//! | `nodes/ID/` | a node's own directory, with its log |

use super::{
    Options,
    manifest::{Manifest, Shape},
};
use crate::output;
use anyhow::{Context, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// The files in a router's directory that the cluster map is kept in, and was by earlier versions.
const MAPS: [&str; 2] = ["controller.redb", "cluster-map.json"];

/// A data directory that nobody else uses; unlocked when it is dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    lock: File,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that was just forked still has it open too.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl DataDir {
    /// Makes the directory if it is not there, locks it and compares its shape. Changes nothing else, so that a start
    /// that fails before [`DataDir::begin`] leaves no trace.
    ///
    /// # Errors
    /// When another supervisor uses it, or its data have another shape.
    pub(super) fn open(options: &Options) -> anyhow::Result<Self> {
        let path = options.data_dir.clone();
        fs::create_dir_all(&path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let lock = lock(&path)?;
        if let Some(text) = read_if_there(&path.join("local.json"))? {
            let old = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", path.join("local.json").display()))?;
            Shape::of(options).check(&old, &path)?;
        }
        Ok(DataDir { path, lock })
    }

    /// Makes the directory ready for the cluster of this shape: remembers it. Where no node has kept anything, the
    /// cluster starts empty, and the cluster map of the routers, whose members are no members without their data, is
    /// moved away.
    pub(super) fn begin<'a>(&self, options: &Options, routers: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
        self.write("local.json", &Shape::of(options).text())?;
        self.forget_manifest()?;
        let nodes = self.nodes();
        fs::create_dir_all(&nodes).with_context(|| format!("cannot make {}", nodes.display()))?;
        if !is_vacant(&nodes).with_context(|| format!("cannot look into {}", nodes.display()))? {
            return Ok(());
        }
        for router in routers {
            let dir = self.path.join(router);
            for map in MAPS {
                let (map, previous) = (dir.join(map), dir.join(format!("previous-{map}")));
                match fs::rename(&map, &previous) {
                    Ok(()) => output::line(format!(
                        "{} has no data of any node, so this cluster starts empty; the old cluster map is kept as {}",
                        nodes.display(),
                        previous.display()
                    )),
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => bail!("cannot move {} away: {e}", map.display()),
                }
            }
        }
        Ok(())
    }

    /// The folder of the routers' own directories.
    pub(super) fn routers(&self) -> PathBuf {
        self.path.clone()
    }

    /// The folder of the nodes' own directories.
    pub(super) fn nodes(&self) -> PathBuf {
        self.path.join("nodes")
    }

    /// Replaces `cluster.json` as a whole.
    pub(super) fn write_manifest(&self, manifest: &Manifest) -> anyhow::Result<()> {
        self.write("cluster.json", &manifest.text())
    }

    /// Removes `cluster.json`, whose process ids would soon be those of strangers.
    pub(super) fn forget_manifest(&self) -> anyhow::Result<()> {
        let path = self.path.join("cluster.json");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(anyhow!("cannot remove {}: {e}", path.display())),
            _ => Ok(()),
        }
    }

    /// Writes a file so that a reader sees either the old text or the new one, also after a loss of power: without the
    /// sync, the new name could come to the disk before the text.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let written = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        written().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let cannot = || format!("cannot lock {}", path.display());
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(cannot)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let holder = match file.read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => format!(" (process {})", pid.trim()),
                _ => String::new(),
            };
            bail!(
                "{} is in use by another `kv local`{holder}: stop that one, or give another --data-dir",
                dir.display()
            );
        }
        Err(e) => return Err(e).with_context(cannot),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(cannot)?;
    Ok(file)
}

/// Whether the nodes' directories have nothing in them.
fn is_vacant(nodes: &Path) -> io::Result<bool> {
    for node in fs::read_dir(nodes)? {
        let node = node?.path();
        if node.is_dir() && fs::read_dir(node)?.next().is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(dir: &Path, more: &[&str]) -> Options {
        let dir = dir.to_str().expect("a UTF-8 path");
        Line::parse_from(["kv", "--data-dir", dir].iter().chain(more)).options
    }

    #[test]
    fn one_supervisor_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("made/on/the/way");
        let first = DataDir::open(&options(&path, &[])).expect("free");
        let refused = DataDir::open(&options(&path, &[])).expect_err("locked").to_string();
        let holder = format!("in use by another `kv local` (process {})", std::process::id());
        assert!(refused.contains(&holder), "{refused}");
        drop(first);
        DataDir::open(&options(&path, &[])).expect("free again");
    }

    #[test]
    fn the_shape_is_remembered_only_once_a_cluster_began() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(DataDir::open(&options(dir.path(), &["--shards", "5"])).expect("no data yet"));
        let three = options(dir.path(), &[]);
        DataDir::open(&three).expect("still no data").begin(&three, ["router"].into_iter()).expect("writable");
        let refused = DataDir::open(&options(dir.path(), &["--shards", "5"])).expect_err("other shape").to_string();
        assert!(refused.contains("made with --shards 3, not with --shards 5"), "{refused}");
        fs::write(dir.path().join("local.json"), "{").expect("writable");
        let refused = DataDir::open(&three).expect_err("damaged").to_string();
        assert!(refused.ends_with("local.json is damaged"), "{refused}");
    }

    #[test]
    fn a_map_without_data_is_moved_away_and_an_old_manifest_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let router = dir.path().join("router");
        fs::create_dir(&router).expect("writable");
        fs::create_dir_all(dir.path().join("nodes/began-and-kept-nothing")).expect("writable");
        fs::write(router.join("cluster-map.json"), "old").expect("writable");
        fs::write(dir.path().join("cluster.json"), "old").expect("writable");
        let options = options(dir.path(), &[]);
        DataDir::open(&options).expect("free").begin(&options, ["router"].into_iter()).expect("writable");
        assert_eq!(fs::read_to_string(router.join("previous-cluster-map.json")).expect("there"), "old");
        assert!(!router.join("cluster-map.json").exists() && !dir.path().join("cluster.json").exists());
    }

    #[test]
    fn the_map_of_nodes_that_have_kept_something_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (map, node) = (dir.path().join("router/controller.redb"), dir.path().join("nodes/a"));
        for made in [map.parent().expect("a folder"), &node] {
            fs::create_dir_all(made).expect("writable");
        }
        fs::write(&map, "kept").expect("writable");
        fs::write(node.join("log"), "kept").expect("writable");
        let options = options(dir.path(), &[]);
        DataDir::open(&options).expect("free").begin(&options, ["router"].into_iter()).expect("writable");
        assert_eq!(fs::read_to_string(&map).expect("there"), "kept");
    }
}
