//! Accuracy: the COCO AP of an ONNX file on a data set.

use std::path::Path;

use models::dataset::{DataError, Dataset, OnProblem, Source};
use models::evaluation::evaluate;
use runtime::data::{self, DetectDatasetError, detect_dataset};
use runtime::progress::Progress;
use runtime::{Detector, DetectorError, DetectorOptions, EngineOptions};

/// Why the AP cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyError {
    /// The data set cannot be read.
    #[error("cannot read the data set")]
    Data(#[from] DataError),
    /// The file cannot be opened.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// Detection on the data set fails.
    #[error(transparent)]
    Detect(#[from] DetectDatasetError),
    /// The data set has no boxes, so its AP is undefined.
    #[error("the data set has no boxes of the model's classes; choose another data set")]
    Empty,
}

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
    pub fn new(source: &Source) -> Result<Self, AccuracyError> {
        let (truth, _) = data::read(source, OnProblem::Keep)?;
        Ok(Self { truth })
    }

    /// The AP of the file `model`, in [0, 1].
    ///
    /// # Errors
    /// When the file does not run, an image cannot be read, or the data set has no boxes.
    pub fn of(&self, model: &Path, engine: &EngineOptions) -> Result<f64, AccuracyError> {
        let mut options = DetectorOptions::default();
        options.engine = engine.clone();
        let detector = Detector::open(model, options)?;
        let mut progress = Progress::new(Some(self.truth.images().len()), false);
        let detections = detect_dataset(&detector, &self.truth, detector.suggested_threads(), || progress.advance())?;
        let evaluation = evaluate(self.truth.annotations(), &detections, self.truth.classes().len());
        // -1 means undefined: there are no boxes.
        Some(evaluation.summary.ap).filter(|ap| *ap >= 0.0).ok_or(AccuracyError::Empty)
    }
}
