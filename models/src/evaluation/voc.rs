//! Average precision as the PASCAL VOC challenge has it. <http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf>,
//! section 3.4.1.
//!
//! The devkit counts pixels, so that a box is one wider than `x2 - x1`; here it is not, as everywhere in this crate.

use serde::{Deserialize, Serialize};

use super::class_boxes::{ClassBoxes, measure_classes};
use super::summary::average;
use super::{ABSENT, ScoredBox};
use crate::dataset::Annotation;

/// What a detector is worth on a data set in the sense of VOC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VocEvaluation {
    /// IoU from which a detection has found an object.
    pub iou: f64,
    /// Over the classes that have objects.
    pub mean: VocSummary,
    /// Of each class, in the order of the data set.
    pub classes: Vec<VocSummary>,
}

/// Average precision in [0, 1]; -1 where there is no object to find.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VocSummary {
    /// The area under the curve of precision over recall, as of VOC2010.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// The mean precision at the recalls 0, 0.1, ... 1, as in VOC2007.
    #[serde(rename = "AP11")]
    pub ap11: f64,
}

/// Judges `detections`, in any order, against `truth`. The surest first, each looks at the object of its image and class
/// that it overlaps most. It is wrong if their IoU is below `iou` or a surer one has found that object already, even when it
/// overlaps another object enough. A crowd need not be found, and a detection of it counts neither way. Boxes whose class is not
/// below `classes` don't count.
pub fn voc_average_precision(
    truth: &[Annotation],
    detections: &[ScoredBox],
    classes: usize,
    iou: f64,
) -> VocEvaluation {
    let classes = measure_classes(truth, detections, classes, |boxes| evaluate_class(boxes, iou));
    let present = || classes.iter().filter(|class| class.ap != ABSENT);
    let mean =
        VocSummary { ap: average(present().map(|class| class.ap)), ap11: average(present().map(|class| class.ap11)) };
    VocEvaluation { iou, mean, classes }
}

fn evaluate_class(boxes: &ClassBoxes, iou: f64) -> VocSummary {
    let positives = boxes.objects.iter().filter(|object| !object.crowd).count();
    if positives == 0 {
        return VocSummary { ap: ABSENT, ap11: ABSENT };
    }
    let mut taken = vec![false; boxes.objects.len()];
    let mut wrong = 0;
    // After each object found.
    let mut precisions: Vec<f64> = Vec::new();
    for detection in &boxes.detections {
        match most_overlapped(boxes, detection).filter(|(_, overlap)| *overlap >= iou) {
            Some((place, _)) if boxes.objects[place].crowd => {}
            Some((place, _)) if !taken[place] => {
                taken[place] = true;
                let right = precisions.len() + 1;
                precisions.push(right as f64 / (right + wrong) as f64);
            }
            _ => wrong += 1,
        }
    }
    // The best precision at that recall or a higher one.
    for earlier in (1..precisions.len()).rev() {
        precisions[earlier - 1] = precisions[earlier - 1].max(precisions[earlier]);
    }
    // In tenths, since 0.3 is not three times 0.1. Recall 0 is reached by the first object found.
    let at = |tenth: usize| precisions.get((tenth * positives).div_ceil(10).saturating_sub(1)).copied().unwrap_or(0.0);
    // Every object is worth the same share of recall; the sum of nothing would be a negative zero.
    let area = precisions.iter().fold(0.0, |area, precision| area + precision / positives as f64);
    VocSummary { ap: area, ap11: average((0..=10).map(at)) }
}

