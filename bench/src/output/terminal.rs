//! A block of lines on a terminal that is drawn anew in its place, and stderr that is never waited for.
//!
//! The block is found again by going up from the cursor, which rests below it: whoever asks a terminal where its cursor is must
//! read the answer between the keys (and loses it if stdout is a file). So nothing of the terminal's state is ever changed:
//! no raw mode, no other screen, no hidden cursor, and every write ends without colours. Whatever ends the process, a panic or
//! `kill -9`, there is nothing to restore, the block stays in the scrollback, and what is printed next stands below it.

use ratatui::{
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
    text::Span,
};
use std::{
    io::Write,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Size that is taken for a terminal that does not know its own.
const DEFAULT_SIZE: Size = Size { columns: 80, rows: 24 };
/// Most bytes that wait for a terminal that takes none (Ctrl-S), or a pipe that nobody reads.
const MAX_PENDING: usize = 64 * 1024;
/// How long a terminal may take to draw what it was given before it counts as stuck, and how long at the end.
const PATIENCE: Duration = Duration::from_millis(20);
const LAST_PATIENCE: Duration = Duration::from_secs(1);

const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const PLAIN: &str = "\x1b[0m";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

/// How large the terminal behind stderr is now.
pub(super) fn size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { columns: size.ws_col, rows: size.ws_row },
        _ => DEFAULT_SIZE,
    }
}

/// What stands on the terminal above the cursor.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// How wide each line is.
    widths: Vec<u16>,
}

impl Block {
    /// Takes the block away; the cursor is then where it began.
    pub(super) fn clear(&mut self, out: &mut Vec<u8>, columns: u16) {
        self.go_up(out, columns);
        out.extend_from_slice(CLEAR_BELOW.as_bytes());
        self.widths.clear();
    }

    /// Draws lines in place of those of before.
    pub(super) fn draw(&mut self, out: &mut Vec<u8>, columns: u16, lines: &Buffer, colours: bool) {
        self.go_up(out, columns);
        self.widths.clear();
        for row in lines.content().chunks(usize::from(lines.area().width).max(1)) {
            self.widths.push(line(out, row, colours));
            // Cleared after it is written, so that nothing flickers.
            out.extend_from_slice(CLEAR_LINE.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(CLEAR_BELOW.as_bytes());
    }

    /// The block stays where it is, and the next one begins below it.
    pub(super) fn leave(&mut self) {
        self.widths.clear();
    }

    fn go_up(&self, out: &mut Vec<u8>, columns: u16) {
        // A terminal that has become narrower has broken the lines that no longer fit.
        let rows: u32 = self.widths.iter().map(|width| u32::from(width.div_ceil(columns.max(1)).max(1))).sum();
        out.push(b'\r');
        if rows > 0 {
            out.extend_from_slice(format!("\x1b[{rows}A").as_bytes());
        }
    }
}

/// Appends a line up to its last visible cell and says how wide that is.
fn line(out: &mut Vec<u8>, row: &[Cell], colours: bool) -> u16 {
    let end = row.iter().rposition(|cell| cell.symbol() != " ").map_or(0, |last| last + 1);
    let (mut style, mut hidden) = (String::new(), 0);
    for cell in &row[..end] {
        // A wide character covers the cells after it.
        if hidden > 0 {
            hidden -= 1;
            continue;
        }
        let wanted = escape(cell, colours);
        if wanted != style {
            out.extend_from_slice(PLAIN.as_bytes());
            out.extend_from_slice(wanted.as_bytes());
            style = wanted;
        }
        out.extend_from_slice(cell.symbol().as_bytes());
        hidden = Span::raw(cell.symbol()).width().saturating_sub(1);
    }
    if !style.is_empty() {
        out.extend_from_slice(PLAIN.as_bytes());
    }
    u16::try_from(end).unwrap_or(u16::MAX)
}

/// The sequence that a cell's style needs after [`PLAIN`]. Colours but the 16 that every terminal's user has chosen are not used.
fn escape(cell: &Cell, colours: bool) -> String {
    let mut codes = Vec::new();
    for (modifier, code) in [(Modifier::BOLD, 1), (Modifier::DIM, 2), (Modifier::REVERSED, 7)] {
        if cell.modifier.contains(modifier) {
            codes.push(code);
        }
    }
    let colour = match cell.fg {
        Color::Red => Some(31),
        Color::Green => Some(32),
        Color::Yellow => Some(33),
        Color::Magenta => Some(35),
        Color::Cyan => Some(36),
        _ => None,
    };
    codes.extend(colour.filter(|_| colours));
    let codes: Vec<_> = codes.into_iter().map(|code: u8| code.to_string()).collect();
    if codes.is_empty() { String::new() } else { format!("\x1b[{}m", codes.join(";")) }
}

/// Standard error, for which nobody waits: who draws also keeps the time of the run. A thread writes, because a terminal
/// that says that it is ready may still block in the midst of what it is given, and to make it non-blocking would do so for all
/// who share it, the shell included.
#[derive(Debug, Default)]
pub(super) struct Stderr {
    shared: Arc<Shared>,
    has_writer: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Whether the writer has taken something that is not written yet.
    writing: bool,
    /// Whether nothing will come any more.
    ended: bool,
}

impl Stderr {
    /// Hands bytes over to be written. Of what there is no room for, all is left out.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if !self.has_writer {
            let shared = Arc::clone(&self.shared);
            let writer = std::thread::Builder::new().name("view".to_owned());
            self.has_writer = writer.spawn(move || shared.write(&mut std::io::stderr())).is_ok();
        }
        let mut state = self.shared.lock();
        if state.pending.len() + bytes.len() <= MAX_PENDING {
            state.pending.extend_from_slice(bytes);
        }
        self.shared.changed.notify_all();
    }

