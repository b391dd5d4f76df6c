//! Comparison of a variant with the plain file: the scores, offsets or detections that it outputs must be those that `runtime`
//! finds in the plain file's outputs.

use std::fmt;
use std::ops::Range;

use models::spec::PreprocessingSpec;
use models::{Anchors, ModelSpec, Placement, max_abs};
use ndarray::{Array3, Array4, ArrayView2, Axis};
use runtime::{
    Candidates, DenseOutputs, Detection, Engine, EngineError, Input, Outputs, PixelType, Pixels, postprocess,
};

use crate::precision::Precision;

/// Maximum number of images that are compared: two show everything that more would.
const IMAGES: usize = 2;

/// Number of scores above the threshold of [`busy_threshold`].
const BUSY: usize = 400;

/// Minimum IoU of equal detections.
const MIN_IOU: f32 = 0.99;

/// Maximum absolute differences of a file from the plain file; NaN if either has NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VariantDifferences {
    /// Of the scores.
    pub scores: f64,
    /// Of the offsets; 0 for end-to-end files.
    pub offsets: f64,
    /// Of the corners of detections, in pixels; 0 for other files.
    pub pixels: f64,
}

impl VariantDifferences {
    /// Maximum differences of two files of the same network that differ only in the order of summation.
    pub(super) fn rounding(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self { scores: 1e-4, offsets: 1e-3, pixels: 0.05 },
            Precision::Fp16 => Self { scores: 0.02, offsets: 0.1, pixels: 1.0 },
            // A value close to half an integer may be rounded differently, which changes all later layers.
            Precision::Int8 => Self { scores: 0.1, offsets: 0.5, pixels: 5.0 },
        }
    }

    /// Whether no difference exceeds its limit.
    pub(super) fn are_within(self, limits: Self) -> bool {
        self.scores <= limits.scores && self.offsets <= limits.offsets && self.pixels <= limits.pixels
    }

    /// The larger of both differences.
    pub(super) fn max(self, other: Self) -> Self {
        let [scores, offsets, pixels] =
            [(self.scores, other.scores), (self.offsets, other.offsets), (self.pixels, other.pixels)]
                .map(|(a, b)| max_abs(a, b));
        Self { scores, offsets, pixels }
    }
}

impl fmt::Display for VariantDifferences {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { scores, offsets, pixels } = self;
        write!(f, "at most {scores:.1e} in scores, {offsets:.1e} in offsets and {pixels:.1e} pixels in boxes")
    }
}

/// Inputs for two files of one network: images in the upper left corner of zeros. They are the probe's images, cropped or
/// tiled to the size that the variant reads.
pub(super) struct Pair {
    /// For the plain file, `[N, 3, H, W]`.
    plain: Array4<f32>,
    /// For the variant.
    variant: Vec<Input<'static>>,
    valid: [usize; 2],
}

impl Pair {
    pub(super) fn new(probe: &Array4<f32>, variant: &Engine) -> Self {
        let (count, channels, height, width) = probe.dim();
        let [rows, columns] = variant.size().unwrap_or([height, width]);
        let valid = [rows - rows / 8, columns - columns / 4];
        let shape = (variant.batch().unwrap_or(count).min(IMAGES), channels, rows, columns);
        let pixel = |(n, c, y, x)| match y < valid[0] && x < valid[1] {
            true => probe[[n % count, c, y % height, x % width]],
            false => 0.0,
        };
        let floats = Array4::from_shape_fn(shape, pixel);
        let (plain, pixels): (_, Vec<_>) = match variant.pixel_type() {
            PixelType::Float => {
                let pixels = floats.outer_iter().map(|image| Pixels::Float(image.to_owned().into())).collect();
                (floats, pixels)
            }
            PixelType::Bytes => {
                let spec = &variant.spec().preprocessing;
                let bytes: Vec<_> = floats.outer_iter().map(|image| to_bytes(image.to_owned(), spec)).collect();
                let [factor, term] = spec.factor_and_term();
                let normalized = |(n, c, y, x): (usize, usize, usize, usize)| match y < valid[0] && x < valid[1] {
                    true => f32::from(bytes[n][[y, x, c]]) * factor[c] + term[c],
                    false => 0.0,
                };
                let plain = Array4::from_shape_fn(shape, normalized);
                (plain, bytes.into_iter().map(|image| Pixels::Bytes(image.into())).collect())
            }
        };
        Self { plain, variant: pixels.into_iter().map(|pixels| Input { pixels, valid }).collect(), valid }
    }

