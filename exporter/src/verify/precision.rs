//! Comparison of a converted file with the float32 file, on images.

use std::fmt;

use models::{Anchors, Deviation, ModelSpec, Preprocessed, max_abs};
use ndarray::{Array3, Axis};
use runtime::{Detection, postprocess};

use super::heads::{HeadReader, NetworkOutputs};
use crate::inputs::{Inputs, MeasureError};
use crate::precision::Precision;

/// Maximum number of detections per image that are compared, as many as in COCO's AP.
const COMPARED: usize = 100;

/// Maximum number of detections per image among which matches are searched, and of candidates per level before NMS.
const SEARCHED: usize = 300;
const CANDIDATES: usize = 1000;

/// Maximum difference between the scores of matching detections.
const MAX_SCORE_DIFFERENCE: f32 = 0.1;

/// Minimum IoU of matching detections, as in COCO's AP50.
const MIN_IOU: f32 = 0.5;

/// Differences between two files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Of the logits, the offsets, and the features: the inputs of the `output` convolutions of classification and
    /// regression.
    pub heads: [Difference; 4],
    /// Number of compared detections of both files: the highest-scoring of each image, with scores so far above the
    /// spec's threshold that matching detections must be above it, too.
    pub detections: usize,
    /// Number of those with a match in the other file: the same class, a similar box, a similar score.
    pub matched: usize,
}

/// Differences between the values of two files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// On all images.
    pub all: Deviation,
    /// Maximum RMS difference of a single image.
    pub worst_rms: f64,
}

impl Difference {
    fn add(&mut self, expected: &Array3<f32>, found: &Array3<f32>) {
        let mut image = Deviation::default();
        image.add(expected.view(), found.view());
        self.worst_rms = max_abs(self.worst_rms, image.rms());
        self.all.add(expected.view(), found.view());
    }
}

/// RMS over all images, RMS of the worst image, and maximum, in standard deviations.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Before training, the standard deviation is zero.
        let std = if self.all.expected_std() > 0.0 { self.all.expected_std() } else { 1.0 };
        let [rms, worst, max] = [self.all.rms(), self.worst_rms, self.all.max()].map(|difference| difference / std);
        write!(f, "{rms:.4} ({worst:.4}, {max:.3})")
    }
}

impl Comparison {
    /// The fraction of detections that match, in [0, 1]; 1 if there are none.
    pub fn agreement(&self) -> f64 {
        if self.detections == 0 { 1.0 } else { self.matched as f64 / self.detections as f64 }
    }

    /// Counts the detections of one file, and those that match one of the other file.
    fn count(&mut self, detections: &[Detection], others: &[Detection], threshold: f32) {
        let mut used = vec![false; others.len()];
        let is_compared = |detection: &&Detection| detection.score > threshold + MAX_SCORE_DIFFERENCE;
        for detection in detections.iter().take(COMPARED).filter(is_compared) {
            let matches = |other: &Detection| {
                other.class_index == detection.class_index
                    && (other.score - detection.score).abs() <= MAX_SCORE_DIFFERENCE
                    && other.bounding_box.iou(&detection.bounding_box) >= MIN_IOU
            };
            self.detections += 1;
            if let Some(index) = (0..others.len()).find(|index| !used[*index] && matches(&others[*index])) {
                used[index] = true;
                self.matched += 1;
            }
        }
    }
}

/// Maximum differences of a converted file from the float32 file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// RMS difference of logits and offsets in the worst image, in standard deviations. The limit of the features is
    /// twice this; they show differences also before training, when the weights of the output layers are zero.
    pub std: f64,
    /// Addition to this limit, as a fraction of the values' RMS.
    pub rms: f64,
    /// RMS differences of logits and offsets that are always allowed. Before training, the outputs themselves vary less.
    pub negligible: [f64; 2],
    /// Minimum fraction of detections that match, in [0, 1].
    pub agreement: f64,
}

/// Logits that change scores by at most 0.001, and offsets that move a box by a thousandth of its anchor.
const NEGLIGIBLE: [f64; 2] = [0.004, 0.001];

/// For int8: the logits are rounded to steps of about 0.05. Scores change by at most 0.008.
const ROUNDED: [f64; 2] = [0.03, 0.001];

impl Limits {
    /// The limits of fp16. A float16 product has an error of up to 2^-11; random errors of some seventy layers add up to
    /// 0.0024. Measured: the demo after 1, 3 and 7 epochs 0.0020, 0.0016 and 0.0011, and all detections match; random
    /// weights 0.0008 in ResNet-50 (with hundreds of equal scores, so that 90 % of the detections match) and 0.0013 in
    /// ResNet-101.
    const FP16: Self = Self { std: 0.01, rms: 1.0 / 2048.0, negligible: NEGLIGIBLE, agreement: 0.75 };

    /// The limits of int8. Measured on the demo after 1, 3 and 7 epochs: with ranges of 100 images 0.028 to 0.034, of one
    /// image 0.024 to 0.033, and at least 99 % of the detections match. With wrong ranges, from one black or one gray image,
    /// 0.196 to 0.396, and as few as 54 % of the detections match.
    const INT8: Self = Self { std: 0.1, rms: 0.0, negligible: ROUNDED, agreement: 0.75 };

