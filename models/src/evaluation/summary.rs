//! Average precision and recall, over all classes and by class.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::accumulation::{AreaScores, ClassScores};
use super::curves::BestF1;
use super::protocol::{ALL, AT_50, AT_75, LARGE, MEDIUM, SMALL, UNDEFINED, average};

/// COCO's twelve metrics, in [0, 1]; -1 without objects.
///
/// Precision is averaged over 101 recalls and over the classes with objects, recall over these classes; both also over
/// the IoU thresholds 0.5, 0.55, ... 0.95 unless the metric has its own. With other limits than 1, 10 and 100 detections per
/// image and class, `ar1`, `ar10` and `ar100` have the first, second and third of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Average precision.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// Average precision at IoU 0.5.
    #[serde(rename = "AP50")]
    pub ap50: f64,
    /// Average precision at IoU 0.75.
    #[serde(rename = "AP75")]
    pub ap75: f64,
    /// Average precision on small objects: up to 32² square pixels.
    #[serde(rename = "APs")]
    pub ap_small: f64,
    /// Average precision on medium objects: 32² to 96² square pixels.
    #[serde(rename = "APm")]
    pub ap_medium: f64,
    /// Average precision on large objects: from 96² square pixels.
    #[serde(rename = "APl")]
    pub ap_large: f64,
    /// Recall with the highest-scoring detection per image and class.
    #[serde(rename = "AR1")]
    pub ar1: f64,
    /// Recall with the 10 highest-scoring detections per image and class.
    #[serde(rename = "AR10")]
    pub ar10: f64,
    /// Recall with the 100 highest-scoring detections per image and class.
    #[serde(rename = "AR100")]
    pub ar100: f64,
    /// Recall on small objects.
    #[serde(rename = "ARs")]
    pub ar_small: f64,
    /// Recall on medium objects.
    #[serde(rename = "ARm")]
    pub ar_medium: f64,
    /// Recall on large objects.
    #[serde(rename = "ARl")]
    pub ar_large: f64,
}

/// The metrics of one class, in [0, 1]; -1 without objects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassSummary {
    /// Number of objects, without crowd regions.
    pub objects: usize,
    /// Number of detections that were evaluated: the 100 highest-scoring per image, including those in crowd regions.
    pub detections: usize,
    /// Average precision.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// Average precision at IoU 0.5.
    #[serde(rename = "AP50")]
    pub ap50: f64,
    /// Average precision at IoU 0.75.
    #[serde(rename = "AP75")]
    pub ap75: f64,
    /// Average precision on small objects.
    #[serde(rename = "APs")]
    pub ap_small: f64,
    /// Average precision on medium objects.
    #[serde(rename = "APm")]
    pub ap_medium: f64,
    /// Average precision on large objects.
    #[serde(rename = "APl")]
    pub ap_large: f64,
    /// Recall with the 100 highest-scoring detections per image.
    #[serde(rename = "AR100")]
    pub ar100: f64,
    /// The score threshold with the highest F1; none if no object is found.
    pub best_f1: Option<BestF1>,
}

impl Summary {
    pub(super) fn new(classes: &[ClassScores]) -> Self {
        let over = |area: usize, metric: fn(&AreaScores) -> f64| {
            average(classes.iter().filter_map(|scores| scores.areas[area].as_ref()).map(metric))
        };
        Self {
            ap: over(ALL, AreaScores::precision),
            ap50: over(ALL, |scores| scores.precision[AT_50]),
            ap75: over(ALL, |scores| scores.precision[AT_75]),
            ap_small: over(SMALL, AreaScores::precision),
            ap_medium: over(MEDIUM, AreaScores::precision),
            ap_large: over(LARGE, AreaScores::precision),
            ar1: over(ALL, |scores| scores.recall(0)),
            ar10: over(ALL, |scores| scores.recall(1)),
            ar100: over(ALL, |scores| scores.recall(2)),
            ar_small: over(SMALL, |scores| scores.recall(2)),
            ar_medium: over(MEDIUM, |scores| scores.recall(2)),
            ar_large: over(LARGE, |scores| scores.recall(2)),
        }
    }
}

impl ClassSummary {
    pub(super) fn new(scores: &ClassScores) -> Self {
        let of = |area: usize, metric: fn(&AreaScores) -> f64| scores.areas[area].as_ref().map_or(UNDEFINED, metric);
        Self {
            objects: scores.objects,
            detections: scores.detections,
            ap: of(ALL, AreaScores::precision),
            ap50: of(ALL, |scores| scores.precision[AT_50]),
            ap75: of(ALL, |scores| scores.precision[AT_75]),
            ap_small: of(SMALL, AreaScores::precision),
            ap_medium: of(MEDIUM, AreaScores::precision),
            ap_large: of(LARGE, AreaScores::precision),
            ar100: of(ALL, |scores| scores.recall(2)),
            best_f1: scores.best_f1,
        }
    }
}
