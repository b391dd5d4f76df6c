//! Preprocessing: converts an image to the network's input, and boxes between both frames.

use std::convert::Infallible;
use std::ops::Range;

use ndarray::{Array3, Axis};
use pulp::{Arch, NullaryFnOnce};

use crate::boxes::BoundingBox;
use crate::resize::{Window, windows};
use crate::spec::{BoxScale, PadRule, PreprocessingSpec, ResizeFilter, SideRounding};

/// An RGB image in memory, 8 bits per channel, row by row, without gaps.
#[derive(Clone, Copy, Debug)]
pub struct RgbView<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

/// Why bytes are not a valid image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RgbViewError {
    /// A side is zero.
    #[error("image of {width}x{height} pixels is empty")]
    Empty {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// There are not three bytes per pixel.
    #[error("image of {width}x{height} pixels has {found} bytes, expected 3 per pixel")]
    Length {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// Number of bytes given.
        found: usize,
    },
}

impl<'a> RgbView<'a> {
    /// An image of `width` by `height` pixels, three bytes each.
    ///
    /// # Errors
    /// When a side is zero, or when `pixels` has another length than `3 · width · height`.
    pub fn new(width: u32, height: u32, pixels: &'a [u8]) -> Result<Self, RgbViewError> {
        if width == 0 || height == 0 {
            Err(RgbViewError::Empty { width, height })
        } else if pixels.len() as u128 != 3 * u128::from(width) * u128::from(height) {
            Err(RgbViewError::Length { width, height, found: pixels.len() })
        } else {
            Ok(Self { width, height, pixels })
        }
    }

    /// Pixels per row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }
}

/// An RGB image, 8 bits per channel, that gives its rows from top to bottom, so that it need not be in memory.
pub trait RgbRows {
    /// Why rows cannot be read.
    type Error;

    /// Pixels per row and number of rows, both at least 1.
    fn size(&self) -> (u32, u32);

    /// The bytes of these rows, without gaps. No range starts before an earlier one.
    ///
    /// # Errors
    /// When the rows cannot be read.
    fn rows(&mut self, rows: Range<usize>) -> Result<&[u8], Self::Error>;
}

impl RgbRows for RgbView<'_> {
    type Error = Infallible;

    fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    #[inline(always)]
    fn rows(&mut self, rows: Range<usize>) -> Result<&[u8], Infallible> {
        let length = 3 * self.width as usize;
        Ok(&self.pixels[rows.start * length..rows.end * length])
    }
}

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
///
/// With `round_pixels`, resized pixels are bytes, halves rounded up. With bilinear filter and antialiasing they are at most
/// 1 from those of Pillow 13.0, which also rounds between its two passes: of noise, 8 to 18 % of the values differ
/// (`tests/golden/pillow.py`).
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
                let value = if spec.round_pixels { f32::from(to_byte(rgb[channel])) } else { rgb[channel] };
                *normalized = value * factor[channel] + term[channel];
            }
        }
    };
    Arch::new().dispatch(Resize::new(image, [placement.resized_width, placement.resized_height], spec, store))?;
    Ok(Preprocessed { pixels, placement })
}

/// Resizes and pads an image, for networks that normalize it themselves. The bytes are those that [`preprocess`] normalizes
/// with `round_pixels`, `[padded_height, padded_width, 3]`, zero in the padding.
///
/// # Errors
/// Those of reading the rows.
pub fn preprocess_bytes<R: RgbRows>(image: R, spec: &PreprocessingSpec) -> Result<(Array3<u8>, Placement), R::Error> {
    let (width, height) = image.size();
    let placement = spec.place(width, height);
    let mut pixels = Array3::zeros((placement.padded_height as usize, placement.padded_width as usize, 3));
    let store = |y: usize, row: &[[f32; 4]]| {
        for (mut pixel, rgb) in pixels.index_axis_mut(Axis(0), y).outer_iter_mut().zip(row) {
            pixel.iter_mut().zip(rgb).for_each(|(byte, value)| *byte = to_byte(*value));
        }
    };
    Arch::new().dispatch(Resize::new(image, [placement.resized_width, placement.resized_height], spec, store))?;
    Ok((pixels, placement))
}

/// Resizes an image to `width` by `height` pixels, both at least 1: bilinear, with antialiasing. Returns RGB bytes.
pub fn resize(view: RgbView, width: u32, height: u32) -> Vec<u8> {
    let spec = PreprocessingSpec { filter: ResizeFilter::Bilinear, antialias: true, ..Default::default() };
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    let store = |_, row: &[[f32; 4]]| {
        pixels.extend(row.iter().flat_map(|[red, green, blue, _]| [red, green, blue].map(|value| to_byte(*value))));
    };
    let Ok(()) = Arch::new().dispatch(Resize::new(view, [width, height], &spec, store));
    pixels
}

