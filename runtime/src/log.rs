//! The log of a program on stderr: its messages, and the events and spans of the crate `tracing`.

use std::fmt;
use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FmtSpan, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::library;
use crate::progress::{MESSAGES, above_bar};

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Prints the log of this process from now on. Verbosity -1 prints warnings and errors, 0 also progress, 1 also details and
/// ONNX Runtime's warnings, 2 also the time of each stage, 3 everything.
pub(crate) fn print(verbosity: i8, format: LogFormat) {
    let [messages, programs, onnxruntime, others] = match verbosity {
        ..=-1 => [LevelFilter::WARN, LevelFilter::WARN, LevelFilter::OFF, LevelFilter::WARN],
        0 => [LevelFilter::INFO, LevelFilter::INFO, LevelFilter::OFF, LevelFilter::WARN],
        1 => [LevelFilter::DEBUG, LevelFilter::INFO, LevelFilter::WARN, LevelFilter::WARN],
        2 => [LevelFilter::DEBUG, LevelFilter::DEBUG, LevelFilter::DEBUG, LevelFilter::INFO],
        3.. => [LevelFilter::TRACE; 4],
    };
    let filter = Targets::new()
        .with_default(others)
        .with_targets(["exporter", "runtime", "trainer"].map(|program| (program, programs)))
        .with_target(library::LOG, onnxruntime)
        .with_target(MESSAGES, messages);
    let lines = tracing_subscriber::fmt::layer::<Registry>().with_writer(|| Stderr).with_span_events(FmtSpan::CLOSE);
    let lines = match format {
        LogFormat::Text => lines.event_format(Text).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Fails if the process has another subscriber, which gets the events then.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(lines.with_filter(filter)));
}

/// Stderr, above the progress bar. A closed stderr is not an error.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = above_bar(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Messages as they are; of other events also where they come from.
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        match *metadata.level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        if metadata.target() != MESSAGES {
            write!(writer, "{}: ", metadata.target())?;
            for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
                write!(writer, "{}: ", span.name())?;
            }
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
