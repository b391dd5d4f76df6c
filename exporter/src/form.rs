//! Variants of a file: fixed input sizes, and top-k candidates instead of the scores of all anchors. The plain file has
//! dynamic sizes and outputs all scores.

mod agreement;
mod fixed;
mod top_k;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use models::{Anchors, ModelSpec, SpecError};
use ndarray::Array4;
use runtime::{EngineError, EngineOptions};

use crate::onnx::GraphProto;

/// The variant of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormOptions {
    /// Height and width of the input; dynamic if absent.
    pub input_size: Option<InputSize>,
    /// Batch size; dynamic if absent.
    pub batch: Option<usize>,
    /// Maximum number of candidates per feature level, of those above the spec's score threshold. If absent, the file
    /// outputs scores and offsets of all anchors.
    pub top_k: Option<usize>,
}

/// Height and width of the network's input, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSize([u32; 2]);

impl InputSize {
    /// The network halves its input five times, then upsamples and adds the feature maps.
    const MULTIPLE: u32 = 32;

    /// The maximum that a spec allows.
    const MOST: u32 = 16384;

    fn sides(self) -> [usize; 2] {
        self.0.map(|side| side as usize)
    }
}

impl FromStr for InputSize {
    type Err = String;

    /// Height and width as `HEIGHTxWIDTH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |side: &u32| side.is_multiple_of(Self::MULTIPLE) && (Self::MULTIPLE..=Self::MOST).contains(side);
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

/// Maximum absolute differences of a file from the plain file; NaN if either has NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FormDifferences {
    /// Of the scores.
    pub scores: f64,
    /// Of the offsets.
    pub offsets: f64,
}

/// Why a variant cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The spec does not allow it.
    #[error("the checkpoint's spec does not allow this variant; change --input-size")]
    Spec(#[from] SpecError),
    /// ONNX Runtime cannot run the file.
    #[error("cannot compare the file with an export without --input-size, --batch-size and --top-k")]
    Engine(#[from] EngineError),
    /// The outputs differ from those of the plain file.
    #[error(
        "the file differs from an export without --input-size, --batch-size and --top-k by {:.1e} in scores and {:.1e} \
         in offsets; no file was written. This is a bug in the exporter or in ONNX Runtime: omit these flags",
        .0.scores, .0.offsets
    )]
    Differs(FormDifferences),
}

impl FormOptions {
    /// Whether this is the plain file: dynamic sizes, scores and offsets of all anchors.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// The spec of a file of this variant.
    ///
    /// # Errors
    /// When the input size does not fit the spec's `preprocessing.fixed_size`.
    pub fn spec(&self, spec: &ModelSpec) -> Result<ModelSpec, FormError> {
        let mut spec = spec.clone();
        if let Some(InputSize(sides)) = self.input_size {
            spec.preprocessing.input_size = Some(sides);
        }
        if let Some(top_k) = self.top_k {
            spec.postprocessing.top_k = Some(spec.postprocessing.top_k.map_or(top_k, |own| own.min(top_k)));
        }
        spec.check()?;
        Ok(spec)
    }

    /// Converts `graph` to this variant. `spec` is that of [`FormOptions::spec`].
    pub(crate) fn apply(&self, graph: &mut GraphProto, spec: &ModelSpec) {
        let size = self.input_size.map(InputSize::sides);
        let levels = size.map(|[height, width]| {
            let anchors = Anchors::new(&spec.anchors, height, width);
            anchors.levels().each_ref().map(|level| level.len())
        });
        let limit = self.top_k.and(spec.postprocessing.top_k);
        if let Some(top_k) = limit {
            top_k::hand_over_candidates(graph, spec, top_k, levels);
        }
        let rows = levels.map(|levels| {
            let kept = |anchors: usize| limit.map_or(anchors, |top_k| top_k.min(anchors * spec.class_count()));
            levels.map(kept).iter().sum()
        });
        fixed::fix_sizes(graph, self.batch, size, rows);
    }
}

/// Compares the file `formed` with `free`, the plain file of the same network. Both run on `images`, cropped or tiled
/// to the input size of `formed`.
///
/// # Errors
/// When ONNX Runtime cannot run one of them, or a difference exceeds `tolerance` or is NaN.
pub(crate) fn check(
    free: &Path,
    formed: &Path,
    images: &Array4<f32>,
    tolerance: FormDifferences,
    engine: &EngineOptions,
) -> Result<FormDifferences, FormError> {
    let differences = agreement::compare(free, formed, images, engine)?;
    // Comparisons with NaN are false, so NaN fails.
    if differences.scores <= tolerance.scores && differences.offsets <= tolerance.offsets {
        Ok(differences)
    } else {
        Err(FormError::Differs(differences))
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
        assert_eq!(FormOptions::default().spec(&spec).unwrap(), spec);
        let form = FormOptions { input_size: Some(InputSize([320, 640])), batch: Some(4), top_k: Some(100) };
        let formed = form.spec(&spec).unwrap();
        assert_eq!((formed.preprocessing.input_size, formed.postprocessing.top_k), (Some([320, 640]), Some(100)));
        spec.postprocessing.top_k = Some(50);
        assert_eq!(form.spec(&spec).unwrap().postprocessing.top_k, Some(50));

        spec.preprocessing.fixed_size = Some([300, 620]);
        assert_eq!(form.spec(&spec).unwrap().preprocessing.input_size, Some([320, 640]));
        spec.preprocessing.fixed_size = Some([300, 600]);
        let error = form.spec(&spec).unwrap_err();
        let FormError::Spec(reason) = &error else { panic!("{error}") };
        assert!(reason.to_string().contains("preprocessing.fixed_size"), "{reason}");
    }
}
