//! Mosaics: four images in one. <https://arxiv.org/abs/2004.10934>, section 3.3

use std::sync::Arc;

use image::RgbImage;
use models::{RgbView, resize};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Sample;
use super::window::{THINNEST, Window};
use crate::targets::Object;

/// How images are joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MosaicConfig {
    /// Probability that an image shares its place with three others.
    pub probability: f64,
    /// An object stays one if at least this fraction of its area is inside. What is seen of the others becomes background.
    pub min_visibility: f64,
}

impl Default for MosaicConfig {
    fn default() -> Self {
        Self { probability: 0.0, min_visibility: 0.3 }
    }
}

/// This image and three others around a point near the middle, in as many pixels as this one has. Each fills its quarter:
/// it is resized until it just covers that, and what sticks out on one side or the other is cut. An image of a single row
/// or column has no quarters and stays.
pub(super) fn mosaic<R: Rng, E>(
    sample: Sample,
    min_visibility: f64,
    random: &mut R,
    mut another: impl FnMut(&mut R) -> Result<Sample, E>,
) -> Result<Sample, E> {
    let (width, height) = sample.pixels.dimensions();
    if width < 2 || height < 2 {
        return Ok(sample);
    }
    let mut middle = |side: u32| random.random_range(side / 4..=side - side / 4).clamp(1, side - 1);
    let quarters = quarters(width, height, middle(width), middle(height));
    let mut pixels = RgbImage::new(width, height);
    let mut objects = Vec::new();
    let mut first = Some(sample);
    for quarter in &quarters {
        // One at a time, so that no more than two images and the result are in memory.
        let part = first.take().map_or_else(|| another(random), Ok)?;
        let window = covering(quarter, part.pixels.dimensions(), random);
        show(&part.pixels, &window, quarter, &mut pixels);
        objects.extend(part.objects.iter().filter_map(|object| place(object, &window, quarter, min_visibility)));
    }
    Ok(Sample { pixels: Arc::new(pixels), objects })
}

/// The four windows that meet at `x, y`.
fn quarters(width: u32, height: u32, x: u32, y: u32) -> [Window; 4] {
    [
        Window { x: 0, y: 0, width: x, height: y },
        Window { x, y: 0, width: width - x, height: y },
        Window { x: 0, y, width: x, height: height - y },
        Window { x, y, width: width - x, height: height - y },
    ]
}

/// The largest window of an image that has the shape of `quarter`, anywhere.
fn covering(quarter: &Window, (width, height): (u32, u32), random: &mut impl Rng) -> Window {
    let shrink = (f64::from(width) / f64::from(quarter.width)).min(f64::from(height) / f64::from(quarter.height));
    let side = |side: u32, whole: u32| ((f64::from(side) * shrink).round() as u32).clamp(1, whole);
    let (part_width, part_height) = (side(quarter.width, width), side(quarter.height, height));
    Window {
        x: random.random_range(0..=width - part_width),
        y: random.random_range(0..=height - part_height),
        width: part_width,
        height: part_height,
    }
}

/// Resizes a window of an image into a quarter of the mosaic.
fn show(image: &RgbImage, window: &Window, quarter: &Window, mosaic: &mut RgbImage) {
    let part = window.copy(image);
    let view = RgbView::new(part.width(), part.height(), &part).expect("a window has pixels, three bytes each");
    let resized = resize(view, quarter.width, quarter.height);
    for (row, resized) in quarter.rows_mut(mosaic).zip(resized.chunks_exact(3 * quarter.width as usize)) {
        row.copy_from_slice(resized);
    }
}

/// An object where it is in the mosaic, if enough of it is.
fn place(object: &Object, window: &Window, quarter: &Window, min_visibility: f64) -> Option<Object> {
    let inside = window.cut(&object.bounding_box, min_visibility)?;
    let (x, y) = (quarter.width as f32 / window.width as f32, quarter.height as f32 / window.height as f32);
    let mut placed = inside.scale(x, y).clip(quarter.width as f32, quarter.height as f32);
    let visible = placed.width() >= THINNEST && placed.height() >= THINNEST;
    placed.x1 += quarter.x as f32;
    placed.x2 += quarter.x as f32;
    placed.y1 += quarter.y as f32;
    placed.y2 += quarter.y as f32;
    visible.then_some(Object { bounding_box: placed, ..*object })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use image::Rgb;
    use models::BoundingBox;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// An image of one color with an object all over it, whose class tells the color.
    fn uniform(class_index: usize, width: u32, height: u32) -> Sample {
        let bounding_box = BoundingBox::new(0.0, 0.0, width as f32, height as f32);
        let pixels = RgbImage::from_pixel(width, height, Rgb([50 * class_index as u8; 3]));
        Sample { pixels: Arc::new(pixels), objects: vec![Object { class_index, bounding_box }] }
    }

    fn joined(seed: u64, min_visibility: f64) -> Sample {
        let mut others = [(1, 300, 40), (2, 40, 300), (3, 20, 10)].into_iter();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let another = |_: &mut ChaCha8Rng| {
            let (class, width, height) = others.next().unwrap();
            Ok::<_, Infallible>(uniform(class, width, height))
        };
        let Ok(mosaic) = mosaic(uniform(4, 64, 48), min_visibility, &mut random, another);
        mosaic
    }

    #[test]
    fn four_images_fill_the_size_of_the_first_without_gaps() {
        for seed in 0..50 {
            let Sample { pixels, objects } = joined(seed, 0.0);
            assert_eq!(pixels.dimensions(), (64, 48));
            assert_eq!(objects.iter().map(|object| object.class_index).collect::<Vec<_>>(), [4, 1, 2, 3]);
            for (x, y, pixel) in pixels.enumerate_pixels() {
                let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
                let covers = |b: &BoundingBox| b.x1 < x && x < b.x2 && b.y1 < y && y < b.y2;
                let owners: Vec<_> = objects.iter().filter(|object| covers(&object.bounding_box)).collect();
                assert_eq!(owners.len(), 1, "seed {seed} at {x}, {y}");
                assert_eq!(pixel, &Rgb([50 * owners[0].class_index as u8; 3]), "seed {seed} at {x}, {y}");
            }
        }
    }

    #[test]
    fn the_middle_moves_and_every_image_has_room() {
        let corners: Vec<_> = (0..200).map(|seed| joined(seed, 0.0).objects[0].bounding_box).collect();
        assert!(corners.iter().all(|b| (16.0..=48.0).contains(&b.x2) && (12.0..=36.0).contains(&b.y2)));
        assert!(corners.iter().any(|b| b.x2 < 20.0) && corners.iter().any(|b| b.x2 > 44.0));
    }

    #[test]
    fn an_object_goes_when_less_than_its_share_is_seen() {
        for seed in 0..50 {
            let classes: Vec<_> = joined(seed, 0.6).objects.iter().map(|object| object.class_index).collect();
            // Of the wide and of the tall image a quarter shows 160 of 300 pixels at most.
            assert!(!classes.contains(&1) && !classes.contains(&2), "seed {seed}: {classes:?}");
        }
    }

    #[test]
    fn an_image_shows_as_much_of_itself_as_its_quarter_allows() {
        let quarter = Window { x: 10, y: 5, width: 30, height: 20 };
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for (size, shown) in [((60, 40), (60, 40)), ((90, 40), (60, 40)), ((60, 90), (60, 40)), ((3, 1), (2, 1))] {
            let window = covering(&quarter, size, &mut random);
            assert_eq!((window.width, window.height), shown, "{size:?}");
            assert!(window.x + window.width <= size.0 && window.y + window.height <= size.1);
        }
    }
}
