//! Damage: a checkpoint one of whose tensors is not what made its probe, to see whether it is exported all the same.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use exporter::{ExportError, ExportOptions, ProofError, export};
use models::{AtomicFile, Checkpoint, ModelSpec, Parameter, RetinaNet, Weights, WeightsError, parameters};
use ndarray::ArrayD;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::EngineOptions;
use tch::{Device, Kind, Tensor};
use trainer::torch::{Torch, images};

/// How far each number is off, up or down at random, as a fraction of it.
const DAMAGE: f32 = 0.01;

/// What came of the damage of a tensor.
#[derive(Clone, Debug)]
pub struct Damaged {
    /// The tensor.
    pub name: String,
    /// How many times as far off as by rounding the file is, as the proof says; none if it was exported.
    pub refused: Option<f64>,
    /// Whether it was exported although libtorch computes other outputs in 64 bits.
    pub missed: bool,
}

/// Damages `count` tensors of a checkpoint, evenly taken from all, one after another, and exports each.
///
/// # Errors
/// When an export fails for another reason than its proof.
pub fn damage_each(checkpoint: &Checkpoint, count: usize) -> anyhow::Result<Vec<Damaged>> {
    let Checkpoint { spec, tensors, probe, .. } = checkpoint;
    let folder = tempfile::tempdir()?;
    let input = images(&probe.images, Device::Cpu, false).to_kind(Kind::Double);
    let right = in_double(spec, tensors, &input)?;
    let names: Vec<_> = parameters(spec)?.into_iter().map(|parameter| parameter.name).collect();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let taken = (0..count.min(names.len())).map(|index| &names[index * names.len() / count.min(names.len())]);
    let damage = |name: &String| {
        let mut wrong = checkpoint.clone();
        let tensor = wrong.tensors.get_mut(name).context("a checkpoint has every tensor of its spec")?;
        tensor.mapv_inplace(|value| value * (1.0 + if random.random() { DAMAGE } else { -DAMAGE }));
        let tensors = wrong.tensors.clone();
        let file = AtomicFile::create(&folder.path().join("model.onnx"))?;
        let refused = match export(wrong, file, &ExportOptions::default(), &EngineOptions::default()) {
            Ok(_) => None,
            Err(ExportError::Proof(ProofError::Differs(differences))) => Some(differences.times),
            Err(error) => bail!(error),
        };
        let missed = refused.is_none() && in_double(spec, &tensors, &input)? != right;
        Ok(Damaged { name: name.clone(), refused, missed })
    };
    taken.map(damage).collect()
}

/// Logits, offsets and the features of both heads, computed in 64 bits.
fn in_double(spec: &ModelSpec, tensors: &BTreeMap<String, ArrayD<f32>>, input: &Tensor) -> anyhow::Result<[Tensor; 4]> {
    struct Doubles<'a>(&'a BTreeMap<String, ArrayD<f32>>);

    impl Weights<Torch<false>> for Doubles<'_> {
        fn tensor(&self, Parameter { name, shape, .. }: Parameter) -> Result<Torch<false>, WeightsError> {
            let Some(tensor) = self.0.get(&name) else { return Err(WeightsError::Missing { name }) };
            let values: Vec<f64> = tensor.iter().map(|value| f64::from(*value)).collect();
            let shape: Vec<i64> = shape.into_iter().map(|side| side as i64).collect();
            Ok(Torch(Tensor::from_slice(&values).view(shape.as_slice())))
        }
    }

    let network = RetinaNet::new(spec, &Doubles(tensors))?;
    let input = Torch(input.shallow_clone());
    let (predictions, [classification, regression]) = tch::no_grad(|| network.forward_with_features(&input));
    let outputs = [predictions.logits.0, predictions.offsets.0, classification.0, regression.0];
    ensure!(outputs.iter().all(|output| output.kind() == Kind::Double), "a layer computes in fewer bits");
    Ok(outputs)
}
