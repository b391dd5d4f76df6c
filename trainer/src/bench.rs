//! `trainer bench`: time of the stages of a training step, on generated images.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use models::ModelSpec;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use runtime::machine::memory;
use runtime::output::ReportWriter;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::device::{Device, set_cudnn_benchmark};
use crate::loader::{BatchRequest, Loader, Recipe};
use crate::machine::Machine;
use crate::overrides::Overrides;
use crate::progress::say;
use crate::schedule::{Patience, SchedulePosition};
use crate::step::StageSeconds;
use crate::synth::{Size, draw_images};
use crate::training_model::TrainingModel;

/// Warm-up steps, which are not measured: libtorch selects algorithms and allocates its memory in them.
const WARM_UP: u64 = 2;

/// Number of generated batches; the steps cycle through them.
const BATCHES: usize = 4;

/// Measure the speed of training steps on generated images.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Configuration to measure; its data is not read.
    #[arg(long, short, default_value = "retinanet.yaml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Device to train on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Number of measured steps, after two for warm-up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Width of the generated JPEG images, in pixels, from 40 to 2048.
    #[arg(long, default_value_t = 640, value_parser = clap::value_parser!(u32).range(40..=2048))]
    width: u32,
    /// Height of the generated images, in pixels, from 40 to 2048.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(40..=2048))]
    height: u32,
    /// Also write the numbers as JSON; `-` writes them to stdout instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Results of the measurement.
#[derive(Debug, Serialize)]
struct Measured {
    machine: Machine,
    device: String,
    /// Images per optimizer step.
    batch_size: usize,
    /// Pixels of the network's input: height, width.
    input: [usize; 2],
    steps: u64,
    /// Mean times of a step.
    seconds: StageSeconds,
    /// Training speed.
    images_per_second: f64,
    /// Speed of the data loader alone, without training steps.
    loader_images_per_second: f64,
    /// Memory of this process after a tenth of the steps and after all of them, in MiB; none if unknown.
    memory_mib: [Option<u64>; 2],
}

/// Runs the measurement and prints the results.
///
/// # Errors
/// When the configuration or the device is invalid, when a file cannot be written, and when the loss is not finite.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let config = TrainConfig::read(&args.config, None, &args.overrides)?;
    let device = args.device.open()?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder for generated images")?;
    let writer = ReportWriter::open(args.json.as_deref())?;
    let measured = measure(args, &config, device, folder.path())?;
    Ok(writer.publish(&measured, &table(&measured))?)
}

fn measure(args: &BenchArgs, config: &TrainConfig, device: tch::Device, folder: &Path) -> anyhow::Result<Measured> {
    let batch_size = config.run.batch_size;
    let images = u32::try_from(BATCHES * batch_size).context("`run.batch_size` is too large")?;
    let size = Size { width: args.width, height: args.height };
    say(format_args!("generating {images} images of {}x{}", args.width, args.height));
    let generator = |index: u32| ChaCha8Rng::seed_from_u64(index.into());
    let dataset = draw_images(folder, "jpg", images, size, generator)?;
    let mut spec = ModelSpec { classes: config.model.classes.clone(), ..config.model.clone() };
    if spec.classes.len() < dataset.classes().len() {
        spec.classes = dataset.classes().to_vec();
    }
    let mut model = TrainingModel::new(&spec, config, device)?;
    let loader = Loader::new(
        Recipe {
            dataset,
            spec,
            matcher: config.matching.clone(),
            normalizer: config.loss.normalizer,
            augmentation: config.augmentation.clone(),
            cache: Arc::default(),
        },
        config.run.workers,
    )?;

    set_cudnn_benchmark(device, &config.run, loader.recipe());

    let start = Instant::now();
    let mut loaded = 0;
    for batch in loader.batches(requests(BATCHES as u64, batch_size)) {
        loaded += batch?.images.len();
    }
    let loader_images_per_second = loaded as f64 / start.elapsed().as_secs_f64();

    let per_step = config.optimizer.gradient_accumulation_steps;
    let steps = WARM_UP + args.steps;
    let mut batches = loader.batches(requests(steps * per_step as u64, batch_size));
    let mut seconds = StageSeconds::default();
    let (mut input, mut early) = ([0, 0], None);
    let (mut trained, mut start) = (0, Instant::now());
    for step in 0..steps {
        if step == WARM_UP {
            (seconds, trained, start) = (StageSeconds::default(), 0, Instant::now());
        }
        if step == WARM_UP + args.steps / 10 {
            early = memory();
        }
        let waiting = Instant::now();
        let group = batches.by_ref().take(per_step).collect::<anyhow::Result<Vec<_>>>()?;
        let waited = waiting.elapsed().as_secs_f64();
        let result = model.step(&group, &SchedulePosition { step, steps, epoch: 0, patience: Patience::default() })?;
        ensure!(result.is_finite(), "the loss is not finite; lower `optimizer.learning_rate`");
        seconds += StageSeconds { data: waited, ..result.seconds };
        trained += group.iter().map(|batch| batch.indices.len()).sum::<usize>();
        let (_, _, height, width) = group[0].images.dim();
        input = [height, width];
    }
    let images_per_second = trained as f64 / start.elapsed().as_secs_f64();
    Ok(Measured {
        machine: Machine::new(),
        device: args.device.to_string(),
        batch_size: batch_size * per_step,
        input,
        steps: args.steps,
        seconds: seconds.mean(args.steps),
        images_per_second,
        loader_images_per_second,
        memory_mib: [early, memory()],
    })
}

/// Requests for `count` batches that cycle through the generated images.
fn requests(count: u64, batch_size: usize) -> impl Iterator<Item = BatchRequest> {
    (0..count).map(move |batch| {
        let first = (batch as usize % BATCHES) * batch_size;
        BatchRequest { indices: (first..first + batch_size).collect(), seed: batch }
    })
}

/// The results as a table, without a final newline.
fn table(measured: &Measured) -> String {
    let Measured { machine, seconds, batch_size, input: [height, width], .. } = measured;
    let stages = [
        ("data", seconds.data),
        ("forward", seconds.forward),
        ("backward", seconds.backward),
        ("optimizer", seconds.optimizer),
    ];
    let total: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
    let mut table = format!(
        "{machine}\n{} images per step, {height}x{width}, on {}, mean of {} steps\n",
        batch_size, measured.device, measured.steps
    );
    for (name, seconds) in stages.into_iter().chain([("step", total)]) {
        table += &format!("\n{name:<10}{:>10.1} ms{:>8.1} %", 1e3 * seconds, 100.0 * seconds / total);
    }
    table += &format!("\n\n{:.2} images/s; loader alone: ", measured.images_per_second);
    table += &format!("{:.1} images/s", measured.loader_images_per_second);
    if let [Some(early), Some(late)] = measured.memory_mib {
        table += &format!("\nmemory: {early} MiB after 10 % of the steps, {late} MiB at the end");
    }
    table
}
