//! The configuration of a training run: `retinanet.yaml`.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use models::dataset::{Format, Source};
use models::spec::FORMAT;
use models::{Matcher, ModelSpec};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_yaml::Value;

use crate::augmentation::AugmentationConfig;
use crate::cache::CacheConfig;
use crate::interval::Interval;
use crate::loss::LossConfig;
use crate::machine::default_workers;
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::overrides::Overrides;
use crate::part::Part;
use crate::precision::Precision;
use crate::schedule::{ScheduleConfig, ScheduleKind};

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

/// Training and validation data. Relative paths start from the folder of the configuration, or from `--data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training data: a data set, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(schema_with = "one_or_more_schema")]
    pub train: Vec<DatasetConfig>,
    /// Validation data, on which AP is measured: a data set, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(schema_with = "one_or_more_schema")]
    pub validation: Vec<DatasetConfig>,
    /// Training images whose rarest class is in a smaller fraction of all images are repeated: by the square root of how many
    /// times rarer it is. Detectron2 calls it `REPEAT_THRESHOLD`; 0.001 is usual for LVIS. `None`: no image is repeated.
    #[serde(default)]
    pub repeat_threshold: Option<f64>,
    /// What to do with invalid annotations.
    #[serde(default)]
    pub bad_annotations: BadAnnotations,
    /// Cache of decoded images.
    #[serde(default)]
    pub cache: CacheConfig,
}

/// A data set; see [`Source`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// COCO JSON file, CSV file, folder of Pascal VOC XML files, or folder of YOLO text files.
    pub annotations: PathBuf,
    /// Folder that file names are relative to. Default: for COCO and CSV the folder of the file; for VOC `JPEGImages`
    /// next to the annotations; for YOLO the path with `images` for the last `labels`; for these two the folder of
    /// annotations where there is no such folder.
    pub images: Option<PathBuf>,
    /// Format of the annotations. Default: detected from the content.
    pub format: Option<Format>,
    /// Text file with the names of the images to use, one per line, with or without extension and folders. Default:
    /// all.
    pub list: Option<PathBuf>,
    /// File of class names, which fixes their order: CSV `name,id`; one name per line; or YOLO's `data.yaml`. Default:
    /// the classes of the data, by id or by name.
    pub classes: Option<PathBuf>,
    /// How often each of its images is in an epoch; 1 for validation.
    #[serde(default = "once")]
    pub repeat: u32,
}

fn once() -> u32 {
    1
}

/// A data set, or a list of them.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DatasetConfig>, D::Error> {
    struct OneOrMore;
    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<DatasetConfig>;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a data set, or a list of data sets")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![DatasetConfig::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(OneOrMore)
}

fn one_or_more_schema(generator: &mut SchemaGenerator) -> Schema {
    let forms = [generator.subschema_for::<DatasetConfig>(), generator.subschema_for::<Vec<DatasetConfig>>()];
    json_schema!({ "anyOf": forms })
}

impl DatasetConfig {
    /// Where the data set is.
    pub fn source(&self) -> Source {
        let Self { annotations, images, format, list, classes, repeat: _ } = self.clone();
        Source { annotations, images, format, list, classes }
    }

    /// Every path that is given.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { annotations, images, format: _, list, classes, repeat: _ } = self;
        std::iter::once(annotations).chain(images).chain(list).chain(classes)
    }
}

impl DataConfig {
    fn validate(&self) -> anyhow::Result<()> {
        /// Repeating more often is a mistake.
        const MAX_REPEAT: u32 = 1000;
        ensure!(!self.train.is_empty(), "`data.train` is an empty list, expected a data set");
        ensure!(!self.validation.is_empty(), "`data.validation` is an empty list, expected a data set");
        for DatasetConfig { repeat, annotations, .. } in &self.train {
            ensure!(
                (1..=MAX_REPEAT).contains(repeat),
                "`repeat` of `{}` in `data.train` is {repeat}, expected 1 to {MAX_REPEAT}",
                annotations.display()
            );
        }
        for DatasetConfig { repeat, annotations, .. } in &self.validation {
            ensure!(
                *repeat == 1,
                "`repeat` of `{}` in `data.validation` is {repeat}, but validation uses every image once; remove it",
                annotations.display()
            );
        }
        if let Some(threshold) = self.repeat_threshold {
            ensure!(
                threshold > 0.0 && threshold <= 1.0,
                "`data.repeat_threshold` is {threshold}, expected more than 0, up to 1, or null"
            );
        }
        self.cache.validate()
    }
}

/// What to do with invalid annotations: boxes of zero area or outside their image, unknown classes, missing images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BadAnnotations {
    /// Refuse to start the run.
    #[default]
    Refuse,
    /// Ignore them, and report their number on stderr.
    Drop,
}

