//! Arguments of a detector that processes many images: model, thresholds, batch size and workers.

use anyhow::{Result, bail};
use runtime::image_file::Limits;
use runtime::pipeline::PipelineOptions;
use runtime::{Detector, DetectorError};

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::up_to;

/// Arguments of the detector and its batches.
#[derive(Debug, clap::Args)]
pub(crate) struct DetectorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    rules: RuleArgs,

    /// Report only these classes, by name or id, separated by commas.
    #[arg(long, value_name = "NAMES", help_heading = "Thresholds")]
    classes: Option<Vec<String>>,

    /// Maximum images per run of the network; images of one input size share a run [default: the model's if fixed, else 1].
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_BATCH), help_heading = "Performance")]
    batch_size: Option<usize>,

    /// Threads that decode images, and as many that post-process and write [default: 2; on a GPU one per core].
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_WORKERS), help_heading = "Performance")]
    workers: Option<usize>,
}

impl DetectorArgs {
    /// Opens the model.
    pub(crate) fn open(&self) -> Result<Detector, DetectorError> {
        self.model.open(self.rules.rules(self.classes.as_deref()), self.rules.views())
    }

    /// The options of the pipeline, with these limits on image files.
    pub(crate) fn pipeline(&self, detector: &Detector, limits: Limits) -> Result<PipelineOptions> {
        let defaults = PipelineOptions::of(detector);
        if let (Some(requested), Some(max)) = (self.batch_size, detector.engine().batch())
            && requested > max
        {
            bail!(
                "`--batch-size {requested}` exceeds the model's batch size of {max}; lower it, or export the model with a larger \
                 --batch-size"
            );
        }
        let (batch, workers) = (self.batch_size.unwrap_or(defaults.batch), self.workers.unwrap_or(defaults.workers));
        Ok(PipelineOptions { batch, workers, limits, ..defaults })
    }
}
