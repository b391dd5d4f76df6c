//! Color augmentation.
//!
//! Brightness, contrast and saturation equal torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation`;
//! hue is rotated as by the CSS filter `hue-rotate`. <https://www.w3.org/TR/filter-effects-1/#feColorMatrixElement>
//! All four are linear, so they are combined into one matrix; values are rounded and clamped to 0..=255 once, at the end.

use std::sync::Arc;

use image::RgbImage;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random_streams::{Augmentation, RandomStreams};
use super::sample::Sample;

/// Jitter of brightness, contrast or saturation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ColorConfig {
    /// Probability of a change.
    pub probability: f64,
    /// The factor is drawn uniformly from 1 - strength to 1 + strength.
    pub strength: f64,
}

impl Default for ColorConfig {
    fn default() -> Self {
        Self { probability: 0.0, strength: 0.2 }
    }
}

/// Jitter of the hue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HueConfig {
    /// Probability of a change.
    pub probability: f64,
    /// The hue is rotated by -degrees to +degrees.
    pub degrees: f64,
}

impl Default for HueConfig {
    fn default() -> Self {
        Self { probability: 0.0, degrees: 20.0 }
    }
}

/// Weights of red, green and blue in the gray value (luma), ITU-R BT.601.
const GRAY_WEIGHTS: [f32; 3] = [0.299, 0.587, 0.114];

/// The color augmentations of a configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColorJitter<'a> {
    pub(super) brightness: &'a ColorConfig,
    pub(super) contrast: &'a ColorConfig,
    pub(super) saturation: &'a ColorConfig,
    pub(super) hue: &'a HueConfig,
}

/// An affine transform of colors. Each row computes an output channel: weights of red, green and blue, and an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColorMatrix([[f32; 4]; 3]);

impl ColorMatrix {
    /// A random transform for an image; `None` if no color augmentation is applied.
    pub(super) fn random(config: &ColorJitter, streams: &RandomStreams, pixels: &RgbImage) -> Option<Self> {
        let factor = |augmentation, config: &ColorConfig| {
            let mut random = streams.chance(augmentation, config.probability)?;
            Some(random.random_range(1.0 - config.strength..=1.0 + config.strength) as f32)
        };
        let brightness = factor(Augmentation::Brightness, config.brightness).map(Self::brightness);
        let contrast = factor(Augmentation::Contrast, config.contrast).map(|factor| {
            let mean = mean_color(pixels);
            Self::contrast(factor, gray(brightness.map_or(mean, |matrix| matrix.apply(mean))))
        });
        let saturation = factor(Augmentation::Saturation, config.saturation).map(Self::saturation);
        let hue = streams
            .chance(Augmentation::Hue, config.hue.probability)
            .map(|mut random| Self::hue(random.random_range(-config.hue.degrees..=config.hue.degrees) as f32));
        [brightness, contrast, saturation, hue].into_iter().flatten().reduce(|matrix, next| matrix.then(&next))
    }

    /// `factor · value`
    fn brightness(factor: f32) -> Self {
        Self([[factor, 0.0, 0.0, 0.0], [0.0, factor, 0.0, 0.0], [0.0, 0.0, factor, 0.0]])
    }

    /// `factor · value + (1 - factor) · mean`, with the mean gray of the image.
    fn contrast(factor: f32, mean: f32) -> Self {
        let Self(rows) = Self::brightness(factor);
        Self(rows.map(|[r, g, b, _]| [r, g, b, (1.0 - factor) * mean]))
    }

    /// `factor · value + (1 - factor) · gray`, with the gray of the pixel.
    fn saturation(factor: f32) -> Self {
        let Self(mut rows) = Self::brightness(factor);
        for row in &mut rows {
            for (weight, gray) in row.iter_mut().zip(GRAY_WEIGHTS) {
                *weight += (1.0 - factor) * gray;
            }
        }
        Self(rows)
    }

    /// Rotates the hue.
    fn hue(degrees: f32) -> Self {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let row = |gray: [f32; 3], along: [f32; 3], across: [f32; 3]| {
            let [r, g, b] = std::array::from_fn(|i| gray[i] + cos * along[i] + sin * across[i]);
            [r, g, b, 0.0]
        };
        let gray = [0.213, 0.715, 0.072];
        Self([
            row(gray, [0.787, -0.715, -0.072], [-0.213, -0.715, 0.928]),
            row(gray, [-0.213, 0.285, -0.072], [0.143, 0.140, -0.283]),
            row(gray, [-0.213, -0.715, 0.928], [-0.787, 0.715, 0.072]),
        ])
    }

