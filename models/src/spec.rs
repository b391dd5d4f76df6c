//! The spec: everything needed to interpret the weights of a detector. It is written in YAML and stored in every checkpoint
//! and every ONNX file.
//!
//! The defaults are those of yhenon/pytorch-retinanet, with four exceptions: boxes are clipped to the image, not to the
//! padded input (`clip`); a side that is a multiple of 32 gets no padding instead of 32 pixels (`pad_rule`); images are
//! resized like PyTorch, not like scikit-image (`resampling`); boxes are scaled by the sides in whole pixels (`box_scale`).

mod preprocessing;
mod sources;
mod presets;
mod validation;

use serde::{Deserialize, Serialize};

pub use preprocessing::{BoxScale, PadRule, PreprocessingSpec, Resampling, ResizeFilter, SideRounding};
pub use presets::{preset_names, preset_text};
pub use sources::Source;

/// The version of the spec format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Everything needed to interpret the weights of a detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSpec {
    /// Version of the spec format.
    pub format: u32,
    /// The backbone.
    pub backbone: BackboneSpec,
    /// The feature pyramid.
    pub pyramid: PyramidSpec,
    /// The two heads.
    pub heads: HeadsSpec,
    /// The anchors.
    pub anchors: AnchorSpec,
    /// How boxes are encoded as offsets (box deltas).
    pub box_coder: BoxCoderSpec,
    /// Conversion of images to the network's input.
    pub preprocessing: PreprocessingSpec,
    /// Conversion of the network's outputs to detections.
    pub postprocessing: PostprocessingSpec,
    /// The classes, in the order of the network's outputs.
    pub classes: Vec<Class>,
}

/// One class of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Id in the data set of the class.
    pub id: i64,
    /// Name shown to users.
    pub name: String,
}

impl Class {
    /// Its index in `classes`, matched by id and name, or else by name alone, because ids differ between files.
    pub fn index_in(&self, classes: &[Self]) -> Option<usize> {
        let same = classes.iter().position(|known| known == self);
        same.or_else(|| classes.iter().position(|known| known.name == self.name))
    }
}

/// The backbone: a ResNet. <https://arxiv.org/abs/1512.03385>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneSpec {
    /// Number of layers: 18 or 34 (basic blocks), 50, 101 or 152 (bottleneck blocks).
    pub depth: u32,
    /// Normalization after each convolution.
    pub norm: NormSpec,
    /// Groups of the 3x3 convolution in bottleneck blocks; more than 1 for a ResNeXt. <https://arxiv.org/abs/1611.05431>
    pub groups: usize,
    /// Channels per group of the first stage's bottlenecks; 64 for a ResNet.
    pub width_per_group: usize,
}

/// A norm layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormSpec {
    /// Kind of norm layer.
    pub kind: NormKind,
    /// Added to the variance.
    pub epsilon: f32,
    /// Number of groups; group normalization only.
    pub groups: usize,
}

/// Kinds of norm layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Batch normalization with fixed statistics; its scale and shift are trained. For pretrained backbones.
    FrozenBatch,
    /// Batch normalization with the statistics of the batch. For training without a pretrained backbone.
    Batch,
    /// Group normalization, for any batch size. For training without a pretrained backbone.
    Group,
}

/// The feature pyramid, levels P3 to P7. <https://arxiv.org/abs/1612.03144>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PyramidSpec {
    /// Channels of every feature level.
    pub width: usize,
    /// Input of P6.
    pub p6_from: P6From,
}

/// Input of P6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum P6From {
    /// C5, the last stage of the backbone.
    C5,
    /// P5, the coarsest level that merges backbone features.
    P5,
}

/// The two heads, which have the same architecture but no common weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadsSpec {
    /// Channels of their hidden convolutions.
    pub width: usize,
    /// Number of convolutions before the output.
    pub depth: usize,
    /// Norm layer after each of these convolutions; none if absent.
    pub norm: Option<NormSpec>,
    /// Initial score of every anchor (π in the paper, section 4.1), in (0, 1).
    pub prior: f32,
}

/// The anchors: at every cell of every feature level, one for each ratio and scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorSpec {
    /// Side of the square anchor at P3 to P7, in pixels of the padded input.
    pub sizes: [f64; 5],
    /// Height / width.
    pub ratios: Vec<f64>,
    /// Factors of the size.
    pub scales: Vec<f64>,
    /// Position of the anchors' center in a cell.
    pub center: AnchorCenter,
    /// Distance between cells.
    pub stride: AnchorStride,
    /// Whether sides are rounded to whole pixels.
    pub rounding: AnchorRounding,
    /// Order of the anchors of a cell.
    pub order: AnchorOrder,
}

