//! Where the images come from: names on the command line, or lines of stdin.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use image::RgbImage;
use runtime::inputs::{self, Lines};
use runtime::pipeline::{Content, Item};
use runtime::progress::say;
use runtime::video::{self, Frame, Frames, Rate, VideoError};

use super::made::{Annotated, Names, Part, Targets};
use crate::interrupt::Interrupt;

/// Which images.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct SourceArgs {
    /// Image files, folders, patterns such as 'photos/*.jpg', and videos.
    ///
    /// Reads JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF, recognized by their content, and applies the EXIF orientation.
    /// The images of a folder are read in the order of their names. Videos are recognized by their extension, such as .mp4,
    /// and need the program ffmpeg; every frame counts as an image.
    #[arg(value_name = "PATHS", required_unless_present = "stdin", conflicts_with = "stdin")]
    paths: Vec<PathBuf>,

    /// Search folders recursively; hidden folders are skipped.
    #[arg(long, short)]
    recursive: bool,

    /// Read image file names from stdin, one per line; results are written as soon as they are ready, by default as NDJSON
    /// to stdout.
    #[arg(long)]
    pub(super) stdin: bool,

    /// Frames per second to read from a video, a number or a fraction such as 30000/1001 [default: all frames].
    #[arg(long, value_name = "RATE")]
    pub(super) fps: Option<Rate>,
}

/// The images that were named.
pub(super) enum Source {
    Files(Vec<PathBuf>),
    Stdin,
}

/// How videos are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct VideoOptions {
    /// Frames per second; all that there are if absent.
    pub(super) rate: Option<Rate>,
    /// Most pixels of a frame.
    pub(super) pixels: u64,
}

/// What the pipeline gets.
pub(super) type Named = Item<Targets>;

/// Lines that wait, read and not begun.
const WAITING: usize = 64;

impl Source {
    pub(super) fn open(args: &SourceArgs) -> Result<Self> {
        if args.stdin {
            return Ok(Self::Stdin);
        }
        let files = inputs::expand(&args.paths, args.recursive)?;
        if files.iter().any(|file| video::is_video(file)) {
            video::check()?;
        }
        Ok(Self::Files(files))
    }

    /// How many there are, if that is known.
    pub(super) fn total(&self) -> Option<usize> {
        match self {
            Self::Files(files) if !files.iter().any(|file| video::is_video(file)) => Some(files.len()),
            _ => None,
        }
    }

    /// Those that are known before the work.
    pub(super) fn files(&self) -> &[PathBuf] {
        match self {
            Self::Files(files) => files,
            Self::Stdin => &[],
        }
    }

    /// The images, one after the other, each with the names of what is made of it; none after an interrupt.
    pub(super) fn items(self, videos: VideoOptions, interrupt: &Interrupt, names: Names) -> Items {
        let waiting = match self {
            Self::Files(files) => Waiting::Files(files.into_iter()),
            Self::Stdin => Waiting::Lines(read_stdin()),
        };
        Items { waiting, videos, playing: None, names, interrupt: interrupt.clone(), stop: Stop::default() }
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

/// Says that no more images are wanted.
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

/// The images, one after the other.
pub(super) struct Items {
    waiting: Waiting,
    videos: VideoOptions,
    playing: Option<Playing>,
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

    /// The image in a file; none of a video, which then plays.
    fn item(&mut self, file: PathBuf) -> Option<Named> {
        if !video::is_video(&file) {
            return Some(match self.names.next(&file) {
                Ok(tag) => Item { file, frame: None, content: Content::File, tag },
                Err(reason) => missing(file, reason),
            });
        }
        match Playing::open(&file, self.videos, &mut self.names) {
            Ok(playing) => {
                self.playing = Some(playing);
                None
            }
            Err(reason) => Some(missing(file, reason)),
        }
    }
}

/// What stands in for an image that there is none of.
fn missing(file: PathBuf, reason: String) -> Named {
    Item { file, frame: None, content: Content::Missing(reason), tag: Targets::default() }
}

/// A video whose frames are read.
struct Playing {
    file: PathBuf,
    frames: Frames,
    /// Read ahead, so that the last is known when it comes.
    ahead: Option<Result<(Frame, RgbImage), VideoError>>,
    annotated: Option<Arc<Annotated>>,
}

impl Playing {
    fn open(file: &Path, options: VideoOptions, names: &mut Names) -> Result<Self, String> {
        let mut frames = Frames::open(file, options.rate, options.pixels).map_err(|error| error.to_string())?;
        let annotated = names.video(file, frames.rate())?;
        let ahead = frames.next();
        Ok(Self { file: file.to_owned(), frames, ahead, annotated })
    }

    /// The next frame, or why the video ends early.
    fn next(&mut self, names: &mut Names) -> Option<Named> {
        let now = self.ahead.take()?;
        self.ahead = self.frames.next();
        let last = self.ahead.is_none();
        let part = self.annotated.clone().map(|video| Part { video, last });
        if last && let (Ok(_), Some(words)) = (&now, self.frames.complaints()) {
            say(format_args!("warning: `{}`: ffmpeg: {words}", self.file.display()));
        }
        let file = self.file.clone();
        Some(match now {
            Ok((frame, image)) => {
                let tag = names.frame(&file, frame, part);
                Item { file, frame: Some(frame), content: Content::Image(image), tag }
            }
            Err(error) => Item { tag: Targets::end(part), ..missing(file, error.to_string()) },
        })
    }
}

impl Iterator for Items {
    type Item = Named;

    fn next(&mut self) -> Option<Named> {
        loop {
            if self.is_over() {
                return None;
            }
            if let Some(playing) = &mut self.playing {
                match playing.next(&mut self.names) {
                    None => self.playing = None,
                    frame => return frame,
                }
            }
            let line = match &mut self.waiting {
                Waiting::Files(files) => Ok(files.next()?),
                Waiting::Lines(lines) => match lines.recv_timeout(Interrupt::GLANCE) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return None,
                },
            };
            let item = match line {
                Ok(file) => self.item(file),
                Err((beginning, reason)) => Some(missing(beginning.into(), reason)),
            };
            if item.is_some() {
                return item;
            }
        }
    }
}
