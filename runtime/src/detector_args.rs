//! The arguments of what detects in image after image.

use anyhow::{Result, bail};
use runtime::image_file::Limits;
use runtime::pipeline::PipelineOptions;
use runtime::{Detector, DetectorError};

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::up_to;

/// What detects, by which rules, and in how many images at a time.
#[derive(Debug, clap::Args)]
pub(crate) struct DetectorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    rules: RuleArgs,

    /// Report these classes alone, by name or id, separated by commas. Boxes of others suppress nothing.
    #[arg(long, value_name = "NAMES")]
    classes: Option<Vec<String>>,

    /// Images of like size that the network computes at a time, as far as they are ready. [default: what the model fixes, else 1]
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_BATCH))]
    batch: Option<usize>,

    /// Threads that read images, and as many that finish them. [default: 2, with a GPU as many as there are cores]
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_WORKERS))]
    workers: Option<usize>,
}

impl DetectorArgs {
    /// Opens the model.
    pub(crate) fn open(&self) -> Result<Detector, DetectorError> {
        self.model.open(self.rules.rules(self.classes.as_deref()), self.rules.views())
    }

    /// How images within these limits go through the detector.
    pub(crate) fn pipeline(&self, detector: &Detector, limits: Limits) -> Result<PipelineOptions> {
        let suited = PipelineOptions::of(detector);
        if let (Some(asked), Some(most)) = (self.batch, detector.engine().batch())
            && asked > most
        {
            bail!("--batch {asked} is more than the {most} that the model takes at a time");
        }
        let (batch, workers) = (self.batch.unwrap_or(suited.batch), self.workers.unwrap_or(suited.workers));
        Ok(PipelineOptions { batch, workers, limits, ..suited })
    }
}
