//! Messages and progress on stderr, for programs. Messages are events of the crate `tracing`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::Level;

/// Target of the events that are messages.
pub(crate) const MESSAGES: &str = "messages";

/// Whether this process has been silenced.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Prints only warnings and errors from now on: of several processes that work together, one shows the progress.
pub fn silence() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Prints a line of progress, unless quiet.
pub fn say(line: fmt::Arguments) {
    if !IS_SILENT.load(Ordering::Relaxed) {
        tracing::info!(target: MESSAGES, "{line}");
    }
}

/// Prints a line if verbose.
pub fn detail(line: fmt::Arguments) {
    if !IS_SILENT.load(Ordering::Relaxed) {
        tracing::debug!(target: MESSAGES, "{line}");
    }
}

/// Prints `warning: ...`.
pub fn warn(line: fmt::Arguments) {
    tracing::warn!(target: MESSAGES, "{line}");
}

/// Prints `error: ...`.
pub fn error(line: fmt::Arguments) {
    tracing::error!(target: MESSAGES, "{line}");
}

/// Whether only results, warnings and errors are printed.
pub fn is_quiet() -> bool {
    IS_SILENT.load(Ordering::Relaxed) || !tracing::enabled!(target: MESSAGES, Level::INFO)
}

/// Whether details are printed. For details that take time to find out.
pub fn is_verbose() -> bool {
    !IS_SILENT.load(Ordering::Relaxed) && tracing::enabled!(target: MESSAGES, Level::DEBUG)
}

/// Whether a terminal gets bars.
static HAS_BARS: AtomicBool = AtomicBool::new(true);

/// Shows progress as lines on terminals too, from now on.
pub(crate) fn use_lines() {
    HAS_BARS.store(false, Ordering::Relaxed);
}

/// The bar on the terminal, if there is one.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clears the bar while `print` prints, so that neither prints over the other.
pub(crate) fn above_bar<T>(print: impl FnOnce() -> T) -> T {
    match &*shown() {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Progress through items, from any thread: a bar if stderr is a terminal, a line every ten seconds otherwise.
pub struct Bar {
    title: String,
    total: Option<u64>,
    done: AtomicU64,
    started: Instant,
    last_line: Mutex<Instant>,
    /// On the terminal until it is dropped.
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Progress through `total` items, if their number is known. The title precedes it.
    pub fn new(title: &str, total: Option<u64>) -> Self {
        let has_bar = HAS_BARS.load(Ordering::Relaxed) && io::stderr().is_terminal() && !is_quiet();
        let bar = has_bar.then(|| {
            let template =
                if total.is_some() { "{prefix}{bar:24} {pos}/{len} {wide_msg}" } else { "{prefix}{pos} {wide_msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            bar.with_style(style).with_prefix(prefix(title))
        });
        Self::show(title, total, bar)
    }

    /// As [`Bar::new`], but always lines.
    fn lines(title: &str, total: Option<u64>) -> Self {
        Self::show(title, total, None)
    }

    fn show(title: &str, total: Option<u64>, bar: Option<ProgressBar>) -> Self {
        if bar.is_some() {
            *shown() = bar.clone();
        }
        let now = Instant::now();
        Self { title: title.to_owned(), total, done: AtomicU64::new(0), started: now, last_line: Mutex::new(now), bar }
    }

    /// Counts more items. `message` gets the number of items so far, and the seconds since the start.
    pub fn advance(&self, items: u64, message: impl FnOnce(u64, f64) -> String) {
        const INTERVAL: Duration = Duration::from_secs(10);
        let done = self.done.fetch_add(items, Ordering::Relaxed) + items;
        let message = || message(done, self.started.elapsed().as_secs_f64());
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.set_position(done);
        } else if Some(done) != self.total
            && let Ok(mut last_line) = self.last_line.try_lock()
            && last_line.elapsed() >= INTERVAL
        {
            *last_line = Instant::now();
            let total = self.total.map_or_else(String::new, |total| format!("/{total}"));
            say(format_args!("{}{done}{total} {}", prefix(&self.title), message()));
        }
    }
}

fn prefix(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("{title} ") }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            *shown() = None;
            bar.finish_and_clear();
        }
    }
}

/// Progress of a run over many images.
pub struct Progress {
    total: Option<u64>,
    bar: Bar,
}

impl Progress {
    /// `stdout_in_use`: results go to stdout; if that is the same terminal, they show the progress, and no bar is drawn.
    pub fn new(total: Option<usize>, stdout_in_use: bool) -> Self {
        let total = total.map(|total| total as u64);
        let bar = if stdout_in_use && io::stdout().is_terminal() { Bar::lines("", total) } else { Bar::new("", total) };
        Self { total, bar }
    }

    /// Counts one more image.
    pub fn advance(&mut self) {
        self.bar.advance(1, |done, seconds| speed(done, self.total, seconds));
    }
}

fn speed(done: u64, total: Option<u64>, seconds: f64) -> String {
    let rate = done as f64 / seconds;
    let Some(total) = total else { return format!("images, {rate:.1} images/s") };
    let left = ((total - done) as f64 / rate).round() as u64;
    format!("images, {rate:.1} images/s, {}:{:02} left", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    /// A terminal that records what happens to it.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl Terminal {
        fn record(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            80
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.record(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.record(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            self.record("<cleared>")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_printed_above_the_bar() {
        let terminal = Terminal::default();
        let style = ProgressStyle::with_template("{pos} of {len} {msg}").unwrap();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = Bar::show("", Some(9), Some(ProgressBar::with_draw_target(Some(9), target).with_style(style)));
        bar.advance(4, |done, _| format!("({done})"));
        above_bar(|| terminal.record("<line>").unwrap());
        drop(bar);
        above_bar(|| terminal.record("<last>").unwrap());
        let text = terminal.0.lock().unwrap().clone();
        let (before, after) = text.split_once("<line>").unwrap();
        assert!(before.contains("4 of 9 (4)") && before.trim_end().ends_with("<cleared>"), "{text}");
        assert!(after.contains("4 of 9 (4)") && after.trim_end().ends_with("<cleared><last>"), "{text}");
    }

    #[test]
    fn the_line_shows_rate_and_remaining_time() {
        assert_eq!(speed(50, Some(200), 25.0), "images, 2.0 images/s, 1:15 left");
        assert_eq!(speed(50, None, 25.0), "images, 2.0 images/s");
    }
}
