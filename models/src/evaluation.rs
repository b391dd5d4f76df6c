//! COCO's average precision and recall for boxes. <https://cocodataset.org/#detection-eval>
//!
//! The numbers are those of pycocotools: the same double precision arithmetic, the same order among equal scores and equal
//! overlaps. One thing differs by intent: pycocotools takes an annotation whose id is 0 for unmatched whatever matches it.

mod accumulation;
mod matching;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dataset::{Annotation, Rectangle};
use accumulation::{AreaScores, accumulate};
use matching::{Candidate, judge};

/// One detection, to be judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredBox {
    /// Place of the picture in the data set.
    pub image: usize,
    /// Place of the class in the data set.
    pub class: usize,
    /// Higher is surer; what is not a number comes last.
    pub score: f64,
    /// Where it is, in pixels of the picture.
    pub rectangle: Rectangle,
}

/// What a detector is worth on a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Over all classes.
    pub summary: Summary,
    /// Of each class, in the order of the data set.
    pub classes: Vec<ClassSummary>,
}

/// COCO's twelve numbers, in [0, 1]; -1 where there is no object to find.
///
/// Precision is averaged over 101 recalls and over the classes that have objects, recall over these classes; both over the
/// IoU thresholds 0.5, 0.55, ... 0.95 where none is named.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Recall with the best detection per picture and class.
    #[serde(rename = "AR1")]
    pub ar1: f64,
    /// Recall with the best 10 detections per picture and class.
    #[serde(rename = "AR10")]
    pub ar10: f64,
    /// Recall with the best 100 detections per picture and class.
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

/// The numbers of one class, in [0, 1]; -1 where it has no object to find.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassSummary {
    /// Average precision.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// Recall with the best 100 detections per picture.
    #[serde(rename = "AR100")]
    pub ar100: f64,
}

/// The number where there is no object to find.
const ABSENT: f64 = -1.0;

/// IoU from which a detection has found an object: `numpy.linspace(0.5, 0.95, 10)`, whose ninth number is not 0.9.
const THRESHOLDS: [f64; 10] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95];

/// Place of 0.5 in [`THRESHOLDS`].
const AT_50: usize = 0;
/// Place of 0.75 in [`THRESHOLDS`].
const AT_75: usize = 5;

/// Areas in square pixels, both ends included: all, small, medium, large.
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// Places in [`AREAS`].
const ALL: usize = 0;
const SMALL: usize = 1;
const MEDIUM: usize = 2;
const LARGE: usize = 3;

/// Detections of one picture and class, best first, up to which recall is measured; those after the last don't count.
const DETECTIONS: [usize; 3] = [1, 10, 100];

/// Judges `detections`, in any order, against `truth`, in the order of [`Dataset::annotations`]. Boxes whose class is not
/// below `classes` don't count, and of each picture and class only the best 100 detections do.
///
/// [`Dataset::annotations`]: crate::dataset::Dataset::annotations
pub fn evaluate(truth: &[Annotation], detections: &[ScoredBox], classes: usize) -> Evaluation {
    let objects = by_class(classes, truth.iter().map(|annotation| (annotation.class, annotation)));
    let candidates = by_class(classes, detections.iter().map(|detection| (detection.class, Candidate::new(detection))));
    let scores: Vec<ClassScores> = objects.into_par_iter().zip(candidates).map(evaluate_class).collect();
    Evaluation { summary: Summary::new(&scores), classes: scores.iter().map(ClassSummary::new).collect() }
}

fn by_class<T>(classes: usize, boxes: impl Iterator<Item = (usize, T)>) -> Vec<Vec<T>> {
    let mut parts: Vec<_> = (0..classes).map(|_| Vec::new()).collect();
    for (class, one) in boxes {
        if let Some(part) = parts.get_mut(class) {
            part.push(one);
        }
    }
    parts
}

fn evaluate_class((mut objects, mut candidates): (Vec<&Annotation>, Vec<Candidate>)) -> ClassScores {
    // Both stable: among equals, the earlier box stays first.
    objects.sort_by_key(|object| object.image);
    candidates.sort_by(|a, b| a.image.cmp(&b.image).then(b.score.total_cmp(&a.score)));
    judge(&objects, &mut candidates);
    accumulate(&objects, &candidates)
}

/// By area; none where the class has no object of that area.
type ClassScores = [Option<AreaScores>; AREAS.len()];

impl Summary {
    fn new(classes: &[ClassScores]) -> Self {
        let over = |area: usize, number: fn(&AreaScores) -> f64| {
            average(classes.iter().filter_map(|scores| scores[area].as_ref()).map(number))
        };
        Self {
            ap: over(ALL, AreaScores::precision),
            ap50: over(ALL, |scores| scores.precision[AT_50]),
            ap75: over(ALL, |scores| scores.precision[AT_75]),
            ap_small: over(SMALL, AreaScores::precision),
            ap_medium: over(MEDIUM, AreaScores::precision),
            ap_large: over(LARGE, AreaScores::precision),
            ar1: over(ALL, AreaScores::recall_of_1),
            ar10: over(ALL, AreaScores::recall_of_10),
            ar100: over(ALL, AreaScores::recall_of_100),
            ar_small: over(SMALL, AreaScores::recall_of_100),
            ar_medium: over(MEDIUM, AreaScores::recall_of_100),
            ar_large: over(LARGE, AreaScores::recall_of_100),
        }
    }
}

