//! Lines to stdout that may fail: a reader that went away, as in `kv local | head -1`, is no reason to panic.

use std::io::{self, Write};

/// Writes a line and flushes it; a failure is dropped, since there is nobody left to tell.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", text.as_ref()).and_then(|()| stdout.flush());
}
