//! The spec: everything that gives weights their meaning. It starts as YAML and travels in every checkpoint and every ONNX
//! file.
//!
//! Where nothing is said it has the values of yhenon/pytorch-retinanet, save four: boxes are clipped to the image, not to
//! its padding (`clip`); a side that is a multiple of 32 gets no padding rather than 32 pixels (`pad_rule`); images are
//! resized as PyTorch does, not scikit-image (`resampling`); and boxes by the sides in whole pixels (`box_scale`).

mod preprocessing;
mod sources;
mod presets;
mod validation;

use serde::{Deserialize, Serialize};

pub use preprocessing::{BoxScale, PadRule, PreprocessingSpec, Resampling, ResizeFilter, SideRounding};
pub use presets::{preset_names, preset_text};
pub use sources::Source;

/// The version of the spec's format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Everything that gives the weights of one detector their meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSpec {
    /// Version of this format.
    pub format: u32,
    /// The backbone.
    pub backbone: BackboneSpec,
    /// The feature pyramid.
    pub pyramid: PyramidSpec,
    /// The two subnets.
    pub heads: HeadsSpec,
    /// The boxes that detections start from.
    pub anchors: AnchorSpec,
    /// How offsets and boxes translate into each other.
    pub box_coder: BoxCoderSpec,
    /// How an image becomes the network's input.
    pub preprocessing: PreprocessingSpec,
    /// How the network's outputs become detections.
    pub postprocessing: PostprocessingSpec,
    /// The classes, in the order of the network's outputs.
    pub classes: Vec<Class>,
}

/// One class of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Id in the data set that the class comes from.
    pub id: i64,
    /// Name shown to people.
    pub name: String,
}

/// The backbone: a residual network. <https://arxiv.org/abs/1512.03385>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneSpec {
    /// Number of layers: 18 or 34 (basic blocks), 50, 101 or 152 (bottleneck blocks).
    pub depth: u32,
    /// Normalization after each convolution.
    pub norm: NormSpec,
    /// Groups of the 3x3 convolution in bottleneck blocks; above 1 it is a ResNeXt. <https://arxiv.org/abs/1611.05431>
    pub groups: usize,
    /// Channels per group of the first stage's bottlenecks; 64 for a ResNet.
    pub width_per_group: usize,
}

/// A normalization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormSpec {
    /// Which kind.
    pub kind: NormKind,
    /// Added to the variance.
    pub epsilon: f32,
    /// Number of groups; group normalization only.
    pub groups: usize,
}

/// Kinds of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Batch normalization whose statistics never change; its factor and term are learned. For pretrained backbones.
    FrozenBatch,
    /// Batch normalization by the statistics of the batch. For training without a pretrained backbone.
    Batch,
    /// Group normalization, the same in training and use. For training without a pretrained backbone, at any batch size.
    Group,
}

/// The feature pyramid, levels P3 to P7. <https://arxiv.org/abs/1612.03144>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PyramidSpec {
    /// Channels of every level.
    pub width: usize,
    /// What P6 is computed from.
    pub p6_from: P6From,
}

/// What P6 is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum P6From {
    /// The backbone's last stage.
    C5,
    /// The pyramid's coarsest level.
    P5,
}

/// The two subnets, which share their form and no weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadsSpec {
    /// Channels between their convolutions.
    pub width: usize,
    /// Convolutions before the output.
    pub depth: usize,
    /// Normalization after each of these convolutions; none if absent.
    pub norm: Option<NormSpec>,
    /// Score that every anchor starts with (π in the paper, section 4.1), in (0, 1).
    pub prior: f32,
}

