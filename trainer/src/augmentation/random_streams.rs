//! Random numbers for the augmentation of one image in one epoch.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Independent random number streams, one per augmentation. They depend only on the seed and the image, not on the worker
/// thread. An augmentation does not affect the random numbers of another.
#[derive(Clone, Debug)]
pub struct RandomStreams(ChaCha8Rng);

/// The augmentations. Their order determines their streams: changing it changes the result of a seed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Augmentation {
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
    LargeScaleJitter,
}

impl RandomStreams {
    /// The streams of the image with index `image` in its data set.
    pub fn new(seed: u64, image: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(image as u64);
        Self(random)
    }

    /// With this probability, the generator for the parameters of an augmentation; `None` if it is not applied.
    pub(super) fn chance(&self, augmentation: Augmentation, probability: f64) -> Option<ChaCha8Rng> {
        /// Length of a stream in 32-bit words: more than any augmentation uses.
        const STREAM_WORDS: u128 = 1 << 32;
        let mut random = self.0.clone();
        random.set_word_pos(augmentation as u128 * STREAM_WORDS);
        random.random_bool(probability).then_some(random)
    }
}
