//! Accuracy: what an ONNX file is worth on a data set, in COCO's AP.

use std::path::Path;

use models::dataset::{DataError, Dataset, OnProblem, Source};
use models::evaluation::evaluate;
use runtime::data::{self, FindError, find};
use runtime::progress::Progress;
use runtime::{Detector, DetectorError, DetectorOptions, EngineOptions};

/// Why it can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyError {
    /// The data set can't be read.
    #[error("cannot read the data set")]
    Data(#[from] DataError),
    /// The file can't be run.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// The file can't be run on the data set.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Without boxes there is nothing to find.
    #[error("the data set has no boxes of the model's classes; name another one")]
    Empty,
}

/// A data set to measure on.
#[derive(Clone, Debug)]
pub struct Accuracy {
    truth: Dataset,
}

impl Accuracy {
    /// Reads the data set.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn new(source: &Source) -> Result<Self, AccuracyError> {
        let (truth, _) = data::read(source, OnProblem::Keep)?;
        Ok(Self { truth })
    }

    /// The AP of the file `model`, in [0, 1].
    ///
    /// # Errors
    /// When the file does not run, an image can't be read, or there is nothing to find.
    pub fn of(&self, model: &Path, engine: &EngineOptions) -> Result<f64, AccuracyError> {
        let options = DetectorOptions { engine: engine.clone(), ..DetectorOptions::default() };
        let detector = Detector::open(model, options)?;
        let mut progress = Progress::new(Some(self.truth.images.len()), false);
        let found = find(&detector, &self.truth, || progress.advance())?;
        let evaluation = evaluate(&self.truth.annotations, &found, self.truth.classes.len());
        // -1 stands for none.
        Some(evaluation.summary.ap).filter(|ap| *ap >= 0.0).ok_or(AccuracyError::Empty)
    }
}
