//! The program `exporter`.

mod memory;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use exporter::{
    Accuracy, ExportError, ExportOptions, Exported, FileOptions, FormDifferences, FormOptions, InputSize, Loss, Opset,
    Precision, PrecisionOptions, RangeRule, Sensitivity, Summary, describe, export, grouped, images,
};
use models::dataset::Source;
use models::{AtomicFile, Checkpoint, CheckpointError};
use runtime::EngineOptions;
use runtime::output::print;

/// Export a checkpoint to ONNX.
///
/// Batch norm is folded into the convolutions. Batch size, height and width stay dynamic unless they are fixed below. The
/// file carries the spec, so `runtime` needs nothing else. Every export is verified before it is written: ONNX Runtime must
/// reproduce the logits and offsets that libtorch computed for the checkpoint, up to rounding. float16 and int8 files are
/// compared with float32 on images.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// ONNX file to write; an existing one is replaced.
    #[arg(long, short, value_name = "FILE", default_value = "retinanet.onnx", help_heading = "Output")]
    out: PathBuf,

    /// Checkpoint to export, written by `trainer`.
    #[arg(long, value_name = "FILE", default_value = "runs/latest/best.safetensors", help_heading = "Input")]
    checkpoint: PathBuf,

    /// Also print the layers with output shapes, parameters and GFLOPs.
    #[arg(long, help_heading = "Output")]
    summary: bool,

    /// Only describe this ONNX file: what is in it, and how to use it without `runtime`.
    #[arg(long, value_name = "FILE", exclusive = true)]
    describe: Option<PathBuf>,

    #[command(flatten)]
    form: FormArgs,

    #[command(flatten)]
    file: FileArgs,

    #[command(flatten)]
    precision: PrecisionArgs,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then beside the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

/// Which sizes are free, and how much is handed over.
#[derive(clap::Args)]
#[command(next_help_heading = "Model inputs and outputs")]
struct FormArgs {
    /// Fix the height and width of the input, multiples of 32, for engines without dynamic shapes; `runtime` then shrinks
    /// and pads images to it [default: dynamic].
    #[arg(long, value_name = "HxW")]
    input_size: Option<InputSize>,

    /// Fix the batch size, for engines without dynamic shapes [default: dynamic].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,

    /// Output only the N highest-scoring candidates of each feature level above the model's score threshold, instead of all
    /// scores; saves most of the copying from a GPU [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
}

impl FormArgs {
    fn options(&self) -> FormOptions {
        let Self { input_size, batch_size, top_k } = *self;
        FormOptions { input_size, batch: batch_size.map(usize::from), top_k: top_k.map(|top_k| top_k as usize) }
    }
}

/// What the file is like.
#[derive(clap::Args)]
#[command(next_help_heading = "ONNX")]
struct FileArgs {
    /// ONNX opset, from 13 to 21.
    #[arg(long, value_name = "VERSION", default_value_t)]
    opset: Opset,

    /// Name of the graph [default: the network's name].
    #[arg(long)]
    name: Option<String>,

    /// Doc string of the model [default: describes the network].
    #[arg(long, value_name = "TEXT")]
    doc: Option<String>,

    /// Store the weights in a file beside it, named after their hash: `retinanet-1a2b3c4d.bin`.
    #[arg(long)]
    external_data: bool,
}

impl FileArgs {
    /// `out` is the file's name.
    fn options(&self, out: &Path) -> FileOptions {
        let stem = || out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        FileOptions {
            opset: self.opset,
            name: self.name.clone(),
            doc: self.doc.clone(),
            external_data: self.external_data.then(stem),
        }
    }
}

/// The precision of the file.
#[derive(clap::Args)]
#[command(next_help_heading = "Precision")]
struct PrecisionArgs {
    /// Precision of the network; inputs and outputs stay float32.
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,

    /// Calibration images, required for int8: a folder of images, or a data set.
    #[arg(long, value_name = "DATA", required_if_eq("precision", "int8"))]
    calibrate: Option<PathBuf>,

    /// Number of calibration images, taken evenly from those given.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    calibration_images: u32,

    /// How int8 chooses the range of each tensor: `minmax`, `percentile:P` (P % cut at each end) or `entropy`.
    #[arg(long, value_name = "METHOD", default_value_t = RangeRule::DEFAULT)]
    ranges: RangeRule,

    /// Layers or blocks to keep in float32, such as `layer4`; int8 always keeps conv1 and the two output layers.
    #[arg(long, value_name = "LAYER,..", value_delimiter = ',')]
    keep_float: Vec<String>,

    /// Also measure and list how much each layer loses in int8.
    #[arg(long, requires = "calibrate")]
    sensitivity: bool,

    /// Also evaluate the file, and the float32 one, on this data set (COCO AP).
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,

    /// Folder that the file names of both data sets are relative to [default: as in `runtime eval`].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,

    /// Maximum loss of AP against float32; beyond it no file is written and the exit code is 3.
    #[arg(long, value_name = "AP", requires = "eval", allow_negative_numbers = true, value_parser = difference)]
    max_ap_drop: Option<f64>,
}

