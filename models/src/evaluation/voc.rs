//! Average precision of the PASCAL VOC challenge. <http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf>,
//! section 3.4.1.
//!
//! The width of a box is `x2 - x1 + 1` in the devkit, but `x2 - x1` here, as everywhere in this crate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::class_boxes::{ClassBoxes, measure_classes};
use super::protocol::{ScoredBox, UNDEFINED, average};
use crate::dataset::Annotation;

/// VOC metrics of detections on a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VocEvaluation {
    /// IoU threshold for a match.
    pub iou: f64,
    /// The mean over the classes with objects.
    pub mean: VocSummary,
    /// By class, in the order of the data set.
    pub classes: Vec<VocSummary>,
}

/// Average precision in [0, 1]; -1 without objects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VocSummary {
    /// The area under the precision-recall curve, as in VOC2010 and later.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// The mean precision at the recalls 0, 0.1, ... 1, as in VOC2007.
    #[serde(rename = "AP11")]
    pub ap11: f64,
}

/// Evaluates `detections`, in any order, against `truth`. In descending order of score, each detection is compared with
/// the object of its image and class with the highest IoU. It is a false positive if that IoU is below `iou` or the
/// object is already matched, even if it overlaps another object enough. Difficult objects and crowd regions are not
/// objects to find, and detections that match one are ignored. Boxes with a class index of `classes` or more are ignored.
pub fn voc_average_precision(
    truth: &[Annotation],
    detections: &[ScoredBox],
    classes: usize,
    iou: f64,
) -> VocEvaluation {
    let classes = measure_classes(truth, detections, classes, |boxes| evaluate_class(boxes, iou));
    let present = || classes.iter().filter(|class| class.ap != UNDEFINED);
    let mean =
        VocSummary { ap: average(present().map(|class| class.ap)), ap11: average(present().map(|class| class.ap11)) };
    VocEvaluation { iou, mean, classes }
}

fn evaluate_class(boxes: &ClassBoxes, iou: f64) -> VocSummary {
    let positives = boxes.objects.iter().filter(|object| is_counted(object)).count();
    if positives == 0 {
        return VocSummary { ap: UNDEFINED, ap11: UNDEFINED };
    }
    let mut matched = vec![false; boxes.objects.len()];
    let mut false_positives = 0;
    // Precision after each true positive.
    let mut precisions: Vec<f64> = Vec::new();
    for detection in &boxes.detections {
        match best_match(boxes, detection).filter(|(_, overlap)| *overlap >= iou) {
            Some((index, _)) if !is_counted(boxes.objects[index]) => {}
            Some((index, _)) if !matched[index] => {
                matched[index] = true;
                let true_positives = precisions.len() + 1;
                precisions.push(true_positives as f64 / (true_positives + false_positives) as f64);
            }
            _ => false_positives += 1,
        }
    }
    // The maximum precision at that recall or a higher one.
    for earlier in (1..precisions.len()).rev() {
        precisions[earlier - 1] = precisions[earlier - 1].max(precisions[earlier]);
    }
    // Recall in integer tenths, since 3 * 0.1 is not 0.3. The first true positive reaches recall 0.
    let at = |tenth: usize| precisions.get((tenth * positives).div_ceil(10).saturating_sub(1)).copied().unwrap_or(0.0);
    // Every object adds the same recall. Not `sum`, which is -0.0 without values.
    let area = precisions.iter().fold(0.0, |area, precision| area + precision / positives as f64);
    VocSummary { ap: area, ap11: average((0..=10).map(at)) }
}

/// Whether a detector should find the object.
fn is_counted(object: &Annotation) -> bool {
    !object.crowd && !object.difficult
}

