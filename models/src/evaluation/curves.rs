//! Precision over recall.

use serde::{Deserialize, Serialize};

/// Recalls at which precision is read.
pub(super) const RECALLS: usize = 101;

/// Precision of one class over the recalls 0, 0.01, ... 1, one number for each. It is the best at that recall or a higher
/// one, and 0 where that recall is not reached. Objects of all sizes count, and the best 100 detections per image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// The average over the IoU thresholds; its average is AP.
    pub precision: Vec<f64>,
    /// At IoU 0.5.
    pub iou50: Curve,
    /// At IoU 0.75.
    pub iou75: Curve,
}

/// Precision over recall at one IoU threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// At each recall.
    pub precision: Vec<f64>,
    /// The score down to which detections must be taken to reach each recall; 0 where it is not reached.
    pub score: Vec<f64>,
}

/// The products are `numpy.linspace`'s; 35 / 100 would differ.
pub(super) fn recalls() -> impl Iterator<Item = f64> {
    (0..RECALLS).map(|step| step as f64 * 0.01)
}
