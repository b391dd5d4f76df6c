//! The state of a run: what is saved and resumed, besides the tensors.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::device::Device;
use crate::loss_scaler::LossScaler;
use crate::schedule::{Patience, ScheduleConfig, SchedulePosition};
use crate::step::Step;

/// The state of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Checksums of the training and the validation data.
    pub(crate) dataset_checksums: [u32; 2],
    /// Fingerprints of the image files of both splits if all of them could be read when the run started or resumed.
    pub(crate) checked_images: [Option<u64>; 2],
    /// The device of the last step.
    pub(crate) device: Device,
    /// Number of processes that train the run together.
    pub(crate) world_size: usize,
    /// Number of finished steps.
    pub(crate) steps: u64,
    /// Images of the current epoch that its steps so far have trained on.
    pub(crate) consumed_images: u64,
    /// Number of finished epochs, validation included.
    pub(crate) epochs: u32,
    /// Number of finished validations.
    pub(crate) validations: u32,
    /// Number of finished steps at the last validation.
    pub(crate) validated_steps: u64,
    /// Best AP of a validation; none before the first validation.
    pub(crate) best_ap: Option<f64>,
    /// AP of the last validation; none before the first validation.
    pub(crate) last_ap: Option<f64>,
    /// Validations without a better AP.
    pub(crate) patience: Patience,
    /// Sums over the images of the current epoch: classification loss, box loss.
    pub(crate) losses: [f64; 2],
    /// The scaler of the loss, in float16.
    pub(crate) loss_scaler: Option<LossScaler>,
}

/// The length of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochSize {
    /// Images per epoch.
    pub(crate) images: u64,
    /// The global batch: images per step, of all processes. The last step of an epoch may have fewer.
    pub(crate) images_per_step: u64,
}

impl EpochSize {
    /// That of `images` images, in a run with `world_size` processes.
    pub(crate) fn new(config: &TrainConfig, images: usize, world_size: usize) -> Self {
        let batches = config.optimizer.gradient_accumulation_steps * world_size;
        Self { images: images as u64, images_per_step: (config.run.batch_size.images() * batches) as u64 }
    }

    /// Steps per epoch.
    pub(crate) fn steps(self) -> u64 {
        self.images.div_ceil(self.images_per_step)
    }
}

impl RunState {
    /// The position of the next step in the schedule of a run of `epochs` epochs.
    pub(crate) fn position(&self, size: EpochSize, epochs: u32) -> SchedulePosition {
        // With another number of processes, the epochs so far had another number of steps.
        let before = self.steps.saturating_sub(self.consumed_images.div_ceil(size.images_per_step));
        let steps = before + size.steps() * u64::from(epochs.saturating_sub(self.epochs));
        SchedulePosition { step: self.steps, steps, epoch: self.epochs, patience: self.patience }
    }

    /// The state in which the run goes on with `world_size` processes.
    ///
    /// # Errors
    /// When another number of processes has begun the epoch.
    pub(crate) fn resume(self, world_size: usize) -> anyhow::Result<Self> {
        ensure!(
            self.consumed_images == 0 || self.world_size == world_size,
            "the run was saved within epoch {} by {} processes and cannot go on with {world_size}: each step would have \
             another number of images; resume it with {} until the epoch ends",
            self.epochs + 1,
            self.world_size,
            self.world_size
        );
        Ok(Self { world_size, ..self })
    }

    /// Counts a step on `images` images.
    pub(crate) fn count_step(&mut self, step: &Step, images: usize) {
        self.steps += 1;
        self.consumed_images += images as u64;
        for (sum, loss) in self.losses.iter_mut().zip([step.classification_loss, step.box_loss]) {
            *sum += loss * images as f64;
        }
    }

    /// Ends the epoch.
    pub(crate) fn end_epoch(&mut self) {
        self.epochs += 1;
        self.losses = [0.0; 2];
        self.consumed_images = 0;
    }

    /// Ends a validation with this AP. Returns whether it is the best so far.
    pub(crate) fn end_validation(&mut self, ap: f64, schedule: &ScheduleConfig) -> bool {
        self.validations += 1;
        self.validated_steps = self.steps;
        let best = self.best_ap.is_none_or(|best| ap > best);
        self.last_ap = Some(ap);
        self.patience = schedule.after_validation(self.patience, best);
        if best {
            self.best_ap = Some(ap);
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::StageSeconds;

    fn step() -> Step {
        let seconds = StageSeconds::default();
        Step {
            classification_loss: 2.0,
            box_loss: 1.0,
            gradient_norm: 1.0,
            learning_rate: 0.1,
            loss_scale: None,
            seconds,
        }
    }

    #[test]
    fn epochs_count_and_keep_the_best_ap() {
        let schedule = ScheduleConfig::default();
        let mut state = RunState::default();
        let step = step();
        state.count_step(&step, 3);
        assert_eq!((state.steps, state.losses), (1, [6.0, 3.0]));
        let best = [Some(0.1), None, Some(0.1), Some(0.2)].map(|ap| {
            let best = ap.is_some_and(|ap| state.end_validation(ap, &schedule));
            state.end_epoch();
            best
        });
        assert_eq!(best, [true, false, false, true]);
        assert_eq!((state.epochs, state.best_ap, state.last_ap), (4, Some(0.2), Some(0.2)));
        assert_eq!((state.validations, state.validated_steps), (3, 1));
        assert_eq!(state.losses, [0.0; 2]);
    }

    #[test]
    fn the_loss_scaler_is_saved_exactly() {
        let scaler = LossScaler { scale: 2f64.powi(17), finite_steps: 1234, skipped: 56 };
        let state = RunState { loss_scaler: Some(scaler), validations: 3, validated_steps: 7, ..RunState::default() };
        let saved = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<RunState>(&saved).unwrap(), state);
    }

    /// Epochs of three steps.
    const SIZE: EpochSize = EpochSize { images: 22, images_per_step: 8 };

    #[test]
    fn another_number_of_processes_is_an_error_except_between_epochs() {
        let step = step();
        let mut state = RunState { world_size: 2, ..RunState::default() };
        state.count_step(&step, 8);
        assert_eq!(state.resume(2).unwrap(), state);
        let error = state.resume(3).unwrap_err().to_string();
        assert!(error.contains("within epoch 1 by 2 processes") && error.contains("with 3"), "{error}");
        state.count_step(&step, 8);
        assert_eq!(state.position(SIZE, 4).steps, 12);
        state.count_step(&step, 6);
        state.end_epoch();
        // Three steps so far, then three epochs of six steps.
        let resumed = state.resume(1).unwrap();
        assert_eq!(resumed.position(EpochSize { images_per_step: 4, ..SIZE }, 4).steps, 3 + 3 * 6);
    }
}
