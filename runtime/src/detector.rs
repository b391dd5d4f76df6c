//! The detector: images in, boxes out.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use models::{Anchors, ModelSpec, RgbView, RgbViewError, preprocess};
use ndarray::Axis;

use crate::engine::{Engine, EngineError, EngineOptions, Outputs};
use crate::postprocess::{Candidates, Detection, Selection};
use crate::rules::{RuleError, Rules};
use crate::views::{Look, TilingError, View, ViewOptions, merge};

/// How a detector runs.
#[derive(Clone, Debug, Default)]
pub struct DetectorOptions {
    /// How the network runs.
    pub engine: EngineOptions,
    /// What replaces the spec's rules.
    pub rules: Rules,
    /// In which views the network sees an image.
    pub views: ViewOptions,
}

/// Why there are no detections.
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    /// The network cannot be had, or cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A rule cannot be followed.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// Images cannot be cut into such tiles.
    #[error(transparent)]
    Tiling(#[from] TilingError),
    /// The image has no pixels.
    #[error(transparent)]
    Image(#[from] RgbViewError),
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
    #[error("{0} scores for one image are too many; use a smaller input or fewer classes")]
    Scores(usize),
}

/// A RetinaNet that is ready to detect. It may be shared between threads: each prepares its images and reads the outputs by
/// itself, and the runs of the network take turns.
#[derive(Debug)]
pub struct Detector {
    engine: Engine,
    /// The file's spec, with the rules applied.
    spec: ModelSpec,
    /// For each class whether it is looked for; all are if absent.
    wanted: Option<Vec<bool>>,
    views: ViewOptions,
    anchors: AnchorCache,
}

impl Detector {
    /// Opens an ONNX file that the exporter wrote.
    ///
    /// # Errors
    /// When the engine cannot be opened, and when an option makes no sense for this model.
    pub fn open(path: impl AsRef<Path>, options: DetectorOptions) -> Result<Self, DetectorError> {
        if let Some(tiling) = &options.views.tiling {
            tiling.check()?;
        }
        let engine = Engine::open(path, &options.engine)?;
        let mut spec = engine.spec().clone();
        options.rules.apply(&mut spec, &engine)?;
        let wanted = options.rules.wanted(&spec)?;
        Ok(Self { engine, spec, wanted, views: options.views, anchors: AnchorCache::default() })
    }

    /// The spec in use: the file's, with the rules applied.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The network.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The objects in an upright image, the best first, in the image's pixels.
    ///
    /// # Errors
    /// When the image has no pixels, and when ONNX Runtime fails.
    pub fn detect(&self, image: &RgbImage) -> Result<Vec<Detection>, DetectorError> {
        let mut seen = Vec::new();
        for look in self.looks(image) {
            let view = self.prepare(image, look)?;
            let outputs = self.run(&[&view])?;
            seen.push((look, self.postprocess(&view, &outputs, 0)?));
        }
        Ok(self.merge(image.dimensions(), seen))
    }

    /// The objects in each of several images, as [`Detector::detect`] finds them; inputs of one size run together, `batch` at a
    /// time.
    ///
    /// # Errors
    /// When an image has no pixels, and when ONNX Runtime fails.
    pub fn detect_batch(&self, images: &[RgbImage], batch: usize) -> Result<Vec<Vec<Detection>>, DetectorError> {
        let mut views = Vec::new();
        for (place, image) in images.iter().enumerate() {
            for look in self.looks(image) {
                views.push((place, self.prepare(image, look)?));
            }
        }
        // Stable, so that the views of an image stay in order.
        let mut order: Vec<_> = (0..views.len()).collect();
        order.sort_by_key(|at| views[*at].1.size());
        let mut seen: Vec<_> = views.iter().map(|(_, view)| (view.look, Vec::new())).collect();
        for alike in order.chunk_by(|a, b| views[*a].1.size() == views[*b].1.size()) {
            for group in alike.chunks(batch.max(1)) {
                let inputs: Vec<_> = group.iter().map(|at| &views[*at].1).collect();
                let outputs = self.run(&inputs)?;
                for (row, at) in group.iter().enumerate() {
                    seen[*at].1 = self.postprocess(&views[*at].1, &outputs, row)?;
                }
            }
        }
        let mut of_images = vec![Vec::new(); images.len()];
        for ((place, _), seen) in views.iter().zip(seen) {
            of_images[*place].push(seen);
        }
        let merged = images.iter().zip(of_images).map(|(image, seen)| self.merge(image.dimensions(), seen));
        Ok(merged.collect())
    }

    /// What the network looks at in an image: all of it, and what the options add.
    pub fn looks(&self, image: &RgbImage) -> Vec<Look> {
        self.views.looks(image.width(), image.height())
    }

    /// The first stage of [`Detector::detect`]: what of the image is looked at becomes the network's input. Needs nothing of
    /// ONNX Runtime, so that the next image can be prepared while the network runs.
    ///
    /// # Errors
    /// When the image has no pixels.
    pub fn prepare(&self, image: &RgbImage, look: Look) -> Result<View, DetectorError> {
        let _span = tracing::debug_span!("prepare").entered();
        let part = look.cut(image);
        let seen = part.as_ref().unwrap_or(image);
        let pixels = RgbView::new(seen.width(), seen.height(), seen.as_raw())?;
        Ok(View { look, input: preprocess(pixels, &self.spec.preprocessing) })
    }

    /// The second stage: the network runs on one view or on several of the same [`View::size`].
    ///
    /// # Errors
    /// When their sizes differ, and when ONNX Runtime fails.
    ///
    /// # Panics
    /// When there are no views.
    pub fn run(&self, views: &[&View]) -> Result<Outputs, DetectorError> {
        self.run_batch(views, 0)
    }

    /// As [`Detector::run`]; on a GPU of NVIDIA the input is filled up to `batch` views, so that its shape is a known one.
    ///
    /// # Errors
    /// As [`Detector::run`].
    ///
    /// # Panics
    /// As [`Detector::run`].
    pub fn run_batch(&self, views: &[&View], batch: usize) -> Result<Outputs, DetectorError> {
        let _span = tracing::debug_span!("run", images = views.len(), size = ?views[0].size()).entered();
        let inputs: Vec<_> = views.iter().map(|view| view.input.pixels.view()).collect();
        let batch = if self.engine.provider().is_nvidia() { batch } else { 0 };
        Ok(self.engine.run_padded(&inputs, batch)?)
    }

    /// The third stage: the network's outputs for the view at place `row` of a run become detections, in pixels of the image,
    /// the best first.
    ///
    /// # Errors
    /// When the outputs do not belong to the view.
    pub fn postprocess(&self, view: &View, outputs: &Outputs, row: usize) -> Result<Vec<Detection>, DetectorError> {
        let _span = tracing::debug_span!("postprocess").entered();
        let input = &view.input;
        let (_, height, width) = input.pixels.dim();
        let anchors = self.anchors.get(height, width, &self.spec);
        let wanted = self.wanted.as_deref();
        let selection = Selection { anchors: &anchors, placement: &input.placement, spec: &self.spec, wanted };
        let found = match outputs {
            Outputs::Dense(outputs) => {
                let (scores, offsets) = (outputs.scores(), outputs.offsets());
                let (scores, offsets) = (scores.index_axis(Axis(0), row), offsets.index_axis(Axis(0), row));
                let (found, expected) = (scores.nrows(), anchors.boxes().len());
                if found != expected {
                    return Err(DetectorError::Anchors { found, expected, width, height });
                }
                if u32::try_from(scores.len()).is_err() {
                    return Err(DetectorError::Scores(scores.len()));
                }
                selection.of_all(scores, offsets)
            }
            Outputs::Candidates(outputs) => {
                let found = outputs.of(row);
                check(&found, anchors.boxes().len(), self.spec.class_count(), [height, width])?;
                selection.of_candidates(&found)
            }
        };
        Ok(view.to_original_image(found))
    }

    /// The last stage: what was found in all that was looked at becomes one result.
    pub fn merge(&self, (width, height): (u32, u32), seen: Vec<(Look, Vec<Detection>)>) -> Vec<Detection> {
        merge(seen, [width, height], &self.spec.postprocessing)
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
    /// Images of any proportions, resized within 608 and 1024 and padded to multiples of 32, have 28 sizes. One size
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
