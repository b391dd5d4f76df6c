//! Detection metrics: COCO's average precision and recall for boxes, <https://cocodataset.org/#detection-eval>; VOC's
//! average precision; the confusion matrix.
//!
//! The COCO metrics equal those of pycocotools: the same double precision arithmetic, the same order among equal scores
//! and equal IoUs. One difference is intended: pycocotools never counts an annotation with id 0 as found.

mod protocol;
mod results;
mod summary;
mod curves;

mod class_boxes;
mod matching;
mod accumulation;

mod voc;
mod confusion;

use serde::{Deserialize, Serialize};

use crate::dataset::Annotation;
use accumulation::{ClassScores, Tally};
use class_boxes::{ClassBoxes, measure_classes};
use matching::{Object, match_detection};

pub use confusion::{Confusion, ConfusionMatrix, ConfusionRule, confusion_matrix};
pub use curves::{BestF1, Curve, Curves};
pub use protocol::{MAX_DETECTIONS, ScoredBox};
pub use results::{CocoResult, LocatedResults, ResultFile, locate, write_results};
pub use summary::{ClassSummary, Summary};
pub use voc::{VocEvaluation, VocSummary, voc_average_precision};

/// COCO metrics of detections on a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Over all classes.
    pub summary: Summary,
    /// By class, in the order of the data set.
    pub classes: Vec<ClassSummary>,
    /// By class, in the order of the data set; none for a class without objects.
    pub curves: Vec<Option<Curves>>,
}

/// Evaluates `detections`, in any order, against `truth`, in the order of [`Dataset::annotations`]. Boxes with a class
/// index of `classes` or more are ignored, and so are all but the 100 highest-scoring detections per image and class.
///
/// [`Dataset::annotations`]: crate::dataset::Dataset::annotations
pub fn evaluate(truth: &[Annotation], detections: &[ScoredBox], classes: usize) -> Evaluation {
    evaluate_with_limits(truth, detections, classes, MAX_DETECTIONS)
}

/// Like [`evaluate`], with other limits of detections per image and class than [`MAX_DETECTIONS`], in ascending order. Recall
/// is measured with each of them; detections beyond the last are ignored, which matters if images have more objects.
pub fn evaluate_with_limits(
    truth: &[Annotation],
    detections: &[ScoredBox],
    classes: usize,
    limits: [usize; 3],
) -> Evaluation {
    let mut scores = measure_classes(truth, detections, classes, |boxes| evaluate_class(boxes, limits));
    Evaluation {
        summary: Summary::new(&scores),
        classes: scores.iter().map(ClassSummary::new).collect(),
        curves: scores.iter_mut().map(|scores| scores.curves.take()).collect(),
    }
}

fn evaluate_class(boxes: &ClassBoxes, limits: [usize; 3]) -> ClassScores {
    let mut objects: Vec<_> = boxes.objects.iter().map(|object| Object::new(object)).collect();
    let mut tally = Tally::new(&objects, limits);
    // Detections of each image so far.
    let mut counts = Vec::new();
    let mut candidates = Vec::new();
    for detection in &boxes.detections {
        if counts.len() <= detection.image {
            counts.resize(detection.image + 1, 0);
        }
        let rank = counts[detection.image];
        if rank < limits[2] {
            counts[detection.image] += 1;
            let objects = &mut objects[boxes.objects_of(detection.image)];
            let result = match_detection(&detection.rectangle, objects, &mut candidates);
            tally.add(detection.sort_score(), rank, result);
        }
    }
    tally.finish()
}

#[cfg(test)]
mod tests {
    use super::protocol::UNDEFINED;
    use super::*;
    use crate::rectangle::Rectangle;

    const UNIT: Rectangle = Rectangle { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };

    fn object(image: usize, class_index: usize, rectangle: Rectangle) -> Annotation {
        Annotation { id: 1, image, class_index, rectangle, area: rectangle.area(), crowd: false, difficult: false }
    }

    fn detection(image: usize, class_index: usize, score: f64, rectangle: Rectangle) -> ScoredBox {
        ScoredBox { image, class_index, score, rectangle }
    }

    fn shifted(x: f64) -> Rectangle {
        Rectangle { x, ..UNIT }
    }

