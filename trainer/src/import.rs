//! `trainer import`: converts weights of other projects to a checkpoint, or to a backbone to train from.

mod advice;
mod file;
mod metadata;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use models::dataset::read_classes;
use models::import::{Background, Hints, KeyMap, Kind, Network, Thresholds};
use models::{AtomicFile, BackboneCheckpoint, Origin, Provenance, is_device};

use crate::checkpoint::checkpoint;
use crate::machine::PROGRAM;
use crate::progress::print;
use advice::{advised, option};
use file::WeightsFile;
use metadata::Metadata;

/// Convert weights of other projects to a checkpoint.
///
/// Reads PyTorch's .pth, .pt and .ckpt files and pickles, without executing code in them, and safetensors. Reports what became of every
/// tensor. The checkpoint contains the model's spec, so exporting and evaluating it needs no further options. A ResNet
/// without a detector becomes a backbone for `trainer fit --weights`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// Weights: a state dict, a dict with one in it (Lightning, Detectron2, MMDetection), or a module.
    file: PathBuf,
    /// Checkpoint to write; an existing one is replaced.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Kind of weights [default: recognized by the names of the tensors].
    #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)).try_map(|name| name.parse::<Kind>()))]
    kind: Option<Kind>,
    /// Entry of the file with the weights, if there are several.
    #[arg(long)]
    key: Option<String>,
    /// Classes in the order of the outputs, without background: CSV `name,id`, or one name per line [default: those in the
    /// file or in config.json beside it, else COCO's or MLPerf's, by their number, else numbers].
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Whether the first output is a background, because labels started at 1 (torchvision's references), or none is, because
    /// they started at 0 (DeepForest) [default: decided by the names and the number of classes].
    #[arg(long, value_name = "OUTPUT", value_parser = PossibleValuesParser::new(["none", "first"]).map(|name| match name.as_str() {
        "none" => Background::None,
        _ => Background::First,
    }))]
    background: Option<Background>,
    /// Epsilon of the backbone's norm layers, which weights do not contain [default: the kind's].
    #[arg(long, value_name = "NUMBER")]
    norm_epsilon: Option<f32>,
    /// Ignore tensors whose names start with this.
    #[arg(long, value_name = "PREFIX")]
    drop: Vec<String>,
}

/// Imports the file and prints what became of its tensors.
///
/// # Errors
/// When the file cannot be read or is of an unknown kind, when its tensors do not match its kind, and when the
/// checkpoint cannot be written.
pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let out = args.out.display();
    if !is_device(&args.out) {
        // First, so that a folder that cannot be written is reported without delay.
        AtomicFile::create(&args.out)
            .with_context(|| format!("cannot write `{out}`; create its folder, or choose another file with --out"))?;
    }
    let context = || format!("cannot import `{}`", args.file.display());
    let file = WeightsFile::open(&args.file).with_context(context)?;
    let hints = hints(args, &file)?;
    let key_map = KeyMap::new(&file.tensors, &hints).map_err(|error| advised(error.into())).with_context(context)?;
    for line in key_map.lines() {
        print(&line)?;
    }
    if hints.thresholds != Thresholds::default() {
        print("score and NMS thresholds and limits: those beside the weights, where there are any")?;
    }
    for assumption in &key_map.assumptions {
        print(&format!("assumed: {assumption}; {}", option(*assumption)))?;
    }
    let tensors = key_map.apply(|name| file.read(name)).map_err(advised).with_context(context)?;
    let Hints { file: name, sha256, .. } = hints;
    let program = format!("{PROGRAM} import");
    let origin = Origin { file: name, sha256, kind: key_map.kind.name().to_owned() };
    let provenance = Provenance { program, epoch: None, ap: None, origin: Some(origin) };
    match key_map.network {
        Network::Detector(spec) => {
            let checkpoint = checkpoint(&spec, provenance, tensors).with_context(context)?;
            let probe = &checkpoint.probe;
            let finite = probe.outputs.each().into_iter().flatten().all(|value| value.is_finite());
            ensure!(finite, "{}: its network outputs NaN or infinity", context());
            checkpoint.write(&args.out)?;
        }
        Network::Backbone(spec) => BackboneCheckpoint { spec, provenance, tensors }.write(&args.out)?,
    }
    print(&format!("wrote {out}"))
}

fn hints(args: &ImportArgs, file: &WeightsFile) -> anyhow::Result<Hints> {
    if let Some(epsilon) = args.norm_epsilon {
        ensure!(epsilon.is_finite() && epsilon >= 0.0, "--norm-epsilon {epsilon}: expected zero or more");
    }
    let Metadata { labels, thresholds, configuration } = Metadata::of(&args.file, file);
    Ok(Hints {
        file: args.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        sha256: file.sha256.clone(),
        kind: args.kind,
        key: args.key.clone(),
        classes: args.classes.as_deref().map(read_classes).transpose()?,
        background: args.background,
        labels,
        thresholds,
        configuration,
        epsilon: args.norm_epsilon,
        drop: args.drop.clone(),
    })
}
