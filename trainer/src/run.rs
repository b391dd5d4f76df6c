//! A training run: epochs of steps, each followed by validation and a save.

mod data;
mod display;
mod events;
pub(crate) mod folder;
mod journal;
pub(crate) mod log;
pub(crate) mod session;
mod state;

use std::time::Instant;

use anyhow::{anyhow, ensure};
use models::Provenance;
use models::evaluation::{ScoredBox, evaluate};

use crate::annotated::annotated;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::failure::{TorchError, catch};
use crate::interrupt::{Interrupt, Interrupted};
use crate::loader::Batch;
use crate::loss::LossConfig;
use crate::predictor::validation_batches;
use crate::progress::{Count, EpochProgress, say, warn};
use crate::report::{self, ReportOptions};
use crate::resumption;
use crate::step::StageSeconds;
use crate::training_model::{StepError, TrainingModel};
pub(crate) use data::RunData;
pub(crate) use display::print_result;
pub(crate) use folder::RunFolder;
use journal::Journal;
use log::{EpochRecord, StepRecord, ValidationRecord};
pub(crate) use state::RunState;

/// Number of validation images in TensorBoard after each validation.
const SAMPLES: usize = 4;

/// What a run begins or resumes with.
pub(crate) struct Setup {
    pub(crate) folder: RunFolder,
    pub(crate) config: TrainConfig,
    pub(crate) data: RunData,
    pub(crate) model: TrainingModel,
    pub(crate) device: Device,
    /// Stops the run.
    pub(crate) interrupt: Interrupt,
}

/// Trains a model: takes batches from the data, makes steps, validates and saves.
pub(crate) struct Trainer {
    folder: RunFolder,
    config: TrainConfig,
    data: RunData,
    model: TrainingModel,
    state: RunState,
    journal: Journal,
    interrupt: Interrupt,
}

