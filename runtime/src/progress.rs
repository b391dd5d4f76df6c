//! Progress on stderr: one line that keeps changing on a terminal, a line now and then elsewhere.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two states of the changing line.
const FRAME: Duration = Duration::from_millis(100);

/// Between two lines that stay.
const INTERVAL: Duration = Duration::from_secs(10);

/// Writes a line to stderr. That nobody reads it is no reason to stop.
pub fn say(line: fmt::Arguments) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// How far a run over many images has come.
pub struct Progress {
    /// How many there are, if that is known.
    total: Option<usize>,
    done: usize,
    started: Instant,
    shown: Instant,
    /// Whether the line changes in place.
    changing: bool,
}

impl Progress {
    /// `stdout_in_use` says that results go to stdout; on a terminal they are progress enough, and share its lines.
    pub fn new(total: Option<usize>, stdout_in_use: bool) -> Self {
        let changing = io::stderr().is_terminal() && !(stdout_in_use && io::stdout().is_terminal());
        let now = Instant::now();
        Self { total, done: 0, started: now, shown: now, changing }
    }

    /// One more image is done.
    pub fn advance(&mut self) {
        self.done += 1;
        let interval = if self.changing { FRAME } else { INTERVAL };
        if self.shown.elapsed() < interval || Some(self.done) == self.total {
            return;
        }
        self.shown = Instant::now();
        let line = line(self.done, self.total, self.started.elapsed());
        if self.changing {
            let _ = write!(io::stderr().lock(), "\r\x1b[K{line}");
        } else {
            say(format_args!("{line}"));
        }
    }

    /// Writes a line that stays.
    pub fn say(&self, line: fmt::Arguments) {
        self.clear();
        say(line);
    }

    /// Takes the changing line away.
    fn clear(&self) {
        if self.changing {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(done: usize, total: Option<usize>, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64();
    let Some(total) = total else { return format!("{done} images, {rate:.1} per second") };
    let left = ((total - done) as f64 / rate).round() as u64;
    format!("{done} of {total} images, {rate:.1} per second, {}:{:02} left", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let elapsed = Duration::from_secs(25);
        assert_eq!(line(50, Some(200), elapsed), "50 of 200 images, 2.0 per second, 1:15 left");
        assert_eq!(line(50, None, elapsed), "50 images, 2.0 per second");
    }
}
