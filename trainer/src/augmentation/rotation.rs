//! Flips and rotations by right angles.

use std::sync::Arc;

use image::imageops::{flip_horizontal_in_place, flip_vertical_in_place, rotate90, rotate180_in_place, rotate270};
use models::BoundingBox;
use rand::{Rng, RngExt};

use super::Sample;

/// A clockwise rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotation {
    By90,
    By180,
    By270,
}

impl Rotation {
    /// A random rotation; all three are equally likely.
    pub(super) fn random(random: &mut impl Rng) -> Self {
        [Self::By90, Self::By180, Self::By270][random.random_range(0..3)]
    }
}

impl Sample {
    /// Swaps left and right.
    pub(super) fn flip_horizontally(&mut self) {
        let width = self.pixels.width() as f32;
        flip_horizontal_in_place(Arc::make_mut(&mut self.pixels));
        self.move_boxes(|b| BoundingBox { x1: width - b.x2, x2: width - b.x1, ..b });
    }

    /// Swaps top and bottom.
    pub(super) fn flip_vertically(&mut self) {
        let height = self.pixels.height() as f32;
        flip_vertical_in_place(Arc::make_mut(&mut self.pixels));
        self.move_boxes(|b| BoundingBox { y1: height - b.y2, y2: height - b.y1, ..b });
    }

    /// Rotates image and boxes. Rotations by 90 and 270 degrees swap width and height.
    pub(super) fn rotate(&mut self, rotation: Rotation) {
        let (width, height) = (self.pixels.width() as f32, self.pixels.height() as f32);
        match rotation {
            Rotation::By90 => {
                self.pixels = Arc::new(rotate90(&*self.pixels));
                self.move_boxes(|b| BoundingBox { x1: height - b.y2, y1: b.x1, x2: height - b.y1, y2: b.x2 });
            }
            Rotation::By180 => {
                rotate180_in_place(Arc::make_mut(&mut self.pixels));
                self.move_boxes(|b| BoundingBox {
                    x1: width - b.x2,
                    y1: height - b.y2,
                    x2: width - b.x1,
                    y2: height - b.y1,
                });
            }
            Rotation::By270 => {
                self.pixels = Arc::new(rotate270(&*self.pixels));
                self.move_boxes(|b| BoundingBox { x1: b.y1, y1: width - b.x2, x2: b.y2, y2: width - b.x1 });
            }
        }
    }

    fn move_boxes(&mut self, change: impl Fn(BoundingBox) -> BoundingBox) {
        for object in &mut self.objects {
            object.bounding_box = change(object.bounding_box);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augmentation::testing::{assert_boxes_enclose_rectangles, colored_rectangles};

    #[test]
    fn flipping_twice_and_rotating_back_change_nothing() {
        let changes: [fn(&mut Sample); 5] = [
            |sample| (0..2).for_each(|_| sample.flip_horizontally()),
            |sample| (0..2).for_each(|_| sample.flip_vertically()),
            |sample| (0..2).for_each(|_| sample.rotate(Rotation::By180)),
            |sample| (0..4).for_each(|_| sample.rotate(Rotation::By90)),
            |sample| [Rotation::By90, Rotation::By270].into_iter().for_each(|rotation| sample.rotate(rotation)),
        ];
        for change in changes {
            let mut sample = colored_rectangles(0);
            change(&mut sample);
            assert_eq!(sample, colored_rectangles(0));
        }
    }

    #[test]
    fn rotation_by_180_equals_both_flips_and_two_rotations_by_90() {
        let [mut rotated, mut flipped, mut rotated_twice] = [0, 0, 0].map(colored_rectangles);
        rotated.rotate(Rotation::By180);
        flipped.flip_horizontally();
        flipped.flip_vertically();
        rotated_twice.rotate(Rotation::By90);
        rotated_twice.rotate(Rotation::By90);
        assert_eq!(rotated, flipped);
        assert_eq!(rotated, rotated_twice);
    }

    #[test]
    fn rotation_by_90_is_clockwise_and_swaps_width_and_height() {
        let mut sample = colored_rectangles(0);
        let before = sample.clone();
        sample.rotate(Rotation::By90);
        assert_eq!(sample.pixels.dimensions(), (before.pixels.height(), before.pixels.width()));
        let (right, top) = (sample.pixels.width() - 1, 0);
        assert_eq!(sample.pixels.get_pixel(right, top), before.pixels.get_pixel(0, 0));
        assert_boxes_enclose_rectangles(&sample, 0.0, "rotation by 90 degrees");
    }

    #[test]
    fn rotations_are_equally_likely() {
        use rand::SeedableRng;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let drawn: Vec<_> = (0..300).map(|_| Rotation::random(&mut random)).collect();
        for rotation in [Rotation::By90, Rotation::By180, Rotation::By270] {
            let count = drawn.iter().filter(|drawn| **drawn == rotation).count();
            assert!((70..130).contains(&count), "{rotation:?}: {count} of 300");
        }
    }
}
