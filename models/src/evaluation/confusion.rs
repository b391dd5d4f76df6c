//! Which class a detector takes for which.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::ScoredBox;
use crate::dataset::Annotation;

/// When an object and a detection are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfusionRule {
    /// The lowest IoU of a pair, in [0, 1].
    pub iou: f64,
    /// The lowest score of a detection that counts.
    pub score: f64,
}

/// 0.5 for both.
impl Default for ConfusionRule {
    fn default() -> Self {
        Self { iou: 0.5, score: 0.5 }
    }
}

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfusionMatrix {
    /// When an object and a detection were a pair.
    #[serde(flatten)]
    pub rule: ConfusionRule,
    /// By the class of the object, then by that of the detection, in the order of the data set. After the classes comes the
    /// background: its column has the objects that were not found, its row the detections of nothing.
    pub counts: Vec<Vec<usize>>,
}

/// How often one class was taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// Place of the objects' class.
    pub truth: usize,
    /// Place of the detections' class.
    pub prediction: usize,
    /// Pairs of such an object and such a detection.
    pub count: usize,
}

/// Compares `detections` with `truth`, in any order.
///
/// In each image, objects and detections whose score and IoU suffice are paired whatever their classes, those of the
/// greatest IoU first, each at most once; of equal IoUs the pair with the surer detection, then the one given first. A
/// detection left over that has a share of at least the rule's IoU in a crowd of its own class does not count, nor do the
/// crowds themselves, nor boxes whose class is not below `classes`.
pub fn confusion_matrix(
    truth: &[Annotation],
    detections: &[ScoredBox],
    classes: usize,
    rule: ConfusionRule,
) -> ConfusionMatrix {
    let mut objects: Vec<_> = truth.iter().filter(|object| object.class_index < classes).collect();
    objects.sort_by_key(|object| object.image);
    let counts = |detection: &&ScoredBox| detection.class_index < classes && detection.score >= rule.score;
    let mut detections: Vec<_> = detections.iter().filter(counts).collect();
    // Stable, so that of equally sure ones the one given first stays first.
    detections.sort_by(|a, b| a.image.cmp(&b.image).then(b.score.total_cmp(&a.score)));

    let mut matrix = ConfusionMatrix { rule, counts: vec![vec![0; classes + 1]; classes + 1] };
    let mut rest = objects.as_slice();
    for found in detections.chunk_by(|a, b| a.image == b.image) {
        let image = found[0].image;
        let earlier = rest.partition_point(|object| object.image < image);
        let here = rest.partition_point(|object| object.image <= image);
        matrix.miss(&rest[..earlier]);
        matrix.compare(&rest[earlier..here], found);
        rest = &rest[here..];
    }
    matrix.miss(rest);
    matrix
}

impl ConfusionMatrix {
    /// The classes that were taken for another, the most frequent confusion first; the background is left out.
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

    /// The place of the background's row and column.
    pub fn background(&self) -> usize {
        self.counts.len() - 1
    }

    /// Counts what one image has; the surest detection comes first.
    fn compare(&mut self, objects: &[&Annotation], detections: &[&ScoredBox]) {
        let (crowds, objects): (Vec<&Annotation>, Vec<_>) = objects.iter().partition(|object| object.crowd);
        let mut pairs = Vec::new();
        for (detection, found) in detections.iter().enumerate() {
            let overlaps = objects.iter().map(|object| object.rectangle.iou(&found.rectangle)).enumerate();
            let close = overlaps.filter(|(_, iou)| *iou > 0.0 && *iou >= self.rule.iou);
            pairs.extend(close.map(|(object, iou)| Pair { object, detection, iou }));
        }
        // Stable, so that of equal ones the surest stays first.
        pairs.sort_by(|a, b| b.iou.total_cmp(&a.iou));
        let (mut missed, mut left_over) = (vec![true; objects.len()], vec![true; detections.len()]);
        for Pair { object, detection, .. } in pairs {
            if missed[object] && left_over[detection] {
                (missed[object], left_over[detection]) = (false, false);
                self.counts[objects[object].class_index][detections[detection].class_index] += 1;
            }
        }
        objects.iter().zip(missed).filter(|(_, missed)| *missed).for_each(|(object, _)| self.miss(&[object]));
        let background = self.background();
        for (detection, _) in detections.iter().zip(left_over).filter(|(_, left_over)| *left_over) {
            let share = |crowd: &Annotation| detection.rectangle.intersection_over_area(&crowd.rectangle);
            let forgives =
                |crowd: &&Annotation| crowd.class_index == detection.class_index && share(crowd) >= self.rule.iou;
            if !crowds.iter().any(forgives) {
                self.counts[background][detection.class_index] += 1;
            }
        }
    }

    /// Counts objects that were not found.
    fn miss(&mut self, objects: &[&Annotation]) {
        let background = self.background();
        for object in objects.iter().filter(|object| !object.crowd) {
            self.counts[object.class_index][background] += 1;
        }
    }
}

