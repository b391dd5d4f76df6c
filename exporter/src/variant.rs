//! Variants of a file: fixed input sizes, an input of bytes, and candidates or detections instead of the scores of all anchors.
//! The plain file has dynamic sizes, reads normalized images and outputs all scores. Each variant is a function of graphs, and
//! all of them combine.

mod bytes;
mod end_to_end;
mod fixed;
mod top_k;

use std::fmt;
use std::str::FromStr;

use models::onnx_contract::SIDE_MULTIPLE;
use models::{Anchors, ModelSpec};

use crate::error::ExportError;
use crate::onnx::GraphProto;

/// Candidates per feature level and detections per image of end-to-end files, if neither the options nor the spec limit them: those
/// of torchvision.
const DEFAULT_TOP_K: usize = 1000;
const DEFAULT_MAX_DETECTIONS: usize = 300;

/// The variant of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariantOptions {
    /// Height and width of the input; dynamic if absent.
    pub input_size: Option<InputSize>,
    /// Batch size; dynamic if absent.
    pub batch: Option<usize>,
    /// What the file reads.
    pub input: InputType,
    /// Maximum number of candidates per feature level, of those above the spec's score threshold. If absent, the file
    /// outputs scores and offsets of all anchors, or, end to end, has the spec's limit, or 1000.
    pub top_k: Option<usize>,
    /// Whether the file decodes boxes and applies NMS itself.
    pub end_to_end: bool,
    /// Maximum number of detections per image of an end-to-end file; if absent, the spec's limit, or 300.
    pub max_detections: Option<usize>,
}

/// What a file reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum InputType {
    /// Normalized images, `[N, 3, H, W]`.
    #[default]
    Float32,
    /// Resized images as RGB bytes, `[N, H, W, 3]`, and their sizes without padding, `[N, 2]`; the file normalizes them.
    Uint8,
}

/// Height and width of the network's input, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSize([u32; 2]);

impl InputSize {
    const MULTIPLE: u32 = SIDE_MULTIPLE as u32;

    /// The maximum that a spec allows.
    const MAX: u32 = 16384;

    fn sides(self) -> [usize; 2] {
        self.0.map(|side| side as usize)
    }
}

impl FromStr for InputSize {
    type Err = String;

    /// Height and width as `HEIGHTxWIDTH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |side: &u32| side.is_multiple_of(Self::MULTIPLE) && (Self::MULTIPLE..=Self::MAX).contains(side);
        let side = |text: &str| text.parse().ok().filter(fits);
        let sides = text.split_once('x').and_then(|(height, width)| Some([side(height)?, side(width)?]));
        sides.map(Self).ok_or_else(|| "expected HEIGHTxWIDTH, both multiples of 32, such as 640x832".to_owned())
    }
}

impl fmt::Display for InputSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [height, width] = self.0;
        write!(f, "{height}x{width}")
    }
}

impl VariantOptions {
    /// Whether this is the plain file: dynamic sizes, scores and offsets of all anchors.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// The spec of a file of this variant.
    ///
    /// # Errors
    /// When the input size does not fit the spec's `preprocessing.fixed_size`, and when the spec does not allow the variant.
    pub fn spec(&self, spec: &ModelSpec) -> Result<ModelSpec, ExportError> {
        let mut spec = spec.clone();
        if let Some(InputSize(sides)) = self.input_size {
            spec.preprocessing.input_size = Some(sides);
        }
        let rules = &mut spec.postprocessing;
        if let Some(top_k) = self.top_k {
            rules.top_k = Some(rules.top_k.map_or(top_k, |own| own.min(top_k)));
        }
        if self.end_to_end {
            if rules.soft_nms.is_some() {
                return Err(ExportError::SoftNms);
            }
            rules.top_k = rules.top_k.or(Some(DEFAULT_TOP_K));
            rules.max_detections = self.max_detections.or(rules.max_detections).or(Some(DEFAULT_MAX_DETECTIONS));
        }
        if self.input == InputType::Uint8 && !spec.preprocessing.round_pixels {
            return Err(ExportError::UnroundedPixels);
        }
        spec.check()?;
        Ok(spec)
    }

    /// Height and width of the input, if fixed.
    pub(crate) fn size(&self) -> Option<[usize; 2]> {
        self.input_size.map(InputSize::sides)
    }

