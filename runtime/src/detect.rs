//! `runtime detect`: pictures in, boxes out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use image::RgbImage;
use models::spec::Class;
use runtime::output::{Format, Output, Report};
use runtime::pipeline::{Content, Finished, Item, Ordered, PipelineOptions, pipeline};
use runtime::{Detection, draw, inputs, picture};

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::{SOME_FAILED, annotated, cannot_write};
use runtime::progress::{Progress, say};

/// Find objects in pictures.
///
/// Without --json, --csv and --draw, detections are printed for people to read. Pictures that cannot be read are named on
/// stderr and in the JSON file, the others go on, and the exit code is 3.
#[derive(Debug, clap::Args)]
pub(crate) struct DetectArgs {
    /// Pictures, folders, and patterns such as 'photos/*.jpg'.
    ///
    /// Of a folder, the pictures in it count, not those in folders below. Formats: JPEG, PNG, WebP, BMP, GIF, TIFF.
    #[arg(value_name = "PATHS", required = true)]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    rules: RuleArgs,

    /// Write a JSON list with an object per picture; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write CSV with a line per detection; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Draw the detections over the pictures, into this folder.
    ///
    /// An annotated picture has its picture's name; where several have the same, the later ones are numbered: a.jpg,
    /// a-2.jpg. JPEG stays JPEG, all else becomes PNG.
    #[arg(long, value_name = "DIR")]
    draw: Option<PathBuf>,
}

/// Detects, and says on stderr how it went.
pub(crate) fn run(args: DetectArgs) -> Result<ExitCode> {
    let files = inputs::expand(&args.paths)?;
    let outputs = open_outputs(&args)?;
    let drawn = args.draw.as_deref().map(|folder| annotated::prepare(folder, &files)).transpose()?;
    let detector = args.model.open(&args.rules)?;
    let classes = &detector.spec().classes;
    let progress = Progress::new(files.len(), outputs.iter().any(|(path, _)| path == Path::new("-")));
    let writer = Writer { outputs, drawn, classes, progress, tally: Tally::default() };

    let started = Instant::now();
    let options = PipelineOptions { keep: writer.drawn.is_some(), ..PipelineOptions::default() };
    let items = files.iter().map(|file| Item { file: file.clone(), content: Content::File, tag: () });
    let (inference, written) =
        pipeline(&detector, &options, items, |finished| finished, |finished| writer.run(finished));
    let tally = written?;
    say(format_args!(
        "pictures: {}, failed: {}, detections: {}; {:.3} s, {:.3} s of it in ONNX Runtime on {}",
        tally.pictures,
        tally.failed,
        tally.detections,
        started.elapsed().as_secs_f64(),
        inference.as_secs_f64(),
        detector.engine().provider(),
    ));
    Ok(if tally.failed > 0 { ExitCode::from(SOME_FAILED) } else { ExitCode::SUCCESS })
}

/// Opens what results go to, so that what cannot be written is found before the work.
fn open_outputs(args: &DetectArgs) -> Result<Vec<(PathBuf, Output)>> {
    let stdout = Some(PathBuf::from("-"));
    if args.json == stdout && args.csv == stdout {
        clap::Error::raw(ErrorKind::ArgumentConflict, "--json and --csv cannot both go to stdout\n").exit();
    }
    let mut asked = Vec::new();
    asked.extend(args.json.clone().map(|path| (path, Format::Json)));
    asked.extend(args.csv.clone().map(|path| (path, Format::Csv)));
    if asked.is_empty() && args.draw.is_none() {
        asked.extend(stdout.map(|path| (path, Format::Text)));
    }
    let opened = asked.into_iter().map(|(path, format)| {
        let output = Output::open(&path, format).with_context(|| cannot_write(&path))?;
        Ok((path, output))
    });
    opened.collect()
}

/// What a run amounts to.
#[derive(Default)]
struct Tally {
    pictures: usize,
    failed: usize,
    detections: usize,
}

/// The third stage.
struct Writer<'a> {
    outputs: Vec<(PathBuf, Output)>,
    /// Annotated file of every picture.
    drawn: Option<Vec<PathBuf>>,
    classes: &'a [Class],
    progress: Progress,
    tally: Tally,
}

impl Writer<'_> {
    fn run(mut self, finished: Ordered<Finished<()>>) -> Result<Tally> {
        for Finished { report, picture, .. } in finished {
            for (path, output) in &mut self.outputs {
                output.write(&report, self.classes).with_context(|| cannot_write(path))?;
            }
            self.count(&report);
            if let (Some(drawn), Some(picture), Ok(found)) = (&self.drawn, picture, &report.outcome) {
                let path = &drawn[self.tally.pictures - 1];
                annotate(picture, &found.detections, self.classes, path)?;
            }
            self.progress.advance();
            // What nobody reads and nothing keeps is not worth going on for.
            if self.drawn.is_none() && self.outputs.iter().all(|(_, output)| output.is_closed()) {
                break;
            }
        }
        for (path, output) in self.outputs.drain(..) {
            output.finish().with_context(|| cannot_write(&path))?;
        }
        Ok(self.tally)
    }

    fn count(&mut self, report: &Report) {
        self.tally.pictures += 1;
        match &report.outcome {
            Ok(found) => self.tally.detections += found.detections.len(),
            Err(reason) => {
                self.tally.failed += 1;
                self.progress.say(format_args!("error: `{}`: {reason}", report.file.display()));
            }
        }
    }
}

fn annotate(mut picture: RgbImage, detections: &[Detection], classes: &[Class], path: &Path) -> Result<()> {
    draw::draw(&mut picture, detections, classes);
    picture::write(path, &picture).with_context(|| cannot_write(path))
}
