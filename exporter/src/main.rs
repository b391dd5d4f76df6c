//! The program `exporter`.

mod memory;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use exporter::{
    Accuracy, ExportError, ExportOptions, Exported, FileOptions, FormDifferences, FormOptions, InputSize, Opset,
    OutputFile, Precision, PrecisionOptions, PrecisionReport, Sensitivity, Summary, describe, export, grouped, images,
};
use models::dataset::Source;
use models::{Checkpoint, CheckpointError, Provenance};
use runtime::cli::{self, CommonArgs};
use runtime::output::print;
use runtime::progress::{self, detail};
use runtime::{EngineOptions, interrupt, library};

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

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then next to the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of the network's inputs and outputs.
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

/// Arguments of the ONNX file.
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

    /// Store the weights in a file next to it, named after their hash: `retinanet-1a2b3c4d.bin`.
    #[arg(long)]
    external_data: bool,
}

impl FileArgs {
    /// `out` is the ONNX file.
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

/// Arguments of the precision.
#[derive(clap::Args)]
#[command(next_help_heading = "Precision")]
struct PrecisionArgs {
    /// Precision of the network; inputs and outputs stay float32.
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,

    /// Calibration images, required for int8, optional for fp16: a folder of images, or a data set.
    #[arg(long, value_name = "DATA", required_if_eq("precision", "int8"))]
    calibrate: Option<PathBuf>,

    /// Number of calibration images, taken evenly from those given.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "calibrate")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    calibration_images: u32,

    /// Layers or blocks that fp16 or int8 keeps in float32, such as `layer4`; int8 always keeps conv1 and the two output layers.
    #[arg(long, value_name = "LAYER,..", value_delimiter = ',')]
    keep_float: Vec<String>,

    /// Also measure and list how much each layer loses in int8.
    #[arg(long)]
    sensitivity: bool,

    /// Also evaluate the file, and for fp16 and int8 the float32 one, on this data set (COCO AP).
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,

    /// Folder that the file names of both data sets are relative to [default: as in `runtime eval`].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,

