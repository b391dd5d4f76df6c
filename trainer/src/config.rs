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
use crate::part::Part;
use crate::schedule::{ScheduleConfig, ScheduleKind};

/// Everything that decides what a training run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The detector. Its classes are those of the training data unless they are listed.
    #[serde(default)]
    pub model: ModelSpec,
    /// Where the images and boxes are.
    pub data: DataConfig,
    /// How images are varied.
    #[serde(default)]
    pub augmentation: AugmentationConfig,
    /// Which anchors stand for which boxes.
    #[serde(default)]
    pub matching: Matcher,
    /// What is minimized.
    #[serde(default)]
    pub loss: LossConfig,
    /// How it is minimized.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves, and when a run ends early.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Lengths and seeds, and what steps are made of.
    #[serde(default)]
    pub run: RunConfig,
}

/// Where the images and boxes are. Relative paths start from the folder of the configuration, or from `--data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is learned.
    pub train: Source,
    /// What average precision is measured on.
    pub validation: Source,
    /// What happens to annotations that make no sense.
    #[serde(default)]
    pub bad_annotations: BadAnnotations,
    /// Whether decoded images are kept.
    #[serde(default)]
    pub cache: CacheConfig,
}

/// What happens to annotations that make no sense: boxes without area or outside their image, unknown classes or
/// images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadAnnotations {
    /// The run does not begin.
    #[default]
    Refuse,
    /// They are left out, and counted on stderr.
    Drop,
}

/// Lengths and seeds, and what steps are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Passes over the training data.
    pub epochs: u32,
    /// Images per step.
    pub batch_size: usize,
    /// Whether the images of a batch are of like aspect ratio, as far as there are enough, which spares padding.
    pub aspect_ratio_grouping: bool,
    /// Threads that read and prepare images. [default: as many as there are cores, from 2 to 32]
    pub workers: usize,
    /// Start of all random numbers. The same seed gives the same weights on the same CPU with as many threads.
    pub seed: u64,
    /// Whether cuDNN takes the same algorithms in every run. Otherwise, where all inputs have one size, it tries which are fastest.
    pub deterministic: bool,
    /// The part up to which, itself included, nothing is learned, and batch norms use their running statistics; nothing is
    /// frozen if absent.
    pub freeze: Option<Part>,
    /// Share of the moving average of the weights that a step keeps. The average is what is validated and kept as a
    /// checkpoint; none is made if absent.
    pub ema_decay: Option<f64>,
    /// What convolutions compute in while training. Weights and validation are float32 in any case.
    pub precision: Precision,
    /// Whether images and kernels lie in memory with their channels last.
    pub channels_last: bool,
    /// Epochs from one validation to the next; the last epoch has one in any case.
    pub validate_every: u32,
    /// Minutes between two saves of the run's state within an epoch; only after each epoch if absent.
    pub save_every_minutes: Option<f64>,
}

/// What convolutions compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    Float32,
    /// Eight bits of exponent and eight of fraction: faster where the CPU or GPU has instructions for it.
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
    /// Reads a configuration and makes its paths start from `data`, or from the folder it is in.
    ///
    /// # Errors
    /// When the file can't be read, has an unknown key, a wrong type (with key and line) or a value out of range.
    pub fn read(path: &Path, data: Option<&Path>) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the configuration {}; `trainer init` writes one", path.display()))?;
        let mut config: Self = serde_yaml::from_str(&text).with_context(|| path.display().to_string())?;
        config.validate().with_context(|| path.display().to_string())?;
        let base = data.or_else(|| path.parent()).unwrap_or(Path::new(""));
        for path in [&mut config.data.train, &mut config.data.validation].into_iter().flat_map(Source::paths_mut) {
            *path = std::path::absolute(base.join(&*path))?;
        }
        config.data.cache.folder = std::path::absolute(base.join(&config.data.cache.folder))?;
        Ok(config)
    }

    fn validate(&self) -> anyhow::Result<()> {
        let Self { augmentation, matching, loss, optimizer, schedule, run, .. } = self;
        self.model.validate().context("model")?;
        let share = |name: &str, value: f64| {
            ensure!((0.0..=1.0).contains(&value), "`{name}` is {value}, expected 0 to 1");
            Ok(())
        };
        let not_negative = |name: &str, value: f64| {
            ensure!(value.is_finite() && value >= 0.0, "`{name}` is {value}, expected zero or more");
            Ok(())
        };
        self.data.cache.validate()?;
        augmentation.validate()?;
        share("loss.alpha", loss.alpha)?;
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
                "`matching` has the thresholds {thresholds:?}, expected 0 <= background_iou_threshold <= foreground_iou_threshold <= 1"
            );
        }
        not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
        not_negative("optimizer.backbone_lr_multiplier", optimizer.backbone_lr_multiplier)?;
        not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
        share("optimizer.momentum", optimizer.momentum)?;
        for beta in optimizer.betas {
            ensure!((0.0..1.0).contains(&beta), "`optimizer.betas` holds {beta}, expected 0 to 1, 1 excluded");
        }
        if let Some(norm) = optimizer.clip_grad_norm {
            ensure!(norm > 0.0, "`optimizer.clip_grad_norm` is {norm}, expected more than zero, or null");
        }
        ensure!(
            !optimizer.nesterov || (optimizer.kind == OptimizerKind::Sgd && optimizer.momentum > 0.0),
            "`optimizer.nesterov` is for `kind: sgd` with a momentum above zero"
        );
        ensure!(
            optimizer.gradient_accumulation_steps > 0,
            "`optimizer.gradient_accumulation_steps` is 0, expected at least 1"
        );
        share("schedule.final_lr_ratio", schedule.final_lr_ratio)?;
        ensure!(
            schedule.factor > 0.0 && schedule.factor < 1.0,
            "`schedule.factor` is {}, expected 0 to 1, both excluded",
            schedule.factor
        );
        ensure!(
            schedule.kind != ScheduleKind::Step || !schedule.milestones.is_empty(),
            "`schedule.milestones` is empty, expected the epochs after which the learning rate falls"
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
        ensure!(run.freeze != Some(Part::Heads), "`run.freeze` is heads, which would leave nothing to learn");
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
    fn a_factor_that_lowers_nothing_or_leaves_nothing_is_refused() {
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
