//! Comparison of a float32 file with libtorch, on the checkpoint's probe.

use std::fmt;

use models::{Deviation, HeadOutputs, Probe, max_abs};
use ndarray::{Array3, ArrayView3};

/// Maximum ratio of a file's error to libtorch's float32 error, in any part of the probe. Both are errors against
/// libtorch's float64 outputs. Correct weights have ratios of 0.6 to 1.2: ResNet-18 to 152, each with frozen batch,
/// batch and group norm, with initial and with random weights, and the demo's after 0, 1, 3 and 7 epochs. If all values
/// of one tensor are wrong by 1 %, the ratio is at least 8: all 88 tensors of the demo after 1, 3 and 7 epochs (the
/// minimum is for biases that are still small), and 20 tensors of each depth. These ratios are printed by
/// `cargo run --release -p tests --example proof`.
pub const TOLERANCE: f64 = 3.0;

/// Limit of the probe's rounding errors, as a fraction of the expected values' RMS: 25 times the measured maximum. With
/// larger ones, a verification would be meaningless.
const MAX_ROUNDING: f64 = 1e-4;

/// Maximum difference of scores from the sigmoid of equal logits.
const SCORE_TOLERANCE: f64 = 1e-6;

/// Differences of a file's outputs from libtorch's float64 outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Differences {
    /// Maximum ratio of the file's error to libtorch's float32 error, over all parts of the probe.
    pub error_ratio: f64,
    /// RMS difference of the logits, divided by their standard deviation.
    pub logits: f64,
    /// RMS difference of the offsets, divided by their standard deviation.
    pub offsets: f64,
    /// Maximum difference of the logits.
    pub max_logit: f64,
}

impl Differences {
    /// The differences of `found`, and of `offsets` that the file computed without outputs inside the network.
    pub(super) fn of(probe: &Probe, mut found: HeadOutputs, offsets: ArrayView3<f32>) -> Self {
        let with_inner_values = Self::of_heads(probe, &found);
        found.offsets = offsets.to_owned();
        let error_ratio = max_abs(with_inner_values.error_ratio, Self::of_heads(probe, &found).error_ratio);
        Self { error_ratio, ..with_inner_values }
    }

    /// Whether the file reproduces the probe.
    pub(super) fn are_within_tolerance(&self) -> bool {
        self.error_ratio <= TOLERANCE
    }

    fn of_heads(probe: &Probe, found: &HeadOutputs) -> Self {
        let size = [probe.images.dim().2, probe.images.dim().3];
        let deviations = probe.outputs.deviations(found, size);
        let ratio = |deviation: &Deviation, rounding: [f32; 2]| {
            let max_rounding = MAX_ROUNDING * deviation.expected_rms();
            let ratios =
                [deviation.rms(), deviation.systematic()].into_iter().zip(rounding).map(|(error, rounding)| {
                    // The last digit may differ even where libtorch happens to be exact.
                    let excess = error - f64::from(f32::EPSILON) * deviation.expected_rms();
                    // Comparisons with NaN are false.
                    let rounding = if f64::from(rounding) > max_rounding { max_rounding } else { f64::from(rounding) };
                    if excess <= 0.0 { 0.0 } else { excess / rounding }
                });
            ratios.fold(0.0, max_abs)
        };
        let [logits, offsets, ..] = &deviations;
        let (max_logit, logits, offsets) = (logits.max(), logits.relative(), offsets.relative());
        let ratios = deviations.iter().zip(probe.rounding).map(|(deviation, rounding)| ratio(deviation, rounding));
        Self { error_ratio: ratios.fold(0.0, max_abs), logits, offsets, max_logit }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { error_ratio, logits, offsets, .. } = self;
        let digits = if *error_ratio < 100.0 { 1 } else { 0 };
        write!(
            f,
            "{error_ratio:.digits$} times libtorch's float32 error (limit {TOLERANCE}); RMS difference {logits:.1e} of \
             the standard deviation for logits and {offsets:.1e} for offsets"
        )
    }
}

/// The difference of the scores from the sigmoid of the expected logits, if it exceeds what `differences` explain.
pub(super) fn score_difference(logits: &Array3<f32>, scores: ArrayView3<f32>, differences: Differences) -> Option<f64> {
    let sigmoid = |logit: f32| (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32;
    let mut deviation = Deviation::default();
    deviation.add(logits.mapv(sigmoid).view(), scores);
    // The slope of the sigmoid is at most 1/4.
    let is_explained = deviation.max() <= SCORE_TOLERANCE + differences.max_logit / 2.0;
    (!is_explained).then_some(deviation.max())
}
