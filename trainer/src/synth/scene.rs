//! A scene: an image of shapes on a background, with the boxes of their visible parts.

use std::f32::consts::TAU;

use image::{Rgb, RgbImage};
use models::BoundingBox;
use rand::{Rng, RngExt};

use super::shape::{Kind, Pixel, Shape};
use super::texture::{Color, Texture, color_near, contrast, mix, random_color};

/// Minimum visible fraction of a shape's pixels: inside the image, and not covered by other shapes. A position that would
/// violate this for any shape is rejected, so every shape on an image has a box.
const MIN_VISIBLE_FRACTION: f32 = 0.8;

/// Fraction of images without shapes.
const EMPTY_FRACTION: f64 = 0.1;

/// Maximum number of shapes per image.
const MAX_SHAPES: usize = 6;

/// Minimum diameter of a shape, as a fraction of the image's shorter side.
const MIN_DIAMETER: f32 = 0.2;

/// Maximum diameter of a shape, as a fraction of the image's shorter side.
const MAX_DIAMETER: f32 = 0.6;

/// Minimum diameter at which a shape is recognizable, in pixels. Images with a shorter side are left empty.
const MIN_PIXELS: f32 = 8.0;

/// Maximum difference of a shape's hue from the hue of its kind, in turns of the color wheel. Colors help to distinguish
/// the kinds, so that minutes of training suffice. Backgrounds have any color.
const HUE_SPREAD: f32 = 0.05;

/// Number of random positions tried for a shape before it is left out.
const MAX_TRIES: usize = 20;

/// Width and height of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// A drawn image and its objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The image.
    pub image: RgbImage,
    /// The shapes, from back to front.
    pub objects: Vec<Object>,
}

/// The visible part of a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Kind of shape.
    pub kind: Kind,
    /// The smallest box around its visible pixels, in pixels of the image.
    pub bounding_box: BoundingBox,
    /// Number of its visible pixels.
    pub area: usize,
}

/// Draws a scene. If a side is shorter than 40 pixels, the sizes of the shapes are those for 40 pixels, and few of them fit.
pub fn draw(size: Size, rng: &mut impl Rng) -> Scene {
    let mut canvas = Canvas::new(size, rng);
    let large_enough = size.width.min(size.height) as f32 >= MIN_PIXELS;
    let count = if !large_enough || rng.random_bool(EMPTY_FRACTION) { 0 } else { rng.random_range(1..=MAX_SHAPES) };
    for _ in 0..count {
        let placed = (0..MAX_TRIES).find_map(|_| {
            let shape = random_shape(size, rng);
            let mask = shape.mask();
            canvas.has_room(&mask).then_some((shape.kind, mask))
        });
        if let Some((kind, mask)) = placed {
            canvas.paint(kind, &mask, rng);
        }
    }
    Scene { objects: canvas.objects(), image: canvas.render(rng) }
}

fn random_shape(size: Size, rng: &mut impl Rng) -> Shape {
    let side = (size.width.min(size.height) as f32).max(MIN_PIXELS / MIN_DIAMETER);
    Shape {
        kind: Kind::ALL[rng.random_range(0..Kind::ALL.len())],
        x: size.width as f32 * rng.random_range(0.0..1.0),
        y: size.height as f32 * rng.random_range(0.0..1.0),
        // Log-uniform: as many diameters from 0.2 to 0.3 of the side as from 0.4 to 0.6.
        radius: 0.5 * side * MIN_DIAMETER * (MAX_DIAMETER / MIN_DIAMETER).powf(rng.random_range(0.0..1.0)),
        angle: rng.random_range(0.0..TAU),
    }
}

/// A scene that is being drawn.
struct Canvas {
    size: Size,
    /// Colors of the pixels, row by row.
    colors: Vec<Color>,
    /// Index in `shapes` of the front shape at each pixel.
    owners: Vec<Option<usize>>,
    /// Kind of each shape, and number of its pixels, visible or not.
    shapes: Vec<(Kind, usize)>,
}

impl Canvas {
    fn new(size: Size, rng: &mut impl Rng) -> Self {
        // A smaller range of brightness than that of the shapes.
        let color = random_color(rng).map(|channel| 0.2 + 0.6 * channel);
        let texture = Texture::random(color, 0.35, rng);
        let points = (0..size.height).flat_map(|row| (0..size.width).map(move |column| (column as f32, row as f32)));
        let colors: Vec<_> = points.map(|(x, y)| texture.at(x, y)).collect();
        Self { size, owners: vec![None; colors.len()], colors, shapes: Vec::new() }
    }

