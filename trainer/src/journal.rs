//! The logs of a run: `log.jsonl` and TensorBoard event files.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::RgbImage;
use models::evaluation::Summary;
use models::write_atomically;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::events::Events;
use crate::learner::{Step, StepSeconds};
use crate::run_folder::Progress;

/// The logs of a run.
pub(crate) struct Journal {
    path: PathBuf,
    log: File,
    events: Events,
}

/// Training results of an epoch.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Learned {
    /// Mean focal loss.
    pub(crate) classification_loss: f64,
    /// Mean box loss.
    pub(crate) box_loss: f64,
    /// Time since the epoch was started or resumed.
    pub(crate) seconds: f64,
    pub(crate) images_per_second: f64,
    /// Where this time went.
    pub(crate) spent: Seconds,
}

/// Results of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Validated {
    /// Focal loss; NaN if missing from the log.
    #[serde(default = "missing", deserialize_with = "number")]
    pub(crate) classification_loss: f64,
    /// Box loss; NaN if missing from the log.
    #[serde(default = "missing", deserialize_with = "number")]
    pub(crate) box_loss: f64,
    /// COCO's metrics.
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

impl fmt::Display for Validated {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { classification_loss, box_loss, summary: Summary { ap, ap50, .. } } = self;
        write!(f, "classification loss {classification_loss:.4}, box loss {box_loss:.4}, AP {ap:.4}, AP50 {ap50:.4}")
    }
}

/// Time of the stages of steps, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Seconds {
    /// Waiting for batches.
    pub(crate) data: f64,
    #[serde(flatten)]
    pub(crate) steps: StepSeconds,
}

impl Seconds {
    /// Adds a step that waited `waited` seconds for its batches.
    pub(crate) fn add(&mut self, waited: f64, step: &StepSeconds) {
        self.data += waited;
        self.steps.forward += step.forward;
        self.steps.backward += step.backward;
        self.steps.optimizer += step.optimizer;
    }

    /// The mean per step over `steps` steps.
    pub(crate) fn over(&self, steps: u64) -> Self {
        let share = |seconds: f64| seconds / steps as f64;
        let StepSeconds { forward, backward, optimizer } = self.steps;
        let steps = StepSeconds { forward: share(forward), backward: share(backward), optimizer: share(optimizer) };
        Self { data: share(self.data), steps }
    }
}

impl Journal {
    /// Opens or creates the logs in a run folder. Removes log lines of steps after `progress`, because a resumed run
    /// repeats these steps.
    ///
    /// # Errors
    /// When the logs cannot be read or written.
    pub(crate) fn open(folder: &Path, progress: &Progress) -> anyhow::Result<Self> {
        let path = folder.join("log.jsonl");
        let open = || {
            rewind(&path, progress)?;
            let log = File::options().create(true).append(true).open(&path)?;
            Ok::<_, std::io::Error>((log, Events::create(folder, progress.steps)?))
        };
        let (log, events) = open().with_context(|| format!("cannot write the log `{}`", path.display()))?;
        Ok(Self { path, log, events })
    }

