//! The data loader: worker threads prepare batches ahead of the training loop; batches arrive in the order requested.

mod sampler;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use models::dataset::{Annotation, Dataset, Rectangle};
use models::spec::{ModelSpec, PreprocessingSpec};
use models::{Anchors, Matcher, Placement, Preprocessed, RgbView, preprocess};
use ndarray::{Array3, Array4, s};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::augmentation::{AugmentationConfig, RandomStreams, Sample};
use crate::cache::Cache;
use crate::targets::{Normalizer, Object, Targets};

pub(crate) use sampler::images_per_epoch;
pub use sampler::{BatchRequest, Sampler, aspect_groups, repeat_factors};

/// Network inputs with their training targets.
pub struct Batch {
    /// `[N, 3, H, W]`, normalized and zero-padded to the largest input of the batch.
    pub images: Array4<f32>,
    /// Training targets of every anchor.
    pub targets: Targets,
    /// How each image was resized and padded.
    pub placements: Vec<Placement>,
    /// Indices of the images in the data set.
    pub indices: Vec<usize>,
}

impl Batch {
    /// The divisor of this batch's loss; a divisor of 0 counts as 1.
    pub fn loss_divisor(&self, normalizer: Normalizer) -> usize {
        match normalizer {
            Normalizer::Image => self.indices.len(),
            Normalizer::Batch => self.targets.rows.len(),
        }
    }
}

/// A data set and everything that turns its images into batches.
pub struct Recipe {
    /// Images and annotations.
    pub dataset: Dataset,
    /// Input size, normalization, anchors and box coder.
    pub spec: ModelSpec,
    /// Matches anchors to objects.
    pub matcher: Matcher,
    /// What the losses are divided by.
    pub normalizer: Normalizer,
    /// Augmentation of images and boxes.
    pub augmentation: AugmentationConfig,
    /// Cache of decoded images; several recipes may share it.
    pub cache: Arc<Cache>,
}

impl Recipe {
    /// Whether all network inputs have the same size, with any random augmentation.
    pub fn has_one_input_size(&self) -> bool {
        let Self { dataset, spec, augmentation, .. } = self;
        let padded_size = |[width, height]: [u32; 2]| {
            let placement = spec.preprocessing.place(width.max(1), height.max(1));
            [placement.padded_width, placement.padded_height]
        };
        let mut sizes = dataset.images().iter().flat_map(|image| {
            let size = [image.width, image.height];
            // Rotation by 90 or 270 degrees swaps width and height.
            let rotated = (augmentation.rotation > 0.0).then_some([size[1], size[0]]);
            [Some(size), rotated].into_iter().flatten().map(padded_size)
        });
        let first = sizes.next();
        // Crops keep the aspect ratio only up to rounding.
        let varies = augmentation.scale.probability > 0.0 || augmentation.crop.probability > 0.0;
        !varies && sizes.all(|size| Some(size) == first)
    }
}

/// A request, its augmentation, and the channel that its batch is sent to.
type Job = (BatchRequest, Arc<AugmentationConfig>, Sender<anyhow::Result<Batch>>);

/// Worker threads that prepare batches.
pub struct Loader {
    recipe: Arc<Recipe>,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(recipe: Recipe, workers: usize) -> anyhow::Result<Self> {
        let recipe = Arc::new(recipe);
        let (jobs, queue) = bounded::<Job>(workers);
        let workers = (0..workers).map(|index| {
            let (recipe, queue): (_, Receiver<Job>) = (recipe.clone(), queue.clone());
            thread::Builder::new().name(format!("loader {index}")).spawn(move || {
                for (request, augmentation, reply) in queue {
                    // The receiver is gone if the run has ended early.
                    let _ = reply.send(recipe.prepare(&request, &augmentation));
                }
            })
        });
        let workers =
            workers.collect::<Result<_, _>>().context("cannot start the data loader's threads; lower `run.workers`")?;
        Ok(Self { recipe, jobs: Some(jobs), workers })
    }

    /// The data set, and how its images become batches.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The batches of `requests`, in the same order. At most two batches per worker are prepared ahead.
    pub fn batches(&self, requests: impl Iterator<Item = BatchRequest>) -> impl Iterator<Item = anyhow::Result<Batch>> {
        self.batches_with(self.recipe.augmentation.clone(), requests)
    }

