//! `trainer fit`: starts or resumes a training run.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use clap::Args;
use models::spec::NormKind;
use models::{ModelSpec, Pretrained};
use process_group::ProcessGroup;
use runtime::progress::{detail, is_verbose};

use crate::agreement;
use crate::batch_size::BatchSize;
use crate::config::TrainConfig;
use crate::device::{Device, set_cudnn_benchmark};
use crate::group::{GroupArgs, all, from_first, with_rank};
use crate::interrupt;
use crate::largest_batch::largest_batch;
use crate::machine::Machine;
use crate::overrides::Overrides;
use crate::progress::{say, warn};
use crate::resumption;
use crate::run::{RunData, RunFolder, Setup, Trainer, print_result};
use crate::training_model::TrainingModel;

/// Train a detector.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Configuration file; `trainer init` writes one [default: retinanet.yaml; with --resume the run's].
    #[arg(long, short, help_heading = "Input")]
    config: Option<PathBuf>,
    /// Folder that relative paths in the configuration are relative to [default: the configuration's folder].
    #[arg(long, help_heading = "Input")]
    data: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Folder for checkpoints and logs [default: runs/NAME-N, with the link runs/latest].
    #[arg(long, short, help_heading = "Output")]
    out: Option<PathBuf>,
    /// Device to train on: cpu, cuda or cuda:N [default: cpu; with --resume the run's].
    #[arg(long)]
    device: Option<Device>,
    /// Start from the weights of this checkpoint or backbone, where names and shapes match. A run that --resume continues
    /// has its own.
    #[arg(long, help_heading = "Input", value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Continue the run in --out [default: runs/latest], or begin it if there is none yet. --config, if given, must equal
    /// the run's. --set may lengthen the run (run.epochs) and change what does not affect its data and weights.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    group: GroupArgs,
}

/// Trains as configured, together with the other processes that a launcher has started.
///
/// # Errors
/// When the configuration, the data, the device or the run folder is invalid, and when training fails;
/// [`Interrupted`](crate::interrupt::Interrupted) when a signal has stopped the run and it is saved.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    let group = args.group.join()?;
    with_rank(&group, fit(args, &group))
}

fn fit(args: &FitArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let resumed = from_first(group, || Ok(args.resume.then(|| RunFolder::of_run(args.out.as_deref())).flatten()))?;
    let Some(path) = resumed else {
        let (config, device) = all(group, new_run(args, group))?;
        let path = args.config();
        let name = path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy());
        let (folder, path) = in_first(group, || RunFolder::create(args.out.as_deref(), &name))?;
        let weights = args.weights.as_deref().filter(|_| group.is_first());
        return Trainer::begin(prepare(group, (folder, &path), config, device, weights)?)?.train();
    };
    let (folder, path) = in_first(group, || RunFolder::existing(path))?;
    let (saved, state) = from_first(group, || folder.as_ref().context("rank 0 has a folder")?.saved())?;
    let configs = configs_of_resumed(args, &path, &saved).and_then(|[before, config]| {
        resumption::ensure_epochs_left(&state, &before, &config)?;
        Ok((before, config))
    });
    let (before, config) = all(group, configs)?;
    let has_report = from_first(group, || Ok(folder.as_ref().is_some_and(RunFolder::has_report)))?;
    if let Some(end) = resumption::end(&state, &config, &RunFolder::resume_command(&path))
        && has_report
    {
        say(format_args!("{end}"));
        return folder.map_or(Ok(()), |folder| print_result(&folder, &state));
    }
    let device = all(group, device_of_resumed(args, group, &path, state.device))?;
    Trainer::resume(prepare(group, (folder, &path), config, device, None)?, &before, state)?.train()
}

/// The folder that rank 0 opens, in rank 0, and its path.
fn in_first(
    group: &ProcessGroup,
    open: impl FnOnce() -> anyhow::Result<RunFolder>,
) -> anyhow::Result<(Option<RunFolder>, PathBuf)> {
    let mut folder = None;
    let path = from_first(group, || Ok(folder.insert(open()?).path().to_owned()))?;
    Ok((folder, path))
}

/// Reads the data and builds the network of a run, from the checkpoint or backbone `weights` if given.
fn prepare(
    group: &Rc<ProcessGroup>,
    (folder, path): (Option<RunFolder>, &Path),
    mut config: TrainConfig,
    device: Device,
    weights: Option<&Path>,
) -> anyhow::Result<Setup> {
    agreement::ensure_same_configuration(group, &config)?;
    let data = open_data(group, folder.as_ref(), &config)?;
    agreement::ensure_same_data(group, data.checksums())?;
    detail(format_args!("configuration: `{}`", path.join("config.yaml").display()));
    if is_verbose() {
        detail(format_args!("machine: {}", Machine::new()));
    }
    let on = all(group, device.of_rank(group).and_then(Device::open))?;
    set_cudnn_benchmark(on, &config.run, &[data.train.recipe(), data.validation.recipe()]);
    if config.run.batch_size == BatchSize::Auto {
        config.run.batch_size = BatchSize::Images(agreed_batch_size(group, &config, &data, on)?);
    }
    let model = match weights {
        Some(path) => pretrained(path, data.spec(), &config, on),
        None => TrainingModel::new(data.spec(), &config, on),
    };
    let (model, interrupt) = all(group, model.and_then(|model| Ok((model, interrupt::watch()?))))?;
    let group = group.clone();
    let data = data.for_device(model.device);
    let resume_command = RunFolder::resume_command(path);
    Ok(Setup { group, folder, resume_command, config, data, model, device, interrupt })
}

