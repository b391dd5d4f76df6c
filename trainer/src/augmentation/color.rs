//! Changes of color, all of them in one pass.
//!
//! Brightness, contrast and saturation are those of torchvision's `adjust_brightness`, `adjust_contrast` and
//! `adjust_saturation`; hue turns as the CSS filter `hue-rotate` does. <https://www.w3.org/TR/filter-effects-1/#feColorMatrixElement>
//! All four are linear, so an image's changes are one matrix, and values are rounded and limited to 0..=255 once, at the end.

use std::sync::Arc;

use image::RgbImage;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::draws::{Draws, Variation};
use super::{AugmentationConfig, Sample};

/// How brightness, contrast or saturation varies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColorConfig {
    /// Probability of a change.
    pub probability: f64,
    /// The factor is between 1 - strength and 1 + strength.
    pub strength: f64,
}

impl Default for ColorConfig {
    fn default() -> Self {
        Self { probability: 0.0, strength: 0.2 }
    }
}

/// How hue varies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HueConfig {
    /// Probability of a change.
    pub probability: f64,
    /// The longest turn, either way.
    pub degrees: f64,
}

impl Default for HueConfig {
    fn default() -> Self {
        Self { probability: 0.0, degrees: 20.0 }
    }
}

/// How much red, green and blue count in gray. ITU-R BT.601
const GRAY: [f32; 3] = [0.299, 0.587, 0.114];

/// A linear change of colors: for each new channel the shares of red, green and blue, and what is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColorChange([[f32; 4]; 3]);

impl ColorChange {
    /// The changes that `draws` has for an image, if any.
    pub(super) fn draw(config: &AugmentationConfig, draws: &Draws, pixels: &RgbImage) -> Option<Self> {
        let factor = |variation, config: &ColorConfig| {
            let mut random = draws.chance(variation, config.probability)?;
            Some(random.random_range(1.0 - config.strength..=1.0 + config.strength) as f32)
        };
        let brightness = factor(Variation::Brightness, &config.brightness).map(Self::brightness);
        let contrast = factor(Variation::Contrast, &config.contrast).map(|factor| {
            let mean = mean_color(pixels);
            Self::contrast(factor, gray(brightness.map_or(mean, |change| change.of(mean))))
        });
        let saturation = factor(Variation::Saturation, &config.saturation).map(Self::saturation);
        let hue = draws
            .chance(Variation::Hue, config.hue.probability)
            .map(|mut random| Self::hue(random.random_range(-config.hue.degrees..=config.hue.degrees) as f32));
        [brightness, contrast, saturation, hue].into_iter().flatten().reduce(|change, next| change.then(&next))
    }

    /// `factor · value`
    fn brightness(factor: f32) -> Self {
        Self([[factor, 0.0, 0.0, 0.0], [0.0, factor, 0.0, 0.0], [0.0, 0.0, factor, 0.0]])
    }

    /// `factor · value + (1 - factor) · mean`, where the mean is that of the image's gray.
    fn contrast(factor: f32, mean: f32) -> Self {
        let Self(rows) = Self::brightness(factor);
        Self(rows.map(|[r, g, b, _]| [r, g, b, (1.0 - factor) * mean]))
    }

    /// `factor · value + (1 - factor) · gray`, where the gray is that of the pixel.
    fn saturation(factor: f32) -> Self {
        let Self(mut rows) = Self::brightness(factor);
        for row in &mut rows {
            for (share, gray) in row.iter_mut().zip(GRAY) {
                *share += (1.0 - factor) * gray;
            }
        }
        Self(rows)
    }

    /// A turn of the colors around gray.
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

    /// This change and then another.
    fn then(&self, next: &Self) -> Self {
        let Self(first) = self;
        Self(next.0.map(|[r, g, b, added]| {
            let mut row: [f32; 4] = std::array::from_fn(|i| r * first[0][i] + g * first[1][i] + b * first[2][i]);
            row[3] += added;
            row
        }))
    }

    /// What each value of red, green and blue adds to the new channels; a fourth makes them as wide as registers are.
    fn tables(&self) -> [[[f32; 4]; 256]; 3] {
        let Self(rows) = self;
        let entry = |from: usize, value: usize| {
            let of_row = |row: &[f32; 4]| row[from] * value as f32 + if from == 0 { row[3] } else { 0.0 };
            let [r, g, b] = rows.each_ref().map(of_row);
            [r, g, b, 0.0]
        };
        std::array::from_fn(|from| std::array::from_fn(|value| entry(from, value)))
    }

    /// A color changed, without limits.
    fn of(&self, [red, green, blue]: [f32; 3]) -> [f32; 3] {
        self.0.map(|[r, g, b, added]| r * red + g * green + b * blue + added)
    }
}

impl Sample {
    /// Changes every pixel.
    pub(super) fn recolor(&mut self, change: &ColorChange) {
        /// Above it, floats are whole numbers: adding it rounds, and leaves the result in the lowest bits. The conversions
        /// of the language would take twice the time, and multiplying instead of looking up half as much again.
        const ROUNDING: f32 = (1 << 23) as f32;
        let [red, green, blue] = change.tables();
        for pixel in Arc::make_mut(&mut self.pixels).as_chunks_mut::<3>().0 {
            let [r, g, b] = pixel.map(usize::from);
            let sums: [f32; 4] = std::array::from_fn(|channel| red[r][channel] + green[g][channel] + blue[b][channel]);
            let [r, g, b, _] = sums.map(|sum| (sum.clamp(0.0, 255.0) + ROUNDING).to_bits() as u8);
            *pixel = [r, g, b];
        }
    }
}

