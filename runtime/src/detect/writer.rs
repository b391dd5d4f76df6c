//! Writes result lists and annotated videos, and reports progress and errors on stderr.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use models::is_device;
use models::spec::Class;
use runtime::interrupt::Interrupt;
use runtime::output::{Format, ImageIds, Output, Report};
use runtime::progress::{Progress, error};
use runtime::video::Encoder;

use super::existing::Existing;
use super::image_outputs::{AnnotatedVideo, ImageDone, Pixels};
use crate::paths::cannot_write;

/// Arguments of the result files.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ListArgs {
    /// Write the results as a JSON list with one object per image; `-` writes to stdout, here and below.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the same objects as NDJSON: one per line, as soon as each is ready.
    #[arg(long, value_name = "FILE")]
    ndjson: Option<PathBuf>,

    /// Write the detections as CSV, one per line.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write the detections as COCO results for `runtime score` and pycocotools. The image id is the number in the file's
    /// name, unless --image-ids is given.
    #[arg(long, value_name = "FILE")]
    coco: Option<PathBuf>,

    /// COCO file that maps file names to image ids, for --coco.
    #[arg(long, value_name = "FILE", requires = "coco")]
    image_ids: Option<PathBuf>,

    /// Skip images whose outputs are there, and add lines to the file of --ndjson instead of replacing it.
    ///
    /// With --ndjson, an image is skipped if its line is in the file, else if its files of --draw and --yolo exist. An unfinished
    /// last line is removed. The other outputs would lack the skipped images and are refused, and so are videos.
    #[arg(long, conflicts_with_all = ["json", "csv", "coco", "crops"])]
    pub(super) skip_existing: bool,
}

/// Counts of a run.
#[derive(Default)]
pub(super) struct Tally {
    /// Processed images, including failed ones.
    pub(super) images: usize,
    /// Images whose outputs were there.
    pub(super) skipped: usize,
    pub(super) failed: usize,
    pub(super) detections: usize,
}

/// The outcome of a run.
pub(super) struct Summary {
    pub(super) tally: Tally,
    pub(super) interrupted: bool,
}

/// Writes result lists.
pub(super) struct Writer {
    outputs: Vec<(PathBuf, Output)>,
    /// Whether lists are the only outputs, so that the program stops when their readers have closed them all.
    only_lists: bool,
}

impl ListArgs {
    /// The image ids, if COCO results are written.
    pub(super) fn image_ids(&self) -> Result<Option<ImageIds>> {
        match (&self.coco, &self.image_ids) {
            (None, _) => Ok(None),
            (Some(_), None) => Ok(Some(ImageIds::default())),
            (Some(_), Some(file)) => Ok(Some(ImageIds::read(file)?)),
        }
    }

    /// The images to skip; `only_lists`: there are no outputs but lists.
    pub(super) fn existing(&self, only_lists: bool) -> Result<Option<Existing>> {
        match &self.ndjson {
            _ if !self.skip_existing => Ok(None),
            Some(path) if path == Path::new("-") || is_device(path) => {
                let message = "--skip-existing needs a file for --ndjson, which it can read and add to\n";
                clap::Error::raw(ErrorKind::ArgumentConflict, message).exit()
            }
            Some(path) => Existing::in_lines(path).map(Some),
            None if only_lists => {
                let message = "--skip-existing needs --ndjson, --draw or --yolo\n";
                clap::Error::raw(ErrorKind::MissingRequiredArgument, message).exit()
            }
            None => Ok(Some(Existing::Files)),
        }
    }
}