/// The largest batch that fits on the devices of all ranks, which is printed.
fn agreed_batch_size(
    group: &ProcessGroup,
    config: &TrainConfig,
    data: &RunData,
    device: tch::Device,
) -> anyhow::Result<usize> {
    say(format_args!("finding the largest batch that fits"));
    let batches = config.optimizer.gradient_accumulation_steps * group.world_size();
    let max = data.sampler.images_per_epoch() / batches;
    let own = largest_batch(config, data.spec(), device, &data.train, max, group);
    let own = i64::try_from(all(group, own)?)?;
    let found = group.all_gather(&tch::Tensor::from(own))?.min().int64_value(&[]) as usize;
    say(format_args!("batch size {found}; `optimizer.learning_rate` stays {:.3e}", config.optimizer.learning_rate));
    Ok(found)
}

/// Opens the data. Rank 0 opens every image; the others skip those that rank 0 could read.
fn open_data(group: &ProcessGroup, folder: Option<&RunFolder>, config: &TrainConfig) -> anyhow::Result<RunData> {
    let mut data = None;
    let checked = from_first(group, || {
        let known = folder.map(RunFolder::checked_images).unwrap_or_default();
        Ok(data.insert(RunData::open(config, &known)?).checked_images)
    })?;
    let known = checked.into_iter().flatten().collect();
    all(group, data.map_or_else(|| RunData::open(config, &known), Ok))
}

/// A network with initial weights from a checkpoint or a backbone.
fn pretrained(
    path: &Path,
    spec: &ModelSpec,
    config: &TrainConfig,
    device: tch::Device,
) -> anyhow::Result<TrainingModel> {
    let context = || format!("cannot use the weights in `{}`", path.display());
    let pretrained = Pretrained::open(path).with_context(context)?;
    let (model, lines) = TrainingModel::from_pretrained(spec, config, device, &pretrained).with_context(context)?;
    for line in lines {
        say(format_args!("{}: {line}", path.display()));
    }
    Ok(model)
}

/// The configuration and the device of a new run.
fn new_run(args: &FitArgs, group: &ProcessGroup) -> anyhow::Result<(TrainConfig, Device)> {
    let device = args.device.unwrap_or_default();
    device.of_rank(group)?.open()?;
    if args.device.is_none() && tch::Cuda::is_available() {
        say(format_args!("training on the CPU; use `--device cuda` to train on the GPU"));
    }
    let config = TrainConfig::read(args.config(), args.data.as_deref(), &args.overrides)?;
    if group.is_first() && args.weights.is_none() && config.model.backbone.norm.kind == NormKind::FrozenBatch {
        warn(format_args!(
            "`frozen_batch` norms need pretrained weights (--weights); from scratch, use `batch` or `group`"
        ));
    }
    if let Some(advice) = device.of_rank(group)?.precision_advice(config.run.precision) {
        say(format_args!("{advice}"));
    }
    Ok((config, device))
}

impl FitArgs {
    /// The configuration file of a new run.
    fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new("retinanet.yaml"))
    }
}

/// The configuration of the run in `folder`, with the text `saved`, without and with the overrides.
fn configs_of_resumed(args: &FitArgs, folder: &Path, saved: &str) -> anyhow::Result<[TrainConfig; 2]> {
    ensure!(
        args.data.is_none() || args.config.is_some(),
        "a resumed run uses the data paths of its configuration; omit --data, or pass --config too"
    );
    // Its paths are absolute.
    let parse = |overrides: &Overrides| {
        let name = folder.join("config.yaml").display().to_string();
        overrides.parse(saved, &name, TrainConfig::parse)
    };
    let [before, mut config] = [parse(&Overrides::default())?, parse(&args.overrides)?];
    // The run keeps the number that was found for `auto`.
    config.run.batch_size = config.run.batch_size.or(before.run.batch_size);
    if let Some(path) = &args.config {
        let mut given = TrainConfig::read(path, args.data.as_deref(), &args.overrides)?;
        given.run.batch_size = given.run.batch_size.or(before.run.batch_size);
        ensure!(
            given == config,
            "`{}` is not the configuration that the run in `{}` was started with; omit --config, or start a new run",
            path.display(),
            folder.display()
        );
    }
    resumption::ensure_resumable(&before, &config)?;
    Ok([before, config])
}

/// The device for the run in `folder`, which used `before`.
fn device_of_resumed(args: &FitArgs, group: &ProcessGroup, folder: &Path, before: Device) -> anyhow::Result<Device> {
    let device = args.device.unwrap_or(before);
    device.of_rank(group).and_then(Device::open).with_context(|| match args.device {
        Some(device) => format!("cannot resume the run in `{}` on {device}", folder.display()),
        None => format!("the run in `{}` used {before}; choose another with --device", folder.display()),
    })?;
    if device != before {
        say(format_args!("the run used {before} and continues on {device}; results may differ in the last digits"));
    }
    Ok(device)
}
