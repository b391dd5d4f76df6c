//! Progress on stderr: a bar if stderr is a terminal, plain lines otherwise. Other lines are printed above the bar.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use runtime::progress::{self, is_quiet};

use crate::step::Step;

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The bar on the terminal, if there is one.
static LIVE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Prints a line of progress to stderr, unless quiet.
pub(crate) fn say(line: fmt::Arguments) {
    above_bar(|| progress::say(line));
}

/// Prints `warning: ...` to stderr.
pub(crate) fn warn(line: fmt::Arguments) {
    above_bar(|| progress::warn(line));
}

/// Clears the bar while `print` prints, so that it does not print over it.
fn above_bar(print: impl FnOnce()) {
    match &*LIVE.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// A bar that is on the terminal until it is dropped.
struct Bar(ProgressBar);

impl Bar {
    /// None if stderr is not a terminal.
    fn new(template: &str, title: &str, total: u64) -> Option<Self> {
        (io::stderr().is_terminal() && !is_quiet()).then(|| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            Self::show(ProgressBar::new(total).with_style(style).with_prefix(title.to_owned()))
        })
    }

    fn show(bar: ProgressBar) -> Self {
        *LIVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        *LIVE.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.finish_and_clear();
    }
}

/// Progress through the images of one epoch.
pub(crate) struct EpochProgress {
    title: String,
    images: u64,
    done: u64,
    /// Number of images in the remaining epochs of the run.
    images_after: u64,
    start: Instant,
    last_line: Instant,
    bar: Option<Bar>,
}

impl EpochProgress {
    /// An epoch of `images` images; `images_after` is the number of images in the epochs after it.
    pub(crate) fn new(title: String, images: u64, images_after: u64) -> Self {
        let bar = Bar::new("{prefix} {bar:24} {pos}/{len} {wide_msg}", &title, images);
        let now = Instant::now();
        Self { title, images, done: 0, images_after, start: now, last_line: now, bar }
    }

    /// Shows the results of a step on `images` images.
    pub(crate) fn step(&mut self, images: usize, step: &Step) {
        let Step { classification_loss, box_loss, .. } = step;
        self.done += images as u64;
        let remaining = (self.images.saturating_sub(self.done) + self.images_after) as f64 / self.images_per_second();
        let message = format!(
            "classification loss {classification_loss:.4}, box loss {box_loss:.4}, {:.1} images/s, {} left",
            self.images_per_second(),
            duration(remaining)
        );
        match &self.bar {
            Some(Bar(bar)) => {
                bar.set_position(self.done);
                bar.set_message(message);
            }
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                say(format_args!("{} {}/{} {message}", self.title, self.done, self.images));
            }
            None => {}
        }
    }

    /// Mean over the epoch so far.
    pub(crate) fn images_per_second(&self) -> f64 {
        self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Progress through a known number of items, from any thread.
pub(crate) struct Count {
    title: String,
    total: u64,
    done: AtomicU64,
    last_line: Mutex<Instant>,
    bar: Option<Bar>,
}

impl Count {
    /// Progress through `total` items.
    pub(crate) fn new(title: &str, total: u64) -> Self {
        let (done, last_line) = (AtomicU64::new(0), Mutex::new(Instant::now()));
        let bar = Bar::new("{prefix} {bar:24} {pos}/{len}, {eta} left", title, total);
        Self { title: title.to_owned(), total, done, last_line, bar }
    }

    /// Counts one more item.
    pub(crate) fn advance(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(Bar(bar)) = &self.bar {
            bar.set_position(done);
        } else if let Ok(mut last_line) = self.last_line.try_lock()
            && last_line.elapsed() >= LINE_INTERVAL
        {
            *last_line = Instant::now();
            say(format_args!("{} {done}/{}", self.title, self.total));
        }
    }
}

/// Prints a line to stdout.
///
/// # Errors
/// When stdout cannot be written. A closed pipe is not an error.
pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    runtime::output::print(line).context("cannot write to stdout")
}

/// A count with its noun: "1 image", "2 images".
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A duration in its two largest units of hours, minutes and seconds.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 1e9) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
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
        let style = ProgressStyle::with_template("{pos} of {len}").unwrap();
        let bar = ProgressBar::with_draw_target(Some(9), ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        let bar = Bar::show(bar.with_style(style));
        bar.0.set_position(4);
        bar.0.tick();
        above_bar(|| terminal.record("<line>").unwrap());
        drop(bar);
        above_bar(|| terminal.record("<last>").unwrap());
        let text = terminal.0.lock().unwrap().clone();
        let (before, after) = text.split_once("<line>").unwrap();
        assert!(before.contains("4 of 9") && before.trim_end().ends_with("<cleared>"), "{text}");
        assert!(after.contains("4 of 9") && after.trim_end().ends_with("<cleared><last>"), "{text}");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, text) in [(5.9, "5 s"), (65.0, "1 min 5 s"), (3600.0 * 30.0 + 61.0, "30 h 1 min"), (-1.0, "0 s")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
