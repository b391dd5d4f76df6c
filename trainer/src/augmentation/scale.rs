//! Scale jitter (multi-scale training).

use models::spec::PreprocessingSpec;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random_streams::{Augmentation, RandomStreams};

/// Scale jitter. A factor multiplies the sides that preprocessing resizes to, including a fixed size, so that images are
/// resized only once. All images of a batch have the same factor, so that they need no extra padding. A batch needs up to
/// `max` squared times the memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleConfig {
    /// Probability that a batch is scaled.
    pub probability: f64,
    /// Minimum factor. The factor is log-uniform: halving is as likely as doubling.
    pub min: f64,
    /// Maximum factor.
    pub max: f64,
}

impl Default for ScaleConfig {
    fn default() -> Self {
        Self { probability: 0.0, min: 0.8, max: 1.25 }
    }
}

impl ScaleConfig {
    /// Lower bound of `min`.
    pub(super) const MIN_FACTOR: f64 = 0.1;
    /// Upper bound of `max`, which takes sixteen times the memory.
    pub(super) const MAX_FACTOR: f64 = 4.0;

    /// The preprocessing of a batch: `spec` with a random factor from the streams of its first image.
    pub fn jitter(&self, spec: &PreprocessingSpec, first: &RandomStreams) -> PreprocessingSpec {
        let Some(mut random) = first.chance(Augmentation::Scale, self.probability) else { return spec.clone() };
        let factor = self.min * (self.max / self.min).powf(random.random());
        let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
        PreprocessingSpec {
            shorter_side: side(spec.shorter_side),
            longer_side: side(spec.longer_side),
            fixed_size: spec.fixed_size.map(|sides| sides.map(side)),
            ..spec.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(u32, u32); 5] = [(640, 480), (480, 640), (1, 1), (4000, 2), (301, 300)];

    fn scale(min: f64, max: f64) -> ScaleConfig {
        ScaleConfig { probability: 1.0, min, max }
    }

    #[test]
    fn only_the_size_changes_within_its_limits() {
        let spec = PreprocessingSpec::default();
        let sides: Vec<_> = (0..200)
            .map(|image| {
                let jittered = scale(0.5, 2.0).jitter(&spec, &RandomStreams::new(0, image));
                let (shorter_side, longer_side) = (spec.shorter_side, spec.longer_side);
                assert_eq!(PreprocessingSpec { shorter_side, longer_side, ..jittered.clone() }, spec);
                let factors = [(jittered.shorter_side, shorter_side), (jittered.longer_side, longer_side)]
                    .map(|(jittered, side)| f64::from(jittered) / f64::from(side));
                assert!((factors[0] - factors[1]).abs() < 2e-3, "{factors:?}");
                jittered.shorter_side
            })
            .collect();
        assert!(sides.iter().all(|side| (304..=1216).contains(side)), "{sides:?}");
        let smaller = sides.iter().filter(|side| **side < spec.shorter_side).count();
        assert!((70..130).contains(&smaller), "{smaller} of 200 are smaller");
    }

    #[test]
    fn no_image_is_scaled_by_more_than_the_maximum_factor() {
        let spec = PreprocessingSpec::default();
        for image in 0..100 {
            let jittered = scale(0.5, 1.25).jitter(&spec, &RandomStreams::new(0, image));
            for (width, height) in SIZES {
                let placement = jittered.place(width, height);
                let longer = placement.resized_width.max(placement.resized_height);
                let shorter = placement.resized_width.min(placement.resized_height);
                assert!(longer <= 1280 && shorter <= 760, "{placement:?}");
                assert_eq!((placement.padded_width % 32, placement.padded_height % 32), (0, 0));
            }
        }
    }

    #[test]
    fn a_fixed_size_is_scaled_too() {
        let spec = PreprocessingSpec { fixed_size: Some([800, 400]), ..Default::default() };
        let mut heights: Vec<_> = (0..20)
            .map(|image| {
                let jittered = scale(0.5, 2.0).jitter(&spec, &RandomStreams::new(0, image));
                let [height, width] = jittered.fixed_size.unwrap();
                assert!((400..=1600).contains(&height) && height.abs_diff(2 * width) <= 1, "{height}x{width}");
                let placement = jittered.place(640, 480);
                assert_eq!((placement.resized_height, placement.resized_width), (height, width));
                height
            })
            .collect();
        heights.dedup();
        assert!(heights.len() > 10, "{heights:?}");
        let spec = PreprocessingSpec::default();
        assert_eq!(scale(0.5, 2.0).jitter(&spec, &RandomStreams::new(0, 0)).fixed_size, None);
    }

    #[test]
    fn probability_zero_changes_nothing() {
        let spec = PreprocessingSpec::default();
        for image in 0..20 {
            assert_eq!(ScaleConfig::default().jitter(&spec, &RandomStreams::new(0, image)), spec);
        }
    }

    #[test]
    fn scaled_sides_have_at_least_one_pixel() {
        let spec = PreprocessingSpec { shorter_side: 1, longer_side: 2, ..Default::default() };
        assert_eq!(scale(0.1, 0.1).jitter(&spec, &RandomStreams::new(0, 0)).shorter_side, 1);
    }
}