/// The nearest byte, halves rounded up; 0 or 255 for values beyond.
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    (value + 0.5) as u8
}

/// The loops of resizing. They are compiled for several SIMD widths, of which the CPU's is selected at run time. All of
/// them do the same multiplications and additions, so results are identical to the last bit.
struct Resize<R, S> {
    image: R,
    rows: Vec<Window>,
    columns: Vec<Window>,
    /// Receives the index and the pixels of each resized row; the fourth value of a pixel is meaningless.
    store: S,
}

impl<R: RgbRows, S: FnMut(usize, &[[f32; 4]])> Resize<R, S> {
    fn new(image: R, [width, height]: [u32; 2], spec: &PreprocessingSpec, store: S) -> Self {
        let (original_width, original_height) = image.size();
        let rows = windows(original_height as usize, height as usize, spec);
        let columns = windows(original_width as usize, width as usize, spec);
        Self { image, rows, columns, store }
    }
}

impl<R: RgbRows, S: FnMut(usize, &[[f32; 4]])> NullaryFnOnce for Resize<R, S> {
    type Output = Result<(), R::Error>;

    // Only inlined code, here and below, is compiled for the wider registers.
    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { mut image, rows, columns, mut store } = self;
        // One element more than a row, so that its last pixel too can be read as four values.
        let mut blended = vec![0.0; 3 * image.size().0 as usize + 1];
        let mut resized = vec![[0.0; 4]; columns.len()];
        for (y, window) in rows.iter().enumerate() {
            let source = image.rows(window.start..window.start + window.weights.len())?;
            blend_rows(source, &window.weights, &mut blended);
            for (pixel, window) in resized.iter_mut().zip(&columns) {
                *pixel = blend_pixels(&blended, window);
            }
            store(y, &resized);
        }
        Ok(())
    }
}

/// Writes the weighted sum of rows to `blended`, which has one element more than a row.
#[inline(always)]
fn blend_rows(rows: &[u8], weights: &[f32], blended: &mut [f32]) {
    let length = blended.len() - 1;
    let blended = &mut blended[..length];
    blended.fill(0.0);
    for (row, weight) in rows.chunks_exact(length).zip(weights) {
        for (sum, value) in blended.iter_mut().zip(row) {
            *sum += weight * f32::from(*value);
        }
    }
}

