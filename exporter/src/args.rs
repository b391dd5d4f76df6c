//! The arguments of the program.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use exporter::{
    Accuracy, ExportOptions, FileOptions, InputSize, InputType, Opset, Precision, PrecisionOptions, VariantOptions,
    images,
};
use models::dataset::Source;
use runtime::cli::CommonArgs;
use runtime::{ParseProviderError, Provider};

/// Export a checkpoint to ONNX.
///
/// Batch norm is folded into the convolutions. Batch size, height and width stay dynamic unless they are fixed below. The
/// file carries the spec, so `runtime` needs nothing else. Every export is verified before it is written: ONNX Runtime must
/// reproduce the logits and offsets that libtorch computed for the checkpoint, up to rounding. float16 and int8 files are
/// compared with float32 on images.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Args {
    /// ONNX file to write; an existing one is replaced.
    #[arg(long, short, value_name = "FILE", default_value = "retinanet.onnx", help_heading = "Output")]
    pub(crate) out: PathBuf,

    /// Write DIR/NAME/1/model.onnx and DIR/NAME/config.pbtxt instead, for Triton, OpenVINO Model Server and `runtime serve
    /// --models DIR`; existing ones are replaced.
    #[arg(long, value_name = "DIR", conflicts_with = "out", help_heading = "Output")]
    pub(crate) repository: Option<PathBuf>,

    /// Name of the model in the repository.
    #[arg(long, value_name = "NAME", default_value = "retinanet", requires = "repository", help_heading = "Output")]
    #[arg(value_parser = model_name)]
    pub(crate) model_name: String,

    /// Checkpoint to export, written by `trainer`.
    #[arg(long, value_name = "FILE", default_value = "runs/latest/best.safetensors", help_heading = "Input")]
    pub(crate) checkpoint: PathBuf,

    /// Prove the file on these providers, those that this machine has: cpu, cuda[:N], tensorrt[:N], openvino[:cpu|gpu|npu]. Wrong
    /// numbers are an error. The file says what was proven; `runtime doctor --model FILE` repeats it elsewhere.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = provider, help_heading = "Verification")]
    pub(crate) prove: Vec<Provider>,

    /// Also print the layers with output shapes, parameters and GFLOPs.
    #[arg(long, help_heading = "Output")]
    pub(crate) summary: bool,

    /// Only describe this ONNX file: what is in it, and how to use it without `runtime`.
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub(crate) describe: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) variant: VariantArgs,

    #[command(flatten)]
    pub(crate) file: FileArgs,

    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then next to the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Arguments of the network's inputs and outputs.
#[derive(clap::Args)]
#[command(next_help_heading = "Model inputs and outputs")]
pub(crate) struct VariantArgs {
    /// Fix the height and width of the input, multiples of 32, for engines without dynamic shapes; `runtime` then shrinks
    /// and pads images to it [default: dynamic].
    #[arg(long, value_name = "HxW")]
    pub(crate) input_size: Option<InputSize>,

    /// Fix the batch size, for engines without dynamic shapes [default: dynamic].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,

    /// Output only the N highest-scoring candidates of each feature level above the model's score threshold, instead of all
    /// scores; saves most of the copying from a GPU [default: all; with --end-to-end the model's limit, or 1000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,

    /// Decode and clip boxes and apply NMS in the file, for programs other than `runtime`. It outputs `num_detections`,
    /// `detection_boxes`, `detection_scores` and `detection_classes`; the thresholds are the model's and cannot be changed later.
    #[arg(long)]
    end_to_end: bool,

    /// Maximum number of detections per image that an end-to-end file outputs [default: the model's limit, or 300].
    #[arg(long, value_name = "N", requires = "end_to_end", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_detections: Option<u32>,

    /// What the file reads: normalized images, or resized RGB bytes and the sizes of the images, which it normalizes itself. Bytes
    /// give the same outputs, and need a model with `preprocessing.round_pixels`.
    #[arg(long, value_enum, default_value_t)]
    input: InputType,
}

impl VariantArgs {
    pub(crate) fn options(&self) -> VariantOptions {
        let Self { input_size, batch_size, top_k, end_to_end, max_detections, input } = *self;
        let [top_k, max_detections] = [top_k, max_detections].map(|count| count.map(|count| count as usize));
        VariantOptions { input_size, batch: batch_size.map(usize::from), input, top_k, end_to_end, max_detections }
    }
}

/// Arguments of the ONNX file.
#[derive(clap::Args)]
#[command(next_help_heading = "ONNX")]
pub(crate) struct FileArgs {
    /// ONNX opset, from 13 to 26.
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
    pub(crate) fn options(&self, out: &Path) -> FileOptions {
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
pub(crate) struct PrecisionArgs {
    /// Precision of the network; inputs and outputs stay float32.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: Precision,

    /// Calibration images, required for int8, optional for fp16: a folder of images, or a data set.
    #[arg(long, value_name = "DATA", required_if_eq("precision", "int8"))]
    calibrate: Option<PathBuf>,

    /// Number of calibration images, taken evenly from those given.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "calibrate")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    calibration_images: u32,

    /// Layers or blocks that fp16 or int8 keeps in float32, such as `layer4`; int8 always keeps conv1 and regressionModel.output.
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
    pub(crate) fn check(&self) -> anyhow::Result<()> {
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

    pub(crate) fn options(&self, variant: VariantOptions, file: FileOptions) -> anyhow::Result<ExportOptions> {
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
            variant,
            accuracy: accuracy.transpose()?,
            max_ap_drop: self.max_ap_drop,
            providers: Vec::new(),
        })
    }
}

fn provider(text: &str) -> Result<Provider, String> {
    match text.parse().map_err(|error: ParseProviderError| error.to_string())? {
        Provider::Auto => Err("expected the name of a provider, not `auto`".to_owned()),
        provider => Ok(provider),
    }
}

fn model_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    is_name.then(|| text.to_owned()).ok_or_else(|| "expected letters, digits, `_` and `-`".to_owned())
}

fn ap_difference(text: &str) -> Result<f64, String> {
    let is_difference = |value: &f64| (-1.0..=1.0).contains(value);
    text.parse().ok().filter(is_difference).ok_or_else(|| "expected a difference of APs, from -1 to 1".to_owned())
}
