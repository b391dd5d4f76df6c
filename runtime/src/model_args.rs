//! The arguments that say which model runs, and on what.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use runtime::{Detector, DetectorError, DetectorOptions, EngineOptions, Provider, Rules, ViewOptions};

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
    /// Opens the model.
    pub(crate) fn open(&self, rules: Rules, views: ViewOptions) -> Result<Detector, DetectorError> {
        self.open_with(self.threads, rules, views)
    }

    /// As [`ModelArgs::open`], with so many threads; as many as there are cores if absent.
    pub(crate) fn open_with(
        &self,
        threads: Option<NonZeroUsize>,
        rules: Rules,
        views: ViewOptions,
    ) -> Result<Detector, DetectorError> {
        let engine = EngineOptions {
            provider: self.provider,
            threads: threads.map(NonZeroUsize::get),
            onnxruntime: self.onnxruntime.clone(),
        };
        Detector::open(&self.model, DetectorOptions { engine, rules, views })
    }

    /// Threads that compute the network; as many as there are cores if absent.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads
    }

    /// The model's file.
    pub(crate) fn path(&self) -> &Path {
        &self.model
    }
}
