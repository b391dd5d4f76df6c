//! Progress of training on stderr, and lines of text.

use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::progress::Bar;
pub(crate) use runtime::progress::{say, warn};

use crate::step::Step;

/// Progress through the images of one epoch.
pub(crate) struct EpochProgress {
    images: u64,
    done: u64,
    /// Number of images in the remaining epochs of the run.
    images_after: u64,
    start: Instant,
    title: String,
    bar: Option<Bar>,
}

impl EpochProgress {
    /// An epoch of `images` images; `images_after` is the number of images in the epochs after it.
    pub(crate) fn new(title: String, images: u64, images_after: u64) -> Self {
        let bar = Some(Bar::new(&title, Some(images)));
        Self { images, done: 0, images_after, start: Instant::now(), title, bar }
    }

    /// Does other work, whose time does not count, without the bar.
    pub(crate) fn aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.bar = None;
        let start = Instant::now();
        let result = work();
        self.start += start.elapsed();
        let bar = self.bar.insert(Bar::new(&self.title, Some(self.images)));
        bar.advance(self.done, |_, _| String::new());
        result
    }

    /// Shows the results of a step on `images` images.
    pub(crate) fn step(&mut self, images: usize, step: &Step) {
        let Step { classification_loss, box_loss, .. } = step;
        self.done += images as u64;
        let speed = self.images_per_second();
        let remaining = (self.images.saturating_sub(self.done) + self.images_after) as f64 / speed;
        let Some(bar) = &self.bar else { return };
        bar.advance(images as u64, |_, _| {
            format!(
                "classification loss {classification_loss:.4}, box loss {box_loss:.4}, {speed:.1} images/s, {} left",
                duration(remaining)
            )
        });
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
    total: u64,
    bar: Bar,
}

impl Count {
    /// Progress through `total` items.
    pub(crate) fn new(title: &str, total: u64) -> Self {
        Self { total, bar: Bar::new(title, Some(total)) }
    }

    /// Counts one more item.
    pub(crate) fn advance(&self) {
        self.bar.advance(1, |done, seconds| {
            format!("{} left", duration(self.total.saturating_sub(done) as f64 * seconds / done as f64))
        });
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
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, text) in [(5.9, "5 s"), (65.0, "1 min 5 s"), (3600.0 * 30.0 + 61.0, "30 h 1 min"), (-1.0, "0 s")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