    /// The limits of a precision.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self { std: 0.0, rms: 0.0, negligible: NEGLIGIBLE, agreement: 1.0 },
            Precision::Fp16 => Self::FP16,
            Precision::Int8 => Self::INT8,
        }
    }

    /// Maximum RMS difference from float32 on any provider, in standard deviations. TF32 and bfloat16, in which GPUs and some CPUs
    /// compute float32, have less than float16's digits.
    pub(crate) fn on_any_provider(precision: Precision) -> f64 {
        Self::FP16.std + Self::of(precision).std
    }

    /// Whether the differences are within the limits. NaN never is.
    pub(super) fn allow(self, comparison: &Comparison) -> bool {
        let within = |((Difference { all, worst_rms }, factor), negligible): ((&Difference, f64), f64)| {
            *worst_rms <= negligible.max(factor * self.std * all.expected_std() + self.rms * all.expected_rms())
        };
        let [logits, offsets] = self.negligible;
        let mut heads = comparison.heads.iter().zip([1.0, 1.0, 2.0, 2.0]).zip([logits, offsets, 0.0, 0.0]);
        heads.all(within) && comparison.agreement() >= self.agreement
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [logits, offsets, classification, regression] = &self.heads;
        write!(
            f,
            "logits {logits}, offsets {offsets}, classification features {classification}, regression features \
             {regression}, as RMS (RMS of the worst image, maximum) in standard deviations; {:.1} % of {} detections \
             match",
            100.0 * self.agreement(),
            self.detections
        )
    }
}

/// Runs both files on all inputs and compares their outputs. Logits below `lowest` count as `lowest`.
pub(super) fn compare(
    mut fp32: HeadReader,
    mut converted: HeadReader,
    inputs: Inputs,
    lowest: f32,
) -> Result<Comparison, MeasureError> {
    let mut spec = inputs.spec.clone();
    let rules = &mut spec.postprocessing;
    // An untrained network may detect objects everywhere.
    rules.max_detections = Some(rules.max_detections.map_or(SEARCHED, |limit| limit.min(SEARCHED)));
    rules.top_k = Some(rules.top_k.map_or(CANDIDATES, |limit| limit.min(CANDIDATES)));
    let mut comparison = Comparison::default();
    for input in inputs.each() {
        let input = input?;
        let images = input.pixels.view().insert_axis(Axis(0));
        let read = |reader: &mut HeadReader| {
            let mut outputs = reader.read(images, &spec)?;
            // A NaN stays one.
            outputs.heads.logits.mapv_inplace(|logit| if logit < lowest { lowest } else { logit });
            Ok::<_, MeasureError>(outputs)
        };
        let (expected, found) = (read(&mut fp32)?, read(&mut converted)?);
        let pairs = expected.heads.each().into_iter().zip(found.heads.each());
        comparison
            .heads
            .iter_mut()
            .zip(pairs)
            .for_each(|(difference, (expected, found))| difference.add(expected, found));
        let [expected, found] = [expected, found].map(|outputs| detections(&outputs, &input, &spec));
        comparison.count(&expected, &found, spec.postprocessing.score_threshold);
        comparison.count(&found, &expected, spec.postprocessing.score_threshold);
    }
    Ok(comparison)
}

/// The detections in the single image of `input`.
fn detections(outputs: &NetworkOutputs, input: &Preprocessed, spec: &ModelSpec) -> Vec<Detection> {
    let (_, height, width) = input.pixels.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    let [scores, offsets] = [&outputs.scores, &outputs.heads.offsets].map(|rows| rows.index_axis(Axis(0), 0));
    postprocess(scores, offsets, &anchors, &input.placement, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::BoundingBox;

    #[test]
    fn detections_match_by_class_score_and_iou_one_to_one() {
        let detection = |class_index, score, x: f32| Detection {
            class_index,
            score,
            bounding_box: BoundingBox::new(x, 0.0, x + 10.0, 10.0),
        };
        let counted = |detections: &[Detection], others: &[Detection]| {
            let mut comparison = Comparison::default();
            comparison.count(detections, others, 0.05);
            (comparison.detections, comparison.matched)
        };
        let first = detection(1, 0.5, 0.0);
        for (other, matched) in [
            (detection(1, 0.45, 2.0), 1),
            (detection(0, 0.5, 0.0), 0),
            (detection(1, 0.39, 0.0), 0),
            (detection(1, 0.5, 4.0), 0),
        ] {
            assert_eq!(counted(&[first], &[other]), (1, matched), "{other:?}");
        }
        assert_eq!(counted(&[first, first], &[first]), (2, 1), "a detection matches only one other");
        assert_eq!(counted(&[detection(1, 0.14, 0.0)], &[]), (0, 0), "scores close to the threshold are not compared");
        assert_eq!(Comparison::default().agreement(), 1.0);
    }
}
