//! The pipeline: runs one detector on many images, with all stages concurrently, and returns the results in input
//! order.
//!
//! Reader threads read, decode and preprocess images. One thread runs the network on batches of inputs of the same
//! size. Other threads post-process and call the caller's function on each image. The caller's thread receives the
//! results in order. Permits bound the number of images in progress, and so the memory, regardless of the number of
//! images and of slow images or a slow receiver.

mod batches;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use image::RgbImage;

use crate::output::{Failure, Found, Report};
use crate::postprocess::Detection;
use crate::video::Frame;
use crate::views::{PreparedView, ViewSpec};
use crate::{
    Detector,
    image_file::{self, Limits},
    machine,
};
use batches::{Run, infer};

/// Options of a [`pipeline`].
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Maximum batch size: inputs of the same size per run of the network. Clamped to 1 to
    /// [`PipelineOptions::MOST_BATCH`]. When fewer inputs are ready, the network does not wait for more.
    pub batch: usize,
    /// Number of threads that read and preprocess images, and of as many that post-process. Clamped to 1 to
    /// [`PipelineOptions::MOST_WORKERS`]. With two or more, a slow image does not delay the next.
    pub workers: usize,
    /// Whether to return the images with their results, for example to draw on them.
    pub keep: bool,
    /// Limits of the image files.
    pub limits: Limits,
}

impl PipelineOptions {
    /// Maximum of `batch`; larger batches are of no use on any machine.
    pub const MOST_BATCH: usize = 1024;

    /// Maximum of `workers`.
    pub const MOST_WORKERS: usize = 256;

    /// Defaults for a detector: the model's batch size if it is fixed, else 1, and enough workers to keep its provider
    /// busy.
    pub fn of(detector: &Detector) -> Self {
        let engine = detector.engine();
        // On the CPU, the network takes most of the time; a GPU would wait for images.
        let workers = if engine.provider().is_on_cpu() { 2 } else { machine::cores().max(2) };
        Self { batch: engine.batch().unwrap_or(1), workers, ..Self::default() }
    }
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self { batch: 1, workers: 2, keep: false, limits: Limits::DEFAULT }
    }
}

/// An image to process.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// The file name for its report.
    pub file: PathBuf,
    /// The frame, if the file is a video.
    pub frame: Option<Frame>,
    /// The source of its pixels.
    pub content: Content,
    /// Returned with its result.
    pub tag: T,
}

/// The source of an image's pixels.
#[derive(Clone, Debug)]
pub enum Content {
    /// The file.
    File,
    /// The bytes of an image file.
    Bytes(Vec<u8>),
    /// A decoded image, upright.
    Image(RgbImage),
    /// There is no image, for this reason.
    Missing(String),
}

/// A processed image.
#[derive(Debug)]
pub struct Finished<T> {
    /// The detections, or why there are none.
    pub report: Report,
    /// The upright image, with [`PipelineOptions::keep`] and if it could be read.
    pub image: Option<RgbImage>,
    /// [`Item::tag`].
    pub tag: T,
}

/// Runs the detector on `items`. Calls `finish` for each image, from several threads and in any order. `sink` receives
/// the values that `finish` returns, in the order of the items. When `sink` returns, no more images are started.
///
/// Returns the time spent in the network, and the value that `sink` returned.
///
/// # Panics
/// When `finish` or `sink` panics.
pub fn pipeline<T: Send, F: Send, R>(
    detector: &Detector,
    options: &PipelineOptions,
    items: impl Iterator<Item = Item<T>> + Send,
    finish: impl Fn(Finished<T>) -> F + Sync,
    sink: impl FnOnce(Ordered<F>) -> R,
) -> (Duration, R) {
    let batch = options.batch.clamp(1, PipelineOptions::MOST_BATCH);
    let workers = options.workers.clamp(1, PipelineOptions::MOST_WORKERS);
    // Enough for every thread to process one image and have the next one ready, while the next batch is collected.
    let under_way = 4 * workers + 3 * batch;
    let (permit_sender, permits) = bounded(under_way);
    for _ in 0..under_way {
        // Does not block: the channel has room for all permits.
        let _ = permit_sender.send(());
    }
    let source = Source { items: Mutex::new(items.enumerate().fuse()), permits };
    let (job_sender, jobs) = bounded(batch.max(2));
    // Outputs are large, so at most one run waits to be post-processed.
    let (run_sender, runs) = bounded(1);
    let (finished_sender, finished) = bounded(under_way);

    thread::scope(|scope| {
        let (source, finish) = (&source, &finish);
        for _ in 0..workers {
            let exit = Exit { sender: finished_sender.clone(), finish };
            let sender = job_sender.clone();
            scope.spawn(move || read(source, detector, options, &sender, &exit));
            let exit = Exit { sender: finished_sender.clone(), finish };
            let runs = runs.clone();
            scope.spawn(move || conclude(detector, &runs, &exit));
        }
        let network = scope.spawn(move || infer(detector, batch, &jobs, &run_sender));
        // Drops this thread's ends of the channels, so that each channel closes when the threads that use it end.
        drop((finished_sender, job_sender, runs));
        let result = sink(Ordered { finished, permits: permit_sender, early: BTreeMap::new(), next: 0 });
        let inference = network.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (inference, result)
    })
}

