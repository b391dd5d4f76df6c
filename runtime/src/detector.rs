//! The detector: from images to detections.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use image::RgbImage;
use models::{
    Anchors, ModelSpec, Placement, Preprocessed, RgbRows, RgbView, RgbViewError, preprocess_bytes, preprocess_rows,
};
use ndarray::Axis;

use crate::batcher::{Batcher, Inference, Pending, Statistics};
use crate::engine::{Engine, EngineError, EngineOptions, Input, Outputs, PixelType, Pixels};
use crate::machine;
use crate::postprocess::{Candidates, Detection, Selection};
use crate::rules::{RuleError, Rules};
use crate::views::{TilingError, ViewOptions, ViewSpec, merge};

/// Options of a [`Detector`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DetectorOptions {
    /// How the network runs.
    pub engine: EngineOptions,
    /// Overrides of the spec's thresholds and limits.
    pub rules: Rules,
    /// Which views of an image the network runs on.
    pub views: ViewOptions,
    /// Number of engines, each with its own session and thread. They run batches at the same time, which hides copies to
    /// and from a GPU. Default: 1.
    pub instances: NonZeroUsize,
    /// Maximum number of inputs, of one size, that run together. `None`, the default: the model's batch size if it is
    /// fixed, else 1.
    pub max_batch: Option<NonZeroUsize>,
    /// How long the oldest input waits for others to fill its batch. Default: zero, so that a batch consists of the inputs
    /// that came while the engines were busy.
    pub max_queue_delay: Duration,
}

impl Default for DetectorOptions {
    fn default() -> Self {
        Self {
            engine: EngineOptions::default(),
            rules: Rules::default(),
            views: ViewOptions::default(),
            instances: NonZeroUsize::MIN,
            max_batch: None,
            max_queue_delay: Duration::ZERO,
        }
    }
}

/// Error of opening or running a [`Detector`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// The file fixes a smaller batch size.
    #[error(
        "a batch size of {requested} exceeds the model's of {max}; lower it, or export the model with a larger one"
    )]
    Batch {
        /// The requested maximum.
        requested: usize,
        /// The file's batch size.
        max: usize,
    },
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
    /// An end-to-end file outputs an invalid class index.
    #[error("the model outputs class {class}, but its spec has {classes} classes; export it again")]
    Class {
        /// Class index from the network.
        class: i32,
        /// Number of classes in the spec.
        classes: usize,
    },
    /// The network outputs 2^32 scores per image or more.
    #[error("the model outputs {0} scores per image, expected fewer than 2^32; use a smaller input or fewer classes")]
    Scores(usize),
}

/// Where the time of a detection went; if an image has several views, summed over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// Cropping, resizing, normalizing and padding.
    pub prepare: Duration,
    /// Waiting for an engine, and for others to fill the batch.
    pub queue: Duration,
    /// The runs of the network, with all inputs that shared them.
    pub network: Duration,
    /// Selecting, decoding, suppressing and merging boxes.
    pub postprocess: Duration,
}

/// A RetinaNet that is ready to detect. Threads can share it: each prepares and post-processes its own images, and inputs
/// of the same size that arrive together run as one batch.
#[derive(Debug)]
pub struct Detector {
    batcher: Batcher,
    engine: Arc<Engine>,
    /// The file's spec, with the rules applied.
    spec: ModelSpec,
    /// For each class, whether it is wanted; `None` for all.
    wanted: Option<Vec<bool>>,
    views: ViewOptions,
    anchors: AnchorCache,
    /// Number of inputs that the engines can run at a time.
    capacity: usize,
}

impl Detector {
    /// Opens an ONNX file that `exporter` wrote.
    ///
    /// # Errors
    /// When the engine cannot be opened, and when an option is invalid or does not fit the model.
    pub fn open(path: impl AsRef<Path>, options: DetectorOptions) -> Result<Self, DetectorError> {
        let DetectorOptions { engine: engine_options, rules, views, instances, max_batch, max_queue_delay } = options;
        if let Some(tiling) = &views.tiling {
            tiling.check()?;
        }
        let engine = Arc::new(Engine::open(&path, &engine_options)?);
        let mut spec = engine.spec().clone();
        rules.apply(&mut spec, &engine)?;
        let wanted = rules.wanted(&spec)?;
        let fixed = engine.batch().and_then(NonZeroUsize::new);
        let max_batch = match (max_batch, fixed) {
            (Some(requested), Some(max)) if requested > max => {
                return Err(DetectorError::Batch { requested: requested.get(), max: max.get() });
            }
            (requested, fixed) => requested.or(fixed).unwrap_or(NonZeroUsize::MIN),
        };
        let mut engines = vec![Arc::clone(&engine)];
        // The others run where `auto` led the first.
        let engine_options = engine_options.on(engine.provider());
        for _ in 1..instances.get() {
            engines.push(Arc::new(Engine::open(&path, &engine_options)?));
        }
        let batcher = Batcher::new(engines, max_batch, max_queue_delay);
        let capacity = max_batch.get().saturating_mul(instances.get());
        Ok(Self { batcher, engine, spec, wanted, views, anchors: AnchorCache::default(), capacity })
    }

    /// The spec in use: the file's, with the rules applied.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Which views of an image the network runs on.
    pub fn views(&self) -> ViewOptions {
        self.views
    }

    /// The network; with several instances, the first.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the network has run so far.
    pub fn statistics(&self) -> Statistics {
        self.batcher.statistics()
    }

