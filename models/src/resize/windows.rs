//! Resizing along one axis: the weights with which source pixels contribute to each resized pixel.
//!
//! They reproduce PyTorch's `interpolate` with `align_corners=False`, the convention of most training pipelines, or
//! scikit-image's `resize`.

use std::ops::{AddAssign, Mul, Range};

use crate::spec::{PreprocessingSpec, Resampling, ResizeFilter};

/// The source pixels of one resized pixel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window<W = f64> {
    /// Index of the first source pixel.
    pub(super) start: usize,
    /// One weight per source pixel; as `f64`, they sum to 1.
    pub(super) weights: Vec<W>,
}

impl<W> Window<W> {
    /// The source pixels.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.weights.len()
    }
}

impl<W: Copy + Default + AddAssign + Mul<Output = W>> Window<W> {
    /// The weighted sum of pixels of a row, three values each, with one value more at its end, so that the last pixel too can
    /// be read as four values; the fourth value is meaningless.
    #[inline(always)]
    pub(super) fn sum(&self, row: &[W]) -> [W; 4] {
        let mut sum = [W::default(); 4];
        let mut pixels = &row[3 * self.start..];
        for weight in &self.weights {
            for (sum, value) in sum.iter_mut().zip(&pixels[..4]) {
                *sum += *weight * *value;
            }
            pixels = &pixels[3..];
        }
        sum
    }
}

/// The windows of `output` resized pixels over `input` source pixels, both at least 1, with weights of another type. None
/// starts before an earlier one.
pub(super) fn windows_of<W>(
    input: usize,
    output: usize,
    spec: &PreprocessingSpec,
    weight: impl Fn(f64) -> W,
) -> Vec<Window<W>> {
    let mut windows = windows(input, output, spec);
    // Without the zeros at its ends, a window may start behind the next one.
    let mut next = input;
    for window in windows.iter_mut().rev() {
        let zeros = window.start.saturating_sub(next);
        window.weights.splice(..0, std::iter::repeat_n(0.0, zeros));
        window.start -= zeros;
        next = window.start;
    }
    let convert = |Window { start, weights }| Window { start, weights: weights.into_iter().map(&weight).collect() };
    windows.into_iter().map(convert).collect()
}

fn windows(input: usize, output: usize, spec: &PreprocessingSpec) -> Vec<Window> {
    let scale = input as f64 / output as f64;
    // In source pixels. The center of pixel i is at i + 0.5.
    let centers = (0..output).map(|i| (i as f64 + 0.5) * scale);
    let kernel = match (spec.filter, spec.antialias) {
        (ResizeFilter::Nearest, _) => return centers.map(|c| nearest(c, input)).collect(),
        (ResizeFilter::Bilinear, _) => Kernel { radius: 1.0, weight: |x| (1.0 - x).max(0.0) },
        // PyTorch uses another coefficient with antialiasing.
        (ResizeFilter::Bicubic, false) => Kernel { radius: 2.0, weight: |x| cubic(x, -0.75) },
        (ResizeFilter::Bicubic, true) => Kernel { radius: 2.0, weight: |x| cubic(x, -0.5) },
    };
    match (spec.resampling, spec.antialias) {
        (Resampling::Torch, true) => centers.map(|c| antialiased(c, input, scale.max(1.0), &kernel)).collect(),
        (Resampling::Torch, false) => centers.map(|c| interpolated(c, input, &kernel)).collect(),
        (Resampling::ScikitImage, antialias) => {
            let blur = gaussian(if antialias { (0.5 * (scale - 1.0)).max(0.0) } else { 0.0 });
            centers.map(|c| blurred(c, input, &blur)).collect()
        }
    }
}

/// An interpolation kernel: a weight for each absolute distance, zero from `radius` on.
struct Kernel {
    radius: f64,
    weight: fn(f64) -> f64,
}

/// The pixel that contains the center: PyTorch's `nearest-exact` and Pillow's `NEAREST`.
fn nearest(center: f64, input: usize) -> Window {
    Window { start: (center as usize).min(input - 1), weights: vec![1.0] }
}

/// The kernel at its original size. Beyond the edge, the last pixel is repeated.
fn interpolated(center: f64, input: usize, kernel: &Kernel) -> Window {
    let last = input - 1;
    let (first, end) = support(center, kernel.radius);
    let inside = |pixel: i64| pixel.clamp(0, last as i64) as usize;
    let start = inside(first);
    let mut weights = vec![0.0; inside(end - 1) - start + 1];
    for pixel in first..end {
        weights[inside(pixel) - start] += (kernel.weight)((pixel as f64 + 0.5 - center).abs());
    }
    Window::normalized(start, &weights)
}

/// The kernel widened by the factor `widening`, which prevents aliasing when an image shrinks. Pixels beyond the edge have
/// no weight.
fn antialiased(center: f64, input: usize, widening: f64, kernel: &Kernel) -> Window {
    let (first, end) = support(center, kernel.radius * widening);
    let (first, end) = (first.max(0) as usize, end.min(input as i64) as usize);
    let weight = |pixel: usize| (kernel.weight)((pixel as f64 + 0.5 - center).abs() / widening);
    Window::normalized(first, &(first..end).map(weight).collect::<Vec<_>>())
}

