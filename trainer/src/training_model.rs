//! A network in training: its weights, optimizer and training steps.

use std::rc::Rc;
use std::time::Instant;

use models::{Checkpoint, ModelSpec, Parameter, Pretrained, Provenance, parameters};
use process_group::ProcessGroup;
use tch::{Device, Kind, Tensor};

use crate::average::Average;
use crate::checkpoint::checkpoint;
use crate::config::TrainConfig;
use crate::cpu_watch::CpuWatch;
use crate::failure::catch;
use crate::group::{Halt, agree};
use crate::interrupt::Interrupt;
use crate::loader::Batch;
use crate::loss_scaler::LossScaler;
use crate::optimizer::Optimizer;
use crate::parameters::{Layout, Parameters, to_array};
use crate::precision::Precision;
use crate::predictor::Predictor;
use crate::schedule::SchedulePosition;
use crate::step::{StageSeconds, Step};
use crate::step_totals::StepTotals;
use crate::training_network::TrainingNetwork;
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
    /// The scaler of the loss, in float16.
    pub loss_scaler: Option<LossScaler>,
    network: TrainingNetwork,
    config: TrainConfig,
    /// The ranks that train together.
    group: Rc<ProcessGroup>,
    /// Whether a stage ends when the device has computed it, not when it is queued.
    times_device: bool,
    watch: CpuWatch,
    /// Whether an update of the weights failed midway.
    torn: bool,
}

/// What the batches of one rank contribute to a step.
struct Contribution {
    /// Classification loss and box loss, weighted by the batches' fractions of the step: `[2]`, float64, on the device.
    losses: Tensor,
    /// The gradient of their sum, `[count]`.
    gradient: Tensor,
    seconds: StageSeconds,
}

impl TrainingModel {
    /// A network of `spec` before its first step, with random weights.
    ///
    /// # Errors
    /// When the spec has no classes.
    pub fn new(spec: &ModelSpec, config: &TrainConfig, device: Device) -> anyhow::Result<Self> {
        let list = parameters(spec)?;
        let parameters = Parameters::random(&list, layout(config), device, config.run.seed);
        Self::of(spec, config, &list, parameters)
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
        let (list, layout) = (parameters(spec)?, layout(config));
        let mut tensors = Parameters::random(&list, layout, Device::Cpu, config.run.seed).to_tensors();
        let transfer = Transfer::new(pretrained, spec, &mut tensors)?;
        let parameters = Parameters::from_tensors(&list, layout, device, &tensors);
        Ok((Self::of(spec, config, &list, parameters)?, transfer.lines()))
    }

    fn of(spec: &ModelSpec, config: &TrainConfig, list: &[Parameter], parameters: Parameters) -> anyhow::Result<Self> {
        let average = config.run.ema_decay.map(|decay| Average::new(parameters.copy(list), decay));
        let predicting = average.as_ref().map_or(&parameters, |average| &average.parameters);
        Ok(Self {
            network: TrainingNetwork::new(spec, config, list, &parameters)?,
            predictor: Predictor::new(spec, predicting)?,
            optimizer: Optimizer::new(&config.optimizer, &parameters.trainable, &parameters.segments),
            loss_scaler: (config.run.precision == Precision::Float16).then(LossScaler::default),
            spec: spec.clone(),
            device: parameters.trainable.device(),
            watch: CpuWatch::new(parameters.trainable.device()),
            parameters,
            average,
            config: config.clone(),
            group: Rc::new(ProcessGroup::alone()),
            times_device: false,
            torn: false,
        })
    }

    /// Trains together with the other ranks of a group from now on, from the weights and the optimizer's state of rank 0.
    ///
    /// # Errors
    /// When the group fails.
    pub fn join(&mut self, group: Rc<ProcessGroup>) -> Result<(), process_group::Error> {
        for (_, mut tensor) in self.state() {
            group.broadcast(&mut tensor, 0)?;
        }
        if group.world_size() > 1 {
            self.network.synchronize_norms(&group);
        }
        self.group = group;
        Ok(())
    }

    /// From now on waits for the device after each stage of a step, so that its time is counted in the right stage. Steps on a
    /// GPU take longer.
    pub(crate) fn time_device(&mut self) {
        self.times_device = true;
    }

    /// From now on computes as a rank of several does, without the others, to see how much memory that takes.
    pub(crate) fn try_as_rank(&mut self) {
        self.network.synchronize_norms(&Rc::new(ProcessGroup::alone()));
    }

    /// The tensors that a run saves and resumes, by name: weights, average, and the optimizer's moments. They share memory
    /// with the model.
    pub(crate) fn state(&self) -> Vec<(&'static str, Tensor)> {
        let Self { parameters, average, optimizer, .. } = self;
        let mut state = vec![
            ("trainable", &parameters.trainable),
            ("buffers", &parameters.buffers),
            ("frozen", &parameters.frozen),
        ];
        if let Some(average) = average {
            state.extend([
                ("average_trainable", &average.parameters.trainable),
                ("average_buffers", &average.parameters.buffers),
                ("average_frozen", &average.parameters.frozen),
            ]);
        }
        state.extend(optimizer.moment_names().iter().copied().zip(&optimizer.moments));
        // Most runs freeze nothing.
        let state = state.into_iter().filter(|(_, tensor)| tensor.numel() > 0);
        state.map(|(name, tensor)| (name, tensor.shallow_clone())).collect()
    }

