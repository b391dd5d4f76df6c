//! The detector: from images to detections.

mod anchor_cache;
mod call_rules;
mod error;
mod options;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use models::{ModelSpec, Placement, Preprocessed, RgbRows, RgbView, preprocess_bytes, preprocess_rows};
use ndarray::Axis;

use crate::batcher::{BatchOptions, Batcher, Inference, Pending, Statistics};
use crate::call::{CallOptions, CancelOnDrop};
use crate::engine::{CAPTURE_RUN, Engine, EngineError, EngineOptions, Input, Outputs, PixelType, Pixels};
use crate::machine;
use crate::postprocess::{Candidates, Detection, Selection};
use crate::provider::Provider;
use crate::views::{ViewOptions, ViewSpec, merge};
use anchor_cache::AnchorCache;
use call_rules::CallRules;
pub use error::DetectorError;
pub use options::DetectorOptions;

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
    /// Maximum number of inputs per run.
    max_batch: NonZeroUsize,
    /// Number of inputs that the engines can run at a time.
    capacity: usize,
    /// Number of runs after which an engine is at its full speed on an input shape.
    warm_up_runs: usize,
}

impl Detector {
    /// Opens an ONNX file that `exporter` wrote.
    ///
    /// # Errors
    /// When the engine cannot be opened, and when an option is invalid or does not fit the model.
    pub fn open(path: impl AsRef<Path>, options: DetectorOptions) -> Result<Self, DetectorError> {
        let DetectorOptions { engine: engine_options, rules, views, instances, .. } = options;
        let (max_batch, max_delay, observer) = (options.max_batch, options.max_queue_delay, options.observer);
        if let Some(tiling) = &views.tiling {
            tiling.check()?;
        }
        let open = |options: &EngineOptions| Engine::open(&path, options);
        let (engine, engine_options) = open_first(open, engine_options, instances)?;
        let engine = Arc::new(engine);
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
        for _ in 1..instances.get() {
            engines.push(Arc::new(open(&engine_options)?));
        }
        let batcher = Batcher::new(engines, BatchOptions { max_batch, max_delay, observer });
        let capacity = max_batch.get().saturating_mul(instances.get());
        let warm_up_runs = if engine_options.cuda_graphs { CAPTURE_RUN } else { 1 };
        let anchors = AnchorCache::default();
        Ok(Self { batcher, engine, spec, wanted, views, anchors, max_batch, capacity, warm_up_runs })
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

    /// Maximum number of inputs per run of the network.
    pub fn max_batch(&self) -> usize {
        self.max_batch.get()
    }

    /// Runs every engine on black images of this width and height: once for every batch size that it may get, so that later
    /// calls with images of the same size find everything allocated and compiled. Not part of the statistics.
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn warm_up(&self, width: u32, height: u32) -> Result<(), DetectorError> {
        // On GPUs, and where the file fixes the batch size, all batches are padded to one size.
        let is_padded = self.engine.provider().is_nvidia() || self.engine.batch().is_some();
        let first = if is_padded { self.max_batch() } else { 1 };
        for batch in first..=self.max_batch() {
            for _ in 0..self.warm_up_runs {
                self.run_black(width, height, batch)?;
            }
        }
        Ok(())
    }

    /// Runs every engine once on a black image of this width and height, to find out whether it still works. Not part of
    /// the statistics, except that a success ends [`Statistics::failures_in_a_row`].
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn try_run(&self, width: u32, height: u32) -> Result<(), DetectorError> {
        self.run_black(width, height, 1)
    }

    fn run_black(&self, width: u32, height: u32, batch: usize) -> Result<(), DetectorError> {
        let image = RgbImage::new(width, height);
        let Ok((input, _)) = self.prepare(RgbView::new(width, height, image.as_raw())?);
        Ok(self.batcher.run_on_each(&vec![input; batch])?)
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
        self.detect_with(image, &CallOptions::default())
    }

    /// As [`Detector::detect_timed`], with rules and a priority for this call, which can be canceled.
    ///
    /// # Errors
    /// As [`Detector::detect`], when a rule is invalid or does not fit the model, and when the call was canceled.
    pub fn detect_with(
        &self,
        image: &RgbImage,
        options: &CallOptions,
    ) -> Result<(Vec<Detection>, Timing), DetectorError> {
        self.detect_views([image.width(), image.height()], options, |spec| {
            let cropped = spec.crop(image);
            let view = cropped.as_ref().unwrap_or(image);
            let Ok(prepared) = self.prepare(RgbView::new(view.width(), view.height(), view.as_raw())?);
            Ok(prepared)
        })
    }

    /// The detections in an image of this width and height, and where the time went. `prepare` makes the input of a view.
    pub(crate) fn detect_views<E: From<DetectorError>>(
        &self,
        size: [u32; 2],
        options: &CallOptions,
        prepare: impl Fn(ViewSpec) -> Result<(Input<'static>, Placement), E>,
    ) -> Result<(Vec<Detection>, Timing), E> {
        let own = CallRules::new(&self.spec, self.wanted.as_deref());
        let rules = own.overridden(&options.rules, &self.engine).map_err(DetectorError::from)?;
        let mut timing = Timing::default();
        // After an error nobody waits for the views that were submitted before.
        let cancellation = options.cancellation.child();
        let _cancel = CancelOnDrop(cancellation.clone());
        let mut specs = self.views.view_specs(size[0], size[1]).into_iter();
        // An image may have hundreds of views, which are not all to be prepared before the first has run.
        let (mut views, mut found) = (VecDeque::new(), Vec::new());
        loop {
            while views.len() < self.max_ahead()
                && let Some(spec) = specs.next()
            {
                if cancellation.is_canceled() {
                    return Err(DetectorError::from(EngineError::Canceled).into());
                }
                let _span = tracing::debug_span!("prepare").entered();
                let (input, placement) = timed(&mut timing.prepare, || prepare(spec))?;
                let pending = self.batcher.submit(input, options.priority, cancellation.clone());
                views.push_back(View { spec, placement, pending });
            }
            let Some(View { spec, placement, pending }) = views.pop_front() else { break };
            let inference = {
                let _span = tracing::debug_span!("queue").entered();
                pending.wait().map_err(DetectorError::from)?
            };
            timing.queue += inference.queued;
            timing.network += inference.network;
            let postprocess = || self.postprocess(spec, &placement, &inference, &rules);
            let detections = timed(&mut timing.postprocess, postprocess)?;
            found.push((spec, detections));
        }
        let merged = timed(&mut timing.postprocess, || merge(found, size, &rules.spec.postprocessing));
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
        rules: &CallRules,
    ) -> Result<Vec<Detection>, DetectorError> {
        let _span = tracing::debug_span!("postprocess").entered();
        let [height, width] = [placement.padded_height, placement.padded_width].map(|side| side as usize);
        let anchors = self.anchors.get(height, width, &self.spec);
        let selection =
            Selection { wanted: rules.wanted.as_deref(), ..Selection::new(&anchors, placement, &rules.spec) };
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

/// Opens the first engine. Also returns the options of all engines, which run where `auto` led this one.
fn open_first(
    open: impl Fn(&EngineOptions) -> Result<Engine, EngineError>,
    options: EngineOptions,
    instances: NonZeroUsize,
) -> Result<(Engine, EngineOptions), EngineError> {
    // On the CPU, the engines divide the cores among them.
    let divided = |options: EngineOptions| match (options.provider, options.threads) {
        (Provider::Cpu, None) if instances.get() > 1 => {
            EngineOptions { threads: Some((machine::cores() / instances).max(1)), ..options }
        }
        _ => options,
    };
    let options = divided(options);
    let engine = open(&options)?;
    let final_options = divided(options.on(engine.provider()));
    // `auto` opened it with a thread per core.
    let engine = match final_options.threads == options.threads {
        true => engine,
        false => open(&final_options)?.replacing(engine),
    };
    Ok((engine, final_options))
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread;

    use ndarray::{Array2, Array3, arr1};

    use super::*;
    use crate::tests::model;
    use crate::views::Tiling;

    #[test]
    fn threads_can_share_a_detector() {
        fn assert_send_and_sync<T: Send + Sync>() {}
        assert_send_and_sync::<Detector>();
        assert_send_and_sync::<DetectorError>();
    }

    #[test]
    fn after_an_error_the_views_that_wait_do_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, model()).unwrap();
        let mut options = DetectorOptions::default();
        options.views.tiling = Some(Tiling { width: 64, height: 64, overlap: 0.0 });
        // Inputs wait for more of them.
        (options.max_batch, options.max_queue_delay) = (NonZeroUsize::new(4), Duration::from_secs(1));
        let detector = Detector::open(&path, options).unwrap();
        let placement = detector.spec().preprocessing.place(64, 64);
        let views = Cell::new(0);
        let prepare = |_| {
            if views.replace(views.get() + 1) < 2 {
                Ok((Array3::<f32>::zeros((3, 64, 64)).into(), placement))
            } else {
                Err(DetectorError::Scores(0))
            }
        };
        detector.detect_views([256, 64], &CallOptions::default(), prepare).unwrap_err();
        thread::sleep(Duration::from_millis(2000));
        assert_eq!((views.get(), detector.statistics().inputs), (3, 0));
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
}