    /// This transform followed by `next`.
    fn then(&self, next: &Self) -> Self {
        let Self(first) = self;
        Self(next.0.map(|[r, g, b, offset]| {
            let mut row: [f32; 4] = std::array::from_fn(|i| r * first[0][i] + g * first[1][i] + b * first[2][i]);
            row[3] += offset;
            row
        }))
    }

    /// Lookup tables: what each value of red, green and blue adds to the output channels. A fourth, unused channel makes an
    /// entry as wide as a SIMD register.
    fn tables(&self) -> [[[f32; 4]; 256]; 3] {
        let Self(rows) = self;
        let entry = |input: usize, value: usize| {
            let term = |row: &[f32; 4]| row[input] * value as f32 + if input == 0 { row[3] } else { 0.0 };
            let [r, g, b] = rows.each_ref().map(term);
            [r, g, b, 0.0]
        };
        std::array::from_fn(|input| std::array::from_fn(|value| entry(input, value)))
    }

    /// Transforms a color without clamping.
    fn apply(&self, [red, green, blue]: [f32; 3]) -> [f32; 3] {
        self.0.map(|[r, g, b, offset]| r * red + g * green + b * blue + offset)
    }
}

impl Sample {
    /// Transforms every pixel.
    pub(super) fn transform_colors(&mut self, matrix: &ColorMatrix) {
        /// From this value on, floats are whole numbers: adding it rounds, and leaves the result in the lowest bits. A cast
        /// with `as` makes this function take twice as long; multiplying instead of lookup tables, 1.5 times as long.
        const ROUNDING: f32 = (1 << 23) as f32;
        let [red, green, blue] = matrix.tables();
        for pixel in Arc::make_mut(&mut self.pixels).as_chunks_mut::<3>().0 {
            let [r, g, b] = pixel.map(usize::from);
            let sums: [f32; 4] = std::array::from_fn(|channel| red[r][channel] + green[g][channel] + blue[b][channel]);
            let [r, g, b, _] = sums.map(|sum| (sum.clamp(0.0, 255.0) + ROUNDING).to_bits() as u8);
            *pixel = [r, g, b];
        }
    }
}

fn gray(color: [f32; 3]) -> f32 {
    color.iter().zip(GRAY_WEIGHTS).map(|(value, weight)| value * weight).sum()
}

