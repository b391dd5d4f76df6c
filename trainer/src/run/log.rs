//! `log.jsonl`: one JSON object per line, for each step and each epoch of a run.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use models::evaluation::Summary;
use models::write_atomically;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::state::RunState;
use crate::step::{StageSeconds, Step, nan, number};

/// The log's file in a run folder.
pub(crate) const FILE: &str = "log.jsonl";

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Record {
    Step(StepRecord),
    Epoch(EpochRecord),
    Validation(ValidationWithinEpoch),
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StepRecord {
    /// Number of the step in the run, from 1.
    pub(crate) step: u64,
    /// Epoch of the step, from 1.
    pub(crate) epoch: u32,
    #[serde(flatten)]
    pub(crate) results: Step,
}

/// An epoch. Numbers missing from the log are NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct EpochRecord {
    /// Number of the epoch, from 1.
    pub(crate) epoch: u32,
    /// Number of the run's steps so far.
    pub(crate) steps: u64,
    /// Mean focal loss of the training images.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) classification_loss: f64,
    /// Mean box loss of the training images.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) box_loss: f64,
    /// Time of training since the epoch was started or resumed, without validation.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) seconds: f64,
    /// Training speed, in this time.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) images_per_second: f64,
    /// Where this time went.
    #[serde(default)]
    pub(crate) spent: StageSeconds,
    /// None if the epoch was not validated.
    pub(crate) validation: Option<ValidationRecord>,
}

/// A validation within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ValidationWithinEpoch {
    /// Number of finished epochs, with the fraction of the current one.
    pub(crate) epoch: f64,
    /// Number of the run's steps so far.
    pub(crate) steps: u64,
    pub(crate) validation: ValidationRecord,
}

/// Results of a validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ValidationRecord {
    /// Focal loss; NaN if missing from the log.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) classification_loss: f64,
    /// Box loss; NaN if missing from the log.
    #[serde(default = "nan", deserialize_with = "number")]
    #[schemars(with = "Option<f64>")]
    pub(crate) box_loss: f64,
    /// COCO's metrics.
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

impl fmt::Display for ValidationRecord {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { classification_loss, box_loss, summary: Summary { ap, ap50, .. } } = self;
        write!(f, "classification loss {classification_loss:.4}, box loss {box_loss:.4}, AP {ap:.4}, AP50 {ap50:.4}")
    }
}

/// The steps, epochs and validations of a run, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Log {
    pub(crate) steps: Vec<StepRecord>,
    pub(crate) epochs: Vec<EpochRecord>,
    /// Those within epochs.
    pub(crate) validations: Vec<ValidationWithinEpoch>,
    /// Numbers of the lines that are none of these, from 1.
    pub(crate) damaged: Vec<usize>,
}

impl Log {
    /// Reads the log of the run in `folder`; a missing file is an empty log. A last line without a line break is skipped,
    /// because a run may be writing it.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }

    fn parse(text: &str) -> Self {
        let mut log = Self::default();
        for (number, line) in (1..).zip(text.split_inclusive('\n')) {
            match serde_json::from_str(line) {
                Ok(Record::Step(step)) => log.steps.push(step),
                Ok(Record::Epoch(epoch)) => log.epochs.push(epoch),
                Ok(Record::Validation(validation)) => log.validations.push(validation),
                Err(_) if line.ends_with('\n') => log.damaged.push(number),
                Err(_) => {}
            }
        }
        log
    }
}

/// Writes a log, buffered.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LogWriter {
    /// Opens or creates the log in the folder of a run. Removes the lines that come after `state`, because a resumed run repeats them.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub(super) fn open(folder: &Path, state: &RunState) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let open = || {
            rewind(&path, state)?;
            File::options().create(true).append(true).open(&path)
        };
        let file = BufWriter::new(named("log", &path, open())?);
        Ok(Self { path, file })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(super) fn write(&mut self, record: &Record) -> anyhow::Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        named("log", &self.path, self.file.write_all(line.as_bytes()))
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        named("log", &self.path, self.file.flush())
    }
}

/// What was written to a file, or an error that says `what` the file is.
pub(super) fn named<T>(what: &str, path: &Path, written: io::Result<T>) -> anyhow::Result<T> {
    written.with_context(|| format!("cannot write the {what} `{}`", path.display()))
}

