//! `runtime info`: describes an ONNX file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use models::{ModelSpec, Role, parameters};
use runtime::output::{ReportWriter, aligned};
use runtime::{Engine, EngineOptions, ModelInfo, ValueInfo};
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Describe a model: network, classes, thresholds, input size and origin.
#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// ONNX file written by `exporter`.
    #[arg(long, short, value_name = "FILE", default_value = "retinanet.onnx")]
    model: PathBuf,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then next to the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,

    /// Also write this as JSON; `-` writes it to stdout instead of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Description of a file.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Info<'a> {
    /// The ONNX file.
    file: PathBuf,
    /// Its size, without external data.
    bytes: u64,
    /// Its SHA-256, in hexadecimal.
    sha256: String,
    /// Number of trainable parameters.
    parameters: usize,
    /// Fixed batch size; `None` for any.
    batch: Option<usize>,
    /// Fixed height and width of the input; `None` for any multiples of 32.
    size: Option<[usize; 2]>,
    /// Maximum number of candidates per feature level that it selects; `None` for the scores of all anchors.
    top_k: Option<usize>,
    /// Maximum number of detections per image; `None` if it does not apply NMS itself.
    max_detections: Option<usize>,
    #[serde(flatten)]
    model_info: &'a ModelInfo,
    /// The spec.
    spec: &'a ModelSpec,
}

/// Prints the description of the file.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let options = EngineOptions { onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
    let engine = Engine::open(&args.model, &options)?;
    let (bytes, sha256) = fingerprint(&args.model)?;
    let spec = engine.spec();
    let tensors = parameters(spec)?;
    let trainable = tensors.iter().filter(|tensor| tensor.role == Role::Parameter);
    let info = Info {
        file: args.model.clone(),
        bytes,
        sha256,
        parameters: trainable.map(|parameter| parameter.len()).sum(),
        batch: engine.batch(),
        size: engine.size(),
        top_k: engine.top_k(),
        max_detections: engine.max_detections(),
        model_info: engine.info(),
        spec,
    };
    Ok(writer.publish(&info, &info.text())?)
}

/// A file's number of bytes, and its SHA-256 in hexadecimal.
pub(crate) fn fingerprint(path: &Path) -> Result<(u64, String)> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok((bytes.len() as u64, Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()))
}

impl Info<'_> {
    /// The text output, without a final newline.
    fn text(&self) -> String {
        let Self { bytes, sha256, parameters, model_info, spec, .. } = self;
        let mut text = format!(
            "{}: {:.1} MB, SHA-256 {sha256}\n{}, {parameters} parameters; written by {}\n\n",
            self.file.display(),
            *bytes as f64 / 1e6,
            model_info.graph,
            model_info.producer,
        );
        let batch = self.batch.map_or("any number of images".to_owned(), |batch| format!("{batch} images"));
        let size = self.size.map_or("height and width multiples of 32".to_owned(), |[height, width]| {
            format!("height {height}, width {width}")
        });
        let scores = match (self.top_k, self.max_detections) {
            (_, Some(max)) => format!("at most {max} detections, after NMS"),
            (Some(top_k), None) => format!("the {top_k} highest-scoring candidates per level"),
            (None, None) => "the scores of all classes at all anchors".to_owned(),
        };
        text += &format!("runs on {batch} at a time, {size}; outputs {scores}\n");
        text += "on NVIDIA GPUs, float32 convolutions run in TF32 (10 bits of mantissa) unless --no-tf32 is given\n";
        for (kind, values) in [("input", &model_info.inputs), ("output", &model_info.outputs)] {
            for ValueInfo { name, element, shape } in values {
                let sizes: Vec<_> =
                    shape.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string())).collect();
                text += &format!("{kind} {name}: [{}] {element}\n", sizes.join(", "));
            }
        }
        text += "\nprovenance\n";
        for (key, value) in &model_info.metadata {
            text += &format!("  {key}: {value}\n");
        }
        let without_classes = ModelSpec { classes: Vec::new(), ..(*spec).clone() };
        text += &format!("\nspec\n{}\n", without_classes.to_yaml().trim_end().replace("classes: []", "").trim_end());
        let head = ["class", "id", "name"].map(str::to_owned).to_vec();
        let rows = spec.classes.iter().enumerate();
        let rows = rows.map(|(index, class)| vec![index.to_string(), class.id.to_string(), class.name.clone()]);
        text + "\n" + &aligned([head].into_iter().chain(rows))
    }
}
