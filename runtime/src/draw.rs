//! Draws detections on images: a box and a tag for each, readable on any background.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, PxScaleFont, ScaleFont, point};
use image::{Rgb, RgbImage};
use models::BoundingBox;
use models::spec::Class;

use crate::Detection;

const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// Hack: open counters and a large x-height, legible from 11 pixels on.
static FONT: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(epaint_default_fonts::HACK_REGULAR).expect("the compiled-in typeface is a sound file")
});

/// A box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// In pixels of the image that it is drawn on.
    pub bounding_box: BoundingBox,
    /// Color of its frame and tag.
    pub color: Rgb<u8>,
    /// Text of the tag. A box without a tag is drawn one pixel wide.
    pub tag: Option<String>,
}

/// Draws detections with boxes in pixels of `image`, the first (highest-scoring) on top. `classes` are the classes of
/// the spec.
pub fn draw(image: &mut RgbImage, detections: &[Detection], classes: &[Class]) {
    let mark = |detection: &Detection| {
        let name = classes.get(detection.class_index).map_or("?", |class| class.name.as_str());
        let tag = Some(format!("{name} {:.2}", detection.score));
        Mark { bounding_box: detection.bounding_box, color: color(detection.class_index), tag }
    };
    draw_marks(image, &detections.iter().map(mark).collect::<Vec<_>>());
}

/// Draws boxes, the first on top.
pub fn draw_marks(image: &mut RgbImage, marks: &[Mark]) {
    let pen = Pen::new(image);
    let areas = marks.iter().rev().filter_map(|mark| Some((mark, Area::of(&mark.bounding_box, image)?)));
    let areas: Vec<_> = areas.collect();
    // Boxes are drawn before tags, so that no line crosses a tag.
    for (mark, area) in &areas {
        match mark.tag {
            Some(_) => pen.outline(image, *area, mark.color),
            None => area.fill_around(area.grow(-1), image, mark.color),
        }
    }
    for (mark, area) in &areas {
        if let Some(tag) = &mark.tag {
            pen.tag(image, *area, mark.color, tag);
        }
    }
}

/// The color of a class, the same in every image and program. Hues advance by the golden angle, so the colors of the
/// first `n` classes differ clearly for any `n`; brightness and saturation alternate.
pub fn color(class_index: usize) -> Rgb<u8> {
    const GOLDEN_ANGLE: f32 = 137.507_77;
    let hue = (class_index % 360) as f32 * GOLDEN_ANGLE % 360.0;
    let (saturation, value) = [(0.85, 1.0), (1.0, 0.7), (0.55, 1.0)][class_index % 3];
    // <https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative>
    Rgb([5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + hue / 60.0) % 6.0;
        let channel = value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0);
        (255.0 * channel).round() as u8
    }))
}

/// Black or white, whichever has the higher contrast to the color.
fn contrast(color: Rgb<u8>) -> Rgb<u8> {
    // Relative luminance. At 0.179, black and white have the same contrast ratio.
    // <https://www.w3.org/TR/WCAG22/#dfn-relative-luminance>
    let linear = color.0.map(|channel| (f32::from(channel) / 255.0).powf(2.2));
    let luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    if luminance > 0.179 { BLACK } else { WHITE }
}

/// A rectangle of whole pixels; right and bottom are exclusive. Parts outside the image are not drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    left: i64,
    top: i64,
    right: i64,
    bottom: i64,
}

impl Area {
    /// The pixels of a box; `None` if it is empty, contains NaN, or is outside the image.
    fn of(b: &BoundingBox, image: &RgbImage) -> Option<Self> {
        let (width, height) = (image.width() as f32, image.height() as f32);
        let visible = b.x1 < b.x2 && b.y1 < b.y2 && b.x2 > 0.0 && b.y2 > 0.0 && b.x1 < width && b.y1 < height;
        visible.then(|| Self {
            left: b.x1.max(0.0).round() as i64,
            top: b.y1.max(0.0).round() as i64,
            right: b.x2.min(width).round() as i64,
            bottom: b.y2.min(height).round() as i64,
        })
    }

