//! Speed of the data loader for each number of workers, cache and augmentation, and its memory over 1,000 batches. It
//! reads JPEG files of 640x480 in batches of 8 and resizes them to 320x240.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use models::Matcher;
use models::dataset::{Annotation, Dataset, Image};
use models::spec::{Class, NormKind};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use trainer::augmentation::AugmentationConfig;
use trainer::cache::{Cache, CacheConfig, CacheKind};
use trainer::loader::{Loader, Recipe, Sampler, aspect_groups};
use trainer::synth::{Size, draw};
use trainer::targets::Normalizer;

const IMAGES: usize = 128;
const BATCH: usize = 8;
/// Measured passes over the images, after a first one that is not measured.
const EPOCHS: u32 = 4;
/// Batches of the memory measurement.
const LONG_RUN: usize = 1000;

const AUGMENTATIONS: [(&str, &str); 12] = [
    ("none", "{horizontal_flip: 0}"),
    ("horizontal_flip", "{horizontal_flip: 1}"),
    ("vertical_flip", "{horizontal_flip: 0, vertical_flip: 1}"),
    ("rotation", "{horizontal_flip: 0, rotation: 1}"),
    ("scale", "{horizontal_flip: 0, scale: {probability: 1}}"),
    ("crop", "{horizontal_flip: 0, crop: {probability: 1}}"),
    ("brightness", "{horizontal_flip: 0, brightness: {probability: 1}}"),
    ("contrast", "{horizontal_flip: 0, contrast: {probability: 1}}"),
    ("saturation", "{horizontal_flip: 0, saturation: {probability: 1}}"),
    ("hue", "{horizontal_flip: 0, hue: {probability: 1}}"),
    ("mosaic", "{horizontal_flip: 0, mosaic: {probability: 1}}"),
    ("all", ALL),
];

/// All augmentations on every image.
const ALL: &str = "{horizontal_flip: 1, vertical_flip: 1, rotation: 1, scale: {probability: 1}, crop: {probability: 1},
    brightness: {probability: 1}, contrast: {probability: 1}, saturation: {probability: 1}, hue: {probability: 1},
    mosaic: {probability: 1}}";

fn main() -> anyhow::Result<()> {
    trainer::memory::restart_with_huge_pages();
    let data = Data::draw()?;
    for kind in [CacheKind::None, CacheKind::Memory] {
        for workers in [1, 2] {
            let plain = data.loader(AUGMENTATIONS[0].1, kind, workers)?.measure()?;
            let all = data.loader(ALL, kind, workers)?.measure()?;
            println!("cache {kind:?}, {workers} workers: {plain}; with all augmentations {all}");
        }
    }
    for (name, config) in AUGMENTATIONS {
        println!("{name}, memory cache: {}", data.loader(config, CacheKind::Memory, 1)?.measure()?);
    }
    data.loader(ALL, CacheKind::Memory, 2)?.long_run()
}

/// A data set in a temporary folder.
struct Data {
    _folder: tempfile::TempDir,
    dataset: Dataset,
}

impl Data {
    fn draw() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        let mut classes = BTreeSet::new();
        for index in 0..IMAGES {
            let mut random = ChaCha8Rng::seed_from_u64(index as u64);
            let scene = draw(Size { width: 640, height: 480 }, &mut random);
            let file_name = format!("{index}.jpg");
            runtime::image_file::write(&folder.path().join(&file_name), &scene.image)?;
            images.push(Image { id: index as i64, file_name, width: 640, height: 480 });
            for object in scene.objects {
                let class_index = object.kind as usize;
                classes.insert(class_index);
                let rectangle = models::dataset::Rectangle::from(object.bounding_box);
                let (id, area) = (annotations.len() as i64, rectangle.area());
                annotations.push(Annotation {
                    id,
                    image: index,
                    class_index,
                    rectangle,
                    area,
                    crowd: false,
                    difficult: false,
                });
            }
        }
        let last = classes.last().context("at least one image has an object")?;
        let classes = (0..=*last).map(|id| Class { id: id as i64, name: format!("class {id}") }).collect();
        let dataset = Dataset::new(folder.path(), images, annotations, classes)?;
        Ok(Self { _folder: folder, dataset })
    }

    fn loader(&self, augmentation: &str, kind: CacheKind, workers: usize) -> anyhow::Result<Running> {
        let mut spec = tests::spec("resnet18", NormKind::Batch, self.dataset.classes().len());
        (spec.preprocessing.shorter_side, spec.preprocessing.longer_side) = (320, 320);
        let augmentation: AugmentationConfig = serde_yaml::from_str(augmentation)?;
        let cache = CacheConfig { kind, max_gigabytes: 1.0 };
        let recipe = Recipe {
            dataset: self.dataset.clone(),
            spec,
            matcher: Matcher::default(),
            normalizer: Normalizer::default(),
            augmentation,
            cache: Arc::new(Cache::new(&cache)),
        };
        Ok(Running { loader: Loader::new(recipe, workers)?, epoch: 0 })
    }
}

/// A loader and its current epoch.
struct Running {
    loader: Loader,
    epoch: u32,
}

impl Running {
    fn measure(&mut self) -> anyhow::Result<Measure> {
        self.run(1, |_| Ok(()))?;
        let (start, cpu) = (Instant::now(), cpu_seconds()?);
        let images = self.run(EPOCHS, |_| Ok(()))? as f64;
        Ok(Measure {
            images_per_second: images / start.elapsed().as_secs_f64(),
            cpu_milliseconds: 1e3 * (cpu_seconds()? - cpu) / images,
        })
    }

    /// Prints the program's memory every 100 batches.
    fn long_run(&mut self) -> anyhow::Result<()> {
        let epochs = LONG_RUN / (IMAGES / BATCH);
        self.run(epochs as u32 + 1, |batch| {
            if batch % 100 == 0 && batch <= LONG_RUN {
                println!("after {batch} batches with all augmentations: {:.0} MB of memory", resident()? / 1e6);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Loads `epochs` epochs and returns the number of images. `on_batch` gets the number of batches so far.
    fn run(&mut self, epochs: u32, on_batch: impl Fn(usize) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        let groups = aspect_groups(self.loader.recipe().dataset.images());
        let repeats = vec![1.0; groups.len()];
        let sampler = Sampler::new(groups, repeats, 0);
        let (mut images, mut batches) = (0, 0);
        for _ in 0..epochs {
            for batch in self.loader.batches(sampler.batches(self.epoch, BATCH).into_iter()) {
                images += batch?.indices.len();
                batches += 1;
                on_batch(batches)?;
            }
            self.epoch += 1;
        }
        Ok(images)
    }
}

/// Speed of a loader. On a shared machine, CPU time is more reliable.
struct Measure {
    images_per_second: f64,
    /// Per image, summed over all threads.
    cpu_milliseconds: f64,
}

impl Display for Measure {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{:.0} images/s ({:.2} ms of a core each)", self.images_per_second, self.cpu_milliseconds)
    }
}

/// CPU time of all threads of this program, in seconds.
fn cpu_seconds() -> anyhow::Result<f64> {
    /// Seconds per clock tick in `/proc`, the same on all Linux systems.
    const TICK: f64 = 0.01;
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has no CPU times")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(TICK * ticks.iter().sum::<f64>())
}

/// Resident memory of this program, in bytes.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("/proc/self/status has no VmRSS")?;
    let kibibytes: f64 = line.split_whitespace().nth(1).context("VmRSS has no value")?.parse()?;
    Ok(1024.0 * kibibytes)
}
