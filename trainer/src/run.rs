//! A training run: epochs of steps, each followed by validation and a save.
//!
//! With several processes, all ranks run this loop, each on its batches, and have the same weights and state after every
//! step. Whatever ends the loop of one rank does so through [`agree`](crate::group::agree) or [`all`], and so ends that of
//! the others too. Rank 0 writes the files; where it cannot, the next exchange says so.

mod data;
mod display;
mod events;
mod files;
pub(crate) mod folder;
mod journal;
pub(crate) mod log;
pub(crate) mod session;
mod setup;
mod state;
mod stop;
mod validation;

use std::rc::Rc;
use std::time::Instant;

use anyhow::{anyhow, ensure};
use models::evaluation::ScoredBox;
use process_group::ProcessGroup;

use crate::agreement::ensure_same;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::failure::{TorchError, catch};
use crate::group::{Halt, all};
use crate::interrupt::{Interrupt, Interrupted};
use crate::loader::Batch;
use crate::progress::{EpochProgress, say, warn};
use crate::report;
use crate::resumption;
use crate::step::{StageSeconds, Step};
use crate::step_totals::StepTotals;
use crate::training_model::TrainingModel;
pub(crate) use data::RunData;
pub(crate) use display::print_result;
use files::{RunFiles, Validation};
pub(crate) use folder::RunFolder;
use log::{EpochRecord, StepRecord, ValidationRecord, ValidationWithinEpoch};
pub(crate) use setup::Setup;
pub(crate) use state::{EpochSize, RunState};
use stop::Stop;

/// Trains a model: takes batches from the data, makes steps, validates and saves.
pub(crate) struct Trainer {
    group: Rc<ProcessGroup>,
    /// In rank 0.
    files: Option<RunFiles>,
    resume_command: String,
    config: TrainConfig,
    data: Rc<RunData>,
    model: TrainingModel,
    state: RunState,
    interrupt: Interrupt,
}

impl Trainer {
    /// Begins a run: saves its first state. All ranks begin with the weights of rank 0.
    ///
    /// # Errors
    /// When the folder cannot be written, and when a rank fails.
    pub(crate) fn begin(setup: Setup) -> anyhow::Result<Self> {
        let Setup { group, folder, resume_command, config, data, mut model, device, interrupt } = setup;
        model.join(group.clone())?;
        let state = RunState {
            dataset_checksums: data.checksums(),
            checked_images: data.checked_images,
            device,
            world_size: group.world_size(),
            loss_scaler: model.loss_scaler,
            ..RunState::default()
        };
        let files = folder.map(|folder| RunFiles::begin(folder, &config, &model, &state)).transpose();
        let files = all(&group, files)?;
        Ok(Self { group, files, resume_command, config, data: Rc::new(data), model, state, interrupt })
    }

    /// Resumes the run from its saved state, with the configuration `before`. The new one is written if it differs.
    ///
    /// # Errors
    /// When the folder's state does not match the configuration, the data or the number of processes, when the folder
    /// cannot be written, and when a rank fails.
    pub(crate) fn resume(setup: Setup, before: &TrainConfig, state: RunState) -> anyhow::Result<Self> {
        let Setup { group, folder, resume_command, config, data, mut model, device, interrupt } = setup;
        let state = RunState { device, checked_images: data.checked_images, ..state.resume(group.world_size())? };
        ensure!(
            state.dataset_checksums == data.checksums(),
            "images, boxes or classes have changed since the run was started; start a new run, or undo the changes"
        );
        let open = |folder: RunFolder| {
            folder.restore(&mut model)?;
            if config != *before {
                folder.write_config(&config)?;
            }
            RunFiles::open(folder, &state)
        };
        let files = all(&group, folder.map(open).transpose())?;
        model.loss_scaler = state.loss_scaler;
        model.optimizer.steps = (state.steps - state.loss_scaler.map_or(0, |scaler| scaler.skipped)) as i64;
        model.join(group.clone())?;
        if config.run.epochs != before.run.epochs {
            let size = EpochSize::new(&config, data.sampler.images_per_epoch(), group.world_size());
            say(format_args!("{}", resumption::new_length(&state, size, before, &config)));
        }
        Ok(Self { group, files, resume_command, config, data: Rc::new(data), model, state, interrupt })
    }