/// The weighted sum of a window of pixels of a row; the fourth value is meaningless.
#[inline(always)]
fn blend_pixels(row: &[f32], window: &Window) -> [f32; 4] {
    let mut sum = [0.0; 4];
    let mut pixels = &row[3 * window.start..];
    for weight in &window.weights {
        for (sum, value) in sum.iter_mut().zip(&pixels[..4]) {
            *sum += weight * value;
        }
        pixels = &pixels[3..];
    }
    sum
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

    type Store<'a> = &'a mut dyn FnMut(usize, &[[f32; 4]]);

    #[test]
    fn simd_width_does_not_change_results() {
        let (width, height) = (203, 157);
        let bytes: Vec<_> = (0..3 * width * height).map(|i| (i * 7919 % 251) as u8).collect();
        let view = RgbView::new(width, height, &bytes).unwrap();
        for sides in [[64, 96], [300, 410], [157, 203]] {
            let resized = |run: &dyn Fn(Resize<RgbView, Store>)| {
                let mut bits = Vec::new();
                let mut store = |y, row: &[[f32; 4]]| {
                    bits.extend(
                        row.iter().flat_map(|[red, green, blue, _]| [*red, *green, *blue, y as f32].map(f32::to_bits)),
                    );
                };
                run(Resize::new(view, sides, &PreprocessingSpec::default(), &mut store));
                bits
            };
            let expected = resized(&|resize| Arch::new().dispatch(resize).unwrap());
            assert_eq!(expected.len() as u32, 4 * sides[0] * sides[1]);
            assert!(resized(&|resize| resize.call().unwrap()) == expected, "{sides:?}");
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

    // torch 2.11:
    // x = torch.tensor([[(x * 37 + y * 61) % 256 for x in range(7)] for y in range(5)]).double()[None, None]
    // F.interpolate(x, size, mode=mode, align_corners=False, antialias=antialias)[0, 0, 1]
    #[test]
    fn resizing_matches_torch() {
        use ResizeFilter::{Bicubic, Bilinear};
        let (smaller, larger) = (3, 8);
        let cases: [(u32, ResizeFilter, bool, &[f32]); 8] = [
            (smaller, Bilinear, false, &[135.875, 200.625, 41.375, 74.125]),
            (smaller, Bilinear, true, &[138.672, 153.4489, 107.7511, 95.709]),
            (smaller, Bicubic, false, &[132.894, 204.7676, 34.6074, 77.106]),
            (smaller, Bicubic, true, &[141.7309, 162.4203, 106.5433, 86.2933]),
            (larger, Bilinear, false, &[26.6875, 43.5057, 67.0511, 90.5966, 114.142]),
            (larger, Bilinear, true, &[26.6875, 43.5057, 67.0511, 90.5966, 114.142]),
            (larger, Bicubic, false, &[17.9151, 34.775, 62.9072, 83.5338, 108.6101]),
            (larger, Bicubic, true, &[18.4096, 34.4208, 61.3748, 84.9203, 107.9234]),
        ];
        for (shorter_side, filter, antialias, expected) in cases {
            let spec = PreprocessingSpec { shorter_side, filter, antialias, ..identity_normalization() };
            let pixels = preprocess(RgbView::new(7, 5, &pattern()).unwrap(), &spec).pixels;
            for (x, expected) in expected.iter().enumerate() {
                let found = pixels[[0, 1, x]];
                assert!((found - expected).abs() < 1e-3, "{filter:?}, {antialias}: {found}, expected {expected}");
                assert!((pixels[[2, 1, x]] - found - 2.0).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn rounded_pixels_are_the_bytes_of_resize() {
        let bytes = pattern();
        let view = RgbView::new(7, 5, &bytes).unwrap();
        for shorter_side in [1, 3, 5, 8] {
            let exact = PreprocessingSpec { shorter_side, ..identity_normalization() };
            let rounded = PreprocessingSpec { round_pixels: true, ..exact.clone() };
            let [exact, rounded] = [exact, rounded].map(|spec| preprocess(view, &spec));
            let Placement { resized_width: width, resized_height: height, .. } = exact.placement;
            let resized = resize(view, width, height);
            assert_eq!(resized.len() as u32, 3 * width * height);
            for (index, value) in resized.iter().enumerate() {
                let (x, y) = (index / 3 % width as usize, index / 3 / width as usize);
                assert!((f32::from(*value) - exact.pixels[[index % 3, y, x]]).abs() < 0.501);
                assert!((f32::from(*value) - rounded.pixels[[index % 3, y, x]]).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn rounded_pixels_of_bicubic_resizing_do_not_overshoot() {
        let bytes: Vec<_> = (0..3 * 64).map(|index| if index / 3 % 8 < 4 { 0 } else { 255 }).collect();
        let spec =
            PreprocessingSpec { fixed_size: Some([16, 16]), filter: ResizeFilter::Bicubic, ..identity_normalization() };
        let range = |round_pixels| {
            let spec = PreprocessingSpec { round_pixels, ..spec.clone() };
            let pixels = preprocess(RgbView::new(8, 8, &bytes).unwrap(), &spec).pixels;
            pixels.iter().fold((0f32, 255f32), |(min, max), value| (min.min(*value), max.max(*value)))
        };
        let (exact, rounded) = (range(false), range(true));
        assert!(exact.0 < -1.0 && exact.1 > 256.0, "{exact:?}");
        assert!(rounded.0 >= 0.0 && (rounded.1 - 255.0).abs() < 1e-3, "{rounded:?}");
    }

    #[test]
    fn resize_supports_any_sizes() {
        let bytes = [77; 3 * 60];
        for (width, height) in [(60, 1), (1, 60), (6, 10)] {
            for (to_width, to_height) in [(1, 1), (100, 1), (2, 300)] {
                let view = RgbView::new(width, height, &bytes).unwrap();
                assert_eq!(resize(view, to_width, to_height), vec![77; 3 * (to_width * to_height) as usize]);
            }
        }
    }

    #[test]
    fn empty_images_and_wrong_lengths_are_rejected() {
        assert_eq!(RgbView::new(0, 4, &[]).unwrap_err(), RgbViewError::Empty { width: 0, height: 4 });
        let error = RgbView::new(2, 2, &[0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "image of 2x2 pixels has 11 bytes, expected 3 per pixel");
        assert!(RgbView::new(u32::MAX, u32::MAX, &[0; 3]).is_err());
    }
}
