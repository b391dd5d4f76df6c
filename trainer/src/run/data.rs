//! The data of a run.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::ensure;
use models::ModelSpec;
use models::dataset::{Annotation, Dataset, Image};

use crate::augmentation::AugmentationConfig;
use crate::cache::Cache;
use crate::config::TrainConfig;
use crate::loader::{Loader, Recipe, Sampler, aspect_groups};
use crate::progress::warn;
use crate::splits::Splits;

/// The data of a run.
pub(crate) struct RunData {
    pub(crate) train: Loader,
    pub(crate) validation: Loader,
    /// Chooses the training images of every epoch.
    pub(crate) sampler: Sampler,
    /// Fingerprints of the image files of both splits if all of them can be read.
    pub(crate) checked_images: [Option<u64>; 2],
}

impl RunData {
    /// Opens the data, with threads for each split. Image files whose fingerprint is among `checked` are not opened again.
    ///
    /// # Errors
    /// When the data cannot be read, or training must not start with it.
    pub(crate) fn open(config: &TrainConfig, checked: &HashSet<u64>) -> anyhow::Result<Self> {
        let Splits { train, validation, refusals, warnings } = Splits::read(config, checked)?;
        ensure!(refusals.is_empty(), "{}", refusals.join("\nerror: "));
        let problems = train.problems.iter().chain(&validation.problems);
        problems.chain(&warnings).for_each(|warning| warn(format_args!("{warning}")));
        let spec = config.spec_of(&train.dataset);
        let cache = Arc::new(Cache::new(&config.data.cache));
        let recipe = |dataset| Recipe { cache: cache.clone(), ..Recipe::new(config, dataset, spec.clone()) };
        let validating = |dataset| Recipe { augmentation: AugmentationConfig::none(), ..recipe(dataset) };
        let images = train.dataset.images();
        let groups = if config.run.aspect_ratio_grouping { aspect_groups(images) } else { vec![0; images.len()] };
        Ok(Self {
            sampler: Sampler::new(groups, train.repeats, config.run.seed),
            checked_images: [train.fingerprint, validation.fingerprint],
            train: Loader::new(recipe(train.dataset), config.run.workers)?,
            validation: Loader::new(validating(validation.dataset), config.run.workers)?,
        })
    }

    /// Prepares batches for this device instead of the CPU.
    pub(crate) fn for_device(self, device: tch::Device) -> Self {
        Self { train: self.train.for_device(device), validation: self.validation.for_device(device), ..self }
    }

    /// The spec of the network: that of the configuration, with the classes of the data.
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.train.recipe().spec
    }

    /// Checksums of the training and the validation data.
    pub(crate) fn checksums(&self) -> [u32; 2] {
        let Self { train, validation, sampler, .. } = self;
        [checksum(&train.recipe().dataset, sampler.repeats()), checksum(&validation.recipe().dataset, &[])]
    }
}

/// A checksum of the data set's images, boxes and classes, and of how often each image is in an epoch; independent of its
/// folder. It is saved, so the bytes that it is computed from must stay the same.
fn checksum(dataset: &Dataset, repeats: &[f64]) -> u32 {
    let mut sum = 0;
    let mut add = |bytes: &[u8]| sum = crc32c::crc32c_append(sum, bytes);
    // A length before each list and text, so that different ones cannot be confused.
    add(&(dataset.images().len() as u64).to_le_bytes());
    for Image { id, file_name, width, height } in dataset.images() {
        add(&id.to_le_bytes());
        add(&(file_name.len() as u64).to_le_bytes());
        add(file_name.as_bytes());
        add(&width.to_le_bytes());
        add(&height.to_le_bytes());
    }
    add(&(dataset.annotations().len() as u64).to_le_bytes());
    for Annotation { id, image, class_index, rectangle, area, crowd, difficult } in dataset.annotations() {
        add(&id.to_le_bytes());
        [*image, *class_index].iter().for_each(|index| add(&(*index as u64).to_le_bytes()));
        let numbers = [rectangle.x, rectangle.y, rectangle.width, rectangle.height, *area];
        numbers.iter().for_each(|number| add(&number.to_le_bytes()));
        add(&[u8::from(*crowd), u8::from(*difficult)]);
    }
    add(&(dataset.classes().len() as u64).to_le_bytes());
    for class in dataset.classes() {
        add(&class.id.to_le_bytes());
        add(&(class.name.len() as u64).to_le_bytes());
        add(class.name.as_bytes());
    }
    repeats.iter().for_each(|repeats| add(&repeats.to_le_bytes()));
    sum
}

#[cfg(test)]
mod tests {
    use models::dataset::Rectangle;
    use models::spec::Class;

    use super::*;

    #[test]
    fn checksum_depends_on_images_boxes_classes_and_repeats_only() {
        let image = Image { id: 1, file_name: "a.png".to_owned(), width: 8, height: 8 };
        let rectangle = Rectangle { x: 0.5, y: 1.0, width: 2.0, height: 3.0 };
        let annotation =
            Annotation { id: 1, image: 0, class_index: 0, rectangle, area: 6.0, crowd: false, difficult: false };
        let class = Class { id: 1, name: "cell".to_owned() };
        let dataset = |folder: &str, image: &Image, annotation: &Annotation, class: &Class| {
            let (images, annotations) = (vec![image.clone()], vec![annotation.clone()]);
            Dataset::new(folder, images, annotations, vec![class.clone()]).unwrap()
        };
        let repeated = checksum(&dataset("here", &image, &annotation, &class), &[2.0]);
        let sum = |folder, image, annotation, class| checksum(&dataset(folder, image, annotation, class), &[1.0]);
        let expected = sum("here", &image, &annotation, &class);
        assert_eq!(sum("there", &image, &annotation, &class), expected);
        let moved = Annotation { rectangle: Rectangle { x: 0.25, ..rectangle }, ..annotation.clone() };
        let difficult = Annotation { difficult: true, ..annotation.clone() };
        let renamed = Class { id: 1, name: "disk".to_owned() };
        let wider = Image { width: 9, ..image.clone() };
        for other in [
            sum("here", &wider, &annotation, &class),
            sum("here", &image, &moved, &class),
            sum("here", &image, &difficult, &class),
            sum("here", &image, &annotation, &renamed),
            repeated,
        ] {
            assert_ne!(other, expected);
        }
    }

    /// Saved runs contain this checksum.
    #[test]
    fn checksum_stays_the_same() {
        let image = Image { id: 1, file_name: "a.png".to_owned(), width: 8, height: 8 };
        let class = Class { id: 1, name: "cell".to_owned() };
        let dataset = Dataset::new("here", vec![image], Vec::new(), vec![class]).unwrap();
        // CRC-32C in Python of struct.pack("<QqQ5sIIQQqQ4sd", 1, 1, 5, b"a.png", 8, 8, 0, 1, 1, 4, b"cell", 1.0)
        assert_eq!(checksum(&dataset, &[1.0]), 0x5fde_bc03);
    }
}