    /// Whether the file outputs only candidates or detections, which depend on the score threshold.
    pub(crate) fn selects(&self) -> bool {
        self.top_k.is_some() || self.end_to_end
    }

    /// Converts `graph` to this variant. `spec` is that of [`VariantOptions::spec`].
    pub(crate) fn apply(&self, graph: &mut GraphProto, spec: &ModelSpec) {
        let size = self.size();
        let levels = size.map(|[height, width]| {
            let anchors = Anchors::new(&spec.anchors, height, width);
            anchors.levels().each_ref().map(|level| level.len())
        });
        let limit = spec.postprocessing.top_k.filter(|_| self.selects());
        if let Some(top_k) = limit {
            top_k::select_candidates(graph, spec, top_k, levels);
        }
        if let Some(max) = spec.postprocessing.max_detections.filter(|_| self.end_to_end) {
            end_to_end::detect(graph, spec, max, size);
        }
        if self.input == InputType::Uint8 {
            bytes::read_bytes(graph, &spec.preprocessing, size);
        }
        let rows = levels.map(|levels| {
            let kept = |anchors: usize| limit.map_or(anchors, |top_k| top_k.min(anchors * spec.class_count()));
            levels.map(kept).iter().sum()
        });
        fixed::fix_sizes(graph, self.batch, size, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_size_is_two_multiples_of_32() {
        for (text, sides) in [("32x64", [32, 64]), ("640x832", [640, 832]), ("16384x32", [16384, 32])] {
            let size: InputSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (sides, text));
        }
        for text in ["", "640", "640x", "x640", "0x32", "640x833", "-32x32", "640x832x3", "16416x32", "640 x 832"] {
            assert!(text.parse::<InputSize>().unwrap_err().contains("multiples of 32"), "{text}");
        }
    }

    #[test]
    fn spec_of_a_variant_contains_its_input_size_and_top_k() {
        let mut spec = ModelSpec::default();
        assert_eq!(VariantOptions::default().spec(&spec).unwrap(), spec);
        let input_size = Some(InputSize([320, 640]));
        let variant = VariantOptions { input_size, top_k: Some(100), ..VariantOptions::default() };
        let varied = variant.spec(&spec).unwrap();
        assert_eq!((varied.preprocessing.input_size, varied.postprocessing.top_k), (Some([320, 640]), Some(100)));
        spec.postprocessing.top_k = Some(50);
        assert_eq!(variant.spec(&spec).unwrap().postprocessing.top_k, Some(50));

        spec.preprocessing.fixed_size = Some([300, 620]);
        assert_eq!(variant.spec(&spec).unwrap().preprocessing.input_size, Some([320, 640]));
        spec.preprocessing.fixed_size = Some([300, 600]);
        let ExportError::Spec(error) = variant.spec(&spec).unwrap_err() else { panic!() };
        assert!(error.to_string().contains("preprocessing.fixed_size"), "{error}");
    }

    #[test]
    fn end_to_end_files_have_limits_and_neither_soft_nms_nor_unrounded_bytes() {
        let mut spec = ModelSpec::default();
        let variant = VariantOptions { end_to_end: true, ..VariantOptions::default() };
        let limits = |variant: VariantOptions, spec: &ModelSpec| {
            let rules = variant.spec(spec).unwrap().postprocessing;
            [rules.top_k, rules.max_detections]
        };
        assert_eq!(limits(variant, &spec), [Some(1000), Some(300)]);
        spec.postprocessing.max_detections = Some(100);
        assert_eq!(limits(VariantOptions { top_k: Some(50), ..variant }, &spec), [Some(50), Some(100)]);
        assert_eq!(limits(VariantOptions { max_detections: Some(9), ..variant }, &spec), [Some(1000), Some(9)]);
        spec.postprocessing.soft_nms = Some(0.5);
        assert!(matches!(variant.spec(&spec), Err(ExportError::SoftNms)));

        let bytes = VariantOptions { input: InputType::Uint8, ..VariantOptions::default() };
        assert!(matches!(bytes.spec(&spec), Err(ExportError::UnroundedPixels)));
        spec.preprocessing.round_pixels = true;
        assert_eq!(bytes.spec(&spec).unwrap(), spec);
    }
}
