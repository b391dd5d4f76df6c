//! Comparison of a file with the plain file: the scores and offsets that it outputs must be the same.

use std::ops::Range;
use std::path::Path;

use models::{Anchors, ModelSpec, max_abs};
use ndarray::{Array4, ArrayView2, Axis};
use runtime::{Candidates, Engine, EngineError, EngineOptions, Outputs};

use super::FormDifferences;

/// Maximum number of images that are compared: two show everything that more would.
const IMAGES: usize = 2;

/// The maximum differences between the outputs of the files `free` and `formed`.
pub(super) fn compare(
    free: &Path,
    formed: &Path,
    images: &Array4<f32>,
    engine: &EngineOptions,
) -> Result<FormDifferences, EngineError> {
    let formed = Engine::open(formed, engine)?;
    let images = suitable(images, &formed);
    let found = formed.run(images.view())?;
    let spec = formed.spec().clone();
    // Only one network is in memory at a time.
    drop(formed);
    let expected = Engine::open(free, engine)?.run(images.view())?.into_dense()?;

    let mut differences = Largest::default();
    match found {
        Outputs::Dense(found) => {
            differences.scores(expected.scores().iter().zip(&found.scores()));
            differences.offsets(expected.offsets().iter().zip(&found.offsets()));
            let shapes =
                [expected.scores().dim() == found.scores().dim(), expected.offsets().dim() == found.offsets().dim()];
            if shapes != [true; 2] {
                return Ok(FormDifferences { scores: f64::NAN, offsets: f64::NAN });
            }
        }
        Outputs::Candidates(found) => {
            let anchors = Anchors::new(&spec.anchors, images.dim().2, images.dim().3);
            for image in 0..found.images() {
                let (scores, offsets) = (expected.scores(), expected.offsets());
                let scores = scores.index_axis(Axis(0), image);
                let offsets = offsets.index_axis(Axis(0), image);
                differences.candidates(scores, offsets, &found.of(image), anchors.levels(), &spec);
            }
        }
    }
    Ok(differences.0)
}

/// Crops or tiles images to the input size of the engine.
fn suitable(images: &Array4<f32>, engine: &Engine) -> Array4<f32> {
    let (count, channels, height, width) = images.dim();
    let [rows, columns] = engine.size().unwrap_or([height, width]);
    let wanted = engine.batch().unwrap_or(count).min(IMAGES);
    let pixel = |(n, c, y, x)| images[[n % count, c, y % height, x % width]];
    Array4::from_shape_fn((wanted, channels, rows, columns), pixel)
}

/// The maximum differences so far; NaN after a NaN or a missing anchor or class.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Largest(FormDifferences);

impl Default for Largest {
    fn default() -> Self {
        Self(FormDifferences { scores: 0.0, offsets: 0.0 })
    }
}

impl Largest {
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

    fn fail(&mut self) {
        self.0 = FormDifferences { scores: f64::NAN, offsets: f64::NAN };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2, array};

    const LEVELS: [Range<usize>; 5] = [0..2, 2..3, 3..3, 3..3, 3..3];

    /// The differences of candidates (score, anchor, class, offset) from scores of three anchors and two classes, and
    /// from offsets that equal the anchor's index.
    fn differences(candidates: &[(f32, i64, i64, f32)]) -> FormDifferences {
        let scores = array![[0.9, 0.2], [0.5, 0.6], [0.01, 0.7]];
        let offsets = Array2::from_shape_fn((3, 4), |(anchor, _)| anchor as f32);
        let mut spec = ModelSpec::default();
        spec.postprocessing.top_k = Some(2);
        let mut largest = Largest::default();
        let column = |pick: fn(&(f32, i64, i64, f32)) -> i64| Array1::from_iter(candidates.iter().map(pick));
        let (rows, classes) = (column(|candidate| candidate.1), column(|candidate| candidate.2));
        let said = Array1::from_iter(candidates.iter().map(|candidate| candidate.0));
        let from = Array2::from_shape_fn((candidates.len(), 4), |(index, _)| candidates[index].3);
        let found =
            Candidates { scores: said.view(), anchors: rows.view(), classes: classes.view(), offsets: from.view() };
        largest.candidates(scores.view(), offsets.view(), &found, &LEVELS, &spec);
        largest.0
    }

    #[test]
    fn only_the_highest_scoring_candidates_of_each_level_agree() {
        let right = [(0.9, 0, 0, 0.0), (0.6, 1, 1, 1.0), (0.7, 2, 1, 2.0)];
        assert_eq!(differences(&right), FormDifferences { scores: 0.0, offsets: 0.0 });
        let with_none = [&right[..], &[(0.0, 9, 9, f32::NAN)]].concat();
        assert_eq!(differences(&with_none), FormDifferences { scores: 0.0, offsets: 0.0 });

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
}
