//! The box coder section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, within};

/// The box coder. <https://arxiv.org/abs/1311.2524>, appendix C
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct BoxCoderSpec {
    /// Divisors of the offsets in x, y, log width and log height.
    pub std: [f32; 4],
    /// Maximum of the decoded log width and log height; no limit if absent.
    pub clamp: Option<f32>,
}

impl Section for BoxCoderSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("box_coder.std", &self.std, 1e-4..=1e4)?;
        // The exponential of more is not finite in single precision.
        within("box_coder.clamp", &self.clamp, 0.01..=88.0)
    }
}

checked!(BoxCoderSpec);

impl Default for BoxCoderSpec {
    fn default() -> Self {
        Self { std: [0.1, 0.1, 0.2, 0.2], clamp: None }
    }
}
