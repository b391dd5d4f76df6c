//! Batches, prepared in worker threads ahead of the network and handed over in order.

mod orders;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use models::dataset::Dataset;
use models::spec::{ModelSpec, PreprocessingSpec};
use models::{Anchors, Matcher, Placement, Preprocessed, RgbView, preprocess};
use ndarray::{Array4, s};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::augmentation::{AugmentationConfig, Draws, Sample};
use crate::cache::Cache;
use crate::targets::{Normalizer, Object, Targets};

pub use orders::{Order, aspect_groups, orders};

/// Images as the network takes them, and what it should say of them.
pub struct Batch {
    /// `[N, 3, H, W]`.
    pub images: Array4<f32>,
    /// The truth, anchor by anchor.
    pub targets: Targets,
    /// Where each image lies in `images`.
    pub placements: Vec<Placement>,
    /// Which images these are: places in the data set.
    pub indices: Vec<usize>,
}

/// How a data set becomes batches.
pub struct Recipe {
    /// The images and boxes.
    pub dataset: Dataset,
    /// Says size, normalization and anchors.
    pub spec: ModelSpec,
    /// Assigns objects to anchors.
    pub matcher: Matcher,
    /// What losses are divided by.
    pub normalizer: Normalizer,
    /// Varies images.
    pub augmentation: AugmentationConfig,
    /// Keeps decoded images; several recipes may share it.
    pub cache: Arc<Cache>,
}

