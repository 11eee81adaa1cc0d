//! What goes to stdout, where a reader that went away, as in `kv get big | head -c1`, is no reason to panic or complain.

use std::io::{self, ErrorKind, Write};

/// Writes a line and flushes it; a failure is dropped, since there is nobody left to tell.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
}

/// Writes bytes as they are and flushes them; false if the reader has gone away.
///
/// # Errors
/// When they cannot be written for another reason.
pub(crate) fn bytes(bytes: &[u8]) -> io::Result<bool> {
    write_to(io::stdout().lock(), bytes)
}

fn write_to(mut output: impl Write, bytes: &[u8]) -> io::Result<bool> {
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let (reader, writer) = io::pipe().expect("a pipe");
        assert!(write_to(&writer, b"read").expect("written"));
        drop(reader);
        assert!(!write_to(&writer, b"not read").expect("no failure"));
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
        assert!(write_to(full, b"x").is_err());
    }
}
