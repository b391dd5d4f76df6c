//! A network in training: its weights, optimizer and training steps.

use std::time::Instant;

use models::{Checkpoint, ModelSpec, Parameter, Pretrained, Provenance, RetinaNet, parameters};
use tch::{Device, Kind, Tensor};

use crate::average::Average;
use crate::checkpoint::checkpoint;
use crate::config::{Precision, TrainConfig};
use crate::cpu_watch::CpuWatch;
use crate::failure::{TorchError, catch};
use crate::interrupt::Interrupt;
use crate::loader::Batch;
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use crate::parameters::{Layout, Parameters};
use crate::predictor::Predictor;
use crate::schedule::SchedulePosition;
use crate::step::{StageSeconds, Step};
use crate::torch::{Torch, Training, images};
use crate::transfer::Transfer;

/// A network in training.
pub struct TrainingModel {
    /// The spec of the network.
    pub spec: ModelSpec,
    /// The device of the parameters.
    pub device: Device,
    /// Trainable parameters and buffers.
    pub parameters: Parameters,
    /// Moving average of the parameters, if configured. It is then what is validated and saved in checkpoints.
    pub average: Option<Average>,
    /// The network for inference, on the average if there is one.
    pub predictor: Predictor,
    /// The optimizer; counts the steps.
    pub optimizer: Optimizer,
    list: Vec<Parameter>,
    training: RetinaNet<Training>,
    config: TrainConfig,
    watch: CpuWatch,
    /// Whether an update of the weights failed midway.
    torn: bool,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// libtorch has failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A signal has stopped the run.
    #[error("interrupted")]
    Interrupted,
}

impl TrainingModel {
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

    /// A network of `spec` before its first step, with the pretrained weights whose names and shapes match; and lines
    /// that report which tensors these are.
    ///
    /// # Errors
    /// When the spec has no classes, or when its backbone differs from the pretrained one.
    pub fn from_pretrained(
        spec: &ModelSpec,
        config: &TrainConfig,
        device: Device,
        pretrained: &Pretrained,
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let model = Self::new(spec, config, Device::Cpu)?;
        let mut tensors = model.parameters.to_tensors();
        let transfer = Transfer::new(pretrained, spec, &mut tensors)?;
        let layout = Layout { frozen: config.run.freeze, channels_last: config.run.channels_last };
        let parameters = Parameters::from_tensors(&model.list, layout, device, &tensors);
        Ok((Self::of(spec, config, model.list, parameters)?, transfer.lines()))
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

    /// Makes one optimizer step on `batches`, as if they were one batch; `at` is the position in the schedule.
    ///
    /// # Errors
    /// When libtorch fails, for example when memory runs out. The network is then as before the step, unless it
    /// [is torn](Self::is_torn).
    pub fn step(&mut self, batches: &[Batch], at: &SchedulePosition) -> Result<Step, StepError> {
        self.step_unless(batches, at, &Interrupt::default())
    }

    /// Like [`step`](Self::step), but gives up between two batches when `interrupt` is raised.
    ///
    /// # Errors
    /// Like [`step`](Self::step), and when interrupted. The network is then as before the step.
    pub fn step_unless(
        &mut self,
        batches: &[Batch],
        at: &SchedulePosition,
        interrupt: &Interrupt,
    ) -> Result<Step, StepError> {
        let statistics = self.parameters.buffers.copy();
        let step = catch(|| self.make_step(batches, at, interrupt)).map_err(StepError::Torch).flatten();
        if step.is_err() {
            // Live batch norms have updated the running statistics.
            catch(|| tch::no_grad(|| self.parameters.buffers.copy_(&statistics)))?;
        }
        self.watch.update();
        step
    }

    /// Whether a step failed while it updated the weights. They are then unusable.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn make_step(
        &mut self,
        batches: &[Batch],
        at: &SchedulePosition,
        interrupt: &Interrupt,
    ) -> Result<Step, StepError> {
        let learning_rate = self.config.optimizer.learning_rate * self.config.schedule.lr_multiplier(at);
        let seconds = StageSeconds::default();
        let mut step = Step { classification_loss: 0.0, box_loss: 0.0, gradient_norm: 0.0, learning_rate, seconds };
        // Weighted by the fractions, the losses add up to that of one large batch.
        let divisor = |batch: &Batch| batch.loss_divisor(self.config.loss.normalizer);
        let divisors: usize = batches.iter().map(divisor).sum();
        let fractions: Vec<_> = batches.iter().map(|b| divisor(b).max(1) as f64 / divisors.max(1) as f64).collect();
        let mut sum: Option<Tensor> = None;
        for (batch, fraction) in batches.iter().zip(fractions) {
            if interrupt.is_raised() {
                return Err(StepError::Interrupted);
            }
            let start = Instant::now();
            let loss = self.loss(batch);
            // Reading the values waits for the device, which computes asynchronously.
            let [classification_loss, box_loss] = loss.values();
            step.classification_loss += fraction * classification_loss;
            step.box_loss += fraction * box_loss;
            step.seconds.forward += start.elapsed().as_secs_f64();
            if !step.is_finite() {
                return Ok(step);
            }
            let start = Instant::now();
            let total = if batches.len() > 1 { loss.total() * fraction } else { loss.total() };
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
        Ok(step)
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

    /// Waits for the device, so that its time is counted in the right stage.
    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// A checkpoint of the network, or of its average if there is one, with its probe.
    ///
    /// # Errors
    /// When a weight is not finite.
    pub fn checkpoint(&self, provenance: Provenance) -> anyhow::Result<Checkpoint> {
        let predicting = self.average.as_ref().map_or(&self.parameters, |average| &average.parameters);
        checkpoint(&self.spec, provenance, predicting.to_tensors())
    }
}
