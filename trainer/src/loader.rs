//! Batches, prepared in worker threads ahead of the network and handed over in order.

mod orders;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use models::dataset::Dataset;
use models::spec::ModelSpec;
use models::{Anchors, Matcher, Placement, RgbView, preprocess};
use ndarray::{Array4, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::augmentation::AugmentationConfig;
use crate::cache::Cache;
use crate::targets::{Object, Targets};

pub use orders::{Order, aspect_groups, orders};

/// Pictures as the network takes them, and what it should say of them.
pub struct Batch {
    /// `[N, 3, H, W]`.
    pub images: Array4<f32>,
    /// The truth, anchor by anchor.
    pub targets: Targets,
    /// Where each picture lies in `images`.
    pub placements: Vec<Placement>,
    /// Which pictures these are: places in the data set.
    pub pictures: Vec<usize>,
}

/// How a data set becomes batches.
pub struct Recipe {
    /// The pictures and boxes.
    pub dataset: Dataset,
    /// The folder that file names start from.
    pub folder: PathBuf,
    /// Says size, normalization and anchors.
    pub spec: ModelSpec,
    /// Assigns objects to anchors.
    pub matcher: Matcher,
    /// Varies pictures.
    pub augmentation: AugmentationConfig,
    /// Keeps decoded pictures; several recipes may share it.
    pub cache: Arc<Cache>,
}

/// An order on its way, and where its batch is awaited.
type Job = (Order, Sender<anyhow::Result<Batch>>);

/// Worker threads that turn orders into batches.
pub struct Loader {
    recipe: Arc<Recipe>,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(recipe: Recipe, workers: usize) -> anyhow::Result<Self> {
        let recipe = Arc::new(recipe);
        let (jobs, queue) = bounded::<Job>(workers);
        let workers = (0..workers).map(|index| {
            let (recipe, queue): (_, Receiver<Job>) = (recipe.clone(), queue.clone());
            thread::Builder::new().name(format!("loader {index}")).spawn(move || {
                for (order, reply) in queue {
                    // Nobody waits any more when the run has ended early.
                    let _ = reply.send(recipe.prepare(&order));
                }
            })
        });
        let workers = workers.collect::<Result<_, _>>().context("can't start the loader's threads")?;
        Ok(Self { recipe, jobs: Some(jobs), workers })
    }

    /// How batches are made.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The batches of `orders`, in their order. At most two per worker are prepared ahead.
    pub fn batches(&self, orders: impl Iterator<Item = Order>) -> impl Iterator<Item = anyhow::Result<Batch>> {
        let mut orders = orders.fuse();
        let mut awaited = VecDeque::new();
        std::iter::from_fn(move || {
            while awaited.len() < 2 * self.workers.len()
                && let Some(order) = orders.next()
            {
                let (reply, batch) = bounded(1);
                let jobs = self.jobs.as_ref().expect("jobs are taken only when the loader is dropped");
                // With all threads gone the job comes back and its reply is dropped, which is noticed below.
                let _ = jobs.send((order, reply));
                awaited.push_back(batch);
            }
            let batch: Receiver<anyhow::Result<Batch>> = awaited.pop_front()?;
            Some(batch.recv().context("a loader thread ended before its batch was ready").flatten())
        })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Recipe {
    fn prepare(&self, order: &Order) -> anyhow::Result<Batch> {
        let mut prepared = Vec::new();
        let mut objects = Vec::new();
        for &picture in &order.pictures {
            let (pixels, on_it) = self.picture(picture, order.seed)?;
            prepared.push(pixels);
            objects.push(on_it);
        }
        let side =
            |side: fn(&Placement) -> u32| prepared.iter().map(|p| side(&p.placement)).max().unwrap_or(0) as usize;
        let (height, width) = (side(|placement| placement.padded_height), side(|placement| placement.padded_width));
        let mut images = Array4::zeros((prepared.len(), 3, height, width));
        for (index, picture) in prepared.iter().enumerate() {
            let (_, height, width) = picture.pixels.dim();
            images.slice_mut(s![index, .., ..height, ..width]).assign(&picture.pixels);
        }
        let anchors = Anchors::new(&self.spec.anchors, height, width);
        let targets = Targets::new(&objects, &anchors, &self.matcher, &self.spec.box_coder);
        let placements = prepared.iter().map(|picture| picture.placement).collect();
        Ok(Batch { images, targets, placements, pictures: order.pictures.clone() })
    }

    /// One picture, varied and prepared, and the objects on it in pixels of the input.
    fn picture(&self, index: usize, seed: u64) -> anyhow::Result<(models::Preprocessed, Vec<Object>)> {
        let image = &self.dataset.images[index];
        let path = self.folder.join(&image.file_name);
        let mut pixels = self.cache.read(&path)?;
        let (width, height) = pixels.dimensions();
        ensure!(
            (width, height) == (image.width, image.height),
            "{} is {width}x{height} upright, but the annotations say {}x{}, so its boxes would be wrong; mend either",
            path.display(),
            image.width,
            image.height
        );
        let annotations = self.dataset.annotations_of(index).iter().filter(|annotation| !annotation.crowd);
        let mut objects: Vec<_> = annotations
            .map(|annotation| Object { class: annotation.class, bounding_box: annotation.rectangle.bounding_box() })
            .collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64);
        self.augmentation.apply(Arc::make_mut(&mut pixels), &mut objects, &mut random);

        let view = RgbView::new(pixels.width(), pixels.height(), pixels.as_raw())?;
        let prepared = preprocess(view, &self.spec.preprocessing);
        for object in &mut objects {
            object.bounding_box = prepared.placement.to_input(&object.bounding_box);
        }
        Ok((prepared, objects))
    }
}
