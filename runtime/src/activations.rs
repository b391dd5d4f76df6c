//! The activation reader: reads values inside of a network, on which calibration depends.

use std::path::Path;

use ndarray::ArrayView4;
use ort::session::Session;
use ort::value::TensorRef;

use crate::engine::{EngineError, EngineOptions, Fallback, IMAGES, session};

/// A network all of whose outputs are read, whatever they are.
#[derive(Debug)]
pub struct ActivationReader {
    session: Session,
}

impl ActivationReader {
    /// Opens an ONNX file that reads [`IMAGES`] and computes 32-bit floating point only.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, or does not take the file.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let session =
            session(&path.display().to_string(), options, Fallback::Allowed, |builder| builder.commit_from_file(path))?;
        Ok(Self { session })
    }

    /// Opens an ONNX file in memory that reads [`IMAGES`] and computes 32-bit floating point only; `name` stands for it in
    /// messages.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, or does not take the file.
    pub fn from_bytes(name: &str, bytes: &[u8], options: &EngineOptions) -> Result<Self, EngineError> {
        let session = session(name, options, Fallback::Allowed, |builder| builder.commit_from_memory(bytes))?;
        Ok(Self { session })
    }

    /// Runs the network on `[N, 3, H, W]` and hands over every output, under its name.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn read(&mut self, images: ArrayView4<f32>, mut read: impl FnMut(&str, &[f32])) -> Result<(), EngineError> {
        let shape = images.shape().to_vec();
        let run_error = |error: ort::Error| EngineError::run(&shape, &error);
        let images = images.as_standard_layout();
        let input = TensorRef::from_array_view(&images).map_err(run_error)?;
        let outputs = self.session.run(ort::inputs![IMAGES => input]).map_err(run_error)?;
        for (name, value) in &outputs {
            let (_, values) = value.try_extract_tensor::<f32>().map_err(run_error)?;
            read(name, values);
        }
        Ok(())
    }
}
