//! What a run begins or resumes with.

use std::rc::Rc;

use process_group::ProcessGroup;

use super::data::RunData;
use super::folder::RunFolder;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::interrupt::Interrupt;
use crate::training_model::TrainingModel;

/// What a run begins or resumes with.
pub(crate) struct Setup {
    /// The processes that train together.
    pub(crate) group: Rc<ProcessGroup>,
    /// The run's folder, in rank 0.
    pub(crate) folder: Option<RunFolder>,
    /// The command that resumes the run.
    pub(crate) resume_command: String,
    pub(crate) config: TrainConfig,
    pub(crate) data: RunData,
    pub(crate) model: TrainingModel,
    pub(crate) device: Device,
    /// Stops the run.
    pub(crate) interrupt: Interrupt,
}
