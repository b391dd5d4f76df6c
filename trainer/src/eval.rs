//! `trainer eval`: COCO metrics of a checkpoint or an ONNX file on a data set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use models::dataset::{Dataset, OnProblem};
use models::evaluation::ScoredBox;
use models::{Checkpoint, Matcher};
use runtime::data::{DataArgs, class_indices, detect_dataset};
use runtime::evaluation_report::{Details, EvaluationReport};
use runtime::output::ReportWriter;
use runtime::{Detector, DetectorOptions};

use crate::augmentation::AugmentationConfig;
use crate::device::Device;
use crate::loader::{Loader, Recipe};
use crate::predictor::{Predictor, validation_batches};
use crate::progress::{Count, say};
use crate::targets::Normalizer;

/// Evaluate a checkpoint or an ONNX file on a data set: COCO average precision and recall.
///
/// Checkpoints run with libtorch, ONNX files with ONNX Runtime.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Checkpoint written by `trainer fit`.
    #[arg(
        long,
        help_heading = "Model",
        value_name = "FILE",
        default_value = "runs/latest/best.safetensors",
        conflicts_with = "model"
    )]
    checkpoint: PathBuf,
    /// ONNX file written by `exporter`, instead of a checkpoint.
    #[arg(long, short, help_heading = "Model", value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    details: Details,
    /// Device to run on: cpu, cuda or cuda:N.
    #[arg(long, help_heading = "Performance", default_value = "cpu")]
    device: Device,
    /// Maximum batch size for a checkpoint; only images of one input size share a batch.
    #[arg(long, help_heading = "Performance", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    /// Threads that decode and resize images for a checkpoint.
    #[arg(long, help_heading = "Performance", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Also write all numbers and the precision-recall curves as JSON; `-` writes them to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// Runs the network on the data set and prints the metrics.
///
/// # Errors
/// When the network, the data or the device is invalid, when an image cannot be read, and when the metrics cannot be
/// written.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let source = args.data.source();
    // Invalid boxes count too, as in pycocotools.
    let (truth, report) = runtime::data::read(&source, OnProblem::Keep)?;
    for line in report.lines() {
        say(format_args!("note: `{}` has {line}", source.annotations.display()));
    }
    let scored = match &args.model {
        Some(path) => evaluate_onnx(path, args.device, &truth)?,
        None => evaluate_checkpoint(args, &truth)?,
    };
    let report = EvaluationReport::new(&truth, &scored, &args.details);
    Ok(writer.publish(&report, &report.to_string())?)
}

fn evaluate_onnx(path: &Path, device: Device, truth: &Dataset) -> anyhow::Result<Vec<ScoredBox>> {
    let mut options = DetectorOptions::default();
    options.engine.provider = device.provider();
    let detector = Detector::open(path, options)?;
    let count = Count::new("evaluation", truth.images().len() as u64);
    Ok(detect_dataset(&detector, truth, detector.suggested_threads(), || count.advance())?)
}

fn evaluate_checkpoint(args: &EvalArgs, truth: &Dataset) -> anyhow::Result<Vec<ScoredBox>> {
    let checkpoint = Checkpoint::open(&args.checkpoint).context(
        "cannot open the checkpoint; create one with `trainer fit`, or pass another file with --checkpoint or --model",
    )?;
    let device = args.device.open()?;
    let predictor = Predictor::from_checkpoint(&checkpoint, device)?;
    let class_indices = class_indices(&predictor.spec, truth)?;
    let recipe = Recipe {
        dataset: truth.clone(),
        spec: predictor.spec.clone(),
        matcher: Matcher::default(),
        normalizer: Normalizer::default(),
        augmentation: AugmentationConfig::none(),
        cache: Arc::default(),
    };
    let loader = Loader::new(recipe, args.workers.into())?.for_device(device);
    let count = Count::new("evaluation", truth.images().len() as u64);
    let mut scored = Vec::new();
    for batch in validation_batches(&loader, args.batch_size.into()) {
        let batch = batch.with_context(|| format!("cannot evaluate on `{}`", args.data.data.display()))?;
        let detections = predictor.detect(&batch).into_iter();
        let known = |scored: ScoredBox| Some(ScoredBox { class_index: class_indices[scored.class_index]?, ..scored });
        scored.extend(detections.filter_map(known));
        batch.indices.iter().for_each(|_| count.advance());
    }
    Ok(scored)
}
