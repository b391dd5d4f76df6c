//! Where the pictures come from: names on the command line, or lines of stdin.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use runtime::inputs::{self, Lines};
use runtime::pipeline::{Content, Item};

use super::made::{Names, Targets};
use crate::interrupt::Interrupt;

/// Which pictures.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceArgs {
    /// Pictures, folders, and patterns such as 'photos/*.jpg'.
    ///
    /// Of a folder, the pictures in it count, in the order of their names. Formats: JPEG, PNG, WebP, BMP, GIF (the first frame), TIFF;
    /// which one is told from the content, and EXIF's orientation is followed.
    #[arg(value_name = "PATHS", required_unless_present = "stdin", conflicts_with = "stdin")]
    paths: Vec<PathBuf>,

    /// Look into folders below, too, hidden ones excepted.
    #[arg(long)]
    recursive: bool,

    /// Read names of pictures from stdin, one per line, and answer each when it comes, by default as NDJSON on stdout.
    #[arg(long)]
    pub(super) stdin: bool,
}

/// The pictures that were named.
pub(super) enum Source {
    Files(Vec<PathBuf>),
    Stdin,
}

/// What the pipeline gets.
pub(super) type Named = Item<Targets>;

/// How often someone who waits for stdin looks whether it is over.
const GLANCE: Duration = Duration::from_millis(50);

/// Lines that wait, read and not begun.
const WAITING: usize = 64;

impl Source {
    pub(super) fn open(args: &SourceArgs) -> Result<Self> {
        if args.stdin {
            return Ok(Self::Stdin);
        }
        Ok(Self::Files(inputs::expand(&args.paths, args.recursive)?))
    }

    /// How many there are, if that is known.
    pub(super) fn total(&self) -> Option<usize> {
        match self {
            Self::Files(files) => Some(files.len()),
            Self::Stdin => None,
        }
    }

    /// Those that are known before the work.
    pub(super) fn files(&self) -> &[PathBuf] {
        match self {
            Self::Files(files) => files,
            Self::Stdin => &[],
        }
    }

    /// The pictures, one after the other, each with the names of what is made of it; none after an interrupt.
    pub(super) fn items(self, interrupt: &Interrupt, names: Names) -> Items {
        let waiting = match self {
            Self::Files(files) => Waiting::Files(files.into_iter()),
            Self::Stdin => Waiting::Lines(read_stdin()),
        };
        Items { waiting, names, interrupt: interrupt.clone(), stop: Stop::default() }
    }
}

/// A line of stdin: a name, or how a bad one begins and why it is none.
type Line = Result<PathBuf, (String, String)>;

/// Reads stdin in a thread of its own, which nobody has to wait for.
fn read_stdin() -> Receiver<Line> {
    let (sender, receiver) = bounded(WAITING);
    thread::spawn(move || {
        for line in Lines::new(BufReader::new(io::stdin())) {
            let (line, last) = match line {
                Ok(Ok(path)) => (Ok(path), false),
                Ok(Err(bad)) => (Err((bad.beginning.clone(), bad.to_string())), false),
                Err(error) => (Err(("stdin".to_owned(), format!("stdin cannot be read: {error}"))), true),
            };
            if sender.send(line).is_err() || last {
                break;
            }
        }
    });
    receiver
}

/// Says that no more pictures are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

enum Waiting {
    Files(std::vec::IntoIter<PathBuf>),
    Lines(Receiver<Line>),
}

/// The pictures, one after the other.
pub(super) struct Items {
    waiting: Waiting,
    names: Names,
    interrupt: Interrupt,
    stop: Stop,
}

impl Items {
    /// With what to end it from outside.
    pub(super) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    fn is_over(&self) -> bool {
        self.interrupt.is_raised() || self.stop.0.load(Ordering::SeqCst)
    }

    fn item(&mut self, file: &Path) -> Named {
        let file = file.to_owned();
        match self.names.next(&file) {
            Ok(tag) => Item { file, content: Content::File, tag },
            Err(reason) => Item { file, content: Content::Missing(reason), tag: Targets::default() },
        }
    }
}

impl Iterator for Items {
    type Item = Named;

    fn next(&mut self) -> Option<Named> {
        loop {
            if self.is_over() {
                return None;
            }
            let line = match &mut self.waiting {
                Waiting::Files(files) => Ok(files.next()?),
                Waiting::Lines(lines) => match lines.recv_timeout(GLANCE) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return None,
                },
            };
            return Some(match line {
                Ok(file) => self.item(&file),
                Err((beginning, reason)) => {
                    Item { file: beginning.into(), content: Content::Missing(reason), tag: Targets::default() }
                }
            });
        }
    }
}
