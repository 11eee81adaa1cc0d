//! `kv status --watch`: on a terminal the table redrawn in place with the latest events below it; elsewhere the events
//! alone, a line each, as they come.

use super::{Options, Topology, ask, events, render, topology};
use crate::{http::Api, output};
use anyhow::Context;
use rustix::termios::tcgetwinsize;
use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    process::ExitCode,
    time::SystemTime,
};
use tokio::time::MissedTickBehavior;

/// To the first cell, and no line wraps into the next.
const HOME: &str = "\x1b[H\x1b[?7l";
const CLEAR_SCREEN: &str = "\x1b[2J";
const CLEAR_TO_END_OF_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J\x1b[?7h";
/// Most events that stand below the table.
const EVENTS_SHOWN: usize = 12;

/// Shows it until Ctrl-C, or until nobody reads it any more.
pub(super) async fn run(api: &Api, options: &Options) -> anyhow::Result<ExitCode> {
    let mut ticks = tokio::time::interval(options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut view = View::new(options);
    let redraw = async {
        loop {
            ticks.tick().await;
            // A router that is gone may come back: that is what one watches for.
            let seen = topology(api).await.map_err(|error| format!("{error:#}"));
            if !view.show(seen).context("cannot write to stdout")? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    };
    until_interrupted(redraw).await
}

/// The router's answer at each tick, as it is.
pub(super) async fn run_json(api: &Api, options: &Options) -> anyhow::Result<ExitCode> {
    let mut ticks = tokio::time::interval(options.interval);
    let print = async {
        loop {
            ticks.tick().await;
            let line = match ask(api).await {
                Ok(body) => [&body[..], b"\n"].concat(),
                Err(error) => {
                    eprintln!("kv: {error:#}");
                    continue;
                }
            };
            if !output::bytes(&line).context("cannot write to stdout")? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    };
    until_interrupted(print).await
}

async fn until_interrupted(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::select! {
        result = work => result,
        result = tokio::signal::ctrl_c() => result.map(|()| ExitCode::SUCCESS).context("cannot listen for Ctrl-C"),
    }
}

struct View {
    on_terminal: bool,
    with_partitions: bool,
    last: Option<Topology>,
    /// Why the router did not answer the last time.
    failure: Option<String>,
    events: VecDeque<String>,
    drawn: bool,
}

impl View {
    fn new(options: &Options) -> Self {
        View {
            on_terminal: io::stdout().is_terminal(),
            with_partitions: options.partitions,
            last: None,
            failure: None,
            events: VecDeque::new(),
            drawn: false,
        }
    }

    /// Takes what was seen, and shows what is new; false if nobody reads it any more.
    fn show(&mut self, seen: Result<Topology, String>) -> io::Result<bool> {
        let clock = clock(SystemTime::now());
        let news: Vec<String> = self.take(seen).into_iter().map(|event| format!("{clock} {event}")).collect();
        if !self.on_terminal {
            let lines: String = news.iter().map(|line| format!("{line}\n")).collect();
            return output::bytes(lines.as_bytes());
        }
        self.events.extend(news);
        while self.events.len() > EVENTS_SHOWN {
            self.events.pop_front();
        }
        let clear = if self.drawn { "" } else { CLEAR_SCREEN };
        self.drawn = true;
        let (rows, columns) = size();
        let screen = screen(&self.table(), &self.events, rows, columns);
        output::bytes(format!("{clear}{HOME}{screen}{CLEAR_BELOW}").as_bytes())
    }

    fn table(&self) -> String {
        let mut text = self.failure.as_ref().map(|why| format!("{why}\n\n")).unwrap_or_default();
        text += &self.last.as_ref().map(|t| render::render(t, self.with_partitions)).unwrap_or_default();
        text
    }

    /// The events between what was seen last and what is seen now.
    fn take(&mut self, seen: Result<Topology, String>) -> Vec<String> {
        match seen {
            Ok(topology) => {
                let mut news = Vec::new();
                if self.failure.take().is_some() && self.last.is_some() {
                    news.push("the router answers again".to_owned());
                }
                match &self.last {
                    Some(last) => news.extend(events::between(last, &topology)),
                    None => news.push(events::health(&topology)),
                }
                self.last = Some(topology);
                news
            }
            Err(why) => {
                let is_news = self.failure.is_none();
                self.failure = Some(why.clone());
                if is_news { vec![why] } else { Vec::new() }
            }
        }
    }
}

/// Rows and columns of the terminal; some terminals do not know them, and say 0.
fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

/// The time of day in UTC, as in the log lines.
fn clock(now: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(now).to_string();
    text.split_once('T').map_or(text.clone(), |(_, time)| time.to_owned())
}

/// As much of table and events as fits: the end of the table gives way, the newest events do not.
fn screen(table: &str, events: &VecDeque<String>, rows: usize, columns: usize) -> String {
    let events_rows = if events.is_empty() { 0 } else { (events.len() + 1).min(rows / 2) };
    let mut lines: Vec<&str> = table.lines().take(rows.saturating_sub(events_rows + 1)).collect();
    if events_rows > 0 {
        lines.push("");
        lines.extend(events.iter().skip(events.len().saturating_sub(events_rows - 1)).map(String::as_str));
    }
    let cut = |line: &str| line.chars().take(columns).collect::<String>();
    lines.into_iter().map(|line| format!("{}{CLEAR_TO_END_OF_LINE}\n", cut(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;
    use std::time::Duration;

    #[test]
    fn what_does_not_fit_gives_way_to_the_newest_events() {
        let table = "a\nbbbbbb\nc\nd\ne";
        let events = VecDeque::from(["1".to_owned(), "2".to_owned(), "3".to_owned()]);
        let shown = |rows, columns, events: &VecDeque<String>| {
            screen(table, events, rows, columns).replace(CLEAR_TO_END_OF_LINE, "").replace('\n', " ")
        };
        assert_eq!(shown(24, 80, &VecDeque::new()), "a bbbbbb c d e ");
        assert_eq!(shown(24, 3, &events), "a bbb c d e  1 2 3 ");
        assert_eq!(shown(8, 80, &events), "a bbbbbb c  1 2 3 ");
        assert_eq!(shown(4, 80, &events), "a  3 ");
        for rows in 0..4 {
            assert!(screen(table, &events, rows, 80).lines().count() <= rows, "{rows}");
        }
    }

    #[test]
    fn a_router_that_goes_and_comes_is_told_once_each() {
        let mut view = View {
            on_terminal: false,
            with_partitions: false,
            last: None,
            failure: None,
            events: VecDeque::new(),
            drawn: false,
        };
        let gone = || Err("no answer from the router".to_owned());
        assert_eq!(view.take(Ok(samples::topology(None))), ["the cluster is ready"]);
        assert!(view.take(Ok(samples::topology(None))).is_empty());
        assert_eq!(view.take(gone()), ["no answer from the router"]);
        assert!(view.take(gone()).is_empty());
        assert!(view.table().starts_with("no answer from the router\n\ncluster"), "what was seen last stays");
        assert_eq!(view.take(Ok(samples::topology(None))), ["the router answers again"]);
    }

    #[test]
    fn times_are_those_of_the_log() {
        assert_eq!(clock(SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600 + 184)), "12:03:04Z");
    }
}
