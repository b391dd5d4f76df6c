//! The probe of a checkpoint: what libtorch computes for random images.

use models::{HeadOutputs, ModelSpec, Parameter, Probe, RetinaNet, Weights, WeightsError};
use ndarray::{Array4, Ix3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::parameters::{Parameters, to_array};
use crate::torch::{Inference, Torch, images};

/// Asks the network of `spec` about random images. `parameters` are on the CPU.
///
/// # Errors
/// When they are not those of the spec.
pub fn probe(spec: &ModelSpec, parameters: &Parameters) -> Result<Probe, WeightsError> {
    /// The same numbers in 64 bits.
    struct Double<'a>(&'a Parameters);

    impl Weights<Inference> for Double<'_> {
        fn tensor(&self, parameter: Parameter) -> Result<Inference, WeightsError> {
            self.0.tensor(parameter).map(|Torch(tensor): Inference| Torch(tensor.detach().to_kind(Kind::Double)))
        }
    }

    let mut random = ChaCha8Rng::seed_from_u64(0);
    let [n, channels, height, width] = Probe::SIZE;
    // The range of a normalized image, about.
    let pixels = Array4::from_shape_simple_fn((n, channels, height, width), || random.random_range(-2.0..2.0));
    let input = images(&pixels, Device::Cpu, false);
    let outputs = |weights: &dyn Weights<Inference>, input: Tensor| {
        let network = RetinaNet::new(spec, weights)?;
        let (predictions, [classification, regression]) = tch::no_grad(|| network.forward_with_features(&Torch(input)));
        let [logits, offsets, classification, regression] =
            [predictions.logits, predictions.offsets, classification, regression].map(|rows| {
                let rows = to_array(&rows.0.to_kind(Kind::Float));
                rows.into_dimensionality::<Ix3>().expect("rows have three dimensions")
            });
        Ok::<_, WeightsError>(HeadOutputs { logits, offsets, features: [classification, regression] })
    };
    let exact = outputs(&Double(parameters), input.to_kind(Kind::Double))?;
    let rounded = outputs(parameters, input)?;
    let rounding = exact.deviations(&rounded, [height, width]);
    let rounding = rounding.map(|deviation| [deviation.rms() as f32, deviation.systematic() as f32]);
    Ok(Probe { images: pixels, outputs: exact, rounding })
}
