//! Flips, and turns by right angles.

use std::sync::Arc;

use image::imageops::{flip_horizontal_in_place, flip_vertical_in_place, rotate90, rotate180_in_place, rotate270};
use models::BoundingBox;
use rand::{Rng, RngExt};

use super::Sample;

/// A turn, clockwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Quarter,
    Half,
    ThreeQuarters,
}

impl Turn {
    /// One of the three.
    pub(super) fn draw(random: &mut impl Rng) -> Self {
        [Self::Quarter, Self::Half, Self::ThreeQuarters][random.random_range(0..3)]
    }
}

impl Sample {
    /// Exchanges left and right.
    pub(super) fn flip_horizontally(&mut self) {
        let width = self.pixels.width() as f32;
        flip_horizontal_in_place(Arc::make_mut(&mut self.pixels));
        self.move_boxes(|b| BoundingBox { x1: width - b.x2, x2: width - b.x1, ..b });
    }

    /// Exchanges top and bottom.
    pub(super) fn flip_vertically(&mut self) {
        let height = self.pixels.height() as f32;
        flip_vertical_in_place(Arc::make_mut(&mut self.pixels));
        self.move_boxes(|b| BoundingBox { y1: height - b.y2, y2: height - b.y1, ..b });
    }

    /// Turns; width and height change places in a quarter and in three.
    pub(super) fn turn(&mut self, turn: Turn) {
        let (width, height) = (self.pixels.width() as f32, self.pixels.height() as f32);
        match turn {
            Turn::Quarter => {
                self.pixels = Arc::new(rotate90(&*self.pixels));
                self.move_boxes(|b| BoundingBox { x1: height - b.y2, y1: b.x1, x2: height - b.y1, y2: b.x2 });
            }
            Turn::Half => {
                rotate180_in_place(Arc::make_mut(&mut self.pixels));
                self.move_boxes(|b| BoundingBox {
                    x1: width - b.x2,
                    y1: height - b.y2,
                    x2: width - b.x1,
                    y2: height - b.y1,
                });
            }
            Turn::ThreeQuarters => {
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
    use crate::augmentation::testing::{assert_boxes_are_on_their_rectangles, marked};

    #[test]
    fn flipping_twice_and_turning_back_change_nothing() {
        let changes: [fn(&mut Sample); 5] = [
            |sample| (0..2).for_each(|_| sample.flip_horizontally()),
            |sample| (0..2).for_each(|_| sample.flip_vertically()),
            |sample| (0..2).for_each(|_| sample.turn(Turn::Half)),
            |sample| (0..4).for_each(|_| sample.turn(Turn::Quarter)),
            |sample| [Turn::Quarter, Turn::ThreeQuarters].into_iter().for_each(|turn| sample.turn(turn)),
        ];
        for change in changes {
            let mut sample = marked(0);
            change(&mut sample);
            assert_eq!(sample, marked(0));
        }
    }

    #[test]
    fn half_a_turn_is_both_flips_and_two_quarters() {
        let [mut half, mut flips, mut quarters] = [marked(0), marked(0), marked(0)];
        half.turn(Turn::Half);
        flips.flip_horizontally();
        flips.flip_vertically();
        quarters.turn(Turn::Quarter);
        quarters.turn(Turn::Quarter);
        assert_eq!(half, flips);
        assert_eq!(half, quarters);
    }

    #[test]
    fn a_quarter_turn_is_clockwise_and_exchanges_the_sides() {
        let mut sample = marked(0);
        let before = sample.clone();
        sample.turn(Turn::Quarter);
        assert_eq!(sample.pixels.dimensions(), (before.pixels.height(), before.pixels.width()));
        let (right, top) = (sample.pixels.width() - 1, 0);
        assert_eq!(sample.pixels.get_pixel(right, top), before.pixels.get_pixel(0, 0));
        assert_boxes_are_on_their_rectangles(&sample, 0.0, "quarter turn");
    }

    #[test]
    fn all_turns_are_drawn_about_as_often() {
        use rand::SeedableRng;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let drawn: Vec<_> = (0..300).map(|_| Turn::draw(&mut random)).collect();
        for turn in [Turn::Quarter, Turn::Half, Turn::ThreeQuarters] {
            let count = drawn.iter().filter(|drawn| **drawn == turn).count();
            assert!((70..130).contains(&count), "{turn:?}: {count} of 300");
        }
    }
}
