//! The pipeline: many images through one detector, every stage beside the next, with results in the order of the images.
//!
//! Some threads read, decode and prepare images, one runs the network on batches of inputs of one size, some
//! post-process and do what the caller wants done to each image, and the caller's thread gets the results in order. As many
//! images as there are permits are under way at a time: that bounds memory whatever the number of images and however slow one
//! of them or their receiver is.

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
use crate::views::{Look, View};
use crate::{
    Detector,
    image_file::{self, Limits},
    machine,
};
use batches::{Run, infer};

/// How images go through.
#[derive(Clone, Debug)]
pub struct PipelineOptions {
    /// Inputs of one size that the network runs on at a time, from 1 to [`PipelineOptions::MOST_BATCH`], which is taken for more. When
    /// fewer are ready, it does not wait.
    pub batch: usize,
    /// Threads that read and prepare images, and as many that post-process, from 1 to [`PipelineOptions::MOST_WORKERS`], which is
    /// taken for more. With two, an image that takes long does not hold up the next.
    pub workers: usize,
    /// Whether images are handed on with their results, to be drawn on.
    pub keep: bool,
    /// Of the files.
    pub limits: Limits,
}

impl PipelineOptions {
    /// Larger batches have no use on any machine.
    pub const MOST_BATCH: usize = 1024;

    /// As have more threads.
    pub const MOST_WORKERS: usize = 256;

    /// What suits a detector: batches as large as its file fixes, and as many workers as keep its provider busy.
    pub fn of(detector: &Detector) -> Self {
        let engine = detector.engine();
        // The CPU has enough to do with the network; a GPU waits for images.
        let workers = if engine.provider().is_on_cpu() { 2 } else { machine::cores().max(2) };
        Self { batch: engine.batch().unwrap_or(1), workers, ..Self::default() }
    }
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self { batch: 1, workers: 2, keep: false, limits: Limits::DEFAULT }
    }
}

/// An image that is to go through.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// What it is called in its report.
    pub file: PathBuf,
    /// Which frame it is, if the file is a video.
    pub frame: Option<Frame>,
    /// Where its pixels are.
    pub content: Content,
    /// What comes out again with its result.
    pub tag: T,
}

/// Where the pixels of an image are.
#[derive(Clone, Debug)]
pub enum Content {
    /// In the file.
    File,
    /// In these bytes of a file.
    Bytes(Vec<u8>),
    /// Here.
    Image(RgbImage),
    /// Nowhere, for this reason.
    Missing(String),
}

/// An image that has gone through.
#[derive(Debug)]
pub struct Finished<T> {
    /// What was found, or why nothing could be.
    pub report: Report,
    /// The image, if images are kept and it could be read.
    pub image: Option<RgbImage>,
    /// What came with the item.
    pub tag: T,
}

/// Sends `items` through the detector. `finish` is called for each, in several threads and in any order; `sink` gets what it
/// returns, in the order of the items. When the sink returns, no more images are begun.
///
/// Returns the time that the network ran, and what the sink returned.
pub fn pipeline<T: Send, F: Send, R>(
    detector: &Detector,
    options: &PipelineOptions,
    items: impl Iterator<Item = Item<T>> + Send,
    finish: impl Fn(Finished<T>) -> F + Sync,
    sink: impl FnOnce(Ordered<F>) -> R,
) -> (Duration, R) {
    let batch = options.batch.clamp(1, PipelineOptions::MOST_BATCH);
    let workers = options.workers.clamp(1, PipelineOptions::MOST_WORKERS);
    // Enough for every thread to have one at hand and one in work, and for the next batch to gather.
    let under_way = 4 * workers + 3 * batch;
    let (permit_sender, permits) = bounded(under_way);
    for _ in 0..under_way {
        // There is room for all.
        let _ = permit_sender.send(());
    }
    let source = Source { items: Mutex::new(items.enumerate().fuse()), permits };
    let (job_sender, jobs) = bounded(batch.max(2));
    // Outputs are large: those of one run wait while those of another are read.
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
        // What the threads wait for must end when the others do.
        drop((finished_sender, job_sender, runs));
        let result = sink(Ordered { finished, permits: permit_sender, early: BTreeMap::new(), next: 0 });
        let inference = network.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (inference, result)
    })
}

/// Where the images come from, each with its place among them.
struct Source<I> {
    items: Mutex<I>,
    permits: Receiver<()>,
}

impl<T, I: Iterator<Item = (usize, Item<T>)>> Source<I> {
    /// The next image, when it may begin; none when all have, or when nobody wants results anymore.
    fn next(&self) -> Option<(usize, Item<T>)> {
        let mut items = lock(&self.items);
        self.permits.recv().ok()?;
        items.next()
    }
}

/// A view of an image, on its way to the network.
struct Job<T> {
    image: Arc<Image<T>>,
    /// Place among the views of the image.
    place: usize,
    view: View,
}

/// An image whose views are under way.
struct Image<T> {
    index: usize,
    size: (u32, u32),
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Taken out at the end.
    item: Option<(PathBuf, Option<Frame>, T)>,
    kept: Option<RgbImage>,
    /// What was found in each view so far.
    seen: Vec<Option<(Look, Vec<Detection>)>>,
    /// Views that are still under way.
    left: usize,
    failure: Option<Failure>,
}

impl<T> Image<T> {
    fn new(index: usize, size: (u32, u32), item: (PathBuf, Option<Frame>, T), views: usize) -> Self {
        let state = State { item: Some(item), kept: None, seen: vec![None; views], left: views, failure: None };
        Self { index, size, state: Mutex::new(state) }
    }

    /// Adds what was found in a view. After the last one the image is finished.
    fn add(
        &self,
        place: usize,
        found: Result<(Look, Vec<Detection>), Failure>,
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
        let looks = detector.looks(&image);
        let shared = Arc::new(Image::new(index, image.dimensions(), (file, frame, tag), looks.len()));
        let last = looks.len() - 1;
        let mut image = Some(image);
        for (place, look) in looks.into_iter().enumerate() {
            let view = image.as_ref().map(|image| detector.prepare(image, look));
            if place == last {
                // Whoever adds to the last view must find it.
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

/// The third stage: reads what the network said, and finishes images of which all views are there.
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
            if exit.add(&image, place, found.map(|found| (view.look, found)), detector).is_none() {
                return;
            }
        }
    }
}

/// The way out.
struct Exit<'a, F, G> {
    sender: Sender<Message<F>>,
    finish: &'a G,
}

/// What comes out.
#[derive(Debug)]
enum Message<F> {
    /// A finished image, by its place among all.
    Finished(usize, F),
    /// A thread has panicked, and with it its image is lost.
    Panicked,
}

impl<F, G> Exit<'_, F, G> {
    /// Finishes an image; nothing when nobody wants it.
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
        found: Result<(Look, Vec<Detection>), Failure>,
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
    /// Nobody must wait for an image that was lost in a panic, which goes on when the threads are joined.
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.sender.send(Message::Panicked);
        }
    }
}

/// The results, in the order of the items. It ends after the last; when it is dropped earlier, so do the images.
#[derive(Debug)]
pub struct Ordered<F> {
    finished: Receiver<Message<F>>,
    permits: Sender<()>,
    /// Those whose turn has not come, by place.
    early: BTreeMap<usize, F>,
    next: usize,
}

impl<F> Iterator for Ordered<F> {
    type Item = F;

    fn next(&mut self) -> Option<F> {
        loop {
            if let Some(finished) = self.early.remove(&self.next) {
                self.next += 1;
                // Fails only when no image is left to begin.
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

/// The threads share nothing that a panic leaves half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
