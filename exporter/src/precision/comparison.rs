//! The comparison: how far a file of fewer bits is from that of 32.

use std::path::Path;

use ndarray::{ArrayView3, Zip};
use runtime::{Engine, EngineOptions};

use super::calibration::{CalibrationError, Inputs};
use crate::proof::Differences;

/// How far two files are from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The largest differences; NaN if a number of either is.
    pub largest: Differences,
    /// The roots of the mean squares of the differences.
    pub typical: Differences,
}

/// Runs both files on all inputs.
pub(crate) fn compare(
    full: &Path,
    lowered: &Path,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<Comparison, CalibrationError> {
    let (full, lowered) = (Engine::open(full, engine)?, Engine::open(lowered, engine)?);
    let (mut scores, mut offsets) = (Distance::default(), Distance::default());
    for images in inputs.each() {
        let images = images?;
        let (expected, found) = (full.run(images.view())?, lowered.run(images.view())?);
        scores.add(expected.scores(), found.scores());
        offsets.add(expected.offsets(), found.offsets());
    }
    Ok(Comparison {
        largest: Differences { scores: scores.largest, offsets: offsets.largest },
        typical: Differences { scores: scores.typical(), offsets: offsets.typical() },
    })
}

/// How far two lists of numbers are from each other.
#[derive(Default)]
struct Distance {
    largest: f32,
    squares: f64,
    count: usize,
}

impl Distance {
    fn add(&mut self, expected: ArrayView3<f32>, found: ArrayView3<f32>) {
        Zip::from(expected).and(found).for_each(|expected, found| {
            let difference = (expected - found).abs();
            // `f32::max` would lose a NaN.
            if difference > self.largest || difference.is_nan() {
                self.largest = difference;
            }
            self.squares += f64::from(difference).powi(2);
            self.count += 1;
        });
    }

    fn typical(&self) -> f32 {
        (self.squares / self.count.max(1) as f64).sqrt() as f32
    }
}
