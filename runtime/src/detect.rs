//! `runtime detect`: detects objects in images and videos.

mod ids;
mod made;
mod source;
mod writer;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use runtime::image_file::Limits;
use runtime::pipeline::{PipelineOptions, pipeline};
use runtime::progress::say;

use crate::SOME_FAILED;
use crate::detector_args::DetectorArgs;
use crate::interrupt::Interrupt;
use made::{Made, MadeArgs, make};
use source::{Source, SourceArgs, VideoOptions};
use writer::{Ending, ListArgs, Writer};

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
    made: MadeArgs,

    /// Reject images with more pixels than this.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.pixels, help_heading = "Input")]
    max_pixels: u64,

    /// Reject files with more bytes than this.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.bytes, help_heading = "Input")]
    max_bytes: u64,
}

/// Detects objects, and prints a summary on stderr.
pub(crate) fn run(args: &DetectArgs) -> Result<ExitCode> {
    let source = Source::open(&args.source)?;
    let ids = args.lists.image_ids()?;
    let mut made = Made::open(&args.made, ids.clone(), &source)?;
    let writer = Writer::open(&args.lists, ids, args.source.stdin, made.is_nothing())?;
    let detector = args.detector.open()?;
    let interrupt = Interrupt::watch("finishing the images in progress; result files are not written")?;
    let limits = Limits { pixels: args.max_pixels, bytes: args.max_bytes };
    let options = PipelineOptions { keep: made.needs_images(), ..args.detector.pipeline(&detector, limits)? };

    let started = Instant::now();
    let total = source.total();
    let classes = &detector.spec().classes;
    let videos = VideoOptions { rate: args.source.fps, pixels: args.max_pixels };
    let items = source.items(videos, &interrupt, made.names());
    let stop = items.stop();
    let (inference, written) = pipeline(
        &detector,
        &options,
        items,
        |finished| make(finished, classes),
        |finished| {
            let written = writer.run(finished, total, classes, &interrupt);
            // Stops the source, which may be waiting for a line on stdin.
            stop.raise();
            written
        },
    );
    let Ending { tally, interrupted } = written?;
    say(format_args!(
        "images: {}, failed: {}, detections: {}; {:.3} s, {:.3} s of it in ONNX Runtime on {}",
        tally.images,
        tally.failed,
        tally.detections,
        started.elapsed().as_secs_f64(),
        inference.as_secs_f64(),
        detector.engine().provider(),
    ));
    Ok(match (interrupted, tally.failed) {
        (true, _) => Interrupt::exit_code(),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(SOME_FAILED),
    })
}
