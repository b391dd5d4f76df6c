//! The configuration of a training run: `retinanet.yaml`.

mod data;
mod ranges;

use std::path::Path;

use anyhow::{Context, anyhow};
use models::dataset::Dataset;
use models::{Matcher, ModelSpec};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::augmentation::AugmentationConfig;
use crate::batch_size::BatchSize;
use crate::interval::Interval;
use crate::loss::LossConfig;
use crate::machine::default_workers;
use crate::optimizer::OptimizerConfig;
use crate::overrides::Overrides;
use crate::part::Part;
use crate::precision::Precision;
use crate::schedule::ScheduleConfig;
pub use data::{BadAnnotations, DataConfig, DatasetConfig};

/// The complete configuration of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The detector. Its classes default to those of the training data.
    #[serde(default)]
    pub model: ModelSpec,
    /// Training and validation data.
    pub data: DataConfig,
    /// Augmentation of training images.
    #[serde(default)]
    pub augmentation: AugmentationConfig,
    /// Matching of anchors to boxes.
    #[serde(default)]
    pub matching: Matcher,
    /// The loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Learning rate schedule and early stopping.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Length of the run, batches, seed and precision.
    #[serde(default)]
    pub run: RunConfig,
}

/// Length of the run, batches, seed and precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Number of passes over the training data.
    pub epochs: u32,
    /// Images per batch of one process, at least 1. `auto`: the most with which training fits in the memory of the device, to about a
    /// quarter; `fit` finds it by trial, and the run keeps it.
    pub batch_size: BatchSize,
    /// Whether batches group images of similar aspect ratio, which reduces padding.
    pub aspect_ratio_grouping: bool,
    /// Threads that decode and augment images in one process. Default: one per core, divided by the number of processes on
    /// this machine, from 2 to 32.
    pub workers: usize,
    /// Seed of all random numbers. The same seed, CPU and number of threads give the same weights.
    pub seed: u64,
    /// Whether live batch norms use the statistics of the batches of all processes that train together. If not, each uses
    /// its own, and the running statistics are averaged after every step.
    pub sync_batch_norm: bool,
    /// Whether cuDNN uses the same algorithms in every run. If not, it benchmarks them if all inputs have the same
    /// size.
    pub deterministic: bool,
    /// Freezes the network up to and including this part; frozen batch norms use their running statistics. `None`:
    /// nothing is frozen.
    pub freeze: Option<Part>,
    /// Decay of the exponential moving average of the weights, which is then what is validated and saved. `None`: no
    /// average.
    pub ema_decay: Option<f64>,
    /// Data type of convolutions in training. Weights and validation are always float32.
    pub precision: Precision,
    /// Whether images and kernels have the channels-last memory format (NHWC).
    pub channels_last: bool,
    /// Epochs or steps between validations; the last epoch is always validated.
    pub validate_every: Interval,
    /// The checkpoint of every validation whose number is a multiple of this is kept, numbered by its step. `None`: none.
    pub keep_checkpoints: Option<u32>,
    /// Minutes between saves of the run's state within an epoch. `None`: saves only after each epoch.
    pub save_every_minutes: Option<f64>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: BatchSize::Images(8),
            aspect_ratio_grouping: true,
            workers: default_workers(),
            seed: 0,
            sync_batch_norm: false,
            deterministic: false,
            freeze: None,
            ema_decay: None,
            precision: Precision::Float32,
            channels_last: false,
            validate_every: Interval::Epochs(1),
            keep_checkpoints: None,
            save_every_minutes: Some(10.0),
        }
    }
}

