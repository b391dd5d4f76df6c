//! What COCO's evaluation measures: thresholds, areas and limits.

use crate::rectangle::Rectangle;

/// A detection to evaluate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredBox {
    /// Index of the image in the data set.
    pub image: usize,
    /// Index of the class in the data set.
    pub class_index: usize,
    /// Confidence score; higher is more confident, NaN sorts last.
    pub score: f64,
    /// The box, in pixels of the original image (upright, after EXIF rotation).
    pub rectangle: Rectangle,
}

impl ScoredBox {
    /// The score for sorting: -inf for NaN, and 0 for negative zero.
    pub(super) fn sort_score(&self) -> f64 {
        if self.score.is_nan() { f64::NEG_INFINITY } else { self.score + 0.0 }
    }
}

/// Value of a metric without any object in the ground truth.
pub(super) const UNDEFINED: f64 = -1.0;

/// IoU thresholds for a match: `numpy.linspace(0.5, 0.95, 10)`, whose ninth number is not exactly 0.9.
pub(super) const THRESHOLDS: [f64; 10] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95];

/// Index of 0.5 in [`THRESHOLDS`].
pub(super) const AT_50: usize = 0;
/// Index of 0.75 in [`THRESHOLDS`].
pub(super) const AT_75: usize = 5;

/// Area ranges in square pixels, both ends included: all, small, medium, large.
pub(super) const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// Indices in [`AREAS`].
pub(super) const ALL: usize = 0;
pub(super) const SMALL: usize = 1;
pub(super) const MEDIUM: usize = 2;
pub(super) const LARGE: usize = 3;

/// Number of limits of detections per image and class.
pub(super) const LIMITS: usize = 3;

/// COCO's limits of detections per image and class, by score, for recall. Detections beyond the last limit are ignored.
pub const MAX_DETECTIONS: [usize; LIMITS] = [1, 10, 100];

/// The mean, or [`UNDEFINED`] without numbers.
pub(super) fn average(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.into_iter().fold((0.0, 0.0), |(sum, count), number| (sum + number, count + 1.0));
    if count > 0.0 { sum / count } else { UNDEFINED }
}
