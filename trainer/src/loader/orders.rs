//! Orders: which images make a batch.

use std::collections::BTreeMap;

use models::dataset::Image;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One batch to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Which images: places in the data set.
    pub indices: Vec<usize>,
    /// Start of the random numbers; each image has its own, whatever thread it meets.
    pub seed: u64,
}

/// The group of every image by its aspect ratio. Ratios of one group differ by up to a fifth; the usual ones, from 1:1 over
/// 4:3 and 3:2 to 16:9 and upright as well as lying, are not near the border of two groups.
pub fn aspect_groups(images: &[Image]) -> Vec<i32> {
    /// Groups until the ratio has doubled.
    const PER_OCTAVE: f64 = 4.0;
    let group = |image: &Image| {
        let ratio = f64::from(image.width) / f64::from(image.height);
        (PER_OCTAVE * ratio.log2()).round() as i32
    };
    images.iter().map(group).collect()
}

/// The batches of an epoch: every image once, in an order that depends on seed and epoch alone.
///
/// `groups` has the group of every image. Images are shuffled and wait for others of their group until they are a batch.
/// Those for whom there are not enough come last, next to those of neighboring groups. So the number of batches is that of
/// full ones and one for the rest, whatever the groups, and with one group the order is the shuffled one.
pub fn orders(groups: &[i32], batch_size: usize, seed: u64, epoch: u32) -> Vec<Order> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Far from the streams of the images.
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
    let left: Vec<_> = waiting.into_values().flatten().collect();
    batches.extend(left.chunks(batch_size).map(<[_]>::to_vec));
    batches.into_iter().map(|indices| Order { indices, seed }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(sizes: &[(u32, u32)]) -> Vec<Image> {
        let image = |(id, &(width, height))| Image { id, file_name: String::new(), width, height };
        (0..).zip(sizes).map(image).collect()
    }

    /// Sizes as they come from phones and cameras.
    fn mixed(count: usize) -> Vec<Image> {
        let sizes = [(640, 480), (480, 640), (640, 427), (640, 360), (500, 500), (427, 640), (640, 478), (375, 500)];
        images(&sizes.into_iter().cycle().take(count).collect::<Vec<_>>())
    }

    fn indices_of(orders: &[Order]) -> Vec<usize> {
        orders.iter().flat_map(|order| order.indices.clone()).collect()
    }

    #[test]
    fn an_epoch_has_every_image_once_and_no_epoch_is_like_another() {
        for images in [mixed(1), mixed(10), mixed(203)] {
            for groups in [vec![0; images.len()], aspect_groups(&images)] {
                let epoch = |seed, epoch| orders(&groups, 4, seed, epoch);
                let lengths: Vec<_> = epoch(0, 0).iter().map(|order| order.indices.len()).collect();
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
        assert_eq!(orders(&[], 4, 0, 0), []);
    }

    #[test]
    fn images_of_one_ratio_come_as_shuffled() {
        let groups = aspect_groups(&images(&[(640, 480); 50]));
        let mut shuffled: Vec<_> = (0..50).collect();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        random.set_stream(u64::MAX - 5);
        shuffled.shuffle(&mut random);
        assert_eq!(indices_of(&orders(&groups, 8, 3, 5)), shuffled);
    }

    #[test]
    fn batches_of_like_images_need_less_padding() {
        let (images, spec) = (mixed(1000), models::spec::PreprocessingSpec::default());
        // Pixels of all batches per pixel of images.
        let padded = |groups: &[i32]| {
            let (mut batches, mut own) = (0, 0);
            for order in orders(groups, 8, 0, 0) {
                let places: Vec<_> =
                    order.indices.iter().map(|&p| spec.place(images[p].width, images[p].height)).collect();
                let width = places.iter().map(|place| place.padded_width).max().unwrap();
                let height = places.iter().map(|place| place.padded_height).max().unwrap();
                batches += places.len() as u32 * width * height;
                own += places.iter().map(|place| place.padded_width * place.padded_height).sum::<u32>();
            }
            f64::from(batches) / f64::from(own)
        };
        let (grouped, plain) = (padded(&aspect_groups(&images)), padded(&vec![0; images.len()]));
        assert!(grouped < 1.1 && plain > 1.6, "{grouped} when grouped, {plain} when not");
    }

    #[test]
    fn usual_ratios_are_away_from_the_borders_of_groups() {
        for (width, height) in [(1, 1), (4, 3), (3, 2), (16, 9), (3, 4), (2, 3), (9, 16)] {
            let (width, height) = (width * 300, height * 300);
            let alike = images(&[(width, height), (width + 5, height), (width, height + 5), (width - 5, height)]);
            let groups = aspect_groups(&alike);
            assert!(groups.iter().all(|group| *group == groups[0]), "{width}x{height}: {groups:?}");
        }
        let apart = aspect_groups(&images(&[(640, 480), (480, 640), (500, 500), (640, 360), (4000, 2), (1, 1)]));
        assert_eq!(apart, [2, -2, 0, 3, 44, 0]);
    }
}