    /// Trains for the remaining epochs, then writes the report and prints the result.
    ///
    /// # Errors
    /// When the folder cannot be written, an image cannot be read, libtorch fails, or the loss is not finite;
    /// [`Interrupted`] when a signal has stopped the run.
    pub(crate) fn train(mut self) -> anyhow::Result<()> {
        if let Err(stop) = self.train_epochs().and_then(|()| self.report()) {
            return Err(self.stop(stop));
        }
        self.files.as_ref().map_or(Ok(()), |files| display::print_result(&files.folder, &self.state))
    }

    fn train_epochs(&mut self) -> Result<(), Stop> {
        if let Some(RunFiles { folder, .. }) = &self.files {
            display::begin(folder, &self.config, &self.data, self.epoch_size(), self.group.world_size());
        }
        while self.state.epochs < self.config.run.epochs {
            if self.config.schedule.is_over(self.state.patience) {
                say(format_args!("stopping early: no better AP in {} validations", self.state.patience.stale));
                break;
            }
            let Some(trained) = self.train_epoch()? else { continue };
            self.ensure_same_weights()?;
            let (epoch, run) = (trained.epoch, &self.config.run);
            let is_due = epoch == run.epochs || run.validate_every.ends_with_epoch(epoch, self.state.steps);
            let validation = is_due.then(|| self.validate(&format!("validation {epoch}"))).transpose()?;
            let written = self.end_epoch(trained, validation);
            self.agree_on_files(written)?;
        }
        Ok(())
    }

    /// Makes the remaining steps of the current epoch. `None` if a validation within the epoch has ended the run.
    fn train_epoch(&mut self) -> Result<Option<EpochRecord>, Stop> {
        let (epoch, epochs) = (self.state.epochs, self.config.run.epochs);
        let size = self.epoch_size();
        let consumed = self.state.consumed_images;
        let (images, images_after) =
            (size.images.saturating_sub(consumed), u64::from(epochs - epoch - 1) * size.images);
        let mut progress = EpochProgress::new(format!("epoch {}/{epochs}", epoch + 1), images, images_after);
        let mut spent = StageSeconds::default();
        let (mut saved, mut written) = (Instant::now(), Ok(()));
        let augmentation = self.config.augmentation.of_epoch(epoch, epochs);
        // All ranks know the batches of the epoch. Of those that are left, rank r takes every batch r of as many as there
        // are ranks. The last step may have fewer batches than the others, and then none for some ranks.
        let batch_size = self.config.run.batch_size.images();
        let requests = self.data.sampler.batches(epoch, batch_size);
        let done = (consumed as usize).div_ceil(batch_size);
        let own = requests.into_iter().skip(done + self.group.rank()).step_by(self.group.world_size());
        let data = self.data.clone();
        let mut batches = data.train.batches_with(augmentation, own);
        for _ in 0..images.div_ceil(size.images_per_step) {
            if self.config.run.validate_every.ends_with_step(self.state.steps)
                && self.state.validated_steps != self.state.steps
            {
                self.agree_on_files(std::mem::replace(&mut written, Ok(())))?;
                progress.aside(|| self.validate_within_epoch(size))?;
                if self.config.schedule.is_over(self.state.patience) {
                    return Ok(None);
                }
            }
            let (step, images) = self.train_step(&mut batches, written)?;
            progress.step(images, &step);
            spent += step.seconds;
            written = self.end_step(step, &mut saved);
        }
        self.agree_on_files(written)?;
        let [classification_loss, box_loss] = self.state.losses.map(|sum| sum / size.images.max(1) as f64);
        Ok(Some(EpochRecord {
            epoch: epoch + 1,
            steps: self.state.steps,
            classification_loss,
            box_loss,
            seconds: progress.elapsed().as_secs_f64(),
            images_per_second: progress.images_per_second(),
            spent,
            validation: None,
        }))
    }

