//! Preprocessing: converts an image to the network's input, and boxes between both frames.

use ndarray::{Array3, Axis};

use crate::boxes::BoundingBox;
use crate::resize::resize_rows;
use crate::rgb::{RgbRows, RgbView};
use crate::spec::{BoxScale, PadRule, PreprocessingSpec, SideRounding};

/// Where an image is in the network's input: resized, in the upper left corner, with zero padding on the right and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Width of the original image (upright, after EXIF rotation).
    pub original_width: u32,
    /// Height of the original image (upright, after EXIF rotation).
    pub original_height: u32,
    /// Width of the resized image.
    pub resized_width: u32,
    /// Height of the resized image.
    pub resized_height: u32,
    /// Width of the padded input.
    pub padded_width: u32,
    /// Height of the padded input.
    pub padded_height: u32,
    /// Scale factor of boxes along both axes; if absent, each axis has its own, resized over original side.
    pub common_scale: Option<CommonScale>,
}

/// A scale factor from original image to input, before sides are rounded to pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonScale {
    /// Pixels of the input ...
    pub input: u32,
    /// ... per this many pixels of the original image.
    pub original: u32,
}

impl CommonScale {
    /// Pixels of the input per pixel of the original image.
    fn factor(self) -> f64 {
        f64::from(self.input) / f64::from(self.original)
    }
}

impl Placement {
    /// Converts a box from pixels of the padded input to pixels of the original image (upright, after EXIF rotation).
    pub fn to_original_image(&self, input: &BoundingBox) -> BoundingBox {
        let (x, y) = self.factors();
        input.scale(x.recip() as f32, y.recip() as f32)
    }

    /// Converts a box from pixels of the original image (upright, after EXIF rotation) to pixels of the padded input.
    pub fn to_input(&self, original: &BoundingBox) -> BoundingBox {
        let (x, y) = self.factors();
        original.scale(x as f32, y as f32)
    }

    /// Scale factors of boxes along x and y, from original image to input. Without a common scale they differ slightly,
    /// because sides are rounded to pixels.
    fn factors(&self) -> (f64, f64) {
        if let Some(scale) = self.common_scale {
            return (scale.factor(), scale.factor());
        }
        let x = f64::from(self.resized_width) / f64::from(self.original_width);
        let y = f64::from(self.resized_height) / f64::from(self.original_height);
        (x, y)
    }
}

impl PreprocessingSpec {
    /// The placement of an image of `width` by `height` pixels, both at least 1. No side is rounded to zero.
    pub fn place(&self, width: u32, height: u32) -> Placement {
        let scale = self.scale(width, height);
        let resized = |side: u32| {
            let side = f64::from(side) * scale.factor();
            let whole = match self.side_rounding {
                SideRounding::HalfEven => side.round_ties_even(),
                SideRounding::HalfUp => (side + 0.5).floor(),
                SideRounding::Down => side.floor(),
            };
            whole.max(1.0) as u32
        };
        let [resized_height, resized_width] = self.fixed_size.unwrap_or_else(|| [resized(height), resized(width)]);
        let [padded_height, padded_width] =
            self.input_size.unwrap_or_else(|| [self.pad(resized_height), self.pad(resized_width)]);
        // Only a `fixed_size` that scale augmentation enlarged exceeds the `input_size`.
        let (resized_height, resized_width) = (resized_height.min(padded_height), resized_width.min(padded_width));
        Placement {
            original_width: width,
            original_height: height,
            resized_width,
            resized_height,
            padded_width,
            padded_height,
            common_scale: (self.box_scale == BoxScale::Common).then_some(scale),
        }
    }

    /// Normalization of red, green and blue: `(value / 255 - mean) / std` is `value * factor + term`.
    pub fn factor_and_term(&self) -> [[f32; 3]; 2] {
        let factor = self.std.map(|std| (255.0 * std).recip());
        [factor, std::array::from_fn(|channel| -self.mean[channel] / self.std[channel])]
    }