    #[test]
    fn difficult_objects_count_like_others_in_coco_metrics() {
        let truth = [object(0, 0, UNIT), object(0, 0, Rectangle { x: 50.0, ..UNIT })];
        let difficult = truth.clone().map(|object| Annotation { difficult: true, ..object });
        let found = [ScoredBox { image: 0, class_index: 0, score: 0.9, rectangle: UNIT }];
        let summary = evaluate(&difficult, &found, 1).summary;
        assert_eq!(summary, evaluate(&truth, &found, 1).summary);
        assert!(summary.ap > 0.5 && summary.ap < 0.51, "half of the objects are found: {summary:?}");
    }

    #[test]
    fn perfect_detections_score_one() {
        let truth = [object(0, 0, UNIT), object(0, 1, shifted(50.0)), object(3, 1, UNIT)];
        let detections =
            truth.each_ref().map(|object| detection(object.image, object.class_index, 0.5, object.rectangle));
        let Evaluation { summary, classes, .. } = evaluate(&truth, &detections, 2);
        assert!((summary.ap - 1.0).abs() < 1e-12 && (summary.ap_small - 1.0).abs() < 1e-12, "{summary:?}");
        assert_eq!([summary.ar1, summary.ar100, summary.ar_small], [1.0; 3]);
        assert_eq!([summary.ap_medium, summary.ap_large, summary.ar_medium, summary.ar_large], [UNDEFINED; 4]);
        assert_eq!([classes[0].objects, classes[1].objects], [1, 2]);
        assert_eq!(classes[1].best_f1, Some(BestF1 { score: 0.5, f1: 1.0, precision: 1.0, recall: 1.0 }));
    }

    #[test]
    fn metrics_are_undefined_without_objects_and_zero_without_matches() {
        let empty = evaluate(&[], &[detection(0, 0, 0.9, UNIT)], 1);
        assert_eq!((empty.summary.ap, empty.summary.ar1), (UNDEFINED, UNDEFINED));
        let ClassSummary { objects, detections, ap, ap_small, ar100, best_f1, .. } = empty.classes[0];
        assert_eq!((objects, detections, ap, ap_small, ar100, best_f1), (0, 1, UNDEFINED, UNDEFINED, UNDEFINED, None));
        assert_eq!(empty.curves, [None]);

        let missed = evaluate(&[object(0, 1, UNIT)], &[detection(0, 0, 0.9, UNIT)], 2);
        assert_eq!((missed.summary.ap, missed.summary.ar100), (0.0, 0.0));
        assert_eq!(missed.classes.iter().map(|class| class.ap).collect::<Vec<_>>(), [UNDEFINED, 0.0]);
        let ClassSummary { objects, detections, best_f1, .. } = missed.classes[1];
        assert_eq!((objects, detections, best_f1), (1, 0, None));
        assert!(
            missed.curves[1].iter().all(|curves| curves.precision == [0.0; 101] && curves.iou50.score == [0.0; 101])
        );

        assert_eq!(evaluate(&[object(0, 5, UNIT)], &[detection(0, 7, 0.9, UNIT)], 0).classes, []);
    }

    #[test]
    fn order_of_detections_with_distinct_scores_does_not_matter() {
        let truth: Vec<_> = (0..6).map(|i| object(i % 2, i % 3, shifted(i as f64))).collect();
        let mut detections: Vec<_> =
            (0..30).map(|i| detection(i % 2, i % 3, (i * 7 % 31) as f64, shifted((i % 9) as f64 * 0.7))).collect();
        let expected = evaluate(&truth, &detections, 3);
        assert!(expected.summary.ap > 0.0 && expected.summary.ap < 1.0);
        detections.reverse();
        assert_eq!(evaluate(&truth, &detections, 3), expected);
    }

    #[test]
    fn detections_in_a_crowd_region_are_ignored() {
        let crowd = Annotation { crowd: true, ..object(0, 0, Rectangle { x: 100.0, width: 80.0, ..UNIT }) };
        let truth = [object(0, 0, UNIT), crowd];
        let inside = (0..5).map(|i| detection(0, 0, 0.9, shifted(100.0 + f64::from(i))));
        let detections: Vec<_> = inside.chain([detection(0, 0, 0.1, UNIT)]).collect();
        let summary = evaluate(&truth, &detections, 1).summary;
        assert!((summary.ap - 1.0).abs() < 1e-12, "{summary:?}");
    }

