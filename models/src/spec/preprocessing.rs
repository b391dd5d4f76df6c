//! The section of the spec on preprocessing.

use serde::{Deserialize, Serialize};

/// From an image to the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreprocessingSpec {
    /// The shorter side is resized to this many pixels ...
    pub shorter_side: u32,
    /// ... unless the longer side would then exceed this many.
    pub longer_side: u32,
    /// How a resized side becomes a whole number of pixels.
    pub side_rounding: SideRounding,
    /// Height and width that every image is stretched to, whatever its shape; if absent, images keep their shape and the
    /// fields above say their size.
    pub fixed_size: Option<[u32; 2]>,
    /// Interpolation.
    pub filter: ResizeFilter,
    /// Whether the filter widens when the image shrinks.
    pub antialias: bool,
    /// Whose interpolation it is.
    pub resampling: Resampling,
    /// Subtracted from red, green and blue in [0, 1].
    pub mean: [f32; 3],
    /// Divides red, green and blue after that.
    pub std: [f32; 3],
    /// Height and width are padded with zeros, right and below, to a multiple of this; itself a multiple of 32.
    pub pad_multiple: u32,
    /// What happens to a side that is a multiple already.
    pub pad_rule: PadRule,
    /// Height and width of every input, multiples of 32: no image is resized beyond it, and all are padded to it, whatever
    /// the two fields above say. Written by `exporter --input-size`; if absent, the size of an input follows from its image.
    pub input_size: Option<[u32; 2]>,
    /// What boxes are multiplied by on their way between image and input.
    pub box_scale: BoxScale,
}

/// From a resized side to whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideRounding {
    /// To the nearest, and a half to the even one, as Python's `round` does.
    HalfEven,
    /// The fraction is cut off, as torchvision does: 640x480 with a shorter side of 800 becomes 1066x800. Where the factor is
    /// a little too small in double precision, a side of 97 even becomes 799.
    Down,
}

/// Interpolation of a resized image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeFilter {
    /// Linear between neighbours.
    Bilinear,
    /// Cubic, over four neighbours.
    Bicubic,
    /// The nearest pixel.
    Nearest,
}

/// Whose interpolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// PyTorch's: beyond its edge an image goes on with its last pixel, and antialiasing widens the filter.
    Torch,
    /// `resize` of scikit-image from 0.19 on: beyond its edge an image goes on mirrored, and antialiasing is a Gaussian
    /// before. Bilinear only.
    ScikitImage,
}

/// Padding of a side that is a multiple already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadRule {
    /// None.
    Minimal,
    /// One more multiple, as yhenon/pytorch-retinanet does.
    Always,
}

/// From boxes in an image to boxes in the input, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxScale {
    /// The resized over the original side, for each axis by itself, so that the image's edges meet those of the input's
    /// image.
    PerAxis,
    /// The factor before sides are rounded, for both, as yhenon/pytorch-retinanet does: less than a pixel beside the other.
    Common,
}

impl Default for PreprocessingSpec {
    fn default() -> Self {
        Self {
            shorter_side: 608,
            longer_side: 1024,
            side_rounding: SideRounding::HalfEven,
            fixed_size: None,
            filter: ResizeFilter::Bilinear,
            antialias: true,
            resampling: Resampling::Torch,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            pad_multiple: 32,
            pad_rule: PadRule::Minimal,
            input_size: None,
            box_scale: BoxScale::PerAxis,
        }
    }
}