    /// The area extended by `by` pixels on each side.
    fn grow(self, by: i64) -> Self {
        Self { left: self.left - by, top: self.top - by, right: self.right + by, bottom: self.bottom + by }
    }

    fn fill(self, image: &mut RgbImage, color: Rgb<u8>) {
        for y in self.top.max(0)..self.bottom.min(image.height().into()) {
            for x in self.left.max(0)..self.right.min(image.width().into()) {
                image.put_pixel(x as u32, y as u32, color);
            }
        }
    }

    /// Fills this area except `hole`, which is inside it.
    fn fill_around(self, hole: Self, image: &mut RgbImage, color: Rgb<u8>) {
        Self { bottom: hole.top, ..self }.fill(image, color);
        Self { top: hole.bottom, ..self }.fill(image, color);
        Self { top: hole.top, bottom: hole.bottom, right: hole.left, ..self }.fill(image, color);
        Self { top: hole.top, bottom: hole.bottom, left: hole.right, ..self }.fill(image, color);
    }
}

/// Line width and font size for an image size.
struct Pen {
    width: i64,
    font: PxScaleFont<&'static FontRef<'static>>,
}

impl Pen {
    fn new(image: &RgbImage) -> Self {
        let side = image.width().min(image.height()) as f32;
        let font_size = (side / 32.0).clamp(14.0, 64.0);
        Self { width: (side / 240.0).round().max(2.0) as i64, font: FONT.as_scaled(font_size.round()) }
    }

    /// Draws a frame inside the edge of the box, with a thin rim on both sides that is visible on a background of the
    /// same color.
    fn outline(&self, image: &mut RgbImage, area: Area, color: Rgb<u8>) {
        let inner = area.grow(-self.width.min((area.right - area.left) / 2).min((area.bottom - area.top) / 2));
        area.grow(1).fill_around(area, image, contrast(color));
        area.fill_around(inner, image, color);
        inner.fill_around(inner.grow(-1), image, contrast(color));
    }

    /// Draws a filled tag above the box, or inside it if there is no room above; it is moved to stay inside the image.
    fn tag(&self, image: &mut RgbImage, area: Area, color: Rgb<u8>, text: &str) {
        let margin = (self.font.height() / 6.0).ceil();
        let (glyphs, length) = self.lay_out(text);
        let width = (length + 2.0 * margin).ceil() as i64;
        let height = (self.font.height() + margin).ceil() as i64;
        let above = area.top - height;
        let top = if above >= 0 { above } else { area.top };
        let left = area.left.min(i64::from(image.width()) - width).max(0);
        let top = top.min(i64::from(image.height()) - height).max(0);
        Area { left, top, right: left + width, bottom: top + height }.fill(image, color);

        let start = point(left as f32 + margin, top as f32 + margin / 2.0 + self.font.ascent());
        for mut glyph in glyphs {
            glyph.position += start;
            self.print(image, glyph, contrast(color));
        }
    }

    /// The glyphs of a text on a line from the origin, and the length of the line.
    fn lay_out(&self, text: &str) -> (Vec<Glyph>, f32) {
        let mut length = 0.0;
        let glyphs = text.chars().map(|letter| {
            let mut glyph = self.font.scaled_glyph(letter);
            glyph.position = point(length, 0.0);
            length += self.font.h_advance(glyph.id);
            glyph
        });
        (glyphs.collect(), length)
    }

