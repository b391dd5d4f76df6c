//! Results of a training step.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::loss_scaler::LossScaler;

/// Results of one step. Numbers missing from a log are NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Focal loss before the update.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub classification_loss: f64,
    /// Box loss before the update.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub box_loss: f64,
    /// Gradient norm before clipping. If it is not finite, the step is skipped or the weights are NaN.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub gradient_norm: f64,
    /// Learning rate.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub learning_rate: f64,
    /// Factor on the loss, in float16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Times of the stages.
    #[serde(skip)]
    pub seconds: StageSeconds,
}

impl Step {
    /// Whether losses and gradient norm are finite, or the step [is skipped](Self::is_skipped).
    pub fn is_finite(&self) -> bool {
        let has_losses = self.classification_loss.is_finite() && self.box_loss.is_finite();
        has_losses && (self.gradient_norm.is_finite() || self.is_skipped())
    }

    /// Whether the gradient is not finite because of the scale of the loss, which is lower in the next step.
    pub fn is_skipped(&self) -> bool {
        !self.gradient_norm.is_finite() && self.loss_scale.is_some_and(LossScaler::may_skip)
    }
}

/// Times of the stages of steps, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StageSeconds {
    /// Waiting for batches.
    pub data: f64,
    /// Forward pass and loss.
    pub forward: f64,
    /// Backward pass.
    pub backward: f64,
    /// Optimizer and moving average. On a GPU also waiting for the stages before, except in `bench`.
    pub optimizer: f64,
}

impl AddAssign for StageSeconds {
    fn add_assign(&mut self, step: Self) {
        self.data += step.data;
        self.forward += step.forward;
        self.backward += step.backward;
        self.optimizer += step.optimizer;
    }
}

impl StageSeconds {
    /// The mean per step over `steps` steps.
    pub(crate) fn mean(self, steps: u64) -> Self {
        let Self { data, forward, backward, optimizer } = self;
        let [data, forward, backward, optimizer] =
            [data, forward, backward, optimizer].map(|seconds| seconds / steps as f64);
        Self { data, forward, backward, optimizer }
    }
}

/// Reads a number of the log. JSON cannot represent non-finite numbers: they are logged as null, which is read as NaN.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The value of a number that is missing from the log.
pub(crate) fn nan() -> f64 {
    f64::NAN
}