/// Removes the lines of a log that come after `state`, and damaged ones.
fn rewind(path: &Path, state: &RunState) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // The last line may be incomplete, and a crash of the machine may have damaged others.
    let is_done = |line: &&str| match serde_json::from_str(line) {
        Ok(Record::Step(record)) => record.step <= state.steps,
        Ok(Record::Epoch(record)) => record.epoch <= state.epochs,
        Ok(Record::Validation(record)) => record.steps <= state.validated_steps,
        Err(_) => false,
    };
    let bytes = fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let done: String = text.lines().filter(is_done).flat_map(|line| [line, "\n"]).collect();
    if done.len() == bytes.len() { Ok(()) } else { write_atomically(path, |file| file.write_all(done.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_epochs_are_distinguished_and_damaged_lines_counted() {
        let text = r#"{"step":1,"epoch":1,"classification_loss":1.5,"box_loss":0.5,"gradient_norm":null,"learning_rate":0.1}
            {"epoch":1,"steps":1,"seconds":2.5,"images_per_second":8.0,"spent":{"data":1.0,"forward":0.5}}
            {"comment":"from a later version"}
            {"step":2,"epo"#;
        let Log { steps, epochs, damaged, .. } = Log::parse(text);
        assert_eq!((steps.len(), epochs.len(), damaged), (1, 1, vec![3]));
        assert!(steps[0].results.gradient_norm.is_nan() && steps[0].results.classification_loss == 1.5);
        assert!(epochs[0].box_loss.is_nan());
        assert_eq!((epochs[0].spent.data, epochs[0].spent.backward, &epochs[0].validation), (1.0, 0.0, &None));
        assert_eq!(Log::parse("no log at all\n"), Log { damaged: vec![1], ..Log::default() });
    }

    #[test]
    fn written_records_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let seconds = StageSeconds::default();
        let results = Step {
            classification_loss: 1.5,
            box_loss: 0.5,
            gradient_norm: 2.0,
            learning_rate: 0.1,
            loss_scale: None,
            seconds,
        };
        let step = StepRecord { step: 1, epoch: 1, results };
        let summary = models::evaluation::evaluate(&[], &[], 1).summary;
        let epoch = EpochRecord {
            epoch: 1,
            steps: 1,
            classification_loss: 1.5,
            box_loss: 0.5,
            seconds: 3.0,
            images_per_second: 0.3,
            spent: StageSeconds { data: 0.5, forward: 1.0, backward: 1.0, optimizer: 0.25 },
            validation: Some(ValidationRecord { classification_loss: 2.0, box_loss: 1.0, summary }),
        };
        let validation = ValidationRecord { classification_loss: 2.0, box_loss: 1.0, summary };
        let within = ValidationWithinEpoch { epoch: 1.5, steps: 2, validation };
        let mut writer = LogWriter::open(folder.path(), &RunState::default()).unwrap();
        writer.write(&Record::Step(step)).unwrap();
        writer.write(&Record::Epoch(epoch)).unwrap();
        writer.write(&Record::Validation(within)).unwrap();
        assert_eq!(Log::read(folder.path()).unwrap(), Log::default(), "nothing is written before the buffer is full");
        writer.flush().unwrap();
        assert_eq!(
            Log::read(folder.path()).unwrap(),
            Log { steps: vec![step], epochs: vec![epoch], validations: vec![within], damaged: Vec::new() }
        );
    }

    #[test]
    fn a_missing_log_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Log::read(folder.path()).unwrap(), Log::default());
    }

    #[test]
    fn rewind_removes_lines_of_later_steps_epochs_and_validations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let summary = models::evaluation::evaluate(&[], &[], 1).summary;
        let validation = serde_json::to_string(&ValidationRecord { classification_loss: 2.0, box_loss: 1.0, summary });
        let within = format!(r#"{{"epoch":0.5,"steps":1,"validation":{}}}"#, validation.unwrap());
        let lines = [
            r#"{"epoch":1,"step":1}"#,
            &within,
            r#"{"epoch":1,"step":2}"#,
            r#"{"epoch":1,"steps":2}"#,
            r#"{"epoch":2,"step":3}"#,
            r#"{"epoch":2,"st"#,
        ];
        for (steps, epochs, validated_steps, left) in
            [(3, 1, 1, 5), (2, 1, 1, 4), (2, 0, 1, 3), (1, 0, 1, 2), (1, 0, 0, 1), (0, 0, 0, 0), (9, 9, 9, 5)]
        {
            fs::write(&path, lines.join("\n")).unwrap();
            rewind(&path, &RunState { steps, epochs, validated_steps, ..RunState::default() }).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().collect::<Vec<_>>(), lines[..left], "step {steps}, epoch {epochs}");
            assert!(text.is_empty() || text.ends_with('\n'));
        }
        fs::write(&path, [lines[0].as_bytes(), b"\n\xFF\n", lines[2].as_bytes(), b"\n"].concat()).unwrap();
        rewind(&path, &RunState { steps: 2, ..RunState::default() }).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            [lines[0], lines[2], ""].join("\n"),
            "a damaged line in between"
        );
    }
}
