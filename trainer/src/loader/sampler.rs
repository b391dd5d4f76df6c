//! Sampler: chooses the images of each batch.

use std::collections::{BTreeMap, BTreeSet};

use models::dataset::{Dataset, Image};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A batch to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRequest {
    /// Indices of the images in the data set.
    pub indices: Vec<usize>,
    /// Seed of the augmentation. Each image has its own random numbers, which do not depend on the worker thread.
    pub seed: u64,
}

impl BatchRequest {
    /// The seed of the image at a position of the batch. The same image has others at other positions, and in other batches of
    /// the epoch.
    pub(super) fn seed_of(&self, position: usize) -> u64 {
        let (earlier, image) = (&self.indices[..position], self.indices[position]);
        let copies = earlier.iter().filter(|other| **other == image).count() as u64;
        // The seeds of consecutive batches are consecutive.
        self.seed.wrapping_add(copies << 32)
    }
}

/// Groups the images by aspect ratio; returns the group of each image. Ratios in a group differ by up to a fifth. Common
/// ratios (1:1, 4:3, 3:2 and 16:9, landscape and portrait) are not near the border of two groups.
pub fn aspect_groups(images: &[Image]) -> Vec<i32> {
    /// Number of groups per doubling of the ratio.
    const GROUPS_PER_OCTAVE: f64 = 4.0;
    let group = |image: &Image| {
        let ratio = f64::from(image.width) / f64::from(image.height);
        (GROUPS_PER_OCTAVE * ratio.log2()).round() as i32
    };
    images.iter().map(group).collect()
}

/// Chooses the images of every epoch.
#[derive(Clone, Debug)]
pub struct Sampler {
    groups: Vec<i32>,
    repeats: Vec<f64>,
    seed: u64,
}

impl Sampler {
    /// `groups` has the group of each image, `repeats` how often it is in an epoch, on average.
    pub fn new(groups: Vec<i32>, repeats: Vec<f64>, seed: u64) -> Self {
        debug_assert_eq!(groups.len(), repeats.len());
        Self { groups, repeats, seed }
    }

    /// Number of images in every epoch: the sum of all repeats, rounded.
    pub fn images_per_epoch(&self) -> usize {
        images_per_epoch(&self.repeats)
    }

    /// How often each image is in an epoch, on average.
    pub fn repeats(&self) -> &[f64] {
        &self.repeats
    }

    /// The batches of an epoch, of `batch_size` images; they depend only on the seed and `epoch`.
    ///
    /// Images are shuffled, then collected per group into full batches. Images left over from all groups follow, sorted by
    /// group, in batches of their own. Only the last batch may have fewer images than the others. With a single group, the order
    /// is that of the shuffle.
    pub fn batches(&self, epoch: u32, batch_size: usize) -> Vec<BatchRequest> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        // Images use the first streams, epochs the last.
        random.set_stream(u64::MAX - u64::from(epoch));
        let mut images = self.draw(&mut random);
        images.shuffle(&mut random);
        let seed: u64 = random.random();

        let mut batches = Vec::new();
        let mut waiting: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for image in images {
            let group = waiting.entry(self.groups[image]).or_default();
            group.push(image);
            if group.len() == batch_size {
                batches.push(std::mem::take(group));
            }
        }
        let leftover: Vec<_> = waiting.into_values().flatten().collect();
        batches.extend(leftover.chunks(batch_size).map(<[_]>::to_vec));
        // A seed per batch, so that repeated images are augmented differently.
        (0..).zip(batches).map(|(batch, indices)| BatchRequest { indices, seed: seed.wrapping_add(batch) }).collect()
    }

    /// The images of an epoch. Each is drawn as often as its repeat, rounded up or down at random. Detectron2 rounds each on its
    /// own; here, the sum is always the same: images are laid side by side on a line, each as long as its repeat, in random
    /// order, and drawn at equal distances.
    fn draw(&self, random: &mut ChaCha8Rng) -> Vec<usize> {
        let mut images: Vec<_> = (0..self.repeats.len()).collect();
        if self.repeats.iter().all(|repeat| *repeat == 1.0) {
            return images;
        }
        images.shuffle(random);
        let count = self.images_per_epoch();
        let distance = images.iter().map(|image| self.repeats[*image]).sum::<f64>() / count.max(1) as f64;
        // Of 24 bits, so that adding a whole number does not round it up to the next one.
        let first = distance * f64::from(random.random::<f32>());
        let mut drawn = Vec::with_capacity(count);
        let mut end = 0.0;
        for image in images {
            end += self.repeats[image];
            while drawn.len() < count && first + distance * (drawn.len() as f64) < end {
                drawn.push(image);
            }
        }
        drawn
    }
}

/// Number of images in every epoch.
pub(crate) fn images_per_epoch(repeats: &[f64]) -> usize {
    repeats.iter().sum::<f64>().round() as usize
}