    /// Makes one optimizer step on `batches`, as if they were one batch; `at` is the position in the schedule.
    ///
    /// # Errors
    /// When libtorch fails, for example when memory runs out. The network is then as before the step, unless it
    /// [is torn](Self::is_torn).
    pub fn step(&mut self, batches: &[Batch], at: &SchedulePosition) -> Result<Step, Halt> {
        let totals = StepTotals::of(batches, self.config.loss.normalizer);
        self.step_unless(batches, totals, at, &Interrupt::default())
    }

    /// Like [`step`](Self::step), together with the other ranks of the group, which must make the same step; `totals` are
    /// those of all ranks. Gives up between two batches when `interrupt` is raised in a rank.
    ///
    /// # Errors
    /// Like [`step`](Self::step), and when interrupted or when another rank fails. The network is then as before the step.
    pub fn step_unless(
        &mut self,
        batches: &[Batch],
        totals: StepTotals,
        at: &SchedulePosition,
        interrupt: &Interrupt,
    ) -> Result<Step, Halt> {
        let mut before = None;
        let step = catch(|| self.make_step(batches, totals, at, interrupt, &mut before));
        let step = step.map_err(Halt::Torch).flatten();
        if step.is_err() {
            catch(|| {
                if let Some(before) = &before {
                    tch::no_grad(|| self.parameters.buffers.copy_(before));
                }
                release_failed_backward(self.device);
            })?;
        }
        self.watch.update();
        step
    }

    /// A checksum of the weights and buffers. All ranks of a group have the same after every step.
    pub(crate) fn checksum(&self) -> u32 {
        let Parameters { trainable, buffers, frozen, .. } = &self.parameters;
        [trainable, buffers, frozen].into_iter().fold(0, |sum, tensor| {
            let values = to_array(tensor);
            let values = values.as_slice().expect("arrays are in standard layout");
            crc32c::crc32c_append(sum, bytemuck::cast_slice(values))
        })
    }

    /// Whether a step failed while it updated the weights. They are then unusable.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// `before` gets the running statistics before the step, if it updates them.
    fn make_step(
        &mut self,
        batches: &[Batch],
        totals: StepTotals,
        at: &SchedulePosition,
        interrupt: &Interrupt,
        before: &mut Option<Tensor>,
    ) -> Result<Step, Halt> {
        let rate = self.config.optimizer.learning_rate(self.group.world_size());
        let learning_rate = rate * self.config.schedule.lr_multiplier(at);
        let contribute = || {
            *before = self.network.has_live_norms.then(|| self.parameters.buffers.copy());
            self.contribution(batches, totals, interrupt)
        };
        let own = match catch(contribute) {
            Ok(own) => own,
            // The others wait for this rank in a norm, so it can tell them nothing.
            Err(error) if self.network.synchronized.is_some() => return Err(Halt::Amid(error)),
            Err(error) => Err(error.into()),
        };
        let Contribution { mut losses, mut gradient, mut seconds } =
            agree(&self.group, own, Halt::is_interrupted, &mut [])?;
        let start = Instant::now();
        // The others wait for this rank in the sum, so it can tell them nothing of a failure.
        let added = catch(|| self.add_over_ranks(&mut losses, &mut gradient, before.as_ref(), totals));
        added.map_err(Halt::Amid).flatten()?;
        let norm = gradient.norm();
        self.torn = true;
        // All ranks have the same sum of gradients, and so skip the same steps and have the same scale.
        let is_updated = self.loss_scaler.is_none_or(|_| norm.double_value(&[]).is_finite());
        if is_updated && totals.batches > 0 {
            self.optimizer.step(&mut self.parameters.trainable, &mut gradient, &norm, learning_rate);
            if let Some(average) = &mut self.average {
                average.update(&self.parameters, self.optimizer.steps);
            }
        }
        let loss_scale = self.loss_scaler.map(|scaler| scaler.scale);
        self.loss_scaler = self.loss_scaler.map(|scaler| scaler.after_step(is_updated));
        // Waits for the device, which computes asynchronously, when it has all of its work.
        let norm = norm.to_kind(Kind::Double).view([1]);
        let results = Tensor::cat(&[losses, norm], 0).to_device(Device::Cpu);
        let [classification_loss, box_loss, gradient_norm] = [0, 1, 2].map(|index| results.double_value(&[index]));
        self.torn = false;
        seconds.optimizer = start.elapsed().as_secs_f64();
        Ok(Step { classification_loss, box_loss, gradient_norm, learning_rate, loss_scale, seconds })
    }

