//! The random numbers of one image in one epoch.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Where the numbers come from: a seed and an image, so that they do not depend on the thread that meets the image. Every
/// variation has a sequence of its own, so that none disturbs another.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

/// What is drawn for. The order is part of what a seed means.
#[derive(Clone, Copy, Debug)]
pub(super) enum Variation {
    HorizontalFlip,
    VerticalFlip,
    Rotation,
    Scale,
    Crop,
    Brightness,
    Contrast,
    Saturation,
    Hue,
    Mosaic,
}

impl Draws {
    /// The numbers of the image at place `image` of its data set.
    pub fn new(seed: u64, image: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(image as u64);
        Self(random)
    }

    /// The numbers that say how a variation is, if it happens.
    pub(super) fn chance(&self, variation: Variation, probability: f64) -> Option<ChaCha8Rng> {
        /// Numbers of 32 bits from the beginning of one sequence to that of the next: more than any variation uses.
        const APART: u128 = 1 << 32;
        let mut random = self.0.clone();
        random.set_word_pos(variation as u128 * APART);
        random.random_bool(probability).then_some(random)
    }
}
