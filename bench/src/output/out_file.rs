//! Files that a run leaves: checked before it, so that nobody hears after an hour that its result has no place, and never left
//! half written where that can be avoided.
//!
//! [`OutFile`] takes one text at the end; an older one stays until the new one is whole on disk, whatever happens. [`OutStream`]
//! takes the run second by second, so that it can be watched and what was written before a crash is there; an older one stays
//! until the first second. `-` is standard output for both; pipes and devices are written as they are.

use anyhow::{Context, anyhow};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The paths that mean standard output. Where it is a file, opening that anew would cut what is printed there.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// A place for one text, which comes at the end.
#[derive(Debug)]
pub(crate) struct OutFile {
    /// As it was given, for messages.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Stdout,
    /// A pipe, a device, or a file in a folder that takes no new ones.
    Direct(File),
    /// A file that is replaced as a whole by one that is made beside it.
    Beside {
        file: PathBuf,
        /// Those of the file that is there, if there is one.
        permissions: Option<Permissions>,
    },
}

impl OutFile {
    /// Checks that the text can be written. Changes nothing and leaves nothing behind.
    ///
    /// # Errors
    /// A sentence with the path and the cause.
    pub(crate) fn create(path: &Path) -> anyhow::Result<OutFile> {
        let place = Place::of(path).with_context(|| not_written(path))?;
        Ok(OutFile { path: path.to_owned(), place })
    }

    /// Whether the text goes to standard output, where nothing else should be then.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.place, Place::Stdout)
    }

    /// Writes the whole text.
    ///
    /// # Errors
    /// A sentence with the path, the cause, and what became of what was there before.
    pub(crate) fn write(self, text: &str) -> anyhow::Result<()> {
        let OutFile { path, place } = self;
        let (written, older) = match place {
            Place::Stdout => (print(text.as_bytes()), ""),
            Place::Direct(mut file) => (replace(&mut file, text.as_bytes()), "; what is there now may be incomplete"),
            Place::Beside { file, permissions } => {
                let older = if permissions.is_some() { "; the older file is there as it was" } else { "" };
                (replace_by_rename(&file, permissions, text.as_bytes()), older)
            }
        };
        written.map_err(|cause| anyhow!("{}: {cause}{older}", not_written(&path)))
    }
}

impl Place {
    fn of(path: &Path) -> io::Result<Place> {
        if is_stdout(path) {
            return Ok(Place::Stdout);
        }
        // A link is followed: what it points to is replaced, not the link.
        let file = match path.canonicalize() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match File::create_new(path) {
                Ok(_) => {
                    fs::remove_file(path)?;
                    return Ok(Place::Beside { file: path.to_owned(), permissions: None });
                }
                // A link that points to nothing that has a name: to no file, or to a pipe.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return OpenOptions::new().write(true).create(true).truncate(false).open(path).map(Place::Direct);
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        };
        // A file that may not be written is not replaced either.
        let opened = OpenOptions::new().write(true).open(&file)?;
        let metadata = opened.metadata()?;
        Ok(if metadata.is_file() && beside(folder_of(&file)).is_ok() {
            Place::Beside { file, permissions: Some(metadata.permissions()) }
        } else {
            Place::Direct(opened)
        })
    }
}

/// A place for what comes second by second.
#[derive(Debug)]
pub(crate) struct OutStream {
    path: PathBuf,
    /// `None` is standard output.
    file: Option<File>,
    /// The file if it was made for this run and is removed if nothing comes.
    remove: Option<PathBuf>,
    /// Bytes that were written whole.
    written: u64,
    failed: bool,
}

impl OutStream {
    /// Opens the place and leaves what is in it until something comes.
    ///
    /// # Errors
    /// A sentence with the path and the cause.
    pub(crate) fn create(path: &Path) -> anyhow::Result<OutStream> {
        let open = || {
            if is_stdout(path) {
                return Ok((None, None));
            }
            let made = !path.exists();
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // Behind a link, it is not the link that was made.
            let remove = if made { Some(path.canonicalize()?) } else { None };
            Ok((Some(file), remove))
        };
        let (file, remove) = open().map_err(|cause: io::Error| anyhow!("{}: {cause}", not_written(path)))?;
        Ok(OutStream { path: path.to_owned(), file, remove, written: 0, failed: false })
    }

