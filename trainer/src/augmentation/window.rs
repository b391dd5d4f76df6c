//! A rectangular part of an image, and the visible parts of objects.

use std::ops::Range;

use image::RgbImage;
use models::BoundingBox;

/// Cut boxes with a side below this, in pixels, are removed: there is nothing to learn from.
pub(super) const MIN_BOX_SIDE: f32 = 1.0;

/// A rectangle of whole pixels of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Left.
    pub(super) x: u32,
    /// Top.
    pub(super) y: u32,
    /// At least 1.
    pub(super) width: u32,
    /// At least 1.
    pub(super) height: u32,
}

impl Window {
    /// Cuts a box, given in pixels of the image, to the window. Returns it in pixels of the window; `None` if less than the
    /// fraction `min_visibility` of its area is inside, or if the cut box is too thin.
    pub(super) fn cut(&self, whole: &BoundingBox, min_visibility: f64) -> Option<BoundingBox> {
        let (x, y) = (self.x as f32, self.y as f32);
        let whole = BoundingBox { x1: whole.x1 - x, y1: whole.y1 - y, x2: whole.x2 - x, y2: whole.y2 - y };
        let inside = whole.clip(self.width as f32, self.height as f32);
        let visible = inside.width() > 0.0 && inside.height() > 0.0;
        let enough = || {
            let fraction = f64::from(inside.area() / whole.area());
            fraction >= min_visibility && inside.width() >= MIN_BOX_SIDE && inside.height() >= MIN_BOX_SIDE
        };
        (visible && (inside == whole || enough())).then_some(inside)
    }

    /// Copies the window's pixels. The window must lie inside the image.
    pub(super) fn copy(&self, image: &RgbImage) -> RgbImage {
        let mut pixels = Vec::with_capacity(3 * self.width as usize * self.height as usize);
        for row in self.rows(image) {
            pixels.extend_from_slice(row);
        }
        RgbImage::from_raw(self.width, self.height, pixels).expect("every row has the window's width")
    }

    /// The window's pixels, row by row.
    fn rows<'a>(&self, image: &'a RgbImage) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (columns, rows) = self.ranges();
        let all = image.as_raw().chunks_exact(3 * image.width() as usize);
        all.skip(rows.start).take(rows.len()).map(move |row| &row[columns.clone()])
    }

    /// Like [`rows`](Self::rows), but mutable.
    pub(super) fn rows_mut<'a>(&self, image: &'a mut RgbImage) -> impl Iterator<Item = &'a mut [u8]> + use<'a> {
        let (columns, rows) = self.ranges();
        let length = 3 * image.width() as usize;
        let all = image.chunks_exact_mut(length);
        all.skip(rows.start).take(rows.len()).map(move |row| &mut row[columns.clone()])
    }

    /// The byte range of the window within a row, and its range of rows in the image.
    fn ranges(&self) -> (Range<usize>, Range<usize>) {
        let (x, y) = (self.x as usize, self.y as usize);
        (3 * x..3 * (x + self.width as usize), y..y + self.height as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    const WINDOW: Window = Window { x: 10, y: 20, width: 30, height: 40 };

    #[test]
    fn boxes_are_kept_by_the_fraction_of_their_area_inside() {
        let cases = [
            ("inside", [15.0, 25.0, 20.0, 30.0], Some([5.0, 5.0, 10.0, 10.0])),
            ("the whole window", [10.0, 20.0, 40.0, 60.0], Some([0.0, 0.0, 30.0, 40.0])),
            ("three tenths inside", [3.0, 25.0, 13.0, 30.0], Some([0.0, 5.0, 3.0, 10.0])),
            ("less than three tenths", [2.9, 25.0, 13.0, 30.0], None),
            ("half of each side, a quarter in all", [35.0, 55.0, 45.0, 65.0], None),
            ("outside", [50.0, 25.0, 60.0, 30.0], None),
            ("with an edge in common", [40.0, 25.0, 50.0, 30.0], None),
            ("a thin strip", [9.2, 25.0, 10.9, 30.0], None),
            ("thin but whole", [15.0, 25.0, 15.5, 30.0], Some([5.0, 5.0, 5.5, 10.0])),
            ("without area", [15.0, 25.0, 15.0, 30.0], None),
        ];
        for (name, corners, expected) in cases {
            assert_eq!(WINDOW.cut(&corners.into(), 0.3), expected.map(BoundingBox::from), "{name}");
        }
    }

    #[test]
    fn a_copy_has_the_pixels_of_the_window() {
        let image = RgbImage::from_fn(50, 70, |x, y| Rgb([x as u8, y as u8, 0]));
        let copy = WINDOW.copy(&image);
        assert_eq!(copy, RgbImage::from_fn(30, 40, |x, y| Rgb([x as u8 + 10, y as u8 + 20, 0])));
    }
}
