//! Boxes of data sets, in double precision.

use crate::boxes::BoundingBox;

/// A box in double precision, in pixels of the original image (upright, after EXIF rotation). As in COCO, it has sides:
/// converting to corners would change the last bit, which can decide whether an IoU reaches a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rectangle {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width, to the right.
    pub width: f64,
    /// Height, downwards.
    pub height: f64,
}

impl Rectangle {
    /// A box from its corners `x1, y1, x2, y2`.
    pub(crate) fn between([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }
    }

    /// The extent of points x, y; none without points.
    pub(crate) fn around(points: impl Iterator<Item = [f64; 2]>) -> Option<Self> {
        let corners = points.map(|[x, y]| [x, y, x, y]);
        let corners = corners.reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])]);
        corners.map(Self::between)
    }

    /// Width times height.
    pub fn area(&self) -> f64 {
        self.width * self.height
    }

    /// Area of the intersection over area of the union, in [0, 1]; 0 if the union has no area.
    pub fn iou(&self, other: &Self) -> f64 {
        let intersection = self.intersection(other);
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// Fraction of this box's area that is inside `other`, in [0, 1]; 0 if this box has no area.
    pub fn intersection_over_area(&self, other: &Self) -> f64 {
        let area = self.area();
        if area > 0.0 { self.intersection(other) / area } else { 0.0 }
    }

    fn intersection(&self, other: &Self) -> f64 {
        let width = (self.width + self.x).min(other.width + other.x) - self.x.max(other.x);
        let height = (self.height + self.y).min(other.height + other.y) - self.y.max(other.y);
        if width <= 0.0 || height <= 0.0 { 0.0 } else { width * height }
    }

    /// The box as corners in single precision, in the same frame.
    pub fn bounding_box(&self) -> BoundingBox {
        let (x2, y2) = (self.x + self.width, self.y + self.height);
        BoundingBox { x1: self.x as f32, y1: self.y as f32, x2: x2 as f32, y2: y2 as f32 }
    }

    /// The part inside an image of `width` by `height` pixels; has a zero or negative side if no part is inside.
    pub(crate) fn clip(&self, width: f64, height: f64) -> Self {
        let (x, y) = (self.x.max(0.0), self.y.max(0.0));
        let (x2, y2) = ((self.x + self.width).min(width), (self.y + self.height).min(height));
        Self { x, y, width: x2 - x, height: y2 - y }
    }

    /// How many pixels the box extends beyond an image of `width` by `height` pixels; zero or negative if it is inside.
    pub(crate) fn overshoot(&self, width: f64, height: f64) -> f64 {
        let right = self.x + self.width - width;
        let bottom = self.y + self.height - height;
        right.max(bottom).max(-self.x).max(-self.y)
    }
}

impl From<BoundingBox> for Rectangle {
    fn from(corners: BoundingBox) -> Self {
        Self::between(<[f32; 4]>::from(corners).map(f64::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_and_intersection_over_area_are_fractions() {
        let square = Rectangle { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };
        let cases = [
            ("itself", square, 1.0, 1.0),
            ("its right half", Rectangle { x: 5.0, width: 5.0, ..square }, 0.5, 0.5),
            ("twice as wide", Rectangle { width: 20.0, ..square }, 0.5, 1.0),
            ("a neighbor", Rectangle { x: 10.0, ..square }, 0.0, 0.0),
            ("without area", Rectangle { width: 0.0, ..square }, 0.0, 0.0),
            ("apart in both directions", Rectangle { x: 20.0, y: 20.0, ..square }, 0.0, 0.0),
        ];
        for (name, other, iou, fraction) in cases {
            assert_eq!((square.iou(&other), square.intersection_over_area(&other)), (iou, fraction), "{name}");
            assert_eq!(other.iou(&square), iou, "{name}");
        }
        let nan = Rectangle { width: f64::NAN, ..square };
        assert_eq!((square.iou(&nan), nan.intersection_over_area(&square)), (0.0, 0.0));
    }

    #[test]
    fn bounding_boxes_convert_without_loss() {
        let corners = BoundingBox::new(0.1, 0.7, 100.3, 33.33);
        assert_eq!(Rectangle::from(corners).bounding_box(), corners);
    }
}
