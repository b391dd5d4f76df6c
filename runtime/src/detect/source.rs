//! The source of the images: names on the command line, or lines on stdin.

use std::io::{self, BufReader};
use std::iter::Enumerate;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use crossbeam_channel::{Receiver, bounded, select};
use runtime::PixelBudget;
use runtime::inputs::{self, Lines};
use runtime::interrupt::Interrupt;
use runtime::progress::warn;
use runtime::video::{self, Frame, Frames, Rate};

use super::existing::Existing;
use super::image_outputs::{AnnotatedVideo, Pixels, TargetNames, Targets, VideoNames};
use super::shard::Shard;
use crate::paths::or_stdin;

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

    /// Process only a part of the images: image K of the list, or line K of stdin, if K modulo N is I (both from 0).
    ///
    /// `auto` reads SLURM_ARRAY_TASK_ID, MIN, STEP and COUNT, `auto/N` the index of a Kubernetes job with N completions.
    #[arg(long, value_name = "I/N|auto|auto/N")]
    shard: Option<Shard>,

    /// Read image file names from stdin, one per line; results are written as soon as they are ready, by default as NDJSON
    /// to stdout.
    #[arg(long)]
    pub(super) stdin: bool,

    /// Frames per second to read from a video, a number or a fraction such as 30000/1001 [default: all frames].
    #[arg(long, value_name = "RATE")]
    pub(super) fps: Option<Rate>,
}

/// The requested images.
pub(super) struct Source {
    /// The files; `None` for the lines of stdin.
    files: Option<Vec<PathBuf>>,
    /// The part of them to process, or all.
    shard: Option<Shard>,
}

/// Options of reading videos.
#[derive(Clone, Copy, Debug)]
pub(super) struct VideoOptions {
    /// Frames per second; `None` for all frames.
    pub(super) rate: Option<Rate>,
    /// Maximum pixels of a frame, and of all frames that are in memory.
    pub(super) max_pixels: u64,
}

/// An image to process.
pub(super) struct Item {
    /// The file, as the user named it.
    pub(super) file: PathBuf,
    /// The frame, if the file is a video.
    pub(super) frame: Option<Frame>,
    pub(super) content: Content,
    pub(super) targets: Targets,
}

/// The source of an image's pixels.
pub(super) enum Content {
    /// The file.
    File,
    /// A decoded frame.
    Frame(Pixels),
    /// There is no image, for this reason.
    Missing(String),
    /// The outputs are there already.
    Existing,
}

/// Maximum lines of stdin that are read ahead.
const WAITING: usize = 64;

impl Source {
    pub(super) fn open(args: &SourceArgs) -> Result<Self> {
        let shard = args.shard;
        if args.stdin {
            return Ok(Self { files: None, shard });
        }
        let paths: Vec<_> = args.paths.iter().map(|path| or_stdin(path)).collect();
        let source = Self { files: Some(inputs::expand(&paths, args.recursive)?), shard };
        if source.own_files().any(video::is_video) {
            video::check()?;
        }
        Ok(source)
    }

    /// The number of images, if known.
    pub(super) fn total(&self) -> Option<usize> {
        let is_known = self.files.is_some() && !self.own_files().any(video::is_video);
        is_known.then(|| self.own_files().count())
    }

    /// The files that are known before the work starts, and whether they are in the shard.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let files = self.files.iter().flatten().enumerate();
        files.map(|(position, file)| (file.as_path(), Shard::contains_in(self.shard, position)))
    }

    fn own_files(&self) -> impl Iterator<Item = &Path> {
        self.files().filter_map(|(file, is_own)| is_own.then_some(file))
    }

    /// The images with the names of their output files. Ends after an interrupt, and when `stop` is disconnected.
    pub(super) fn items(
        self,
        videos: VideoOptions,
        names: TargetNames,
        existing: Option<Existing>,
        interrupt: Interrupt,
        stop: Receiver<()>,
    ) -> Items {
        let shard = self.shard;
        let waiting = match self.files {
            Some(files) => Waiting::Files { files: files.into_iter().enumerate(), shard },
            None => Waiting::Lines(read_stdin(shard)),
        };
        // Frames have a budget of their own: they keep their pixels until it is their turn to be written, and images of the
        // same budget, whose turn comes first, would wait for them for ever.
        let budget = PixelBudget::new(videos.max_pixels);
        Items { waiting, videos, budget, playing: None, names, existing, interrupt, stop }
    }
}

/// A line of stdin: a file name, or the prefix of a bad line and what is wrong with it.
type Line = Result<PathBuf, (String, String)>;

