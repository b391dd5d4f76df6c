//! What is known about a file besides the names and shapes of its tensors.

use std::collections::BTreeMap;

use super::kind::Kind;
use crate::spec::{Class, PostprocessingSpec};

/// What the user and the file say. Where a field is absent, names and shapes decide.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// The file's name, without folders.
    pub file: String,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Kind of its weights.
    pub kind: Option<Kind>,
    /// Entry of the file that contains the weights, if there are several.
    pub key: Option<String>,
    /// Classes in the order of the network's outputs, without background.
    pub classes: Option<Vec<Class>>,
    /// Whether output 0 is a background.
    pub background: Option<Background>,
    /// The outputs that the file names.
    pub labels: Option<Labels>,
    /// Thresholds in the file.
    pub thresholds: Thresholds,
    /// MMDetection's configuration, as text.
    pub configuration: Option<String>,
    /// Epsilon of the backbone's norm layers.
    pub epsilon: Option<f32>,
    /// Name prefixes of tensors to ignore although they look like parts of the network.
    pub drop: Vec<String>,
}

/// Whether an output of each anchor is a background, which is no class and was never trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// Every output is a class.
    None,
    /// Output 0 is a background.
    First,
}

impl Background {
    /// The first output that is a class.
    pub(super) fn first_class(self) -> usize {
        match self {
            Self::None => 0,
            Self::First => 1,
        }
    }
}

/// Names of outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Names by index of the output.
    pub names: BTreeMap<usize, String>,
    /// Where they stand, for messages: `label_dict`, or `id2label in config.json`.
    pub place: String,
}

/// Thresholds of post-processing that stand beside the weights, as in DeepForest's files.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Thresholds {
    /// Only scores above this become detections.
    pub score: Option<f32>,
    /// IoU of non-maximum suppression.
    pub nms: Option<f32>,
    /// Candidates per feature level.
    pub top_k: Option<usize>,
    /// Detections per image.
    pub max_detections: Option<usize>,
}

impl Thresholds {
    /// Replaces those of the spec.
    pub(super) fn apply_to(self, spec: &mut PostprocessingSpec) {
        spec.score_threshold = self.score.unwrap_or(spec.score_threshold);
        spec.nms_threshold = self.nms.unwrap_or(spec.nms_threshold);
        spec.top_k = self.top_k.or(spec.top_k);
        spec.max_detections = self.max_detections.or(spec.max_detections);
    }
}
