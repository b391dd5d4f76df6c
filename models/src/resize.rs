//! Resizing images.

mod fixed;
mod float;
mod windows;

use pulp::Arch;

use crate::rgb::{RgbRows, RgbView};
use crate::spec::{ByteResampling, PreprocessingSpec, ResizeFilter};

/// Resizes an image to `width` by `height` pixels, both at least 1: bilinear, with antialiasing. Returns RGB bytes, those of
/// Pillow.
pub fn resize(view: RgbView, width: u32, height: u32) -> Vec<u8> {
    let filter = ResizeFilter::Bilinear;
    let spec = PreprocessingSpec { filter, antialias: true, round_pixels: true, ..Default::default() };
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    let store = |_, row: &[[f32; 4]]| {
        pixels.extend(row.iter().flat_map(|[red, green, blue, _]| [red, green, blue].map(|value| *value as u8)));
    };
    let Ok(()) = resize_rows(view, [width, height], &spec, store);
    pixels
}

/// Resizes an image to width and height, and gives `store` the index and the pixels of each row; the fourth value of a pixel
/// is meaningless.
///
/// With `round_pixels`, they are whole numbers from 0 to 255: those of the library that
/// [`byte_resampling`](PreprocessingSpec::byte_resampling) names, else the nearest.
pub(crate) fn resize_rows<R: RgbRows>(
    image: R,
    size: [u32; 2],
    spec: &PreprocessingSpec,
    store: impl FnMut(usize, &[[f32; 4]]),
) -> Result<(), R::Error> {
    let arch = Arch::new();
    match spec.byte_resampling() {
        Some(ByteResampling::Pillow) => arch.dispatch(fixed::Resize::new(fixed::Pillow, image, size, spec, store)),
        Some(ByteResampling::OpenCv) => arch.dispatch(fixed::Resize::new(fixed::OpenCv, image, size, spec, store)),
        None => arch.dispatch(float::Resize::new(image, size, spec, store)),
    }
}

#[cfg(test)]
mod tests {
    use pulp::NullaryFnOnce;

    use super::*;

    /// An image of 7x5 pixels with green = red + 1 and blue = red + 2.
    fn pattern() -> Vec<u8> {
        let pixel = |x, y, channel| ((x * 37 + y * 61) % 256 + channel) as u8;
        (0..5).flat_map(|y| (0..7).flat_map(move |x| (0..3).map(move |channel| pixel(x, y, channel)))).collect()
    }

    /// Red, green and blue of each pixel, row by row.
    fn resized(view: RgbView, size: [u32; 2], spec: &PreprocessingSpec) -> Vec<[f32; 3]> {
        let mut pixels = Vec::new();
        let store = |y, row: &[[f32; 4]]| {
            assert_eq!((y * row.len(), row.len()), (pixels.len(), size[0] as usize));
            pixels.extend(row.iter().map(|[red, green, blue, _]| [*red, *green, *blue]));
        };
        let Ok(()) = resize_rows(view, size, spec, store);
        pixels
    }

    #[test]
    fn simd_width_does_not_change_results() {
        let bytes: Vec<_> = (0..3 * 203 * 157).map(|i| (i * 7919 % 251) as u8).collect();
        let view = RgbView::new(203, 157, &bytes).unwrap();
        for size in [[64, 96], [300, 410], [203, 157]] {
            for round_pixels in [false, true] {
                let spec = PreprocessingSpec { antialias: true, round_pixels, ..Default::default() };
                let mut narrow = Vec::new();
                let store =
                    |_, row: &[[f32; 4]]| narrow.extend(row.iter().map(|[red, green, blue, _]| [*red, *green, *blue]));
                let Ok(()) = match round_pixels {
                    true => fixed::Resize::new(fixed::Pillow, view, size, &spec, store).call(),
                    false => float::Resize::new(view, size, &spec, store).call(),
                };
                let bits = |pixels: Vec<[f32; 3]>| pixels.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>();
                assert!(bits(narrow) == bits(resized(view, size, &spec)), "{size:?}");
            }
        }
    }

    // torch 2.11:
    // x = torch.tensor([[(x * 37 + y * 61) % 256 for x in range(7)] for y in range(5)]).double()[None, None]
    // F.interpolate(x, size, mode=mode, align_corners=False, antialias=antialias)[0, 0, 1]
    #[test]
    fn resizing_matches_torch() {
        use ResizeFilter::{Bicubic, Bilinear};
        let (smaller, larger) = ([4, 3], [11, 8]);
        let cases: [([u32; 2], ResizeFilter, bool, &[f32]); 8] = [
            (smaller, Bilinear, false, &[135.875, 200.625, 41.375, 74.125]),
            (smaller, Bilinear, true, &[138.672, 153.4489, 107.7511, 95.709]),
            (smaller, Bicubic, false, &[132.894, 204.7676, 34.6074, 77.106]),
            (smaller, Bicubic, true, &[141.7309, 162.4203, 106.5433, 86.2933]),
            (larger, Bilinear, false, &[26.6875, 43.5057, 67.0511, 90.5966, 114.142]),
            (larger, Bilinear, true, &[26.6875, 43.5057, 67.0511, 90.5966, 114.142]),
            (larger, Bicubic, false, &[17.9151, 34.775, 62.9072, 83.5338, 108.6101]),
            (larger, Bicubic, true, &[18.4096, 34.4208, 61.3748, 84.9203, 107.9234]),
        ];
        for (size, filter, antialias, expected) in cases {
            let spec = PreprocessingSpec { filter, antialias, round_pixels: false, ..Default::default() };
            let pixels = resized(RgbView::new(7, 5, &pattern()).unwrap(), size, &spec);
            for (expected, [red, _, blue]) in expected.iter().zip(&pixels[size[0] as usize..]) {
                assert!((red - expected).abs() < 1e-3, "{filter:?}, {antialias}: {red}, expected {expected}");
                assert!((blue - red - 2.0).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn rounded_pixels_are_bytes_near_the_exact_values() {
        let bytes: Vec<_> = (0..3 * 64).map(|index| if index / 3 % 8 < 4 { 0 } else { 255 }).chain([9; 24]).collect();
        let view = RgbView::new(8, 9, &bytes).unwrap();
        for filter in [ResizeFilter::Bilinear, ResizeFilter::Bicubic, ResizeFilter::Nearest] {
            for (antialias, size) in [(false, [3, 4]), (true, [3, 4]), (false, [16, 17]), (true, [16, 17])] {
                let exact = PreprocessingSpec { filter, antialias, round_pixels: false, ..Default::default() };
                let rounded = resized(view, size, &PreprocessingSpec { round_pixels: true, ..exact.clone() });
                let exact = resized(view, size, &exact);
                let overshoots = exact.iter().flatten().any(|value| *value < -1.0 || *value > 256.0);
                assert!(overshoots || filter != ResizeFilter::Bicubic || size == [3, 4]);
                for (rounded, exact) in rounded.iter().flatten().zip(exact.iter().flatten()) {
                    assert_eq!(f32::from(*rounded as u8), *rounded);
                    let difference = (rounded - exact.clamp(0.0, 255.0)).abs();
                    // Two roundings, along rows and along columns; one beyond the range has more effect.
                    let max = if filter == ResizeFilter::Bicubic { 30.0 } else { 1.001 };
                    assert!(difference <= max, "{filter:?}, {antialias}, {size:?}: {rounded}, {exact}");
                }
            }
        }
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
}
