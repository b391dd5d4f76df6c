//! What `log.jsonl` says of a run.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use models::evaluation::Summary;
use serde::Deserialize;

/// The steps and epochs of a run, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Log {
    pub(super) steps: Vec<StepLine>,
    pub(super) epochs: Vec<EpochLine>,
}

/// One step. Numbers are not finite where the log has none.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) struct StepLine {
    pub(super) step: u64,
    #[serde(default, deserialize_with = "number")]
    pub(super) classification_loss: f64,
    #[serde(default, deserialize_with = "number")]
    pub(super) box_loss: f64,
    #[serde(default, deserialize_with = "number")]
    pub(super) gradient_norm: f64,
    #[serde(default, deserialize_with = "number")]
    pub(super) learning_rate: f64,
}

/// One epoch. Numbers are not finite where the log has none.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct EpochLine {
    pub(super) epoch: u32,
    /// Of the steps, validation apart.
    #[serde(default, deserialize_with = "number")]
    pub(super) seconds: f64,
    #[serde(default, deserialize_with = "number")]
    pub(super) images_per_second: f64,
    #[serde(default)]
    pub(super) spent: Spent,
    pub(super) validation: Option<Summary>,
}

/// Where the time of an epoch's steps went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Spent {
    pub(super) data: f64,
    pub(super) forward: f64,
    pub(super) backward: f64,
    pub(super) optimizer: f64,
}

impl Log {
    /// Reads the log of the run in `folder`; one that isn't there says nothing. Lines of other kinds, and a last one that was
    /// cut short, are skipped.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("log.jsonl");
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
        }
    }

    fn parse(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            if let Ok(step) = serde_json::from_str(line) {
                log.steps.push(step);
            } else if let Ok(epoch) = serde_json::from_str(line) {
                log.epochs.push(epoch);
            }
        }
        log
    }
}

/// JSON has no number that isn't finite; it is null there.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_epochs_are_told_apart_and_broken_lines_skipped() {
        let text = r#"{"step":1,"epoch":1,"classification_loss":1.5,"box_loss":0.5,"gradient_norm":null,"learning_rate":0.1}
            {"epoch":1,"steps":1,"seconds":2.5,"images_per_second":8.0,"spent":{"data":1.0,"forward":0.5}}
            {"comment":"from a later version"}
            {"step":2,"epo"#;
        let Log { steps, epochs } = Log::parse(text);
        assert_eq!((steps.len(), epochs.len()), (1, 1));
        assert!(steps[0].gradient_norm.is_nan() && steps[0].classification_loss == 1.5);
        assert_eq!((epochs[0].spent.data, epochs[0].spent.backward, &epochs[0].validation), (1.0, 0.0, &None));
        assert_eq!(Log::parse("no log at all\n"), Log::default());
    }

    #[test]
    fn a_log_that_is_not_there_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Log::read(folder.path()).unwrap(), Log::default());
    }
}
