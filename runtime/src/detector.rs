//! The detector: from images to detections.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use models::{Anchors, ModelSpec, RgbView, RgbViewError, preprocess};
use ndarray::Axis;

use crate::engine::{Engine, EngineError, EngineOptions, Outputs};
use crate::postprocess::{Candidates, Detection, Selection};
use crate::rules::{RuleError, Rules};
use crate::views::{PreparedView, TilingError, ViewOptions, ViewSpec, merge};

/// Options of a [`Detector`].
#[derive(Clone, Debug, Default)]
pub struct DetectorOptions {
    /// How the network runs.
    pub engine: EngineOptions,
    /// Overrides of the spec's thresholds and limits.
    pub rules: Rules,
    /// Which views of an image the network runs on.
    pub views: ViewOptions,
}

/// Error of opening or running a [`Detector`].
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    /// The network cannot be opened, or cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A rule is invalid, or does not fit the model.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The tiling is invalid.
    #[error(transparent)]
    Tiling(#[from] TilingError),
    /// The image has no pixels.
    #[error(transparent)]
    Image(#[from] RgbViewError),
    /// The network's number of anchors differs from its spec's.
    #[error(
        "the model has {found} anchors for an input of {width}x{height}, but its spec has {expected}; export it again"
    )]
    Anchors {
        /// Anchors of the network.
        found: usize,
        /// Anchors of the spec.
        expected: usize,
        /// Width of the input, in pixels.
        width: usize,
        /// Height of the input, in pixels.
        height: usize,
    },
    /// The network outputs an invalid anchor or class index.
    #[error(
        "the model outputs anchor {anchor} and class {class}, but for an input of {width}x{height} its spec has {anchors} \
         anchors and {classes} classes; export it again"
    )]
    Candidate {
        /// Anchor index from the network.
        anchor: i64,
        /// Class index from the network.
        class: i64,
        /// Number of anchors in the spec.
        anchors: usize,
        /// Number of classes in the spec.
        classes: usize,
        /// Width of the input, in pixels.
        width: usize,
        /// Height of the input, in pixels.
        height: usize,
    },
    /// The network outputs 2^32 scores per image or more.
    #[error("the model outputs {0} scores per image, expected fewer than 2^32; use a smaller input or fewer classes")]
    Scores(usize),
}

/// A RetinaNet that is ready to detect. Threads can share it: they preprocess and post-process concurrently, and take
/// turns in the network.
#[derive(Debug)]
pub struct Detector {
    engine: Engine,
    /// The file's spec, with the rules applied.
    spec: ModelSpec,
    /// For each class, whether it is wanted; `None` for all.
    wanted: Option<Vec<bool>>,
    views: ViewOptions,
    anchors: AnchorCache,
}

impl Detector {
    /// Opens an ONNX file that `exporter` wrote.
    ///
    /// # Errors
    /// When the engine cannot be opened, and when an option is invalid or does not fit the model.
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

    /// The detections in an image (upright, after EXIF rotation), in its pixels, highest score first.
    ///
    /// # Errors
    /// When the image has no pixels, and when ONNX Runtime fails.
    pub fn detect(&self, image: &RgbImage) -> Result<Vec<Detection>, DetectorError> {
        let mut found = Vec::new();
        for spec in self.view_specs(image) {
            let view = self.prepare(image, spec)?;
            let outputs = self.run(&[&view])?;
            found.push((spec, self.postprocess(&view, &outputs, 0)?));
        }
        Ok(self.merge(image.dimensions(), found))
    }

    /// The detections in each of several images, as from [`Detector::detect`]. Inputs of the same size share runs of at
    /// most `batch` inputs.
    ///
    /// # Errors
    /// When an image has no pixels, and when ONNX Runtime fails.
    pub fn detect_batch(&self, images: &[RgbImage], batch: usize) -> Result<Vec<Vec<Detection>>, DetectorError> {
        let mut views = Vec::new();
        for (index, image) in images.iter().enumerate() {
            for spec in self.view_specs(image) {
                views.push((index, self.prepare(image, spec)?));
            }
        }
        // A stable sort, which keeps the views of an image in order.
        let mut order: Vec<_> = (0..views.len()).collect();
        order.sort_by_key(|index| views[*index].1.size());
        let mut found: Vec<_> = views.iter().map(|(_, view)| (view.spec, Vec::new())).collect();
        for same_size in order.chunk_by(|a, b| views[*a].1.size() == views[*b].1.size()) {
            for chunk in same_size.chunks(batch.max(1)) {
                let inputs: Vec<_> = chunk.iter().map(|index| &views[*index].1).collect();
                let outputs = self.run(&inputs)?;
                for (row, index) in chunk.iter().enumerate() {
                    found[*index].1 = self.postprocess(&views[*index].1, &outputs, row)?;
                }
            }
        }
        let mut per_image = vec![Vec::new(); images.len()];
        for ((image, _), found) in views.iter().zip(found) {
            per_image[*image].push(found);
        }
        let merged = images.iter().zip(per_image).map(|(image, found)| self.merge(image.dimensions(), found));
        Ok(merged.collect())
    }

    /// The views of an image: the whole image, and those that the options add.
    pub fn view_specs(&self, image: &RgbImage) -> Vec<ViewSpec> {
        self.views.view_specs(image.width(), image.height())
    }