/// An object and a detection of one image that may belong together.
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
        Annotation { id: 0, image, class_index, rectangle: square(x), area: 100.0, crowd: false }
    }

    fn found(image: usize, class_index: usize, x: f64, score: f64) -> ScoredBox {
        ScoredBox { image, class_index, score, rectangle: square(x) }
    }

    fn counts(truth: &[Annotation], detections: &[ScoredBox]) -> Vec<Vec<usize>> {
        confusion_matrix(truth, detections, 2, ConfusionRule::default()).counts
    }

    /// Zero but for these.
    fn matrix(entries: &[(usize, usize, usize)]) -> Vec<Vec<usize>> {
        let mut counts = vec![vec![0; 3]; 3];
        entries.iter().for_each(|&(truth, prediction, count)| counts[truth][prediction] = count);
        counts
    }

    /// Many objects and detections on few images, all IoUs and scores distinct.
    fn crowded_images() -> (Vec<Annotation>, Vec<ScoredBox>) {
        let x = |i: usize, step: f64| (i as f64 * step).rem_euclid(97.0);
        let truth = (0..60).map(|i| object(i % 4, i % 3, x(i, 5.7123))).collect();
        let detections = (0..90).map(|i| found(i % 5, i % 3, x(i, 7.3331), x(i, 13.117) / 97.0)).collect();
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
            let sure = detections.iter().filter(|found| found.class_index == class && found.score >= 0.4).count();
            assert_eq!(counts[class].iter().sum::<usize>(), objects);
            assert_eq!(counts.iter().map(|row| row[class]).sum::<usize>(), sure);
        }
    }

    #[test]
    fn the_order_of_boxes_with_distinct_overlaps_does_not_matter() {
        let (mut truth, mut detections) = crowded_images();
        let rule = ConfusionRule { iou: 0.1, score: 0.2 };
        let expected = confusion_matrix(&truth, &detections, 3, rule);
        truth.reverse();
        detections.rotate_left(31);
        assert_eq!(confusion_matrix(&truth, &detections, 3, rule), expected);
    }

    #[test]
    fn trading_objects_for_detections_transposes_the_matrix() {
        let (truth, detections) = crowded_images();
        let traded_truth: Vec<_> = detections.iter().map(|d| object(d.image, d.class_index, d.rectangle.x)).collect();
        let traded: Vec<_> = truth.iter().map(|o| found(o.image, o.class_index, o.rectangle.x, 1.0)).collect();
        let rule = ConfusionRule { iou: 0.2, score: 0.0 };
        let [there, back] = [(truth, detections), (traded_truth, traded)]
            .map(|(truth, detections)| confusion_matrix(&truth, &detections, 3, rule).counts);
        let transposed: Vec<Vec<_>> = (0..4).map(|i| back.iter().map(|row| row[i]).collect()).collect();
        assert_eq!(there, transposed);
    }

    #[test]
    fn pairs_are_of_the_greatest_overlap_whatever_the_classes() {
        let cat = [object(0, CAT, 0.0)];
        let cases: [(&str, Vec<ScoredBox>, _); 7] = [
            ("nothing", vec![], matrix(&[(CAT, BACKGROUND, 1)])),
            ("itself", vec![found(0, CAT, 1.0, 0.5)], matrix(&[(CAT, CAT, 1)])),
            ("another class", vec![found(0, DOG, 1.0, 0.9)], matrix(&[(CAT, DOG, 1)])),
            ("not sure", vec![found(0, CAT, 1.0, 0.49)], matrix(&[(CAT, BACKGROUND, 1)])),
            ("elsewhere", vec![found(0, DOG, 6.0, 0.9)], matrix(&[(CAT, BACKGROUND, 1), (BACKGROUND, DOG, 1)])),
            ("another image", vec![found(1, CAT, 0.0, 0.9)], matrix(&[(CAT, BACKGROUND, 1), (BACKGROUND, CAT, 1)])),
            (
                "two on one",
                vec![found(0, CAT, 2.0, 0.9), found(0, DOG, 1.0, 0.6)],
                matrix(&[(CAT, DOG, 1), (BACKGROUND, CAT, 1)]),
            ),
        ];
        for (name, detections, expected) in cases {
            assert_eq!(counts(&cat, &detections), expected, "{name}");
        }
    }

    #[test]
    fn of_equal_overlaps_the_surer_detection_wins() {
        let detections = [found(0, DOG, 0.0, 0.6), found(0, CAT, 0.0, 0.9)];
        let expected = matrix(&[(CAT, CAT, 1), (BACKGROUND, DOG, 1)]);
        assert_eq!(counts(&[object(0, CAT, 0.0)], &detections), expected);
    }

    #[test]
    fn a_crowd_forgives_detections_of_its_class() {
        let rectangle = Rectangle { width: 100.0, ..square(0.0) };
        let crowd = [Annotation { crowd: true, rectangle, ..object(0, CAT, 0.0) }];
        let detections = [found(0, CAT, 30.0, 0.9), found(0, CAT, 95.0, 0.9), found(0, DOG, 50.0, 0.9)];
        assert_eq!(counts(&crowd, &detections), matrix(&[(BACKGROUND, DOG, 1)]));
        assert_eq!(counts(&crowd, &[found(0, CAT, 96.0, 0.9)]), matrix(&[(BACKGROUND, CAT, 1)]));
    }

    #[test]
    fn confusions_are_of_classes_and_the_most_frequent_comes_first() {
        let truth: Vec<_> = (0..4).map(|image| object(image, image % 2, 0.0)).collect();
        let detections =
            [found(0, DOG, 0.0, 0.9), found(1, CAT, 0.0, 0.9), found(3, CAT, 0.0, 0.9), found(3, CAT, 9.0, 1.0)];
        let confusions = confusion_matrix(&truth, &detections, 2, ConfusionRule::default()).confusions();
        let expected = [(DOG, CAT, 2), (CAT, DOG, 1)];
        assert_eq!(confusions, expected.map(|(truth, prediction, count)| Confusion { truth, prediction, count }));
    }

    #[test]
    fn boxes_of_no_class_do_not_count() {
        assert_eq!(counts(&[object(0, 2, 0.0)], &[found(0, 7, 0.0, 0.9), found(0, DOG, 0.0, f64::NAN)]), matrix(&[]));
    }
}
