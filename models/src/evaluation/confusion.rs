//! The confusion matrix of the classes.

use std::cmp::Reverse;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::protocol::ScoredBox;
use crate::dataset::Annotation;

/// Thresholds for pairs of an object and a detection.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfusionRule {
    /// Minimum IoU of a pair, in [0, 1].
    pub iou: f64,
    /// Minimum score of a detection.
    pub score: f64,
}

/// 0.5 for both.
impl Default for ConfusionRule {
    fn default() -> Self {
        Self { iou: 0.5, score: 0.5 }
    }
}

/// How often objects of each class were detected as each class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfusionMatrix {
    /// The thresholds used.
    #[serde(flatten)]
    pub rule: ConfusionRule,
    /// Rows are the classes of objects, columns those of detections, in the order of the data set. The last row and
    /// column are the background: the column contains missed objects, the row detections without an object.
    pub counts: Vec<Vec<usize>>,
}

/// How often objects of one class were detected as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// Class index of the objects.
    pub truth: usize,
    /// Class index of the detections.
    pub prediction: usize,
    /// Number of such pairs.
    pub count: usize,
}

/// Compares `detections` with `truth`, both in any order.
///
/// In each image, objects and detections that meet the rule are paired regardless of class, each at most once, in
/// descending order of IoU; equal IoUs go to the higher-scoring detection, then in input order. An unpaired detection
/// is ignored if at least a fraction `rule.iou` of its area is inside a crowd region of its class. Crowd regions are
/// not counted themselves, nor are boxes with a class index of `classes` or more.
pub fn confusion_matrix(
    truth: &[Annotation],
    detections: &[ScoredBox],
    classes: usize,
    rule: ConfusionRule,
) -> ConfusionMatrix {
    let mut objects: Vec<_> = truth.iter().filter(|object| object.class_index < classes).collect();
    objects.sort_by_key(|object| object.image);
    let is_counted = |detection: &&ScoredBox| detection.class_index < classes && detection.score >= rule.score;
    let mut detections: Vec<_> = detections.iter().filter(is_counted).collect();
    // Stable, so that detections of equal score keep their order.
    detections.sort_by(|a, b| a.image.cmp(&b.image).then(b.score.total_cmp(&a.score)));

    let mut matrix = ConfusionMatrix { rule, counts: vec![vec![0; classes + 1]; classes + 1] };
    let mut rest = objects.as_slice();
    for in_image in detections.chunk_by(|a, b| a.image == b.image) {
        let image = in_image[0].image;
        let earlier = rest.partition_point(|object| object.image < image);
        let here = rest.partition_point(|object| object.image <= image);
        matrix.count_missed(&rest[..earlier]);
        matrix.count_image(&rest[earlier..here], in_image);
        rest = &rest[here..];
    }
    matrix.count_missed(rest);
    matrix
}

impl ConfusionMatrix {
    /// The confusions of different classes, most frequent first, without the background.
    pub fn confusions(&self) -> Vec<Confusion> {
        let classes = self.background();
        let pairs = (0..classes).flat_map(|truth| (0..classes).map(move |prediction| (truth, prediction)));
        let mut confusions: Vec<_> = pairs
            .filter(|(truth, prediction)| truth != prediction)
            .map(|(truth, prediction)| Confusion { truth, prediction, count: self.counts[truth][prediction] })
            .filter(|confusion| confusion.count > 0)
            .collect();
        confusions.sort_by_key(|confusion| Reverse(confusion.count));
        confusions
    }

    /// Index of the background's row and column.
    pub fn background(&self) -> usize {
        self.counts.len() - 1
    }