    /// The first stage of [`Detector::detect`]: crops and preprocesses a view of the image. Does not use ONNX Runtime,
    /// so the next image can be prepared while the network runs.
    ///
    /// # Errors
    /// When the image has no pixels.
    pub fn prepare(&self, image: &RgbImage, spec: ViewSpec) -> Result<PreparedView, DetectorError> {
        let _span = tracing::debug_span!("prepare").entered();
        let cropped = spec.crop(image);
        let view = cropped.as_ref().unwrap_or(image);
        let pixels = RgbView::new(view.width(), view.height(), view.as_raw())?;
        Ok(PreparedView { spec, input: preprocess(pixels, &self.spec.preprocessing) })
    }

    /// The second stage: runs the network on one view or on several of the same [`PreparedView::size`].
    ///
    /// # Errors
    /// When their sizes differ, and when ONNX Runtime fails.
    ///
    /// # Panics
    /// When there are no views.
    pub fn run(&self, views: &[&PreparedView]) -> Result<Outputs, DetectorError> {
        self.run_batch(views, 0)
    }

    /// As [`Detector::run`]; on an NVIDIA GPU the input is padded to `batch` views, to avoid the cost of a new input
    /// shape.
    ///
    /// # Errors
    /// As [`Detector::run`].
    ///
    /// # Panics
    /// As [`Detector::run`].
    pub fn run_batch(&self, views: &[&PreparedView], batch: usize) -> Result<Outputs, DetectorError> {
        let _span = tracing::debug_span!("run", images = views.len(), size = ?views[0].size()).entered();
        let inputs: Vec<_> = views.iter().map(|view| view.input.pixels.view()).collect();
        let batch = if self.engine.provider().is_nvidia() { batch } else { 0 };
        Ok(self.engine.run_padded(&inputs, batch)?)
    }

    /// The third stage: the detections in the view at index `row` of a run, in pixels of the original image (upright,
    /// after EXIF rotation), highest score first.
    ///
    /// # Errors
    /// When the outputs do not belong to the view.
    pub fn postprocess(
        &self,
        view: &PreparedView,
        outputs: &Outputs,
        row: usize,
    ) -> Result<Vec<Detection>, DetectorError> {
        let _span = tracing::debug_span!("postprocess").entered();
        let input = &view.input;
        let (_, height, width) = input.pixels.dim();
        let anchors = self.anchors.get(height, width, &self.spec);
        let wanted = self.wanted.as_deref();
        let selection = Selection { wanted, ..Selection::new(&anchors, &input.placement, &self.spec) };
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
                selection.detections(scores, offsets)
            }
            Outputs::Candidates(outputs) => {
                let found = outputs.of(row);
                check(&found, anchors.boxes().len(), self.spec.class_count(), [height, width])?;
                selection.detections_of_candidates(&found)
            }
        };
        Ok(view.to_original_image(found))
    }

    /// The last stage: merges the detections in the views of an image of this width and height. Boxes are in pixels of
    /// the original image (upright, after EXIF rotation), highest score first.
    pub fn merge(&self, (width, height): (u32, u32), found: Vec<(ViewSpec, Vec<Detection>)>) -> Vec<Detection> {
        merge(found, [width, height], &self.spec.postprocessing)
    }
}

/// Checks the anchor and class indices of all candidates.
fn check(found: &Candidates, anchors: usize, classes: usize, [height, width]: [usize; 2]) -> Result<(), DetectorError> {
    let is_valid = |index: i64, count: usize| usize::try_from(index).is_ok_and(|index| index < count);
    let mut pairs = found.anchors.iter().zip(&found.classes);
    match pairs.find(|(anchor, class)| !is_valid(**anchor, anchors) || !is_valid(**class, classes)) {
        None => Ok(()),
        Some((&anchor, &class)) => Err(DetectorError::Candidate { anchor, class, anchors, classes, width, height }),
    }
}

/// Least-recently-used cache of the anchors per input size.
#[derive(Debug, Default)]
struct AnchorCache {
    /// Height, width and anchors, most recently used first.
    sizes: Mutex<VecDeque<(usize, usize, Arc<Anchors>)>>,
}

impl AnchorCache {
    /// Maximum number of sizes. Images of any aspect ratio, resized to 608 by at most 1024 and padded to multiples of
    /// 32, have 28 sizes. The anchors of one size take about 2 MB.
    const CAPACITY: usize = 32;

    fn get(&self, height: usize, width: usize, spec: &ModelSpec) -> Arc<Anchors> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let position = sizes.iter().position(|(h, w, _)| (*h, *w) == (height, width));
        let entry = position.and_then(|position| sizes.remove(position)).unwrap_or_else(|| {
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
    fn threads_can_share_a_detector() {
        fn assert_send_and_sync<T: Send + Sync>() {}
        assert_send_and_sync::<Detector>();
        assert_send_and_sync::<DetectorError>();
    }

    #[test]
    fn invalid_candidate_is_an_error_that_names_it() {
        let (scores, offsets) = (arr1(&[0.5, 0.25]), Array2::zeros((2, 4)));
        for (anchor, class, expected) in
            [(8, 2, None), (9, 2, Some("anchor 9")), (-1, 0, Some("anchor -1")), (0, 3, Some("class 3"))]
        {
            let (anchors, classes) = (arr1(&[0, anchor]), arr1(&[0, class]));
            let found = Candidates {
                scores: scores.view(),
                anchors: anchors.view(),
                classes: classes.view(),
                offsets: offsets.view(),
            };
            let message = check(&found, 9, 3, [32, 64]).err().map(|error| error.to_string());
            assert_eq!(message.is_some(), expected.is_some());
            assert!(expected.is_none_or(|expected| message.is_some_and(|message| message.contains(expected))));
        }
    }

    #[test]
    fn anchors_are_computed_once_per_size_and_the_cache_is_bounded() {
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
