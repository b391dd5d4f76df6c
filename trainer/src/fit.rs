//! `trainer fit`: starts or resumes a training run.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use clap::Args;
use models::spec::NormKind;
use models::{ModelSpec, Pretrained};
use runtime::progress::{detail, is_verbose, say, warn};

use crate::augmentation::AugmentationConfig;
use crate::cache::Cache;
use crate::config::{Precision, TrainConfig};
use crate::device::{Device, set_cudnn_benchmark};
use crate::learner::Learner;
use crate::loader::{Loader, Recipe, Sampler, aspect_groups};
use crate::machine::{Machine, has_bfloat16_instructions};
use crate::overrides::Overrides;
use crate::resumption;
use crate::run::{Run, RunData, print_result};
use crate::run_folder::RunFolder;
use crate::splits::Splits;

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
/// When the configuration, the data, the device or the run folder is invalid, and when training fails or is
/// interrupted.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    if !args.resume {
        let (folder, config, device) = new_run(args)?;
        return prepare(args, folder, config, device)?.begin();
    }
    let folder = RunFolder::existing(args.out.as_deref())?;
    let [before, config] = configs_of_resumed(args, &folder)?;
    let progress = folder.progress()?;
    resumption::ensure_epochs_left(&progress, &before, &config)?;
    if let Some(end) = resumption::end(&progress, &config, &resume_command(&folder))
        && folder.has_report()
    {
        say(format_args!("{end}"));
        return print_result(&folder, &progress);
    }
    let device = device_of_resumed(args, &folder, progress.device)?;
    prepare(args, folder, config, device)?.resume(&before)
}

/// The command that resumes the run.
fn resume_command(folder: &RunFolder) -> String {
    format!("trainer fit --resume --out {}", folder.path().display())
}

/// Reads the data and builds the network of a run.
fn prepare(args: &FitArgs, folder: RunFolder, config: TrainConfig, device: Device) -> anyhow::Result<Run> {
    let data = open_data(&config, &folder.checked_images())?;
    let on = device.open()?;
    detail(format_args!("configuration: `{}`", folder.config_path().display()));
    if is_verbose() {
        detail(format_args!("machine: {}", Machine::new()));
    }
    let learner = match &args.weights {
        Some(path) => pretrained(path, &data.train.recipe().spec, &config, on)?,
        None => Learner::new(&data.train.recipe().spec, &config, on)?,
    };
    set_cudnn_benchmark(on, &config.run, data.train.recipe());
    let interrupted = watch_interrupts()?;
    let resumption = resume_command(&folder);
    Ok(Run::new(folder, config, data, learner, device, interrupted, resumption))
}

/// A network with initial weights from a checkpoint or a backbone.
fn pretrained(path: &Path, spec: &ModelSpec, config: &TrainConfig, device: tch::Device) -> anyhow::Result<Learner> {
    let context = || format!("cannot use the weights in `{}`", path.display());
    let pretrained = Pretrained::open(path).with_context(context)?;
    let (learner, lines) = Learner::from_pretrained(spec, config, device, &pretrained).with_context(context)?;
    for line in lines {
        say(format_args!("{}: {line}", path.display()));
    }
    Ok(learner)
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

/// The data, with threads for each split. Image files whose fingerprint is among `checked` are not opened again.
fn open_data(config: &TrainConfig, checked: &HashSet<u64>) -> anyhow::Result<RunData> {
    let Splits { train, validation, refusals, warnings } = Splits::read(config, checked)?;
    ensure!(refusals.is_empty(), "{}", refusals.join("\nerror: "));
    let problems = train.problems.iter().chain(&validation.problems);
    problems.chain(&warnings).for_each(|warning| warn(format_args!("{warning}")));
    let spec = ModelSpec { classes: train.dataset.classes().to_vec(), ..config.model.clone() };
    let cache = Arc::new(Cache::new(&config.data.cache));
    let loader = |dataset, augmentation: &AugmentationConfig| {
        let recipe = Recipe {
            dataset,
            spec: spec.clone(),
            matcher: config.matching.clone(),
            normalizer: config.loss.normalizer,
            augmentation: augmentation.clone(),
            cache: cache.clone(),
        };
        Loader::new(recipe, config.run.workers)
    };
    let images = train.dataset.images();
    let groups = if config.run.aspect_ratio_grouping { aspect_groups(images) } else { vec![0; images.len()] };
    Ok(RunData {
        sampler: Sampler::new(groups, train.repeats, config.run.batch_size, config.run.seed),
        checked_images: [train.fingerprint, validation.fingerprint],
        train: loader(train.dataset, &config.augmentation)?,
        validation: loader(validation.dataset, &AugmentationConfig::none())?,
    })
}

/// A flag that Ctrl-C sets. The first Ctrl-C ends the run after its current step, the second one immediately.
fn watch_interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    /// The exit code of a program ended by Ctrl-C.
    const INTERRUPTED: i32 = 130;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        say(format_args!(
            "stopping after this step; press Ctrl-C again to stop immediately and lose the steps since the last save"
        ));
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(interrupted)
}
