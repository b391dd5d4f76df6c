//! The box coder: how the network's offsets and boxes translate into each other.
//! <https://arxiv.org/abs/1311.2524>, appendix C

use crate::boxes::BoundingBox;
use crate::spec::BoxCoderSpec;

impl BoxCoderSpec {
    /// The offsets that turn `anchor` into `target`: shift of the center in sides of the anchor, then the logarithm of
    /// the sides' ratio, each divided by its `std`. A target side below one pixel counts as one.
    pub fn encode(&self, anchor: &BoundingBox, target: &BoundingBox) -> [f32; 4] {
        let (x, y) = center(anchor);
        let (target_x, target_y) = center(target);
        [
            (target_x - x) / anchor.width() / self.std[0],
            (target_y - y) / anchor.height() / self.std[1],
            (target.width().max(1.0) / anchor.width()).ln() / self.std[2],
            (target.height().max(1.0) / anchor.height()).ln() / self.std[3],
        ]
    }

    /// The box that `offsets` make of `anchor`. Any offsets are allowed: without `clamp` a side may become infinite, and
    /// what is not a number stays so.
    pub fn decode(&self, anchor: &BoundingBox, offsets: [f32; 4]) -> BoundingBox {
        let (x, y) = center(anchor);
        let x = x + offsets[0] * self.std[0] * anchor.width();
        let y = y + offsets[1] * self.std[1] * anchor.height();
        let half_width = 0.5 * self.limit(offsets[2] * self.std[2]).exp() * anchor.width();
        let half_height = 0.5 * self.limit(offsets[3] * self.std[3]).exp() * anchor.height();
        BoundingBox { x1: x - half_width, y1: y - half_height, x2: x + half_width, y2: y + half_height }
    }

    /// `log_side`, at most `clamp`. Not `f32::min`, which would make a number of NaN.
    fn limit(&self, log_side: f32) -> f32 {
        match self.clamp {
            Some(clamp) if log_side > clamp => clamp,
            _ => log_side,
        }
    }
}

fn center(b: &BoundingBox) -> (f32, f32) {
    (b.x1 + 0.5 * b.width(), b.y1 + 0.5 * b.height())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: BoundingBox = BoundingBox { x1: 80.0, y1: 120.0, x2: 200.0, y2: 300.0 };

    fn assert_near(found: BoundingBox, expected: BoundingBox, tolerance: f32) {
        let corners = <[f32; 4]>::from(found).into_iter().zip(<[f32; 4]>::from(expected));
        let near = corners.into_iter().all(|(a, b)| (a - b).abs() < tolerance);
        assert!(near, "found {found:?}, expected {expected:?}");
    }

    #[test]
    fn decode_inverts_encode() {
        let weightless = BoxCoderSpec { std: [1.0; 4], clamp: Some(4.135) };
        for coder in [BoxCoderSpec::default(), weightless] {
            for (i, j) in (0..40).flat_map(|i| (0..40).map(move |j| (i as f32, j as f32))) {
                let anchor = BoundingBox::new(7.0 * i, 3.0 * j, 7.0 * i + 20.0 + j, 3.0 * j + 400.0 / (i + 1.0));
                let target = BoundingBox::new(11.0 * j, 5.0 * i, 11.0 * j + 1.0 + 9.0 * i, 5.0 * i + 1.0 + 13.0 * j);
                let decoded = coder.decode(&anchor, coder.encode(&anchor, &target));
                assert_near(decoded, target, 1e-3);
            }
        }
    }

    #[test]
    fn zero_offsets_are_the_anchor() {
        let coder = BoxCoderSpec::default();
        assert_eq!(coder.encode(&ANCHOR, &ANCHOR), [0.0; 4]);
        assert_eq!(coder.decode(&ANCHOR, [0.0; 4]), ANCHOR);
    }

    #[test]
    fn sides_below_one_pixel_count_as_one_around_the_same_center() {
        let coder = BoxCoderSpec::default();
        let sliver = coder.encode(&ANCHOR, &BoundingBox::new(100.25, 150.0, 100.75, 150.0));
        assert_eq!(sliver, coder.encode(&ANCHOR, &BoundingBox::new(100.0, 149.5, 101.0, 150.5)));
    }

    #[test]
    fn clamp_limits_growth_and_leaves_shrinking_alone() {
        let coder = BoxCoderSpec { std: [1.0; 4], clamp: Some((1000f32 / 16.0).ln()) };
        let square = BoundingBox::new(-8.0, -8.0, 8.0, 8.0);
        let grown = coder.decode(&square, [0.0, 0.0, 100.0, -100.0]);
        assert_near(grown, BoundingBox::new(-500.0, 0.0, 500.0, 0.0), 1e-2);
    }

    #[test]
    fn offsets_out_of_range_show_in_the_box() {
        let coder = BoxCoderSpec::default();
        let endless = coder.decode(&ANCHOR, [0.0, 0.0, 1e6, 0.0]);
        assert_eq!(endless, BoundingBox::new(f32::NEG_INFINITY, 120.0, f32::INFINITY, 300.0));
        let clamped = BoxCoderSpec { clamp: Some(4.135), ..coder };
        assert!(clamped.decode(&ANCHOR, [0.0, 0.0, f32::NAN, 0.0]).width().is_nan());
    }
}
