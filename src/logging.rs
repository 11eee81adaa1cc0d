//! Log lines to stderr, each beginning with the name of its process, so that the mixed output of a local cluster
//! can be told apart.

use std::{fmt, io, io::IsTerminal};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
    },
    registry::LookupSpan,
};

/// Starts logging; a filter that makes no sense is told and `info` taken instead.
pub(crate) fn start(filter: &str, process: &str) {
    let mut parsed = EnvFilter::try_new(filter).unwrap_or_else(|e| {
        eprintln!("{process}: the log filter {filter:?} makes no sense ({e}); logging at `info`");
        EnvFilter::new("info")
    });
    // It tells each of its steps at `info`; what a person wants to know of them, the controller tells.
    if !filter.contains("openraft") {
        parsed = parsed.add_directive("openraft=off".parse().expect("a directive"));
    }
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .event_format(Named { process: process.to_owned(), line: Format::default() })
        .init();
}

struct Named {
    process: String,
    line: Format,
}

impl<S, N> FormatEvent<S, N> for Named
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "{:<15} ", self.process)?;
        self.line.format_event(context, writer, event)
    }
}
