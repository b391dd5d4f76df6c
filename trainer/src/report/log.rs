//! Reads `log.jsonl`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::journal::{Validated, missing, number};

/// The steps and epochs of a run, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Log {
    pub(super) steps: Vec<StepLine>,
    pub(super) epochs: Vec<EpochLine>,
}

/// A step. Numbers missing from the log are NaN.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) struct StepLine {
    pub(super) step: u64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) classification_loss: f64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) box_loss: f64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) gradient_norm: f64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) learning_rate: f64,
}

/// An epoch. Numbers missing from the log are NaN.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct EpochLine {
    pub(super) epoch: u32,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) classification_loss: f64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) box_loss: f64,
    /// Time of the training steps, without validation.
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) seconds: f64,
    #[serde(default = "missing", deserialize_with = "number")]
    pub(super) images_per_second: f64,
    #[serde(default)]
    pub(super) spent: Spent,
    pub(super) validation: Option<Validated>,
}

/// Time of each stage of an epoch's training steps, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Spent {
    pub(super) data: f64,
    pub(super) forward: f64,
    pub(super) backward: f64,
    pub(super) optimizer: f64,
}

impl Log {
    /// Reads the log of the run in `folder`; a missing file is an empty log. Unknown and truncated lines are skipped.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("log.jsonl");
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_epochs_are_distinguished_and_truncated_lines_skipped() {
        let text = r#"{"step":1,"epoch":1,"classification_loss":1.5,"box_loss":0.5,"gradient_norm":null,"learning_rate":0.1}
            {"epoch":1,"steps":1,"seconds":2.5,"images_per_second":8.0,"spent":{"data":1.0,"forward":0.5}}
            {"comment":"from a later version"}
            {"step":2,"epo"#;
        let Log { steps, epochs } = Log::parse(text);
        assert_eq!((steps.len(), epochs.len()), (1, 1));
        assert!(steps[0].gradient_norm.is_nan() && steps[0].classification_loss == 1.5);
        assert!(epochs[0].box_loss.is_nan());
        assert_eq!((epochs[0].spent.data, epochs[0].spent.backward, &epochs[0].validation), (1.0, 0.0, &None));
        assert_eq!(Log::parse("no log at all\n"), Log::default());
    }

    #[test]
    fn a_missing_log_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Log::read(folder.path()).unwrap(), Log::default());
    }
}
