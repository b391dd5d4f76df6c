//! The proof: a file answers the checkpoint's probe in ONNX Runtime as libtorch did.

use std::path::Path;

use models::Probe;
use ndarray::{ArrayView3, Zip};
use runtime::{Engine, EngineError, EngineOptions};

/// Largest difference of two scores, which are in (0, 1). In 32 bits, the order of summation alone makes about 1e-6.
pub const SCORE_TOLERANCE: f32 = 1e-4;

/// Largest difference of two offsets, which are about 1 in size.
pub const OFFSET_TOLERANCE: f32 = 1e-3;

/// Largest absolute differences between two answers to one probe; NaN if a number of either is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Differences {
    /// Of the scores.
    pub scores: f32,
    /// Of the offsets.
    pub offsets: f32,
}

/// Why a file is not what libtorch computed.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// ONNX Runtime is missing, or does not take the file.
    #[error("cannot prove the export")]
    Engine(#[from] EngineError),
    /// ONNX Runtime computes tensors of other shapes.
    #[error(
        "ONNX Runtime computes shape {found:?} where libtorch computed {expected:?}; no file was written. The probe does \
         not belong to the weights: export another checkpoint of the run"
    )]
    Shape {
        /// The probe's shape.
        expected: Vec<usize>,
        /// ONNX Runtime's shape.
        found: Vec<usize>,
    },
    /// ONNX Runtime computes other numbers.
    #[error(
        "ONNX Runtime and libtorch differ on the checkpoint's probe: scores by {:.1e} (allowed {SCORE_TOLERANCE:e}), \
         offsets by {:.1e} (allowed {OFFSET_TOLERANCE:e}); no file was written. The weights may hold NaN or have changed \
         after training: export another checkpoint of the run", .0.scores, .0.offsets
    )]
    Differs(Differences),
}

/// Runs the probe through the file `model` on the processor and compares.
///
/// # Errors
/// When ONNX Runtime is missing or refuses the file, or a difference is over its tolerance or NaN.
pub fn prove(model: &Path, probe: &Probe, options: &EngineOptions) -> Result<Differences, ProofError> {
    let outputs = Engine::open(model, options)?.run(probe.images.view())?.into_dense()?;
    let differences = Differences {
        scores: largest_difference(probe.classification.view(), outputs.scores())?,
        offsets: largest_difference(probe.regression.view(), outputs.offsets())?,
    };
    // Comparisons with NaN are false, so that NaN is a failure.
    if differences.scores <= SCORE_TOLERANCE && differences.offsets <= OFFSET_TOLERANCE {
        Ok(differences)
    } else {
        Err(ProofError::Differs(differences))
    }
}

/// The largest absolute difference; not a number when one of the values is none.
///
/// # Errors
/// When the shapes differ.
pub fn largest_difference(expected: ArrayView3<f32>, found: ArrayView3<f32>) -> Result<f32, ProofError> {
    if expected.dim() != found.dim() {
        return Err(ProofError::Shape { expected: expected.shape().to_vec(), found: found.shape().to_vec() });
    }
    Ok(Zip::from(expected).and(found).fold(0.0, |largest: f32, expected, found| {
        let difference = (expected - found).abs();
        // `f32::max` would lose a NaN.
        if difference > largest || difference.is_nan() { difference } else { largest }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    #[test]
    fn the_largest_difference_has_no_sign_and_sees_nan_anywhere() {
        let difference = |a: &Array3<f32>, b: &Array3<f32>| largest_difference(a.view(), b.view()).unwrap();
        let a = array![[[1.0, 2.0, 3.0]]];
        assert_eq!(difference(&a, &a), 0.0);
        assert_eq!(difference(&a, &array![[[1.5, 0.0, 3.0]]]), 2.0);
        assert_eq!(difference(&array![[[1.5, 0.0, 3.0]]], &a), 2.0);
        for place in 0..3 {
            let mut b = array![[[9.0, 9.0, 9.0]]];
            b[[0, 0, place]] = f32::NAN;
            assert!(difference(&a, &b).is_nan());
            assert!(difference(&b, &a).is_nan());
        }
        assert_eq!(difference(&array![[[f32::INFINITY]]], &array![[[0.0]]]), f32::INFINITY);
    }

    #[test]
    fn different_shapes_are_an_error_that_shows_both() {
        let (a, b) = (Array3::zeros((1, 9, 4)), Array3::zeros((1, 8, 4)));
        let text = largest_difference(a.view(), b.view()).unwrap_err().to_string();
        assert!(text.contains("[1, 9, 4]") && text.contains("[1, 8, 4]"), "{text}");
    }
}
