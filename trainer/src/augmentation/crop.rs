//! Random crops.

use std::sync::Arc;

use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Sample;
use super::window::Window;
use crate::targets::Object;

/// Random crops. A crop has the image's aspect ratio, so that the grouping of batches by aspect ratio still holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CropConfig {
    /// Probability of a crop.
    pub probability: f64,
    /// Sides of the smallest crop, as a fraction of the image's sides. The fraction is drawn uniformly from `min` to 1.
    pub min: f64,
    /// Objects with less than this fraction of their area inside are removed; their visible part becomes background.
    pub min_visibility: f64,
}

impl CropConfig {
    /// Crops the image randomly.
    pub(super) fn apply(&self, sample: Sample, random: &mut impl Rng) -> Sample {
        crop(sample, self.min_visibility, random, |random| random.random_range(self.min..=1.0))
    }
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { probability: 0.0, min: 0.5, min_visibility: 0.3 }
    }
}

/// Minimum side of a crop, in pixels. A shorter side of the image is kept whole.
const MIN_SIDE: u32 = 16;

/// Crops that are tried to keep an object. If none does, the image is not cropped.
const MAX_TRIES: usize = 10;

/// Crops the image at a random position, to the fraction of its sides that `fraction` draws. At least one of its objects is
/// kept, if it has any. Objects with less than `min_visibility` of their area inside are removed.
pub(super) fn crop<R: Rng>(
    sample: Sample,
    min_visibility: f64,
    random: &mut R,
    mut fraction: impl FnMut(&mut R) -> f64,
) -> Sample {
    let (width, height) = sample.pixels.dimensions();
    for _ in 0..MAX_TRIES {
        let fraction = fraction(random);
        let window = random_window(width, height, fraction, random);
        let cropped = |object: &Object| {
            let bounding_box = window.cut(&object.bounding_box, min_visibility)?;
            Some(Object { bounding_box, ..*object })
        };
        let objects: Vec<_> = sample.objects.iter().filter_map(cropped).collect();
        if !objects.is_empty() || sample.objects.is_empty() {
            return Sample { pixels: Arc::new(window.copy(&sample.pixels)), objects };
        }
    }
    sample
}

fn random_window(width: u32, height: u32, fraction: f64, random: &mut impl Rng) -> Window {
    let crop = |side: u32| ((f64::from(side) * fraction).round() as u32).clamp(MIN_SIDE.min(side), side);
    let (crop_width, crop_height) = (crop(width), crop(height));
    Window {
        x: random.random_range(0..=width - crop_width),
        y: random.random_range(0..=height - crop_height),
        width: crop_width,
        height: crop_height,
    }
}

#[cfg(test)]
mod tests {
    use models::BoundingBox;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::augmentation::testing::{color_extent, colored_rectangles, gray_image};

    fn config(min: f64, min_visibility: f64) -> CropConfig {
        CropConfig { probability: 1.0, min, min_visibility }
    }

    #[test]
    fn objects_below_the_minimum_visibility_are_removed() {
        let mut removed = 0;
        for seed in 0..200 {
            let before = colored_rectangles(seed);
            let after = config(0.3, 0.5).apply(before.clone(), &mut ChaCha8Rng::seed_from_u64(seed));
            for whole in &before.objects {
                let visible = color_extent(&after.pixels, whole.class_index)
                    .map_or(0.0, |extent| extent.area() / whole.bounding_box.area());
                let kept = after.objects.iter().any(|object| object.class_index == whole.class_index);
                assert_eq!(kept, visible >= 0.5, "seed {seed}, class {}: {visible} visible", whole.class_index);
                removed += usize::from(!kept);
            }
        }
        assert!(removed > 200, "only {removed} objects were removed");
    }

    #[test]
    fn crops_keep_at_least_one_object_or_the_whole_image() {
        for seed in 0..200 {
            let mut before = colored_rectangles(seed);
            before.objects.truncate(1);
            let after = config(0.1, 1.0).apply(before.clone(), &mut ChaCha8Rng::seed_from_u64(seed));
            assert_eq!(after.objects.len(), 1);
            let sides = |bounding_box: &BoundingBox| (bounding_box.width(), bounding_box.height());
            assert_eq!(sides(&after.objects[0].bounding_box), sides(&before.objects[0].bounding_box));
        }
        let mut covered = gray_image(400, 300);
        covered.objects = vec![Object { class_index: 0, bounding_box: BoundingBox::new(0.0, 0.0, 400.0, 300.0) }];
        let after = config(0.1, 1.0).apply(covered.clone(), &mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(after, covered);
    }

    #[test]
    fn fractions_are_drawn_uniformly_from_the_minimum_to_one() {
        let widths = (0..200).map(|seed| {
            let sample = gray_image(400, 300);
            config(0.25, 0.0).apply(sample, &mut ChaCha8Rng::seed_from_u64(seed)).pixels.width()
        });
        let mut widths: Vec<_> = widths.collect();
        widths.sort_unstable();
        assert!(widths[0] >= 100 && widths[10] < 140 && widths[190] > 360, "{widths:?}");
    }

    #[test]
    fn sides_have_the_configured_fraction_and_a_minimum() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..200 {
            let fraction = random.random_range(0.25..=1.0);
            let window = random_window(400, 300, fraction, &mut random);
            assert!(window.x + window.width <= 400 && window.y + window.height <= 300);
            assert!((window.width as f32 / window.height as f32 - 4.0 / 3.0).abs() < 0.02, "{window:?}");
            assert!((f64::from(window.width) / 400.0 - fraction).abs() < 0.002, "{window:?}");
        }
        for (width, height) in [(20, 300), (1, 1), (4000, 2)] {
            let window = random_window(width, height, 0.01, &mut random);
            assert!(window.width >= width.min(MIN_SIDE) && window.height >= height.min(MIN_SIDE), "{window:?}");
        }
    }

    #[test]
    fn images_without_objects_are_cropped_too() {
        let mut empty = colored_rectangles(0);
        empty.objects.clear();
        let after = config(0.3, 0.3).apply(empty.clone(), &mut ChaCha8Rng::seed_from_u64(0));
        assert!(after.pixels.width() < empty.pixels.width());
    }
}
