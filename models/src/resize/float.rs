//! Resizing with floating-point numbers: first along columns, then along rows.

use pulp::NullaryFnOnce;

use super::windows::{Window, windows_of};
use crate::rgb::RgbRows;
use crate::spec::PreprocessingSpec;

/// The loops of resizing. They are compiled for several SIMD widths, of which the CPU's is selected at run time. All of
/// them do the same multiplications and additions, so results are identical to the last bit.
pub(super) struct Resize<R, S> {
    image: R,
    rows: Vec<Window<f32>>,
    columns: Vec<Window<f32>>,
    /// Whether the resized pixels are rounded to bytes.
    round: bool,
    store: S,
}

impl<R: RgbRows, S: FnMut(usize, &[[f32; 4]])> Resize<R, S> {
    pub(super) fn new(image: R, [width, height]: [u32; 2], spec: &PreprocessingSpec, store: S) -> Self {
        let windows = |from: u32, to: u32| windows_of(from as usize, to as usize, spec, |weight| weight as f32);
        let (original_width, original_height) = image.size();
        let (rows, columns) = (windows(original_height, height), windows(original_width, width));
        Self { image, rows, columns, round: spec.round_pixels, store }
    }
}

impl<R: RgbRows, S: FnMut(usize, &[[f32; 4]])> NullaryFnOnce for Resize<R, S> {
    type Output = Result<(), R::Error>;

    // Only inlined code, here and below, is compiled for the wider registers.
    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { mut image, rows, columns, round, mut store } = self;
        // One element more than a row, for `Window::sum`.
        let mut blended = vec![0.0; 3 * image.size().0 as usize + 1];
        let mut resized = vec![[0.0; 4]; columns.len()];
        for (y, window) in rows.iter().enumerate() {
            blend_rows(image.rows(window.range())?, &window.weights, &mut blended);
            for (pixel, window) in resized.iter_mut().zip(&columns) {
                *pixel = window.sum(&blended);
            }
            if round {
                resized.iter_mut().flatten().for_each(|value| *value = f32::from(to_byte(*value)));
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

/// The nearest byte, halves rounded up; 0 or 255 for values beyond.
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    (value + 0.5) as u8
}
