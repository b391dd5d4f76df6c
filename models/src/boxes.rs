//! Boxes: corners in pixels, and how much two of them overlap.

use serde::{Deserialize, Serialize};

/// An axis-parallel box. Width is `x2 - x1` and height `y2 - y1`; both may be negative after clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 4]", into = "[f32; 4]")]
pub struct BoundingBox {
    /// Left.
    pub x1: f32,
    /// Top.
    pub y1: f32,
    /// Right.
    pub x2: f32,
    /// Bottom.
    pub y2: f32,
}

impl BoundingBox {
    /// A box from its corners.
    pub fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// `x2 - x1`.
    pub fn width(&self) -> f32 {
        self.x2 - self.x1
    }

    /// `y2 - y1`.
    pub fn height(&self) -> f32 {
        self.y2 - self.y1
    }

    /// Width times height.
    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// Area of the intersection over area of the union, in [0, 1]; 0 when the union has no area.
    pub fn iou(&self, other: &Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let intersection = width * height;
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// The part inside an image of `width` by `height`, by the rule of yhenon/pytorch-retinanet (`retinanet/utils.py`,
    /// 0348a9d): the near corner is raised to zero and the far corner lowered to the size, so that a box entirely outside ends
    /// up with a negative side. What is not a number stays so; `f32::max` and `f32::min` would make it an edge of the image.
    pub fn clip(&self, width: f32, height: f32) -> Self {
        let raise = |near: f32| if near < 0.0 { 0.0 } else { near };
        let lower = |far: f32, limit: f32| if far > limit { limit } else { far };
        Self { x1: raise(self.x1), y1: raise(self.y1), x2: lower(self.x2, width), y2: lower(self.y2, height) }
    }

    /// Every coordinate times `x` or `y`.
    pub fn scale(&self, x: f32, y: f32) -> Self {
        Self { x1: self.x1 * x, y1: self.y1 * y, x2: self.x2 * x, y2: self.y2 * y }
    }
}

impl From<[f32; 4]> for BoundingBox {
    fn from([x1, y1, x2, y2]: [f32; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }
}

impl From<BoundingBox> for [f32; 4] {
    fn from(b: BoundingBox) -> Self {
        [b.x1, b.y1, b.x2, b.y2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQUARE: BoundingBox = BoundingBox { x1: 0.0, y1: 0.0, x2: 100.0, y2: 100.0 };

    #[test]
    fn overlap_is_symmetric_and_a_fraction() {
        let boxes: Vec<_> = (0..50).map(|i| (i as f32 * 7.0 % 31.0, i as f32 * 5.0 % 17.0, i as f32)).collect();
        let boxes: Vec<_> = boxes.iter().map(|&(x, y, side)| BoundingBox::new(x, y, x + side, y + 20.0)).collect();
        for (a, b) in boxes.iter().flat_map(|a| boxes.iter().map(move |b| (a, b))) {
            assert_eq!(a.iou(b), b.iou(a));
            assert!((0.0..=1.0).contains(&a.iou(b)));
        }
        assert!(boxes.iter().skip(1).all(|b| b.iou(b) == 1.0));
    }

    #[test]
    fn overlap_of_two_boxes() {
        let cases = [
            ("half", BoundingBox::new(50.0, 0.0, 100.0, 100.0), 0.5),
            ("a quarter in common", BoundingBox::new(50.0, 50.0, 150.0, 150.0), 2500.0 / 17_500.0),
            ("a common edge", BoundingBox::new(100.0, 0.0, 200.0, 100.0), 0.0),
            ("apart in both directions", BoundingBox::new(200.0, 200.0, 300.0, 300.0), 0.0),
            ("turned inside out", BoundingBox::new(60.0, 60.0, 40.0, 40.0), 0.0),
            ("endless", BoundingBox::new(f32::NEG_INFINITY, 0.0, f32::INFINITY, 100.0), 0.0),
            ("not a number", BoundingBox::new(f32::NAN, 0.0, 100.0, 100.0), 0.0),
        ];
        for (name, other, expected) in cases {
            assert_eq!(SQUARE.iou(&other), expected, "{name}");
        }
        assert_eq!(BoundingBox::default().iou(&BoundingBox::default()), 0.0);
    }

    #[test]
    fn clipping_cuts_at_the_image() {
        let clipped = BoundingBox::new(-5.0, 10.0, 90.0, f32::INFINITY).clip(80.0, 60.0);
        assert_eq!(clipped, BoundingBox::new(0.0, 10.0, 80.0, 60.0));
        assert_eq!(clipped.clip(80.0, 60.0), clipped);
    }

    #[test]
    fn clipping_turns_a_box_outside_inside_out() {
        let clipped = BoundingBox::new(100.0, -30.0, 120.0, -10.0).clip(80.0, 60.0);
        assert!(clipped.width() < 0.0 && clipped.height() < 0.0);
    }

    #[test]
    fn clipping_does_not_hide_what_is_no_number() {
        let clipped = BoundingBox::new(f32::NAN, 0.0, f32::NAN, 10.0).clip(80.0, 60.0);
        assert!(clipped.x1.is_nan() && clipped.x2.is_nan());
    }

    #[test]
    fn scaling_is_per_axis() {
        assert_eq!(SQUARE.scale(0.5, 2.0), BoundingBox::new(0.0, 0.0, 50.0, 200.0));
    }

    #[test]
    fn text_form_is_a_list_of_corners() {
        let text = serde_json::to_string(&BoundingBox::new(1.0, 2.0, 3.0, 4.5)).unwrap();
        assert_eq!(text, "[1.0,2.0,3.0,4.5]");
        assert_eq!(serde_json::from_str::<BoundingBox>(&text).unwrap(), BoundingBox::new(1.0, 2.0, 3.0, 4.5));
    }
}