/// Index of the object with the highest IoU, and that IoU; the first object among equals.
fn best_match(boxes: &ClassBoxes, detection: &ScoredBox) -> Option<(usize, f64)> {
    let indices = boxes.objects_of(detection.image);
    let overlaps = indices.map(|index| (index, detection.rectangle.iou(&boxes.objects[index].rectangle)));
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
        Annotation { id: 0, image, class_index: 0, rectangle: square(x), area: 100.0, crowd: false, difficult: false }
    }

    fn detection(image: usize, x: f64, score: f64) -> ScoredBox {
        ScoredBox { image, class_index: 0, score, rectangle: square(x) }
    }

    fn score(truth: &[Annotation], detections: &[ScoredBox]) -> [f64; 2] {
        let VocSummary { ap, ap11 } = voc_average_precision(truth, detections, 1, 0.5).mean;
        [ap, ap11]
    }

    #[test]
    fn ap_is_the_area_and_ap11_the_mean_of_eleven_points() {
        let truth: Vec<_> = (0..10).map(|image| object(image, 0.0)).collect();
        assert!(score(&truth, &[])[0].is_sign_positive());
        let hit = |image: usize, score| detection(image, 0.0, score);
        let miss = |score| detection(0, 50.0, score);
        let cases = [
            ("nothing", vec![], [0.0, 0.0]),
            ("three of ten", vec![hit(0, 0.9), hit(1, 0.8), hit(2, 0.7)], [0.3, 4.0 / 11.0]),
            (
                "one false positive before",
                vec![miss(1.0), hit(0, 0.9), hit(1, 0.8)],
                [0.2 * 2.0 / 3.0, 3.0 * (2.0 / 3.0) / 11.0],
            ),
            ("one false positive after", vec![hit(0, 0.9), miss(0.5)], [0.1, 2.0 / 11.0]),
        ];
        for (name, detections, expected) in cases {
            let found = score(&truth, &detections);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{name}: {found:?}");
        }
    }

    #[test]
    fn second_detection_of_an_object_is_a_false_positive() {
        // The second detection has an IoU above 0.5 with the second object, but a higher one with the first.
        let truth = [object(0, 0.0), object(0, 5.0)];
        assert_eq!(score(&truth, &[detection(0, 0.0, 0.9), detection(0, 2.0, 0.8)])[0], 0.5);
        assert_eq!(score(&truth, &[detection(0, 0.0, 0.9), detection(0, 3.0, 0.8)])[0], 1.0);
    }

    #[test]
    fn iou_equal_to_the_threshold_is_a_match() {
        let half = Rectangle { width: 5.0, ..square(0.0) };
        assert_eq!(score(&[object(0, 0.0)], &[ScoredBox { rectangle: half, ..detection(0, 0.0, 0.9) }]), [1.0, 1.0]);
    }

    #[test]
    fn detections_of_crowd_regions_and_difficult_objects_are_ignored() {
        let crowd = Annotation { crowd: true, ..object(0, 50.0) };
        let difficult = Annotation { difficult: true, ..object(0, 50.0) };
        let detections = [detection(0, 50.0, 0.9), detection(0, 51.0, 0.8), detection(0, 0.0, 0.7)];
        for ignored in [crowd, difficult] {
            assert_eq!(score(&[object(0, 0.0), ignored.clone()], &detections), [1.0, 1.0]);
            assert_eq!(score(&[ignored], &detections), [UNDEFINED, UNDEFINED]);
        }
        // An ordinary object would be found once: two true positives around a false one.
        assert_eq!(score(&[object(0, 0.0), object(0, 50.0)], &detections)[0], 0.5 + 0.5 * 2.0 / 3.0);
    }

    #[test]
    fn classes_without_objects_are_left_out_of_the_mean() {
        let truth = [
            object(0, 0.0),
            Annotation { class_index: 2, ..object(0, 0.0) },
            Annotation { class_index: 3, ..object(0, 0.0) },
        ];
        let detections = [detection(0, 0.0, 0.9), ScoredBox { class_index: 1, ..detection(0, 0.0, 0.9) }];
        let VocEvaluation { mean, classes, .. } = voc_average_precision(&truth, &detections, 3, 0.5);
        assert_eq!(classes.iter().map(|class| class.ap).collect::<Vec<_>>(), [1.0, UNDEFINED, 0.0]);
        assert_eq!(mean, VocSummary { ap: 0.5, ap11: 0.5 });
    }

    #[test]
    fn order_of_detections_with_distinct_scores_does_not_matter() {
        let truth: Vec<_> = (0..9).map(|i| object(i % 3, i as f64 * 3.0)).collect();
        let mut detections: Vec<_> =
            (0..30).map(|i| detection(i % 4, (i % 11) as f64 * 2.7, (i * 7 % 31) as f64)).collect();
        let expected = score(&truth, &detections);
        assert!(expected[0] > 0.0 && expected[0] < 1.0);
        detections.reverse();
        assert_eq!(score(&truth, &detections), expected);
    }
}
