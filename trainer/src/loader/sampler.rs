//! Batch sampler: chooses the images of each batch.

use std::collections::BTreeMap;

use models::dataset::Image;
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

/// The batches of an epoch: every image once, in an order that depends only on `seed` and `epoch`.
///
/// `groups` has the group of each image. Images are shuffled, then collected per group into full batches. Images left over
/// from all groups follow, sorted by group, in batches of their own. Only the last batch may have fewer than `batch_size`
/// images. With a single group, the order is that of the shuffle.
pub fn batch_requests(groups: &[i32], batch_size: usize, seed: u64, epoch: u32) -> Vec<BatchRequest> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Images use the first streams, epochs the last.
    random.set_stream(u64::MAX - u64::from(epoch));
    let mut shuffled: Vec<_> = (0..groups.len()).collect();
    shuffled.shuffle(&mut random);
    let seed = random.random();

    let mut batches = Vec::new();
    let mut waiting: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for image in shuffled {
        let group = waiting.entry(groups[image]).or_default();
        group.push(image);
        if group.len() == batch_size {
            batches.push(std::mem::take(group));
        }
    }
    let leftover: Vec<_> = waiting.into_values().flatten().collect();
    batches.extend(leftover.chunks(batch_size).map(<[_]>::to_vec));
    batches.into_iter().map(|indices| BatchRequest { indices, seed }).collect()
}

#[cfg(test)]
mod tests {
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

    fn indices_of(requests: &[BatchRequest]) -> Vec<usize> {
        requests.iter().flat_map(|request| request.indices.clone()).collect()
    }

    #[test]
    fn every_epoch_has_every_image_once_in_a_different_order() {
        for images in [mixed(1), mixed(10), mixed(203)] {
            for groups in [vec![0; images.len()], aspect_groups(&images)] {
                let epoch = |seed, epoch| batch_requests(&groups, 4, seed, epoch);
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
        assert_eq!(batch_requests(&[], 4, 0, 0), []);
    }

    #[test]
    fn images_of_a_single_aspect_ratio_keep_the_shuffled_order() {
        let groups = aspect_groups(&images(&[(640, 480); 50]));
        let mut shuffled: Vec<_> = (0..50).collect();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        random.set_stream(u64::MAX - 5);
        shuffled.shuffle(&mut random);
        assert_eq!(indices_of(&batch_requests(&groups, 8, 3, 5)), shuffled);
    }

    #[test]
    fn grouping_by_aspect_ratio_reduces_padding() {
        let (images, spec) = (mixed(1000), models::spec::PreprocessingSpec::default());
        // Pixels of all batches, divided by the sum over images of the pixels of each alone.
        let padding_ratio = |groups: &[i32]| {
            let (mut batches, mut alone) = (0, 0);
            for request in batch_requests(groups, 8, 0, 0) {
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
