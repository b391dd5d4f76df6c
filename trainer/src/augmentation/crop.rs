//! Crops: a part of an image in its place.

use std::sync::Arc;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Sample;
use super::window::Window;
use crate::targets::Object;

/// How images are cropped. A crop has the image's aspect ratio, so that batches of like images stay so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropConfig {
    /// Probability of a crop.
    pub probability: f64,
    /// Sides of the smallest crop, as a fraction of the image's; every fraction from there to 1 is as likely.
    pub min: f64,
    /// An object stays one if at least this fraction of its area is inside. What is seen of the others becomes background.
    pub min_visibility: f64,
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { probability: 0.0, min: 0.5, min_visibility: 0.3 }
    }
}

/// Sides of a crop are not made shorter than this, in pixels.
const SHORTEST: u32 = 16;

/// Windows that are tried before the image is left whole, because none keeps an object.
const TRIES: usize = 10;

/// A part of the image, on which at least one of its objects stays, if it has any.
pub(super) fn crop(sample: Sample, config: &CropConfig, random: &mut impl Rng) -> Sample {
    let (width, height) = sample.pixels.dimensions();
    for _ in 0..TRIES {
        let window = draw(width, height, config.min, random);
        let rest = |object: &Object| {
            let bounding_box = window.cut(&object.bounding_box, config.min_visibility)?;
            Some(Object { bounding_box, ..*object })
        };
        let objects: Vec<_> = sample.objects.iter().filter_map(rest).collect();
        if !objects.is_empty() || sample.objects.is_empty() {
            return Sample { pixels: Arc::new(window.copy(&sample.pixels)), objects };
        }
    }
    sample
}

fn draw(width: u32, height: u32, min: f64, random: &mut impl Rng) -> Window {
    let fraction = random.random_range(min..=1.0);
    let side = |whole: u32| ((f64::from(whole) * fraction).round() as u32).clamp(SHORTEST.min(whole), whole);
    let (part_width, part_height) = (side(width), side(height));
    Window {
        x: random.random_range(0..=width - part_width),
        y: random.random_range(0..=height - part_height),
        width: part_width,
        height: part_height,
    }
}

#[cfg(test)]
mod tests {
    use models::BoundingBox;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::augmentation::testing::{extent, marked, plain};

    fn config(min: f64, min_visibility: f64) -> CropConfig {
        CropConfig { probability: 1.0, min, min_visibility }
    }

    #[test]
    fn an_object_goes_when_less_than_its_share_is_seen() {
        let mut gone = 0;
        for seed in 0..200 {
            let before = marked(seed);
            let after = crop(before.clone(), &config(0.3, 0.5), &mut ChaCha8Rng::seed_from_u64(seed));
            for whole in &before.objects {
                let seen = extent(&after.pixels, whole.class_index)
                    .map_or(0.0, |seen| seen.area() / whole.bounding_box.area());
                let kept = after.objects.iter().any(|object| object.class_index == whole.class_index);
                assert_eq!(kept, seen >= 0.5, "seed {seed}, class {}: {seen} seen", whole.class_index);
                gone += usize::from(!kept);
            }
        }
        assert!(gone > 200, "only {gone} objects went");
    }

    #[test]
    fn a_crop_keeps_an_object_or_the_image_stays_whole() {
        for seed in 0..200 {
            let mut before = marked(seed);
            before.objects.truncate(1);
            let after = crop(before.clone(), &config(0.1, 1.0), &mut ChaCha8Rng::seed_from_u64(seed));
            assert_eq!(after.objects.len(), 1);
            let sides = |bounding_box: &BoundingBox| (bounding_box.width(), bounding_box.height());
            assert_eq!(sides(&after.objects[0].bounding_box), sides(&before.objects[0].bounding_box));
        }
        let mut covered = plain(400, 300);
        covered.objects = vec![Object { class_index: 0, bounding_box: BoundingBox::new(0.0, 0.0, 400.0, 300.0) }];
        let after = crop(covered.clone(), &config(0.1, 1.0), &mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(after, covered);
    }

    #[test]
    fn sides_have_the_drawn_share_and_are_never_too_short() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut shares = Vec::new();
        for _ in 0..200 {
            let window = draw(400, 300, 0.25, &mut random);
            assert!(window.x + window.width <= 400 && window.y + window.height <= 300);
            assert!((window.width as f32 / window.height as f32 - 4.0 / 3.0).abs() < 0.02, "{window:?}");
            shares.push(f64::from(window.width) / 400.0);
        }
        shares.sort_by(f64::total_cmp);
        assert!(shares[0] >= 0.25 && shares[10] < 0.35 && shares[190] > 0.9, "{shares:?}");

        for (width, height) in [(20, 300), (1, 1), (4000, 2)] {
            let window = draw(width, height, 0.01, &mut random);
            assert!(window.width >= width.min(SHORTEST) && window.height >= height.min(SHORTEST), "{window:?}");
        }
    }

    #[test]
    fn an_image_without_objects_is_cropped_too() {
        let mut empty = marked(0);
        empty.objects.clear();
        let after = crop(empty.clone(), &config(0.3, 0.3), &mut ChaCha8Rng::seed_from_u64(0));
        assert!(after.pixels.width() < empty.pixels.width());
    }
}