    /// The number of threads that keep the engines busy, if each reads, detects and writes one image at a time: two full
    /// batches per engine, and those that decode the next images. On the CPU, the network needs the cores itself.
    pub fn suggested_threads(&self) -> usize {
        let decoding = if self.engine.provider().is_on_cpu() { 1 } else { machine::cores() };
        self.max_ahead().saturating_add(decoding)
    }

    /// The detections in an image (upright, after EXIF rotation), in its pixels, highest score first.
    ///
    /// # Errors
    /// When the image has no pixels, and when ONNX Runtime fails. Other calls are not affected.
    pub fn detect(&self, image: &RgbImage) -> Result<Vec<Detection>, DetectorError> {
        self.detect_timed(image).map(|(detections, _)| detections)
    }

    /// As [`Detector::detect`], and where the time went.
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn detect_timed(&self, image: &RgbImage) -> Result<(Vec<Detection>, Timing), DetectorError> {
        self.detect_views([image.width(), image.height()], |spec| {
            let cropped = spec.crop(image);
            let view = cropped.as_ref().unwrap_or(image);
            let pixels = RgbView::new(view.width(), view.height(), view.as_raw())?;
            let Ok(prepared) = self.prepare(pixels);
            Ok(prepared)
        })
    }

    /// The detections in an image of this width and height, and where the time went. `prepare` makes the input of a view.
    pub(crate) fn detect_views<E: From<DetectorError>>(
        &self,
        size: [u32; 2],
        prepare: impl Fn(ViewSpec) -> Result<(Input<'static>, Placement), E>,
    ) -> Result<(Vec<Detection>, Timing), E> {
        let mut timing = Timing::default();
        let mut specs = self.views.view_specs(size[0], size[1]).into_iter();
        // An image may have hundreds of views, which are not all to be prepared before the first has run.
        let (mut views, mut found) = (VecDeque::new(), Vec::new());
        loop {
            while views.len() < self.max_ahead()
                && let Some(spec) = specs.next()
            {
                let _span = tracing::debug_span!("prepare").entered();
                let (input, placement) = timed(&mut timing.prepare, || prepare(spec))?;
                views.push_back(View { spec, placement, pending: self.batcher.submit(input) });
            }
            let Some(View { spec, placement, pending }) = views.pop_front() else { break };
            let inference = {
                let _span = tracing::debug_span!("queue").entered();
                pending.wait().map_err(DetectorError::from)?
            };
            timing.queue += inference.queued;
            timing.network += inference.network;
            let detections = timed(&mut timing.postprocess, || self.postprocess(spec, &placement, &inference))?;
            found.push((spec, detections));
        }
        let merged = timed(&mut timing.postprocess, || merge(found, size, &self.spec.postprocessing));
        Ok((merged, timing))
    }

    /// Number of inputs that keep the engines busy: one batch runs while the next one is ready.
    fn max_ahead(&self) -> usize {
        self.capacity.saturating_mul(2)
    }

    /// The input of a view.
    ///
    /// # Errors
    /// Those of reading its rows.
    pub(crate) fn prepare<R: RgbRows>(&self, view: R) -> Result<(Input<'static>, Placement), R::Error> {
        let spec = &self.spec.preprocessing;
        let (pixels, placement) = match self.engine.pixel_type() {
            PixelType::Float => {
                let Preprocessed { pixels, placement } = preprocess_rows(view, spec)?;
                (Pixels::Float(pixels.into()), placement)
            }
            PixelType::Bytes => {
                let (pixels, placement) = preprocess_bytes(view, spec)?;
                (Pixels::Bytes(pixels.into()), placement)
            }
        };
        let valid = [placement.resized_height, placement.resized_width].map(|side| side as usize);
        Ok((Input { pixels, valid }, placement))
    }

    /// The detections in a view, in pixels of the original image (upright, after EXIF rotation), highest score first.
    fn postprocess(
        &self,
        spec: ViewSpec,
        placement: &Placement,
        inference: &Inference,
    ) -> Result<Vec<Detection>, DetectorError> {
        let _span = tracing::debug_span!("postprocess").entered();
        let [height, width] = [placement.padded_height, placement.padded_width].map(|side| side as usize);
        let anchors = self.anchors.get(height, width, &self.spec);
        let wanted = self.wanted.as_deref();
        let selection = Selection { wanted, ..Selection::new(&anchors, placement, &self.spec) };
        let found = match &*inference.outputs {
            Outputs::Dense(outputs) => {
                let (scores, offsets) = (outputs.scores(), outputs.offsets());
                let (scores, offsets) =
                    (scores.index_axis(Axis(0), inference.row), offsets.index_axis(Axis(0), inference.row));
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
                let found = outputs.of(inference.row);
                check(&found, anchors.boxes().len(), self.spec.class_count(), [height, width])?;
                selection.detections_of_candidates(&found)
            }
            Outputs::Detections(outputs) => {
                let found: Vec<_> = outputs.of(inference.row).collect();
                let classes = self.spec.class_count();
                let is_valid = |class: i32| usize::try_from(class).is_ok_and(|class| class < classes);
                if let Some(&(_, class, _)) = found.iter().find(|(_, class, _)| !is_valid(*class)) {
                    return Err(DetectorError::Class { class, classes });
                }
                selection.detections_of_end_to_end(found)
            }
        };
        Ok(spec.to_original_image(found))
    }
}

/// A view of an image that the network is to run on.
#[derive(Debug)]
struct View {
    spec: ViewSpec,
    placement: Placement,
    pending: Pending,
}

/// Runs `work` and adds the time taken to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *total += started.elapsed();
    result
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
