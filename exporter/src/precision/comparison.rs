//! The comparison: how far a file of fewer bits is from that of 32, on images.

use std::fmt;
use std::path::Path;

use models::{Anchors, Deviation, ModelSpec, Preprocessed, larger};
use ndarray::{Array3, Axis};
use runtime::{Detection, EngineOptions, postprocess};

use super::calibration::{CalibrationError, Inputs};
use crate::heads::{Answer, HeadValues};

/// Detections of an image that are compared, as many as COCO's AP counts.
const COMPARED: usize = 100;

/// Detections of an image among which their equals are looked for, and candidates of a level that they come from.
const SEARCHED: usize = 300;
const CANDIDATES: usize = 1000;

/// By how much the scores of equal detections may differ.
const EQUAL_SCORE: f32 = 0.1;

/// By how much the boxes of equal detections must overlap, as for a hit in COCO's AP50.
const EQUAL_IOU: f32 = 0.5;

/// What no limit forbids, as nobody can see it: a logit off by so much moves a score by 0.001 at most, and an offset off by so much
/// moves a box by a thousandth of its anchor. Before training, outputs differ by less among each other.
const INVISIBLE: [f64; 4] = [0.004, 0.001, 0.0, 0.0];

/// How far two files are from each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Of logits, offsets, and what the last layers of the classification and of the regression read.
    pub heads: [Difference; 4],
    /// Number of compared detections of both files: the best of each image whose scores are above the spec's threshold by so
    /// much that their equals must be, too.
    pub detections: usize,
    /// Number of those that the other file has as well: of the same class, in about the same place, with about the same score.
    pub equal: usize,
}

/// How far numbers of two files are from each other on all images, and where it is most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// On all images.
    pub all: Deviation,
    /// The root of the mean square on the image where it is largest.
    pub worst: f64,
}

impl Difference {
    fn add(&mut self, expected: &Array3<f32>, found: &Array3<f32>) {
        let mut image = Deviation::default();
        image.add(expected.view(), found.view());
        self.worst = larger(self.worst, image.rms());
        self.all.add(expected.view(), found.view());
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Before training there is none.
        let spread = if self.all.spread() > 0.0 { self.all.spread() } else { 1.0 };
        let [rms, worst, max] = [self.all.rms(), self.worst, self.all.max()].map(|difference| difference / spread);
        write!(f, "{rms:.4} (worst image {worst:.4}, at most {max:.3})")
    }
}

impl Comparison {
    /// The fraction of detections that both files have, in [0, 1]; 1 where there are none.
    pub fn agreement(&self) -> f64 {
        if self.detections == 0 { 1.0 } else { self.equal as f64 / self.detections as f64 }
    }

    /// Looks for the detections of one file among those of the other.
    fn count(&mut self, detections: &[Detection], others: &[Detection], threshold: f32) {
        let mut taken = vec![false; others.len()];
        for detection in detections.iter().take(COMPARED).filter(|found| found.score > threshold + EQUAL_SCORE) {
            let equals = |other: &Detection| {
                other.class_index == detection.class_index
                    && (other.score - detection.score).abs() <= EQUAL_SCORE
                    && other.bounding_box.iou(&detection.bounding_box) >= EQUAL_IOU
            };
            self.detections += 1;
            if let Some(at) = (0..others.len()).find(|at| !taken[*at] && equals(&others[*at])) {
                taken[at] = true;
                self.equal += 1;
            }
        }
    }
}

/// How far a file of fewer bits may be from that of 32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Of logits and offsets in the worst image, as the root of the mean square, in units of their spread. What they are
    /// computed from may be off by twice as much, which shows also before training, when the last layers are zero.
    pub spread: f64,
    /// Beyond that, in units of their size.
    pub size: f64,
    /// The smallest fraction of detections that both files must have, in [0, 1].
    pub agreement: f64,
}

impl Limits {
    /// Whether a file may be so far off. What is no number never is.
    pub(crate) fn allow(self, comparison: &Comparison) -> bool {
        let within = |((Difference { all, worst }, factor), invisible): ((&Difference, f64), f64)| {
            *worst <= invisible.max(factor * self.spread * all.spread() + self.size * all.size())
        };
        let mut heads = comparison.heads.iter().zip([1.0, 1.0, 2.0, 2.0]).zip(INVISIBLE);
        heads.all(within) && comparison.agreement() >= self.agreement
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [logits, offsets, classification, regression] = &self.heads;
        write!(
            f,
            "logits by {logits} of their spread, offsets by {offsets}, the features before them by {classification} and \
             {regression}; {:.1} % of {} detections are in both files",
            100.0 * self.agreement(),
            self.detections
        )
    }
}

/// A file, and what its heads compute.
pub(crate) type File<'a> = (&'a Path, &'a HeadValues);

/// Runs both files on all inputs.
pub(crate) fn compare(
    full: File,
    converted: File,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<Comparison, CalibrationError> {
    let (mut full, mut converted) = (full.1.open(full.0, engine)?, converted.1.open(converted.0, engine)?);
    let mut spec = inputs.spec.clone();
    let rules = &mut spec.postprocessing;
    // A network that is not trained may see objects everywhere.
    rules.max_detections = Some(rules.max_detections.map_or(SEARCHED, |own| own.min(SEARCHED)));
    rules.top_k = Some(rules.top_k.map_or(CANDIDATES, |own| own.min(CANDIDATES)));
    let mut comparison = Comparison::default();
    for input in inputs.each() {
        let input = input?;
        let images = input.pixels.view().insert_axis(Axis(0));
        let (expected, found) = (full.read(images, &spec)?, converted.read(images, &spec)?);
        let pairs = expected.heads.each().into_iter().zip(found.heads.each());
        comparison
            .heads
            .iter_mut()
            .zip(pairs)
            .for_each(|(difference, (expected, found))| difference.add(expected, found));
        let [expected, found] = [expected, found].map(|answer| detections(&answer, &input, &spec));
        comparison.count(&expected, &found, spec.postprocessing.score_threshold);
        comparison.count(&found, &expected, spec.postprocessing.score_threshold);
    }
    Ok(comparison)
}

/// What a file finds in the one image of `input`.
fn detections(answer: &Answer, input: &Preprocessed, spec: &ModelSpec) -> Vec<Detection> {
    let (_, height, width) = input.pixels.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    let [scores, offsets] = [&answer.scores, &answer.heads.offsets].map(|rows| rows.index_axis(Axis(0), 0));
    postprocess(scores, offsets, &anchors, &input.placement, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::BoundingBox;

    #[test]
    fn detections_are_equal_in_class_place_and_score_each_to_one_other() {
        let found = |class_index, score, x: f32| Detection {
            class_index,
            score,
            bounding_box: BoundingBox::new(x, 0.0, x + 10.0, 10.0),
        };
        let counted = |detections: &[Detection], others: &[Detection]| {
            let mut comparison = Comparison::default();
            comparison.count(detections, others, 0.05);
            (comparison.detections, comparison.equal)
        };
        let one = found(1, 0.5, 0.0);
        for (other, equal) in
            [(found(1, 0.45, 2.0), 1), (found(0, 0.5, 0.0), 0), (found(1, 0.39, 0.0), 0), (found(1, 0.5, 4.0), 0)]
        {
            assert_eq!(counted(&[one], &[other]), (1, equal), "{other:?}");
        }
        assert_eq!(counted(&[one, one], &[one]), (2, 1), "one detection equals one other");
        assert_eq!(counted(&[found(1, 0.14, 0.0)], &[]), (0, 0), "so near to the threshold, none must be there");
        assert_eq!(Comparison::default().agreement(), 1.0);
    }
}