/// The anchors: at every cell of every level, one for each ratio and scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorSpec {
    /// Side of the square anchor at P3 to P7, in pixels of the input.
    pub sizes: [f64; 5],
    /// Height over width.
    pub ratios: Vec<f64>,
    /// Factors on the size.
    pub scales: Vec<f64>,
    /// Where in a cell the anchors are centered.
    pub center: AnchorCenter,
    /// How far the cells of a level are apart.
    pub stride: AnchorStride,
    /// Whether sides are rounded to whole pixels.
    pub rounding: AnchorRounding,
    /// Which of ratio and scale changes slower from anchor to anchor.
    pub order: AnchorOrder,
}

/// Where in its cell an anchor is centered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorCenter {
    /// In the middle: (i + 0.5) · stride.
    Half,
    /// At the upper left corner: i · stride.
    Zero,
}

/// Distance from cell to cell of level p.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorStride {
    /// 2^p pixels.
    Power,
    /// As torchvision has it: a side of the input divided by its number of cells and cut to whole pixels, for each axis by
    /// itself. P6 and P7 are denser so wherever a side is no multiple of 2^p.
    Fitted,
}

/// Rounding of anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorRounding {
    /// None.
    None,
    /// As torchvision does: size · scale is cut to a whole number, then the corners around the origin are rounded half to even.
    Corners,
}

/// Order of the anchors of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorOrder {
    /// All scales of the first ratio, then of the second.
    RatioMajor,
    /// All ratios of the first scale, then of the second.
    ScaleMajor,
}

/// The box coder. <https://arxiv.org/abs/1311.2524>, appendix C
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxCoderSpec {
    /// Unit of the offsets in x, y, log width and log height.
    pub std: [f32; 4],
    /// Largest log width and log height that is decoded; no limit if absent.
    pub clamp: Option<f32>,
}

/// From the network's outputs to detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostprocessingSpec {
    /// A score must exceed this.
    pub score_threshold: f32,
    /// A box goes when its IoU with a better one exceeds this.
    pub nms_threshold: f32,
    /// In place of removing boxes by `nms_threshold`, every better rival multiplies a box's score by exp(-IoU² / this), and what then
    /// does not exceed the score's threshold goes; not done if absent. <https://arxiv.org/abs/1704.04503>
    pub soft_nms: Option<f32>,
    /// Whether boxes of other classes count as rivals.
    pub suppression: Suppression,
    /// Best candidates kept per level before suppression; all if absent.
    pub top_k: Option<usize>,
    /// Best detections kept per image; all if absent.
    pub max_detections: Option<usize>,
    /// What boxes are clipped to.
    pub clip: Clip,
}

/// Which boxes suppress each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppression {
    /// Those of one class.
    PerClass,
    /// All.
    ClassAgnostic,
}

/// What boxes are clipped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// The network's input, padding included.
    Padded,
    /// The part of it that shows the image.
    Image,
}

/// Why a text is no spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not YAML, an unknown key, or a value of the wrong type; names key and line.
    #[error("{0}")]
    Yaml(#[from] serde_yaml::Error),
    /// Every value is of its type, and one makes no sense.
    #[error("`{field}` is {found}, expected {expected}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// No preset has that name.
    #[error("no preset `{name}`; presets: {}", preset_names().join(", "))]
    Preset {
        /// The name asked for.
        name: String,
    },
}

impl ModelSpec {
    /// Number of classes.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Anchors of one cell.
    pub fn anchors_per_cell(&self) -> usize {
        self.anchors.ratios.len() * self.anchors.scales.len()
    }

    /// Reads and validates a spec.
    ///
    /// # Errors
    /// When the text is no YAML, has an unknown key, a wrong type, or a value out of range.
    pub fn from_yaml(text: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_yaml::from_str(text)?;
        spec.validate()?;
        Ok(spec)
    }

    /// The spec as YAML, every field written out.
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
    fn an_unknown_key_is_refused_with_its_line() {
        let message = ModelSpec::from_yaml("format: 1\nbackbone:\n  depht: 50\n").unwrap_err().to_string();
        assert!(message.contains("depht") && message.contains("line 3"), "{message}");
    }
}