fn mean_color(pixels: &RgbImage) -> [f32; 3] {
    let mut sums = [0u64; 3];
    // The sum of a row fits into 32 bits, which is faster.
    for row in pixels.as_raw().chunks(3 * pixels.width().max(1) as usize) {
        let mut row_sums = [0u32; 3];
        for pixel in row.as_chunks::<3>().0 {
            for (sum, value) in row_sums.iter_mut().zip(pixel) {
                *sum += u32::from(*value);
            }
        }
        for (sum, row) in sums.iter_mut().zip(row_sums) {
            *sum += u64::from(row);
        }
    }
    let count = pixels.width() as f64 * pixels.height() as f64;
    sums.map(|sum| (sum as f64 / count) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four pixels: red, a dull orange, a pale blue, dark gray.
    const PIXELS: [u8; 12] = [250, 20, 10, 180, 120, 60, 90, 110, 240, 40, 40, 40];

    fn sample() -> Sample {
        Sample { pixels: Arc::new(RgbImage::from_raw(2, 2, PIXELS.to_vec()).unwrap()), objects: Vec::new() }
    }

    fn transformed(matrix: &ColorMatrix) -> Vec<u8> {
        let mut sample = sample();
        sample.transform_colors(matrix);
        sample.pixels.as_raw().clone()
    }

    fn assert_about(found: &[u8], expected: &[u8], what: &str) {
        // Pillow rounds the gray of each pixel and truncates the results.
        assert!(
            found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1),
            "{what}: {found:?}, expected {expected:?}"
        );
    }

    // Pillow 13:
    // image = Image.frombytes("RGB", (2, 2), bytes(PIXELS))
    // list(ImageEnhance.Brightness(image).enhance(1.3).tobytes()), likewise Contrast and Color (saturation)
    #[test]
    fn brightness_contrast_and_saturation_equal_pillow() {
        let gray = gray(mean_color(&sample().pixels));
        let cases = [
            ("brightness 1.3", ColorMatrix::brightness(1.3), [255, 26, 13, 233, 156, 78, 116, 143, 255, 52, 52, 52]),
            ("brightness 0.5", ColorMatrix::brightness(0.5), [125, 10, 5, 90, 60, 30, 45, 55, 120, 20, 20, 20]),
            ("contrast 1.3", ColorMatrix::contrast(1.3, gray), [255, 0, 0, 205, 127, 49, 88, 114, 255, 23, 23, 23]),
            ("contrast 0.5", ColorMatrix::contrast(0.5, gray), [172, 57, 52, 137, 107, 77, 92, 102, 167, 67, 67, 67]),
            ("saturation 1.3", ColorMatrix::saturation(1.3), [255, 0, 0, 194, 116, 38, 81, 107, 255, 40, 40, 40]),
            ("saturation 0", ColorMatrix::saturation(0.0), [88, 88, 88, 131, 131, 131, 119, 119, 119, 40, 40, 40]),
        ];
        for (name, matrix, expected) in cases {
            assert_about(&transformed(&matrix), &expected, name);
        }
    }

    // The matrix of <https://www.w3.org/TR/filter-effects-1/#ref-for-attr-valuedef-type-huerotate> for 90 degrees.
    #[test]
    fn hue_equals_css_hue_rotate() {
        let ColorMatrix(rows) = ColorMatrix::hue(90.0);
        let expected = [[0.0, 0.0, 1.0, 0.0], [0.356, 0.855, -0.211, 0.0], [-0.574, 1.43, 0.144, 0.0]];
        for (found, expected) in rows.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-5, "{rows:?}");
        }
    }

    #[test]
    fn factor_one_and_a_full_hue_rotation_change_nothing() {
        let matrices = [
            ColorMatrix::brightness(1.0),
            ColorMatrix::contrast(1.0, 99.0),
            ColorMatrix::saturation(1.0),
            ColorMatrix::hue(0.0),
            ColorMatrix::hue(360.0),
        ];
        for matrix in matrices {
            assert_eq!(transformed(&matrix), PIXELS, "{matrix:?}");
        }
    }

    #[test]
    fn hue_and_saturation_do_not_change_gray() {
        for matrix in [ColorMatrix::hue(77.0), ColorMatrix::saturation(1.9)] {
            assert_about(&transformed(&matrix)[9..], &[40, 40, 40], "gray");
        }
    }

    #[test]
    fn then_equals_applying_one_after_the_other() {
        let (first, second) = (ColorMatrix::saturation(0.7), ColorMatrix::contrast(0.8, 100.0));
        let color = [120.0, 80.0, 200.0];
        let [combined, separate] = [first.then(&second).apply(color), second.apply(first.apply(color))];
        assert!(combined.iter().zip(separate).all(|(a, b)| (a - b).abs() < 1e-3), "{combined:?} {separate:?}");
    }

    #[test]
    fn values_are_clamped() {
        assert_eq!(transformed(&ColorMatrix::brightness(100.0)), [255; 12]);
        assert_eq!(transformed(&ColorMatrix::contrast(1.0, 0.0).then(&ColorMatrix([[-1.0; 4]; 3]))), [0; 12]);
    }

    #[test]
    fn contrast_keeps_the_mean_gray_after_brightness() {
        let always = ColorConfig { probability: 1.0, strength: 0.4 };
        let (never, hue) = (ColorConfig::default(), HueConfig::default());
        let bright = ColorJitter { brightness: &always, contrast: &never, saturation: &never, hue: &hue };
        let both = ColorJitter { contrast: &always, ..bright };
        let pixels = RgbImage::from_fn(8, 8, |x, y| image::Rgb([90 + x as u8, 90 + y as u8, 100]));
        for image in 0..20 {
            let streams = RandomStreams::new(0, image);
            let mean = |config| {
                let matrix = ColorMatrix::random(config, &streams, &pixels).unwrap();
                gray(matrix.apply(mean_color(&pixels)))
            };
            assert!((mean(&bright) - mean(&both)).abs() < 1e-2);
        }
    }
}
