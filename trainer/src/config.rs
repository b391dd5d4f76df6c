//! The configuration of a training run: `retinanet.yaml`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use models::dataset::Source;
use models::{Matcher, ModelSpec};
use serde::{Deserialize, Serialize};

use crate::augmentation::AugmentationConfig;
use crate::cache::CacheConfig;
use crate::loss::LossConfig;
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::overrides::Overrides;
use crate::part::Part;
use crate::schedule::{ScheduleConfig, ScheduleKind};

/// The complete configuration of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// Training and validation data. Relative paths start from the folder of the configuration, or from `--data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training data.
    pub train: Source,
    /// Validation data, on which AP is measured.
    pub validation: Source,
    /// What to do with invalid annotations.
    #[serde(default)]
    pub bad_annotations: BadAnnotations,
    /// Cache of decoded images.
    #[serde(default)]
    pub cache: CacheConfig,
}

/// What to do with invalid annotations: boxes of zero area or outside their image, unknown classes, missing images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadAnnotations {
    /// Refuse to start the run.
    #[default]
    Refuse,
    /// Ignore them, and report their number on stderr.
    Drop,
}

/// Length of the run, batches, seed and precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Number of passes over the training data.
    pub epochs: u32,
    /// Images per batch.
    pub batch_size: usize,
    /// Whether batches group images of similar aspect ratio, which reduces padding.
    pub aspect_ratio_grouping: bool,
    /// Threads that decode and augment images. Default: one per core, from 2 to 32.
    pub workers: usize,
    /// Seed of all random numbers. The same seed, CPU and number of threads give the same weights.
    pub seed: u64,
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
    /// Epochs between validations; the last epoch is always validated.
    pub validate_every: u32,
    /// Minutes between saves of the run's state within an epoch. `None`: saves only after each epoch.
    pub save_every_minutes: Option<f64>,
}

/// Data type of convolutions in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    Float32,
    /// bfloat16: faster if the CPU or GPU has instructions for it.
    Bfloat16,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: 8,
            aspect_ratio_grouping: true,
            workers: runtime::machine::cores().clamp(2, 32),
            seed: 0,
            deterministic: false,
            freeze: None,
            ema_decay: None,
            precision: Precision::Float32,
            channels_last: false,
            validate_every: 1,
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
        for path in [&mut config.data.train, &mut config.data.validation].into_iter().flat_map(Source::paths_mut) {
            *path = std::path::absolute(base.join(&*path))?;
        }
        config.data.cache.folder = std::path::absolute(base.join(&config.data.cache.folder))?;
        Ok(config)
    }

    /// A configuration from YAML, with its paths unchanged.
    ///
    /// # Errors
    /// When there is an unknown key, a wrong type or a value out of range.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = serde_yaml::from_str(text)?;
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

    fn validate(&self) -> anyhow::Result<()> {
        let Self { augmentation, matching, loss, optimizer, schedule, run, .. } = self;
        self.model.validate().context("model")?;
        let fraction = |name: &str, value: f64| {
            ensure!((0.0..=1.0).contains(&value), "`{name}` is {value}, expected 0 to 1");
            Ok(())
        };
        let not_negative = |name: &str, value: f64| {
            ensure!(value.is_finite() && value >= 0.0, "`{name}` is {value}, expected zero or more");
            Ok(())
        };
        self.data.cache.validate()?;
        augmentation.validate()?;
        fraction("loss.alpha", loss.alpha)?;
        not_negative("loss.gamma", loss.gamma)?;
        not_negative("loss.box_loss_weight", loss.box_loss_weight)?;
        ensure!(
            loss.smooth_l1_beta.is_finite() && loss.smooth_l1_beta > 0.0,
            "`loss.smooth_l1_beta` is {}, expected more than zero",
            loss.smooth_l1_beta
        );
        let thresholds = [matching.background_iou_threshold, matching.foreground_iou_threshold];
        if !(0.0 <= thresholds[0] && thresholds[0] <= thresholds[1] && thresholds[1] <= 1.0) {
            bail!(
                "`matching` has the IoU thresholds {thresholds:?}, expected 0 <= background_iou_threshold <= \
                 foreground_iou_threshold <= 1"
            );
        }
        not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
        not_negative("optimizer.backbone_lr_multiplier", optimizer.backbone_lr_multiplier)?;
        not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
        fraction("optimizer.momentum", optimizer.momentum)?;
        for beta in optimizer.betas {
            ensure!((0.0..1.0).contains(&beta), "`optimizer.betas` contains {beta}, expected 0 to 1, 1 excluded");
        }
        if let Some(norm) = optimizer.clip_grad_norm {
            ensure!(norm > 0.0, "`optimizer.clip_grad_norm` is {norm}, expected more than zero, or null");
        }
        ensure!(
            !optimizer.nesterov || (optimizer.kind == OptimizerKind::Sgd && optimizer.momentum > 0.0),
            "`optimizer.nesterov` requires `kind: sgd` and a momentum above zero"
        );
        ensure!(
            optimizer.gradient_accumulation_steps > 0,
            "`optimizer.gradient_accumulation_steps` is 0, expected at least 1"
        );
        fraction("schedule.final_lr_ratio", schedule.final_lr_ratio)?;
        ensure!(
            schedule.factor > 0.0 && schedule.factor < 1.0,
            "`schedule.factor` is {}, expected 0 to 1, both excluded",
            schedule.factor
        );
        ensure!(
            schedule.kind != ScheduleKind::Step || !schedule.milestones.is_empty(),
            "`schedule.milestones` is empty, expected the epochs after which the learning rate is reduced"
        );
        ensure!(
            schedule.milestones.iter().all(|epoch| (1..run.epochs).contains(epoch)),
            "`schedule.milestones` is {:?}, expected epochs within the run, from 1 to {}",
            schedule.milestones,
            run.epochs.saturating_sub(1)
        );
        ensure!(schedule.early_stop != Some(0), "`schedule.early_stop` is 0, expected at least 1, or null");
        ensure!(run.epochs > 0, "`run.epochs` is 0, expected at least 1");
        ensure!(run.batch_size > 0, "`run.batch_size` is 0, expected at least 1");
        ensure!(
            run.freeze != Some(Part::Heads),
            "`run.freeze` is `heads`, which leaves nothing to train; expected at most `pyramid`"
        );
        if let Some(decay) = run.ema_decay {
            ensure!((0.0..1.0).contains(&decay), "`run.ema_decay` is {decay}, expected 0 to 1, 1 excluded, or null");
        }
        ensure!(run.validate_every > 0, "`run.validate_every` is 0, expected at least 1");
        if let Some(minutes) = run.save_every_minutes {
            ensure!(minutes > 0.0, "`run.save_every_minutes` is {minutes}, expected more than zero, or null");
        }
        ensure!((1..=256).contains(&run.workers), "`run.workers` is {}, expected 1 to 256", run.workers);
        Ok(())
    }
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
}
