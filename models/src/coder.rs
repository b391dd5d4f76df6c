//! The box coder: converts between boxes and the network's offsets (box deltas).
//! <https://arxiv.org/abs/1311.2524>, appendix C

use crate::boxes::BoundingBox;
use crate::spec::BoxCoderSpec;

impl BoxCoderSpec {
    /// The offsets from `anchor` to `target`, both in pixels of the padded input: the shift of the center in units of the
    /// anchor's sides, and the logarithm of the ratio of sides, each divided by its `std`. Target sides below one pixel
    /// count as one.
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

    /// The box, in pixels of the padded input, that is `offsets` away from `anchor`. Any offsets are allowed: without
    /// `clamp` a side may become infinite, and NaN stays NaN.
    pub fn decode(&self, anchor: &BoundingBox, offsets: [f32; 4]) -> BoundingBox {
        let (x, y) = center(anchor);
        let x = x + offsets[0] * self.std[0] * anchor.width();
        let y = y + offsets[1] * self.std[1] * anchor.height();
        let half_width = 0.5 * self.clamp_log_side(offsets[2] * self.std[2]).exp() * anchor.width();
        let half_height = 0.5 * self.clamp_log_side(offsets[3] * self.std[3]).exp() * anchor.height();
        BoundingBox { x1: x - half_width, y1: y - half_height, x2: x + half_width, y2: y + half_height }
    }

    /// `log_side`, at most `clamp`. `f32::min` would replace NaN by `clamp`.
    fn clamp_log_side(&self, log_side: f32) -> f32 {
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
        let unit_std = BoxCoderSpec { std: [1.0; 4], clamp: Some(4.135) };
        for coder in [BoxCoderSpec::default(), unit_std] {
            for (i, j) in (0..40).flat_map(|i| (0..40).map(move |j| (i as f32, j as f32))) {
                let anchor = BoundingBox::new(7.0 * i, 3.0 * j, 7.0 * i + 20.0 + j, 3.0 * j + 400.0 / (i + 1.0));
                let target = BoundingBox::new(11.0 * j, 5.0 * i, 11.0 * j + 1.0 + 9.0 * i, 5.0 * i + 1.0 + 13.0 * j);
                let decoded = coder.decode(&anchor, coder.encode(&anchor, &target));
                assert_near(decoded, target, 1e-3);
            }
        }
    }

    #[test]
    fn zero_offsets_decode_to_the_anchor() {
        let coder = BoxCoderSpec::default();
        assert_eq!(coder.encode(&ANCHOR, &ANCHOR), [0.0; 4]);
        assert_eq!(coder.decode(&ANCHOR, [0.0; 4]), ANCHOR);
    }

    #[test]
    fn encode_treats_sides_below_one_pixel_as_one_pixel() {
        let coder = BoxCoderSpec::default();
        let sliver = coder.encode(&ANCHOR, &BoundingBox::new(100.25, 150.0, 100.75, 150.0));
        assert_eq!(sliver, coder.encode(&ANCHOR, &BoundingBox::new(100.0, 149.5, 101.0, 150.5)));
    }

    #[test]
    fn clamp_limits_growth_but_not_shrinking() {
        let coder = BoxCoderSpec { std: [1.0; 4], clamp: Some((1000f32 / 16.0).ln()) };
        let square = BoundingBox::new(-8.0, -8.0, 8.0, 8.0);
        let grown = coder.decode(&square, [0.0, 0.0, 100.0, -100.0]);
        assert_near(grown, BoundingBox::new(-500.0, 0.0, 500.0, 0.0), 1e-2);
    }

    #[test]
    fn huge_and_nan_offsets_give_infinite_and_nan_boxes() {
        let coder = BoxCoderSpec::default();
        let infinite = coder.decode(&ANCHOR, [0.0, 0.0, 1e6, 0.0]);
        assert_eq!(infinite, BoundingBox::new(f32::NEG_INFINITY, 120.0, f32::INFINITY, 300.0));
        let clamped = BoxCoderSpec { clamp: Some(4.135), ..coder };
        assert!(clamped.decode(&ANCHOR, [0.0, 0.0, f32::NAN, 0.0]).width().is_nan());
    }
}
