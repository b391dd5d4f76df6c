//! The post-processing section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, within};

/// Conversion of the network's outputs to detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct PostprocessingSpec {
    /// Only scores above this become detections.
    pub score_threshold: f32,
    /// NMS removes a box whose IoU with a kept, higher-scoring box exceeds this.
    pub nms_threshold: f32,
    /// Sigma of Gaussian soft-NMS, used instead of `nms_threshold` unless absent: each higher-scoring box multiplies a box's
    /// score by exp(-IoU² / sigma), and the result must exceed `score_threshold`. <https://arxiv.org/abs/1704.04503>
    pub soft_nms: Option<f32>,
    /// Whether boxes of different classes suppress each other.
    pub suppression: Suppression,
    /// Maximum number of highest-scoring candidates per feature level before NMS; no limit if absent.
    pub top_k: Option<usize>,
    /// Maximum number of highest-scoring detections per image; no limit if absent.
    pub max_detections: Option<usize>,
    /// What boxes are clipped to.
    pub clip: Clip,
}

/// Which boxes suppress each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Suppression {
    /// Boxes of the same class.
    PerClass,
    /// All boxes.
    ClassAgnostic,
}

/// What boxes are clipped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// The network's input, including padding.
    Padded,
    /// The part of the input that contains the image.
    Image,
}

impl Section for PostprocessingSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("postprocessing.score_threshold", &self.score_threshold, 0.0..=1.0)?;
        within("postprocessing.nms_threshold", &self.nms_threshold, 0.0..=1.0)?;
        within("postprocessing.soft_nms", &self.soft_nms, 1e-4..=1e4)?;
        within("postprocessing.top_k", &self.top_k, 1.0..=f64::INFINITY)?;
        within("postprocessing.max_detections", &self.max_detections, 1.0..=f64::INFINITY)
    }
}

checked!(PostprocessingSpec);

impl Default for PostprocessingSpec {
    fn default() -> Self {
        Self {
            score_threshold: 0.05,
            nms_threshold: 0.5,
            soft_nms: None,
            suppression: Suppression::PerClass,
            top_k: None,
            max_detections: None,
            clip: Clip::Image,
        }
    }
}
