//! `trainer fit`: data in, checkpoints out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use clap::Args;
use models::dataset::{Dataset, OnProblem, Source, named};
use models::spec::NormKind;
use models::{ModelSpec, Pretrained};
use rayon::prelude::*;
use runtime::data::has_image;

use crate::augmentation::AugmentationConfig;
use crate::cache::Cache;
use crate::config::{BadAnnotations, Precision, TrainConfig};
use crate::device::{Device, search_algorithms};
use crate::learner::Learner;
use crate::loader::{Loader, Recipe};
use crate::machine::computes_bfloat16;
use crate::progress::say;
use crate::run::Run;
use crate::run_folder::RunFolder;

/// Train a detector.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Configuration file; `trainer init` writes one [default: retinanet.yaml; with --resume the run's].
    #[arg(long, short, help_heading = "Input")]
    config: Option<PathBuf>,
    /// Folder that relative paths in the configuration are relative to [default: the configuration's folder].
    #[arg(long, help_heading = "Input")]
    data: Option<PathBuf>,
    /// Folder for checkpoints and logs [default: runs/NAME-N, with the link runs/latest].
    #[arg(long, short, help_heading = "Output")]
    out: Option<PathBuf>,
    /// Device to train on: cpu, cuda or cuda:N [default: cpu; with --resume the run's].
    #[arg(long)]
    device: Option<Device>,
    /// Start from the weights of this checkpoint or backbone, where names and shapes match.
    #[arg(long, help_heading = "Input", value_name = "FILE", conflicts_with = "resume")]
    weights: Option<PathBuf>,
    /// Continue the run in --out [default: runs/latest]; --config, if given, must equal the run's.
    #[arg(long)]
    resume: bool,
}

/// Trains as the configuration says.
///
/// # Errors
/// When configuration, data, device or folder are not as they should be, and when the loss is no longer finite.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    let (folder, config, device) = if args.resume { existing_run(args)? } else { new_run(args)? };
    let (train, validation) = open_data(&config)?;
    let on = device.open()?;
    let learner = match &args.weights {
        Some(path) => pretrained(path, &train.recipe().spec, &config, on)?,
        None => Learner::new(&train.recipe().spec, &config, on)?,
    };
    search_algorithms(on, &config.run, train.recipe());
    let interrupted = watch_interrupts()?;
    let resumption = format!("trainer fit --resume --out {}", folder.path().display());
    let run = Run::new(folder, config, [train, validation], learner, device, interrupted, resumption);
    if args.resume { run.resume() } else { run.begin() }
}

/// A network that begins with the weights of a checkpoint or a backbone.
fn pretrained(path: &Path, spec: &ModelSpec, config: &TrainConfig, device: tch::Device) -> anyhow::Result<Learner> {
    let place = || format!("the weights of {}", path.display());
    let pretrained = Pretrained::open(path).with_context(place)?;
    let (learner, lines) = Learner::from_pretrained(spec, config, device, &pretrained).with_context(place)?;
    for line in lines {
        say(&format!("{}: {line}", path.display()));
    }
    Ok(learner)
}

fn new_run(args: &FitArgs) -> anyhow::Result<(RunFolder, TrainConfig, Device)> {
    let device = args.device.unwrap_or_default();
    device.open()?;
    if args.device.is_none() && tch::Cuda::is_available() {
        say("training on the CPU; `--device cuda` would use the GPU that is here");
    }
    let path = args.config.as_deref().unwrap_or(Path::new("retinanet.yaml"));
    let config = TrainConfig::read(path, args.data.as_deref())?;
    if args.weights.is_none() && config.model.backbone.norm.kind == NormKind::FrozenBatch {
        say(
            "warning: `frozen_batch` is for pretrained weights; from scratch, set `backbone.norm.kind` to batch or group",
        );
    }
    if config.run.precision == Precision::Bfloat16 && device.is_cpu() && !computes_bfloat16() {
        say("warning: this CPU has no instructions for bfloat16; `run.precision: float32` will be faster");
    }
    let name = path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy());
    Ok((RunFolder::create(args.out.as_deref(), &name)?, config, device))
}