impl Recipe {
    /// Whether all inputs of the network have one size, whatever the augmentation draws.
    pub fn has_one_input_size(&self) -> bool {
        let Self { dataset, spec, augmentation, .. } = self;
        let placed = |[width, height]: [u32; 2]| {
            let placement = spec.preprocessing.place(width.max(1), height.max(1));
            [placement.padded_width, placement.padded_height]
        };
        let mut sizes = dataset.images.iter().flat_map(|image| {
            let size = [image.width, image.height];
            // A turned image has its sides exchanged.
            let turned = (augmentation.rotation > 0.0).then_some([size[1], size[0]]);
            [Some(size), turned].into_iter().flatten().map(placed)
        });
        let first = sizes.next();
        // Crops keep the aspect ratio, but for rounding.
        let varies = augmentation.scale.probability > 0.0 || augmentation.crop.probability > 0.0;
        !varies && sizes.all(|size| Some(size) == first)
    }
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
        let first = order.indices.first().copied().unwrap_or_default();
        let preprocessing = self.preprocessing(first, order.seed);
        let mut prepared = Vec::new();
        let mut objects = Vec::new();
        for &index in &order.indices {
            let (pixels, on_it) = self.image(index, order.seed, &preprocessing)?;
            prepared.push(pixels);
            objects.push(on_it);
        }
        let side =
            |side: fn(&Placement) -> u32| prepared.iter().map(|p| side(&p.placement)).max().unwrap_or(0) as usize;
        let (height, width) = (side(|placement| placement.padded_height), side(|placement| placement.padded_width));
        let mut images = Array4::zeros((prepared.len(), 3, height, width));
        for (index, image) in prepared.iter().enumerate() {
            let (_, height, width) = image.pixels.dim();
            images.slice_mut(s![index, .., ..height, ..width]).assign(&image.pixels);
        }
        let anchors = Anchors::new(&self.spec.anchors, height, width);
        let targets = Targets::new(&objects, &anchors, &self.matcher, &self.spec.box_coder, self.normalizer);
        let placements = prepared.iter().map(|image| image.placement).collect();
        Ok(Batch { images, targets, placements, indices: order.indices.clone() })
    }

    /// What the network sees of an image in a batch of its own, and the objects on it in pixels of the input.
    pub(crate) fn input(&self, index: usize, seed: u64) -> anyhow::Result<(Preprocessed, Vec<Object>)> {
        self.image(index, seed, &self.preprocessing(index, seed))
    }

    /// The size of the batch that begins with the image at place `first`.
    fn preprocessing(&self, first: usize, seed: u64) -> PreprocessingSpec {
        self.augmentation.scale.vary(&self.spec.preprocessing, &Draws::new(seed, first))
    }

    /// One image, varied and prepared, and the objects on it in pixels of the input.
    fn image(
        &self,
        index: usize,
        seed: u64,
        preprocessing: &PreprocessingSpec,
    ) -> anyhow::Result<(Preprocessed, Vec<Object>)> {
        let another = |random: &mut ChaCha8Rng| self.sample(random.random_range(0..self.dataset.images.len()));
        let sample = self.augmentation.apply(self.sample(index)?, &Draws::new(seed, index), another)?;
        let Sample { pixels, mut objects } = sample;
        let view = RgbView::new(pixels.width(), pixels.height(), pixels.as_raw())?;
        let prepared = preprocess(view, preprocessing);
        for object in &mut objects {
            object.bounding_box = prepared.placement.to_input(&object.bounding_box);
        }
        Ok((prepared, objects))
    }

    /// One image as it is in the data set, and the objects on it save crowds.
    fn sample(&self, index: usize) -> anyhow::Result<Sample> {
        let image = &self.dataset.images[index];
        let path = self.dataset.path_of(index);
        let pixels = self.cache.read(&path)?;
        let (width, height) = pixels.dimensions();
        ensure!(
            (width, height) == (image.width, image.height),
            "{} is {width}x{height} upright, but the annotations say {}x{}, so its boxes would be wrong; mend either",
            path.display(),
            image.width,
            image.height
        );
        let annotations = self.dataset.annotations_of(index).iter().filter(|annotation| !annotation.crowd);
        let objects = annotations
            .map(|annotation| Object {
                class_index: annotation.class_index,
                bounding_box: annotation.rectangle.bounding_box(),
            })
            .collect();
        Ok(Sample { pixels, objects })
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use models::dataset::{Annotation, Dataset, Image, Rectangle};
    use models::spec::Class;
    use tempfile::TempDir;

    use super::*;
    use crate::augmentation::testing::{COLORS, assert_boxes_are_on_their_rectangles, marked};
    use crate::cache::{CacheConfig, CacheKind};

    const IMAGES: usize = 6;

    /// Every variation of positions, and no colors, so that objects are found by theirs.
    const VARIATIONS: &str = "horizontal_flip: 0.5, vertical_flip: 0.5, rotation: 0.5, crop: {probability: 0.5}, \
                              scale: {probability: 0.8}";

    /// A folder with marked images, and how they become batches.
    struct Fixture {
        folder: TempDir,
        recipe: Recipe,
    }

    impl Fixture {
        fn new(augmentation: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let classes = (0..COLORS).map(|id| Class { id: id as i64, name: format!("color {id}") }).collect();
            let mut dataset = Dataset { folder: folder.path().to_owned(), classes, ..Dataset::default() };
            for image in 0..IMAGES {
                let sample = marked(image as u64);
                let (width, height) = sample.pixels.dimensions();
                let file_name = format!("{image}.png");
                sample.pixels.save(folder.path().join(&file_name)).unwrap();
                dataset.images.push(Image { id: image as i64, file_name, width, height });
                for object in sample.objects {
                    let rectangle = Rectangle::from(object.bounding_box);
                    let (id, class_index, area) =
                        (dataset.annotations.len() as i64, object.class_index, rectangle.area());
                    dataset.annotations.push(Annotation { id, image, class_index, rectangle, area, crowd: false });
                }
            }
            let mut spec = ModelSpec::default();
            spec.preprocessing = PreprocessingSpec {
                shorter_side: 128,
                longer_side: 256,
                mean: [0.0; 3],
                std: [1.0 / 255.0; 3],
                ..spec.preprocessing
            };
            let recipe = Recipe {
                dataset,
                spec,
                matcher: Matcher::default(),
                normalizer: Normalizer::default(),
                augmentation: serde_yaml::from_str(augmentation).unwrap(),
                cache: Arc::default(),
            };
            Self { folder, recipe }
        }

        fn batches(self, workers: usize, batch_size: usize) -> Vec<Batch> {
            let loader = Loader::new(self.recipe, workers).unwrap();
            let epochs = (0..3).flat_map(|epoch| orders(&[0; IMAGES], batch_size, 0, epoch));
            loader.batches(epochs).map(Result::unwrap).collect()
        }
    }

    #[test]
    fn inputs_have_one_size_unless_images_or_augmentation_vary_it() {
        let one_size = |augmentation: &str, sizes: &[[u32; 2]]| {
            let mut recipe = Fixture::new(augmentation).recipe;
            let images = recipe.dataset.images.iter_mut().zip(sizes.iter().cycle());
            images.for_each(|(image, size)| [image.width, image.height] = *size);
            recipe.has_one_input_size()
        };
        assert!(one_size("{horizontal_flip: 0.5}", &[[100, 80], [200, 160]]));
        assert!(!one_size("{}", &[[100, 80], [80, 100]]));
        assert!(!one_size("{rotation: 0.5}", &[[100, 80]]) && one_size("{rotation: 0.5}", &[[80, 80]]));
        assert!(!one_size("{scale: {probability: 0.5}}", &[[80, 80]]));
        assert!(!one_size("{crop: {probability: 0.5}}", &[[80, 80]]));
    }

    #[test]
    fn batches_do_not_depend_on_threads_or_cache() {
        let all = format!("{{{VARIATIONS}, mosaic: {{probability: 0.5}}, hue: {{probability: 1}}}}");
        let expected = Fixture::new(&all).batches(1, 4);
        for (kind, workers) in [(CacheKind::None, 3), (CacheKind::Memory, 1), (CacheKind::Disk, 2)] {
            let mut fixture = Fixture::new(&all);
            let cache = CacheConfig { kind, folder: fixture.folder.path().join("cache"), ..Default::default() };
            fixture.recipe.cache = Arc::new(Cache::open(&cache).unwrap());
            for (found, expected) in fixture.batches(workers, 4).iter().zip(&expected) {
                assert_eq!(found.images, expected.images, "{kind:?}");
                assert_eq!(found.targets, expected.targets, "{kind:?}");
                assert_eq!(found.images, expected.images, "{kind:?}");
            }
        }
    }

    #[test]
    fn boxes_are_on_their_objects_in_the_input() {
        let Fixture { recipe, folder: _folder } = Fixture::new(&format!("{{{VARIATIONS}}}"));
        for seed in 0..20 {
            for index in 0..IMAGES {
                let draws = Draws::new(seed, index);
                let preprocessing = recipe.augmentation.scale.vary(&recipe.spec.preprocessing, &draws);
                let (Preprocessed { pixels, placement }, objects) = recipe.image(index, seed, &preprocessing).unwrap();
                let (width, height) = (placement.resized_width, placement.resized_height);
                let value = |x: u32, y: u32, channel| pixels[[channel, y as usize, x as usize]] as u8;
                let shown = RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|channel| value(x, y, channel))));
                let sample = Sample { pixels: Arc::new(shown), objects };
                assert_boxes_are_on_their_rectangles(&sample, 1.5, &format!("seed {seed}, image {index}"));
            }
        }
    }

    #[test]
    fn the_images_of_a_batch_have_one_scale_and_batches_have_several() {
        let scale = "{scale: {probability: 1, min: 0.5, max: 2}}";
        let mut shorter_sides = Vec::new();
        for batch in Fixture::new(scale).batches(2, 3) {
            let shorter = |placement: &Placement| placement.resized_width.min(placement.resized_height);
            let sides: Vec<_> = batch.placements.iter().map(shorter).collect();
            assert!(sides.iter().all(|side| *side == sides[0] && (64..=256).contains(side)), "{sides:?}");
            let (_, _, height, width) = batch.images.dim();
            assert_eq!((height % 32, width % 32), (0, 0));
            assert!(
                batch.placements.iter().all(|p| p.padded_height as usize <= height && p.padded_width as usize <= width)
            );
            shorter_sides.push(sides[0]);
        }
        shorter_sides.dedup();
        assert!(shorter_sides.len() > 3, "{shorter_sides:?}");
    }

    #[test]
    fn crowds_do_not_become_objects() {
        for augmentation in ["{mosaic: {probability: 0}}", "{mosaic: {probability: 1, min_visibility: 0}}"] {
            let mut fixture = Fixture::new(augmentation);
            for annotation in &mut fixture.recipe.dataset.annotations {
                annotation.crowd = annotation.class_index != 2;
            }
            let classes: Vec<_> =
                fixture.batches(1, 3).iter().flat_map(|batch| batch.targets.classes.clone()).collect();
            assert!(!classes.is_empty() && classes.iter().all(|class| *class == 2), "{augmentation}: {classes:?}");
        }
    }

    #[test]
    fn an_image_that_a_mosaic_needs_and_that_cannot_be_read_is_named() {
        let fixture = Fixture::new("{mosaic: {probability: 1}}");
        std::fs::write(fixture.folder.path().join("5.png"), "no image").unwrap();
        let loader = Loader::new(fixture.recipe, 1).unwrap();
        let order = |seed| Order { indices: vec![0], seed };
        let failures: Vec<_> = loader.batches((0..10).map(order)).filter_map(Result::err).collect();
        assert!(!failures.is_empty());
        assert!(failures.iter().all(|error| format!("{error:#}").contains("5.png")), "{failures:?}");
    }
}