    /// Whether everything so far is written; waits a little for it.
    pub(super) fn is_free(&self) -> bool {
        self.shared.wait(PATIENCE)
    }

    /// Waits until everything is written, but not for ever: the result may go elsewhere and be wanted there.
    pub(super) fn finish(&self) {
        self.shared.wait(LAST_PATIENCE);
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn write(&self, to: &mut impl Write) {
        let mut state = self.lock();
        loop {
            while state.pending.is_empty() && !state.ended {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.pending.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut state.pending);
            state.writing = true;
            drop(state);
            // Nobody can be told that stderr is gone, and the run is no worse for it.
            let _ = to.write_all(&bytes);
            state = self.lock();
            state.writing = false;
            self.changed.notify_all();
        }
    }

    fn wait(&self, patience: Duration) -> bool {
        let busy = |state: &mut State| state.writing || !state.pending.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::{layout::Rect, style::Style};

    fn drawn(block: &mut Block, columns: u16, lines: &[&str]) -> String {
        let mut out = Vec::new();
        block.draw(&mut out, columns, &Buffer::with_lines(lines.iter().copied()), true);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_block_is_drawn_in_the_place_of_the_one_before() {
        let mut block = Block::default();
        assert_eq!(drawn(&mut block, 80, &["one  ", "three"]), "\rone\x1b[K\r\nthree\x1b[K\r\n\x1b[J");
        assert_eq!(drawn(&mut block, 80, &["", "four"]), "\r\x1b[2A\x1b[K\r\nfour\x1b[K\r\n\x1b[J");
        // On 3 columns, "four" takes two rows, and the empty line one.
        assert!(drawn(&mut block, 3, &["end"]).starts_with("\r\x1b[3Aend"));
        let mut out = Vec::new();
        block.clear(&mut out, 80);
        assert_eq!(out, b"\r\x1b[1A\x1b[J");
        drawn(&mut block, 80, &["stays"]);
        block.leave();
        assert_eq!(drawn(&mut block, 80, &["below"]), "\rbelow\x1b[K\r\n\x1b[J");
        assert_eq!(drawn(&mut block, 0, &[]), "\r\x1b[5A\x1b[J");
    }

    #[test]
    fn styles_end_with_the_line_and_colours_can_be_left_out() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 6, 1));
        buffer.set_string(0, 0, "ab", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD));
        buffer.set_string(2, 0, "\u{4e16}c", Style::new());
        for (colours, expected) in
            [(true, "\x1b[0m\x1b[1;31mab\x1b[0m\u{4e16}c"), (false, "\x1b[0m\x1b[1mab\x1b[0m\u{4e16}c")]
        {
            let mut out = Vec::new();
            assert_eq!(line(&mut out, buffer.content(), colours), 5);
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
    }

    /// Ctrl-S, or a pipe that nobody reads, must not hold up the run.
    #[test]
    fn who_draws_does_not_wait_for_a_terminal_that_is_stuck() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let stderr = Stderr { shared: Arc::default(), has_writer: true };
        let shared = Arc::clone(&stderr.shared);
        let thread = std::thread::spawn(move || shared.write(&mut writer));
        let mut stderr = stderr;
        stderr.write(b"seen\n");
        assert!(stderr.shared.wait(Duration::from_secs(10)));
        // More than a pipe holds.
        for _ in 0..8 {
            stderr.write(&vec![b'x'; MAX_PENDING / 2]);
            stderr.is_free();
        }
        assert!(!stderr.is_free());
        assert!(stderr.shared.lock().pending.len() <= MAX_PENDING);
        drop(reader);
        // What cannot be written is given up, and the thread ends with its owner.
        assert!(stderr.shared.wait(Duration::from_secs(10)));
        drop(stderr);
        thread.join().expect("no panic");
    }
}
