//! The state of a run: what is saved and resumed, besides the tensors.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::schedule::{Patience, ScheduleConfig, SchedulePosition};
use crate::step::Step;

/// The state of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Checksums of the training and the validation data.
    pub(crate) dataset_checksums: [u32; 2],
    /// Fingerprints of the image files of both splits if all of them could be read when the run started or resumed.
    #[serde(default)]
    pub(crate) checked_images: [Option<u64>; 2],
    /// The device of the last step.
    #[serde(default)]
    pub(crate) device: Device,
    /// Number of finished steps.
    pub(crate) steps: u64,
    /// Number of finished epochs, validation included.
    pub(crate) epochs: u32,
    /// Best AP of a validation; none before the first validation.
    pub(crate) best_ap: Option<f64>,
    /// AP of the last validation; none before the first validation.
    pub(crate) last_ap: Option<f64>,
    /// Validations without a better AP.
    pub(crate) patience: Patience,
    /// Sums over the images of the current epoch: classification loss, box loss.
    pub(crate) losses: [f64; 2],
}

impl RunState {
    /// The position of the next step in the schedule of a run of `steps` steps.
    pub(crate) fn position(&self, steps: u64) -> SchedulePosition {
        SchedulePosition { step: self.steps, steps, epoch: self.epochs, patience: self.patience }
    }

    /// Number of finished steps in the current epoch.
    ///
    /// # Errors
    /// When the state does not belong to a run with `steps_per_epoch` steps per epoch.
    pub(crate) fn steps_in_epoch(&self, steps_per_epoch: u64) -> anyhow::Result<u64> {
        let done = self.steps.checked_sub(u64::from(self.epochs) * steps_per_epoch);
        done.filter(|done| *done <= steps_per_epoch).with_context(|| {
            let (steps, epoch) = (self.steps, self.epochs + 1);
            format!("the run's state has {steps} steps, which are not in epoch {epoch}; start a new run")
        })
    }

    /// Counts a step on `images` images.
    pub(crate) fn count_step(&mut self, step: &Step, images: usize) {
        self.steps += 1;
        for (sum, loss) in self.losses.iter_mut().zip([step.classification_loss, step.box_loss]) {
            *sum += loss * images as f64;
        }
    }

    /// Ends the epoch with the AP of its validation, if it had one. Returns whether this AP is the best so far.
    pub(crate) fn end_epoch(&mut self, ap: Option<f64>, schedule: &ScheduleConfig) -> bool {
        self.epochs += 1;
        self.losses = [0.0; 2];
        let Some(ap) = ap else { return false };
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

    #[test]
    fn epochs_count_and_keep_the_best_ap() {
        let schedule = ScheduleConfig::default();
        let mut state = RunState::default();
        let step = Step {
            classification_loss: 2.0,
            box_loss: 1.0,
            gradient_norm: 1.0,
            learning_rate: 0.1,
            seconds: StageSeconds::default(),
        };
        state.count_step(&step, 3);
        assert_eq!((state.steps, state.losses), (1, [6.0, 3.0]));
        let best = [Some(0.1), None, Some(0.1), Some(0.2)].map(|ap| state.end_epoch(ap, &schedule));
        assert_eq!(best, [true, false, false, true]);
        assert_eq!((state.epochs, state.best_ap, state.last_ap), (4, Some(0.2), Some(0.2)));
        assert_eq!(state.losses, [0.0; 2]);
    }

    #[test]
    fn steps_of_another_epoch_are_an_error() {
        let state = RunState { steps: 7, epochs: 2, ..RunState::default() };
        assert_eq!(state.steps_in_epoch(3).unwrap(), 1);
        for steps_per_epoch in [2, 4] {
            let error = state.steps_in_epoch(steps_per_epoch).unwrap_err().to_string();
            assert!(error.contains("7 steps") && error.contains("epoch 3"), "{error}");
        }
    }
}