/// The object that a detection overlaps most, and by how much; of equal ones the first.
fn most_overlapped(boxes: &ClassBoxes, detection: &ScoredBox) -> Option<(usize, f64)> {
    let places = boxes.objects_of(detection.image);
    let overlaps = places.map(|place| (place, detection.rectangle.iou(&boxes.objects[place].rectangle)));
    overlaps.reduce(|best, next| if next.1 > best.1 { next } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Rectangle;

    fn square(x: f64) -> Rectangle {
        Rectangle { x, y: 0.0, width: 10.0, height: 10.0 }
    }

    fn object(image: usize, x: f64) -> Annotation {
        Annotation { id: 0, image, class_index: 0, rectangle: square(x), area: 100.0, crowd: false }
    }

    fn found(image: usize, x: f64, score: f64) -> ScoredBox {
        ScoredBox { image, class_index: 0, score, rectangle: square(x) }
    }

    fn score(truth: &[Annotation], detections: &[ScoredBox]) -> [f64; 2] {
        let VocSummary { ap, ap11 } = voc_average_precision(truth, detections, 1, 0.5).mean;
        [ap, ap11]
    }

    #[test]
    fn the_area_and_the_eleven_points_of_a_curve() {
        let truth: Vec<_> = (0..10).map(|image| object(image, 0.0)).collect();
        assert!(score(&truth, &[])[0].is_sign_positive());
        let right = |image: usize, score| found(image, 0.0, score);
        let wrong = |score| found(0, 50.0, score);
        let cases = [
            ("nothing", vec![], [0.0, 0.0]),
            ("three of ten", vec![right(0, 0.9), right(1, 0.8), right(2, 0.7)], [0.3, 4.0 / 11.0]),
            (
                "one wrong before",
                vec![wrong(1.0), right(0, 0.9), right(1, 0.8)],
                [0.2 * 2.0 / 3.0, 3.0 * (2.0 / 3.0) / 11.0],
            ),
            ("one wrong after", vec![right(0, 0.9), wrong(0.5)], [0.1, 2.0 / 11.0]),
        ];
        for (name, detections, expected) in cases {
            let found = score(&truth, &detections);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_detection_whose_best_object_is_taken_is_wrong() {
        // The second detection overlaps the second object by more than a half, the first one by more.
        let truth = [object(0, 0.0), object(0, 5.0)];
        assert_eq!(score(&truth, &[found(0, 0.0, 0.9), found(0, 2.0, 0.8)])[0], 0.5);
        assert_eq!(score(&truth, &[found(0, 0.0, 0.9), found(0, 3.0, 0.8)])[0], 1.0);
    }

    #[test]
    fn an_overlap_that_meets_the_threshold_is_enough() {
        let half = Rectangle { width: 5.0, ..square(0.0) };
        assert_eq!(score(&[object(0, 0.0)], &[ScoredBox { rectangle: half, ..found(0, 0.0, 0.9) }]), [1.0, 1.0]);
    }

    #[test]
    fn a_crowd_counts_neither_way() {
        let crowd = Annotation { crowd: true, ..object(0, 50.0) };
        let detections = [found(0, 50.0, 0.9), found(0, 51.0, 0.8), found(0, 0.0, 0.7)];
        assert_eq!(score(&[object(0, 0.0), crowd.clone()], &detections), [1.0, 1.0]);
        assert_eq!(score(&[crowd], &detections), [ABSENT, ABSENT]);
    }

    #[test]
    fn classes_without_objects_are_left_out_of_the_mean() {
        let truth = [
            object(0, 0.0),
            Annotation { class_index: 2, ..object(0, 0.0) },
            Annotation { class_index: 3, ..object(0, 0.0) },
        ];
        let detections = [found(0, 0.0, 0.9), ScoredBox { class_index: 1, ..found(0, 0.0, 0.9) }];
        let VocEvaluation { mean, classes, .. } = voc_average_precision(&truth, &detections, 3, 0.5);
        assert_eq!(classes.iter().map(|class| class.ap).collect::<Vec<_>>(), [1.0, ABSENT, 0.0]);
        assert_eq!(mean, VocSummary { ap: 0.5, ap11: 0.5 });
    }

    #[test]
    fn the_order_of_detections_with_distinct_scores_does_not_matter() {
        let truth: Vec<_> = (0..9).map(|i| object(i % 3, i as f64 * 3.0)).collect();
        let mut detections: Vec<_> =
            (0..30).map(|i| found(i % 4, (i % 11) as f64 * 2.7, (i * 7 % 31) as f64)).collect();
        let expected = score(&truth, &detections);
        assert!(expected[0] > 0.0 && expected[0] < 1.0);
        detections.reverse();
        assert_eq!(score(&truth, &detections), expected);
    }
}
