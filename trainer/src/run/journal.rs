//! The logs of a run: `log.jsonl` and TensorBoard event files.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use image::RgbImage;

use super::events::Events;
use super::log::{EpochRecord, LogWriter, Record, StepRecord, ValidationRecord, ValidationWithinEpoch};
use super::state::RunState;
use crate::step::{StageSeconds, Step};

/// Maximum age of a buffered record when the next one is written, so that a run can be watched.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// The logs of a run.
pub(super) struct Journal {
    log: LogWriter,
    events: Events,
    flushed: Instant,
}

impl Journal {
    /// Opens or creates the logs in the folder of a run. Removes log lines that come after `state`, because a resumed run
    /// repeats them.
    ///
    /// # Errors
    /// When the logs cannot be read or written.
    pub(super) fn open(folder: &Path, state: &RunState) -> anyhow::Result<Self> {
        let (log, events) = (LogWriter::open(folder, state)?, Events::create(folder, state.steps)?);
        Ok(Self { log, events, flushed: Instant::now() })
    }

    /// Logs a step.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(super) fn step(&mut self, record: StepRecord) -> anyhow::Result<()> {
        let Step { classification_loss, box_loss, gradient_norm, learning_rate, loss_scale, .. } = record.results;
        let mut scalars = vec![
            ("train/classification_loss", classification_loss),
            ("train/box_loss", box_loss),
            ("train/gradient_norm", gradient_norm),
            ("train/learning_rate", learning_rate),
        ];
        scalars.extend(loss_scale.map(|scale| ("train/loss_scale", scale)));
        self.write(record.step, &Record::Step(record), &scalars)?;
        if self.flushed.elapsed() >= FLUSH_INTERVAL { self.flush() } else { Ok(()) }
    }

    /// Logs an epoch. The logs are then complete.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(super) fn epoch(&mut self, record: EpochRecord) -> anyhow::Result<()> {
        let StageSeconds { data, forward, backward, optimizer } = record.spent;
        let mut scalars = vec![
            ("epoch/classification_loss", record.classification_loss),
            ("epoch/box_loss", record.box_loss),
            ("speed/images_per_second", record.images_per_second),
            ("speed/seconds_data", data),
            ("speed/seconds_forward", forward),
            ("speed/seconds_backward", backward),
            ("speed/seconds_optimizer", optimizer),
        ];
        scalars.extend(record.validation.iter().flat_map(validation_scalars));
        self.write(record.steps, &Record::Epoch(record), &scalars)?;
        self.flush()
    }

    /// Logs a validation within an epoch. The logs are then complete.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(super) fn validation(&mut self, record: ValidationWithinEpoch) -> anyhow::Result<()> {
        self.write(record.steps, &Record::Validation(record), &validation_scalars(&record.validation))?;
        self.flush()
    }

    /// Adds an image with its detections to TensorBoard, after `steps` steps.
    ///
    /// # Errors
    /// When the event file cannot be written.
    pub(super) fn image(&mut self, steps: u64, name: &str, image: &RgbImage) -> anyhow::Result<()> {
        let file = runtime::image_file::to_jpeg(image).context("cannot encode the image")?;
        self.events.image(steps, &format!("found/{name}"), image.dimensions().into(), file)
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        self.flushed = Instant::now();
        self.log.flush()?;
        self.events.flush()
    }

    fn write(&mut self, steps: u64, record: &Record, scalars: &[(&str, f64)]) -> anyhow::Result<()> {
        self.log.write(record)?;
        self.events.scalars(steps, scalars)
    }
}

fn validation_scalars(validation: &ValidationRecord) -> [(&'static str, f64); 6] {
    let ValidationRecord { classification_loss, box_loss, summary } = validation;
    [
        ("validation/classification_loss", *classification_loss),
        ("validation/box_loss", *box_loss),
        ("validation/AP", summary.ap),
        ("validation/AP50", summary.ap50),
        ("validation/AP75", summary.ap75),
        ("validation/AR100", summary.ar100),
    ]
}