/// Reads stdin in a separate thread, which is not joined, since it may block forever. Also tells whether a line is in the
/// shard.
fn read_stdin(shard: Option<Shard>) -> Receiver<(Line, bool)> {
    let (sender, receiver) = bounded(WAITING);
    thread::spawn(move || {
        for (position, line) in Lines::new(BufReader::new(io::stdin())).enumerate() {
            let (line, last) = match line {
                Ok(Ok(path)) => (Ok(path), false),
                Ok(Err(bad)) => (Err((bad.prefix.clone(), bad.to_string())), false),
                Err(error) => (Err(("stdin".to_owned(), format!("cannot read stdin: {error}"))), true),
            };
            if sender.send((line, last || Shard::contains_in(shard, position))).is_err() || last {
                break;
            }
        }
    });
    receiver
}

enum Waiting {
    Files { files: Enumerate<std::vec::IntoIter<PathBuf>>, shard: Option<Shard> },
    Lines(Receiver<(Line, bool)>),
}

/// Iterator over the images.
pub(super) struct Items {
    waiting: Waiting,
    videos: VideoOptions,
    budget: PixelBudget,
    playing: Option<Playing>,
    names: TargetNames,
    /// The images to skip.
    existing: Option<Existing>,
    interrupt: Interrupt,
    /// Disconnected when no more images are wanted.
    stop: Receiver<()>,
}

impl Items {
    /// The next file name or bad line, and whether it is in the shard; `None` at the end.
    fn line(&mut self) -> Option<(Line, bool)> {
        match &mut self.waiting {
            Waiting::Files { files, shard } => {
                files.next().map(|(position, file)| (Ok(file), Shard::contains_in(*shard, position)))
            }
            // A line may never come.
            Waiting::Lines(lines) => select! {
                recv(lines) -> line => line.ok(),
                recv(self.interrupt.channel()) -> _ => None,
                recv(self.stop) -> _ => None,
            },
        }
    }

    /// The image in a file; `None` for a video, whose frames follow.
    fn item(&mut self, file: PathBuf) -> Option<Item> {
        if !video::is_video(&file) {
            let targets = match self.names.next(&file) {
                Ok(targets) => targets,
                Err(reason) => return Some(missing(file, reason)),
            };
            let exists = self.existing.as_mut().is_some_and(|existing| existing.contains(&file, &targets));
            let content = if exists { Content::Existing } else { Content::File };
            return Some(Item { file, frame: None, content, targets });
        }
        let names = self.names.video(&file);
        if self.existing.is_some() {
            let reason = "it is a video, which --skip-existing cannot continue; process it without this option";
            return Some(missing(file, reason.to_owned()));
        }
        match names.and_then(|names| Playing::open(&file, self.videos, names)) {
            Ok(playing) => {
                self.playing = Some(playing);
                None
            }
            Err(reason) => Some(missing(file, reason)),
        }
    }
}

/// An item that has no image.
fn missing(file: PathBuf, reason: String) -> Item {
    Item { file, frame: None, content: Content::Missing(reason), targets: Targets::default() }
}

/// A video that is being read.
struct Playing {
    file: PathBuf,
    frames: Frames,
    names: VideoNames,
    annotated: Option<Arc<AnnotatedVideo>>,
    has_failed: bool,
}

impl Playing {
    fn open(file: &Path, options: VideoOptions, mut names: VideoNames) -> Result<Self, String> {
        let frames = Frames::open(file, options.rate, options.max_pixels).map_err(|error| error.to_string())?;
        let (drawn, rate) = (names.drawn.take(), frames.rate());
        let annotated = drawn.map(|path| Arc::new(AnnotatedVideo { path, rate }));
        Ok(Self { file: file.to_owned(), frames, names, annotated, has_failed: false })
    }

    /// The next frame, or why the video ends early.
    fn next(&mut self, names: &mut TargetNames, budget: &PixelBudget) -> Option<Item> {
        let file = self.file.clone();
        let Some(frame) = self.frames.next() else {
            if let Some(words) = self.frames.warnings().filter(|_| !self.has_failed) {
                warn(format_args!("`{}`: ffmpeg: {words}", file.display()));
            }
            return None;
        };
        let (frame, image) = match frame {
            Ok(frame) => frame,
            Err(error) => {
                self.has_failed = true;
                return Some(missing(file, error.to_string()));
            }
        };
        let (content, targets) = match names.frame(&self.names, frame, self.annotated.clone()) {
            Ok(targets) => {
                let reservation = budget.reserve(u64::from(image.width()) * u64::from(image.height()));
                (Content::Frame((image, reservation)), targets)
            }
            Err(reason) => (Content::Missing(reason), Targets::default()),
        };
        Some(Item { file, frame: Some(frame), content, targets })
    }
}

impl Iterator for Items {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if self.interrupt.is_raised() {
                return None;
            }
            if let Some(playing) = &mut self.playing {
                match playing.next(&mut self.names, &self.budget) {
                    None => self.playing = None,
                    frame => return frame,
                }
            }
            let item = match self.line()? {
                (Ok(file), true) => self.item(file),
                (Err((prefix, reason)), true) => Some(missing(prefix.into(), reason)),
                (line, false) => {
                    line.iter().for_each(|file| self.names.skip(file));
                    None
                }
            };
            if item.is_some() {
                return item;
            }
        }
    }
}