    /// Runs the plain file.
    pub(super) fn run_plain(&self, plain: &Engine) -> Result<DenseOutputs, EngineError> {
        plain.run(self.plain.view())?.into_dense()
    }

    /// Runs the variant, and compares its outputs with those of the plain file.
    pub(super) fn compare(&self, expected: &DenseOutputs, variant: &Engine) -> Result<VariantDifferences, EngineError> {
        let mut max = MaxDifferences::default();
        let (spec, (_, _, height, width)) = (variant.spec(), self.plain.dim());
        let anchors = Anchors::new(&spec.anchors, height, width);
        let of_image = |image: usize| {
            let (scores, offsets) = (expected.scores(), expected.offsets());
            (scores.index_axis_move(Axis(0), image), offsets.index_axis_move(Axis(0), image))
        };
        match variant.run_inputs(&self.variant.iter().collect::<Vec<_>>(), 0)? {
            Outputs::Dense(found) => {
                if (expected.scores().dim(), expected.offsets().dim()) != (found.scores().dim(), found.offsets().dim())
                {
                    max.fail();
                }
                max.scores(expected.scores().iter().zip(&found.scores()));
                max.offsets(expected.offsets().iter().zip(&found.offsets()));
            }
            Outputs::Candidates(found) => {
                for image in 0..found.images() {
                    let (scores, offsets) = of_image(image);
                    max.candidates(scores, offsets, &found.of(image), anchors.levels(), spec);
                }
            }
            Outputs::Detections(found) => {
                let placement = self.placement();
                for image in 0..found.images() {
                    let (scores, offsets) = of_image(image);
                    let expected = postprocess(scores, offsets, &anchors, &placement, spec);
                    let found = found.of(image).map(|(score, class, bounding_box)| Detection {
                        class_index: usize::try_from(class).unwrap_or(usize::MAX),
                        score,
                        bounding_box,
                    });
                    max.detections(&expected, &found.collect::<Vec<_>>(), spec.postprocessing.score_threshold);
                }
            }
        }
        Ok(max.0)
    }

    /// An image whose pixels are those of the input.
    fn placement(&self) -> Placement {
        let (_, _, height, width) = self.plain.dim();
        let [valid_height, valid_width] = self.valid.map(|side| side as u32);
        Placement {
            original_width: valid_width,
            original_height: valid_height,
            resized_width: valid_width,
            resized_height: valid_height,
            padded_width: width as u32,
            padded_height: height as u32,
            common_scale: None,
        }
    }
}

/// A threshold that some hundred of the scores exceed, so that the selection of candidates and NMS can be compared: a trained
/// network detects nothing in a probe of noise.
pub(super) fn busy_threshold(scores: &DenseOutputs) -> f32 {
    let scores = scores.scores();
    let mut scores: Vec<f32> = scores.iter().copied().collect();
    let index = BUSY.min(scores.len() - 1);
    *scores.select_nth_unstable_by(index, |a, b| b.total_cmp(a)).1
}

/// The nearest bytes of a normalized image `[3, H, W]`, as `[H, W, 3]`.
fn to_bytes(image: Array3<f32>, spec: &PreprocessingSpec) -> Array3<u8> {
    let [factor, term] = spec.factor_and_term();
    let (_, height, width) = image.dim();
    let byte = |(y, x, c): (usize, usize, usize)| ((image[[c, y, x]] - term[c]) / factor[c]).round() as u8;
    Array3::from_shape_fn((height, width, 3), byte)
}

/// The maximum differences so far; NaN after a NaN or a missing anchor or class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct MaxDifferences(VariantDifferences);