    /// The contribution of this rank's batches to a step of `totals`.
    fn contribution(&self, batches: &[Batch], totals: StepTotals, interrupt: &Interrupt) -> Result<Contribution, Halt> {
        let mut losses = Tensor::zeros([2], (Kind::Double, self.device));
        let mut seconds = StageSeconds::default();
        let mut sum: Option<Tensor> = None;
        let scale = self.loss_scaler.map_or(1.0, |scaler| scaler.scale);
        let synchronizes = self.network.synchronized.is_some();
        // With synchronized norms, every rank computes as often as the one with the most batches.
        let passes = if synchronizes { totals.batches.div_ceil(self.group.world_size()) } else { batches.len() };
        for pass in 0..passes {
            if interrupt.is_raised() && !synchronizes {
                return Err(Halt::Interrupted);
            }
            let start = Instant::now();
            let total = match batches.get(pass) {
                Some(batch) => {
                    // Weighted by the fractions, the losses add up to that of one large batch.
                    let divisor = batch.loss_divisor(self.config.loss.normalizer);
                    let fraction = divisor.max(1) as f64 / totals.divisor.max(1) as f64;
                    let loss = self.network.loss(batch);
                    losses += loss.parts() * fraction;
                    let factor = fraction * scale;
                    if factor == 1.0 { loss.total() } else { loss.total() * factor }
                }
                None => self.network.loss_of_nothing(),
            };
            self.end_stage();
            seconds.forward += start.elapsed().as_secs_f64();
            let start = Instant::now();
            let gradient = self.parameters.gradient(&total);
            sum = Some(sum.map_or(gradient.shallow_clone(), |sum| sum + gradient));
            self.end_stage();
            seconds.backward += start.elapsed().as_secs_f64();
        }
        let mut gradient = sum.unwrap_or_else(|| self.parameters.trainable.zeros_like());
        if self.loss_scaler.is_some() {
            let _ = gradient.g_div_scalar_(scale);
        }
        Ok(Contribution { losses, gradient, seconds })
    }

    /// Adds the losses and the gradients of all ranks. Also averages the running statistics of live batch norms, which were
    /// `before`, and of which each rank has measured its own, so that all ranks have the same network after every step.
    fn add_over_ranks(
        &mut self,
        losses: &mut Tensor,
        gradient: &mut Tensor,
        before: Option<&Tensor>,
        totals: StepTotals,
    ) -> Result<(), Halt> {
        let world_size = self.group.world_size();
        self.group.queue_all_reduce_sum(losses)?;
        let Some(before) = before.filter(|_| world_size > 1) else {
            return Ok(self.group.all_reduce_sum(gradient)?);
        };
        // One sum of both. Ranks without a batch have measured no change, unless they measure together.
        let measuring =
            if self.network.synchronized.is_some() { world_size } else { totals.batches.clamp(1, world_size) };
        let buffers = &mut self.parameters.buffers;
        let mut flat = Tensor::cat(&[&*gradient, &(&*buffers - before)], 0);
        self.group.all_reduce_sum(&mut flat)?;
        let count = gradient.numel() as i64;
        *gradient = flat.narrow(0, 0, count);
        let change = flat.narrow(0, count, flat.numel() as i64 - count) / measuring as f64;
        tch::no_grad(|| buffers.copy_(&(before + change)));
        Ok(())
    }

    /// Waits for the device if it [is timed](Self::time_device).
    fn end_stage(&self) {
        if let (Device::Cuda(index), true) = (self.device, self.times_device) {
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

fn layout(config: &TrainConfig) -> Layout {
    Layout { frozen: config.run.freeze, channels_last: config.run.channels_last }
}

/// Frees the activations of a failed backward pass. libtorch's queue of this thread keeps what such a pass has not run
/// until another pass empties it (<https://github.com/pytorch/pytorch/issues/82218>).
fn release_failed_backward(device: Device) {
    let leaf = Tensor::ones([1], (Kind::Float, device)).set_requires_grad(true);
    let _ = Tensor::run_backward(&[leaf.sum(Kind::Float)], &[&leaf], false, false);
}

#[cfg(test)]
mod tests {
    use models::spec::Class;

    use super::*;
    use crate::part::Part;

    #[test]
    fn the_state_has_all_weights_also_frozen_ones_and_their_average() {
        let mut spec = ModelSpec::preset("resnet18").unwrap();
        spec.classes = vec![Class { id: 1, name: "cell".to_owned() }];
        let model = |seed: u64, freeze: Option<Part>| {
            let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
            let mut config = TrainConfig::parse(data).unwrap();
            (config.run.seed, config.run.freeze, config.run.ema_decay) = (seed, freeze, Some(0.9));
            TrainingModel::new(&spec, &config, Device::Cpu).unwrap()
        };
        for freeze in [None, Some(Part::Stem)] {
            let [saved, resumed] = [1, 2].map(|seed| model(seed, freeze));
            for ((name, from), (of, mut to)) in saved.state().into_iter().zip(resumed.state()) {
                assert_eq!(name, of);
                tch::no_grad(|| to.copy_(&from));
            }
            let weights = |model: &TrainingModel| {
                let average = &model.average.as_ref().unwrap().parameters;
                [model.parameters.to_tensors(), average.to_tensors()]
            };
            assert!(weights(&saved) == weights(&resumed), "{freeze:?}");
        }
    }
}
