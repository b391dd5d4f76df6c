//! The source of the images: names on the command line, or lines on stdin.

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
use runtime::progress::warn;
use runtime::video::{self, Frame, Frames, Rate, VideoError};

use super::made::{Annotated, Names, Part, Targets};
use crate::interrupt::Interrupt;
use crate::or_stdin;

/// Arguments of the input.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct SourceArgs {
    /// Image files, folders, patterns such as 'photos/*.jpg', and videos; `-` reads an image from stdin.
    ///
    /// Reads JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF, recognized by their content, and applies the EXIF orientation.
    /// The images of a folder are read in the order of their names. Videos are recognized by their extension, such as .mp4,
    /// and need the program ffmpeg; every frame counts as an image.
    #[arg(value_name = "PATHS", required_unless_present = "stdin", conflicts_with = "stdin", help_heading = None::<&str>)]
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

/// The requested images.
pub(super) enum Source {
    Files(Vec<PathBuf>),
    Stdin,
}

/// Options of reading videos.
#[derive(Clone, Copy, Debug)]
pub(super) struct VideoOptions {
    /// Frames per second; `None` for all frames.
    pub(super) rate: Option<Rate>,
    /// Maximum pixels of a frame.
    pub(super) pixels: u64,
}

/// An item of the pipeline.
pub(super) type Named = Item<Targets>;

/// Maximum lines of stdin that are read ahead.
const WAITING: usize = 64;

impl Source {
    pub(super) fn open(args: &SourceArgs) -> Result<Self> {
        if args.stdin {
            return Ok(Self::Stdin);
        }
        let paths: Vec<_> = args.paths.iter().map(|path| or_stdin(path)).collect();
        let files = inputs::expand(&paths, args.recursive)?;
        if files.iter().any(|file| video::is_video(file)) {
            video::check()?;
        }
        Ok(Self::Files(files))
    }

    /// The number of images, if known.
    pub(super) fn total(&self) -> Option<usize> {
        match self {
            Self::Files(files) if !files.iter().any(|file| video::is_video(file)) => Some(files.len()),
            _ => None,
        }
    }

    /// The files that are known before the work starts.
    pub(super) fn files(&self) -> &[PathBuf] {
        match self {
            Self::Files(files) => files,
            Self::Stdin => &[],
        }
    }

    /// The images with the names of their output files. Ends after an interrupt.
    pub(super) fn items(self, videos: VideoOptions, interrupt: &Interrupt, names: Names) -> Items {
        let waiting = match self {
            Self::Files(files) => Waiting::Files(files.into_iter()),
            Self::Stdin => Waiting::Lines(read_stdin()),
        };
        Items { waiting, videos, playing: None, names, interrupt: interrupt.clone(), stop: Stop::default() }
    }
}

/// A line of stdin: a file name, or the prefix of a bad line and what is wrong with it.
type Line = Result<PathBuf, (String, String)>;

/// Reads stdin in a separate thread, which is not joined, since it may block forever.
fn read_stdin() -> Receiver<Line> {
    let (sender, receiver) = bounded(WAITING);
    thread::spawn(move || {
        for line in Lines::new(BufReader::new(io::stdin())) {
            let (line, last) = match line {
                Ok(Ok(path)) => (Ok(path), false),
                Ok(Err(bad)) => (Err((bad.prefix.clone(), bad.to_string())), false),
                Err(error) => (Err(("stdin".to_owned(), format!("cannot read stdin: {error}"))), true),
            };
            if sender.send(line).is_err() || last {
                break;
            }
        }
    });
    receiver
}

/// Signals that no more images are wanted.
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

/// Iterator over the images.
pub(super) struct Items {
    waiting: Waiting,
    videos: VideoOptions,
    playing: Option<Playing>,
    names: Names,
    interrupt: Interrupt,
    stop: Stop,
}

impl Items {
    /// Ends the iterator when raised.
    pub(super) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    fn is_over(&self) -> bool {
        self.interrupt.is_raised() || self.stop.0.load(Ordering::SeqCst)
    }

    /// The image in a file; `None` for a video, whose frames follow.
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

/// An item that has no image.
fn missing(file: PathBuf, reason: String) -> Named {
    Item { file, frame: None, content: Content::Missing(reason), tag: Targets::default() }
}

/// A video that is being read.
struct Playing {
    file: PathBuf,
    frames: Frames,
    /// The next frame, read ahead to know which frame is the last.
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
        if last && let (Ok(_), Some(words)) = (&now, self.frames.warnings()) {
            warn(format_args!("`{}`: ffmpeg: {words}", self.file.display()));
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
                Waiting::Lines(lines) => match lines.recv_timeout(Interrupt::POLL_INTERVAL) {
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
