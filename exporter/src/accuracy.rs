//! Accuracy: the COCO AP of an ONNX file on a data set.

use std::path::Path;

use models::dataset::{Dataset, OnProblem, Source};
use models::evaluation::evaluate;
use runtime::data::{self, detect_dataset};
use runtime::{Detector, DetectorOptions, EngineOptions};

use crate::inputs::{MeasureError, OnProgress};

/// A data set to measure the AP on.
#[derive(Clone, Debug)]
pub struct Accuracy {
    truth: Dataset,
}

impl Accuracy {
    /// Reads the data set.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(source: &Source) -> Result<Self, MeasureError> {
        let (truth, _) = data::read(source, OnProblem::Keep)?;
        Ok(Self { truth })
    }

    /// The AP of the file `model`, in [0, 1].
    ///
    /// # Errors
    /// When the file does not run, an image cannot be read, or the data set has no boxes.
    pub fn of(&self, model: &Path, engine: &EngineOptions, on_progress: OnProgress) -> Result<f64, MeasureError> {
        let mut options = DetectorOptions::default();
        options.engine = engine.clone();
        let detector = Detector::open(model, options)?;
        let (mut done, count) = (0, self.truth.images().len());
        let detections = detect_dataset(&detector, &self.truth, detector.suggested_threads(), || {
            done += 1;
            on_progress(done, count);
        })?;
        let evaluation = evaluate(self.truth.annotations(), &detections, self.truth.classes().len());
        // -1 means undefined: there are no boxes.
        Some(evaluation.summary.ap).filter(|ap| *ap >= 0.0).ok_or(MeasureError::NoBoxes)
    }
}
