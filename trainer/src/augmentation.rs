//! Variations of a picture together with its boxes.

use image::RgbImage;
use image::imageops::{flip_horizontal_in_place, flip_vertical_in_place};
use models::BoundingBox;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::targets::Object;

/// Which variations, and how likely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentationConfig {
    /// Probability that left and right are exchanged.
    pub horizontal_flip: f64,
    /// Probability that top and bottom are exchanged.
    pub vertical_flip: f64,
}

impl Default for AugmentationConfig {
    fn default() -> Self {
        Self { horizontal_flip: 0.5, vertical_flip: 0.0 }
    }
}

impl AugmentationConfig {
    /// No variation: for validation.
    pub fn none() -> Self {
        Self { horizontal_flip: 0.0, vertical_flip: 0.0 }
    }

    /// Varies a picture and the objects on it, both in the picture's pixels. Uses as many random numbers whatever happens,
    /// so that one variation does not change the chance of the next.
    pub fn apply(&self, picture: &mut RgbImage, objects: &mut [Object], random: &mut impl Rng) {
        let (width, height) = (picture.width() as f32, picture.height() as f32);
        let mut move_boxes = |change: fn(BoundingBox, f32) -> BoundingBox, side| {
            for object in objects.iter_mut() {
                object.bounding_box = change(object.bounding_box, side);
            }
        };
        if random.random_bool(self.horizontal_flip) {
            flip_horizontal_in_place(picture);
            move_boxes(|b, width| BoundingBox { x1: width - b.x2, x2: width - b.x1, ..b }, width);
        }
        if random.random_bool(self.vertical_flip) {
            flip_vertical_in_place(picture);
            move_boxes(|b, height| BoundingBox { y1: height - b.y2, y2: height - b.y1, ..b }, height);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// A picture whose only red pixel is covered by its only box.
    fn marked() -> (RgbImage, [Object; 1]) {
        let mut picture = RgbImage::new(6, 4);
        picture.put_pixel(1, 0, Rgb([255, 0, 0]));
        (picture, [Object { class: 0, bounding_box: BoundingBox::new(1.0, 0.0, 2.0, 1.0) }])
    }

    #[test]
    fn boxes_stay_on_their_objects() {
        for (horizontal_flip, vertical_flip) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            let (mut picture, mut objects) = marked();
            let config = AugmentationConfig { horizontal_flip, vertical_flip };
            config.apply(&mut picture, &mut objects, &mut ChaCha8Rng::seed_from_u64(0));
            let b = objects[0].bounding_box;
            assert_eq!((b.width(), b.height()), (1.0, 1.0));
            assert_eq!(picture.get_pixel(b.x1 as u32, b.y1 as u32), &Rgb([255, 0, 0]));
        }
    }

    #[test]
    fn flipping_twice_changes_nothing() {
        let config = AugmentationConfig { horizontal_flip: 1.0, vertical_flip: 1.0 };
        let (mut picture, mut objects) = marked();
        for _ in 0..2 {
            config.apply(&mut picture, &mut objects, &mut ChaCha8Rng::seed_from_u64(0));
        }
        assert_eq!((picture, objects), marked());
    }
}