fn existing_run(args: &FitArgs) -> anyhow::Result<(RunFolder, TrainConfig, Device)> {
    ensure!(
        args.data.is_none() || args.config.is_some(),
        "the run knows where its data is; leave --data out, or give --config too"
    );
    let folder = RunFolder::existing(args.out.as_deref())?;
    let config = TrainConfig::read(&folder.config_path(), None)?;
    if let Some(path) = &args.config {
        ensure!(
            TrainConfig::read(path, args.data.as_deref())? == config,
            "{} is not the configuration that the run in {} was started with; leave --config out, or start a new run",
            path.display(),
            folder.path().display()
        );
    }
    let before = folder.progress()?.device;
    let device = args.device.unwrap_or(before);
    device.open().with_context(|| match args.device {
        Some(_) => format!("the run in {} cannot go on there", folder.path().display()),
        None => format!("the run in {} was on {before}; --device names another", folder.path().display()),
    })?;
    if device != before {
        say(&format!("the run was on {before} and goes on on {device}, where results differ in the last digits"));
    }
    Ok((folder, config, device))
}

/// The training and the validation data, each with its own threads.
fn open_data(config: &TrainConfig) -> anyhow::Result<(Loader, Loader)> {
    let train = read_split(&config.data.train, config.data.bad_annotations, OnProblem::Drop)?;
    // Evaluation takes the boxes as they are, as COCO's own program does, so that its numbers mean the same.
    let validation = read_split(&config.data.validation, config.data.bad_annotations, OnProblem::Keep)?;
    ensure!(
        train.classes == validation.classes,
        "the classes of {} and {} differ; list them in a file, and give it to both as `classes`",
        config.data.train.annotations.display(),
        config.data.validation.annotations.display()
    );
    let spec = complete_spec(&config.model, &train)?;
    let cache = Arc::new(Cache::open(&config.data.cache)?);
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
    Ok((loader(train, &config.augmentation)?, loader(validation, &AugmentationConfig::none())?))
}

fn read_split(source: &Source, bad: BadAnnotations, dropping: OnProblem) -> anyhow::Result<Dataset> {
    const MEND: &str = "mend them, or set `data.bad_annotations: drop`";
    let path = source.annotations.display();
    let (mut dataset, mut report) = runtime::data::read(source, dropping)?;
    if bad == BadAnnotations::Refuse && report.is_serious() {
        report.on_problem = OnProblem::Refuse;
        bail!("{path}: {report}; {MEND}");
    }
    for line in report.lines() {
        say(&format!("warning: {path}: {line}"));
    }
    let all = dataset.images.len();
    let there: Vec<_> = (0..all).into_par_iter().map(|image| has_image(&dataset, image)).collect();
    let missing: Vec<_> = dataset.drop_images(&there).into_iter().map(|image| image.file_name).collect();
    if !missing.is_empty() {
        let count = missing.len();
        let folder = dataset.folder.display();
        let text = format!("{path}: {count} of {all} are no images in {folder}: {}", named(&missing));
        // Without any image it is the folder that is wrong.
        ensure!(bad == BadAnnotations::Drop && count < all, "{text}; {MEND}");
        say(&format!("warning: {text}; dropped"));
    }
    ensure!(!dataset.images.is_empty(), "{path}: there are no images");
    Ok(dataset)
}

/// The configured spec with the classes of the data.
fn complete_spec(spec: &ModelSpec, dataset: &Dataset) -> anyhow::Result<ModelSpec> {
    ensure!(!dataset.classes.is_empty(), "the training data lists no classes");
    ensure!(
        spec.classes.is_empty() || spec.classes == dataset.classes,
        "`model.classes` are not those of the training data; leave them out to take them from there"
    );
    Ok(ModelSpec { classes: dataset.classes.clone(), ..spec.clone() })
}

/// Whether Ctrl-C was pressed. The first one ends the run after its step, the second one at once.
fn watch_interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    /// What a shell reports of a program that Ctrl-C has ended.
    const INTERRUPTED: i32 = 130;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        say("stopping after this step; press Ctrl-C again to stop at once and lose what is not saved");
    })
    .context("can't watch for Ctrl-C")?;
    Ok(interrupted)
}