impl Trainer {
    /// Begins a run: saves its first state.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn begin(setup: Setup) -> anyhow::Result<Self> {
        let Setup { folder, config, data, model, device, interrupt } = setup;
        let (dataset_checksums, checked_images) = (data.checksums(), data.checked_images);
        let state = RunState { dataset_checksums, checked_images, device, ..RunState::default() };
        save(&folder, &model, &state, None, false)?;
        folder.begin(&config)?;
        session::record(folder.path(), device)?;
        let journal = Journal::open(folder.path(), state.steps, state.epochs)?;
        Ok(Self { folder, config, data, model, state, journal, interrupt })
    }

    /// Resumes the run from its saved state. The configuration was `before` until now; the changed one is written.
    ///
    /// # Errors
    /// When the folder's state does not match the configuration or the data, and when the folder cannot be written.
    pub(crate) fn resume(setup: Setup, before: &TrainConfig) -> anyhow::Result<Self> {
        let Setup { folder, config, data, mut model, device, interrupt } = setup;
        let state = RunState { device, checked_images: data.checked_images, ..folder.restore(&mut model)? };
        ensure!(
            state.dataset_checksums == data.checksums(),
            "images, boxes or classes have changed since the run in `{}` was started; start a new run",
            folder.path().display()
        );
        if config != *before {
            folder.write_config(&config)?;
        }
        session::record(folder.path(), device)?;
        let journal = Journal::open(folder.path(), state.steps, state.epochs)?;
        let trainer = Self { folder, config, data, model, state, journal, interrupt };
        if trainer.config.run.epochs != before.run.epochs {
            let steps_per_epoch = trainer.steps_per_epoch();
            say(format_args!("{}", resumption::new_length(&state, steps_per_epoch, before, &trainer.config)));
        }
        Ok(trainer)
    }

    /// Trains for the remaining epochs, then writes the report and prints the result.
    ///
    /// # Errors
    /// When the folder cannot be written, an image cannot be read, libtorch fails, or the loss is not finite;
    /// [`Interrupted`] when a signal has stopped the run.
    pub(crate) fn train(mut self) -> anyhow::Result<()> {
        match self.train_epochs().and_then(|()| self.report()) {
            Ok(()) => display::print_result(&self.folder, &self.state),
            Err(stop) => Err(self.stop(stop)),
        }
    }

    fn train_epochs(&mut self) -> Result<(), Stop> {
        let steps = self.steps_per_epoch() * u64::from(self.config.run.epochs);
        display::begin(&self.folder, &self.config, &self.data, self.steps_per_epoch());
        while self.state.epochs < self.config.run.epochs {
            if self.config.schedule.is_over(self.state.patience) {
                say(format_args!("stopping early: no better AP in {} validations", self.state.patience.stale));
                break;
            }
            let trained = self.train_epoch(steps)?;
            let validation = self.is_validation_due(trained.epoch).then(|| self.validate(trained.epoch)).transpose()?;
            self.end_epoch(trained, validation).map_err(Stop::Unsaved)?;
        }
        Ok(())
    }

    /// Makes the remaining steps of the current epoch; `steps` is the number of steps in the run.
    fn train_epoch(&mut self, steps: u64) -> Result<EpochRecord, Stop> {
        let (epoch, epochs) = (self.state.epochs, self.config.run.epochs);
        let images_per_epoch = self.data.sampler.images_per_epoch();
        let batches_per_step = self.config.optimizer.gradient_accumulation_steps;
        let requests = self.data.sampler.batches(epoch);
        let done = self.state.steps_in_epoch(requests.len().div_ceil(batches_per_step) as u64)? as usize;
        // The last step of an epoch may have fewer batches than the others.
        let requests = &requests[requests.len().min(done * batches_per_step)..];
        let images = requests.iter().map(|request| request.indices.len() as u64).sum();
        let images_after = u64::from(epochs - epoch - 1) * images_per_epoch as u64;
        let mut progress = EpochProgress::new(format!("epoch {}/{epochs}", epoch + 1), images, images_after);
        let mut spent = StageSeconds::default();
        let mut saved = Instant::now();
        let augmentation = self.config.augmentation.of_epoch(epoch, epochs);
        let mut batches = self.data.train.batches_with(augmentation, requests.iter().cloned());
        loop {
            let waiting = Instant::now();
            let mut together = Vec::new();
            for batch in batches.by_ref().take(batches_per_step) {
                self.check_interrupt()?;
                together.push(batch.map_err(Stop::Intact)?);
            }
            let data = waiting.elapsed().as_secs_f64();
            self.check_interrupt()?;
            if together.is_empty() {
                break;
            }
            let step = self.model.step_unless(&together, &self.state.position(steps), &self.interrupt);
            let mut step = step.map_err(|error| match error {
                StepError::Interrupted => Stop::Interrupted,
                StepError::Torch(error) => self.torch_failure(&error),
            })?;
            if !step.is_finite() {
                return Err(Stop::Final(display::not_finite(&step, &together, &self.data.train.recipe().dataset)));
            }
            step.seconds.data = data;
            let images = together.iter().map(|batch| batch.indices.len()).sum();
            self.state.count_step(&step, images);
            let record = StepRecord { step: self.state.steps, epoch: epoch + 1, results: step };
            self.journal.step(record).map_err(Stop::Unsaved)?;
            progress.step(images, &step);
            spent += step.seconds;
            if self.config.run.save_every_minutes.is_some_and(|minutes| saved.elapsed().as_secs_f64() >= minutes * 60.0)
            {
                let flushed = self.journal.flush();
                let result = flushed.and_then(|()| save(&self.folder, &self.model, &self.state, None, false));
                result.map_err(Stop::Unsaved)?;
                saved = Instant::now();
            }
        }
        let [classification_loss, box_loss] = self.state.losses.map(|sum| sum / images_per_epoch.max(1) as f64);
        Ok(EpochRecord {
            epoch: epoch + 1,
            steps: self.state.steps,
            classification_loss,
            box_loss,
            seconds: progress.elapsed().as_secs_f64(),
            images_per_second: progress.images_per_second(),
            spent,
            validation: None,
        })
    }

    fn is_validation_due(&self, epoch: u32) -> bool {
        epoch == self.config.run.epochs || epoch.is_multiple_of(self.config.run.validate_every)
    }

    /// Measures the network on the validation images. Its loss is that of one large batch. Also returns the detections.
    fn validate(&self, epoch: u32) -> Result<(ValidationRecord, Vec<ScoredBox>), Stop> {
        let LossConfig { normalizer, .. } = self.config.loss;
        let (mut sums, mut divisor) = ([0.0; 2], 0);
        let scored = self.detect(&format!("validation {epoch}"), |batch| {
            let (scored, loss) = self.model.predictor.validate(batch, &self.config.loss);
            let batch_divisor = batch.loss_divisor(normalizer);
            divisor += batch_divisor;
            sums.iter_mut().zip(loss).for_each(|(sum, loss)| *sum += loss * batch_divisor.max(1) as f64);
            scored
        })?;
        let [classification_loss, box_loss] = sums.map(|sum| sum / divisor.max(1) as f64);
        let dataset = &self.data.validation.recipe().dataset;
        let summary = evaluate(dataset.annotations(), &scored, dataset.classes().len()).summary;
        Ok((ValidationRecord { classification_loss, box_loss, summary }, scored))
    }

    /// Ends an epoch: logs, saves and reports it.
    fn end_epoch(
        &mut self,
        trained: EpochRecord,
        validation: Option<(ValidationRecord, Vec<ScoredBox>)>,
    ) -> anyhow::Result<()> {
        let record = EpochRecord { validation: validation.as_ref().map(|(record, _)| *record), ..trained };
        let ap = record.validation.map(|validation| validation.summary.ap);
        let reductions = self.state.patience.reductions;
        let best = self.state.end_epoch(ap, &self.config.schedule);
        self.journal.epoch(record)?;
        if let Some((_, scored)) = validation.as_ref().filter(|_| best) {
            report::write_detections(self.folder.path(), &self.data.validation.recipe().dataset, scored)?;
        }
        self.save(ap, best)?;
        if let Some((_, scored)) = &validation
            && let Err(error) = self.show_samples(scored)
        {
            warn(format_args!("cannot write images of epoch {} for TensorBoard: {error:#}", record.epoch));
        }
        let reduced = self.state.patience.reductions > reductions;
        display::epoch(&record, self.config.run.epochs, best, reduced);
        Ok(())
    }

    /// Writes the report.
    fn report(&self) -> Result<(), Stop> {
        let out = report::default_path(self.folder.path());
        let notes = report::write(&ReportOptions { runs: vec![self.folder.path().to_owned()], out: out.clone() })?;
        notes.iter().for_each(|note| warn(format_args!("{note}")));
        say(format_args!("wrote `{}`", out.display()));
        Ok(())
    }

    /// What `find` detects in the validation images.
    fn detect(&self, title: &str, mut find: impl FnMut(&Batch) -> Vec<ScoredBox>) -> Result<Vec<ScoredBox>, Stop> {
        let count = Count::new(title, self.data.validation.recipe().dataset.images().len() as u64);
        let mut scored = Vec::new();
        for batch in validation_batches(&self.data.validation, self.config.run.batch_size) {
            self.check_interrupt()?;
            let batch = batch.map_err(Stop::Intact)?;
            scored.extend(catch(|| find(&batch)).map_err(|error| self.torch_failure(&error))?);
            batch.indices.iter().for_each(|_| count.advance());
        }
        Ok(scored)
    }

    /// Writes a few validation images with their detections to TensorBoard, always the same ones.
    fn show_samples(&mut self, scored: &[ScoredBox]) -> anyhow::Result<()> {
        let recipe = self.data.validation.recipe();
        let images = recipe.dataset.images();
        for index in (0..images.len()).step_by(images.len().div_ceil(SAMPLES).max(1)) {
            let image = annotated(recipe, index, scored)?;
            self.journal.image(self.state.steps, &images[index].file_name, &image)?;
        }
        Ok(())
    }

    fn steps_per_epoch(&self) -> u64 {
        let batches = self.data.sampler.images_per_epoch().div_ceil(self.config.run.batch_size);
        batches.div_ceil(self.config.optimizer.gradient_accumulation_steps) as u64
    }

    /// Saves the run, with its logs complete. `ap` is that of the epoch that ends.
    fn save(&mut self, ap: Option<f64>, best: bool) -> anyhow::Result<()> {
        self.journal.flush()?;
        save(&self.folder, &self.model, &self.state, ap, best)
    }

    fn check_interrupt(&self) -> Result<(), Stop> {
        if self.interrupt.is_raised() { Err(Stop::Interrupted) } else { Ok(()) }
    }

    fn torch_failure(&self, error: &TorchError) -> Stop {
        let (run, model) = (&self.config.run, &self.config.model);
        let advice = if error.is_out_of_memory() {
            format!(
                "; start a new run with a lower `run.batch_size` ({}) and a higher \
                 `optimizer.gradient_accumulation_steps` ({}), a lower `model.preprocessing.longer_side` ({}), or \
                 `run.precision: bfloat16`",
                run.batch_size, self.config.optimizer.gradient_accumulation_steps, model.preprocessing.longer_side
            )
        } else {
            String::new()
        };
        let reason = anyhow!("libtorch failed on {}: {error}{advice}", self.state.device);
        if self.model.is_torn() { Stop::Unsaved(reason) } else { Stop::Intact(reason) }
    }

    /// Saves the run if possible, and returns the error with the command that resumes it.
    fn stop(&mut self, stop: Stop) -> anyhow::Error {
        let reason = match stop {
            Stop::Final(reason) => return reason,
            Stop::Unsaved(reason) => return self.unsaved(&reason),
            Stop::Intact(reason) => Some(reason),
            Stop::Interrupted => None,
        };
        let (steps, command) = (self.state.steps, self.folder.resume_command());
        match (catch(|| self.save(None, false)).map_err(Into::into).flatten(), reason) {
            (Ok(()), None) => Interrupted { steps, command }.into(),
            (Ok(()), Some(reason)) => anyhow!("{reason:#}; saved after step {steps}; to resume: {command}"),
            (Err(error), reason) => {
                let reason = reason.unwrap_or_else(|| anyhow!("interrupted"));
                self.unsaved(&anyhow!("{reason:#}; saving the run failed too: {error:#}"))
            }
        }
    }

    /// The error of a run that stops without being saved.
    fn unsaved(&self, reason: &anyhow::Error) -> anyhow::Error {
        anyhow!("{reason:#}; to resume from the last save: {}", self.folder.resume_command())
    }
}

/// Why a run stops before its end.
enum Stop {
    /// By a signal.
    Interrupted,
    /// The weights are intact, so the run is saved.
    Intact(anyhow::Error),
    /// The run cannot be saved, but resumed from its last save.
    Unsaved(anyhow::Error),
    /// Resuming would end the same way.
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

fn save(
    folder: &RunFolder,
    model: &TrainingModel,
    state: &RunState,
    ap: Option<f64>,
    best: bool,
) -> anyhow::Result<()> {
    let program = concat!("trainer ", env!("CARGO_PKG_VERSION")).to_owned();
    let checkpoint = model.checkpoint(Provenance { program, epoch: Some(state.epochs), ap, origin: None })?;
    folder.save(model, state, &checkpoint, best)
}
