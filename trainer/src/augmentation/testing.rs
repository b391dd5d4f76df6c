//! Test images whose objects can be located by color.

use std::ops::Range;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use models::BoundingBox;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Sample;
use crate::targets::Object;

/// Number of colors. Their channels are 0 or 255, so that a blurred edge is not mistaken for another color.
pub(crate) const COLORS: usize = 7;

/// A black image with one rectangle of every color, without overlap. The class index is the color.
pub(crate) fn colored_rectangles(seed: u64) -> Sample {
    colored_rectangles_of(seed, 0..COLORS)
}

/// A black image with one rectangle of each of these colors.
pub(crate) fn colored_rectangles_of(seed: u64, colors: Range<usize>) -> Sample {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(colors.start as u64);
    let (width, height) = (random.random_range(60..100), random.random_range(40..90));
    let mut pixels = RgbImage::new(width, height);
    let mut objects: Vec<Object> = Vec::new();
    for class_index in colors {
        let side = |max: u32, random: &mut ChaCha8Rng| random.random_range(6..=max / 4);
        let bounding_box = loop {
            let (w, h) = (side(width, &mut random), side(height, &mut random));
            let (x, y) = (random.random_range(0..=width - w), random.random_range(0..=height - h));
            let drawn = [x, y, x + w, y + h];
            let bounding_box = BoundingBox::from(drawn.map(|value| value as f32));
            // A gap of 3 pixels, so that resizing mixes each color only with black.
            let expanded = BoundingBox {
                x1: bounding_box.x1 - 3.0,
                y1: bounding_box.y1 - 3.0,
                x2: bounding_box.x2 + 3.0,
                y2: bounding_box.y2 + 3.0,
            };
            if objects.iter().all(|other| expanded.iou(&other.bounding_box) == 0.0) {
                break bounding_box;
            }
        };
        let [x1, y1, x2, y2] = <[f32; 4]>::from(bounding_box).map(|value| value as u32);
        for y in y1..y2 {
            for x in x1..x2 {
                pixels.put_pixel(x, y, color(class_index));
            }
        }
        objects.push(Object { class_index, bounding_box });
    }
    Sample { pixels: Arc::new(pixels), objects }
}

/// A gray image with an object that covers it.
pub(crate) fn gray_image(width: u32, height: u32) -> Sample {
    let bounding_box = BoundingBox::new(0.0, 0.0, width as f32, height as f32);
    let pixels = RgbImage::from_pixel(width, height, Rgb([100; 3]));
    Sample { pixels: Arc::new(pixels), objects: vec![Object { class_index: 0, bounding_box }] }
}

/// An image of many colors, none of them saturated.
pub(crate) fn colorful() -> Sample {
    let pixels = RgbImage::from_fn(20, 10, |x, y| Rgb([50 + 5 * x as u8, 70 + 7 * y as u8, 140 - 3 * x as u8]));
    Sample { pixels: Arc::new(pixels), objects: gray_image(20, 10).objects }
}

fn color(class: usize) -> Rgb<u8> {
    Rgb([0, 1, 2].map(|bit| if (class + 1) >> bit & 1 == 1 { 255 } else { 0 }))
}

/// The smallest box around all pixels of a color.
pub(crate) fn color_extent(pixels: &RgbImage, class: usize) -> Option<BoundingBox> {
    let has_color = |pixel: &Rgb<u8>| {
        // Relative to the largest channel, because edges are blurred with black and color augmentation is weak.
        let max = pixel.0.iter().max().copied().unwrap_or_default();
        let full = |channel: u8| u16::from(channel) * 2 > u16::from(max);
        max > 127 && pixel.0.iter().zip(color(class).0).all(|(found, expected)| full(*found) == (expected == 255))
    };
    let found = pixels.enumerate_pixels().filter(|(_, _, pixel)| has_color(pixel));
    found.fold(None, |extent: Option<BoundingBox>, (x, y, _)| {
        let (x, y) = (x as f32, y as f32);
        let extent = extent.unwrap_or(BoundingBox::new(x, y, x, y));
        Some(BoundingBox {
            x1: extent.x1.min(x),
            y1: extent.y1.min(y),
            x2: extent.x2.max(x + 1.0),
            y2: extent.y2.max(y + 1.0),
        })
    })
}

/// Asserts that every box equals the extent of its color up to `tolerance` pixels, and that no class occurs twice.
pub(crate) fn assert_boxes_enclose_rectangles(sample: &Sample, tolerance: f32, what: &str) {
    for (index, object) in sample.objects.iter().enumerate() {
        let found = color_extent(&sample.pixels, object.class_index).unwrap_or_default();
        let (found, expected) = (<[f32; 4]>::from(found), <[f32; 4]>::from(object.bounding_box));
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= tolerance, "{what}: class {} is at {found:?}, its box is {expected:?}", object.class_index);
        assert!(sample.objects[..index].iter().all(|other| other.class_index != object.class_index), "{what}");
    }
}
