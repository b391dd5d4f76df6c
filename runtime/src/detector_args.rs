//! Arguments of a detector that processes many images: model, thresholds, engines and workers.

use std::num::NonZeroUsize;

use anyhow::Result;
use runtime::{Detector, DetectorOptions};

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::value_parsers::up_to;

/// Maximum batch size; larger batches are of no use on any machine.
pub(crate) const MAX_BATCH: u64 = 1024;

/// Arguments of a detector.
#[derive(Debug, clap::Args)]
pub(crate) struct DetectorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    rules: RuleArgs,

    /// Sessions of ONNX Runtime, each with its own thread. Two hide the copies to and from a GPU.
    #[arg(long, value_name = "N", value_parser = up_to(64), default_value = "1", help_heading = "Performance")]
    instances: NonZeroUsize,

    /// Threads, each of which reads an image, detects and writes [default: two per image that the network runs at a time,
    /// plus one; on a GPU plus one per core].
    #[arg(long, value_name = "N", value_parser = up_to(1024), help_heading = "Performance")]
    workers: Option<NonZeroUsize>,
}

impl DetectorArgs {
    /// The options of the detector that these arguments set.
    pub(crate) fn options(&self) -> DetectorOptions {
        let mut options = DetectorOptions::default();
        options.engine = self.model.engine();
        (options.rules, options.views) = (self.rules.rules(), self.rules.views());
        options.instances = self.instances;
        options
    }

    /// Opens the model with these options.
    pub(crate) fn open(&self, options: DetectorOptions) -> Result<Detector> {
        self.model.open(options)
    }

    /// The number of threads that process images.
    pub(crate) fn workers(&self, detector: &Detector) -> usize {
        self.workers.map_or_else(|| detector.suggested_threads(), NonZeroUsize::get)
    }
}
