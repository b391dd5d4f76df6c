//! Bounding boxes as corners in pixels, and their IoU.

use serde::{Deserialize, Serialize};

/// An axis-aligned box, in pixels of the frame that its owner documents: the padded input or the original image. Width
/// is `x2 - x1` and height `y2 - y1`; both may be negative after clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 4]", into = "[f32; 4]")]
pub struct BoundingBox {
    /// Left edge.
    pub x1: f32,
    /// Top edge.
    pub y1: f32,
    /// Right edge.
    pub x2: f32,
    /// Bottom edge.
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

    /// Area of the intersection over area of the union, in [0, 1]; 0 if the union has no area.
    pub fn iou(&self, other: &Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let intersection = width * height;
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// Clips to an image of `width` by `height` pixels, as in yhenon/pytorch-retinanet (`retinanet/utils.py`, 0348a9d):
    /// `x1` and `y1` are raised to 0, `x2` and `y2` lowered to the size, so a box outside the image gets a negative
    /// side. NaN stays NaN; `f32::max` and `f32::min` would turn it into an edge of the image.
    pub fn clip(&self, width: f32, height: f32) -> Self {
        let raise = |min: f32| if min < 0.0 { 0.0 } else { min };
        let lower = |max: f32, limit: f32| if max > limit { limit } else { max };
        Self { x1: raise(self.x1), y1: raise(self.y1), x2: lower(self.x2, width), y2: lower(self.y2, height) }
    }

    /// Multiplies `x1` and `x2` by `x`, and `y1` and `y2` by `y`.
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
    fn iou_is_symmetric_and_between_0_and_1() {
        let boxes: Vec<_> = (0..50).map(|i| (i as f32 * 7.0 % 31.0, i as f32 * 5.0 % 17.0, i as f32)).collect();
        let boxes: Vec<_> = boxes.iter().map(|&(x, y, side)| BoundingBox::new(x, y, x + side, y + 20.0)).collect();
        for (a, b) in boxes.iter().flat_map(|a| boxes.iter().map(move |b| (a, b))) {
            assert_eq!(a.iou(b), b.iou(a));
            assert!((0.0..=1.0).contains(&a.iou(b)));
        }
        assert!(boxes.iter().skip(1).all(|b| b.iou(b) == 1.0));
    }

    #[test]
    fn iou_of_two_boxes() {
        let cases = [
            ("half", BoundingBox::new(50.0, 0.0, 100.0, 100.0), 0.5),
            ("a quarter in common", BoundingBox::new(50.0, 50.0, 150.0, 150.0), 2500.0 / 17_500.0),
            ("a common edge", BoundingBox::new(100.0, 0.0, 200.0, 100.0), 0.0),
            ("apart in both directions", BoundingBox::new(200.0, 200.0, 300.0, 300.0), 0.0),
            ("inverted", BoundingBox::new(60.0, 60.0, 40.0, 40.0), 0.0),
            ("infinite", BoundingBox::new(f32::NEG_INFINITY, 0.0, f32::INFINITY, 100.0), 0.0),
            ("NaN", BoundingBox::new(f32::NAN, 0.0, 100.0, 100.0), 0.0),
        ];
        for (name, other, expected) in cases {
            assert_eq!(SQUARE.iou(&other), expected, "{name}");
        }
        assert_eq!(BoundingBox::default().iou(&BoundingBox::default()), 0.0);
    }

    #[test]
    fn clipping_limits_boxes_to_the_image() {
        let clipped = BoundingBox::new(-5.0, 10.0, 90.0, f32::INFINITY).clip(80.0, 60.0);
        assert_eq!(clipped, BoundingBox::new(0.0, 10.0, 80.0, 60.0));
        assert_eq!(clipped.clip(80.0, 60.0), clipped);
    }

    #[test]
    fn clipping_inverts_a_box_outside_the_image() {
        let clipped = BoundingBox::new(100.0, -30.0, 120.0, -10.0).clip(80.0, 60.0);
        assert!(clipped.width() < 0.0 && clipped.height() < 0.0);
    }

    #[test]
    fn clipping_keeps_nan() {
        let clipped = BoundingBox::new(f32::NAN, 0.0, f32::NAN, 10.0).clip(80.0, 60.0);
        assert!(clipped.x1.is_nan() && clipped.x2.is_nan());
    }

    #[test]
    fn scaling_is_per_axis() {
        assert_eq!(SQUARE.scale(0.5, 2.0), BoundingBox::new(0.0, 0.0, 50.0, 200.0));
    }

    #[test]
    fn json_is_a_list_of_corners() {
        let text = serde_json::to_string(&BoundingBox::new(1.0, 2.0, 3.0, 4.5)).unwrap();
        assert_eq!(text, "[1.0,2.0,3.0,4.5]");
        assert_eq!(serde_json::from_str::<BoundingBox>(&text).unwrap(), BoundingBox::new(1.0, 2.0, 3.0, 4.5));
    }
}