    #[test]
    fn only_the_100_highest_scoring_detections_of_an_image_and_class_count() {
        let false_positives = |count| (0..count).map(|_| detection(0, 0, 0.9, shifted(100.0)));
        let recall = |count| {
            let detections: Vec<_> = false_positives(count).chain([detection(0, 0, 0.1, UNIT)]).collect();
            evaluate(&[object(0, 0, UNIT)], &detections, 1).summary.ar100
        };
        assert_eq!((recall(99), recall(100)), (1.0, 0.0));
    }

    #[test]
    fn other_limits_count_more_detections() {
        let truth: Vec<_> = (0..130).map(|index| object(0, 0, shifted(20.0 * f64::from(index)))).collect();
        let detections: Vec<_> = truth.iter().map(|object| detection(0, 0, 0.5, object.rectangle)).collect();
        let recalls = |limits| {
            let summary = evaluate_with_limits(&truth, &detections, 1, limits).summary;
            [summary.ar1, summary.ar10, summary.ar100].map(|recall| recall * 130.0)
        };
        for (limits, expected) in [(MAX_DETECTIONS, [1.0, 10.0, 100.0]), ([5, 120, 500], [5.0, 120.0, 130.0])] {
            assert!(recalls(limits).iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9));
        }
        assert!((evaluate_with_limits(&truth, &detections, 1, [1, 10, 130]).summary.ap - 1.0).abs() < 1e-12);
    }

    #[test]
    fn curves_are_decreasing_and_average_to_ap() {
        let truth: Vec<_> = (0..9).map(|i| object(i, i % 2, UNIT)).collect();
        let detections: Vec<_> =
            (0..40).map(|i| detection(i % 9, i % 2, (i * 7 % 41) as f64, shifted((i % 5) as f64))).collect();
        let Evaluation { classes, curves, .. } = evaluate(&truth, &detections, 2);
        for (class, curves) in classes.iter().zip(curves) {
            let Curves { precision, iou50, iou75 } = curves.unwrap();
            for (ap, precision) in
                [(class.ap, &precision), (class.ap50, &iou50.precision), (class.ap75, &iou75.precision)]
            {
                assert!(precision.is_sorted_by(|a, b| a >= b), "{precision:?}");
                assert!((precision.iter().sum::<f64>() / 101.0 - ap).abs() < 1e-12, "{precision:?}");
            }
            assert!(class.ap > 0.0 && class.ap < class.ap50);
            assert!(iou50.score.is_sorted_by(|a, b| a >= b) && iou75.score.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn best_f1_includes_all_detections_of_equal_score() {
        let truth = [object(0, 0, UNIT), object(1, 0, UNIT), object(2, 0, UNIT)];
        let apart = shifted(50.0);
        let mut detections = vec![detection(0, 0, 0.9, UNIT), detection(1, 0, 0.9, apart), detection(1, 0, 0.7, UNIT)];
        let best = |detections: &[ScoredBox]| evaluate(&truth, detections, 1).classes[0].best_f1.unwrap();
        // Two of three detections are true positives; there are three objects.
        let expected = BestF1 { score: 0.7, f1: 4.0 / 6.0, precision: 2.0 / 3.0, recall: 2.0 / 3.0 };
        assert_eq!(best(&detections), expected);
        // The true positive among the six detections of score 0.5 would improve F1 if it were included alone.
        detections.truncate(1);
        detections.push(detection(2, 0, 0.5, UNIT));
        detections.extend((0..5).map(|_| detection(2, 0, 0.5, apart)));
        assert_eq!(best(&detections), BestF1 { score: 0.9, f1: 0.5, precision: 1.0, recall: 1.0 / 3.0 });
    }

    #[test]
    fn nan_boxes_and_scores_do_not_spoil_metrics() {
        let nan = Rectangle { x: f64::NAN, ..UNIT };
        let detections =
            [detection(0, 0, f64::NAN, UNIT), detection(0, 0, 0.9, nan), detection(0, 0, f64::INFINITY, UNIT)];
        let summary = evaluate(&[object(0, 0, UNIT)], &detections, 1).summary;
        assert!((summary.ap - 1.0).abs() < 1e-12, "{summary:?}");
    }
}
