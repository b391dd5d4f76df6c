//! What turns the images of a data set into batches: reading, augmentation, preprocessing and targets.

use std::sync::Arc;

use anyhow::ensure;
use models::dataset::{Annotation, Dataset, Rectangle};
use models::spec::{ModelSpec, PreprocessingSpec};
use models::{Anchors, Matcher, Placement, Preprocessed, RgbView, preprocess, preprocess_bytes};
use ndarray::{Array3, Array4, Axis, LinalgScalar, s};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Batch, BatchImages, BatchRequest};
use crate::augmentation::{AugmentationConfig, RandomStreams, Sample};
use crate::cache::Cache;
use crate::config::TrainConfig;
use crate::targets::{Normalizer, Object, Targets};

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
    /// The recipe that a configuration has for training on a data set, without a cache. `spec` has the classes.
    pub(crate) fn new(config: &TrainConfig, dataset: Dataset, spec: ModelSpec) -> Self {
        Self {
            dataset,
            spec,
            matcher: config.matching.clone(),
            normalizer: config.loss.normalizer,
            augmentation: config.augmentation.clone(),
            cache: Arc::default(),
        }
    }

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

    /// The batch that `request` names.
    pub(super) fn prepare(&self, request: &BatchRequest, augmentation: &AugmentationConfig) -> anyhow::Result<Batch> {
        if self.spec.preprocessing.round_pixels {
            let bytes = |view: RgbView, spec: &PreprocessingSpec| {
                let Ok(pixels_and_placement) = preprocess_bytes(view, spec);
                pixels_and_placement
            };
            self.batch(request, augmentation, bytes, |images, [height, width]| {
                BatchImages::Bytes(stack(images, [height, width, 3]))
            })
        } else {
            self.batch(request, augmentation, normalized, |images, [height, width]| {
                BatchImages::Normalized(stack(images, [3, height, width]))
            })
        }
    }

    /// A batch of images that `preprocess` resizes, and `stack` joins to inputs of this height and width.
    fn batch<T>(
        &self,
        request: &BatchRequest,
        augmentation: &AugmentationConfig,
        preprocess: impl Fn(RgbView, &PreprocessingSpec) -> (Array3<T>, Placement),
        stack: impl FnOnce(&[Array3<T>], [usize; 2]) -> BatchImages,
    ) -> anyhow::Result<Batch> {
        let first = request.indices.first().copied().unwrap_or_default();
        let preprocessing =
            augmentation.scale.jitter(&self.spec.preprocessing, &RandomStreams::new(request.seed, first));
        let (mut images, mut placements, mut objects) = (Vec::new(), Vec::new(), Vec::new());
        for (position, &index) in request.indices.iter().enumerate() {
            let seed = request.seed_of(position);
            let (image, placement, of_image) = self.image(index, seed, augmentation, &preprocessing, &preprocess)?;
            images.push(image);
            placements.push(placement);
            objects.push(of_image);
        }
        let max = |side: fn(&Placement) -> u32| placements.iter().map(side).max().unwrap_or(0) as usize;
        let (height, width) = (max(|placement| placement.padded_height), max(|placement| placement.padded_width));
        let images = stack(&images, [height, width]);
        let anchors = Anchors::new(&self.spec.anchors, height, width);
        let targets = Targets::new(&objects, &anchors, &self.matcher, &self.spec.box_coder, self.normalizer);
        Ok(Batch::new(images, targets, placements, request.indices.clone()))
    }

    /// The network input of an image in a batch of one, and its objects, in pixels of the padded input.
    pub(crate) fn input(&self, index: usize, seed: u64) -> anyhow::Result<(Preprocessed, Vec<Object>)> {
        let preprocessing = self.augmentation.scale.jitter(&self.spec.preprocessing, &RandomStreams::new(seed, index));
        let (image, placement, objects) = self.image(index, seed, &self.augmentation, &preprocessing, normalized)?;
        let [height, width] = [placement.padded_height, placement.padded_width].map(|side| side as usize);
        let pixels = stack(&[image], [3, height, width]).remove_axis(Axis(0));
        Ok((Preprocessed { pixels, placement }, objects))
    }

    /// An augmented image that `preprocess` resizes, with its placement in the network's input, and its objects, in pixels
    /// of the padded input. The image may be padded to less than its placement says.
    fn image<T>(
        &self,
        index: usize,
        seed: u64,
        augmentation: &AugmentationConfig,
        preprocessing: &PreprocessingSpec,
        preprocess: impl Fn(RgbView, &PreprocessingSpec) -> (Array3<T>, Placement),
    ) -> anyhow::Result<(Array3<T>, Placement, Vec<Object>)> {
        let streams = RandomStreams::new(seed, index);
        let load_random = |random: &mut ChaCha8Rng| self.sample(random.random_range(0..self.dataset.images().len()));
        let sample = augmentation.apply(self.sample(index)?, &streams, load_random)?;
        let size = preprocessing.place(sample.pixels.width(), sample.pixels.height());
        let (sample, preprocessing) = augmentation.large_scale_jitter.apply(sample, preprocessing, &streams);
        let Sample { pixels, mut objects } = sample;
        let view = RgbView::new(pixels.width(), pixels.height(), pixels.as_raw())?;
        let (image, placement) = preprocess(view, &preprocessing);
        for object in &mut objects {
            object.bounding_box = placement.to_input(&object.bounding_box);
        }
        let placement = Placement {
            padded_width: placement.padded_width.max(size.padded_width),
            padded_height: placement.padded_height.max(size.padded_height),
            ..placement
        };
        Ok((image, placement, objects))
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

/// The normalized pixels of an image, `[3, height, width]`, and its placement.
fn normalized(view: RgbView, spec: &PreprocessingSpec) -> (Array3<f32>, Placement) {
    let Preprocessed { pixels, placement } = preprocess(view, spec);
    (pixels, placement)
}

/// Images in a new first axis, padded with zeros to this shape.
fn stack<T: LinalgScalar>(images: &[Array3<T>], [first, second, third]: [usize; 3]) -> Array4<T> {
    let mut stacked = Array4::zeros((images.len(), first, second, third));
    for (mut to, image) in stacked.outer_iter_mut().zip(images) {
        let (_, second, third) = image.dim();
        // Rows of bytes, three per pixel, are copied as a whole.
        for (mut to, from) in to.outer_iter_mut().zip(image.outer_iter()) {
            to.slice_mut(s![..second, ..third]).assign(&from);
        }
    }
    stacked
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use models::dataset::Image;
    use models::spec::Class;
    use tch::Device;
    use tempfile::TempDir;

    use super::*;
    use crate::augmentation::testing::{COLORS, assert_boxes_enclose_rectangles, colored_rectangles};
    use crate::cache::{CacheConfig, CacheKind};
    use crate::loader::{Loader, Sampler};

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
            let sampler = Sampler::new(vec![0; IMAGES], vec![1.0; IMAGES], 0);
            let requests = (0..3).flat_map(|epoch| sampler.batches(epoch, batch_size));
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
    fn bytes_are_normalized_to_the_same_bits_on_the_device() {
        for augmentation in ["{}", "{scale: {probability: 0.8}, large_scale_jitter: {probability: 0.7}}"] {
            let Fixture { mut recipe, folder: _folder } = Fixture::new(augmentation);
            let PreprocessingSpec { mean, std, .. } = PreprocessingSpec::default();
            recipe.spec.preprocessing =
                PreprocessingSpec { mean, std, round_pixels: true, ..recipe.spec.preprocessing };
            let spec = &recipe.spec.preprocessing;
            let request = BatchRequest { indices: (0..IMAGES).collect(), seed: 3 };
            let bytes = recipe.prepare(&request, &recipe.augmentation).unwrap();
            let floats = recipe
                .batch(&request, &recipe.augmentation, normalized, |images, [height, width]| {
                    BatchImages::Normalized(stack(images, [3, height, width]))
                })
                .unwrap();
            assert!(matches!(bytes.images, BatchImages::Bytes(_)));
            assert_eq!((&bytes.targets, &bytes.placements), (&floats.targets, &floats.placements));
            let [height, width] = bytes.images.size();
            let is_padded = |p: &Placement| p.resized_height < height as u32 && p.resized_width < width as u32;
            assert!(bytes.placements.iter().any(is_padded));
            for channels_last in [false, true] {
                let [found, expected] =
                    [&bytes, &floats].map(|batch| batch.images_on(Device::Cpu, channels_last, spec));
                assert_eq!((found.size(), found.stride()), (expected.size(), expected.stride()));
                let bits = |images: tch::Tensor| -> Vec<u32> {
                    Vec::<f32>::try_from(images.contiguous().view(-1)).unwrap().into_iter().map(f32::to_bits).collect()
                };
                assert!(bits(found) == bits(expected), "{augmentation}, {channels_last}");
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
            let [height, width] = batch.images.size();
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
            assert_eq!(found.images.size(), expected.images.size());
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