impl ClassSummary {
    fn new(scores: &ClassScores) -> Self {
        let number = |number: fn(&AreaScores) -> f64| scores[ALL].as_ref().map_or(ABSENT, number);
        Self { ap: number(AreaScores::precision), ar100: number(AreaScores::recall_of_100) }
    }
}

/// The mean, or [`ABSENT`] when there is nothing to average.
fn average(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.into_iter().fold((0.0, 0.0), |(sum, count), number| (sum + number, count + 1.0));
    if count > 0.0 { sum / count } else { ABSENT }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Rectangle = Rectangle { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };

    fn object(image: usize, class: usize, rectangle: Rectangle) -> Annotation {
        Annotation { id: 1, image, class, rectangle, area: rectangle.area(), crowd: false }
    }

    fn found(image: usize, class: usize, score: f64, rectangle: Rectangle) -> ScoredBox {
        ScoredBox { image, class, score, rectangle }
    }

    fn shifted(x: f64) -> Rectangle {
        Rectangle { x, ..UNIT }
    }

    #[test]
    fn finding_everything_scores_one() {
        let truth = [object(0, 0, UNIT), object(0, 1, shifted(50.0)), object(3, 1, UNIT)];
        let detections = truth.each_ref().map(|object| found(object.image, object.class, 0.5, object.rectangle));
        let Evaluation { summary, classes } = evaluate(&truth, &detections, 2);
        assert!((summary.ap - 1.0).abs() < 1e-12 && (summary.ap_small - 1.0).abs() < 1e-12, "{summary:?}");
        assert_eq!([summary.ar1, summary.ar100, summary.ar_small], [1.0; 3]);
        assert_eq!([summary.ap_medium, summary.ap_large, summary.ar_medium, summary.ar_large], [ABSENT; 4]);
        assert_eq!(classes.len(), 2);
    }

    #[test]
    fn nothing_to_find_is_absent_and_nothing_found_is_zero() {
        let empty = evaluate(&[], &[], 1);
        assert_eq!((empty.summary.ap, empty.summary.ar1), (ABSENT, ABSENT));
        assert_eq!(empty.classes, [ClassSummary { ap: ABSENT, ar100: ABSENT }]);

        let missed = evaluate(&[object(0, 1, UNIT)], &[found(0, 0, 0.9, UNIT)], 2);
        assert_eq!((missed.summary.ap, missed.summary.ar100), (0.0, 0.0));
        assert_eq!(missed.classes, [ClassSummary { ap: ABSENT, ar100: ABSENT }, ClassSummary { ap: 0.0, ar100: 0.0 }]);

        assert_eq!(evaluate(&[object(0, 5, UNIT)], &[found(0, 7, 0.9, UNIT)], 0).classes, []);
    }

    #[test]
    fn the_order_of_detections_with_distinct_scores_does_not_matter() {
        let truth: Vec<_> = (0..6).map(|i| object(i % 2, i % 3, shifted(i as f64))).collect();
        let mut detections: Vec<_> =
            (0..30).map(|i| found(i % 2, i % 3, (i * 7 % 31) as f64, shifted((i % 9) as f64 * 0.7))).collect();
        let expected = evaluate(&truth, &detections, 3);
        assert!(expected.summary.ap > 0.0 && expected.summary.ap < 1.0);
        detections.reverse();
        assert_eq!(evaluate(&truth, &detections, 3), expected);
    }

    #[test]
    fn a_detection_in_a_crowd_is_neither_right_nor_wrong() {
        let crowd = Annotation { crowd: true, ..object(0, 0, Rectangle { x: 100.0, width: 80.0, ..UNIT }) };
        let truth = [object(0, 0, UNIT), crowd];
        let inside = (0..5).map(|i| found(0, 0, 0.9, shifted(100.0 + f64::from(i))));
        let detections: Vec<_> = inside.chain([found(0, 0, 0.1, UNIT)]).collect();
        let summary = evaluate(&truth, &detections, 1).summary;
        assert!((summary.ap - 1.0).abs() < 1e-12, "{summary:?}");
    }

    #[test]
    fn only_the_best_hundred_of_a_picture_and_class_count() {
        let wrong = |count| (0..count).map(|_| found(0, 0, 0.9, shifted(100.0)));
        let recall = |count| {
            let detections: Vec<_> = wrong(count).chain([found(0, 0, 0.1, UNIT)]).collect();
            evaluate(&[object(0, 0, UNIT)], &detections, 1).summary.ar100
        };
        assert_eq!((recall(99), recall(100)), (1.0, 0.0));
    }

    #[test]
    fn numbers_that_are_none_do_no_harm() {
        let nan = Rectangle { x: f64::NAN, ..UNIT };
        let detections = [found(0, 0, f64::NAN, UNIT), found(0, 0, 0.9, nan), found(0, 0, f64::INFINITY, UNIT)];
        let summary = evaluate(&[object(0, 0, UNIT)], &detections, 1).summary;
        assert!((summary.ap - 1.0).abs() < 1e-12, "{summary:?}");
    }
}
