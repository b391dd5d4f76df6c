//! The score threshold with the best F1.

use models::dataset::Dataset;
use models::evaluation::{ConfusionMatrix, ConfusionRule, ScoredBox, confusion_matrix};

/// Thresholds that are tried: the multiples of 1 / PARTS between 0 and 1.
const PARTS: u32 = 20;

/// The score threshold with the highest F1 at IoU 0.5 over all classes together, out of 0.05, 0.1, ... 0.95; the lowest one
/// of equally good ones. The default rule if no detection is correct.
pub(super) fn best_rule(truth: &Dataset, detections: &[ScoredBox]) -> ConfusionRule {
    let rules =
        (1..PARTS).map(|part| ConfusionRule { score: f64::from(part) / f64::from(PARTS), ..ConfusionRule::default() });
    let mut best = (0.0, ConfusionRule::default());
    for rule in rules {
        let counts = Counts::of(&confusion_matrix(truth.annotations(), detections, truth.classes().len(), rule));
        if counts.right > 0 && counts.f1() > best.0 {
            best = (counts.f1(), rule);
        }
    }
    best.1
}

/// Numbers of objects, detections and correct detections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) objects: usize,
    pub(super) detections: usize,
    /// Number of matched pairs of an object and a detection with the same class.
    pub(super) right: usize,
}

impl Counts {
    /// The counts of a confusion matrix, over all classes.
    pub(super) fn of(matrix: &ConfusionMatrix) -> Self {
        let background = matrix.background();
        let all: usize = matrix.counts.iter().flatten().sum();
        let unfounded: usize = matrix.counts[background].iter().sum();
        let missed: usize = matrix.counts.iter().map(|row| row[background]).sum();
        let right = (0..background).map(|class| matrix.counts[class][class]).sum();
        Self { objects: all - unfounded, detections: all - missed, right }
    }

    /// Number of objects not detected with their class, plus detections without an object or with the wrong class.
    pub(super) fn errors(self) -> usize {
        self.objects + self.detections - 2 * self.right
    }

    /// The harmonic mean of precision and recall; 1 without objects and detections.
    pub(super) fn f1(self) -> f64 {
        match self.objects + self.detections {
            0 => 1.0,
            both => 2.0 * self.right as f64 / both as f64,
        }
    }

    /// The fraction of correct detections; NaN without detections.
    pub(super) fn precision(self) -> f64 {
        self.right as f64 / self.detections as f64
    }

    /// The fraction of objects found; NaN without objects.
    pub(super) fn recall(self) -> f64 {
        self.right as f64 / self.objects as f64
    }
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Image, Rectangle};
    use models::spec::Class;

    use super::*;

    fn place(x: f64) -> Rectangle {
        Rectangle { x, y: 0.0, width: 10.0, height: 10.0 }
    }

    fn truth() -> Dataset {
        let annotation = |x| Annotation {
            id: 1,
            image: 0,
            class_index: 0,
            rectangle: place(x),
            area: 100.0,
            crowd: false,
            difficult: false,
        };
        let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 50, height: 10 }];
        let classes = vec![Class { id: 0, name: "a".to_owned() }];
        Dataset::new("", images, [0.0, 20.0, 40.0].map(annotation).to_vec(), classes).unwrap()
    }

    fn found(x: f64, score: f64) -> ScoredBox {
        ScoredBox { image: 0, class_index: 0, score, rectangle: place(x) }
    }

    #[test]
    fn the_best_threshold_separates_correct_from_wrong_detections() {
        let detections = [found(0.0, 0.9), found(20.0, 0.62), found(300.0, 0.58), found(400.0, 0.3), found(500.0, 0.2)];
        assert_eq!(best_rule(&truth(), &detections).score, 0.6);
        assert_eq!(best_rule(&truth(), &detections[2..]), ConfusionRule::default());
        assert_eq!(best_rule(&truth(), &[]), ConfusionRule::default());
        assert_eq!(best_rule(&Dataset::default(), &detections), ConfusionRule::default());
    }

    #[test]
    fn counts_equal_those_of_the_confusion_matrix() {
        let detections = [found(0.0, 0.9), found(300.0, 0.8)];
        let matrix = confusion_matrix(truth().annotations(), &detections, 1, ConfusionRule::default());
        let counts = Counts::of(&matrix);
        assert_eq!(counts, Counts { objects: 3, detections: 2, right: 1 });
        assert_eq!((counts.errors(), counts.f1(), Counts::default().f1()), (3, 0.4, 1.0));
    }
}
