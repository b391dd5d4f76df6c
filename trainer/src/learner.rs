//! A network that learns: weights, optimizer and the steps between.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::ensure;
use models::{Checkpoint, ModelSpec, Parameter, Pretrained, Provenance, RetinaNet, parameters};
use ndarray::ArrayD;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::average::Average;
use crate::config::{Precision, TrainConfig};
use crate::cpu_watch::CpuWatch;
use crate::failure::{TorchError, catch};
use crate::loader::Batch;
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use crate::parameters::{Layout, Parameters};
use crate::predictor::Predictor;
use crate::probe::probe;
use crate::schedule::SchedulePosition;
use crate::targets::Normalizer;
use crate::torch::{Torch, Training, images};
use crate::transfer::Transfer;

/// A network in training.
pub struct Learner {
    /// What the network is.
    pub spec: ModelSpec,
    /// Where it is.
    pub device: Device,
    /// Its numbers.
    pub parameters: Parameters,
    /// Their moving average, if one is kept. It is then what predicts, and what a checkpoint holds.
    pub average: Option<Average>,
    /// The network in use.
    pub predictor: Predictor,
    /// The optimizer, which counts the steps.
    pub optimizer: Optimizer,
    list: Vec<Parameter>,
    training: RetinaNet<Training>,
    config: TrainConfig,
    watch: CpuWatch,
    /// Whether an update of the weights was broken off.
    torn: bool,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Focal loss, before the step.
    pub classification_loss: f64,
    /// Box loss, before the step.
    pub box_loss: f64,
    /// Length of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Step size.
    pub learning_rate: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
}

/// Seconds of the stages of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepSeconds {
    /// From images to losses.
    pub forward: f64,
    /// From losses to gradients.
    pub backward: f64,
    /// From gradients to new weights, average included.
    pub optimizer: f64,
}

impl Step {
    /// Whether all of its numbers are finite. The weights are unchanged if not.
    pub fn is_finite(&self) -> bool {
        [self.classification_loss, self.box_loss, self.gradient_norm].iter().all(|value| value.is_finite())
    }
}

impl Learner {
    /// A network of `spec` before its first step, with random weights.
    ///
    /// # Errors
    /// When the spec has no classes.
    pub fn new(spec: &ModelSpec, config: &TrainConfig, device: Device) -> anyhow::Result<Self> {
        let list = parameters(spec)?;
        let layout = Layout { frozen: config.run.freeze, channels_last: config.run.channels_last };
        let parameters = Parameters::random(&list, layout, device, config.run.seed);
        Self::of(spec, config, list, parameters)
    }

    /// A network of `spec` before its first step, with the weights of another one where they fit; and lines that say what
    /// came from where.
    ///
    /// # Errors
    /// When the spec has no classes, or another kind of backbone than the pretrained network.
    pub fn from_pretrained(
        spec: &ModelSpec,
        config: &TrainConfig,
        device: Device,
        pretrained: &Pretrained,
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let learner = Self::new(spec, config, Device::Cpu)?;
        let mut tensors = learner.parameters.to_tensors();
        let transfer = Transfer::new(pretrained, spec, &mut tensors)?;
        let layout = Layout { frozen: config.run.freeze, channels_last: config.run.channels_last };
        let parameters = Parameters::of_tensors(&learner.list, layout, device, &tensors);
        Ok((Self::of(spec, config, learner.list, parameters)?, transfer.lines()))
    }

    fn of(
        spec: &ModelSpec,
        config: &TrainConfig,
        list: Vec<Parameter>,
        parameters: Parameters,
    ) -> anyhow::Result<Self> {
        let average = config.run.ema_decay.map(|decay| Average::new(parameters.copy(&list), decay));
        let predicting = average.as_ref().map_or(&parameters, |average| &average.parameters);
        Ok(Self {
            training: RetinaNet::new(spec, &parameters)?,
            predictor: Predictor::new(spec, predicting)?,
            optimizer: Optimizer::new(&config.optimizer, &parameters.trainable, &parameters.segments),
            spec: spec.clone(),
            device: parameters.trainable.device(),
            watch: CpuWatch::new(parameters.trainable.device()),
            parameters,
            average,
            list,
            config: config.clone(),
            torn: false,
        })
    }