impl TrainConfig {
    /// Reads a configuration, sets the values of `overrides`, and makes its paths absolute. Relative paths start from
    /// `data`, else from the file's folder.
    ///
    /// # Errors
    /// When the file cannot be read, or when it or an override has an unknown key, a wrong type or a value out of range.
    pub fn read(path: &Path, data: Option<&Path>, overrides: &Overrides) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the configuration `{}`; create one with `trainer init`", path.display())
        })?;
        let mut config = overrides.parse(&text, &path.display().to_string(), Self::parse)?;
        let base = data.or_else(|| path.parent()).unwrap_or(Path::new(""));
        let data = config.data.train.iter_mut().chain(&mut config.data.validation);
        for path in data.flat_map(DatasetConfig::paths_mut) {
            *path = std::path::absolute(base.join(&*path))?;
        }
        Ok(config)
    }

    /// A configuration from YAML, with its paths unchanged.
    ///
    /// # Errors
    /// When there is an unknown key, a wrong type or a value out of range.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = from_yaml(text)?;
        config.validate()?;
        Ok(config)
    }

    /// What cannot have its intended effect in a run of `steps` steps.
    pub(crate) fn warnings(&self, steps: u64) -> Vec<String> {
        let Self { augmentation, schedule: ScheduleConfig { warmup_steps, .. }, run: RunConfig { epochs, .. }, .. } =
            self;
        let mut warnings = Vec::new();
        if *warmup_steps >= steps {
            warnings.push(format!(
                "`schedule.warmup_steps` is {warmup_steps}, but the run has only {steps} steps: it ends before the learning \
                 rate reaches `optimizer.learning_rate`"
            ));
        }
        if augmentation.close_mosaic >= *epochs && *augmentation != augmentation.closed() {
            warnings.push(format!(
                "`augmentation.close_mosaic` is {}, but the run has only {epochs} epochs: mosaic and scale jitter are never \
                 used",
                augmentation.close_mosaic
            ));
        }
        warnings
    }

    /// The model's spec with the classes of a data set.
    pub(crate) fn spec_of(&self, dataset: &Dataset) -> ModelSpec {
        ModelSpec { classes: dataset.classes().to_vec(), ..self.model.clone() }
    }
}

/// Reads YAML. serde_yaml names the key of an error, but not where a value is one of several types.
fn from_yaml<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let (key, message) = (error.path().to_string(), error.inner().to_string());
        match key.rsplit_once('.').map(|(section, _)| format!("{section}: ")) {
            Some(section) if message.starts_with(&section) => anyhow!("{key}: {}", &message[section.len()..]),
            _ => anyhow!(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_factor_must_be_between_0_and_1() {
        for (factor, valid) in [(-0.5, false), (0.0, false), (0.001, true), (0.5, true), (1.0, false), (2.0, false)] {
            let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
            let text = format!("{data}\nschedule: {{factor: {factor:?}}}\n");
            let config: TrainConfig = serde_yaml::from_str(&text).unwrap();
            let message = config.validate().err().map(|error| error.to_string());
            let expected = format!("`schedule.factor` is {factor}, expected 0 to 1, both excluded");
            assert_eq!(message, (!valid).then_some(expected));
        }
    }

    #[test]
    fn errors_of_types_name_the_key() {
        for (text, expected) in [
            ("run: {validate_every: 3 weeks}", "run.validate_every: `3 weeks` is not an interval"),
            ("run: {batch_size: none}", "run.batch_size: expected a number of images, or `auto` at line 2"),
            ("run: {batch_size: 0}", "`run.batch_size` is 0, expected at least 1, or `auto`"),
            ("run: {epochs: many}", "run.epochs: invalid type: string \"many\", expected u32 at line 2"),
            ("run: {epoch: 1}", "run.epoch: unknown field `epoch`, expected one of"),
        ] {
            let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
            let error = TrainConfig::parse(&format!("{data}\n{text}\n")).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn models_are_of_the_newest_format_unless_they_say_another() {
        let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
        for (format, trains_affine) in [("", false), ("format: 2, ", false), ("format: 1, ", true)] {
            let text = format!("{data}\nmodel: {{{format}backbone: {{norm: {{kind: frozen_batch}}}}}}\n");
            let config = TrainConfig::parse(&text).unwrap();
            assert_eq!(config.model.backbone.norm.trains_affine(), trains_affine, "{format}");
            // The configuration of a run has the newest format.
            assert_eq!(TrainConfig::parse(&serde_yaml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn invalid_specs_are_refused_with_field_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("retinanet.yaml");
        let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
        std::fs::write(&path, format!("{data}\nmodel:\n  anchors:\n    scales: [0]\n")).unwrap();
        let message = format!("{:#}", TrainConfig::read(&path, None, &Overrides::default()).unwrap_err());
        let expected = "model.anchors: `anchors.scales` is [0.0], expected 0.01 to 100 at line 4 column 5";
        assert!(message.contains(expected), "{message}");
    }
}