    fn print(&self, image: &mut RgbImage, glyph: Glyph, color: Rgb<u8>) {
        let Some(outline) = self.font.outline_glyph(glyph) else { return };
        let bounds = outline.px_bounds();
        outline.draw(|x, y, coverage| {
            let (x, y) = (bounds.min.x as i64 + i64::from(x), bounds.min.y as i64 + i64::from(y));
            let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
            let Some(pixel) = image.get_pixel_mut_checked(x, y) else { return };
            for (below, ink) in pixel.0.iter_mut().zip(color.0) {
                let blended = f32::from(*below) + (f32::from(ink) - f32::from(*below)) * coverage.clamp(0.0, 1.0);
                *below = blended.round() as u8;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detection(class_index: usize, x1: f32, y1: f32, x2: f32, y2: f32) -> Detection {
        Detection { class_index, score: 0.875, bounding_box: BoundingBox::new(x1, y1, x2, y2) }
    }

    fn classes() -> Vec<Class> {
        ["circle", "a class with a name that is wider than the image", "дерево"]
            .into_iter()
            .zip(1..)
            .map(|(name, id)| Class { id, name: name.to_owned() })
            .collect()
    }

    #[test]
    fn the_first_colors_differ_clearly() {
        let distance = |a: Rgb<u8>, b: Rgb<u8>| -> i32 {
            a.0.iter().zip(b.0).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
        };
        for a in 0..12 {
            for b in 0..a {
                assert!(distance(color(a), color(b)) > 40 * 40, "{a} {:?} and {b} {:?}", color(a), color(b));
            }
        }
    }

    #[test]
    fn text_is_black_on_light_and_white_on_dark_colors() {
        for (behind, expected) in
            [(WHITE, BLACK), (BLACK, WHITE), (Rgb([255, 255, 0]), BLACK), (Rgb([0, 0, 200]), WHITE)]
        {
            assert_eq!(contrast(behind), expected, "{behind:?}");
        }
    }

    #[test]
    fn a_box_is_visible_on_a_background_of_its_color() {
        let mut image = RgbImage::from_pixel(200, 200, color(0));
        draw(&mut image, &[detection(0, 50.0, 80.0, 150.0, 180.0)], &classes());
        for x in 60..140 {
            assert_ne!(image.get_pixel(x, 180), &color(0), "rim below the box at {x}");
        }
    }

    #[test]
    fn a_frame_covers_only_the_edge_of_the_box() {
        let mut image = RgbImage::new(200, 200);
        draw(&mut image, &[detection(0, 50.0, 80.0, 150.0, 180.0)], &classes());
        for (x, y) in [(50, 130), (51, 130), (149, 130), (100, 178), (100, 179)] {
            assert_eq!(image.get_pixel(x, y), &color(0), "({x}, {y})");
        }
        assert_eq!(image.get_pixel(100, 130), &BLACK);
    }

    #[test]
    fn a_box_without_a_tag_is_one_pixel_wide() {
        let mut image = RgbImage::new(200, 200);
        let bounding_box = BoundingBox::new(50.0, 80.0, 150.0, 180.0);
        draw_marks(&mut image, &[Mark { bounding_box, color: WHITE, tag: None }]);
        assert_eq!((image.get_pixel(50, 130), image.get_pixel(51, 130)), (&WHITE, &BLACK));
        assert_eq!(image.pixels().filter(|pixel| **pixel == WHITE).count(), 4 * 99);
    }

    #[test]
    fn tags_stay_inside_the_image() {
        // A tag inside the image has rows of only its color above and below the letters.
        for (x1, y1, x2, y2) in [(0.0, 0.0, 30.0, 30.0), (170.0, 0.0, 200.0, 20.0), (180.0, 90.0, 200.0, 100.0)] {
            let mut image = RgbImage::new(200, 100);
            draw(&mut image, &[detection(0, x1, y1, x2, y2)], &classes());
            let rows = image.rows().filter(|row| row.clone().filter(|pixel| **pixel == color(0)).count() > 60).count();
            assert!(rows >= 2, "{rows} rows for {x1} {y1} {x2} {y2}");
        }
    }

    #[test]
    fn invalid_boxes_and_tiny_images_do_not_panic() {
        let odd = [f32::NAN, f32::NEG_INFINITY, -1e30, -5.0, 0.0, 0.4, 3.0, 1e30, f32::INFINITY];
        for (width, height) in [(1, 1), (3, 200), (200, 3), (64, 64)] {
            let mut image = RgbImage::new(width, height);
            for x in odd {
                for y in odd {
                    let detections = [detection(0, x, y, y, x), detection(1, x, x, y, y), detection(9, y, x, 2.0, 2.0)];
                    draw(&mut image, &detections, &classes());
                }
            }
        }
    }
}