impl PrecisionArgs {
    fn options(&self, form: FormOptions, file: FileOptions) -> anyhow::Result<ExportOptions> {
        let images_folder = self.images.as_deref();
        let calibration = match &self.calibrate {
            Some(data) => images(data, images_folder, self.calibration_images as usize)?,
            None => Vec::new(),
        };
        let accuracy = self.eval.as_ref().map(|data| {
            let source = Source { images: self.images.clone(), ..Source::new(data) };
            Accuracy::new(&source).with_context(|| format!("cannot measure the AP on `{}`", data.display()))
        });
        Ok(ExportOptions {
            precision: PrecisionOptions {
                precision: self.precision,
                calibration,
                ranges: self.ranges,
                keep_float: self.keep_float.iter().map(String::as_str).collect(),
                sensitivity: self.sensitivity,
            },
            file,
            form,
            accuracy: accuracy.transpose()?,
            max_ap_drop: self.max_ap_drop,
        })
    }
}

fn difference(text: &str) -> Result<f64, String> {
    let is_difference = |value: &f64| (-1.0..=1.0).contains(value);
    text.parse().ok().filter(is_difference).ok_or_else(|| "expected a difference of two APs, from -1 to 1".to_owned())
}

/// Exit code when the AP is smaller than it may be.
const LOST_TOO_MUCH: u8 = 3;

/// What could not be done when printing fails.
const STDOUT: &str = "cannot write to stdout";

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    memory::return_large_blocks();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(ExportError::Drop { .. }) => ExitCode::from(LOST_TOO_MUCH),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = &args.describe {
        let text = describe(path).with_context(|| format!("cannot describe `{}`", path.display()))?;
        return print(text.trim_end()).context(STDOUT);
    }
    let start = Instant::now();
    // First of all, so that a folder that can't be written costs no one a wait.
    let file = AtomicFile::create(&args.out)
        .with_context(|| format!("cannot write `{}`; make its folder, or give another --out", args.out.display()))?;
    let options = args.precision.options(args.form.options(), args.file.options(&args.out))?;
    let checkpoint = open(&args.checkpoint)?;
    let summary = Summary::new(&options.form.spec(&checkpoint.spec)?)?;
    if args.summary {
        print(&summary.to_string()).context(STDOUT)?;
    }
    let engine = EngineOptions { onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
    let exported = export(checkpoint, file, &options, &engine)
        .with_context(|| format!("cannot export `{}` to `{}`", args.checkpoint.display(), args.out.display()))?;
    print(&report(&args, &summary, &exported, start.elapsed())).context(STDOUT)
}

/// What came of the export, for people, without the last line's end.
fn report(args: &Args, summary: &Summary, exported: &Exported, time: Duration) -> String {
    let Exported { bytes, differences, converted, formed, ap } = exported;
    let sides = match args.form.input_size {
        Some(_) => "height x width",
        None => "height x width: the spec's shorter and longer side, padded",
    };
    let mut lines = vec![
        args.out.display().to_string(),
        format!("  parameters   {}", grouped(summary.parameters())),
        format!(
            "  computation  {:.1} GFLOPs at {}x{} ({sides}); a multiplication with its addition counts once, as torchvision and \
             fvcore count",
            summary.giga_multiply_adds(),
            summary.height,
            summary.width
        ),
        format!("  file size    {:.1} MB", *bytes as f64 / 1e6),
        format!("  proof        ONNX Runtime differs from libtorch {differences}"),
    ];
    if let Some(FormDifferences { scores, offsets }) = formed {
        lines.push(format!(
            "  form         differs from the file of free form by at most {scores:.1e} in scores and {offsets:.1e} in offsets"
        ));
    }
    let precision = args.precision.precision;
    if let Some(Loss { converted, comparison, ap: full }) = converted {
        lines.push(format!("  {precision:<12} differs from fp32 in {comparison}"));
        if !converted.float_layers.is_empty() {
            lines.push(format!("  in 32 bits   {}", converted.float_layers.join(", ")));
        }
        if let (Some(ap), Some(full)) = (ap, full) {
            lines.push(format!("  AP           {ap:.4}, fp32 {full:.4}: {:+.4}", ap - full));
        }
        if !converted.sensitivity.is_empty() {
            lines.push(
                "  sensitivity  error by 8 bits in this layer alone, as a share of scores and of offsets".to_owned(),
            );
            let line = |layer: &Sensitivity| {
                format!("    {:<34}{:>8.3} %{:>8.3} %", layer.layer, 100.0 * layer.scores, 100.0 * layer.offsets)
            };
            lines.extend(converted.sensitivity.iter().map(line));
        }
    } else if let Some(ap) = ap {
        lines.push(format!("  AP           {ap:.4}"));
    }
    lines.push(format!("  time         {:.1} s", time.as_secs_f64()));
    lines.join("\n")
}

fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(path).map_err(|error| match error {
        CheckpointError::Io { error, .. } if error.kind() == ErrorKind::NotFound => anyhow::anyhow!(
            "there is no checkpoint `{}`; `trainer fit` makes runs/latest/best.safetensors, --checkpoint names another",
            path.display()
        ),
        error => error.into(),
    })
}