    /// Makes a step on the next batches, if the files of the one before are `written`. Also returns the number of images of all
    /// ranks.
    fn train_step(
        &mut self,
        batches: &mut impl Iterator<Item = anyhow::Result<Batch>>,
        written: anyhow::Result<()>,
    ) -> Result<(Step, usize), Stop> {
        let waiting = Instant::now();
        let own = written.map_err(Stop::Unsaved).and_then(|()| self.take_batches(batches));
        let data = waiting.elapsed().as_secs_f64();
        let totals = |batches: &Vec<Batch>| StepTotals::of(batches, self.config.loss.normalizer);
        let exchanged = StepTotals::over_ranks(&self.group, own, Stop::is_interrupted, totals);
        let (own, totals) = exchanged.inspect_err(|stop| {
            if matches!(stop, Stop::Unsaved(_)) {
                // The others wait for each other before they end, see `stop`.
                let _ = self.group.barrier();
            }
        })?;
        let at = self.state.position(self.epoch_size(), self.config.run.epochs);
        let step = self.model.step_unless(&own, totals, &at, &self.interrupt);
        let mut step = step.map_err(|halt| match halt {
            Halt::Torch(error) => self.torch_failure(&error),
            halt => halt.into(),
        })?;
        if !step.is_finite() {
            let (dataset, is_float16) = (&self.data.train.recipe().dataset, self.state.loss_scaler.is_some());
            return Err(Stop::Final(display::not_finite(&step, &own, dataset, is_float16)));
        }
        step.seconds.data = data;
        self.state.count_step(&step, totals.images);
        self.state.loss_scaler = self.model.loss_scaler;
        Ok((step, totals.images))
    }

    /// Logs a step, and saves the run if the last time that it was `saved` is long ago.
    fn end_step(&mut self, step: Step, saved: &mut Instant) -> anyhow::Result<()> {
        let Some(files) = &mut self.files else { return Ok(()) };
        files.journal.step(StepRecord { step: self.state.steps, epoch: self.state.epochs + 1, results: step })?;
        if self.config.run.save_every_minutes.is_some_and(|minutes| saved.elapsed().as_secs_f64() >= minutes * 60.0) {
            files.save(&self.model, &self.state, None)?;
            *saved = Instant::now();
        }
        Ok(())
    }

    /// Stops all ranks if rank 0 could not write its files.
    fn agree_on_files(&self, written: anyhow::Result<()>) -> Result<(), Stop> {
        all(&self.group, written).map_err(Stop::lost_or_unsaved)
    }

    /// Checks that all ranks have the same weights.
    fn ensure_same_weights(&self) -> Result<(), Stop> {
        if self.group.world_size() == 1 {
            return Ok(());
        }
        let message = "its weights differ from those of rank 0, which a defect of the hardware may cause";
        ensure_same(&self.group, self.model.checksum(), message).map_err(Stop::lost_or_unsaved)
    }

    /// The next batches of this rank.
    fn take_batches(&self, batches: &mut impl Iterator<Item = anyhow::Result<Batch>>) -> Result<Vec<Batch>, Stop> {
        let mut taken = Vec::new();
        for batch in batches.take(self.config.optimizer.gradient_accumulation_steps) {
            self.check_interrupt()?;
            taken.push(batch.map_err(Stop::Intact)?);
        }
        self.check_interrupt()?;
        Ok(taken)
    }

    /// Ends an epoch: logs, saves and reports it.
    fn end_epoch(
        &mut self,
        trained: EpochRecord,
        validation: Option<(ValidationRecord, Vec<ScoredBox>)>,
    ) -> anyhow::Result<()> {
        let record = EpochRecord { validation: validation.as_ref().map(|(record, _)| *record), ..trained };
        let reductions = self.state.patience.reductions;
        let ended = record.validation.map(|validation| self.end_validation(&validation));
        self.state.end_epoch();
        let Some(files) = &mut self.files else { return Ok(()) };
        files.journal.epoch(record)?;
        self.save_validated(ended, validation.map(|(_, scored)| scored))?;
        let (best, reduced) = (ended.is_some_and(|ended| ended.best), self.state.patience.reductions > reductions);
        display::epoch(&record, self.config.run.epochs, &self.state, best, reduced);
        Ok(())
    }

    /// Validates, logs and saves between two steps of an epoch of `size`.
    fn validate_within_epoch(&mut self, size: EpochSize) -> Result<(), Stop> {
        self.ensure_same_weights()?;
        let (validation, scored) = self.validate(&format!("validation after step {}", self.state.steps))?;
        let fraction = self.state.consumed_images as f64 / size.images as f64;
        let epoch = f64::from(self.state.epochs) + fraction;
        let record = ValidationWithinEpoch { epoch, steps: self.state.steps, validation };
        let reductions = self.state.patience.reductions;
        let ended = self.end_validation(&validation);
        let logged = self.files.as_mut().map_or(Ok(()), |files| files.journal.validation(record));
        let written = logged.and_then(|()| self.save_validated(Some(ended), Some(scored)));
        self.agree_on_files(written)?;
        display::validation(&record, ended.best, self.state.patience.reductions > reductions);
        Ok(())
    }

