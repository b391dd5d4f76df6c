//! `trainer fit`: starts or resumes a training run.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use models::spec::NormKind;
use models::{ModelSpec, Pretrained};
use runtime::progress::{detail, is_verbose};

use crate::config::{Precision, TrainConfig};
use crate::device::{Device, set_cudnn_benchmark};
use crate::interrupt;
use crate::machine::{Machine, has_bfloat16_instructions};
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
    /// Start from the weights of this checkpoint or backbone, where names and shapes match.
    #[arg(long, help_heading = "Input", value_name = "FILE", conflicts_with = "resume")]
    weights: Option<PathBuf>,
    /// Continue the run in --out [default: runs/latest]; --config, if given, must equal the run's. --set may lengthen the
    /// run (run.epochs) and change what does not affect its data and weights.
    #[arg(long)]
    resume: bool,
}

/// Trains as configured.
///
/// # Errors
/// When the configuration, the data, the device or the run folder is invalid, and when training fails;
/// [`Interrupted`](crate::interrupt::Interrupted) when a signal has stopped the run and it is saved.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    if !args.resume {
        let (folder, config, device) = new_run(args)?;
        return Trainer::begin(prepare(args, folder, config, device)?)?.train();
    }
    let folder = RunFolder::existing(args.out.as_deref())?;
    let [before, config] = configs_of_resumed(args, &folder)?;
    let state = folder.state()?;
    resumption::ensure_epochs_left(&state, &before, &config)?;
    if let Some(end) = resumption::end(&state, &config, &folder.resume_command())
        && folder.has_report()
    {
        say(format_args!("{end}"));
        return print_result(&folder, &state);
    }
    let device = device_of_resumed(args, &folder, state.device)?;
    Trainer::resume(prepare(args, folder, config, device)?, &before)?.train()
}

/// Reads the data and builds the network of a run.
fn prepare(args: &FitArgs, folder: RunFolder, config: TrainConfig, device: Device) -> anyhow::Result<Setup> {
    let data = RunData::open(&config, &folder.checked_images())?;
    let on = device.open()?;
    detail(format_args!("configuration: `{}`", folder.config_path().display()));
    if is_verbose() {
        detail(format_args!("machine: {}", Machine::new()));
    }
    let model = match &args.weights {
        Some(path) => pretrained(path, data.spec(), &config, on)?,
        None => TrainingModel::new(data.spec(), &config, on)?,
    };
    set_cudnn_benchmark(on, &config.run, data.train.recipe());
    Ok(Setup { folder, config, data, model, device, interrupt: interrupt::watch()? })
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

fn new_run(args: &FitArgs) -> anyhow::Result<(RunFolder, TrainConfig, Device)> {
    let device = args.device.unwrap_or_default();
    device.open()?;
    if args.device.is_none() && tch::Cuda::is_available() {
        say(format_args!("training on the CPU; use `--device cuda` to train on the GPU"));
    }
    let path = args.config.as_deref().unwrap_or(Path::new("retinanet.yaml"));
    let config = TrainConfig::read(path, args.data.as_deref(), &args.overrides)?;
    if args.weights.is_none() && config.model.backbone.norm.kind == NormKind::FrozenBatch {
        warn(format_args!(
            "`frozen_batch` norms need pretrained weights (--weights); from scratch, use `batch` or `group`"
        ));
    }
    if config.run.precision == Precision::Bfloat16 && device.is_cpu() && !has_bfloat16_instructions() {
        warn(format_args!("this CPU has no bfloat16 instructions; `run.precision: float32` is faster"));
    }
    let name = path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy());
    Ok((RunFolder::create(args.out.as_deref(), &name)?, config, device))
}

/// The configuration of the run in `folder`, without and with the overrides.
fn configs_of_resumed(args: &FitArgs, folder: &RunFolder) -> anyhow::Result<[TrainConfig; 2]> {
    ensure!(
        args.data.is_none() || args.config.is_some(),
        "a resumed run uses the data paths of its configuration; omit --data, or pass --config too"
    );
    let path = folder.config_path();
    let format = TrainConfig::format_of_run(&path);
    let before = TrainConfig::read_as(&path, None, &Overrides::default(), format)?;
    let config = TrainConfig::read_as(&path, None, &args.overrides, format)?;
    if let Some(path) = &args.config {
        ensure!(
            TrainConfig::read_as(path, args.data.as_deref(), &args.overrides, format)? == config,
            "`{}` is not the configuration that the run in `{}` was started with; omit --config, or start a new run",
            path.display(),
            folder.path().display()
        );
    }
    resumption::ensure_resumable(&before, &config)?;
    Ok([before, config])
}

/// The device for a run that used `before`.
fn device_of_resumed(args: &FitArgs, folder: &RunFolder, before: Device) -> anyhow::Result<Device> {
    let device = args.device.unwrap_or(before);
    device.open().with_context(|| match args.device {
        Some(device) => format!("cannot resume the run in `{}` on {device}", folder.path().display()),
        None => format!("the run in `{}` used {before}; choose another with --device", folder.path().display()),
    })?;
    if device != before {
        say(format_args!("the run used {before} and continues on {device}; results may differ in the last digits"));
    }
    Ok(device)
}
