//! What a person sees of a run while it goes on, all of it on stderr: stdout is for the result.

use super::{
    Interval,
    lines::{self, clean},
    live::Live,
    terminal::{self, Block, Stderr},
};
use std::{env, ffi::OsStr, io::IsTerminal};

/// How a run is shown while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ViewChoice {
    /// Live on a terminal, lines elsewhere
    Auto,
    /// Drawn anew every second; lines where stderr is no terminal
    Live,
    /// A line a second
    Lines,
    /// Nothing but warnings
    None,
}

/// The view of a run. Only it writes to stderr between [`View::begin`] and [`View::finish`]: what others write there is
/// overwritten.
#[derive(Debug)]
pub(crate) struct View {
    face: Face,
    stderr: Stderr,
}

#[derive(Debug)]
enum Face {
    None,
    Lines,
    Live { live: Box<Live>, block: Block, colours: bool },
}

impl View {
    /// `title` says in a few words what runs against what.
    pub(crate) fn new(choice: ViewChoice, title: &str) -> View {
        let drawable = std::io::stderr().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
        let title = clean(title);
        let mut view = View { face: Face::None, stderr: Stderr::default() };
        match choice.on(drawable) {
            ViewChoice::Auto | ViewChoice::Live => {
                let colours = colours(env::var_os("NO_COLOR").as_deref());
                view.face = Face::Live { live: Box::new(Live::new(title)), block: Block::default(), colours };
            }
            ViewChoice::Lines => {
                view.face = Face::Lines;
                view.stderr.write(format!("{title}\n").as_bytes());
            }
            ViewChoice::None => {}
        }
        view
    }

    /// A phase begins; `what` says in a few words what it is for.
    pub(crate) fn begin(&mut self, phase: &'static str, what: &str) {
        let what = clean(what);
        match &mut self.face {
            Face::None => {}
            Face::Lines => self.stderr.write(format!("{phase}: {what}\n").as_bytes()),
            Face::Live { live, .. } => live.begin(phase, what),
        }
        self.draw();
    }

    /// A second has passed. An event of it need not be told by [`View::note`] as well.
    pub(crate) fn interval(&mut self, interval: &Interval<'_>) {
        match &mut self.face {
            Face::None => {}
            Face::Lines => self.stderr.write(lines::lines(interval).as_bytes()),
            Face::Live { live, .. } => live.interval(interval),
        }
        self.draw();
    }

    /// A sentence between, as a warning; it stays to be read, whatever is drawn, and is told even where nothing else is.
    pub(crate) fn note(&mut self, sentence: &str) {
        let mut bytes = Vec::new();
        if let Face::Live { block, .. } = &mut self.face {
            // While the terminal takes nothing, nobody knows where the block is.
            if self.stderr.is_free() { block.clear(&mut bytes, terminal::size().columns) } else { block.leave() }
        }
        bytes.extend_from_slice(clean(sentence).as_bytes());
        bytes.push(b'\n');
        self.stderr.write(&bytes);
        self.draw();
    }

    /// The run is over: the last that was drawn stays, and what is printed next stands below it. The next phase may begin
    /// in spite of it.
    pub(crate) fn finish(&mut self) {
        self.stderr.finish();
        if let Face::Live { block, .. } = &mut self.face {
            block.leave();
        }
    }

    fn draw(&mut self) {
        let Face::Live { live, block, colours } = &mut self.face else { return };
        // A picture that nobody takes is not worth keeping: the next one is better.
        if self.stderr.is_free() {
            let (size, mut bytes) = (terminal::size(), Vec::new());
            // Below it the cursor rests, and a line that ends at the edge behaves differently from terminal to terminal.
            let lines = live.draw(size.columns.saturating_sub(1), size.rows.saturating_sub(1));
            block.draw(&mut bytes, size.columns, &lines, *colours);
            self.stderr.write(&bytes);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.finish();
    }
}

impl ViewChoice {
    /// What is shown on a terminal that can be drawn on, or elsewhere.
    fn on(self, drawable: bool) -> ViewChoice {
        match self {
            ViewChoice::Auto | ViewChoice::Live if drawable => ViewChoice::Live,
            ViewChoice::Auto | ViewChoice::Live => ViewChoice::Lines,
            ViewChoice::Lines | ViewChoice::None => self,
        }
    }
}

/// Whether colours are wanted: see no-color.org.
fn colours(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::{super::samples::Story, *};

    #[test]
    fn only_a_terminal_is_drawn_on() {
        for (choice, drawable, shown) in [
            (ViewChoice::Auto, true, ViewChoice::Live),
            (ViewChoice::Auto, false, ViewChoice::Lines),
            (ViewChoice::Live, false, ViewChoice::Lines),
            (ViewChoice::Lines, true, ViewChoice::Lines),
            (ViewChoice::None, true, ViewChoice::None),
        ] {
            assert_eq!(choice.on(drawable), shown, "{choice:?}");
        }
    }

    #[test]
    fn colours_are_left_out_where_they_are_not_wanted() {
        assert!(colours(None) && colours(Some(OsStr::new(""))) && !colours(Some(OsStr::new("1"))));
    }

    /// `cargo test -p kvbench play -- --ignored` on a terminal: a minute of a made-up run in six seconds.
    #[test]
    #[ignore = "for eyes"]
    fn play() {
        let mut view = View::new(ViewChoice::Auto, "kvbench run: 80 % get, 20 % put, 50 x 16, kv://127.0.0.1:5001");
        view.begin("run", "one minute");
        let mut story = Story::default();
        for second in 1..=60 {
            view.interval(&story.next().interval());
            if second == 45 {
                view.note(
                    "warning: 12 % of the operations were late because kvbench itself was too slow; use --threads",
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        view.finish();
    }
}
