//! The preprocessing section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, ensure, within};

/// Conversion of images to the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct PreprocessingSpec {
    /// The shorter side is resized to this many pixels ...
    pub shorter_side: u32,
    /// ... unless the longer side would then exceed this many.
    pub longer_side: u32,
    /// How resized sides are rounded to pixels.
    pub side_rounding: SideRounding,
    /// Height and width to which every image is resized, without keeping its aspect ratio. If absent, the fields above
    /// determine the size, and the aspect ratio is kept.
    pub fixed_size: Option<[u32; 2]>,
    /// Interpolation filter.
    pub filter: ResizeFilter,
    /// Whether shrinking images are low-pass filtered.
    pub antialias: bool,
    /// The library whose interpolation is reproduced.
    pub resampling: Resampling,
    /// Whether images are resized as bytes, so that pixels are whole numbers from 0 to 255 before normalization: with
    /// `antialias` those of Pillow (Detectron2, ODTK), bilinear without it those of OpenCV (MMDetection). torchvision and
    /// yhenon/pytorch-retinanet resize floating-point numbers.
    pub round_pixels: bool,
    /// Mean of red, green and blue, subtracted from pixels in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, by which pixels are then divided.
    pub std: [f32; 3],
    /// Height and width are padded with zeros, right and below, to a multiple of this; itself a multiple of 32.
    pub pad_multiple: u32,
    /// Padding of sides that are already multiples.
    pub pad_rule: PadRule,
    /// Fixed height and width of the input, multiples of 32: images are resized to fit into it and padded to it, instead of
    /// to `pad_multiple`. Set by `exporter --input-size`. If absent, the size of the input depends on the image.
    pub input_size: Option<[u32; 2]>,
    /// Scale factor of boxes between original image and input.
    pub box_scale: BoxScale,
}

/// Rounding of resized sides to pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SideRounding {
    /// To the nearest integer, half to even, as Python's `round` does.
    HalfEven,
    /// To the nearest integer, half up, as Detectron2 and MMDetection do.
    HalfUp,
    /// Down, as in torchvision: 640x480 with a shorter side of 800 becomes 1066x800. Where double precision makes the scale
    /// factor slightly too small, the shorter side becomes 799, for example from 97.
    Down,
}

/// Interpolation filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResizeFilter {
    /// Linear, over two neighbors per axis.
    Bilinear,
    /// Cubic, over four neighbors per axis.
    Bicubic,
    /// The nearest pixel.
    Nearest,
}

/// The library whose interpolation is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// `interpolate` of PyTorch: the last pixel is repeated beyond the edge, and antialiasing widens the filter.
    Torch,
    /// `resize` of scikit-image 0.19 or later: the image is mirrored beyond the edge, and antialiasing is a Gaussian blur
    /// before interpolation. Bilinear only.
    ScikitImage,
}

/// Padding of sides that are already multiples of `pad_multiple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PadRule {
    /// No padding.
    Minimal,
    /// One more multiple, as in yhenon/pytorch-retinanet.
    Always,
}

/// Scale factor of boxes between original image and input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoxScale {
    /// Resized over original side, for each axis separately, so that the edges of the original image map to the edges of
    /// the resized image.
    PerAxis,
    /// The factor before sides are rounded, for both axes, as in yhenon/pytorch-retinanet: less than a pixel of difference.
    Common,
}

/// A library whose resized bytes are reproduced to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteResampling {
    /// Pillow's `resize`, before version 13.
    Pillow,
    /// OpenCV's `INTER_LINEAR`.
    OpenCv,
}

impl PreprocessingSpec {
    /// The library whose bytes resized pixels are; `None` if they are floating-point numbers, rounded or not.
    pub fn byte_resampling(&self) -> Option<ByteResampling> {
        if !self.round_pixels || self.resampling != Resampling::Torch {
            return None;
        }
        match (self.filter, self.antialias) {
            (ResizeFilter::Bilinear | ResizeFilter::Bicubic, true) => Some(ByteResampling::Pillow),
            (ResizeFilter::Bilinear, false) => Some(ByteResampling::OpenCv),
            _ => None,
        }
    }

    /// Upper bounds of the input's height and width; in any order without a fixed size.
    pub(super) fn max_input(&self) -> [u64; 2] {
        let resized = self.fixed_size.unwrap_or([self.shorter_side, self.longer_side]);
        self.input_size.unwrap_or_else(|| resized.map(|side| self.pad(side))).map(u64::from)
    }
}

impl Section for PreprocessingSpec {
    fn check(&self) -> Result<(), SpecError> {
        const MAX_SIDE: f64 = 16384.0;
        let Self { shorter_side, longer_side, fixed_size, filter, pad_multiple, input_size, box_scale, .. } = self;
        within("preprocessing.shorter_side", shorter_side, 1.0..=MAX_SIDE)?;
        within("preprocessing.longer_side", longer_side, f64::from(*shorter_side)..=MAX_SIDE)?;
        within("preprocessing.fixed_size", fixed_size, 1.0..=MAX_SIDE)?;
        let supported = self.resampling == Resampling::Torch || *filter == ResizeFilter::Bilinear;
        ensure(supported, "preprocessing.filter", filter, "bilinear, because resampling is scikit_image")?;
        let expected = "per_axis, because fixed_size scales each axis separately";
        let supported = *box_scale == BoxScale::PerAxis || fixed_size.is_none();
        ensure(supported, "preprocessing.box_scale", box_scale, expected)?;
        check_normalization(&self.mean, &self.std).map_err(|error| error.inside("preprocessing"))?;
        let aligned = |side: &u32| side.is_multiple_of(32);
        within("preprocessing.pad_multiple", pad_multiple, 32.0..=4096.0)?;
        let expected = "a multiple of 32, so that the feature levels align";
        ensure(aligned(pad_multiple), "preprocessing.pad_multiple", pad_multiple, expected)?;
        within("preprocessing.input_size", input_size, 32.0..=MAX_SIDE)?;
        let valid = input_size.iter().flatten().all(aligned);
        ensure(valid, "preprocessing.input_size", input_size, "multiples of 32, or null")?;
        let padded = fixed_size.map(|sides| sides.map(|side| self.pad(side)));
        let valid = input_size.is_none() || padded.is_none() || *input_size == padded;
        let expected = "the height and width of preprocessing.fixed_size after padding, or null";
        ensure(valid, "preprocessing.input_size", input_size, expected)?;
        let [height, width] = self.max_input();
        let (found, valid) = (format_args!("an input of up to {height}x{width} pixels"), height * width <= 1 << 26);
        ensure(valid, "preprocessing", found, "at most 67108864 pixels (8192x8192)")
    }
}

checked!(PreprocessingSpec);

/// The rules of mean and standard deviation of pixels.
pub(super) fn check_normalization(mean: &[f32; 3], std: &[f32; 3]) -> Result<(), SpecError> {
    within("mean", mean, -1e4..=1e4)?;
    within("std", std, 1e-4..=1e4)
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
            round_pixels: false,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            pad_multiple: 32,
            pad_rule: PadRule::Minimal,
            input_size: None,
            box_scale: BoxScale::PerAxis,
        }
    }
}
