//! What a person sees of a run: a bar where stderr is a terminal, plain lines otherwise.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::learner::Step;

/// Time between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// Progress through the images of one epoch.
pub(crate) struct EpochProgress {
    title: String,
    images: u64,
    done: u64,
    /// Steps of the whole run that come after this epoch, in images.
    later: u64,
    start: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
}

impl EpochProgress {
    /// Progress through `images`, after which the run has `later` images to go.
    pub(crate) fn new(title: String, images: u64, later: u64) -> Self {
        let bar = bar("{prefix} {bar:24} {pos}/{len} {wide_msg}", &title, images);
        let now = Instant::now();
        Self { title, images, done: 0, later, start: now, spoke: now, bar }
    }

    /// Notes a step over `images`.
    pub(crate) fn step(&mut self, images: usize, step: &Step) {
        let Step { classification_loss, box_loss, .. } = step;
        self.done += images as u64;
        let remaining = (self.images.saturating_sub(self.done) + self.later) as f64 / self.images_per_second();
        let message = format!(
            "classification loss {classification_loss:.4}, box loss {box_loss:.4}, {:.1} images/s, {} to go",
            self.images_per_second(),
            duration(remaining)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done);
                bar.set_message(message);
            }
            None if self.spoke.elapsed() >= EVERY => {
                self.spoke = Instant::now();
                say(&format!("{} {}/{} {message}", self.title, self.done, self.images));
            }
            None => {}
        }
    }

    /// Mean over the epoch so far.
    pub(crate) fn images_per_second(&self) -> f64 {
        self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Progress through a number of like things, from any thread.
pub(crate) struct Count {
    title: String,
    all: u64,
    done: AtomicU64,
    spoke: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

impl Count {
    /// Progress through `all` things.
    pub(crate) fn new(title: &str, all: u64) -> Self {
        let (done, spoke) = (AtomicU64::new(0), Mutex::new(Instant::now()));
        let bar = bar("{prefix} {bar:24} {pos}/{len}, {eta} to go", title, all);
        Self { title: title.to_owned(), all, done, spoke, bar }
    }

    /// Notes that one more is done.
    pub(crate) fn advance(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if let Ok(mut spoke) = self.spoke.try_lock()
            && spoke.elapsed() >= EVERY
        {
            *spoke = Instant::now();
            say(&format!("{} {done}/{}", self.title, self.all));
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar where stderr is a terminal.
fn bar(template: &str, title: &str, all: u64) -> Option<ProgressBar> {
    io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(all).with_style(style).with_prefix(title.to_owned())
    })
}

impl Drop for EpochProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on stderr. A closed stderr is no reason to stop a training.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A line on stdout.
///
/// # Errors
/// When stdout can't be written to, save that nobody reads it anymore.
pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    runtime::output::print(line).context("can't write to stdout")
}

/// Hours, minutes and seconds, the larger two of them.
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
    use super::*;

    #[test]
    fn durations_are_said_in_two_units() {
        for (seconds, said) in [(5.9, "5 s"), (65.0, "1 min 5 s"), (3600.0 * 30.0 + 61.0, "30 h 1 min"), (-1.0, "0 s")]
        {
            assert_eq!(duration(seconds), said);
        }
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
