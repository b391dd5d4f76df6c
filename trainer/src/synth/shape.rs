//! The shapes and the pixels they cover.

use std::f32::consts::TAU;

/// Kinds of shapes, the classes of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A filled circle.
    Disk,
    /// A circle with a round hole.
    Ring,
    /// A square.
    Square,
    /// An equilateral triangle.
    Triangle,
    /// A star with five points.
    Star,
}

impl Kind {
    /// All kinds, in the order of the class indices.
    pub const ALL: [Self; 5] = [Self::Disk, Self::Ring, Self::Square, Self::Triangle, Self::Star];

    /// The name of the class.
    pub fn name(self) -> &'static str {
        ["disk", "ring", "square", "triangle", "star"][self as usize]
    }

    /// The mean hue of the class, in turns of the color wheel from red.
    pub(super) fn hue(self) -> f32 {
        self as usize as f32 / Self::ALL.len() as f32
    }
}

/// A shape on an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    /// Kind of shape.
    pub kind: Kind,
    /// Column of the center, in pixels.
    pub x: f32,
    /// Row of the center, in pixels.
    pub y: f32,
    /// Distance from the center to the farthest points, in pixels.
    pub radius: f32,
    /// Rotation, in radians.
    pub angle: f32,
}

impl Shape {
    /// The pixels that the shape covers, including those outside the image.
    pub(super) fn mask(&self) -> Vec<Pixel> {
        // The antialiased edge extends half a pixel beyond the radius.
        let reach = self.radius.ceil() as i32 + 1;
        let (left, top, side) = (self.x.floor() as i32 - reach, self.y.floor() as i32 - reach, 2 * reach + 1);
        let pixels = (0..side * side).map(|i| {
            let (column, row) = (left + i % side, top + i / side);
            let coverage = (0.5 - self.distance(column as f32 + 0.5, row as f32 + 0.5)).clamp(0.0, 1.0);
            Pixel { column, row, coverage }
        });
        pixels.filter(|pixel| pixel.coverage > 0.0).collect()
    }

    /// Distance of a point from the edge, in pixels; negative inside.
    fn distance(&self, x: f32, y: f32) -> f32 {
        let (x, y) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        let (sine, cosine) = self.angle.sin_cos();
        let (x, y) = (cosine * x + sine * y, cosine * y - sine * x);
        self.radius
            * match self.kind {
                Kind::Disk => x.hypot(y) - 1.0,
                Kind::Ring => (x.hypot(y) - 0.75).abs() - 0.25,
                Kind::Square => distance_from_polygon(x, y, 4, 1.0),
                Kind::Triangle => distance_from_polygon(x, y, 3, 1.0),
                Kind::Star => distance_from_polygon(x, y, 10, 0.45),
            }
    }
}

/// A pixel that a shape covers fully or partly. Column and row are negative to the left of and above the image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pixel {
    /// Its column.
    pub column: i32,
    /// Its row.
    pub row: i32,
    /// Fraction of the pixel that the shape covers, in (0, 1].
    pub coverage: f32,
}

impl Pixel {
    /// Whether the pixel belongs to the shape: at least half of it is covered.
    pub(super) fn is_solid(&self) -> bool {
        self.coverage >= 0.5
    }
}

/// Distance of a point from the edge of a polygon around the origin; negative inside. Its corners are alternately at a distance
/// of 1 and `inner`. <https://iquilezles.org/articles/distfunctions2d>
fn distance_from_polygon(x: f32, y: f32, corners: usize, inner: f32) -> f32 {
    let corner = |i: usize| {
        let (sine, cosine) = (TAU * i as f32 / corners as f32).sin_cos();
        [cosine, sine].map(|part| if i.is_multiple_of(2) { 1.0 } else { inner } * part)
    };
    let (mut nearest, mut inside) = (f32::INFINITY, false);
    let mut previous = corner(corners - 1);
    for corner in (0..corners).map(corner) {
        let edge = [previous[0] - corner[0], previous[1] - corner[1]];
        let to_point = [x - corner[0], y - corner[1]];
        let along = (to_point[0] * edge[0] + to_point[1] * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1]);
        let along = along.clamp(0.0, 1.0);
        nearest = nearest.min((to_point[0] - along * edge[0]).hypot(to_point[1] - along * edge[1]));
        // From a point inside the polygon, a ray to the right crosses its edges an odd number of times.
        inside ^= (corner[1] > y) != (previous[1] > y) && x < corner[0] + edge[0] * (y - corner[1]) / edge[1];
        previous = corner;
    }
    if inside { -nearest } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: Kind) -> Shape {
        Shape { kind, x: 40.3, y: 50.7, radius: 30.0, angle: 0.4 }
    }

    #[test]
    fn masks_have_the_exact_areas_of_the_shapes() {
        // In units of the squared radius. Star: 5 · sin(36°) · inner.
        let areas = [
            (Kind::Disk, TAU / 2.0),
            (Kind::Ring, TAU / 2.0 * 0.75),
            (Kind::Square, 2.0),
            (Kind::Triangle, 27f32.sqrt() / 4.0),
            (Kind::Star, 5.0 * (TAU / 10.0).sin() * 0.45),
        ];
        for (kind, area) in areas {
            let covered: f32 = shape(kind).mask().iter().map(|pixel| pixel.coverage).sum();
            let expected = area * 30.0 * 30.0;
            assert!((covered / expected - 1.0).abs() < 0.01, "{kind:?}: {covered}, expected {expected}");
        }
    }

    #[test]
    fn masks_extend_to_the_radius_and_not_beyond() {
        for kind in Kind::ALL {
            let farthest = shape(kind).mask().iter().filter(|pixel| pixel.is_solid()).fold(0f32, |far, pixel| {
                far.max((pixel.column as f32 + 0.5 - 40.3).hypot(pixel.row as f32 + 0.5 - 50.7))
            });
            assert!((28.0..=30.0).contains(&farthest), "{kind:?}: {farthest}");
        }
    }

    #[test]
    fn a_full_turn_changes_nothing() {
        for kind in Kind::ALL {
            let turned = Shape { angle: 0.4 + TAU, ..shape(kind) };
            let (a, b) = (shape(kind).mask(), turned.mask());
            assert!(a.iter().zip(&b).all(|(a, b)| (a.coverage - b.coverage).abs() < 1e-3), "{kind:?}");
        }
    }
}