    /// Whether something was written.
    pub(crate) fn is_begun(&self) -> bool {
        self.written > 0
    }

    /// Writes some whole lines and keeps nothing back. After a failure nothing is written any more: lines with a gap in them
    /// would look as if all were there.
    ///
    /// # Errors
    /// A sentence with the path, the cause, and what is lost; it is told once.
    pub(crate) fn append(&mut self, lines: &[u8]) -> anyhow::Result<()> {
        if self.failed {
            return Ok(());
        }
        let written = match &mut self.file {
            None => print(lines),
            Some(file) => {
                let old = if self.written == 0 { cut(file, 0) } else { Ok(()) };
                old.and_then(|()| file.write_all(lines)).inspect_err(|_| {
                    // Half a line is worse than none. What cannot be cut either is told below.
                    let _ = cut(file, self.written);
                })
            }
        };
        self.remove = None;
        match written {
            Ok(()) => {
                self.written += lines.len() as u64;
                Ok(())
            }
            Err(cause) => {
                self.failed = true;
                let (path, written) = (not_written(&self.path), self.written);
                Err(anyhow!("{path}: {cause}; the {written} bytes so far are kept, what comes from now on is lost"))
            }
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// A sentence, when something was lost on the way: it is told again, because a warning amid a run is easily missed.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.failed,
            "{} ends after {} bytes: the rest could not be written",
            self.path.display(),
            self.written
        );
        Ok(())
    }
}

impl Drop for OutStream {
    fn drop(&mut self) {
        if let Some(file) = &self.remove {
            let _ = fs::remove_file(file);
        }
    }
}

fn is_stdout(path: &Path) -> bool {
    STDOUT.iter().any(|stdout| path == Path::new(stdout))
}

/// Whether two paths, which may be written differently, mean one place.
pub(crate) fn is_same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        if is_stdout(path) {
            return PathBuf::from(STDOUT[0]);
        }
        path.canonicalize().unwrap_or_else(|_| match (folder_of(path).canonicalize(), path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        })
    };
    place(a) == place(b)
}

fn not_written(path: &Path) -> String {
    format!("cannot write to {}", path.display())
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Cuts a file and goes on from there. A pipe or a device cannot be cut, and need not be.
fn cut(file: &mut File, length: u64) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(length)?;
        file.seek(io::SeekFrom::Start(length))?;
    }
    Ok(())
}

fn replace(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    cut(file, 0)?;
    file.write_all(bytes)
}

fn replace_by_rename(path: &Path, permissions: Option<Permissions>, bytes: &[u8]) -> io::Result<()> {
    let mut beside = beside(folder_of(path))?;
    // The file itself: its wrapper tells of a path in its errors that nobody gave.
    beside.as_file_mut().write_all(bytes)?;
    if let Some(permissions) = permissions {
        beside.as_file().set_permissions(permissions)?;
    }
    // Some file systems say only now that the disk is full; and a name must not get ahead of its bytes.
    beside.as_file().sync_all()?;
    beside.persist(path).map(drop).map_err(|error| error.error)
}