    /// The pixels of a mask that are inside the image, with their indices in `colors` and `owners`.
    fn inside<'a>(&self, mask: &'a [Pixel]) -> impl Iterator<Item = (usize, &'a Pixel)> + use<'a> {
        let Size { width, height } = self.size;
        mask.iter().filter_map(move |pixel| {
            let (column, row) = (u32::try_from(pixel.column).ok()?, u32::try_from(pixel.row).ok()?);
            (column < width && row < height).then_some((row as usize * width as usize + column as usize, pixel))
        })
    }

    /// The front shapes with one more, and the number of its pixels, visible or not.
    fn covered(&self, mask: &[Pixel]) -> (Vec<Option<usize>>, usize) {
        let mut owners = self.owners.clone();
        let solid = self.inside(mask).filter(|(_, pixel)| pixel.is_solid());
        solid.for_each(|(index, _)| owners[index] = Some(self.shapes.len()));
        (owners, mask.iter().filter(|pixel| pixel.is_solid()).count())
    }

    /// Whether a shape with this mask in front of the others leaves all shapes, and itself, sufficiently visible.
    fn has_room(&self, mask: &[Pixel]) -> bool {
        let (owners, pixels) = self.covered(mask);
        let mut visible = vec![0usize; self.shapes.len() + 1];
        owners.iter().flatten().for_each(|&owner| visible[owner] += 1);
        let pixels = self.shapes.iter().map(|(_, pixels)| *pixels).chain([pixels]);
        visible.iter().zip(pixels).all(|(&visible, pixels)| visible as f32 >= MIN_VISIBLE_FRACTION * pixels as f32)
    }

    /// Paints a shape in front of the others, in a color of its kind that contrasts with the mean of the pixels behind it.
    fn paint(&mut self, kind: Kind, mask: &[Pixel], rng: &mut impl Rng) {
        let (sum, count) = self.inside(mask).fold(([0f32; 3], 0f32), |(sum, count), (index, _)| {
            (std::array::from_fn(|i| sum[i] + self.colors[index][i]), count + 1.0)
        });
        let behind = sum.map(|sum| sum / count.max(1.0));
        let more_contrast = |a: Color, b: Color| if contrast(a, behind) < contrast(b, behind) { b } else { a };
        let color = (0..4).map(|_| color_near(kind.hue(), HUE_SPREAD, rng)).reduce(more_contrast).unwrap_or_default();
        let texture = Texture::random(color, 0.2, rng);
        for (index, pixel) in self.inside(mask) {
            let color = texture.at(pixel.column as f32, pixel.row as f32);
            self.colors[index] = mix(self.colors[index], color, pixel.coverage);
        }
        let (owners, pixels) = self.covered(mask);
        self.owners = owners;
        self.shapes.push((kind, pixels));
    }

    /// The visible parts of the shapes.
    fn objects(&self) -> Vec<Object> {
        let width = self.size.width as usize;
        let object = |(index, (kind, _)): (usize, &(Kind, usize))| {
            let visible = self.owners.iter().enumerate().filter(|(_, owner)| **owner == Some(index));
            let pixels: Vec<_> = visible.map(|(place, _)| [place % width, place / width].map(|at| at as f32)).collect();
            let end = |axis: usize, end: fn(f32, f32) -> f32| pixels.iter().map(|pixel| pixel[axis]).reduce(end);
            let [x1, y1] = [0, 1].map(|axis| end(axis, f32::min).unwrap_or_default());
            let [x2, y2] = [0, 1].map(|axis| end(axis, f32::max).unwrap_or_default() + 1.0);
            Object { kind: *kind, bounding_box: BoundingBox { x1, y1, x2, y2 }, area: pixels.len() }
        };
        self.shapes.iter().enumerate().map(object).collect()
    }

    /// The final image: the canvas with some blur and noise, like a photo.
    fn render(&self, rng: &mut impl Rng) -> RgbImage {
        let blur = rng.random_range(0.0..1.0);
        let noise = rng.random_range(0.0..0.08);
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        RgbImage::from_fn(self.size.width, self.size.height, |column, row| {
            let (column, row) = (column as usize, row as usize);
            let color_at = |column: usize, row: usize| self.colors[row.min(height - 1) * width + column.min(width - 1)];
            let (left, above) = (column.saturating_sub(1), row.saturating_sub(1));
            let neighbors =
                [color_at(left, row), color_at(column + 1, row), color_at(column, above), color_at(column, row + 1)];
            let mean = std::array::from_fn(|i| neighbors.iter().map(|color| color[i]).sum::<f32>() / 4.0);
            let color = mix(color_at(column, row), mean, 0.7 * blur);
            // The sum of four uniform samples is nearly normal.
            let error = |rng: &mut _| noise * (0..4).map(|_| RngExt::random_range(rng, -0.5..0.5)).sum::<f32>();
            Rgb(color.map(|channel| (255.0 * (channel + error(rng))).round() as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SIZE: Size = Size { width: 128, height: 96 };

    fn scenes() -> impl Iterator<Item = Scene> {
        (0..100).map(|seed| draw(SIZE, &mut ChaCha8Rng::seed_from_u64(seed)))
    }

    #[test]
    fn the_same_seed_draws_the_same_scene_and_another_does_not() {
        assert!(scenes().eq(scenes()));
        let first = scenes().next().unwrap();
        assert!(scenes().skip(1).all(|scene| scene.image != first.image));
    }

    #[test]
    fn images_too_small_for_a_shape_are_empty() {
        for (width, height) in [(0, 0), (0, 9), (1, 1), (12, 3)] {
            for seed in 0..20 {
                let scene = draw(Size { width, height }, &mut ChaCha8Rng::seed_from_u64(seed));
                assert_eq!(scene.image.dimensions(), (width, height));
                assert_eq!(scene.objects, []);
            }
        }
    }

    #[test]
    fn boxes_are_inside_the_image_and_within_the_size_limits() {
        for object in scenes().flat_map(|scene| scene.objects) {
            let b = object.bounding_box;
            assert_eq!(b, b.clip(SIZE.width as f32, SIZE.height as f32));
            assert!(b.width() >= 5.0 && b.height() >= 5.0, "{object:?}");
            assert!(b.width().max(b.height()) <= MAX_DIAMETER * 96.0 + 1.0, "{object:?}");
            assert!(object.area as f32 <= b.area());
        }
    }

    #[test]
    fn boxes_tightly_enclose_the_pixels_of_their_shape() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for kind in Kind::ALL {
            let mut canvas = Canvas::new(SIZE, &mut rng);
            let mask = Shape { kind, x: 60.2, y: 40.9, radius: 25.0, angle: 0.3 }.mask();
            let solid: Vec<_> = mask.iter().filter(|pixel| pixel.is_solid()).copied().collect();
            canvas.paint(kind, &mask, &mut rng);
            let columns = || solid.iter().map(|pixel| pixel.column as f32);
            let rows = || solid.iter().map(|pixel| pixel.row as f32);
            let expected = BoundingBox {
                x1: columns().reduce(f32::min).unwrap(),
                y1: rows().reduce(f32::min).unwrap(),
                x2: columns().reduce(f32::max).unwrap() + 1.0,
                y2: rows().reduce(f32::max).unwrap() + 1.0,
            };
            assert_eq!(canvas.objects(), [Object { kind, bounding_box: expected, area: solid.len() }]);
        }
    }

    #[test]
    fn the_box_of_a_covered_shape_encloses_its_visible_part() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut canvas = Canvas::new(SIZE, &mut rng);
        let square = |x: f32| Shape { kind: Kind::Square, x, y: 48.0, radius: 800f32.sqrt(), angle: TAU / 8.0 }.mask();
        for x in [40.0, 64.0] {
            canvas.paint(Kind::Square, &square(x), &mut rng);
        }
        let boxes: Vec<_> = canvas.objects().iter().map(|object| object.bounding_box).collect();
        assert_eq!(boxes, [BoundingBox::new(20.0, 28.0, 44.0, 68.0), BoundingBox::new(44.0, 28.0, 84.0, 68.0)]);
        assert!(!canvas.has_room(&square(84.0)), "only half of the front square would be visible");
    }

    #[test]
    fn positions_that_hide_too_much_of_a_shape_are_rejected() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut canvas = Canvas::new(SIZE, &mut rng);
        let disk = |x: f32, radius: f32| Shape { kind: Kind::Disk, x, y: 48.0, radius, angle: 0.0 }.mask();
        assert!(canvas.has_room(&disk(64.0, 20.0)));
        assert!(!canvas.has_room(&disk(0.0, 20.0)), "half of the disk is outside");
        canvas.paint(Kind::Disk, &disk(64.0, 20.0), &mut rng);
        assert!(!canvas.has_room(&disk(64.0, 18.0)), "the disk hides most of the other");
        assert!(canvas.has_room(&disk(64.0, 7.0)), "the disk hides an eighth of the other");
    }

    #[test]
    fn some_images_are_empty_and_some_have_the_maximum_number_of_shapes() {
        let counts: Vec<_> = scenes().map(|scene| scene.objects.len()).collect();
        assert!((2..25).contains(&counts.iter().filter(|&&count| count == 0).count()), "{counts:?}");
        assert!(counts.contains(&MAX_SHAPES) && counts.iter().all(|&count| count <= MAX_SHAPES), "{counts:?}");
        for kind in Kind::ALL {
            assert!(scenes().flat_map(|scene| scene.objects).any(|object| object.kind == kind));
        }
    }
}