    /// Counts the boxes of one image. `detections` are in descending order of score.
    fn count_image(&mut self, objects: &[&Annotation], detections: &[&ScoredBox]) {
        let (crowds, objects): (Vec<&Annotation>, Vec<_>) = objects.iter().partition(|object| object.crowd);
        let mut pairs = Vec::new();
        for (index, detection) in detections.iter().enumerate() {
            let overlaps = objects.iter().map(|object| object.rectangle.iou(&detection.rectangle)).enumerate();
            let close = overlaps.filter(|(_, iou)| *iou > 0.0 && *iou >= self.rule.iou);
            pairs.extend(close.map(|(object, iou)| Pair { object, detection: index, iou }));
        }
        // Stable, so that among equal IoUs the higher-scoring detection stays first.
        pairs.sort_by(|a, b| b.iou.total_cmp(&a.iou));
        let (mut missed, mut unpaired) = (vec![true; objects.len()], vec![true; detections.len()]);
        for Pair { object, detection, .. } in pairs {
            if missed[object] && unpaired[detection] {
                (missed[object], unpaired[detection]) = (false, false);
                self.counts[objects[object].class_index][detections[detection].class_index] += 1;
            }
        }
        objects.iter().zip(missed).filter(|(_, missed)| *missed).for_each(|(object, _)| self.count_missed(&[object]));
        let background = self.background();
        for (detection, _) in detections.iter().zip(unpaired).filter(|(_, unpaired)| *unpaired) {
            let fraction_in = |crowd: &Annotation| detection.rectangle.intersection_over_area(&crowd.rectangle);
            let contains =
                |crowd: &&Annotation| crowd.class_index == detection.class_index && fraction_in(crowd) >= self.rule.iou;
            if !crowds.iter().any(contains) {
                self.counts[background][detection.class_index] += 1;
            }
        }
    }

    /// Counts missed objects; crowd regions are skipped.
    fn count_missed(&mut self, objects: &[&Annotation]) {
        let background = self.background();
        for object in objects.iter().filter(|object| !object.crowd) {
            self.counts[object.class_index][background] += 1;
        }
    }
}

/// An object and a detection of one image that may be paired, by index.
struct Pair {
    object: usize,
    detection: usize,
    iou: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Rectangle;

    const CAT: usize = 0;
    const DOG: usize = 1;
    const BACKGROUND: usize = 2;

    fn square(x: f64) -> Rectangle {
        Rectangle { x, y: 0.0, width: 10.0, height: 10.0 }
    }

    fn object(image: usize, class_index: usize, x: f64) -> Annotation {
        Annotation { id: 0, image, class_index, rectangle: square(x), area: 100.0, crowd: false, difficult: false }
    }

    fn detection(image: usize, class_index: usize, x: f64, score: f64) -> ScoredBox {
        ScoredBox { image, class_index, score, rectangle: square(x) }
    }

    fn counts(truth: &[Annotation], detections: &[ScoredBox]) -> Vec<Vec<usize>> {
        confusion_matrix(truth, detections, 2, ConfusionRule::default()).counts
    }

    /// A matrix with these counts, otherwise zero.
    fn matrix(entries: &[(usize, usize, usize)]) -> Vec<Vec<usize>> {
        let mut counts = vec![vec![0; 3]; 3];
        entries.iter().for_each(|&(truth, prediction, count)| counts[truth][prediction] = count);
        counts
    }

    /// Many objects and detections on few images, all IoUs and scores distinct.
    fn crowded_images() -> (Vec<Annotation>, Vec<ScoredBox>) {
        let x = |i: usize, step: f64| (i as f64 * step).rem_euclid(97.0);
        let truth = (0..60).map(|i| object(i % 4, i % 3, x(i, 5.7123))).collect();
        let detections = (0..90).map(|i| detection(i % 5, i % 3, x(i, 7.3331), x(i, 13.117) / 97.0)).collect();
        (truth, detections)
    }

    #[test]
    fn rows_count_objects_and_columns_detections() {
        let (truth, detections) = crowded_images();
        let rule = ConfusionRule { iou: 0.3, score: 0.4 };
        let ConfusionMatrix { counts, .. } = confusion_matrix(&truth, &detections, 3, rule);
        assert!(counts.iter().enumerate().all(|(i, row)| row[i] > 0 || i == 3), "{counts:?}");
        for class in 0..3 {
            let objects = truth.iter().filter(|object| object.class_index == class).count();
            let confident = detections.iter().filter(|found| found.class_index == class && found.score >= 0.4).count();
            assert_eq!(counts[class].iter().sum::<usize>(), objects);
            assert_eq!(counts.iter().map(|row| row[class]).sum::<usize>(), confident);
        }
    }

    #[test]
    fn order_of_boxes_with_distinct_ious_does_not_matter() {
        let (mut truth, mut detections) = crowded_images();
        let rule = ConfusionRule { iou: 0.1, score: 0.2 };
        let expected = confusion_matrix(&truth, &detections, 3, rule);
        truth.reverse();
        detections.rotate_left(31);
        assert_eq!(confusion_matrix(&truth, &detections, 3, rule), expected);
    }

