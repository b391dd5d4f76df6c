//! `runtime info`: what a model's file is.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use models::{ModelSpec, Role, parameters};
use runtime::output::{ReportWriter, aligned};
use runtime::{About, Engine, EngineOptions, Port};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Describe a model: network, classes, thresholds, input size and origin.
#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// ONNX file written by `exporter`.
    #[arg(long, short, value_name = "FILE", default_value = "retinanet.onnx")]
    model: PathBuf,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then beside the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,

    /// Also write this as JSON; `-` writes it to stdout instead of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a file is.
#[derive(Serialize)]
struct Info<'a> {
    file: PathBuf,
    bytes: u64,
    sha256: String,
    /// Trained numbers.
    parameters: usize,
    /// Images that it computes at a time; any number if absent.
    batch: Option<usize>,
    /// Height and width of its input; any multiples of 32 if absent.
    size: Option<[usize; 2]>,
    /// Candidates of each level that it hands over; all scores if absent.
    top_k: Option<usize>,
    #[serde(flatten)]
    about: &'a About,
    spec: &'a ModelSpec,
}

/// Prints the description of the model.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let options = EngineOptions { onnxruntime: args.onnxruntime.clone(), ..EngineOptions::default() };
    let engine = Engine::open(&args.model, &options)?;
    let bytes = fs::read(&args.model).with_context(|| format!("cannot read `{}`", args.model.display()))?;
    let spec = engine.spec();
    let tensors = parameters(spec)?;
    let trained = tensors.iter().filter(|tensor| tensor.role == Role::Parameter);
    let info = Info {
        file: args.model.clone(),
        bytes: bytes.len() as u64,
        sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        parameters: trained.map(|parameter| parameter.len()).sum(),
        batch: engine.batch(),
        size: engine.size(),
        top_k: engine.top_k(),
        about: engine.about(),
        spec,
    };
    Ok(writer.publish(&info, &info.text())?)
}

impl Info<'_> {
    /// For people, without the last line's end.
    fn text(&self) -> String {
        let Self { bytes, sha256, parameters, about, spec, .. } = self;
        let mut text = format!(
            "{}: {:.1} MB, SHA-256 {sha256}\n{}, {parameters} parameters; written by {}\n\n",
            self.file.display(),
            *bytes as f64 / 1e6,
            about.graph,
            about.producer,
        );
        let batch = self.batch.map_or("any number of images".to_owned(), |batch| format!("{batch} images"));
        let size = self.size.map_or("sides that are multiples of 32".to_owned(), |[height, width]| {
            format!("height {height}, width {width}")
        });
        let scores = self.top_k.map_or("a score for each class at each anchor".to_owned(), |top_k| {
            format!("the best {top_k} candidates of each level")
        });
        text += &format!("takes {batch} at a time, {size}; says {scores}\n");
        text +=
            "on GPUs of NVIDIA, convolutions of 32 bits run in TF32 (10 bits of mantissa) unless --no-tf32 is given\n";
        for (kind, ports) in [("input", &about.inputs), ("output", &about.outputs)] {
            for Port { name, element, shape } in ports {
                let sides: Vec<_> =
                    shape.iter().map(|side| side.map_or("any".to_owned(), |side| side.to_string())).collect();
                text += &format!("{kind} {name}: [{}] {element}\n", sides.join(", "));
            }
        }
        text += "\nprovenance\n";
        for (key, value) in &about.metadata {
            text += &format!("  {key}: {value}\n");
        }
        let rules = ModelSpec { classes: Vec::new(), ..(*spec).clone() };
        text += &format!("\nspec\n{}\n", rules.to_yaml().trim_end().replace("classes: []", "").trim_end());
        let head = ["class", "id", "name"].map(str::to_owned).to_vec();
        let rows = spec.classes.iter().enumerate();
        let rows = rows.map(|(label, class)| vec![label.to_string(), class.id.to_string(), class.name.clone()]);
        text + "\n" + &aligned([head].into_iter().chain(rows))
    }
}
