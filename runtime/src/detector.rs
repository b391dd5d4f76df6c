//! The detector: a picture in, boxes out.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use models::{Anchors, ModelSpec, Preprocessed, RgbView, RgbViewError, preprocess};
use ndarray::Axis;

use crate::engine::{Engine, EngineError, EngineOptions, Outputs};
use crate::postprocess::{Candidates, Detection, postprocess, postprocess_candidates};

/// How a detector runs.
#[derive(Clone, Debug, Default)]
pub struct DetectorOptions {
    /// How the network runs.
    pub engine: EngineOptions,
    /// A score must exceed this, in [0, 1]; what the spec says if absent.
    pub score_threshold: Option<f32>,
}

/// Why there are no detections.
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    /// The network cannot be had, or cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An option is out of its range.
    #[error("score threshold {0} is not between 0 and 1")]
    ScoreThreshold(f32),
    /// The file has dropped what is asked for.
    #[error(
        "score threshold {asked} is below {least}, and the model hands over only candidates above that; ask for {least} or \
         more, or export it without --top-k"
    )]
    Dropped {
        /// The threshold that was asked for.
        asked: f32,
        /// The file's own.
        least: f32,
    },
    /// The picture has no pixels.
    #[error(transparent)]
    Picture(#[from] RgbViewError),
    /// The network has another number of anchors than its spec says.
    #[error("the model has {found} anchors for an input of {width}x{height}, its spec {expected}; export it again")]
    Anchors {
        /// The network's.
        found: usize,
        /// The spec's.
        expected: usize,
        /// Pixels of the input.
        width: usize,
        /// Pixels of the input.
        height: usize,
    },
    /// The network names an anchor or a class that is not there.
    #[error(
        "the model names anchor {anchor} and class {class}, and for an input of {width}x{height} its spec has {anchors} anchors \
         and {classes} classes; export it again"
    )]
    Candidate {
        /// The network's anchor.
        anchor: i64,
        /// The network's class.
        class: i64,
        /// Number of anchors.
        anchors: usize,
        /// Number of classes.
        classes: usize,
        /// Pixels of the input.
        width: usize,
        /// Pixels of the input.
        height: usize,
    },
    /// The network has more scores than are counted.
    #[error("{0} scores for one picture are too many; use a smaller input or fewer classes")]
    Scores(usize),
}

/// A detector, ready for pictures of any size. It may be shared between threads.
#[derive(Debug)]
pub struct Detector {
    engine: Engine,
    spec: ModelSpec,
    anchors: AnchorCache,
}

impl Detector {
    /// Opens an ONNX file that the exporter wrote.
    ///
    /// # Errors
    /// When the engine cannot be opened, and when an option is out of its range.
    pub fn open(path: impl AsRef<Path>, options: DetectorOptions) -> Result<Self, DetectorError> {
        let threshold = options.score_threshold;
        if let Some(threshold) = threshold.filter(|threshold| !(0.0..=1.0).contains(threshold)) {
            return Err(DetectorError::ScoreThreshold(threshold));
        }
        let engine = Engine::open(path, &options.engine)?;
        let mut spec = engine.spec().clone();
        if let Some(threshold) = threshold {
            let least = spec.postprocessing.score_threshold;
            if engine.top_k().is_some() && threshold < least {
                return Err(DetectorError::Dropped { asked: threshold, least });
            }
            spec.postprocessing.score_threshold = threshold;
        }
        Ok(Self { engine, spec, anchors: AnchorCache::default() })
    }

    /// The spec in use: the file's, with the options applied.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The network.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The objects in an upright picture, the best first, in the picture's pixels.
    ///
    /// # Errors
    /// When the picture has no pixels, and when ONNX Runtime fails.
    pub fn detect(&self, picture: &RgbImage) -> Result<Vec<Detection>, DetectorError> {
        let input = self.preprocess(picture)?;
        let outputs = self.run(&input)?;
        self.postprocess(&input, &outputs)
    }

    /// The first stage of [`Detector::detect`]: the picture becomes the network's input. Needs nothing of ONNX Runtime, so
    /// that the next picture can be preprocessed while the network runs.
    ///
    /// # Errors
    /// When the picture has no pixels.
    pub fn preprocess(&self, picture: &RgbImage) -> Result<Preprocessed, DetectorError> {
        let view = RgbView::new(picture.width(), picture.height(), picture.as_raw())?;
        Ok(preprocess(view, &self.spec.preprocessing))
    }

