//! `trainer fit`: data in, checkpoints out.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use models::dataset::{Dataset, OnProblem, named};
use models::evaluation::{Evaluation, evaluate};
use models::spec::NormKind;
use models::{ModelSpec, Provenance};
use serde_json::json;

use crate::augmentation::AugmentationConfig;
use crate::cache::Cache;
use crate::config::{BadAnnotations, SplitConfig, TrainConfig};
use crate::device::Device;
use crate::learner::{Learner, Step};
use crate::loader::{Batch, Loader, Recipe, aspect_groups, orders};
use crate::progress::{EpochProgress, print, say};
use crate::run_folder::{Progress, RunFolder};
use crate::validation::{score, validation_batches};

/// Train a detector.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Configuration; `trainer init` writes one [default: retinanet.yaml; with --resume that of the run]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder that relative paths in the configuration start from [default: the folder of the configuration]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for checkpoints and log [default: runs/NAME-N, and runs/latest points there]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where to train: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Go on with the run in --out [default: runs/latest]; a --config must then be the run's own
    #[arg(long)]
    resume: bool,
}

/// Trains as the configuration says.
///
/// # Errors
/// When configuration, data, device or folder are not as they should be, and when the loss is no longer finite.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let (folder, config) = if args.resume { existing_run(args)? } else { new_run(args)? };
    let (train, validation) = open_data(&config)?;
    let learner = Learner::new(&train.recipe().spec, &config, device)?;
    let interrupted = watch_interrupts()?;
    let resumption = format!("trainer fit --resume --out {} --device {}", folder.path().display(), args.device);
    let progress = Progress::default();
    let mut fit = Fit { folder, config, train, validation, learner, progress, interrupted, resumption };
    if args.resume {
        fit.progress = fit.folder.restore(&mut fit.learner)?;
    } else {
        fit.save(None, false)?;
        fit.folder.begin(&fit.config)?;
    }
    fit.run()
}

fn new_run(args: &FitArgs) -> anyhow::Result<(RunFolder, TrainConfig)> {
    let path = args.config.as_deref().unwrap_or(Path::new("retinanet.yaml"));
    let config = TrainConfig::read(path, args.data.as_deref())?;
    if config.model.backbone.norm.kind == NormKind::FrozenBatch {
        say(
            "warning: `frozen_batch` is for pretrained weights; from scratch, set `backbone.norm.kind` to batch or group",
        );
    }
    let name = path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy());
    Ok((RunFolder::create(args.out.as_deref(), &name)?, config))
}

fn existing_run(args: &FitArgs) -> anyhow::Result<(RunFolder, TrainConfig)> {
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
    Ok((folder, config))
}

/// The training and the validation data, each with its own threads.
fn open_data(config: &TrainConfig) -> anyhow::Result<(Loader, Loader)> {
    let train = read_split(&config.data.train, config.data.bad_annotations, OnProblem::Drop)?;
    // Evaluation takes the boxes as they are, as COCO's own program does, so that its numbers mean the same.
    let validation = read_split(&config.data.validation, config.data.bad_annotations, OnProblem::Keep)?;
    ensure!(
        train.classes == validation.classes,
        "the classes of {} and {} differ",
        config.data.train.annotations.display(),
        config.data.validation.annotations.display()
    );
    let spec = complete_spec(&config.model, &train)?;
    let cache = Arc::new(Cache::open(&config.data.cache)?);
    let loader = |dataset, split: &SplitConfig, augmentation: &AugmentationConfig| {
        let recipe = Recipe {
            dataset,
            folder: split.pictures.clone(),
            spec: spec.clone(),
            matcher: config.matching.clone(),
            augmentation: augmentation.clone(),
            cache: cache.clone(),
        };
        Loader::new(recipe, config.run.workers)
    };
    Ok((
        loader(train, &config.data.train, &config.augmentation)?,
        loader(validation, &config.data.validation, &AugmentationConfig::none())?,
    ))
}

