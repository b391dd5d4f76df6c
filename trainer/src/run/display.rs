//! What a run prints besides its progress bars.

use std::fmt::Write as _;

use anyhow::anyhow;
use models::dataset::Dataset;

use super::data::RunData;
use super::folder::RunFolder;
use super::log::{EpochRecord, ValidationWithinEpoch};
use super::state::{EpochSize, RunState};
use crate::config::TrainConfig;
use crate::loader::Batch;
use crate::loss_scaler::LossScaler;
use crate::progress::{counted, print, say, warn};
use crate::step::Step;

/// Prints what the run will do, after warnings about its configuration.
pub(super) fn begin(folder: &RunFolder, config: &TrainConfig, data: &RunData, size: EpochSize, world_size: usize) {
    let steps = size.steps() * u64::from(config.run.epochs);
    config.warnings(steps).iter().for_each(|text| warn(format_args!("{text}")));
    let images = data.train.recipe().dataset.images().len();
    let images_per_epoch = data.sampler.images_per_epoch();
    say(format_args!(
        "{}{}, {}, {}; {} of {}; writing to {}",
        counted(images, "training image", "training images"),
        if images_per_epoch == images { String::new() } else { format!(" ({images_per_epoch} in an epoch)") },
        counted(data.validation.recipe().dataset.images().len(), "validation image", "validation images"),
        counted(data.spec().class_count(), "class", "classes"),
        counted(config.run.epochs as usize, "epoch", "epochs"),
        counted(size.steps() as usize, "step", "steps"),
        folder.path().display()
    ));
    if let Some(every) = config.run.keep_checkpoints {
        let validations = config.run.validate_every.count(config.run.epochs, steps);
        let (files, megabytes) = (validations / u64::from(every), folder.checkpoint_megabytes());
        say(format_args!(
            "keeps {} of {megabytes:.1} MB, {:.1} GB in all",
            counted(files as usize, "checkpoint", "checkpoints"),
            megabytes * files as f64 / 1e3
        ));
    }
    let (batch_size, accumulation) = (config.run.batch_size.images(), config.optimizer.gradient_accumulation_steps);
    if world_size > 1 {
        say(format_args!(
            "global batch {}: {world_size} processes, {} of {} each; learning rate {:.3e}",
            size.images_per_step,
            counted(accumulation, "batch", "batches"),
            counted(batch_size, "image", "images"),
            config.optimizer.learning_rate(world_size)
        ));
    }
}

/// Prints the results of an epoch of a run with `epochs` epochs, whose state is now `state`: whether its AP is the `best`
/// so far, and whether the learning rate was `reduced` after it.
pub(super) fn epoch(record: &EpochRecord, epochs: u32, state: &RunState, best: bool, reduced: bool) {
    let EpochRecord { epoch, classification_loss, box_loss, seconds, images_per_second, .. } = record;
    say(format_args!(
        "epoch {epoch}/{epochs}: classification loss {classification_loss:.4}, box loss {box_loss:.4}{}{}; \
         {seconds:.1} s, {images_per_second:.1} images/s{}{}",
        record.validation.map_or_else(String::new, |validation| format!("; validation: {validation}")),
        best_so_far(best),
        learning_rate_reduced(reduced),
        state.loss_scaler.map_or_else(String::new, |LossScaler { scale, skipped, .. }| {
            format!("; loss scale {scale}, {} skipped so far", counted(skipped as usize, "step", "steps"))
        })
    ));
}

/// Prints the results of a validation within an epoch; `best` and `reduced` as in [`epoch`].
pub(super) fn validation(record: &ValidationWithinEpoch, best: bool, reduced: bool) {
    let ValidationWithinEpoch { epoch, steps, validation } = record;
    let (best, reduced) = (best_so_far(best), learning_rate_reduced(reduced));
    say(format_args!("step {steps}, {epoch:.2} epochs: validation: {validation}{best}{reduced}"));
}

fn best_so_far(best: bool) -> &'static str {
    if best { " (best so far)" } else { "" }
}

fn learning_rate_reduced(reduced: bool) -> &'static str {
    if reduced { "; learning rate reduced" } else { "" }
}

/// Prints the result of a finished run.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn print_result(folder: &RunFolder, state: &RunState) -> anyhow::Result<()> {
    let (best, last) = (state.best_ap.unwrap_or_default(), state.last_ap.unwrap_or_default());
    print(&format!("best AP {best:.4}, last AP {last:.4}; {}", folder.best_path().display()))
}

/// The error of a step whose loss or gradient is not finite.
pub(super) fn not_finite(step: &Step, batches: &[Batch], dataset: &Dataset, is_float16: bool) -> anyhow::Error {
    let mut text = format!(
        "the loss is not finite: classification loss {}, box loss {}, gradient norm {}, learning rate {}; lower \
         `optimizer.learning_rate`, raise `schedule.warmup_steps`, {}or check the boxes of this batch:",
        step.classification_loss,
        step.box_loss,
        step.gradient_norm,
        step.learning_rate,
        if is_float16 { "use `run.precision: bfloat16`, which has a larger range than float16, " } else { "" }
    );
    for &image in batches.iter().flat_map(|batch| &batch.indices) {
        let boxes = dataset.annotations_of(image).iter().map(|annotation| {
            let corners: [f32; 4] = annotation.rectangle.bounding_box().into();
            format!("{} {corners:?}", dataset.classes()[annotation.class_index].name)
        });
        let boxes = boxes.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n  {}: {boxes}", dataset.images()[image].file_name);
    }
    anyhow!(text)
}

/// What to do when memory runs out, appended to an error.
pub(super) fn out_of_memory_advice(config: &TrainConfig) -> String {
    format!(
        "; start a new run with a lower `run.batch_size` ({}) and a higher `optimizer.gradient_accumulation_steps` ({}), a \
         lower `model.preprocessing.longer_side` ({}), or `run.precision: bfloat16`",
        config.run.batch_size, config.optimizer.gradient_accumulation_steps, config.model.preprocessing.longer_side
    )
}
