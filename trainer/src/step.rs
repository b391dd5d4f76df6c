//! Results of a training step.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

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
    /// Gradient norm before clipping.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub gradient_norm: f64,
    /// Learning rate.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub learning_rate: f64,
    /// Times of the stages.
    #[serde(skip)]
    pub seconds: StageSeconds,
}

impl Step {
    /// Whether losses and gradient norm are finite. If not, the weights are unchanged.
    pub fn is_finite(&self) -> bool {
        [self.classification_loss, self.box_loss, self.gradient_norm].iter().all(|value| value.is_finite())
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
    /// Optimizer and moving average.
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