/// How often each image is repeated because of its rarest class: the repeat factors of LVIS. A class that is in a fraction `f`
/// of the images has the factor `sqrt(threshold / f)`, at least 1, and an image the highest factor of its classes. Crowd regions
/// do not count. <https://arxiv.org/abs/1908.03195>, section B.2
pub fn repeat_factors(dataset: &Dataset, threshold: f64) -> Vec<f64> {
    let images = dataset.images().len();
    let classes_of = |image| {
        let objects = dataset.annotations_of(image).iter().filter(|annotation| !annotation.crowd);
        objects.map(|object| object.class_index).collect::<BTreeSet<_>>()
    };
    let mut images_of = vec![0usize; dataset.classes().len()];
    for class in (0..images).flat_map(classes_of) {
        images_of[class] += 1;
    }
    let factor = |class: usize| (threshold * images as f64 / images_of[class] as f64).sqrt();
    (0..images).map(|image| classes_of(image).into_iter().map(factor).fold(1.0, f64::max)).collect()
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Rectangle};
    use models::spec::Class;

    use super::*;

    fn images(sizes: &[(u32, u32)]) -> Vec<Image> {
        let image = |(id, &(width, height))| Image { id, file_name: String::new(), width, height };
        (0..).zip(sizes).map(image).collect()
    }

    /// Images in common sizes.
    fn mixed(count: usize) -> Vec<Image> {
        let sizes = [(640, 480), (480, 640), (640, 427), (640, 360), (500, 500), (427, 640), (640, 478), (375, 500)];
        images(&sizes.into_iter().cycle().take(count).collect::<Vec<_>>())
    }

    /// Every image once.
    fn sampler(groups: &[i32], seed: u64) -> Sampler {
        Sampler::new(groups.to_vec(), vec![1.0; groups.len()], seed)
    }

    /// How often each image is in an epoch.
    fn counts(repeats: &[f64], seed: u64, epoch: u32) -> Vec<usize> {
        let sampler = Sampler::new(vec![0; repeats.len()], repeats.to_vec(), seed);
        let mut counts = vec![0; repeats.len()];
        let indices = indices_of(&sampler.batches(epoch, 4));
        assert_eq!(indices.len(), sampler.images_per_epoch());
        indices.into_iter().for_each(|image| counts[image] += 1);
        counts
    }

    fn indices_of(requests: &[BatchRequest]) -> Vec<usize> {
        requests.iter().flat_map(|request| request.indices.clone()).collect()
    }

    #[test]
    fn every_epoch_has_every_image_once_in_a_different_order() {
        for images in [mixed(1), mixed(10), mixed(203)] {
            for groups in [vec![0; images.len()], aspect_groups(&images)] {
                let epoch = |seed, epoch| sampler(&groups, seed).batches(epoch, 4);
                let lengths: Vec<_> = epoch(0, 0).iter().map(|request| request.indices.len()).collect();
                let (last, full) = lengths.split_last().unwrap();
                assert!(full.iter().all(|length| *length == 4) && *last <= 4, "{lengths:?}");
                assert_eq!(lengths.len(), images.len().div_ceil(4));
                let mut seen = indices_of(&epoch(0, 0));
                seen.sort_unstable();
                assert_eq!(seen, (0..images.len()).collect::<Vec<_>>());
                assert_eq!(epoch(0, 0), epoch(0, 0));
                if images.len() > 1 {
                    assert_ne!(indices_of(&epoch(0, 0)), indices_of(&epoch(0, 1)));
                    assert_ne!(indices_of(&epoch(0, 0)), indices_of(&epoch(1, 0)));
                }
            }
        }
        assert_eq!(sampler(&[], 0).batches(0, 4), []);
    }

    #[test]
    fn images_of_a_single_aspect_ratio_keep_the_shuffled_order() {
        let groups = aspect_groups(&images(&[(640, 480); 50]));
        let mut shuffled: Vec<_> = (0..50).collect();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        random.set_stream(u64::MAX - 5);
        shuffled.shuffle(&mut random);
        assert_eq!(indices_of(&sampler(&groups, 3).batches(5, 8)), shuffled);
    }

    #[test]
    fn whole_repeats_are_exact_in_every_epoch() {
        for epoch in 0..50 {
            assert_eq!(counts(&[3.0, 1.0, 1.0, 2.0, 3.0], 7, epoch), [3, 1, 1, 2, 3]);
        }
    }

    #[test]
    fn fractional_repeats_are_rounded_at_random_and_all_epochs_have_the_same_length() {
        let repeats: Vec<_> = (0..40).map(|image| 1.0 + f64::from(image % 8) / 8.0 + f64::from(image / 30)).collect();
        const EPOCHS: u32 = 4000;
        let mut sums = vec![0; repeats.len()];
        for epoch in 0..EPOCHS {
            let counts = counts(&repeats, 1, epoch);
            for ((sum, count), repeat) in sums.iter_mut().zip(counts).zip(&repeats) {
                let count_f64 = count as f64;
                // The length is a whole number, so that repeats are scaled by up to 1 %.
                assert!(
                    (0.99 * repeat).floor() <= count_f64 && count_f64 <= (1.01 * repeat).ceil(),
                    "{count} of {repeat}"
                );
                *sum += count;
            }
        }
        let scale = images_per_epoch(&repeats) as f64 / repeats.iter().sum::<f64>();
        for (sum, repeat) in sums.iter().zip(&repeats) {
            let mean = f64::from(*sum as u32) / f64::from(EPOCHS);
            // Four standard deviations of a mean of coin tosses.
            assert!((mean - scale * repeat).abs() < 4.0 * 0.5 / f64::from(EPOCHS).sqrt(), "{mean} instead of {repeat}");
        }
        assert_eq!(counts(&repeats, 1, 3), counts(&repeats, 1, 3));
        assert_ne!(counts(&repeats, 1, 3), counts(&repeats, 1, 4));
        assert_ne!(counts(&repeats, 1, 3), counts(&repeats, 2, 3));
    }

    #[test]
    fn batches_have_different_seeds() {
        let seeds: BTreeSet<_> = sampler(&[0; 40], 0).batches(0, 4).iter().map(|request| request.seed).collect();
        assert_eq!(seeds.len(), 10);
    }

    #[test]
    fn repeated_images_have_different_seeds_in_all_batches() {
        let requests = Sampler::new(vec![0; 3], vec![20.0; 3], 0).batches(0, 8);
        let seeds = |request: &BatchRequest| {
            (0..request.indices.len()).map(|at| (request.indices[at], request.seed_of(at))).collect::<Vec<_>>()
        };
        let seeds: Vec<_> = requests.iter().flat_map(seeds).collect();
        assert_eq!(seeds.len(), 60);
        assert_eq!(seeds.iter().collect::<BTreeSet<_>>().len(), 60, "{seeds:?}");
    }

    #[test]
    fn images_of_rare_classes_are_repeated() {
        let object = |image, class_index, crowd| Annotation {
            id: 1,
            image,
            class_index,
            rectangle: Rectangle { x: 0.0, y: 0.0, width: 4.0, height: 4.0 },
            area: 16.0,
            crowd,
            difficult: false,
        };
        // In ten images: class 0 in all but the last, class 1 in one (twice), class 2 in two, class 3 as a crowd only.
        let mut annotations: Vec<_> = (0..9).map(|image| object(image, 0, false)).collect();
        annotations.extend([object(3, 1, false), object(3, 1, false), object(3, 2, false), object(4, 2, false)]);
        annotations.push(object(5, 3, true));
        annotations.sort_by_key(|annotation| annotation.image);
        let classes = (0..4).map(|id| Class { id, name: id.to_string() }).collect();
        let dataset = Dataset::new("", images(&[(8, 8); 10]), annotations, classes).unwrap();
        // Detectron2: RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset_dicts, 0.4)
        let factors = repeat_factors(&dataset, 0.4);
        let expected = [1.0, 1.0, 1.0, 2.0, 2f64.sqrt(), 1.0, 1.0, 1.0, 1.0, 1.0];
        assert!(factors.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{factors:?}");
        assert_eq!(repeat_factors(&dataset, 0.05), [1.0; 10]);
        assert_eq!(repeat_factors(&Dataset::default(), 0.5), [0.0; 0]);
    }

    #[test]
    fn grouping_by_aspect_ratio_reduces_padding() {
        let (images, spec) = (mixed(1000), models::spec::PreprocessingSpec::default());
        // Pixels of all batches, divided by the sum over images of the pixels of each alone.
        let padding_ratio = |groups: &[i32]| {
            let (mut batches, mut alone) = (0, 0);
            for request in sampler(groups, 0).batches(0, 8) {
                let placements: Vec<_> =
                    request.indices.iter().map(|&i| spec.place(images[i].width, images[i].height)).collect();
                let width = placements.iter().map(|placement| placement.padded_width).max().unwrap();
                let height = placements.iter().map(|placement| placement.padded_height).max().unwrap();
                batches += placements.len() as u32 * width * height;
                alone += placements.iter().map(|p| p.padded_width * p.padded_height).sum::<u32>();
            }
            f64::from(batches) / f64::from(alone)
        };
        let (grouped, ungrouped) = (padding_ratio(&aspect_groups(&images)), padding_ratio(&vec![0; images.len()]));
        assert!(grouped < 1.1 && ungrouped > 1.6, "{grouped} when grouped, {ungrouped} when not");
    }

    #[test]
    fn common_aspect_ratios_are_not_near_a_group_border() {
        for (width, height) in [(1, 1), (4, 3), (3, 2), (16, 9), (3, 4), (2, 3), (9, 16)] {
            let (width, height) = (width * 300, height * 300);
            let similar = images(&[(width, height), (width + 5, height), (width, height + 5), (width - 5, height)]);
            let groups = aspect_groups(&similar);
            assert!(groups.iter().all(|group| *group == groups[0]), "{width}x{height}: {groups:?}");
        }
        let different = aspect_groups(&images(&[(640, 480), (480, 640), (500, 500), (640, 360), (4000, 2), (1, 1)]));
        assert_eq!(different, [2, -2, 0, 3, 44, 0]);
    }
}
