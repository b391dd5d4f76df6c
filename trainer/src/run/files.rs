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
use crate::machine::PROGRAM;
use crate::training_model::TrainingModel;

/// Number of validation images in TensorBoard after each validation.
const SAMPLES: usize = 4;

/// A validation that ends before a save.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validation {
    pub(super) ap: f64,
    /// Whether this AP is the best so far.
    pub(super) best: bool,
    /// Whether its checkpoint is kept.
    pub(super) keep: bool,
}

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
        save(&folder, model, state, None)?;
        folder.begin(config)?;
        Self::open(folder, state)
    }

    /// Those of a run in this state.
    ///
    /// # Errors
    /// When the logs cannot be read or written.
    pub(super) fn open(folder: RunFolder, state: &RunState) -> anyhow::Result<Self> {
        session::record(folder.path(), state.device)?;
        let journal = Journal::open(folder.path(), state)?;
        Ok(Self { folder, journal })
    }

    /// Saves the run, with its logs complete, after `validation` if one has just ended.
    ///
    /// # Errors
    /// When a file cannot be written. The earlier file then remains unchanged.
    pub(super) fn save(
        &mut self,
        model: &TrainingModel,
        state: &RunState,
        validation: Option<Validation>,
    ) -> anyhow::Result<()> {
        self.journal.flush()?;
        save(&self.folder, model, state, validation)
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
    validation: Option<Validation>,
) -> anyhow::Result<()> {
    let (program, ap) = (PROGRAM.to_owned(), validation.map(|validation| validation.ap));
    let checkpoint = model.checkpoint(Provenance { program, epoch: Some(state.epochs), ap, origin: None })?;
    let best = validation.filter(|validation| validation.best).map(|_| folder.best_path());
    let kept = validation.filter(|validation| validation.keep).map(|_| folder.kept_path(state.steps));
    folder.save(model, state, &checkpoint, best.into_iter().chain(kept))
}