/// The items with their indices, and the permits to start them.
struct Source<I> {
    items: Mutex<I>,
    permits: Receiver<()>,
}

impl<T, I: Iterator<Item = (usize, Item<T>)>> Source<I> {
    /// Waits for a permit and returns the next item; `None` at the end, or when no more results are wanted.
    fn next(&self) -> Option<(usize, Item<T>)> {
        let mut items = lock(&self.items);
        self.permits.recv().ok()?;
        items.next()
    }
}

/// A preprocessed view of an image, for the network.
struct Job<T> {
    image: Arc<Image<T>>,
    /// Index among the views of the image.
    place: usize,
    view: PreparedView,
}

/// An image whose views are in progress.
struct Image<T> {
    index: usize,
    size: (u32, u32),
    state: Mutex<State<T>>,
}

struct State<T> {
    /// File, frame and tag of the item, until the image is finished.
    item: Option<(PathBuf, Option<Frame>, T)>,
    kept: Option<RgbImage>,
    /// The detections of each view that is finished.
    seen: Vec<Option<(ViewSpec, Vec<Detection>)>>,
    /// Number of unfinished views.
    left: usize,
    failure: Option<Failure>,
}

impl<T> Image<T> {
    fn new(index: usize, size: (u32, u32), item: (PathBuf, Option<Frame>, T), views: usize) -> Self {
        let state = State { item: Some(item), kept: None, seen: vec![None; views], left: views, failure: None };
        Self { index, size, state: Mutex::new(state) }
    }

    /// Adds the detections of a view. Returns the finished image after the last view.
    fn add(
        &self,
        place: usize,
        found: Result<(ViewSpec, Vec<Detection>), Failure>,
        detector: &Detector,
    ) -> Option<Finished<T>> {
        let mut state = lock(&self.state);
        match found {
            Ok(found) => state.seen[place] = Some(found),
            Err(failure) => state.failure = Some(failure),
        }
        state.left -= 1;
        if state.left > 0 {
            return None;
        }
        let (file, frame, tag) = state.item.take()?;
        let (width, height) = self.size;
        let outcome = match state.failure.take() {
            Some(failure) => Err(failure),
            None => {
                let seen = state.seen.drain(..).flatten().collect();
                Ok(Found { width, height, detections: detector.merge(self.size, seen) })
            }
        };
        Some(Finished { report: Report { file, frame, outcome }, image: state.kept.take(), tag })
    }
}

