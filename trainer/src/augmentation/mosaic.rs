//! Mosaics: four images in one. <https://arxiv.org/abs/2004.10934>, section 3.3

use std::sync::Arc;

use image::RgbImage;
use models::{RgbView, resize};
use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Sample;
use super::window::{MIN_BOX_SIDE, Window};
use crate::targets::Object;

/// Mosaics of four images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MosaicConfig {
    /// Probability that an image is combined with three random ones.
    pub probability: f64,
    /// Objects with less than this fraction of their area visible are removed; their visible part becomes background.
    pub min_visibility: f64,
}

impl Default for MosaicConfig {
    fn default() -> Self {
        Self { probability: 0.0, min_visibility: 0.3 }
    }
}

/// Combines this image and three others into one of this image's size. They meet at a random point near the center. Each is
/// scaled to cover its quadrant, keeping its aspect ratio, and cropped at a random position. An image with a single row or
/// column is returned unchanged.
pub(super) fn mosaic<R: Rng, E>(
    sample: Sample,
    min_visibility: f64,
    random: &mut R,
    mut load_random: impl FnMut(&mut R) -> Result<Sample, E>,
) -> Result<Sample, E> {
    let (width, height) = sample.pixels.dimensions();
    if width < 2 || height < 2 {
        return Ok(sample);
    }
    let mut center = |side: u32| random.random_range(side / 4..=side - side / 4).clamp(1, side - 1);
    let quadrants = quadrants(width, height, center(width), center(height));
    let mut pixels = RgbImage::new(width, height);
    let mut objects = Vec::new();
    let mut first = Some(sample);
    for quadrant in &quadrants {
        // One at a time, so that at most two images and the result are in memory.
        let part = first.take().map_or_else(|| load_random(random), Ok)?;
        let window = covering_window(quadrant, part.pixels.dimensions(), random);
        resize_into(&part.pixels, &window, quadrant, &mut pixels);
        objects.extend(part.objects.iter().filter_map(|object| place(object, &window, quadrant, min_visibility)));
    }
    Ok(Sample { pixels: Arc::new(pixels), objects })
}

/// The four windows that meet at `x, y`.
fn quadrants(width: u32, height: u32, x: u32, y: u32) -> [Window; 4] {
    [
        Window { x: 0, y: 0, width: x, height: y },
        Window { x, y: 0, width: width - x, height: y },
        Window { x: 0, y, width: x, height: height - y },
        Window { x, y, width: width - x, height: height - y },
    ]
}

/// The largest window of an image with the aspect ratio of `quadrant`, at a random position.
fn covering_window(quadrant: &Window, (width, height): (u32, u32), random: &mut impl Rng) -> Window {
    let scale = (f64::from(width) / f64::from(quadrant.width)).min(f64::from(height) / f64::from(quadrant.height));
    let side = |side: u32, max: u32| ((f64::from(side) * scale).round() as u32).clamp(1, max);
    let (window_width, window_height) = (side(quadrant.width, width), side(quadrant.height, height));
    Window {
        x: random.random_range(0..=width - window_width),
        y: random.random_range(0..=height - window_height),
        width: window_width,
        height: window_height,
    }
}

/// Resizes a window of an image into a quadrant of the mosaic.
fn resize_into(image: &RgbImage, window: &Window, quadrant: &Window, mosaic: &mut RgbImage) {
    let part = window.copy(image);
    let view = RgbView::new(part.width(), part.height(), &part)
        .expect("a window has at least one pixel, and three bytes per pixel");
    let resized = resize(view, quadrant.width, quadrant.height);
    for (row, resized) in quadrant.rows_mut(mosaic).zip(resized.chunks_exact(3 * quadrant.width as usize)) {
        row.copy_from_slice(resized);
    }
}

/// An object with its box in pixels of the mosaic; `None` if too little of it is visible.
fn place(object: &Object, window: &Window, quadrant: &Window, min_visibility: f64) -> Option<Object> {
    let inside = window.cut(&object.bounding_box, min_visibility)?;
    let (x, y) = (quadrant.width as f32 / window.width as f32, quadrant.height as f32 / window.height as f32);
    let mut placed = inside.scale(x, y).clip(quadrant.width as f32, quadrant.height as f32);
    let visible = placed.width() >= MIN_BOX_SIDE && placed.height() >= MIN_BOX_SIDE;
    placed.x1 += quadrant.x as f32;
    placed.x2 += quadrant.x as f32;
    placed.y1 += quadrant.y as f32;
    placed.y2 += quadrant.y as f32;
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

    /// An image of one color, which the class determines, with an object that covers it.
    fn uniform(class_index: usize, width: u32, height: u32) -> Sample {
        let bounding_box = BoundingBox::new(0.0, 0.0, width as f32, height as f32);
        let pixels = RgbImage::from_pixel(width, height, Rgb([50 * class_index as u8; 3]));
        Sample { pixels: Arc::new(pixels), objects: vec![Object { class_index, bounding_box }] }
    }

    fn test_mosaic(seed: u64, min_visibility: f64) -> Sample {
        let mut others = [(1, 300, 40), (2, 40, 300), (3, 20, 10)].into_iter();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let load_random = |_: &mut ChaCha8Rng| {
            let (class, width, height) = others.next().unwrap();
            Ok::<_, Infallible>(uniform(class, width, height))
        };
        let Ok(mosaic) = mosaic(uniform(4, 64, 48), min_visibility, &mut random, load_random);
        mosaic
    }

    #[test]
    fn a_mosaic_fills_the_size_of_the_first_image_without_gaps() {
        for seed in 0..50 {
            let Sample { pixels, objects } = test_mosaic(seed, 0.0);
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
    fn the_center_varies_and_every_quadrant_has_a_minimum_size() {
        let corners: Vec<_> = (0..200).map(|seed| test_mosaic(seed, 0.0).objects[0].bounding_box).collect();
        assert!(corners.iter().all(|b| (16.0..=48.0).contains(&b.x2) && (12.0..=36.0).contains(&b.y2)));
        assert!(corners.iter().any(|b| b.x2 < 20.0) && corners.iter().any(|b| b.x2 > 44.0));
    }

    #[test]
    fn objects_below_the_minimum_visibility_are_removed() {
        for seed in 0..50 {
            let classes: Vec<_> = test_mosaic(seed, 0.6).objects.iter().map(|object| object.class_index).collect();
            // A quadrant shows at most 160 of the 300 pixels of the wide image, and of the tall one.
            assert!(!classes.contains(&1) && !classes.contains(&2), "seed {seed}: {classes:?}");
        }
    }

    #[test]
    fn a_covering_window_is_as_large_as_the_image_allows() {
        let quadrant = Window { x: 10, y: 5, width: 30, height: 20 };
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for (size, expected) in [((60, 40), (60, 40)), ((90, 40), (60, 40)), ((60, 90), (60, 40)), ((3, 1), (2, 1))] {
            let window = covering_window(&quadrant, size, &mut random);
            assert_eq!((window.width, window.height), expected, "{size:?}");
            assert!(window.x + window.width <= size.0 && window.y + window.height <= size.1);
        }
    }
}