    /// The second stage: the network runs.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn run(&self, input: &Preprocessed) -> Result<Outputs, DetectorError> {
        Ok(self.engine.run(input.pixels.view().insert_axis(Axis(0)))?)
    }

    /// The third stage: the network's outputs become detections.
    ///
    /// # Errors
    /// When the outputs do not belong to the input.
    pub fn postprocess(&self, input: &Preprocessed, outputs: &Outputs) -> Result<Vec<Detection>, DetectorError> {
        let (_, height, width) = input.pixels.dim();
        let anchors = self.anchors.get(height, width, &self.spec);
        let outputs = match outputs {
            Outputs::Dense(outputs) => outputs,
            Outputs::Candidates(outputs) => {
                let found = outputs.of(0);
                check(&found, anchors.boxes().len(), self.spec.class_count(), [height, width])?;
                return Ok(postprocess_candidates(&found, &anchors, &input.placement, &self.spec));
            }
        };
        let (scores, offsets) = (outputs.scores(), outputs.offsets());
        let (scores, offsets) = (scores.index_axis(Axis(0), 0), offsets.index_axis(Axis(0), 0));
        let (found, expected) = (scores.nrows(), anchors.boxes().len());
        if found != expected {
            return Err(DetectorError::Anchors { found, expected, width, height });
        }
        if u32::try_from(scores.len()).is_err() {
            return Err(DetectorError::Scores(scores.len()));
        }
        Ok(postprocess(scores, offsets, &anchors, &input.placement, &self.spec))
    }
}

/// Checks that all candidates are of an anchor and a class that are there.
fn check(found: &Candidates, anchors: usize, classes: usize, [height, width]: [usize; 2]) -> Result<(), DetectorError> {
    let within = |index: i64, count: usize| usize::try_from(index).is_ok_and(|index| index < count);
    let mut pairs = found.anchors.iter().zip(&found.classes);
    match pairs.find(|(anchor, class)| !within(**anchor, anchors) || !within(**class, classes)) {
        None => Ok(()),
        Some((&anchor, &class)) => Err(DetectorError::Candidate { anchor, class, anchors, classes, width, height }),
    }
}

/// The anchors of the input sizes that came last.
#[derive(Debug, Default)]
struct AnchorCache {
    /// Height, width and anchors; the latest used first.
    sizes: Mutex<VecDeque<(usize, usize, Arc<Anchors>)>>,
}

impl AnchorCache {
    /// Pictures of any proportions, resized within 608 and 1024 and padded to multiples of 32, have 28 sizes. One size
    /// takes about 2 MB.
    const CAPACITY: usize = 32;

    fn get(&self, height: usize, width: usize, spec: &ModelSpec) -> Arc<Anchors> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sizes.iter().position(|(h, w, _)| (*h, *w) == (height, width));
        let entry = known.and_then(|at| sizes.remove(at)).unwrap_or_else(|| {
            let anchors = Anchors::new(&spec.anchors, height, width);
            (height, width, Arc::new(anchors))
        });
        let anchors = Arc::clone(&entry.2);
        sizes.push_front(entry);
        sizes.truncate(Self::CAPACITY);
        anchors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr1};

    #[test]
    fn a_detector_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Detector>();
        shared::<DetectorError>();
    }

    #[test]
    fn a_candidate_that_is_not_there_is_an_error_that_names_it() {
        let (scores, offsets) = (arr1(&[0.5, 0.25]), Array2::zeros((2, 4)));
        for (anchor, class, expected) in
            [(8, 2, None), (9, 2, Some("anchor 9")), (-1, 0, Some("anchor -1")), (0, 3, Some("class 3"))]
        {
            let (rows, classes) = (arr1(&[0, anchor]), arr1(&[0, class]));
            let found = Candidates {
                scores: scores.view(),
                anchors: rows.view(),
                classes: classes.view(),
                offsets: offsets.view(),
            };
            let message = check(&found, 9, 3, [32, 64]).err().map(|error| error.to_string());
            assert_eq!(message.is_some(), expected.is_some());
            assert!(expected.is_none_or(|expected| message.is_some_and(|message| message.contains(expected))));
        }
    }

    #[test]
    fn anchors_are_made_once_per_size_and_the_cache_is_bounded() {
        let (cache, spec) = (AnchorCache::default(), ModelSpec::default());
        let first = cache.get(32, 64, &spec);
        assert!(Arc::ptr_eq(&first, &cache.get(32, 64, &spec)));
        assert!(!Arc::ptr_eq(&first, &cache.get(64, 32, &spec)));
        for side in 1..=AnchorCache::CAPACITY {
            cache.get(32, 32 * (side + 2), &spec);
        }
        assert_eq!(cache.sizes.lock().unwrap().len(), AnchorCache::CAPACITY);
        assert!(!Arc::ptr_eq(&first, &cache.get(32, 64, &spec)));
    }
}
