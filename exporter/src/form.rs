//! The form of a file: which sizes are free, and how much of what the network says it hands over.

mod agreement;
mod fixed;
mod top_k;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use models::{Anchors, ModelSpec, SpecError};
use ndarray::Array4;
use runtime::{EngineError, EngineOptions};

use crate::graph::Graph;

/// What may be fixed or left out in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormOptions {
    /// Height and width of every input; free if absent.
    pub input_size: Option<InputSize>,
    /// Number of images that are computed at a time; free if absent.
    pub batch: Option<usize>,
    /// Most candidates of each level that the file hands over, those above the spec's threshold; scores and offsets of all
    /// anchors if absent.
    pub top_k: Option<usize>,
}

/// Height and width that the network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSize([u32; 2]);

impl InputSize {
    /// The network halves its input five times and adds the halves up again.
    const MULTIPLE: u32 = 32;

    /// As large as a spec allows.
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
        sides.map(Self).ok_or_else(|| "expected height x width, both multiples of 32, such as 640x832".to_owned())
    }
}

impl fmt::Display for InputSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [height, width] = self.0;
        write!(f, "{height}x{width}")
    }
}

/// Largest absolute differences of a file from the one of free form; NaN if a number of either is NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FormDifferences {
    /// Of the scores.
    pub scores: f64,
    /// Of the offsets.
    pub offsets: f64,
}

/// Why a file can't have its form.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// It contradicts the spec.
    #[error("the spec does not allow this form; change --input-size, or the spec in the configuration")]
    Spec(#[from] SpecError),
    /// ONNX Runtime does not take the file.
    #[error("cannot compare the file with the one of free form")]
    Engine(#[from] EngineError),
    /// The file says something else.
    #[error(
        "the file differs from the one of free form: scores by {:.1e}, offsets by {:.1e}; no file was written. This is a mistake \
         of the exporter or of ONNX Runtime: export without --input-size, --batch-size and --top-k", .0.scores, .0.offsets
    )]
    Differs(FormDifferences),
}

impl FormOptions {
    /// Whether a file of this form is as the network is: of free sizes, and complete.
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// The spec of a file of this form.
    ///
    /// # Errors
    /// When the input size contradicts what the spec stretches images to.
    pub fn spec(&self, spec: &ModelSpec) -> Result<ModelSpec, FormError> {
        let mut spec = spec.clone();
        if let Some(InputSize(sides)) = self.input_size {
            spec.preprocessing.input_size = Some(sides);
        }
        if let Some(top_k) = self.top_k {
            spec.postprocessing.top_k = Some(spec.postprocessing.top_k.map_or(top_k, |own| own.min(top_k)));
        }
        spec.validate()?;
        Ok(spec)
    }

    /// Gives `graph` its form. `spec` is that of [`FormOptions::spec`].
    pub(crate) fn apply(&self, graph: &mut Graph, spec: &ModelSpec) {
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

/// Compares the file `formed` with `free`, which differs from it in nothing but its form. Both run on `images`, cut and
/// repeated to a size that both take.
///
/// # Errors
/// When ONNX Runtime does not take one of them, or a difference exceeds `tolerance` or is no number.
pub(crate) fn check(
    free: &Path,
    formed: &Path,
    images: &Array4<f32>,
    tolerance: FormDifferences,
    engine: &EngineOptions,
) -> Result<FormDifferences, FormError> {
    let differences = agreement::compare(free, formed, images, engine)?;
    // Comparisons with NaN are false, so that NaN is a failure.
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
    fn a_size_is_two_multiples_of_32() {
        for (text, sides) in [("32x64", [32, 64]), ("640x832", [640, 832]), ("16384x32", [16384, 32])] {
            let size: InputSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (sides, text));
        }
        for text in ["", "640", "640x", "x640", "0x32", "640x833", "-32x32", "640x832x3", "16416x32", "640 x 832"] {
            assert!(text.parse::<InputSize>().unwrap_err().contains("multiples of 32"), "{text}");
        }
    }

    #[test]
    fn the_spec_of_a_form_says_what_changed() {
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
