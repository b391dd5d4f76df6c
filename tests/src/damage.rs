//! Exports checkpoints with one damaged tensor, which no longer match their probe, and records which are refused.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use exporter::{ExportError, ExportOptions, OutputFile, export};
use models::{Checkpoint, ModelSpec, Parameter, RetinaNet, Weights, WeightsError, parameters};
use ndarray::ArrayD;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::EngineOptions;
use tch::{Kind, Tensor};
use trainer::torch::{Torch, images};

/// Relative change of each element of the damaged tensor, with a random sign.
const DAMAGE: f32 = 0.01;

/// The result of exporting a checkpoint with one damaged tensor.
#[derive(Clone, Debug)]
pub struct Damaged {
    /// Name of the damaged tensor.
    pub name: String,
    /// `Differences::error_ratio` of the refused export; `None` if it was exported.
    pub refused: Option<f64>,
    /// Whether it was exported although the damage changes libtorch's float64 outputs.
    pub missed: bool,
}

/// Damages `count` evenly spaced tensors of a checkpoint, one at a time, and exports each result.
///
/// # Errors
/// When an export fails for a reason other than its verification.
pub fn damage_each(checkpoint: &Checkpoint, count: usize) -> anyhow::Result<Vec<Damaged>> {
    let Checkpoint { spec, tensors, probe, .. } = checkpoint;
    let folder = tempfile::tempdir()?;
    let input = images(&probe.images).to_kind(Kind::Double);
    let expected = float64_outputs(spec, tensors, &input)?;
    let names: Vec<_> = parameters(spec)?.into_iter().map(|parameter| parameter.name).collect();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let count = count.min(names.len());
    let selected = (0..count).map(|index| &names[index * names.len() / count]);
    let damage = |name: &String| {
        let mut damaged = checkpoint.clone();
        let tensor = damaged.tensors.get_mut(name).context("a checkpoint has every tensor of its spec")?;
        tensor.mapv_inplace(|value| value * (1.0 + if random.random() { DAMAGE } else { -DAMAGE }));
        let tensors = damaged.tensors.clone();
        let file = OutputFile::create(&folder.path().join("model.onnx"))?;
        let refused = match export(damaged, file, &ExportOptions::default(), &EngineOptions::default(), &mut |_, _| {})
        {
            Ok(_) => None,
            Err(ExportError::NotReproduced(differences)) => Some(differences.error_ratio),
            Err(error) => bail!(error),
        };
        let missed = refused.is_none() && float64_outputs(spec, &tensors, &input)? != expected;
        Ok(Damaged { name: name.clone(), refused, missed })
    };
    selected.map(damage).collect()
}

/// Logits, offsets and the features of both heads, computed in float64.
fn float64_outputs(
    spec: &ModelSpec,
    tensors: &BTreeMap<String, ArrayD<f32>>,
    input: &Tensor,
) -> anyhow::Result<[Tensor; 4]> {
    struct Float64Weights<'a>(&'a BTreeMap<String, ArrayD<f32>>);

    impl Weights<Torch<false>> for Float64Weights<'_> {
        fn tensor(&self, Parameter { name, shape, .. }: Parameter) -> Result<Torch<false>, WeightsError> {
            let Some(tensor) = self.0.get(&name) else { return Err(WeightsError::Missing { name }) };
            let values: Vec<f64> = tensor.iter().map(|value| f64::from(*value)).collect();
            let shape: Vec<i64> = shape.into_iter().map(|side| side as i64).collect();
            Ok(Torch(Tensor::from_slice(&values).view(shape.as_slice())))
        }
    }

    let network = RetinaNet::new(spec, &Float64Weights(tensors))?;
    let input = Torch(input.shallow_clone());
    let (predictions, [classification, regression]) = tch::no_grad(|| network.forward_with_features(&input));
    let outputs = [predictions.logits.0, predictions.offsets.0, classification.0, regression.0];
    ensure!(outputs.iter().all(|output| output.kind() == Kind::Double), "a layer does not compute in float64");
    Ok(outputs)
}