    /// Maximum loss of AP of fp16 or int8 against float32; beyond it no file is written and the exit code is 3.
    #[arg(long, value_name = "AP", requires = "eval", allow_negative_numbers = true, value_parser = ap_difference)]
    max_ap_drop: Option<f64>,
}

impl PrecisionArgs {
    /// Refuses options that would have no effect.
    fn check(&self) -> anyhow::Result<()> {
        let converts = self.precision != Precision::Fp32;
        let is_int8 = self.precision == Precision::Int8;
        let has_data = self.calibrate.is_some() || self.eval.is_some();
        for (option, is_given, has_effect, needed) in [
            ("--calibrate", self.calibrate.is_some(), converts, "--precision fp16 or int8"),
            ("--keep-float", !self.keep_float.is_empty(), converts, "--precision fp16 or int8"),
            ("--sensitivity", self.sensitivity, is_int8, "--precision int8"),
            ("--max-ap-drop", self.max_ap_drop.is_some(), converts, "--precision fp16 or int8"),
            ("--images", self.images.is_some(), has_data, "--calibrate or --eval"),
        ] {
            ensure!(
                !is_given || has_effect,
                "`{option}` has an effect only with {needed}; add that, or omit `{option}`"
            );
        }
        Ok(())
    }

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

fn ap_difference(text: &str) -> Result<f64, String> {
    let is_difference = |value: &f64| (-1.0..=1.0).contains(value);
    text.parse().ok().filter(is_difference).ok_or_else(|| "expected a difference of APs, from -1 to 1".to_owned())
}

/// Exit code when the AP drops by more than `--max-ap-drop`.
const AP_DROP_EXIT_CODE: u8 = 3;

/// Error context of printing.
const CANNOT_PRINT: &str = "cannot write to stdout";

fn main() -> ExitCode {
    runtime::library::disable_telemetry();
    memory::return_large_blocks();
    let args: Args = cli::parse();
    args.common.apply();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::error(format_args!("{error:#}"));
            match error.downcast_ref() {
                Some(ExportError::ApDrop { .. }) => ExitCode::from(AP_DROP_EXIT_CODE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(path) = &args.describe {
        let text = describe(path).with_context(|| format!("cannot describe `{}`", path.display()))?;
        return print(text.trim_end()).context(CANNOT_PRINT);
    }
    ensure!(args.out != Path::new("-"), "an ONNX file cannot be written to stdout; choose a file with --out");
    args.precision.check()?;
    let start = Instant::now();
    // First, so that a target that cannot be written is reported at once.
    let file = OutputFile::create(&args.out).with_context(|| {
        format!("cannot write `{}`; create its folder, or choose another file with --out", args.out.display())
    })?;
    interrupt::watch()?;
    interrupt::delete_at_exit(file.folder());
    let options = args.precision.options(args.form.options(), args.file.options(&args.out))?;
    let checkpoint = open(&args.checkpoint)?;
    let summary = Summary::new(&options.form.spec(&checkpoint.spec)?)?;
    if args.summary {
        print(&summary.to_string()).context(CANNOT_PRINT)?;
    }
    let Provenance { program, epoch, ap, .. } = &checkpoint.provenance;
    let known = |name: &str, value: Option<String>| value.map_or_else(String::new, |value| format!(", {name} {value}"));
    let epoch = known("epoch", epoch.map(|epoch| epoch.to_string()));
    let ap = known("AP", ap.map(|ap| format!("{ap:.4}")));
    detail(format_args!("checkpoint: `{}`, written by {program}{epoch}{ap}", args.checkpoint.display()));
    if progress::is_verbose() {
        detail(format_args!("library: {}", library::find(args.onnxruntime.as_deref())?));
    }
    let engine = EngineOptions { onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
    let exported = export(checkpoint, file, &options, &engine)
        .with_context(|| format!("cannot export `{}` to `{}`", args.checkpoint.display(), args.out.display()))?;
    if progress::is_quiet() {
        return Ok(());
    }
    print(&report(&args, &summary, &exported, start.elapsed())).context(CANNOT_PRINT)
}

/// The report of an export, without a final newline.
fn report(args: &Args, summary: &Summary, exported: &Exported, time: Duration) -> String {
    let Exported { bytes, differences, precision_report, form_differences, ap } = exported;
    let size = match args.form.input_size {
        Some(_) => "height x width",
        None => "height x width: the spec's shorter and longer side, padded",
    };
    let mut lines = vec![
        args.out.display().to_string(),
        format!("  parameters   {}", grouped(summary.parameters())),
        format!(
            "  computation  {:.1} GFLOPs at {}x{} ({size}); a multiply-add counts as one FLOP, as in torchvision and fvcore",
            summary.giga_multiply_adds(),
            summary.height,
            summary.width
        ),
        format!("  file size    {:.1} MB", *bytes as f64 / 1e6),
        format!("  verified     error of ONNX Runtime is {differences}"),
    ];
    if let Some(FormDifferences { scores, offsets }) = form_differences {
        lines.push(format!(
            "  variant      differs from the plain file by at most {scores:.1e} in scores and {offsets:.1e} in offsets"
        ));
    }
    let precision = args.precision.precision;
    if let Some(PrecisionReport { converted, comparison, fp32_ap }) = precision_report {
        lines.push(format!("  {precision:<12} differs from fp32: {comparison}"));
        if !converted.float_layers.is_empty() {
            lines.push(format!("  fp32 layers  {}", converted.float_layers.join(", ")));
        }
        if let (Some(ap), Some(fp32_ap)) = (ap, fp32_ap) {
            lines.push(format!("  AP           {ap:.4} (fp32 {fp32_ap:.4}, {:+.4})", ap - fp32_ap));
        }
        if !converted.sensitivity.is_empty() {
            lines.push(
                "  sensitivity  relative RMS error of scores and offsets with only this layer in int8".to_owned(),
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
            "checkpoint `{}` not found; train one with `trainer fit`, or choose another one with --checkpoint",
            path.display()
        ),
        error => error.into(),
    })
}
