//! Large-scale jitter. <https://arxiv.org/abs/2012.07177>, section 3.1

use models::spec::{BoxScale, PreprocessingSpec};
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Sample;
use super::crop::crop;
use super::random_streams::{Augmentation, RandomStreams};

/// Large-scale jitter: resizes each image by a random factor of its own, then crops it to the size that it would have had,
/// or pads it to that size on the right and below. So the size of the network's input does not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LargeScaleJitterConfig {
    /// Probability that an image is resized.
    pub probability: f64,
    /// Minimum factor. The factor is uniform, as in Detectron2's `ResizeScale`.
    pub min: f64,
    /// Maximum factor.
    pub max: f64,
    /// Objects with less than this fraction of their area inside are removed; their visible part becomes background.
    pub min_visibility: f64,
}

impl Default for LargeScaleJitterConfig {
    fn default() -> Self {
        Self { probability: 0.0, min: 0.1, max: 2.0, min_visibility: 0.3 }
    }
}

impl LargeScaleJitterConfig {
    /// Lower bound of `min`.
    pub(super) const MIN_FACTOR: f64 = 0.05;
    /// Upper bound of `max`.
    pub(super) const MAX_FACTOR: f64 = 20.0;

    /// The image and its preprocessing, which was `spec`. For a factor above 1 it is cropped before it is resized, so that
    /// only what stays is resized. At least one of its objects is kept, if it has any.
    pub fn apply(
        &self,
        sample: Sample,
        spec: &PreprocessingSpec,
        streams: &RandomStreams,
    ) -> (Sample, PreprocessingSpec) {
        let Some(mut random) = streams.chance(Augmentation::LargeScaleJitter, self.probability) else {
            return (sample, spec.clone());
        };
        let factor = random.random_range(self.min..=self.max);
        let (width, height) = sample.pixels.dimensions();
        let whole = spec.place(width, height);
        let side = |side: u32| ((f64::from(side) * factor.min(1.0)).round() as u32).max(1);
        let fixed_size = Some([side(whole.resized_height), side(whole.resized_width)]);
        let sample =
            if factor > 1.0 { crop(sample, self.min_visibility, &mut random, |_| factor.recip()) } else { sample };
        // A common scale would be that without the factor.
        (sample, PreprocessingSpec { fixed_size, box_scale: BoxScale::PerAxis, ..spec.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augmentation::testing::colored_rectangles;

    fn jitter(factor: f64) -> LargeScaleJitterConfig {
        LargeScaleJitterConfig { probability: 1.0, min: factor, max: factor, ..Default::default() }
    }

    #[test]
    fn factors_below_one_shrink_and_those_above_one_crop() {
        let spec = PreprocessingSpec { shorter_side: 200, longer_side: 300, ..Default::default() };
        for seed in 0..50 {
            let sample = colored_rectangles(seed);
            let (width, height) = sample.pixels.dimensions();
            let whole = spec.place(width, height);
            for factor in [0.05, 0.5, 1.0, 1.5, 2.0] {
                let (jittered, placed) = jitter(factor).apply(sample.clone(), &spec, &RandomStreams::new(seed, 0));
                let placed = placed.place(jittered.pixels.width(), jittered.pixels.height());
                let shrunk = |side: u32| (f64::from(side) * factor.min(1.0)).round() as u32;
                assert_eq!(placed.resized_width, shrunk(whole.resized_width), "{factor}");
                assert_eq!(placed.resized_height, shrunk(whole.resized_height), "{factor}");
                let cropped = (f64::from(width) / factor.max(1.0)).round() as u32;
                // A crop that would lose all objects is not made.
                assert!([cropped, width].contains(&jittered.pixels.width()), "{factor}");
                assert!(!jittered.objects.is_empty());
            }
        }
    }

    #[test]
    fn probability_zero_changes_nothing() {
        let (sample, spec) = (colored_rectangles(0), PreprocessingSpec::default());
        let unchanged = LargeScaleJitterConfig::default().apply(sample.clone(), &spec, &RandomStreams::new(0, 0));
        assert_eq!(unchanged, (sample, spec));
    }
}
