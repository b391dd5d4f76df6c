//! The configuration of a training run: `retinanet.yaml`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use models::{Matcher, ModelSpec};
use serde::{Deserialize, Serialize};

use crate::augmentation::AugmentationConfig;
use crate::cache::CacheConfig;
use crate::loss::LossConfig;
use crate::optimizer::{OptimizerConfig, ScheduleConfig};

/// Everything that decides what a training run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The detector. Its classes are those of the training data unless they are listed.
    #[serde(default)]
    pub model: ModelSpec,
    /// Where the pictures and boxes are.
    pub data: DataConfig,
    /// How pictures are varied.
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
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Lengths and seeds.
    #[serde(default)]
    pub run: RunConfig,
}

/// Where the pictures and boxes are. Relative paths start from the folder of the configuration, or from `--data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is learned.
    pub train: SplitConfig,
    /// What average precision is measured on.
    pub validation: SplitConfig,
    /// What happens to annotations that make no sense.
    #[serde(default)]
    pub bad_annotations: BadAnnotations,
    /// Whether decoded pictures are kept.
    #[serde(default)]
    pub cache: CacheConfig,
}

/// One part of the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// COCO JSON file.
    pub annotations: PathBuf,
    /// Folder that the file names in it start from.
    pub pictures: PathBuf,
}

/// What happens to annotations that make no sense: boxes without area or outside their picture, unknown classes or
/// pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadAnnotations {
    /// The run does not begin.
    #[default]
    Refuse,
    /// They are left out, and counted on stderr.
    Drop,
}

/// Lengths and seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Passes over the training data.
    pub epochs: u32,
    /// Pictures per step.
    pub batch_size: usize,
    /// Whether the pictures of a batch are of like aspect ratio, as far as there are enough, which spares padding.
    pub group_by_aspect: bool,
    /// Threads that read and prepare pictures.
    pub workers: usize,
    /// Start of all random numbers. The same seed gives the same weights on the same processor with as many threads.
    pub seed: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { epochs: 50, batch_size: 8, group_by_aspect: true, workers: 2, seed: 0 }
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
        for split in [&mut config.data.train, &mut config.data.validation] {
            for path in [&mut split.annotations, &mut split.pictures] {
                *path = std::path::absolute(base.join(&path))?;
            }
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
        not_negative("loss.box_weight", loss.box_weight)?;
        ensure!(loss.beta.is_finite() && loss.beta > 0.0, "`loss.beta` is {}, expected more than zero", loss.beta);
        let thresholds = [matching.background_below, matching.foreground_from];
        if !(0.0 <= thresholds[0] && thresholds[0] <= thresholds[1] && thresholds[1] <= 1.0) {
            bail!(
                "`matching` has the thresholds {thresholds:?}, expected 0 <= background_below <= foreground_from <= 1"
            );
        }
        not_negative("optimizer.learning_rate", optimizer.learning_rate)?;
        not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
        share("optimizer.momentum", optimizer.momentum)?;
        for beta in optimizer.betas {
            ensure!((0.0..1.0).contains(&beta), "`optimizer.betas` holds {beta}, expected 0 to 1, 1 excluded");
        }
        if let Some(norm) = optimizer.clip_norm {
            ensure!(norm > 0.0, "`optimizer.clip_norm` is {norm}, expected more than zero, or null");
        }
        share("schedule.final_share", schedule.final_share)?;
        ensure!(run.epochs > 0, "`run.epochs` is 0, expected at least 1");
        ensure!(run.batch_size > 0, "`run.batch_size` is 0, expected at least 1");
        ensure!((1..=256).contains(&run.workers), "`run.workers` is {}, expected 1 to 256", run.workers);
        Ok(())
    }
}
