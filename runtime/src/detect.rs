//! `runtime detect`: images in, boxes out.

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

/// Find objects in images.
///
/// Results come in the order of the images. Without any of the options that say where they go, they are printed for people, or with
/// --stdin as NDJSON. Images that cannot be read are named on stderr and in JSON, the others go on, and the exit code is 3.
/// Ctrl-C ends after the images under way; what was printed stands, files of results are not written.
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

    /// Refuse images with more pixels.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.pixels)]
    max_pixels: u64,

    /// Refuse files with more bytes.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT.bytes)]
    max_bytes: u64,
}

/// Detects, and says on stderr how it went.
pub(crate) fn run(args: &DetectArgs) -> Result<ExitCode> {
    let source = Source::open(&args.source)?;
    let ids = args.lists.image_ids()?;
    let mut made = Made::open(&args.made, ids.clone(), &source)?;
    let writer = Writer::open(&args.lists, ids, args.source.stdin, made.is_nothing())?;
    let detector = args.detector.open()?;
    let interrupt = Interrupt::watch("images under way are finished, files of results are not written")?;
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
            // The source may be waiting for a line of stdin.
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