/// A file that goes with its variable, with the permissions of any new file.
fn beside(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(".kvbench-").permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        os::{fd::AsRawFd, unix::fs::symlink},
    };

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("a folder")
            .map(|e| e.expect("a file").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_made_for_a_run_that_did_not_happen_goes_and_what_is_older_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        fs::write(&old, "kept").expect("written");
        for path in [&new, &old] {
            drop(OutFile::create(path).expect("possible"));
            let stream = OutStream::create(path).expect("possible");
            assert!(!stream.is_begun());
            drop(stream);
        }
        assert_eq!(
            (names(folder.path()), fs::read_to_string(&old).expect("there")),
            (vec!["old".to_owned()], "kept".to_owned())
        );
    }

    #[test]
    fn places_that_cannot_be_written_are_told_before_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, cause) in [
            (folder.path().join("no/such"), "No such file or directory"),
            (folder.path().to_owned(), "Is a directory"),
            (PathBuf::from("/proc/version/a"), "Not a directory"),
            (PathBuf::from("/proc/no-such-file"), "No such file or directory"),
            (folder.path().join("new/"), "Is a directory"),
            (folder.path().join("n".repeat(256)), "File name too long"),
            (PathBuf::new(), "No such file or directory"),
        ] {
            for error in [
                format!("{:#}", OutFile::create(&path).map(drop).expect_err("impossible")),
                format!("{:#}", OutStream::create(&path).map(drop).expect_err("impossible")),
            ] {
                assert!(error.starts_with(&format!("cannot write to {}: {cause}", path.display())), "{error}");
            }
        }
        assert_eq!(names(folder.path()).len(), 0);
    }

    #[test]
    fn a_text_replaces_an_older_one_as_a_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("a.json"), folder.path().join("link.json"));
        let out = OutFile::create(&file).expect("possible");
        assert!(!out.is_stdout());
        out.write("longer than the next one\n").expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("set");
        symlink("a.json", &link).expect("linked");
        let before = File::open(&file).expect("there");
        OutFile::create(&link).expect("possible").write("new\n").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("there"), "new\n");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        // Who had the older one open still reads it: it was never cut.
        let mut older = String::new();
        let _ = (&before).read_to_string(&mut older).expect("read");
        assert_eq!((older.as_str(), names(folder.path()).len()), ("longer than the next one\n", 2));
    }

    #[test]
    fn a_link_to_nothing_and_a_bare_name_are_places_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        symlink(&file, &link).expect("linked");
        drop(OutStream::create(&link).expect("possible"));
        assert!(link.is_symlink() && !file.exists());
        OutFile::create(&link).expect("possible").write("text").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("there"), "text");
        assert_eq!(folder_of(Path::new("a.json")), Path::new("."));
    }

    #[test]
    fn pipes_are_written_as_they_are() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let path = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
        let (file, mut stream) =
            (OutFile::create(&path).expect("possible"), OutStream::create(&path).expect("possible"));
        stream.append(b"1\n").expect("written");
        stream.append(b"2\n").expect("written");
        file.write("text").expect("written");
        drop((writer, stream));
        let mut text = String::new();
        let _ = reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "1\n2\ntext");
        assert!(OutFile::create(Path::new("-")).expect("possible").is_stdout());
    }

    #[test]
    fn a_stream_is_there_line_by_line_and_replaces_an_older_one_with_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.csv");
        fs::write(&path, "an older and longer one").expect("written");
        let mut stream = OutStream::create(&path).expect("possible");
        for (lines, all) in [("1\n", "1\n"), ("2\n3\n", "1\n2\n3\n")] {
            stream.append(lines.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("there"), all);
        }
        assert!(stream.is_begun());
        stream.finish().expect("whole");
        assert_eq!(fs::read_to_string(&path).expect("there"), "1\n2\n3\n");
    }

    #[test]
    fn a_full_disk_is_told_once_amid_the_run_and_at_its_end() {
        let full = Path::new("/dev/full");
        let error = OutFile::create(full).expect("possible").write("text").expect_err("full");
        assert_eq!(
            error.to_string(),
            "cannot write to /dev/full: No space left on device (os error 28); what is there now may be incomplete"
        );
        let mut stream = OutStream::create(full).expect("possible");
        let error = stream.append(b"1\n").expect_err("full").to_string();
        assert!(
            error.ends_with("(os error 28); the 0 bytes so far are kept, what comes from now on is lost"),
            "{error}"
        );
        stream.append(b"2\n").expect("told once");
        let error = stream.finish().expect_err("incomplete").to_string();
        assert_eq!(error, "/dev/full ends after 0 bytes: the rest could not be written");
        assert!(full.exists(), "what was there before is not removed");
    }
}
