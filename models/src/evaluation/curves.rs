//! Precision-recall curves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number of recalls at which precision is sampled.
pub(super) const RECALLS: usize = 101;

/// Precision of one class at the recalls 0, 0.01, ... 1: the maximum at that recall or a higher one, and 0 if the
/// recall is not reached. Includes objects of all sizes and the 100 highest-scoring detections per image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Curves {
    /// The average over the IoU thresholds; its mean is AP.
    pub precision: Vec<f64>,
    /// At IoU 0.5.
    pub iou50: Curve,
    /// At IoU 0.75.
    pub iou75: Curve,
}

/// Precision over recall at one IoU threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Curve {
    /// At each recall.
    pub precision: Vec<f64>,
    /// The score threshold that reaches each recall; 0 if it is not reached.
    pub score: Vec<f64>,
}

/// The recalls, computed as products like in `numpy.linspace`; 35 / 100 would differ.
pub(super) fn recalls() -> impl Iterator<Item = f64> {
    (0..RECALLS).map(|step| step as f64 * 0.01)
}

/// The score threshold with the highest F1, the harmonic mean of precision and recall, of a class at IoU 0.5.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BestF1 {
    /// The score threshold.
    pub score: f64,
    /// F1 at this threshold.
    pub f1: f64,
    /// Fraction of true positives among the detections, without those in crowd regions.
    pub precision: f64,
    /// Fraction of the objects that are found.
    pub recall: f64,
}
