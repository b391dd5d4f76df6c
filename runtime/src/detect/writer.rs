//! Lists of what was found, and how it goes on stderr.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use image::RgbImage;
use models::spec::Class;
use runtime::output::{Format, ImageIds, Output, Report};
use runtime::pipeline::Ordered;
use runtime::progress::Progress;
use runtime::video::Encoder;

use super::made::{Done, Part};
use crate::cannot_write;
use crate::interrupt::Interrupt;

/// Which lists.
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
}

/// What a run amounts to.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) images: usize,
    pub(super) failed: usize,
    pub(super) detections: usize,
}

/// How a run ended.
pub(super) struct Ending {
    pub(super) tally: Tally,
    pub(super) interrupted: bool,
}

/// Writes lists.
pub(super) struct Writer {
    outputs: Vec<(PathBuf, Output)>,
    /// Whether lists are all that there is, so that without readers there is nothing to do.
    only_lists: bool,
}

impl ListArgs {
    /// The ids of images, if a list needs them.
    pub(super) fn image_ids(&self) -> Result<Option<ImageIds>> {
        match (&self.coco, &self.image_ids) {
            (None, _) => Ok(None),
            (Some(_), None) => Ok(Some(ImageIds::default())),
            (Some(_), Some(file)) => Ok(Some(ImageIds::read(file)?)),
        }
    }
}

impl Writer {
    /// Opens the lists, so that what cannot be written is found before the work. Where none are asked for and nothing else is
    /// made, there is one on stdout.
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
            clap::Error::raw(ErrorKind::ArgumentConflict, "only one list can go to stdout\n").exit();
        }
        let outputs = asked.into_iter().map(|(path, format)| {
            let output = Output::open(&path, format).with_context(|| cannot_write(&path))?;
            Ok((path, output))
        });
        Ok(Self { outputs: outputs.collect::<Result<_>>()?, only_lists })
    }

    /// Writes all reports. Interrupted, it leaves files as they were.
    pub(super) fn run(
        mut self,
        images: Ordered<Result<Done>>,
        total: Option<usize>,
        classes: &[Class],
        interrupt: &Interrupt,
    ) -> Result<Ending> {
        let mut tally = Tally::default();
        let mut progress = Progress::new(total, self.outputs.iter().any(|(path, _)| path == Path::new("-")));
        let mut screen = Screen::default();
        for done in images {
            let Done { report, drawn } = done?;
            screen.show(drawn)?;
            for (path, output) in &mut self.outputs {
                output.write(&report, classes).with_context(|| cannot_write(path))?;
            }
            tally.count(&report, &progress);
            progress.advance();
            // What nobody reads and nothing keeps is not worth going on for.
            if self.only_lists && self.outputs.iter().all(|(_, output)| output.is_closed()) {
                break;
            }
        }
        // The last image may have been done before the interrupt was noticed.
        let interrupted = interrupt.is_raised() && Some(tally.images) != total;
        for (path, output) in self.outputs.drain(..).filter(|_| !interrupted) {
            output.finish().with_context(|| cannot_write(&path))?;
        }
        Ok(Ending { tally, interrupted })
    }
}

/// Where annotated videos are written, one after the other.
#[derive(Default)]
struct Screen {
    showing: Option<Encoder>,
}

impl Screen {
    /// Appends what was drawn. A video whose first frame it is begins, one whose last it is ends.
    fn show(&mut self, drawn: Option<(Part, Option<RgbImage>)>) -> Result<()> {
        let Some((Part { video, last }, frame)) = drawn else { return Ok(()) };
        if let Some(frame) = frame {
            if self.showing.is_none() {
                self.showing = Some(Encoder::create(&video.path, video.rate)?);
            }
            self.showing.as_mut().map_or(Ok(()), |encoder| encoder.write(&frame))?;
        }
        match self.showing.take_if(|_| last) {
            Some(encoder) => Ok(encoder.finish()?),
            None => Ok(()),
        }
    }
}

impl Tally {
    fn count(&mut self, report: &Report, progress: &Progress) {
        self.images += 1;
        match &report.outcome {
            Ok(found) => self.detections += found.detections.len(),
            Err(reason) => {
                self.failed += 1;
                progress.say(format_args!("error: `{}`: {reason}", report.name()));
            }
        }
    }
}
