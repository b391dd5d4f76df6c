//! A network that learns: weights, optimizer and the steps between.

use anyhow::ensure;
use models::{Checkpoint, ModelSpec, Probe, Provenance, RetinaNet, parameters};
use ndarray::{Array4, Ix3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::config::TrainConfig;
use crate::loader::Batch;
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use crate::parameters::{Parameters, to_array};
use crate::torch::{Inference, Torch, Training};

/// A network in training.
pub struct Learner {
    /// What the network is.
    pub spec: ModelSpec,
    /// Where it is.
    pub device: Device,
    /// Its numbers.
    pub parameters: Parameters,
    /// The optimizer, which counts the steps.
    pub optimizer: Optimizer,
    training: RetinaNet<Training>,
    inference: RetinaNet<Inference>,
    config: TrainConfig,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Focal loss, before the step.
    pub classification: f64,
    /// Box loss, before the step.
    pub regression: f64,
    /// Length of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Step size.
    pub learning_rate: f64,
}

impl Step {
    /// Whether all of its numbers are finite. The weights are unchanged if not.
    pub fn is_finite(&self) -> bool {
        [self.classification, self.regression, self.gradient_norm].iter().all(|value| value.is_finite())
    }
}

impl Learner {
    /// A network of `spec` before its first step.
    ///
    /// # Errors
    /// When the spec has no classes.
    pub fn new(spec: &ModelSpec, config: &TrainConfig, device: Device) -> anyhow::Result<Self> {
        let parameters = Parameters::random(&parameters(spec)?, device, config.run.seed);
        let optimizer = Optimizer::new(&config.optimizer, &parameters.learned, parameters.decayed);
        Ok(Self {
            training: RetinaNet::new(spec, &parameters)?,
            inference: RetinaNet::new(spec, &parameters)?,
            spec: spec.clone(),
            device,
            parameters,
            optimizer,
            config: config.clone(),
        })
    }

    /// Learns from one batch, as step `self.optimizer.steps` of `steps`.
    pub fn step(&mut self, batch: &Batch, steps: u64) -> Step {
        let schedule = &self.config.schedule;
        let learning_rate =
            self.config.optimizer.learning_rate * schedule.share(self.optimizer.steps.unsigned_abs(), steps);
        let predictions = self.training.forward(&self.images(batch));
        let loss = Loss::new(&predictions.logits.0, &predictions.offsets.0, &batch.targets, &self.config.loss);
        let [classification, regression] = loss.values();
        let mut step = Step { classification, regression, gradient_norm: 0.0, learning_rate };
        if step.is_finite() {
            let mut gradient = self.parameters.gradient(&loss.total());
            step.gradient_norm = self.optimizer.step(&mut self.parameters.learned, &mut gradient, learning_rate);
        }
        step
    }

    /// Scores `[N, anchors, classes]` and offsets `[N, anchors, 4]` of a batch, in the processor's memory.
    pub fn predict(&self, batch: &Batch) -> [Tensor; 2] {
        tch::no_grad(|| {
            let predictions = self.inference.forward(&self.images(batch));
            [predictions.scores().0, predictions.offsets.0].map(|tensor| tensor.to_device(Device::Cpu).contiguous())
        })
    }

    /// A copy of the network with its probe.
    ///
    /// # Errors
    /// When a weight is not finite: no use is worth keeping such a network.
    pub fn checkpoint(&self, provenance: Provenance) -> anyhow::Result<Checkpoint> {
        let tensors = self.parameters.to_tensors();
        for (name, tensor) in &tensors {
            ensure!(tensor.iter().all(|value| value.is_finite()), "tensor `{name}` holds a number that is not finite");
        }
        // On the processor wherever the training is, because a GPU's convolutions may round to fewer bits.
        let parameters = Parameters::of_tensors(&parameters(&self.spec)?, Device::Cpu, &tensors);
        let probe = probe(&RetinaNet::new(&self.spec, &parameters)?);
        Ok(Checkpoint { spec: self.spec.clone(), provenance, tensors, probe })
    }

    fn images<const TRAINING: bool>(&self, batch: &Batch) -> Torch<TRAINING> {
        Torch(to_tensor(&batch.images).to_device(self.device))
    }
}

/// Asks `network`, which is on the processor, about random pictures.
pub fn probe(network: &RetinaNet<Inference>) -> Probe {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let [n, channels, height, width] = Probe::SIZE;
    // The range of a normalized picture, about.
    let images = Array4::from_shape_simple_fn((n, channels, height, width), || random.random_range(-2.0..2.0));
    let [classification, regression] = tch::no_grad(|| {
        let predictions = network.forward(&Torch(to_tensor(&images)));
        [predictions.scores().0, predictions.offsets.0]
            .map(|tensor| to_array(&tensor).into_dimensionality::<Ix3>().expect("predictions have three dimensions"))
    });
    Probe { images, classification, regression }
}

fn to_tensor(images: &Array4<f32>) -> Tensor {
    let shape: Vec<i64> = images.shape().iter().map(|n| *n as i64).collect();
    Tensor::from_slice(images.as_slice().expect("batches are in standard layout")).view(shape.as_slice())
}