impl Writer {
    /// Opens the lists, so that errors are found before the work starts. If no output is requested, a list goes to
    /// stdout.
    pub(super) fn open(args: &ListArgs, ids: Option<ImageIds>, stdin: bool, only_lists: bool) -> Result<Self> {
        let asked = [
            (&args.json, Format::Json),
            (&args.ndjson, Format::Ndjson),
            (&args.csv, Format::Csv),
            (&args.coco, Format::Coco(ids.unwrap_or_default())),
        ];
        let mut asked: Vec<_> = asked.into_iter().filter_map(|(path, format)| Some((path.clone()?, format))).collect();
        if asked.is_empty() && only_lists {
            asked.push(("-".into(), if stdin { Format::Ndjson } else { Format::Text }));
        }
        if asked.iter().filter(|(path, _)| path == Path::new("-")).count() > 1 {
            clap::Error::raw(
                ErrorKind::ArgumentConflict,
                "only one of --json, --ndjson, --csv and --coco can write to stdout\n",
            )
            .exit();
        }
        let outputs = asked.into_iter().map(|(path, format)| {
            let output = match args.skip_existing {
                true => Output::append(&path, format),
                false => Output::open(&path, format),
            };
            Ok((path.clone(), output.with_context(|| cannot_write(&path))?))
        });
        Ok(Self { outputs: outputs.collect::<Result<_>>()?, only_lists })
    }

    /// Writes all reports. After an interrupt, no list file is written and existing files are kept.
    pub(super) fn run(
        mut self,
        images: impl Iterator<Item = Result<Option<ImageDone>>>,
        total: Option<usize>,
        classes: &[Class],
        interrupt: &Interrupt,
    ) -> Result<Summary> {
        let mut tally = Tally::default();
        let mut progress = Progress::new(total, self.outputs.iter().any(|(path, _)| path == Path::new("-")));
        let mut video = VideoWriter::default();
        for done in images {
            let Some(ImageDone { report, drawn }) = done? else {
                tally.skipped += 1;
                progress.advance();
                continue;
            };
            let _span = tracing::debug_span!("write").entered();
            video.write(drawn)?;
            for (path, output) in &mut self.outputs {
                output.write(&report, classes).with_context(|| cannot_write(path))?;
            }
            tally.count(&report);
            progress.advance();
            // Stops when all outputs are closed by their readers.
            if self.only_lists && self.outputs.iter().all(|(_, output)| output.is_closed()) {
                break;
            }
        }
        // An interrupt after the last image changes nothing.
        let interrupted = interrupt.is_raised() && Some(tally.images + tally.skipped) != total;
        if !interrupted {
            video.write(None)?;
            for (path, output) in self.outputs.drain(..) {
                output.finish().with_context(|| cannot_write(&path))?;
            }
        }
        Ok(Summary { tally, interrupted })
    }
}

/// Writes annotated videos, one after the other.
#[derive(Default)]
struct VideoWriter {
    current: Option<(Arc<AnnotatedVideo>, Encoder)>,
}

impl VideoWriter {
    /// Appends a frame to its video. What belongs to another video, or to none, completes the current one.
    fn write(&mut self, drawn: Option<(Arc<AnnotatedVideo>, Option<Pixels>)>) -> Result<()> {
        let is_over = |(video, _): &mut (Arc<AnnotatedVideo>, Encoder)| {
            drawn.as_ref().is_none_or(|(next, _)| !Arc::ptr_eq(video, next))
        };
        if let Some((_, encoder)) = self.current.take_if(is_over) {
            encoder.finish()?;
        }
        let Some((video, Some((frame, _reserved)))) = drawn else { return Ok(()) };
        let (_, encoder) = match &mut self.current {
            Some(current) => current,
            None => {
                let encoder = Encoder::create(&video.path, video.rate)?;
                self.current.insert((video, encoder))
            }
        };
        Ok(encoder.write(&frame)?)
    }
}

impl Tally {
    fn count(&mut self, report: &Report) {
        self.images += 1;
        match &report.outcome {
            Ok(found) => self.detections += found.detections.len(),
            Err(reason) => {
                self.failed += 1;
                error(format_args!("`{}`: {reason}", report.name()));
            }
        }
    }
}