impl MaxDifferences {
    fn scores<'a>(&mut self, pairs: impl Iterator<Item = (&'a f32, &'a f32)>) {
        pairs.for_each(|(a, b)| self.0.scores = max_abs(self.0.scores, f64::from(a - b)));
    }

    fn offsets<'a>(&mut self, pairs: impl Iterator<Item = (&'a f32, &'a f32)>) {
        pairs.for_each(|(a, b)| self.0.offsets = max_abs(self.0.offsets, f64::from(a - b)));
    }

    /// Compares the candidates of one image with all scores `[anchors, classes]` and offsets `[anchors, 4]`: each
    /// candidate must have the score and offsets of its anchor and class, and each level's candidates must be its
    /// highest-scoring.
    fn candidates(
        &mut self,
        scores: ArrayView2<f32>,
        offsets: ArrayView2<f32>,
        found: &Candidates,
        levels: &[Range<usize>; 5],
        spec: &ModelSpec,
    ) {
        let mut of_levels = vec![Vec::new(); levels.len()];
        for (index, &score) in found.scores.iter().enumerate().filter(|(_, score)| **score != 0.0) {
            let place = (usize::try_from(found.anchors[index]), usize::try_from(found.classes[index]));
            let (Ok(anchor), Ok(class)) = place else { return self.fail() };
            let level = levels.iter().position(|level| level.contains(&anchor));
            let (Some(level), Some(expected)) = (level, scores.get([anchor, class])) else { return self.fail() };
            of_levels[level].push(score);
            self.scores(std::iter::once((expected, &score)));
            self.offsets(offsets.row(anchor).iter().zip(found.offsets.row(index)));
        }
        let rules = &spec.postprocessing;
        for (level, mut found) in levels.iter().zip(of_levels) {
            let level = scores.slice(ndarray::s![level.clone(), ..]);
            let mut best: Vec<_> = level.iter().copied().filter(|score| *score > rules.score_threshold).collect();
            best.sort_unstable_by(|a, b| b.total_cmp(a));
            best.truncate(rules.top_k.unwrap_or(usize::MAX));
            found.sort_unstable_by(|a, b| b.total_cmp(a));
            // A missing candidate counts as one at the threshold, since rounding may move a score to either side of it.
            let length = best.len().max(found.len());
            best.resize(length, rules.score_threshold);
            found.resize(length, rules.score_threshold);
            self.scores(best.iter().zip(&found));
        }
    }

    /// Compares the detections in one image: each must have one of the same class and box among the others, with a similar
    /// score. One that has none counts as if the other were at the threshold.
    fn detections(&mut self, expected: &[Detection], found: &[Detection], threshold: f32) {
        let mut rest: Vec<&Detection> = found.iter().collect();
        for detection in expected {
            let similarity = |other: &Detection| match other.class_index == detection.class_index {
                true => other.bounding_box.iou(&detection.bounding_box),
                false => -1.0,
            };
            let best = (0..rest.len()).max_by(|a, b| similarity(rest[*a]).total_cmp(&similarity(rest[*b])));
            match best.filter(|best| similarity(rest[*best]) >= MIN_IOU) {
                Some(best) => {
                    let other = rest.remove(best);
                    self.scores(std::iter::once((&detection.score, &other.score)));
                    let corners = [detection, other].map(|detection| <[f32; 4]>::from(detection.bounding_box));
                    let pairs = corners[0].iter().zip(&corners[1]);
                    pairs.for_each(|(a, b)| self.0.pixels = max_abs(self.0.pixels, f64::from(a - b)));
                }
                None => self.scores(std::iter::once((&detection.score, &threshold))),
            }
        }
        self.scores(rest.into_iter().map(|detection| (&detection.score, &threshold)));
        if found.windows(2).any(|pair| pair[0].score < pair[1].score) {
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.0.scores = f64::NAN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::BoundingBox;
    use ndarray::{Array1, Array2, array};

    const LEVELS: [Range<usize>; 5] = [0..2, 2..3, 3..3, 3..3, 3..3];

    /// The differences of candidates (score, anchor, class, offset) from scores of three anchors and two classes, and
    /// from offsets that equal the anchor's index.
    fn differences(candidates: &[(f32, i64, i64, f32)]) -> VariantDifferences {
        let scores = array![[0.9, 0.2], [0.5, 0.6], [0.01, 0.7]];
        let offsets = Array2::from_shape_fn((3, 4), |(anchor, _)| anchor as f32);
        let mut spec = ModelSpec::default();
        spec.postprocessing.top_k = Some(2);
        let mut max = MaxDifferences::default();
        let column = |pick: fn(&(f32, i64, i64, f32)) -> i64| Array1::from_iter(candidates.iter().map(pick));
        let (rows, classes) = (column(|candidate| candidate.1), column(|candidate| candidate.2));
        let found_scores = Array1::from_iter(candidates.iter().map(|candidate| candidate.0));
        let from = Array2::from_shape_fn((candidates.len(), 4), |(index, _)| candidates[index].3);
        let found = Candidates {
            scores: found_scores.view(),
            anchors: rows.view(),
            classes: classes.view(),
            offsets: from.view(),
        };
        max.candidates(scores.view(), offsets.view(), &found, &LEVELS, &spec);
        max.0
    }

    #[test]
    fn only_the_highest_scoring_candidates_of_each_level_agree() {
        let right = [(0.9, 0, 0, 0.0), (0.6, 1, 1, 1.0), (0.7, 2, 1, 2.0)];
        assert_eq!(differences(&right), VariantDifferences::default());
        let with_none = [&right[..], &[(0.0, 9, 9, f32::NAN)]].concat();
        assert_eq!(differences(&with_none), VariantDifferences::default());

        let mut offset = right;
        offset[1].3 = 1.5;
        assert_eq!(differences(&offset).offsets, 0.5);
        let mut score = right;
        score[2].0 = 0.8;
        assert!((differences(&score).scores - 0.1).abs() < 1e-6);
        // A lower-scoring candidate, one too few, one too many, and anchors and classes that do not exist.
        assert!((differences(&[right[0], (0.5, 1, 0, 1.0), right[2]]).scores - 0.1).abs() < 1e-6);
        assert!((differences(&right[..2]).scores - 0.65).abs() < 1e-6);
        assert!((differences(&[&right[..], &[(0.5, 1, 0, 1.0)]].concat()).scores - 0.45).abs() < 1e-6);
        for (anchor, class) in [(3, 0), (-1, 0), (0, 2), (0, -1)] {
            assert!(differences(&[right[0], (0.6, anchor, class, 1.0)]).scores.is_nan());
        }
    }

    #[test]
    fn only_the_same_detections_in_order_of_their_scores_agree() {
        let detection = |class_index, score, x: f32| {
            let bounding_box = BoundingBox::new(x, 0.0, x + 1000.0, 10.0);
            Detection { class_index, score, bounding_box }
        };
        let expected = [detection(1, 0.9, 0.0), detection(0, 0.5, 100.0)];
        let differences = |found: &[Detection]| {
            let mut max = MaxDifferences::default();
            max.detections(&expected, found, 0.05);
            max.0
        };
        assert_eq!(differences(&expected), VariantDifferences::default());
        let shifted = differences(&[detection(1, 0.8, 0.5), expected[1]]);
        assert!((shifted.scores - 0.1).abs() < 1e-6 && shifted.pixels == 0.5);
        // Another class, another box, one too few, one too many.
        for (found, scores) in [
            (&[detection(0, 0.9, 0.0), expected[1]][..], 0.85),
            (&[expected[0], detection(0, 0.5, 300.0)], 0.45),
            (&expected[..1], 0.45),
            (&[expected[0], detection(2, 0.6, 0.0), expected[1]], 0.55),
        ] {
            assert!((differences(found).scores - scores).abs() < 1e-6, "{found:?}");
        }
        assert!(differences(&[expected[1], expected[0]]).scores.is_nan());
    }
}