    /// As [`Self::batches`], with another augmentation.
    pub fn batches_with(
        &self,
        augmentation: AugmentationConfig,
        requests: impl Iterator<Item = BatchRequest>,
    ) -> impl Iterator<Item = anyhow::Result<Batch>> {
        let augmentation = Arc::new(augmentation);
        let mut requests = requests.fuse();
        let mut pending = VecDeque::new();
        std::iter::from_fn(move || {
            while pending.len() < 2 * self.workers.len()
                && let Some(request) = requests.next()
            {
                let (reply, batch) = bounded(1);
                let jobs = self.jobs.as_ref().expect("jobs are taken only when the loader is dropped");
                // If all threads have ended, sending fails and drops `reply`; then `recv` below returns an error.
                let _ = jobs.send((request, augmentation.clone(), reply));
                pending.push_back(batch);
            }
            let batch: Receiver<anyhow::Result<Batch>> = pending.pop_front()?;
            Some(batch.recv().context("a data loader thread ended before its batch was ready").flatten())
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
    fn prepare(&self, request: &BatchRequest, augmentation: &AugmentationConfig) -> anyhow::Result<Batch> {
        let first = request.indices.first().copied().unwrap_or_default();
        let preprocessing =
            augmentation.scale.jitter(&self.spec.preprocessing, &RandomStreams::new(request.seed, first));
        let mut prepared = Vec::new();
        let mut objects = Vec::new();
        for (position, &index) in request.indices.iter().enumerate() {
            let earlier = request.indices[..position].iter().filter(|other| **other == index).count();
            let seed = request.seed.wrapping_add(earlier as u64);
            let (input, image_objects) = self.image(index, seed, augmentation, &preprocessing)?;
            prepared.push(input);
            objects.push(image_objects);
        }
        let max = |side: fn(&Placement) -> u32| prepared.iter().map(|p| side(&p.placement)).max().unwrap_or(0) as usize;
        let (height, width) = (max(|placement| placement.padded_height), max(|placement| placement.padded_width));
        let mut images = Array4::zeros((prepared.len(), 3, height, width));
        for (index, image) in prepared.iter().enumerate() {
            let (_, height, width) = image.pixels.dim();
            images.slice_mut(s![index, .., ..height, ..width]).assign(&image.pixels);
        }
        let anchors = Anchors::new(&self.spec.anchors, height, width);
        let targets = Targets::new(&objects, &anchors, &self.matcher, &self.spec.box_coder, self.normalizer);
        let placements = prepared.iter().map(|image| image.placement).collect();
        Ok(Batch { images, targets, placements, indices: request.indices.clone() })
    }

    /// The network input of an image in a batch of one, and its objects, in pixels of the padded input.
    pub(crate) fn input(&self, index: usize, seed: u64) -> anyhow::Result<(Preprocessed, Vec<Object>)> {
        let preprocessing = self.augmentation.scale.jitter(&self.spec.preprocessing, &RandomStreams::new(seed, index));
        self.image(index, seed, &self.augmentation, &preprocessing)
    }

    /// The network input of an augmented image, and its objects, in pixels of the padded input.
    fn image(
        &self,
        index: usize,
        seed: u64,
        augmentation: &AugmentationConfig,
        preprocessing: &PreprocessingSpec,
    ) -> anyhow::Result<(Preprocessed, Vec<Object>)> {
        let streams = RandomStreams::new(seed, index);
        let load_random = |random: &mut ChaCha8Rng| self.sample(random.random_range(0..self.dataset.images().len()));
        let sample = augmentation.apply(self.sample(index)?, &streams, load_random)?;
        let size = preprocessing.place(sample.pixels.width(), sample.pixels.height());
        let (sample, preprocessing) = augmentation.large_scale_jitter.apply(sample, preprocessing, &streams);
        let Sample { pixels, mut objects } = sample;
        let view = RgbView::new(pixels.width(), pixels.height(), pixels.as_raw())?;
        let prepared = pad(preprocess(view, &preprocessing), &size);
        for object in &mut objects {
            object.bounding_box = prepared.placement.to_input(&object.bounding_box);
        }
        Ok((prepared, objects))
    }

    /// An image of the data set without augmentation, and its objects, in pixels of the original image (upright, after EXIF
    /// rotation). Crowd regions and the invalid boxes of validation data are left out; boxes are clipped to the image.
    fn sample(&self, index: usize) -> anyhow::Result<Sample> {
        let image = &self.dataset.images()[index];
        let path = self.dataset.path_of(index);
        let pixels = self.cache.read(&path)?;
        let (width, height) = pixels.dimensions();
        ensure!(
            (width, height) == (image.width, image.height),
            "`{}` is {width}x{height} pixels after EXIF rotation, but its annotations declare {}x{}; correct one of them",
            path.display(),
            image.width,
            image.height
        );
        let annotations = self.dataset.annotations_of(index).iter().filter(|annotation| !annotation.crowd);
        let object = |annotation: &Annotation| {
            let Rectangle { x, y, width: w, height: h } = annotation.rectangle;
            let inside = annotation.rectangle.bounding_box().clip(width as f32, height as f32);
            let valid = [x, y, w, h, annotation.area].iter().all(|value| value.is_finite());
            (valid && inside.width() > 0.0 && inside.height() > 0.0)
                .then_some(Object { class_index: annotation.class_index, bounding_box: inside })
        };
        let objects = annotations.filter_map(object).collect();
        Ok(Sample { pixels, objects })
    }
}

/// Pads an input to the padded size of `size`, if it is smaller.
fn pad(input: Preprocessed, size: &Placement) -> Preprocessed {
    let Preprocessed { pixels, placement } = input;
    let (channels, height, width) = pixels.dim();
    let padded_height = placement.padded_height.max(size.padded_height);
    let padded_width = placement.padded_width.max(size.padded_width);
    if (padded_height, padded_width) == (placement.padded_height, placement.padded_width) {
        return Preprocessed { pixels, placement };
    }
    let mut padded = Array3::zeros((channels, padded_height as usize, padded_width as usize));
    padded.slice_mut(s![.., ..height, ..width]).assign(&pixels);
    Preprocessed { pixels: padded, placement: Placement { padded_height, padded_width, ..placement } }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use models::dataset::Image;
    use models::spec::Class;
    use tempfile::TempDir;

    use super::*;
    use crate::augmentation::testing::{COLORS, assert_boxes_enclose_rectangles, colored_rectangles};
    use crate::cache::{CacheConfig, CacheKind};

    const IMAGES: usize = 6;

    /// All augmentations that move boxes; none that changes colors, because the tests find objects by their color.
    const GEOMETRIC: &str = "horizontal_flip: 0.5, vertical_flip: 0.5, rotation: 0.5, crop: {probability: 0.5}, \
                             scale: {probability: 0.8}";

    /// A folder of images with colored rectangles, and a recipe for them.
    struct Fixture {
        folder: TempDir,
        recipe: Recipe,
    }

    impl Fixture {
        fn new(augmentation: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let classes = (0..COLORS).map(|id| Class { id: id as i64, name: format!("color {id}") }).collect();
            let (mut images, mut annotations) = (Vec::new(), Vec::new());
            for image in 0..IMAGES {
                let sample = colored_rectangles(image as u64);
                let (width, height) = sample.pixels.dimensions();
                let file_name = format!("{image}.png");
                sample.pixels.save(folder.path().join(&file_name)).unwrap();
                images.push(Image { id: image as i64, file_name, width, height });
                for object in sample.objects {
                    let rectangle = Rectangle::from(object.bounding_box);
                    let (id, class_index, area) = (annotations.len() as i64, object.class_index, rectangle.area());
                    annotations.push(Annotation {
                        id,
                        image,
                        class_index,
                        rectangle,
                        area,
                        crowd: false,
                        difficult: false,
                    });
                }
            }
            let dataset = Dataset::new(folder.path(), images, annotations, classes).unwrap();
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

        /// With these changes to the data set.
        fn with(mut self, image: impl Fn(&mut Image), annotation: impl Fn(&mut Annotation)) -> Self {
            let dataset = &self.recipe.dataset;
            let (mut images, mut annotations) = (dataset.images().to_vec(), dataset.annotations().to_vec());
            images.iter_mut().for_each(image);
            annotations.iter_mut().for_each(annotation);
            let classes = dataset.classes().to_vec();
            self.recipe.dataset = Dataset::new(dataset.folder(), images, annotations, classes).unwrap();
            self
        }

        fn batches(self, workers: usize, batch_size: usize) -> Vec<Batch> {
            let loader = Loader::new(self.recipe, workers).unwrap();
            let sampler = Sampler::new(vec![0; IMAGES], vec![1.0; IMAGES], batch_size, 0);
            let requests = (0..3).flat_map(|epoch| sampler.batches(epoch));
            loader.batches(requests).map(Result::unwrap).collect()
        }
    }

    #[test]
    fn inputs_have_one_size_unless_images_or_augmentation_differ_in_size() {
        let one_size = |augmentation: &str, sizes: &[[u32; 2]]| {
            let size = |image: &mut Image| [image.width, image.height] = sizes[image.id as usize % sizes.len()];
            Fixture::new(augmentation).with(size, |_| ()).recipe.has_one_input_size()
        };
        assert!(one_size("{horizontal_flip: 0.5}", &[[100, 80], [200, 160]]));
        assert!(!one_size("{}", &[[100, 80], [80, 100]]));
        assert!(!one_size("{rotation: 0.5}", &[[100, 80]]) && one_size("{rotation: 0.5}", &[[80, 80]]));
        assert!(!one_size("{scale: {probability: 0.5}}", &[[80, 80]]));
        assert!(!one_size("{crop: {probability: 0.5}}", &[[80, 80]]));
    }

    #[test]
    fn batches_do_not_depend_on_workers_or_cache() {
        let rest = "mosaic: {probability: 0.5}, hue: {probability: 1}, large_scale_jitter: {probability: 0.5}";
        let all = format!("{{{GEOMETRIC}, {rest}}}");
        let expected = Fixture::new(&all).batches(1, 4);
        for (kind, workers) in [(CacheKind::None, 3), (CacheKind::Memory, 2)] {
            let mut fixture = Fixture::new(&all);
            fixture.recipe.cache = Arc::new(Cache::new(&CacheConfig { kind, ..CacheConfig::default() }));
            for (found, expected) in fixture.batches(workers, 4).iter().zip(&expected) {
                assert_eq!(found.images, expected.images, "{kind:?}");
                assert_eq!(found.targets, expected.targets, "{kind:?}");
            }
        }
    }

    #[test]
    fn boxes_enclose_their_objects_in_the_network_input() {
        // Smaller than this, blurred rectangles vanish.
        let jitter = "large_scale_jitter: {probability: 0.7, min: 0.5, max: 2}";
        let Fixture { recipe, folder: _folder } = Fixture::new(&format!("{{{GEOMETRIC}, {jitter}}}"));
        for seed in 0..20 {
            for index in 0..IMAGES {
                let (Preprocessed { pixels, placement }, objects) = recipe.input(index, seed).unwrap();
                let (width, height) = (placement.resized_width, placement.resized_height);
                let value = |x: u32, y: u32, channel| pixels[[channel, y as usize, x as usize]] as u8;
                let input = RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|channel| value(x, y, channel))));
                let sample = Sample { pixels: Arc::new(input), objects };
                assert_boxes_enclose_rectangles(&sample, 1.5, &format!("seed {seed}, image {index}"));
            }
        }
    }

    #[test]
    fn scale_varies_between_batches_but_not_within_a_batch() {
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
    fn large_scale_jitter_varies_within_a_batch_and_keeps_the_input_size() {
        let plain = Fixture::new("{}");
        let jittered = Fixture::new("{large_scale_jitter: {probability: 1}}");
        for recipe in [&plain.recipe, &jittered.recipe] {
            assert!(!recipe.has_one_input_size());
        }
        let mut factors = Vec::new();
        for (found, expected) in jittered.batches(2, 3).iter().zip(plain.batches(1, 3)) {
            assert_eq!(found.images.dim(), expected.images.dim());
            for (placement, whole) in found.placements.iter().zip(&expected.placements) {
                let factor = f64::from(placement.resized_width) / f64::from(whole.resized_width);
                assert!((0.05..=1.0).contains(&factor));
                factors.push(factor);
            }
        }
        let cropped = factors.iter().filter(|factor| **factor == 1.0).count();
        let shrunk = factors.iter().filter(|factor| **factor < 0.7).count();
        assert!(cropped >= 3 && shrunk >= 3, "{factors:?}");
    }

    #[test]
    fn crowd_regions_are_not_training_objects() {
        for augmentation in ["{mosaic: {probability: 0}}", "{mosaic: {probability: 1, min_visibility: 0}}"] {
            let crowd = |annotation: &mut Annotation| annotation.crowd = annotation.class_index != 2;
            let fixture = Fixture::new(augmentation).with(|_| (), crowd);
            let classes: Vec<_> =
                fixture.batches(1, 3).iter().flat_map(|batch| batch.targets.classes.clone()).collect();
            assert!(!classes.is_empty() && classes.iter().all(|class| *class == 2), "{augmentation}: {classes:?}");
        }
    }

    #[test]
    fn errors_name_unreadable_images_that_a_mosaic_needs() {
        let fixture = Fixture::new("{mosaic: {probability: 1}}");
        std::fs::write(fixture.folder.path().join("5.png"), "not an image").unwrap();
        let loader = Loader::new(fixture.recipe, 1).unwrap();
        let request = |seed| BatchRequest { indices: vec![0], seed };
        let failures: Vec<_> = loader.batches((0..10).map(request)).filter_map(Result::err).collect();
        assert!(!failures.is_empty());
        assert!(failures.iter().all(|error| format!("{error:#}").contains("5.png")), "{failures:?}");
    }
}
