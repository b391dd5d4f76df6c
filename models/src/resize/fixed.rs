//! Resizing bytes with whole numbers, as Pillow and OpenCV do: first along rows, then along columns.

use std::marker::PhantomData;

use pulp::NullaryFnOnce;

use super::windows::{Window, windows_of};
use crate::rgb::RgbRows;
use crate::spec::PreprocessingSpec;

/// The arithmetic of a library. Values are multiplied by whole weights and summed, first along rows, then along columns.
pub(super) trait FixedPoint {
    /// A weight of 1 is 2 to the power of this.
    const BITS: u32;

    /// What is left of the sum over a row.
    fn between(sum: i32) -> i16;

    /// A term of the sum over a column.
    fn product(weight: i32, value: i16) -> i32;

    /// The byte of a sum over a column.
    fn byte(sum: i32) -> u8;
}

/// Pillow before version 13. Later ones begin with the columns where the height shrinks by more than twice as many pixels as
/// the width. `src/libImaging/Resample.c`
pub(super) struct Pillow;

impl FixedPoint for Pillow {
    const BITS: u32 = 22;

    #[inline(always)]
    fn between(sum: i32) -> i16 {
        Self::byte(sum).into()
    }

    #[inline(always)]
    fn product(weight: i32, value: i16) -> i32 {
        weight * i32::from(value)
    }

    #[inline(always)]
    fn byte(sum: i32) -> u8 {
        ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
    }
}

/// OpenCV's `INTER_LINEAR`. In the first and last row, which it adds up from two halves, it may be less by 1.
/// `modules/imgproc/src/resize.cpp`
pub(super) struct OpenCv;

impl FixedPoint for OpenCv {
    const BITS: u32 = 11;

    #[inline(always)]
    fn between(sum: i32) -> i16 {
        (sum >> 4) as i16
    }

    #[inline(always)]
    fn product(weight: i32, value: i16) -> i32 {
        (weight * i32::from(value)) >> 16
    }

    #[inline(always)]
    fn byte(sum: i32) -> u8 {
        ((sum + 2) >> 2) as u8
    }
}

/// The loops of resizing with an arithmetic `A`, for several SIMD widths as in [`super::float`].
pub(super) struct Resize<A, R, S> {
    image: R,
    rows: Vec<Window<i32>>,
    columns: Vec<Window<i32>>,
    store: S,
    arithmetic: PhantomData<A>,
}

impl<A: FixedPoint, R: RgbRows, S: FnMut(usize, &[[f32; 4]])> Resize<A, R, S> {
    pub(super) fn new(_: A, image: R, [width, height]: [u32; 2], spec: &PreprocessingSpec, store: S) -> Self {
        let whole = |weight: f64| (weight * f64::from(1 << A::BITS)).round() as i32;
        let windows = |from: u32, to: u32| windows_of(from as usize, to as usize, spec, whole);
        let (original_width, original_height) = image.size();
        let (rows, columns) = (windows(original_height, height), windows(original_width, width));
        Self { image, rows, columns, store, arithmetic: PhantomData }
    }
}

impl<A: FixedPoint, R: RgbRows, S: FnMut(usize, &[[f32; 4]])> NullaryFnOnce for Resize<A, R, S> {
    type Output = Result<(), R::Error>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { mut image, rows, columns, mut store, .. } = self;
        // One element more than a row, for `Window::sum`.
        let mut source = vec![0; 3 * image.size().0 as usize + 1];
        let length = 3 * columns.len();
        // The rows of a window, resized along the row, and the index of the first one.
        let (mut between, mut first) = (Vec::<i16>::new(), 0);
        let mut sums = vec![0; length];
        let mut resized = vec![[0.0; 4]; columns.len()];
        for (y, window) in rows.iter().enumerate() {
            let passed = (window.start - first).min(between.len() / length);
            between.drain(..passed * length);
            first = window.start;
            for index in first + between.len() / length..window.range().end {
                source
                    .iter_mut()
                    .zip(image.rows(index..index + 1)?)
                    .for_each(|(value, byte)| *value = i32::from(*byte));
                for window in &columns {
                    let [red, green, blue, _] = window.sum(&source).map(A::between);
                    between.extend([red, green, blue]);
                }
            }
            sums.fill(0);
            for (row, weight) in between.chunks_exact(length).zip(&window.weights) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += A::product(*weight, *value);
                }
            }
            for (pixel, sums) in resized.iter_mut().zip(sums.as_chunks::<3>().0) {
                let [red, green, blue] = sums.map(|sum| f32::from(A::byte(sum)));
                *pixel = [red, green, blue, 0.0];
            }
            store(y, &resized);
        }
        Ok(())
    }
}
