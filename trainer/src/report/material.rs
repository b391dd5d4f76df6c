//! What a report is made from.

use std::path::Path;

use models::evaluation::ScoredBox;

use crate::loader::Recipe;

/// Inputs of a report.
#[derive(Clone, Copy)]
pub(crate) struct Material<'a> {
    /// The run folder: `log.jsonl` and `config.yaml` are read from it, and `report.html` is written into it.
    pub folder: &'a Path,
    /// The validation data and the classes.
    pub recipe: &'a Recipe,
    /// Detections of the best checkpoint in the validation images.
    pub scored: &'a [ScoredBox],
    /// Epoch of the best checkpoint, from 1; `None` if there is none yet.
    pub best_epoch: Option<u32>,
    /// Command line of the run.
    pub command: &'a str,
}