/// The first stage: reads images and prepares their views.
fn read<T: Send, F: Send, I: Iterator<Item = (usize, Item<T>)>, G: Fn(Finished<T>) -> F>(
    source: &Source<I>,
    detector: &Detector,
    options: &PipelineOptions,
    jobs: &Sender<Job<T>>,
    exit: &Exit<F, G>,
) {
    while let Some((index, Item { file, frame, content, tag })) = source.next() {
        let image = match content {
            Content::File => image_file::read_within(&file, &options.limits).map_err(|error| error.reason.into()),
            Content::Bytes(bytes) => image_file::decode_within(&bytes, &options.limits).map_err(Failure::from),
            Content::Image(image) => Ok(image),
            Content::Missing(reason) => Err(Failure::Missing(reason)),
        };
        let image = match image {
            Ok(image) => image,
            Err(failure) => {
                let report = Report { file, frame, outcome: Err(failure) };
                if exit.send(index, Finished { report, image: None, tag }).is_none() {
                    return;
                }
                continue;
            }
        };
        let looks = detector.view_specs(&image);
        let shared = Arc::new(Image::new(index, image.dimensions(), (file, frame, tag), looks.len()));
        let last = looks.len() - 1;
        let mut image = Some(image);
        for (place, look) in looks.into_iter().enumerate() {
            let view = image.as_ref().map(|image| detector.prepare(image, look));
            if place == last {
                // Must be set before the last view is sent, which finishes the image.
                lock(&shared.state).kept = image.take().filter(|_| options.keep);
            }
            let sent = match view {
                Some(Ok(view)) => jobs.send(Job { image: Arc::clone(&shared), place, view }).ok(),
                Some(Err(error)) => exit.add(&shared, place, Err(Arc::new(error).into()), detector),
                None => Some(()),
            };
            if sent.is_none() {
                return;
            }
        }
    }
}

/// The third stage: post-processes the network's outputs, and finishes images whose views are complete.
fn conclude<T: Send, F: Send, G: Fn(Finished<T>) -> F>(
    detector: &Detector,
    runs: &Receiver<Run<T>>,
    exit: &Exit<F, G>,
) {
    for Run { jobs, outputs } in runs {
        for (row, Job { image, place, view }) in jobs.into_iter().enumerate() {
            let found = match &outputs {
                Ok(outputs) => detector.postprocess(&view, outputs, row).map_err(|error| Arc::new(error).into()),
                Err(error) => Err(Arc::clone(error).into()),
            };
            if exit.add(&image, place, found.map(|found| (view.spec, found)), detector).is_none() {
                return;
            }
        }
    }
}

/// Calls `finish` on images, and sends the results to the sink.
struct Exit<'a, F, G> {
    sender: Sender<Message<F>>,
    finish: &'a G,
}

/// A message to the sink.
#[derive(Debug)]
enum Message<F> {
    /// The index of a finished image, and what `finish` returned.
    Finished(usize, F),
    /// A thread has panicked, so its image has no result.
    Panicked,
}

impl<F, G> Exit<'_, F, G> {
    /// Finishes an image; `None` when the sink has returned.
    fn send<T>(&self, index: usize, finished: Finished<T>) -> Option<()>
    where
        G: Fn(Finished<T>) -> F,
    {
        self.sender.send(Message::Finished(index, (self.finish)(finished))).ok()
    }

    fn add<T>(
        &self,
        image: &Image<T>,
        place: usize,
        found: Result<(ViewSpec, Vec<Detection>), Failure>,
        detector: &Detector,
    ) -> Option<()>
    where
        G: Fn(Finished<T>) -> F,
    {
        match image.add(place, found, detector) {
            Some(finished) => self.send(image.index, finished),
            None => Some(()),
        }
    }
}

impl<F, G> Drop for Exit<'_, F, G> {
    /// After a panic, keeps the sink from waiting for the image. The panic resumes when the threads are joined.
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.sender.send(Message::Panicked);
        }
    }
}

/// Iterator over the results in the order of the items. Dropping it stops the pipeline.
#[derive(Debug)]
pub struct Ordered<F> {
    finished: Receiver<Message<F>>,
    permits: Sender<()>,
    /// Results that are finished before their predecessors, by index.
    early: BTreeMap<usize, F>,
    next: usize,
}

impl<F> Iterator for Ordered<F> {
    type Item = F;

    fn next(&mut self) -> Option<F> {
        loop {
            if let Some(finished) = self.early.remove(&self.next) {
                self.next += 1;
                // Fails only when all images have been started.
                let _ = self.permits.send(());
                return Some(finished);
            }
            match self.finished.recv() {
                Ok(Message::Finished(index, finished)) => self.early.insert(index, finished),
                Ok(Message::Panicked) | Err(_) => return None,
            };
        }
    }
}

/// Ignores poisoning: the shared state is consistent even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