    /// Counts a validation.
    fn end_validation(&mut self, record: &ValidationRecord) -> Validation {
        let ap = record.summary.ap;
        let best = self.state.end_validation(ap, &self.config.schedule);
        let number = self.state.validations;
        Validation {
            ap,
            best,
            keep: self.config.run.keep_checkpoints.is_some_and(|every| number.is_multiple_of(every)),
        }
    }

    /// Saves the run in rank 0, after a validation that has detected `scored` if there was one.
    fn save_validated(&mut self, ended: Option<Validation>, scored: Option<Vec<ScoredBox>>) -> anyhow::Result<()> {
        let Some(files) = &mut self.files else { return Ok(()) };
        let recipe = self.data.validation.recipe();
        if let (Some(Validation { best: true, .. }), Some(scored)) = (ended, &scored) {
            report::write_detections(files.folder.path(), &recipe.dataset, scored)?;
        }
        files.save(&self.model, &self.state, ended)?;
        if let Some(scored) = &scored
            && let Err(error) = files.show_samples(recipe, self.state.steps, scored)
        {
            warn(format_args!("cannot write images after step {} for TensorBoard: {error:#}", self.state.steps));
        }
        Ok(())
    }

    /// Writes the report, in rank 0 alone.
    fn report(&self) -> Result<(), Stop> {
        let Some(RunFiles { folder, .. }) = &self.files else { return Ok(()) };
        let out = report::default_path(folder.path());
        let notes = report::write(&[folder.path().to_owned()], &out).map_err(Stop::Final)?;
        notes.iter().for_each(|note| warn(format_args!("{note}")));
        say(format_args!("wrote `{}`", out.display()));
        Ok(())
    }

    fn epoch_size(&self) -> EpochSize {
        EpochSize::new(&self.config, self.data.sampler.images_per_epoch(), self.group.world_size())
    }

    fn check_interrupt(&self) -> Result<(), Stop> {
        if self.interrupt.is_raised() { Err(Stop::Interrupted) } else { Ok(()) }
    }

    fn torch_failure(&self, error: &TorchError) -> Stop {
        let out_of_memory = error.is_out_of_memory();
        let advice = if out_of_memory { display::out_of_memory_advice(&self.config) } else { String::new() };
        let reason = anyhow!("libtorch failed on {}: {error}{advice}", Device::from(self.model.device));
        if self.model.is_torn() { Stop::Unsaved(reason) } else { Stop::Intact(reason) }
    }

    /// Saves the run if possible, and returns the error with the command that resumes it.
    fn stop(&mut self, stop: Stop) -> anyhow::Error {
        let (reason, is_agreed) = match stop {
            Stop::Final(reason) => return reason,
            Stop::Unsaved(reason) => return self.unsaved(&reason),
            Stop::Intact(reason) => (Some(reason), true),
            Stop::Interrupted => (None, true),
            Stop::Lost(reason) => (Some(reason), false),
        };
        let saved = catch(|| match &mut self.files {
            Some(files) => files.save(&self.model, &self.state, None),
            None => Ok(()),
        });
        if is_agreed {
            // Launchers kill all processes soon after the first one has ended. An error of the group changes nothing now.
            let _ = self.group.barrier();
        }
        let (steps, command) = (self.state.steps, self.resume_command.clone());
        match (saved.map_err(Into::into).flatten(), reason) {
            (Ok(()), None) => Interrupted { steps, command }.into(),
            (Ok(()), Some(reason)) if self.files.is_some() => {
                anyhow!("{reason:#}; saved after step {steps}; to resume: {command}")
            }
            (Ok(()), Some(reason)) => reason,
            (Err(error), reason) => {
                let reason = reason.unwrap_or_else(|| anyhow!("interrupted"));
                self.unsaved(&anyhow!("{reason:#}; saving the run failed too: {error:#}"))
            }
        }
    }

    /// The error of a run that stops without being saved.
    fn unsaved(&self, reason: &anyhow::Error) -> anyhow::Error {
        anyhow!("{reason:#}; to resume from the last save: {}", self.resume_command)
    }
}