fn gray(color: [f32; 3]) -> f32 {
    color.iter().zip(GRAY).map(|(value, share)| value * share).sum()
}

fn mean_color(pixels: &RgbImage) -> [f32; 3] {
    let mut sums = [0u64; 3];
    // Sums of a row fit 32 bits, which are added faster.
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

    fn recolored(change: &ColorChange) -> Vec<u8> {
        let mut sample = sample();
        sample.recolor(change);
        sample.pixels.as_raw().clone()
    }

    fn assert_about(found: &[u8], expected: &[u8], what: &str) {
        // Pillow rounds the gray of each pixel and cuts fractions off.
        assert!(
            found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1),
            "{what}: {found:?}, expected {expected:?}"
        );
    }

    // Pillow 13:
    // image = Image.frombytes("RGB", (2, 2), bytes(PIXELS))
    // list(ImageEnhance.Brightness(image).enhance(1.3).tobytes()), and so on; Color is saturation
    #[test]
    fn brightness_contrast_and_saturation_are_those_of_torchvision() {
        let gray = gray(mean_color(&sample().pixels));
        let cases = [
            ("brightness 1.3", ColorChange::brightness(1.3), [255, 26, 13, 233, 156, 78, 116, 143, 255, 52, 52, 52]),
            ("brightness 0.5", ColorChange::brightness(0.5), [125, 10, 5, 90, 60, 30, 45, 55, 120, 20, 20, 20]),
            ("contrast 1.3", ColorChange::contrast(1.3, gray), [255, 0, 0, 205, 127, 49, 88, 114, 255, 23, 23, 23]),
            ("contrast 0.5", ColorChange::contrast(0.5, gray), [172, 57, 52, 137, 107, 77, 92, 102, 167, 67, 67, 67]),
            ("saturation 1.3", ColorChange::saturation(1.3), [255, 0, 0, 194, 116, 38, 81, 107, 255, 40, 40, 40]),
            ("saturation 0", ColorChange::saturation(0.0), [88, 88, 88, 131, 131, 131, 119, 119, 119, 40, 40, 40]),
        ];
        for (name, change, expected) in cases {
            assert_about(&recolored(&change), &expected, name);
        }
    }

    // The matrix of <https://www.w3.org/TR/filter-effects-1/#ref-for-attr-valuedef-type-huerotate> for 90 degrees.
    #[test]
    fn hue_is_that_of_css() {
        let ColorChange(rows) = ColorChange::hue(90.0);
        let expected = [[0.0, 0.0, 1.0, 0.0], [0.356, 0.855, -0.211, 0.0], [-0.574, 1.43, 0.144, 0.0]];
        for (found, expected) in rows.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-5, "{rows:?}");
        }
    }

    #[test]
    fn nothing_changes_by_a_factor_of_one_or_a_whole_turn() {
        let changes = [
            ColorChange::brightness(1.0),
            ColorChange::contrast(1.0, 99.0),
            ColorChange::saturation(1.0),
            ColorChange::hue(0.0),
            ColorChange::hue(360.0),
        ];
        for change in changes {
            assert_eq!(recolored(&change), PIXELS, "{change:?}");
        }
    }

    #[test]
    fn gray_has_no_hue_and_no_saturation() {
        for change in [ColorChange::hue(77.0), ColorChange::saturation(1.9)] {
            assert_about(&recolored(&change)[9..], &[40, 40, 40], "gray");
        }
    }

    #[test]
    fn changes_in_a_row_are_one() {
        let (first, second) = (ColorChange::saturation(0.7), ColorChange::contrast(0.8, 100.0));
        let color = [120.0, 80.0, 200.0];
        let [joined, apart] = [first.then(&second).of(color), second.of(first.of(color))];
        assert!(joined.iter().zip(apart).all(|(a, b)| (a - b).abs() < 1e-3), "{joined:?} {apart:?}");
    }

    #[test]
    fn values_are_limited() {
        assert_eq!(recolored(&ColorChange::brightness(100.0)), [255; 12]);
        assert_eq!(recolored(&ColorChange::contrast(1.0, 0.0).then(&ColorChange([[-1.0; 4]; 3]))), [0; 12]);
    }

    #[test]
    fn contrast_leaves_the_mean_of_what_the_other_changes_made() {
        let always = ColorConfig { probability: 1.0, strength: 0.4 };
        let bright = AugmentationConfig { brightness: always.clone(), ..AugmentationConfig::none() };
        let both = AugmentationConfig { contrast: always, ..bright.clone() };
        let pixels = RgbImage::from_fn(8, 8, |x, y| image::Rgb([90 + x as u8, 90 + y as u8, 100]));
        for image in 0..20 {
            let draws = Draws::new(0, image);
            let mean = |config| {
                let change = ColorChange::draw(config, &draws, &pixels).unwrap();
                gray(change.of(mean_color(&pixels)))
            };
            assert!((mean(&bright) - mean(&both)).abs() < 1e-2);
        }
    }
}