/// Position of an anchor's center in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorCenter {
    /// The center of the cell: (i + 0.5) · stride.
    Half,
    /// Its upper left corner: i · stride.
    Zero,
}

/// Distance between neighboring cells of level p.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorStride {
    /// 2^p pixels.
    Power,
    /// As in torchvision: for each axis, the input's side divided by its number of cells, rounded down. If the side is not
    /// a multiple of 2^p, the cells of P6 and P7 are closer together.
    Fitted,
}

/// Rounding of anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorRounding {
    /// No rounding.
    None,
    /// As in torchvision: size · scale is truncated, then the corners around the origin are rounded half to even.
    Corners,
}

/// Order of the anchors of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorOrder {
    /// All scales of the first ratio, then all of the second.
    RatioMajor,
    /// All ratios of the first scale, then all of the second.
    ScaleMajor,
}

/// The box coder. <https://arxiv.org/abs/1311.2524>, appendix C
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxCoderSpec {
    /// Divisors of the offsets in x, y, log width and log height.
    pub std: [f32; 4],
    /// Maximum of the decoded log width and log height; no limit if absent.
    pub clamp: Option<f32>,
}

/// Conversion of the network's outputs to detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppression {
    /// Boxes of the same class.
    PerClass,
    /// All boxes.
    ClassAgnostic,
}

/// What boxes are clipped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// The network's input, including padding.
    Padded,
    /// The part of the input that contains the image.
    Image,
}

/// Why a spec is invalid.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not YAML, an unknown key, or a value of the wrong type; the message contains key and line.
    #[error("{0}")]
    Yaml(#[from] serde_yaml::Error),
    /// A value is out of range.
    #[error("`{field}` is {found}, expected {expected}")]
    Value {
        /// Path of the field, such as `backbone.depth`.
        field: &'static str,
        /// Its value.
        found: String,
        /// Its valid values.
        expected: &'static str,
    },
    /// There is no preset of that name.
    #[error("unknown preset `{name}`; presets: {}", preset_names().join(", "))]
    Preset {
        /// The requested name.
        name: String,
    },
}

impl ModelSpec {
    /// Number of classes.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Number of anchors per cell.
    pub fn anchors_per_cell(&self) -> usize {
        self.anchors.ratios.len() * self.anchors.scales.len()
    }

    /// Reads and validates a spec.
    ///
    /// # Errors
    /// When the text is not YAML, or has an unknown key, a value of the wrong type, or a value out of range.
    pub fn from_yaml(text: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_yaml::from_str(text)?;
        spec.validate()?;
        Ok(spec)
    }

    /// The spec as YAML, with all fields.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("a spec holds only strings, numbers and lists, all of which YAML can write")
    }
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            format: FORMAT,
            backbone: BackboneSpec::default(),
            pyramid: PyramidSpec::default(),
            heads: HeadsSpec::default(),
            anchors: AnchorSpec::default(),
            box_coder: BoxCoderSpec::default(),
            preprocessing: PreprocessingSpec::default(),
            postprocessing: PostprocessingSpec::default(),
            classes: Vec::new(),
        }
    }
}

impl Default for BackboneSpec {
    fn default() -> Self {
        Self { depth: 50, norm: NormSpec::default(), groups: 1, width_per_group: 64 }
    }
}

impl Default for NormSpec {
    fn default() -> Self {
        Self { kind: NormKind::FrozenBatch, epsilon: 1e-5, groups: 32 }
    }
}

impl Default for PyramidSpec {
    fn default() -> Self {
        Self { width: 256, p6_from: P6From::C5 }
    }
}

impl Default for HeadsSpec {
    fn default() -> Self {
        Self { width: 256, depth: 4, norm: None, prior: 0.01 }
    }
}

impl Default for AnchorSpec {
    fn default() -> Self {
        Self {
            sizes: [32.0, 64.0, 128.0, 256.0, 512.0],
            ratios: vec![0.5, 1.0, 2.0],
            scales: vec![1.0, 2f64.powf(1.0 / 3.0), 2f64.powf(2.0 / 3.0)],
            center: AnchorCenter::Half,
            stride: AnchorStride::Power,
            rounding: AnchorRounding::None,
            order: AnchorOrder::RatioMajor,
        }
    }
}

impl Default for BoxCoderSpec {
    fn default() -> Self {
        Self { std: [0.1, 0.1, 0.2, 0.2], clamp: None }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_an_unknown_key_contains_its_line() {
        let message = ModelSpec::from_yaml("format: 1\nbackbone:\n  depht: 50\n").unwrap_err().to_string();
        assert!(message.contains("depht") && message.contains("line 3"), "{message}");
    }
}