    /// Learns from `batches` in one step, as if they were one batch; `at` says where the run is.
    ///
    /// # Errors
    /// When libtorch fails, as when memory runs out. The network is then as before the step, unless it [is torn](Self::is_torn).
    pub fn step(&mut self, batches: &[Batch], at: &SchedulePosition) -> Result<Step, TorchError> {
        let statistics = self.parameters.buffers.copy();
        let step = catch(|| self.make_step(batches, at));
        if step.is_err() {
            // Norms that look at their batch have changed them.
            catch(|| tch::no_grad(|| self.parameters.buffers.copy_(&statistics)))?;
        }
        self.watch.look();
        step
    }

    /// Whether a step failed while it changed the weights, so that they are those of no step.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn make_step(&mut self, batches: &[Batch], at: &SchedulePosition) -> Step {
        let learning_rate = self.config.optimizer.learning_rate * self.config.schedule.lr_multiplier(at);
        let seconds = StepSeconds::default();
        let mut step = Step { classification_loss: 0.0, box_loss: 0.0, gradient_norm: 0.0, learning_rate, seconds };
        // What the losses of a batch are divided by, so that the shares make one batch of all.
        let divisor = |batch: &Batch| match self.config.loss.normalizer {
            Normalizer::Image => batch.indices.len(),
            Normalizer::Batch => batch.targets.rows.len(),
        };
        let divisors: usize = batches.iter().map(divisor).sum();
        let shares: Vec<_> = batches.iter().map(|b| divisor(b).max(1) as f64 / divisors.max(1) as f64).collect();
        let mut sum: Option<Tensor> = None;
        for (batch, share) in batches.iter().zip(shares) {
            let start = Instant::now();
            let loss = self.loss(batch);
            // Asking for the values waits until they are there, also where the device computes on its own.
            let [classification_loss, box_loss] = loss.values();
            step.classification_loss += share * classification_loss;
            step.box_loss += share * box_loss;
            step.seconds.forward += start.elapsed().as_secs_f64();
            if !step.is_finite() {
                return step;
            }
            let start = Instant::now();
            let total = if batches.len() > 1 { loss.total() * share } else { loss.total() };
            let gradient = self.parameters.gradient(&total);
            sum = Some(sum.map_or(gradient.shallow_clone(), |sum| sum + gradient));
            self.synchronize();
            step.seconds.backward += start.elapsed().as_secs_f64();
        }
        if let Some(mut gradient) = sum {
            let start = Instant::now();
            self.torn = true;
            step.gradient_norm = self.optimizer.step(&mut self.parameters.trainable, &mut gradient, learning_rate);
            if let (Some(average), true) = (&mut self.average, step.is_finite()) {
                average.update(&self.parameters, self.optimizer.steps);
            }
            self.synchronize();
            self.torn = false;
            step.seconds.optimizer = start.elapsed().as_secs_f64();
        }
        step
    }

    fn loss(&self, batch: &Batch) -> Loss {
        let kind = match self.config.run.precision {
            Precision::Float32 => Kind::Float,
            Precision::Bfloat16 => Kind::BFloat16,
        };
        let input = images(&batch.images, self.device, self.config.run.channels_last);
        let predictions = self.training.forward(&Torch(input.to_kind(kind)));
        let [logits, offsets] = [predictions.logits.0, predictions.offsets.0].map(|t| t.to_kind(Kind::Float));
        Loss::new(&logits, &offsets, &batch.targets, &self.config.loss, &self.spec.box_coder)
    }

    /// Waits for the device, so that time is counted where it is spent.
    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// A copy of the network, the average if one is kept, with its probe.
    ///
    /// # Errors
    /// When a weight is not finite: no use is worth keeping such a network.
    pub fn checkpoint(&self, provenance: Provenance) -> anyhow::Result<Checkpoint> {
        let predicting = self.average.as_ref().map_or(&self.parameters, |average| &average.parameters);
        checkpoint(&self.spec, provenance, predicting.to_tensors())
    }
}

/// A network with its probe. The tensors are those of `spec`.
///
/// # Errors
/// When a weight is not finite: no use is worth keeping such a network.
pub fn checkpoint(
    spec: &ModelSpec,
    provenance: Provenance,
    tensors: BTreeMap<String, ArrayD<f32>>,
) -> anyhow::Result<Checkpoint> {
    for (name, tensor) in &tensors {
        ensure!(tensor.iter().all(|value| value.is_finite()), "tensor `{name}` holds a number that is not finite");
    }
    // On the CPU wherever the training is, because a GPU's convolutions may round to fewer bits.
    let parameters = Parameters::of_tensors(&parameters(spec)?, Layout::default(), Device::Cpu, &tensors);
    let probe = probe(spec, &parameters)?;
    Ok(Checkpoint { spec: spec.clone(), provenance, tensors, probe })
}