    #[test]
    fn swapping_objects_and_detections_transposes_the_matrix() {
        let (truth, detections) = crowded_images();
        let swapped_truth: Vec<_> = detections.iter().map(|d| object(d.image, d.class_index, d.rectangle.x)).collect();
        let swapped: Vec<_> = truth.iter().map(|o| detection(o.image, o.class_index, o.rectangle.x, 1.0)).collect();
        let rule = ConfusionRule { iou: 0.2, score: 0.0 };
        let [original, swapped] = [(truth, detections), (swapped_truth, swapped)]
            .map(|(truth, detections)| confusion_matrix(&truth, &detections, 3, rule).counts);
        let transposed: Vec<Vec<_>> = (0..4).map(|i| swapped.iter().map(|row| row[i]).collect()).collect();
        assert_eq!(original, transposed);
    }

    #[test]
    fn pairs_have_the_highest_iou_regardless_of_class() {
        let cat = [object(0, CAT, 0.0)];
        let cases: [(&str, Vec<ScoredBox>, _); 7] = [
            ("nothing", vec![], matrix(&[(CAT, BACKGROUND, 1)])),
            ("itself", vec![detection(0, CAT, 1.0, 0.5)], matrix(&[(CAT, CAT, 1)])),
            ("another class", vec![detection(0, DOG, 1.0, 0.9)], matrix(&[(CAT, DOG, 1)])),
            ("score too low", vec![detection(0, CAT, 1.0, 0.49)], matrix(&[(CAT, BACKGROUND, 1)])),
            ("elsewhere", vec![detection(0, DOG, 6.0, 0.9)], matrix(&[(CAT, BACKGROUND, 1), (BACKGROUND, DOG, 1)])),
            ("another image", vec![detection(1, CAT, 0.0, 0.9)], matrix(&[(CAT, BACKGROUND, 1), (BACKGROUND, CAT, 1)])),
            (
                "two on one",
                vec![detection(0, CAT, 2.0, 0.9), detection(0, DOG, 1.0, 0.6)],
                matrix(&[(CAT, DOG, 1), (BACKGROUND, CAT, 1)]),
            ),
        ];
        for (name, detections, expected) in cases {
            assert_eq!(counts(&cat, &detections), expected, "{name}");
        }
    }

    #[test]
    fn equal_ious_go_to_the_higher_scoring_detection() {
        let detections = [detection(0, DOG, 0.0, 0.6), detection(0, CAT, 0.0, 0.9)];
        let expected = matrix(&[(CAT, CAT, 1), (BACKGROUND, DOG, 1)]);
        assert_eq!(counts(&[object(0, CAT, 0.0)], &detections), expected);
    }

    #[test]
    fn detections_in_a_crowd_region_of_their_class_are_ignored() {
        let rectangle = Rectangle { width: 100.0, ..square(0.0) };
        let crowd = [Annotation { crowd: true, rectangle, ..object(0, CAT, 0.0) }];
        let detections = [detection(0, CAT, 30.0, 0.9), detection(0, CAT, 95.0, 0.9), detection(0, DOG, 50.0, 0.9)];
        assert_eq!(counts(&crowd, &detections), matrix(&[(BACKGROUND, DOG, 1)]));
        assert_eq!(counts(&crowd, &[detection(0, CAT, 96.0, 0.9)]), matrix(&[(BACKGROUND, CAT, 1)]));
    }

    #[test]
    fn confusions_are_sorted_by_count_without_the_background() {
        let truth: Vec<_> = (0..4).map(|image| object(image, image % 2, 0.0)).collect();
        let detections = [
            detection(0, DOG, 0.0, 0.9),
            detection(1, CAT, 0.0, 0.9),
            detection(3, CAT, 0.0, 0.9),
            detection(3, CAT, 9.0, 1.0),
        ];
        let confusions = confusion_matrix(&truth, &detections, 2, ConfusionRule::default()).confusions();
        let expected = [(DOG, CAT, 2), (CAT, DOG, 1)];
        assert_eq!(confusions, expected.map(|(truth, prediction, count)| Confusion { truth, prediction, count }));
    }

    #[test]
    fn boxes_of_unknown_classes_and_nan_scores_are_ignored() {
        assert_eq!(
            counts(&[object(0, 2, 0.0)], &[detection(0, 7, 0.0, 0.9), detection(0, DOG, 0.0, f64::NAN)]),
            matrix(&[])
        );
    }
}
