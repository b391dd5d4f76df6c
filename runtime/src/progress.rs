//! Messages and progress on stderr, for programs.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Time between two updates of the progress line on a terminal.
const FRAME: Duration = Duration::from_millis(100);

/// Time between two progress lines elsewhere.
const INTERVAL: Duration = Duration::from_secs(10);

/// How much a program prints on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Also progress.
    Normal,
    /// Also details.
    Verbose,
}

/// How much this process prints.
static VERBOSITY: AtomicU8 = AtomicU8::new(Verbosity::Normal as u8);

/// Sets how much this process prints.
pub fn set_verbosity(verbosity: Verbosity) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
}

/// Whether only results, warnings and errors are printed.
pub fn is_quiet() -> bool {
    VERBOSITY.load(Ordering::Relaxed) == Verbosity::Quiet as u8
}

/// Prints a line of progress to stderr, unless quiet.
pub fn say(line: fmt::Arguments) {
    if !is_quiet() {
        write_line(line);
    }
}

/// Whether details are printed. For details that take time to find out.
pub fn is_verbose() -> bool {
    VERBOSITY.load(Ordering::Relaxed) == Verbosity::Verbose as u8
}

/// Prints a line to stderr if verbose.
pub fn detail(line: fmt::Arguments) {
    if is_verbose() {
        write_line(line);
    }
}

/// Prints `warning: ...` to stderr.
pub fn warn(line: fmt::Arguments) {
    write_line(format_args!("warning: {line}"));
}

/// Prints `error: ...` to stderr.
pub fn error(line: fmt::Arguments) {
    write_line(format_args!("error: {line}"));
}

/// Whether a progress line is on the terminal.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);

/// Writes a line to stderr. A closed stderr is not an error.
fn write_line(line: fmt::Arguments) {
    let _ = replace(&mut io::stderr().lock(), format_args!("{line}\n"), false);
}

/// Writes a text in place of the progress line, if there is one. `is_progress`: whether the text is the next one.
fn replace(stderr: &mut impl Write, text: fmt::Arguments, is_progress: bool) -> io::Result<()> {
    if IS_SHOWN.swap(is_progress, Ordering::Relaxed) {
        write!(stderr, "\r\x1b[K")?;
    }
    stderr.write_fmt(text)
}

/// Progress of a run over many images: one line that changes in place on a terminal, a line every ten seconds elsewhere.
pub struct Progress {
    /// Number of images, if known.
    total: Option<usize>,
    done: usize,
    started: Instant,
    shown: Instant,
    /// Whether the line changes in place.
    changing: bool,
}

impl Progress {
    /// `stdout_in_use`: results go to stdout; if that is the same terminal, they show the progress, and no line is drawn.
    pub fn new(total: Option<usize>, stdout_in_use: bool) -> Self {
        let changing = io::stderr().is_terminal() && !(stdout_in_use && io::stdout().is_terminal());
        let now = Instant::now();
        Self { total, done: 0, started: now, shown: now, changing: changing && !is_quiet() }
    }

    /// Counts one more image.
    pub fn advance(&mut self) {
        self.done += 1;
        let interval = if self.changing { FRAME } else { INTERVAL };
        if self.shown.elapsed() < interval || Some(self.done) == self.total {
            return;
        }
        self.shown = Instant::now();
        let line = line(self.done, self.total, self.started.elapsed());
        if self.changing {
            let _ = replace(&mut io::stderr().lock(), format_args!("{line}"), true);
        } else {
            say(format_args!("{line}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let _ = replace(&mut io::stderr().lock(), format_args!(""), false);
    }
}

fn line(done: usize, total: Option<usize>, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64();
    let Some(total) = total else { return format!("{done} images, {rate:.1} images/s") };
    let left = ((total - done) as f64 / rate).round() as u64;
    format!("{done}/{total} images, {rate:.1} images/s, {}:{:02} left", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_replace_the_progress_line() {
        let mut out = Vec::new();
        for (text, is_progress) in
            [("1/9", true), ("2/9", true), ("warning: a\n", false), ("b\n", false), ("3/9", true)]
        {
            replace(&mut out, format_args!("{text}"), is_progress).unwrap();
        }
        IS_SHOWN.store(false, Ordering::Relaxed);
        assert_eq!(String::from_utf8(out).unwrap(), "1/9\r\x1b[K2/9\r\x1b[Kwarning: a\nb\n3/9");
    }

    #[test]
    fn the_line_shows_rate_and_remaining_time() {
        let elapsed = Duration::from_secs(25);
        assert_eq!(line(50, Some(200), elapsed), "50/200 images, 2.0 images/s, 1:15 left");
        assert_eq!(line(50, None, elapsed), "50 images, 2.0 images/s");
    }
}
