//! The arguments that say which model runs, and on what.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use runtime::{Detector, DetectorError, DetectorOptions, EngineOptions, Provider};

use crate::rule_args::RuleArgs;

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
    /// Opens the model, to follow these rules.
    pub(crate) fn open(&self, rules: &RuleArgs) -> Result<Detector, DetectorError> {
        self.open_with(rules, None)
    }

    /// As [`ModelArgs::open`], with so many threads if given.
    pub(crate) fn open_with(&self, rules: &RuleArgs, threads: Option<NonZeroUsize>) -> Result<Detector, DetectorError> {
        let engine = EngineOptions {
            provider: self.provider,
            threads: threads.or(self.threads).map(NonZeroUsize::get),
            onnxruntime: self.onnxruntime.clone(),
        };
        Detector::open(&self.model, DetectorOptions { engine, rules: rules.rules(), views: rules.views() })
    }

    /// The model's file.
    pub(crate) fn path(&self) -> &Path {
        &self.model
    }
}
