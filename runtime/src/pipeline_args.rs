//! The arguments that say how many pictures are under way.

use anyhow::{Result, bail};
use runtime::pipeline::PipelineOptions;
use runtime::{Detector, Provider, machine};

use crate::up_to;

/// How many pictures are under way.
#[derive(Debug, clap::Args)]
pub(crate) struct PipelineArgs {
    /// Pictures of like size that the network computes at a time, as far as they are ready. [default: what the model fixes, else 1]
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_BATCH))]
    batch: Option<usize>,

    /// Threads that read pictures, and as many that finish them. [default: 2, with a graphics card as many as there are cores]
    #[arg(long, value_name = "N", value_parser = up_to(PipelineOptions::MOST_WORKERS))]
    workers: Option<usize>,
}

impl PipelineArgs {
    /// How pictures go through this detector, by default limits.
    pub(crate) fn options(&self, detector: &Detector) -> Result<PipelineOptions> {
        let fixed = detector.engine().batch();
        let batch = match (self.batch, fixed) {
            (Some(asked), Some(most)) if asked > most => {
                bail!("--batch {asked} is more than the {most} that the model takes at a time");
            }
            (asked, fixed) => asked.or(fixed).unwrap_or(1),
        };
        // The processor has enough to do with the network; a card waits for pictures.
        let workers = match detector.engine().provider() {
            Provider::Cpu => 2,
            _ => machine::cores().max(2),
        };
        Ok(PipelineOptions { batch, workers: self.workers.unwrap_or(workers), ..PipelineOptions::default() })
    }
}