    /// Logs a step; `progress` includes it.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(crate) fn step(&mut self, progress: &Progress, step: &Step) -> anyhow::Result<()> {
        let line = json!({
            "step": progress.steps, "epoch": progress.epochs + 1,
            "classification_loss": step.classification_loss, "box_loss": step.box_loss,
            "gradient_norm": step.gradient_norm, "learning_rate": step.learning_rate,
        });
        let scalars = [
            ("train/classification_loss", step.classification_loss),
            ("train/box_loss", step.box_loss),
            ("train/gradient_norm", step.gradient_norm),
            ("train/learning_rate", step.learning_rate),
        ];
        self.write(progress.steps, &line, &scalars)
    }

    /// Logs an epoch and its validation, if it had one; `progress` includes it.
    ///
    /// # Errors
    /// When the logs cannot be written.
    pub(crate) fn epoch(
        &mut self,
        progress: &Progress,
        learned: &Learned,
        validated: Option<&Validated>,
    ) -> anyhow::Result<()> {
        let mut line = serde_json::to_value(learned)?;
        line["epoch"] = progress.epochs.into();
        line["steps"] = progress.steps.into();
        line["validation"] = serde_json::to_value(validated)?;
        let Seconds { data, steps: StepSeconds { forward, backward, optimizer } } = learned.spent;
        let mut scalars = vec![
            ("epoch/classification_loss", learned.classification_loss),
            ("epoch/box_loss", learned.box_loss),
            ("speed/images_per_second", learned.images_per_second),
            ("speed/seconds_data", data),
            ("speed/seconds_forward", forward),
            ("speed/seconds_backward", backward),
            ("speed/seconds_optimizer", optimizer),
        ];
        if let Some(Validated { classification_loss, box_loss, summary }) = validated {
            scalars.extend([
                ("validation/classification_loss", *classification_loss),
                ("validation/box_loss", *box_loss),
                ("validation/AP", summary.ap),
                ("validation/AP50", summary.ap50),
                ("validation/AP75", summary.ap75),
                ("validation/AR100", summary.ar100),
            ]);
        }
        self.write(progress.steps, &line, &scalars)
    }

    /// Adds an image with its detections to TensorBoard.
    ///
    /// # Errors
    /// When the event file cannot be written.
    pub(crate) fn image(&mut self, progress: &Progress, name: &str, image: &RgbImage) -> anyhow::Result<()> {
        let file = runtime::image_file::to_jpeg(image).context("cannot encode the image")?;
        let written = self.events.image(progress.steps, &format!("found/{name}"), image.dimensions().into(), file);
        written.with_context(|| format!("cannot write the TensorBoard events next to `{}`", self.path.display()))
    }

    fn write(&mut self, step: u64, line: &serde_json::Value, scalars: &[(&str, f64)]) -> anyhow::Result<()> {
        let written = writeln!(self.log, "{line}").and_then(|()| self.events.scalars(step, scalars));
        written.with_context(|| format!("cannot write the log `{}`", self.path.display()))
    }
}

/// Reads a number of the log. JSON cannot represent non-finite numbers: they are logged as null, which is read as NaN.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The value of a number that is missing from the log.
pub(crate) fn missing() -> f64 {
    f64::NAN
}

/// Removes the lines of a log that come after `progress`.
fn rewind(path: &Path, progress: &Progress) -> std::io::Result<()> {
    #[derive(Deserialize)]
    struct Line {
        step: Option<u64>,
        epoch: u32,
    }
    if !path.exists() {
        return Ok(());
    }
    let made = |line: &&str| {
        // The last line may be incomplete.
        serde_json::from_str(line).is_ok_and(|Line { step, epoch }| match step {
            Some(step) => step <= progress.steps,
            None => epoch <= progress.epochs,
        })
    };
    let text = fs::read_to_string(path)?;
    let kept: String = text.lines().take_while(made).flat_map(|line| [line, "\n"]).collect();
    if kept.len() == text.len() { Ok(()) } else { write_atomically(path, |file| file.write_all(kept.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewind_removes_lines_after_the_progress() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let lines = [
            r#"{"epoch":1,"step":1}"#,
            r#"{"epoch":1,"step":2}"#,
            r#"{"epoch":1,"steps":2}"#,
            r#"{"epoch":2,"step":3}"#,
            r#"{"epoch":2,"st"#,
        ];
        for (steps, epochs, left) in [(3, 1, 4), (2, 1, 3), (2, 0, 2), (0, 0, 0), (9, 9, 4)] {
            fs::write(&path, lines.join("\n")).unwrap();
            rewind(&path, &Progress { steps, epochs, ..Progress::default() }).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), lines[..left], "step {steps}, epoch {epochs}");
            assert!(text.is_empty() || text.ends_with('\n'));
        }
    }
}
