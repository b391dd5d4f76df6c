//! The activation reader: reads intermediate values of a network, for calibration.

use std::path::Path;

use models::onnx_contract::IMAGES;
use ndarray::ArrayView4;
use ort::session::Session;
use ort::value::TensorRef;

use crate::engine::{EngineError, EngineOptions, Fallback, session};

/// A network whose outputs, whatever their names and shapes, are all read.
#[derive(Debug)]
pub struct ActivationReader {
    session: Session,
}

impl ActivationReader {
    /// Opens an ONNX file with the input [`IMAGES`] and only float32 outputs.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, or cannot load the file.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let session =
            session(&path.display().to_string(), options, Fallback::Allowed, |builder| builder.commit_from_file(path))?;
        Ok(Self { session })
    }

    /// As [`ActivationReader::open`], for an ONNX file in memory; `name` names it in messages.
    ///
    /// # Errors
    /// As [`ActivationReader::open`].
    pub fn from_bytes(name: &str, bytes: &[u8], options: &EngineOptions) -> Result<Self, EngineError> {
        let session = session(name, options, Fallback::Allowed, |builder| builder.commit_from_memory(bytes))?;
        Ok(Self { session })
    }

    /// Runs the network on `[N, 3, H, W]` and calls `read` with the name and values of every output.
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