fn read_split(split: &SplitConfig, bad: BadAnnotations, dropping: OnProblem) -> anyhow::Result<Dataset> {
    const MEND: &str = "mend them, or set `data.bad_annotations: drop`";
    let path = split.annotations.display();
    let (mut dataset, mut report) = Dataset::read(&split.annotations, dropping)?;
    if bad == BadAnnotations::Refuse && report.is_serious() {
        report.on_problem = OnProblem::Refuse;
        bail!("{path}: {report}; {MEND}");
    }
    for line in report.lines() {
        say(&format!("warning: {path}: {line}"));
    }
    let all = dataset.images.len();
    ensure!(all > 0, "{path} lists no pictures");
    let missing: Vec<_> =
        dataset.drop_missing_pictures(&split.pictures).into_iter().map(|image| image.file_name).collect();
    if !missing.is_empty() {
        let count = missing.len();
        let text =
            format!("{path}: {count} of {all} pictures are not in {}: {}", split.pictures.display(), named(&missing));
        // Without any picture it is the folder that is wrong.
        ensure!(bad == BadAnnotations::Drop && count < all, "{text}; {MEND}");
        say(&format!("warning: {text}; dropped"));
    }
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

/// One run.
struct Fit {
    /// The command that goes on with it.
    resumption: String,
    folder: RunFolder,
    config: TrainConfig,
    train: Loader,
    validation: Loader,
    learner: Learner,
    progress: Progress,
    interrupted: Arc<AtomicBool>,
}

impl Fit {
    fn run(mut self) -> anyhow::Result<()> {
        let pictures = self.train.recipe().dataset.images.len();
        let steps_per_epoch = pictures.div_ceil(self.config.run.batch_size) as u64;
        let steps = steps_per_epoch * u64::from(self.config.run.epochs);
        say(&format!(
            "{} pictures to learn from, {} to validate on, {} classes; {} epochs of {steps_per_epoch} steps; writing to {}",
            pictures,
            self.validation.recipe().dataset.images.len(),
            self.learner.spec.class_count(),
            self.config.run.epochs,
            self.folder.path().display()
        ));
        let mut log = self.folder.open_log()?;
        while self.progress.epochs < self.config.run.epochs {
            let learned = self.learn(steps, &mut log)?;
            let evaluation = self.validate()?;
            self.finish_epoch(&learned, &evaluation, &mut log)?;
        }
        let (best, last) = (self.progress.best_ap.unwrap_or_default(), self.progress.last_ap.unwrap_or_default());
        print(&format!("best AP {best:.4}, last AP {last:.4}; {}", self.folder.best_path().display()))
    }

    /// The rest of an epoch's steps, of `steps` in the run.
    fn learn(&mut self, steps: u64, log: &mut impl Write) -> anyhow::Result<Learned> {
        let (epoch, epochs) = (self.progress.epochs, self.config.run.epochs);
        let run = &self.config.run;
        let images = &self.train.recipe().dataset.images;
        let all = images.len();
        let groups = if run.group_by_aspect { aspect_groups(images) } else { vec![0; all] };
        let orders = orders(&groups, run.batch_size, run.seed, epoch);
        let made = self.progress.steps.checked_sub(u64::from(epoch) * orders.len() as u64);
        let orders = made.and_then(|made| orders.get(made as usize..)).with_context(|| {
            format!(
                "the run's {} steps don't fit {all} pictures, so the data has changed; start a new run",
                self.progress.steps
            )
        })?;
        let pictures = orders.iter().map(|order| order.pictures.len() as u64).sum();
        let later = u64::from(epochs - epoch - 1) * all as u64;
        let mut shown = EpochProgress::new(format!("epoch {}/{epochs}", epoch + 1), pictures, later);
        let mut sums = [0.0; 2];
        for batch in self.train.batches(orders.iter().cloned()) {
            self.stop_if_interrupted()?;
            let batch = batch.map_err(|error| self.stop(error))?;
            let step = self.learner.step(&batch, steps);
            if !step.is_finite() {
                bail!(not_finite(&step, &batch, &self.train.recipe().dataset));
            }
            self.progress.steps += 1;
            shown.step(batch.pictures.len(), &step);
            sums[0] += step.classification * batch.pictures.len() as f64;
            sums[1] += step.regression * batch.pictures.len() as f64;
            let line = json!({
                "step": self.progress.steps, "epoch": epoch + 1,
                "classification": step.classification, "regression": step.regression,
                "gradient_norm": step.gradient_norm, "learning_rate": step.learning_rate,
            });
            writeln!(log, "{line}").context("can't write the log")?;
        }
        let [classification, regression] = sums.map(|sum| sum / pictures.max(1) as f64);
        let (seconds, pictures_per_second) = (shown.seconds(), shown.pictures_per_second());
        Ok(Learned { classification, regression, seconds, pictures_per_second })
    }

    fn validate(&self) -> anyhow::Result<Evaluation> {
        let pictures = self.validation.recipe().dataset.images.len() as u64;
        let mut shown = EpochProgress::new(format!("validation {}", self.progress.epochs + 1), pictures, 0);
        let mut scored = Vec::new();
        for batch in validation_batches(&self.validation, self.config.run.batch_size) {
            self.stop_if_interrupted()?;
            let batch = batch.map_err(|error| self.stop(error))?;
            scored.extend(score(&self.learner, &batch));
            shown.validated(batch.pictures.len());
        }
        let dataset = &self.validation.recipe().dataset;
        Ok(evaluate(&dataset.annotations, &scored, dataset.classes.len()))
    }

    fn finish_epoch(&mut self, learned: &Learned, evaluation: &Evaluation, log: &mut impl Write) -> anyhow::Result<()> {
        let ap = evaluation.summary.ap;
        let best = self.progress.best_ap.is_none_or(|best| ap > best);
        self.progress.epochs += 1;
        self.progress.last_ap = Some(ap);
        if best {
            self.progress.best_ap = Some(ap);
        }
        self.save(Some(ap), best)?;
        let Learned { classification, regression, seconds, pictures_per_second } = learned;
        say(&format!(
            "epoch {}/{}: classification {classification:.4}, boxes {regression:.4}, AP {ap:.4}, AP50 {:.4}{}; \
             {seconds:.1} s, {pictures_per_second:.1} pictures/s",
            self.progress.epochs,
            self.config.run.epochs,
            evaluation.summary.ap50,
            if best { ", the best so far" } else { "" }
        ));
        let line = json!({
            "epoch": self.progress.epochs, "steps": self.progress.steps,
            "classification": classification, "regression": regression,
            "seconds": seconds, "pictures_per_second": pictures_per_second, "validation": evaluation.summary,
        });
        writeln!(log, "{line}").context("can't write the log")
    }

    fn save(&self, ap: Option<f64>, best: bool) -> anyhow::Result<()> {
        let program = concat!("trainer ", env!("CARGO_PKG_VERSION")).to_owned();
        let checkpoint = self.learner.checkpoint(Provenance { program, epoch: Some(self.progress.epochs), ap })?;
        self.folder.save(&self.learner, &self.progress, &checkpoint, best)
    }

    fn stop_if_interrupted(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::SeqCst) { Err(self.stop(anyhow!("interrupted"))) } else { Ok(()) }
    }

    /// What to say of a run that ends before its time for `reason`, once it is saved so that it can go on.
    fn stop(&self, reason: anyhow::Error) -> anyhow::Error {
        let steps = self.progress.steps;
        match self.save(None, false) {
            Ok(()) => anyhow!("{reason:#}; stopped after step {steps}, all is saved; to go on: {}", self.resumption),
            Err(error) => anyhow!("{reason:#}; and the run can't be saved: {error:#}"),
        }
    }
}

/// What the steps of an epoch did.
struct Learned {
    /// Mean focal loss.
    classification: f64,
    /// Mean box loss.
    regression: f64,
    seconds: f64,
    pictures_per_second: f64,
}

/// What there is to know when a step's numbers are not finite.
fn not_finite(step: &Step, batch: &Batch, dataset: &Dataset) -> String {
    let mut text = format!(
        "the loss is no longer finite: classification {}, boxes {}, gradient norm {}, at learning rate {}; \
         lower `optimizer.learning_rate`, lengthen the warm-up, or look at the boxes of this batch:",
        step.classification, step.regression, step.gradient_norm, step.learning_rate
    );
    for &picture in &batch.pictures {
        let boxes = dataset.annotations_of(picture).iter().map(|annotation| {
            let corners: [f32; 4] = annotation.rectangle.bounding_box().into();
            format!("{} {corners:?}", dataset.classes[annotation.class].name)
        });
        let boxes = boxes.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n  {}: {boxes}", dataset.images[picture].file_name);
    }
    text
}
