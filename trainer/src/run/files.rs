//! What a run writes: checkpoints and state, and its logs. With several processes, rank 0 writes it.

use models::Provenance;
use models::evaluation::ScoredBox;

use super::folder::RunFolder;
use super::journal::Journal;
use super::session;
use super::state::RunState;
use crate::annotated::annotated;
use crate::config::TrainConfig;
use crate::loader::Recipe;
use crate::training_model::TrainingModel;

/// Number of validation images in TensorBoard after each validation.
const SAMPLES: usize = 4;

/// The files of a run.
pub(super) struct RunFiles {
    pub(super) folder: RunFolder,
    pub(super) journal: Journal,
}

impl RunFiles {
    /// Those of a new run, with its first state.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn begin(
        folder: RunFolder,
        config: &TrainConfig,
        model: &TrainingModel,
        state: &RunState,
    ) -> anyhow::Result<Self> {
        save(&folder, model, state, None, false)?;
        folder.begin(config)?;
        Self::open(folder, state)
    }

    /// Those of a run in this state.
    ///
    /// # Errors
    /// When the logs cannot be read or written.
    pub(super) fn open(folder: RunFolder, state: &RunState) -> anyhow::Result<Self> {
        session::record(folder.path(), state.device)?;
        let journal = Journal::open(folder.path(), state.steps, state.epochs)?;
        Ok(Self { folder, journal })
    }

    /// Saves the run, with its logs complete. `ap` is that of the epoch that ends; `best`: whether it is the best so far.
    ///
    /// # Errors
    /// When a file cannot be written. The earlier file then remains unchanged.
    pub(super) fn save(
        &mut self,
        model: &TrainingModel,
        state: &RunState,
        ap: Option<f64>,
        best: bool,
    ) -> anyhow::Result<()> {
        self.journal.flush()?;
        save(&self.folder, model, state, ap, best)
    }

    /// Writes a few validation images with their detections after `steps` steps to TensorBoard, always the same ones.
    ///
    /// # Errors
    /// When an image cannot be read, or the event file cannot be written.
    pub(super) fn show_samples(&mut self, recipe: &Recipe, steps: u64, scored: &[ScoredBox]) -> anyhow::Result<()> {
        let images = recipe.dataset.images();
        for index in (0..images.len()).step_by(images.len().div_ceil(SAMPLES).max(1)) {
            let image = annotated(recipe, index, scored)?;
            self.journal.image(steps, &images[index].file_name, &image)?;
        }
        Ok(())
    }
}

fn save(
    folder: &RunFolder,
    model: &TrainingModel,
    state: &RunState,
    ap: Option<f64>,
    best: bool,
) -> anyhow::Result<()> {
    let program = concat!("trainer ", env!("CARGO_PKG_VERSION")).to_owned();
    let checkpoint = model.checkpoint(Provenance { program, epoch: Some(state.epochs), ap, origin: None })?;
    folder.save(model, state, &checkpoint, best)
}
