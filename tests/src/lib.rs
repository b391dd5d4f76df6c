//! Checkpoints for tests: any spec, with random weights under which every part of the network affects the outputs.

pub mod damage;
mod peer;
mod programs;

use std::collections::BTreeMap;
use std::path::Path;

use exporter::{ExportOptions, OutputFile, export};
use models::spec::{Class, NormKind};
use models::{Checkpoint, ModelSpec, Parameter, Provenance, parameters};
use ndarray::{ArrayD, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::EngineOptions;
use tch::Device;
use trainer::checkpoint::probe;
use trainer::parameters::{Layout, Parameters};

pub use peer::{Peer, median};
pub use programs::{programs, release_runtime};

/// A preset with another kind of normalization and `classes` classes.
pub fn spec(preset: &str, norm: NormKind, classes: usize) -> ModelSpec {
    let mut spec = ModelSpec::preset(preset).expect("tests use existing presets");
    spec.backbone.norm.kind = norm;
    spec.classes = (1..=classes).map(|id| Class { id: id as i64, name: format!("class {id}") }).collect();
    spec
}

/// A checkpoint with random weights, and the probe that libtorch computes for them.
pub fn checkpoint(spec: &ModelSpec, seed: u64) -> Checkpoint {
    checkpoint_of(spec, tensors(spec, seed))
}

/// Random weights by name.
pub fn tensors(spec: &ModelSpec, seed: u64) -> BTreeMap<String, ArrayD<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let list = parameters(spec).expect("tests make valid specs");
    list.iter().map(|parameter| (parameter.name.clone(), random_tensor(parameter, &mut random))).collect()
}

/// A checkpoint with these weights, and the probe that libtorch computes for them.
pub fn checkpoint_of(spec: &ModelSpec, tensors: BTreeMap<String, ArrayD<f32>>) -> Checkpoint {
    let list = parameters(spec).expect("tests make valid specs");
    let parameters = Parameters::from_tensors(&list, Layout::default(), Device::Cpu, &tensors);
    let probe = probe(spec, &parameters).expect("the tensors were made from the spec");
    let provenance = Provenance { program: "tests".to_owned(), epoch: None, ap: None, origin: None };
    Checkpoint { spec: spec.clone(), provenance, tensors, probe }
}

/// Exports a checkpoint to an ONNX file at `path`.
///
/// # Errors
/// When the file cannot be written, or is not equal to the checkpoint.
pub fn export_to(checkpoint: Checkpoint, path: &Path, options: &ExportOptions) -> anyhow::Result<()> {
    export(checkpoint, OutputFile::create(path)?, options, &EngineOptions::default(), &mut |_, _| {})?;
    Ok(())
}

/// Random values under which activations neither vanish nor explode at any depth, and no normalization layer is the
/// identity.
fn random_tensor(parameter: &Parameter, random: &mut ChaCha8Rng) -> ArrayD<f32> {
    let name = &parameter.name;
    let fan_in = parameter.shape[1..].iter().product::<usize>() as f32;
    let range = if parameter.shape.len() > 1 {
        // A uniform distribution with variance 2 / fan_in (He) keeps the scale of activations after ReLU.
        let bound = (6.0 / fan_in).sqrt();
        -bound..bound
    } else if name.ends_with("running_var") {
        0.5..1.5
    } else if name.ends_with("weight") {
        // A small scale at the end of each residual block keeps the sum over dozens of blocks bounded.
        if name.contains("bn3") || name.contains("bn2") { 0.1..0.3 } else { 0.7..1.3 }
    } else {
        -0.1..0.1
    };
    ArrayD::from_shape_simple_fn(IxDyn(&parameter.shape), || random.random_range(range.clone()))
}
