//! The arguments that say which model runs, and on what.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use runtime::{Detector, DetectorError, DetectorOptions, EngineOptions, Provider};

/// Which model runs, and on what.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model: an ONNX file that `exporter` wrote.
    #[arg(long, value_name = "FILE", default_value = "retinanet.onnx")]
    model: PathBuf,

    /// What computes the network: cpu, cuda or cuda:N. It is used, or the program fails.
    #[arg(long, value_name = "NAME", default_value_t)]
    provider: Provider,

    /// Threads that compute the network. [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Library of ONNX Runtime. [default: ORT_DYLIB_PATH, else what is found beside the program, in `.deps` above it or
    /// above the current folder, or in the system]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the model. `score_threshold` replaces the one that the file says.
    pub(crate) fn open(&self, score_threshold: Option<f32>) -> Result<Detector, DetectorError> {
        let engine = EngineOptions {
            provider: self.provider,
            threads: self.threads.map(NonZeroUsize::get),
            onnxruntime: self.onnxruntime.clone(),
        };
        Detector::open(&self.model, DetectorOptions { engine, score_threshold })
    }
}
