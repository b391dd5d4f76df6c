//! Synthetic images, for measurements without real ones.

use image::{Rgb, RgbImage};

/// Number of rectangles and ellipses per image.
const SHAPES: u32 = 16;

/// An image of waves of many wavelengths, so that decoding takes as long as for photographs, and of shapes of many
/// sizes to detect. Deterministic; every `number` gives a different image.
pub fn image(number: u32, width: u32, height: u32) -> RgbImage {
    let shapes: Vec<_> =
        (0..SHAPES).map(|shape| Shape::new(number * SHAPES + shape, width as f32, height as f32)).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32, y as f32);
        // The last shape is on top.
        let color = shapes.iter().rev().find(|shape| shape.covers(x, y)).map_or([0.0; 3], |shape| shape.color);
        let x = x + 50.0 * number as f32;
        let wave = |period: f32, tilt: f32| ((x + tilt * y) / period).sin() + ((y - tilt * x) / period).cos();
        let shifts = [0.0, 0.2, 0.4];
        Rgb(std::array::from_fn(|channel| {
            let shift = shifts[channel];
            let sum = wave(90.0, 0.3 + shift) + 0.5 * wave(17.0, 0.7 - shift) + 0.3 * wave(3.0, shift);
            (128.0 + 30.0 * sum + color[channel]).clamp(0.0, 255.0) as u8
        }))
    })
}

struct Shape {
    center: [f32; 2],
    /// Half of width and height.
    radii: [f32; 2],
    round: bool,
    /// Added to red, green and blue.
    color: [f32; 3],
}

impl Shape {
    fn new(seed: u32, width: f32, height: f32) -> Self {
        let mut state = u64::from(seed) + 1;
        // Knuth's MMIX generator; only its upper bits are random enough.
        let mut random = |low: f32, high: f32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            low + (high - low) * (state >> 40) as f32 / (1 << 24) as f32
        };
        random(0.0, 1.0);
        let center = [random(0.0, width), random(0.0, height)];
        // From 1/40 to 1/4 of the shorter side, uniform on a logarithmic scale.
        let size = width.min(height) * 0.025 * random(0.0, 10f32.ln()).exp();
        let radii = [size * random(0.6, 1.0), size * random(0.6, 1.0)];
        Self { center, radii, round: random(0.0, 1.0) < 0.5, color: std::array::from_fn(|_| random(-120.0, 120.0)) }
    }

    fn covers(&self, x: f32, y: f32) -> bool {
        let [u, v] = [(x - self.center[0]) / self.radii[0], (y - self.center[1]) / self.radii[1]];
        if self.round { u * u + v * v <= 1.0 } else { u.abs().max(v.abs()) <= 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_differ_by_number_and_are_deterministic() {
        assert!(image(0, 40, 30) == image(0, 40, 30));
        assert!(image(0, 40, 30) != image(1, 40, 30));
        assert_eq!(image(7, 3, 200).dimensions(), (3, 200));
    }
}
