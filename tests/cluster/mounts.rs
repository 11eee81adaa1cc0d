//! Disks of their own for tests: small ones that run full, and one that can be frozen. They need root; who is not says so
//! and goes without.

use rustix::process::geteuid;
use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A file system that is gone when the test is done with it, whatever happens.
pub(crate) struct Disk {
    at: PathBuf,
    frozen: bool,
    _dir: TempDir,
}

/// Runs a command; what it said if it failed.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(said()) }
}

impl Disk {
    fn mount(mount: impl FnOnce(&Path, &Path) -> Result<(), String>) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("disk");
        fs::create_dir(&at).expect("a directory");
        let mounted = if geteuid().is_root() { mount(dir.path(), &at) } else { Err("this needs root".to_owned()) };
        if let Err(why) = mounted {
            println!("skipped: {why}");
            return None;
        }
        Some(Disk { at, frozen: false, _dir: dir })
    }

    /// One in memory, of so many MiB.
    pub(crate) fn tmpfs(mib: u32) -> Option<Self> {
        Self::mount(|_, at| {
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at))
        })
    }

    /// One in a file, of so many MiB.
    pub(crate) fn ext4(mib: u32) -> Option<Self> {
        Self::mount(|dir, at| {
            let file = dir.join("ext4");
            let made = File::create(&file).and_then(|f| f.set_len(u64::from(mib) << 20));
            made.map_err(|e| e.to_string())?;
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&file))?;
            run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(at))
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Makes it the place of a folder that is not there yet.
    pub(crate) fn be(&self, folder: &Path) {
        fs::create_dir_all(folder.parent().expect("a folder in a folder")).expect("writable");
        symlink(&self.at, folder).expect("writable");
    }

    /// One in memory has so many MiB from now on.
    pub(crate) fn resize(&self, mib: u32) {
        run(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.at)).expect("remounted");
    }

    pub(crate) fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.at)).expect("remounted");
    }

    /// Takes all room that is left; the file that does.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.at.join("somebody-else/ballast");
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        let mut file = File::options().create(true).append(true).open(&path).expect("writable");
        for bytes in [1 << 20, 4096] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
        let _ = file.sync_all();
        path
    }

    /// Lets nothing be written until it is thawed: who writes waits.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
        run(Command::new("fsfreeze").arg("-f").arg(&self.at)).expect("frozen");
    }

    pub(crate) fn thaw(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.at)).expect("thawed");
        self.frozen = false;
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.at).expect("mounted");
        (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let listed = Command::new("find").arg(&self.at).args(["-type", "f", "-printf", "%P %s %kKiB\\n"]).output();
            let listed = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            eprintln!("{} bytes of the disk are taken:\n{listed}", self.used());
        }
        if self.frozen {
            let _ = run(Command::new("fsfreeze").arg("-u").arg(&self.at));
        }
        // Lazily, since a process that was killed may take a moment to go.
        if let Err(why) = run(Command::new("umount").arg("-l").arg(&self.at)) {
            eprintln!("{why}");
        }
    }
}