/// Length of the run, batches, seed and precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Number of passes over the training data.
    pub epochs: u32,
    /// Images per batch of one process.
    pub batch_size: usize,
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
            batch_size: 8,
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
        Self::read_as(path, data, overrides, FORMAT)
    }

    /// Like [`read`](Self::read), for a model that is of the spec format `format` if it does not say so itself.
    pub(crate) fn read_as(
        path: &Path,
        data: Option<&Path>,
        overrides: &Overrides,
        format: u32,
    ) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the configuration `{}`; create one with `trainer init`", path.display())
        })?;
        let mut config = overrides.parse(&text, &path.display().to_string(), |text| Self::parse_as(text, format))?;
        let base = data.or_else(|| path.parent()).unwrap_or(Path::new(""));
        let data = config.data.train.iter_mut().chain(&mut config.data.validation);
        for path in data.flat_map(DatasetConfig::paths_mut) {
            *path = std::path::absolute(base.join(&*path))?;
        }
        Ok(config)
    }

    /// The spec format that a run's configuration, with this text, was written in. All versions but the first write it.
    pub(crate) fn format_of_run(text: &str) -> u32 {
        spec_format(text).unwrap_or(1)
    }

    /// A configuration from YAML, with its paths unchanged.
    ///
    /// # Errors
    /// When there is an unknown key, a wrong type or a value out of range.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        Self::parse_as(text, FORMAT)
    }

    /// Like [`parse`](Self::parse), for a model that is of the spec format `format` if it does not say so itself.
    pub(crate) fn parse_as(text: &str, format: u32) -> anyhow::Result<Self> {
        let mut config: Self = serde_yaml::from_str(text)?;
        if format == 1 && spec_format(text).is_none() {
            config.model = config.model.converted_from_format_1();
        }
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
        let fraction = |name: &str, value: f64| {
            ensure!((0.0..=1.0).contains(&value), "`{name}` is {value}, expected 0 to 1");
            Ok(())
        };
        let not_negative = |name: &str, value: f64| {
            ensure!(value.is_finite() && value >= 0.0, "`{name}` is {value}, expected zero or more");
            Ok(())
        };
        self.data.validate()?;
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
        ensure!(run.keep_checkpoints != Some(0), "`run.keep_checkpoints` is 0, expected at least 1, or null");
        if let Some(minutes) = run.save_every_minutes {
            ensure!(minutes > 0.0, "`run.save_every_minutes` is {minutes}, expected more than zero, or null");
        }
        ensure!((1..=256).contains(&run.workers), "`run.workers` is {}, expected 1 to 256", run.workers);
        Ok(())
    }
}

/// The spec format in the text of a configuration; none if it is absent.
fn spec_format(text: &str) -> Option<u32> {
    let config: Value = serde_yaml::from_str(text).ok()?;
    u32::try_from(config.get("model")?.get("format")?.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &str) -> anyhow::Result<DataConfig> {
        let data: DataConfig = serde_yaml::from_str(data)?;
        data.validate()?;
        Ok(data)
    }

    fn dataset(annotations: &str) -> DatasetConfig {
        let annotations = annotations.into();
        DatasetConfig { annotations, images: None, format: None, list: None, classes: None, repeat: 1 }
    }

    #[test]
    fn a_split_is_a_data_set_or_a_list_of_them() {
        let one = parse("{train: {annotations: a, format: voc}, validation: {annotations: b}}").unwrap();
        assert_eq!(one.train, [DatasetConfig { format: Some(Format::Voc), ..dataset("a") }]);
        let two = "{train: [{annotations: a, repeat: 3}, {annotations: b}], validation: [{annotations: c}]}";
        let two = parse(two).unwrap();
        assert_eq!(two.train, [DatasetConfig { repeat: 3, ..dataset("a") }, dataset("b")]);
        for config in [one, two] {
            assert_eq!(parse(&serde_yaml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn mistakes_in_data_are_named() {
        for (train, more, message) in [
            ("[]", "", "`data.train` is an empty list"),
            ("a.json", "", "train: invalid type: string \"a.json\", expected a data set, or a list of data sets"),
            ("{annotations: a, folder: b}", "", "train: unknown field `folder`"),
            ("[{annotations: a}, {annotation: b}]", "", "train[1]: unknown field `annotation`"),
            ("{images: a}", "", "train: missing field `annotations` at line 1 column"),
            ("{annotations: a, repeat: 0}", "", "`repeat` of `a` in `data.train` is 0, expected 1 to 1000"),
            ("{annotations: a}", "repeat_threshold: 0", "`data.repeat_threshold` is 0, expected more than 0"),
            ("{annotations: a}", "repeat_threshold: .nan", "`data.repeat_threshold` is NaN"),
        ] {
            let text = format!("train: {train}\nvalidation: {{annotations: b}}\n{more}");
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        let error = parse("{train: {annotations: a}, validation: {annotations: b, repeat: 2}}").unwrap_err();
        assert!(error.to_string().contains("validation uses every image once; remove it"), "{error}");
    }

    #[test]
    fn all_paths_of_a_data_set_can_be_changed() {
        let path = |name: &str| Some(PathBuf::from(name));
        let mut data = DatasetConfig { images: path("b"), list: path("c"), classes: path("d"), ..dataset("a") };
        data.paths_mut().for_each(|path| *path = Path::new("base").join(&*path));
        let source =
            Source { images: path("base/b"), list: path("base/c"), classes: path("base/d"), ..Source::new("base/a") };
        assert_eq!(data.source(), source);
    }

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
    fn configurations_of_old_runs_keep_their_meaning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        let data = "data: {train: {annotations: train.json}, validation: {annotations: val.json}}";
        let model = |model: &str| {
            std::fs::write(&path, format!("{data}\n{model}\n")).unwrap();
            let format = TrainConfig::format_of_run(&std::fs::read_to_string(&path).unwrap());
            TrainConfig::read_as(&path, None, &Overrides::default(), format).unwrap().model
        };
        for text in ["", "model: {backbone: {norm: {kind: frozen_batch}}}", "model: {format: 1}"] {
            let model = model(text);
            assert!(model.backbone.norm.trains_affine() && !model.preprocessing.round_pixels, "{text}");
        }
        let new = model("model: {format: 2, backbone: {norm: {kind: frozen_batch}}}");
        assert!(!new.backbone.norm.trains_affine());
        assert_eq!(model(&format!("model: {}", serde_json::to_string(&new).unwrap())), new);
        // A new configuration is of the newest format.
        std::fs::write(&path, format!("{data}\nmodel: {{backbone: {{depth: 18}}}}\n")).unwrap();
        assert!(!TrainConfig::read(&path, None, &Overrides::default()).unwrap().model.backbone.norm.trains_affine());
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