/// Linear interpolation between two pixels after a convolution with `blur`, an odd number of weights. Beyond the edge, the
/// image is mirrored about the center of its last pixel.
fn blurred(center: f64, input: usize, blur: &[f64]) -> Window {
    let first = (center - 0.5).floor();
    let fraction = center - 0.5 - first;
    let radius = blur.len() as i64 / 2;
    let blur = |offset: i64| usize::try_from(offset + radius).ok().and_then(|i| blur.get(i)).copied().unwrap_or(0.0);
    let weight = |offset: i64| (1.0 - fraction) * blur(offset) + fraction * blur(offset - 1);
    let taps = (-radius..=radius + 1).map(|offset| (mirrored(first as i64 + offset, input), weight(offset)));
    let (start, last) =
        taps.clone().fold((input - 1, 0), |(start, last), (pixel, _)| (start.min(pixel), last.max(pixel)));
    let mut weights = vec![0.0; last - start + 1];
    for (pixel, weight) in taps {
        weights[pixel - start] += weight;
    }
    Window::normalized(start, &weights)
}

/// The pixel inside the image that `pixel` maps to by mirroring at the centers of the first and last pixels.
fn mirrored(pixel: i64, input: usize) -> usize {
    let period = (2 * (input as i64 - 1)).max(1);
    let pixel = pixel.rem_euclid(period);
    pixel.min(period - pixel) as usize
}

/// The weights of a Gaussian, cut off at four standard deviations; they are not normalized.
fn gaussian(sigma: f64) -> Vec<f64> {
    let radius = (4.0 * sigma + 0.5) as i32;
    match radius {
        0 => vec![1.0],
        _ => (-radius..=radius).map(|x| (-0.5 * (f64::from(x) / sigma).powi(2)).exp()).collect(),
    }
}

/// The pixels whose centers are within `radius` of `center`: the first one, and the one after the last.
fn support(center: f64, radius: f64) -> (i64, i64) {
    ((center - radius + 0.5).floor() as i64, (center + radius + 0.5).floor() as i64)
}

/// Cubic convolution with slope `a` at distance 1. <https://doi.org/10.1109/TASSP.1981.1163711>
fn cubic(x: f64, a: f64) -> f64 {
    match x {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    }
}

impl Window {
    /// A window with weights that sum to 1, without zeros at its ends, so that an image that keeps its size is copied.
    fn normalized(start: usize, weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        let zeros = weights.iter().take_while(|w| **w == 0.0).count();
        let end = weights.len() - weights.iter().rev().take_while(|w| **w == 0.0).count();
        Self { start: start + zeros, weights: weights[zeros..end].iter().map(|w| w / sum).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [ResizeFilter; 3] = [ResizeFilter::Bilinear, ResizeFilter::Bicubic, ResizeFilter::Nearest];

    fn specs() -> impl Iterator<Item = PreprocessingSpec> {
        let spec = |filter, antialias| PreprocessingSpec { filter, antialias, ..Default::default() };
        let scikit_image = |antialias| PreprocessingSpec {
            resampling: Resampling::ScikitImage,
            ..spec(ResizeFilter::Bilinear, antialias)
        };
        let scikit_image = [scikit_image(false), scikit_image(true)];
        FILTERS.into_iter().flat_map(move |filter| [spec(filter, false), spec(filter, true)]).chain(scikit_image)
    }

    #[test]
    fn weights_sum_to_one_and_windows_stay_inside_the_image() {
        for spec in specs() {
            for (input, output) in [(1, 1), (1, 9), (9, 1), (2, 3), (3, 2), (100, 7), (7, 100), (4000, 1024), (9, 17)] {
                let windows = windows_of(input, output, &spec, |weight| weight);
                assert_eq!(windows.len(), output);
                assert!(windows.is_sorted_by_key(|window| window.start));
                for window in windows {
                    assert!((window.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{window:?}");
                    assert!(window.start + window.weights.len() <= input, "{window:?}");
                }
            }
        }
    }

    #[test]
    fn resizing_to_the_same_size_copies() {
        for spec in specs() {
            let copy = |start| Window { start, weights: vec![1.0] };
            assert_eq!(windows(5, 5, &spec), (0..5).map(copy).collect::<Vec<_>>());
        }
    }

    #[test]
    fn windows_are_mirror_symmetric() {
        for spec in specs().filter(|spec| spec.filter != ResizeFilter::Nearest) {
            let windows = windows(23, 10, &spec);
            for (window, mirror) in windows.iter().zip(windows.iter().rev()) {
                assert_eq!(window.start, 23 - mirror.start - mirror.weights.len());
                let pairs = window.weights.iter().zip(mirror.weights.iter().rev());
                assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}
