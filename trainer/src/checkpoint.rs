//! Creates checkpoints, with their probes: random images and the outputs that libtorch computes for them.

use std::collections::BTreeMap;

use anyhow::ensure;
use models::{
    Checkpoint, HeadOutputs, ModelSpec, Parameter, Probe, Provenance, RetinaNet, Weights, WeightsError, parameters,
};
use ndarray::{Array4, ArrayD, Ix3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::parameters::{Layout, Parameters, to_array};
use crate::torch::{Inference, Torch, images};

/// A checkpoint with its probe. `tensors` must be those of `spec`.
///
/// # Errors
/// When a weight is not finite.
pub fn checkpoint(
    spec: &ModelSpec,
    provenance: Provenance,
    tensors: BTreeMap<String, ArrayD<f32>>,
) -> anyhow::Result<Checkpoint> {
    for (name, tensor) in &tensors {
        ensure!(tensor.iter().all(|value| value.is_finite()), "tensor `{name}` contains NaN or infinity");
    }
    // Always on the CPU, because a GPU's convolutions may round to fewer bits (TF32).
    let parameters = Parameters::from_tensors(&parameters(spec)?, Layout::default(), Device::Cpu, &tensors);
    let probe = probe(spec, &parameters)?;
    Ok(Checkpoint { spec: spec.clone(), provenance, tensors, probe })
}

/// Runs the network of `spec` on random images, in float64, and in float32 to measure rounding errors. `parameters`
/// must be on the CPU.
///
/// # Errors
/// When `parameters` lacks a tensor of the spec.
pub fn probe(spec: &ModelSpec, parameters: &Parameters) -> Result<Probe, WeightsError> {
    /// The parameters in float64.
    struct Double<'a>(&'a Parameters);

    impl Weights<Inference> for Double<'_> {
        fn tensor(&self, parameter: Parameter) -> Result<Inference, WeightsError> {
            let Torch::<false>(tensor) = self.0.tensor(parameter)?;
            Ok(Torch(tensor.detach().to_kind(Kind::Double)))
        }
    }

    let mut random = ChaCha8Rng::seed_from_u64(0);
    let [n, channels, height, width] = Probe::SIZE;
    // About the range of normalized pixels.
    let pixels = Array4::from_shape_simple_fn((n, channels, height, width), || random.random_range(-2.0..2.0));
    let input = images(&pixels);
    let exact = head_outputs(spec, &Double(parameters), &input.to_kind(Kind::Double))?;
    let rounding = exact.deviations(&head_outputs(spec, parameters, &input)?, [height, width]);
    let rounding = rounding.map(|deviation| [deviation.rms() as f32, deviation.systematic() as f32]);
    Ok(Probe { images: pixels, outputs: exact, rounding })
}

/// The outputs of the heads of the network of `spec` for `images`, `[N, 3, H, W]`, in the data type of the weights.
///
/// # Errors
/// When `weights` lacks a tensor of the spec.
pub fn head_outputs(
    spec: &ModelSpec,
    weights: &dyn Weights<Inference>,
    images: &Tensor,
) -> Result<HeadOutputs, WeightsError> {
    let network = RetinaNet::new(spec, weights)?;
    let input = Torch(images.shallow_clone());
    let (predictions, [classification, regression]) = tch::no_grad(|| network.forward_with_features(&input));
    let rows = |tensor: Inference| {
        let array = to_array(&tensor.0.to_kind(Kind::Float));
        array.into_dimensionality::<Ix3>().expect("rows have three dimensions")
    };
    let features = [rows(classification), rows(regression)];
    Ok(HeadOutputs { logits: rows(predictions.logits), offsets: rows(predictions.offsets), features })
}