    /// The minimum of the scale factors that resize the shorter side to `shorter_side`, the longer side to `longer_side`,
    /// and, if there is an `input_size`, height and width to it.
    fn scale(&self, width: u32, height: u32) -> CommonScale {
        let shorter = CommonScale { input: self.shorter_side, original: width.min(height) };
        let longer = CommonScale { input: self.longer_side, original: width.max(height) };
        let fitting = self.input_size.map(|[rows, columns]| {
            [CommonScale { input: rows, original: height }, CommonScale { input: columns, original: width }]
        });
        let smaller = |a: CommonScale, b: CommonScale| if b.factor() < a.factor() { b } else { a };
        fitting.into_iter().flatten().fold(smaller(shorter, longer), smaller)
    }

    /// The padded length of a resized `side`, without an `input_size`.
    pub(crate) fn pad(&self, side: u32) -> u32 {
        match self.pad_rule {
            PadRule::Minimal => side.next_multiple_of(self.pad_multiple),
            PadRule::Always => (side / self.pad_multiple + 1) * self.pad_multiple,
        }
    }
}

/// An image as input of the network.
#[derive(Clone, Debug)]
pub struct Preprocessed {
    /// `[3, padded_height, padded_width]`, normalized.
    pub pixels: Array3<f32>,
    /// Where the image is in `pixels`.
    pub placement: Placement,
}

/// Resizes, normalizes and pads an image.
pub fn preprocess(view: RgbView, spec: &PreprocessingSpec) -> Preprocessed {
    let Ok(preprocessed) = preprocess_rows(view, spec);
    preprocessed
}

/// As [`preprocess`], with the same result, of an image that is read row by row. Needs memory for the result and for the rows
/// of one resized row.
///
/// # Errors
/// Those of reading the rows.
pub fn preprocess_rows<R: RgbRows>(image: R, spec: &PreprocessingSpec) -> Result<Preprocessed, R::Error> {
    let (width, height) = image.size();
    let placement = spec.place(width, height);
    let [factor, term] = spec.factor_and_term();
    let mut pixels = Array3::zeros((3, placement.padded_height as usize, placement.padded_width as usize));
    let columns = placement.resized_width as usize;
    let store = |y: usize, row: &[[f32; 4]]| {
        for channel in 0..3 {
            let normalized = pixels.slice_mut(ndarray::s![channel, y, ..columns]);
            for (normalized, rgb) in normalized.into_iter().zip(row) {
                *normalized = rgb[channel] * factor[channel] + term[channel];
            }
        }
    };
    resize_rows(image, [placement.resized_width, placement.resized_height], spec, store)?;
    Ok(Preprocessed { pixels, placement })
}

