//! The pyramid section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, within};

/// The feature pyramid, levels P3 to P7. <https://arxiv.org/abs/1612.03144>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct PyramidSpec {
    /// Channels of every feature level.
    pub width: usize,
    /// Input of P6.
    pub p6_from: P6From,
    /// Whether P7 is computed from the positive part of P6 (ReLU). MMDetection does not take it.
    pub p7_relu: bool,
}

/// Input of P6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum P6From {
    /// C5, the last stage of the backbone.
    C5,
    /// P5, the coarsest level that merges backbone features.
    P5,
}

impl Section for PyramidSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("pyramid.width", &self.width, 1.0..=2048.0)
    }
}

checked!(PyramidSpec);

impl Default for PyramidSpec {
    fn default() -> Self {
        Self { width: 256, p6_from: P6From::C5, p7_relu: true }
    }
}
