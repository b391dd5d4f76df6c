//! `runtime detect`: detects objects in images and videos.

mod existing;
mod ids;
mod image_outputs;
mod shard;
mod source;
mod writer;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use crossbeam_channel::bounded;
use models::spec::Class;
use runtime::image_file::{self, DecodeError, Limits};
use runtime::interrupt::{EXIT_CODE, Interrupt};
use runtime::output::{Failure, Found, Report};
use runtime::progress::say;
use runtime::{Detector, PixelBudget, detect_file, map_ordered};

use crate::detector_args::{DetectorArgs, MAX_BATCH};
use crate::value_parsers::up_to;
use image_outputs::{ImageDone, ImageOutputArgs, ImageOutputs};
use source::{Content, Item, Source, SourceArgs, VideoOptions};
use writer::{ListArgs, Summary, Writer};

/// Exit code of a run that finished although some images failed.
const SOME_FAILED: u8 = 3;

/// Detect objects in images and videos.
///
/// Prints a table, or writes the formats chosen under Output; results are in the order of the images. An image that cannot
/// be read is reported on stderr and in the JSON, the others are still processed, and the exit code is 3. Ctrl-C finishes
/// the images in progress and writes no result files.
#[derive(Debug, clap::Args)]
pub(crate) struct DetectArgs {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    detector: DetectorArgs,

    #[command(flatten)]
    lists: ListArgs,

    #[command(flatten)]
    image_outputs: ImageOutputArgs,

    /// Report only these classes, by name or id, separated by commas.
    #[arg(long, value_name = "NAMES", help_heading = "Thresholds")]
    classes: Option<Vec<String>>,

    /// Exit with 0 although images failed; the results name them.
    #[arg(long, help_heading = "Output")]
    ignore_failures: bool,

    /// Maximum images per run of the network; images of one input size share a run [default: the model's if fixed, else 1].
    #[arg(long, value_name = "N", value_parser = up_to(MAX_BATCH), help_heading = "Performance")]
    batch_size: Option<NonZeroUsize>,

    /// Reject images with more pixels than this; together, the images in memory have no more either. With --tile, larger TIFF
    /// files are read part by part, unless they are to be drawn or cropped.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.pixels, help_heading = "Input")]
    max_pixels: u64,

    /// Reject files with more bytes than this, except for TIFF files that are read part by part.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.bytes, help_heading = "Input")]
    max_bytes: u64,
}

/// Detects objects, and prints a summary on stderr.
pub(crate) fn run(args: &DetectArgs) -> Result<ExitCode> {
    let source = Source::open(&args.source)?;
    let ids = args.lists.image_ids()?;
    let skip_existing = args.lists.skip_existing;
    let image_outputs = ImageOutputs::open(&args.image_outputs, ids.clone(), source.files(), skip_existing)?;
    let existing = args.lists.existing(image_outputs.is_empty())?;
    let writer = Writer::open(&args.lists, ids, args.source.stdin, image_outputs.is_empty())?;
    let mut options = args.detector.options();
    (options.max_batch, options.rules.classes) = (args.batch_size, args.classes.clone());
    let detector = args.detector.open(options)?;
    image_outputs.write_classes(&detector.spec().classes)?;
    let interrupt = Interrupt::finish_first("finishing the images in progress; result files are not written");

    let started = Instant::now();
    let total = source.total();
    let classes = &detector.spec().classes;
    let videos = VideoOptions { rate: args.source.fps, max_pixels: args.max_pixels };
    let (stop, stopped) = bounded(0);
    let items = source.items(videos, image_outputs.into_names(), existing, interrupt.clone(), stopped);
    let limits = Limits { pixels: args.max_pixels, bytes: args.max_bytes };
    let budget = PixelBudget::new(limits.pixels);
    let workers = args.detector.workers(&detector);
    let process = |item| process(item, &detector, &limits, &budget, classes);
    let Summary { tally, interrupted } = map_ordered(items, workers, process, |images| {
        // Dropped at the end, which stops the source: it may be waiting for a line on stdin.
        let _stop = stop;
        writer.run(images, total, classes, &interrupt)
    })?;
    let skipped = if skip_existing { format!("skipped: {}, ", tally.skipped) } else { String::new() };
    say(format_args!(
        "images: {}, {skipped}failed: {}, detections: {}; {:.3} s, {:.3} s of it in ONNX Runtime on {}",
        tally.images,
        tally.failed,
        tally.detections,
        started.elapsed().as_secs_f64(),
        detector.statistics().network.as_secs_f64(),
        detector.engine().provider(),
    ));
    Ok(match (interrupted, tally.failed) {
        (true, _) => ExitCode::from(EXIT_CODE),
        (false, failed) if failed > 0 && !args.ignore_failures => ExitCode::from(SOME_FAILED),
        (false, _) => ExitCode::SUCCESS,
    })
}

/// Reads an image, detects, and writes the image's own outputs; `None` if they are there already.
fn process(
    item: Item,
    detector: &Detector,
    limits: &Limits,
    budget: &PixelBudget,
    classes: &[Class],
) -> Result<Option<ImageDone>> {
    let Item { file, frame, content, targets } = item;
    let (outcome, pixels) = match content {
        Content::File if targets.need_pixels() => match image_file::read_reserved(&file, limits, budget) {
            Ok(pixels) => (Found::detect(detector, &pixels.0).map_err(Failure::from), Some(pixels)),
            Err(error) => (Err(without_parts(error.reason, detector)), None),
        },
        Content::File => (detect_file(detector, &file, limits, budget), None),
        Content::Frame(pixels) => (Found::detect(detector, &pixels.0).map_err(Failure::from), Some(pixels)),
        Content::Missing(reason) => (Err(Failure::Missing(reason)), None),
        Content::Existing => return Ok(None),
    };
    image_outputs::write(Report { file, frame, outcome }, pixels, targets, classes).map(Some)
}

/// Why an image has no result that must be read as a whole, since it is drawn or cropped.
fn without_parts(reason: DecodeError, detector: &Detector) -> Failure {
    match reason {
        DecodeError::Large { .. } | DecodeError::Long { .. } if detector.views().tiling.is_some() => {
            Failure::Missing(format!("{reason}; without --draw and --crops, --tile reads TIFF files of any size"))
        }
        reason => reason.into(),
    }
}