/// Resizes and pads an image, for networks that normalize it themselves, by a spec with `round_pixels`. The bytes are those
/// that [`preprocess`] normalizes, `[padded_height, padded_width, 3]`, zero in the padding.
///
/// # Errors
/// Those of reading the rows.
pub fn preprocess_bytes<R: RgbRows>(image: R, spec: &PreprocessingSpec) -> Result<(Array3<u8>, Placement), R::Error> {
    let (width, height) = image.size();
    let placement = spec.place(width, height);
    let mut pixels = Array3::zeros((placement.padded_height as usize, placement.padded_width as usize, 3));
    let store = |y: usize, row: &[[f32; 4]]| {
        for (mut pixel, rgb) in pixels.index_axis_mut(Axis(0), y).outer_iter_mut().zip(row) {
            pixel.iter_mut().zip(rgb).for_each(|(byte, value)| *byte = *value as u8);
        }
    };
    resize_rows(image, [placement.resized_width, placement.resized_height], spec, store)?;
    Ok((pixels, placement))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spec whose normalization leaves pixel values unchanged.
    fn identity_normalization() -> PreprocessingSpec {
        PreprocessingSpec { mean: [0.0; 3], std: [1.0 / 255.0; 3], ..Default::default() }
    }

    /// An image of 7x5 pixels with green = red + 1 and blue = red + 2.
    fn pattern() -> Vec<u8> {
        let pixel = |x, y, channel| ((x * 37 + y * 61) % 256 + channel) as u8;
        (0..5).flat_map(|y| (0..7).flat_map(move |x| (0..3).map(move |channel| pixel(x, y, channel)))).collect()
    }

    // detectron2 02b5c4e: ResizeShortestEdge.get_output_shape(640, 642, 800, 1333) is (800, 803), and mmcv 2.1.0:
    // rescale_size((642, 640), (1333, 800)) is (803, 800)
    #[test]
    fn sides_of_half_a_pixel_are_rounded_as_configured() {
        for (side_rounding, width) in
            [(SideRounding::HalfEven, 802), (SideRounding::HalfUp, 803), (SideRounding::Down, 802)]
        {
            let spec = PreprocessingSpec {
                shorter_side: 800,
                longer_side: 1333,
                side_rounding,
                ..PreprocessingSpec::default()
            };
            let placement = spec.place(642, 640);
            assert_eq!((placement.resized_width, placement.resized_height), (width, 800));
        }
    }

    #[test]
    fn sizes_match_yhenon() {
        let spec = PreprocessingSpec { pad_rule: PadRule::Always, ..Default::default() };
        let cases = [
            ((640, 480), (811, 608), (832, 640)),
            ((608, 608), (608, 608), (640, 640)),
            ((1920, 1080), (1024, 576), (1056, 608)),
        ];
        for ((width, height), resized, padded) in cases {
            let placement = spec.place(width, height);
            assert_eq!((placement.resized_width, placement.resized_height), resized);
            assert_eq!((placement.padded_width, placement.padded_height), padded);
        }
    }

    #[test]
    fn minimal_padding_adds_nothing_to_multiples() {
        let placement = PreprocessingSpec::default().place(1920, 1080);
        assert_eq!((placement.padded_width, placement.padded_height), (1024, 576));
    }

    #[test]
    fn half_pixels_are_rounded_to_even_sides() {
        let spec = PreprocessingSpec { shorter_side: 50, longer_side: 1000, ..Default::default() };
        assert_eq!(spec.place(100, 101).resized_height, 50);
        assert_eq!(spec.place(103, 100).resized_width, 52);
    }

    #[test]
    fn to_original_image_inverts_to_input() {
        // 640 * 608 / 480 is 810.67, which is rounded to 811.
        for (box_scale, right) in [(BoxScale::PerAxis, 811.0), (BoxScale::Common, 810.666_7)] {
            let placement = PreprocessingSpec { box_scale, ..PreprocessingSpec::default() }.place(640, 480);
            assert_eq!((placement.resized_width, placement.resized_height), (811, 608));
            let whole = placement.to_input(&BoundingBox::new(0.0, 0.0, 640.0, 480.0));
            assert!((whole.x2 - right).abs() < 1e-3 && (whole.y2 - 608.0).abs() < 1e-3, "{whole:?}");
            let back = placement.to_original_image(&whole);
            assert!((back.x2 - 640.0).abs() < 1e-3 && (back.y2 - 480.0).abs() < 1e-3, "{back:?}");
        }
    }

    #[test]
    fn common_scale_is_that_of_the_limiting_side() {
        let spec = PreprocessingSpec { box_scale: BoxScale::Common, ..PreprocessingSpec::default() };
        let scale = |width, height| spec.place(width, height).common_scale;
        assert_eq!(scale(640, 480), Some(CommonScale { input: 608, original: 480 }));
        assert_eq!(scale(480, 640), Some(CommonScale { input: 608, original: 480 }));
        assert_eq!(scale(1080, 1920), Some(CommonScale { input: 1024, original: 1920 }));
        assert_eq!(PreprocessingSpec::default().place(640, 480).common_scale, None);
    }

    #[test]
    fn fixed_size_stretches_images_and_boxes() {
        let spec = PreprocessingSpec { fixed_size: Some([96, 200]), ..identity_normalization() };
        for (width, height) in [(640, 480), (3, 500), (1, 1)] {
            let placement = spec.place(width, height);
            assert_eq!((placement.resized_width, placement.resized_height), (200, 96));
            assert_eq!((placement.padded_width, placement.padded_height), (224, 96));
            let whole = placement.to_input(&BoundingBox::new(0.0, 0.0, width as f32, height as f32));
            assert!((whole.x2 - 200.0).abs() < 1e-3 && (whole.y2 - 96.0).abs() < 1e-3, "{whole:?}");
        }
        let bytes = pattern();
        let Preprocessed { pixels, placement } = preprocess(RgbView::new(7, 5, &bytes).unwrap(), &spec);
        assert_eq!(pixels.dim(), (3, 96, 224));
        assert_eq!((placement.original_width, placement.original_height), (7, 5));
        assert!((pixels[[0, 95, 199]] - f32::from(bytes[3 * 34])).abs() < 1e-3 && pixels[[0, 95, 200]] == 0.0);
    }

    #[test]
    fn images_are_padded_to_the_input_size() {
        let spec = PreprocessingSpec { input_size: Some([320, 640]), pad_rule: PadRule::Always, ..Default::default() };
        // Limited by the height, by the width, by the longer side, and by the shorter side.
        let wide = PreprocessingSpec { longer_side: 600, shorter_side: 100, ..spec.clone() };
        for (spec, original, resized) in [
            (&spec, (480, 640), (240, 320)),
            (&spec, (640, 480), (427, 320)),
            (&spec, (1000, 300), (640, 192)),
            (&spec, (64, 32), (640, 320)),
            (&spec, (3, 4000), (1, 320)),
            (&wide, (1000, 100), (600, 60)),
            (&wide, (480, 640), (100, 133)),
        ] {
            let placement = spec.place(original.0, original.1);
            assert_eq!((placement.resized_width, placement.resized_height), resized, "{original:?}");
            assert_eq!((placement.padded_width, placement.padded_height), (640, 320));
        }
        let bytes = pattern();
        let Preprocessed { pixels, placement } = preprocess(RgbView::new(7, 5, &bytes).unwrap(), &spec);
        assert_eq!((placement.resized_width, placement.resized_height), (448, 320));
        assert_eq!(pixels.dim(), (3, 320, 640));
        assert!(pixels.slice(ndarray::s![.., .., 448..]).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn no_image_exceeds_the_input_size() {
        for side_rounding in [SideRounding::HalfEven, SideRounding::HalfUp, SideRounding::Down] {
            for input_size in [[32, 32], [96, 416], [608, 1024]] {
                let spec = PreprocessingSpec { input_size: Some(input_size), side_rounding, ..Default::default() };
                for (width, height) in (1..200).flat_map(|width| (1..200).map(move |height| (7 * width, 5 * height))) {
                    let placement = spec.place(width, height);
                    assert!(placement.resized_height <= input_size[0] && placement.resized_width <= input_size[1]);
                }
            }
        }
    }

    #[test]
    fn extreme_aspect_ratios_keep_at_least_one_pixel() {
        for (width, height) in [(1, 1), (4000, 2), (2, 4000)] {
            let bytes = vec![255; 3 * width as usize * height as usize];
            let view = RgbView::new(width, height, &bytes).unwrap();
            let Preprocessed { pixels, placement } = preprocess(view, &identity_normalization());
            assert!(placement.resized_width >= 1 && placement.resized_height >= 1);
            assert_eq!(pixels.dim(), (3, placement.padded_height as usize, placement.padded_width as usize));
            let corner = [2, placement.resized_height as usize - 1, placement.resized_width as usize - 1];
            assert!((pixels[corner] - 255.0).abs() < 1e-3);
        }
    }

    #[test]
    fn image_of_the_target_size_is_only_normalized() {
        let bytes = pattern();
        let spec = PreprocessingSpec { shorter_side: 5, longer_side: 7, ..Default::default() };
        let pixels = preprocess(RgbView::new(7, 5, &bytes).unwrap(), &spec).pixels;
        for (i, value) in bytes.iter().enumerate() {
            let (x, y, channel) = (i / 3 % 7, i / 21, i % 3);
            let expected = (f32::from(*value) / 255.0 - spec.mean[channel]) / spec.std[channel];
            assert!((pixels[[channel, y, x]] - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn padding_is_zero_after_normalization() {
        let bytes = pattern();
        let spec = PreprocessingSpec { shorter_side: 5, longer_side: 7, ..Default::default() };
        let pixels = preprocess(RgbView::new(7, 5, &bytes).unwrap(), &spec).pixels;
        assert_eq!(pixels.dim(), (3, 32, 32));
        let outside = pixels.indexed_iter().filter(|((_, y, x), _)| *y >= 5 || *x >= 7);
        assert!(outside.into_iter().all(|(_, value)| *value == 0.0));
    }
}
