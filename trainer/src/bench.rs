//! `trainer bench`: time of the stages of a training step, on generated images.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use process_group::ProcessGroup;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use runtime::machine::memory;
use runtime::output::ReportWriter;
use schemars::JsonSchema;
use serde::Serialize;

use crate::batch_size::BatchSize;
use crate::config::TrainConfig;
use crate::device::{Device, set_cudnn_benchmark};
use crate::group::{GroupArgs, with_rank};
use crate::interrupt::Interrupt;
use crate::loader::{Batch, BatchRequest, Loader, Recipe};
use crate::machine::Machine;
use crate::overrides::Overrides;
use crate::progress::say;
use crate::schedule::{Patience, SchedulePosition};
use crate::step::StageSeconds;
use crate::step_totals::StepTotals;
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
    #[command(flatten)]
    group: GroupArgs,
}

/// Results of the measurement.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Measured {
    machine: Machine,
    device: String,
    /// Images per optimizer step, of all processes.
    batch_size: usize,
    /// Pixels of the network's input: height, width.
    input: [usize; 2],
    steps: u64,
    /// Mean times of a step.
    seconds: StageSeconds,
    /// Training speed, of all processes.
    images_per_second: f64,
    /// Number of processes that train together.
    world_size: usize,
    /// What training together costs; none for one process.
    communication: Option<Communication>,
    /// Speed of one process's data loader alone, without training steps.
    loader_images_per_second: f64,
    /// Memory of this process after a tenth of the steps and after all of them, in MiB; none if unknown.
    memory_mib: [Option<u64>; 2],
}

/// What it costs that processes train together.
#[derive(Debug, Serialize, JsonSchema)]
struct Communication {
    /// Mean time that a process spends in collective operations in a step, waiting for slower processes included.
    seconds: f64,
    /// This time as a fraction of the step.
    fraction: f64,
    /// Duration of a step when the processes train at the same time but not together, relative to when they do.
    efficiency: f64,
}

/// Runs the measurement and prints the results; with several processes, rank 0 prints them.
///
/// # Errors
/// When the configuration or the device is invalid, when a file cannot be written, and when the loss is not finite.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let group = args.group.join()?;
    with_rank(&group, bench(args, &group))
}

fn bench(args: &BenchArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let config = TrainConfig::read(&args.config, None, &args.overrides)?;
    let device = args.device.of_rank(group)?.open()?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder for generated images")?;
    let writer = group.is_first().then(|| ReportWriter::open(args.json.as_deref())).transpose()?;
    let measured = measure(args, &config, group, device, folder.path())?;
    Ok(writer.map_or(Ok(()), |writer| writer.publish(&measured, &table(&measured)))?)
}

fn measure(
    args: &BenchArgs,
    config: &TrainConfig,
    group: &Rc<ProcessGroup>,
    device: tch::Device,
    folder: &Path,
) -> anyhow::Result<Measured> {
    let BatchSize::Images(batch_size) = config.run.batch_size else {
        bail!("`run.batch_size` is auto, which only `fit` finds; give a number, for example --set run.batch_size=8");
    };
    let images = u32::try_from(BATCHES * batch_size).context("`run.batch_size` is too large")?;
    let size = Size { width: args.width, height: args.height };
    say(format_args!("generating {images} images of {}x{}", args.width, args.height));
    let generator = |index: u32| ChaCha8Rng::seed_from_u64(index.into());
    let dataset = draw_images(folder, "jpg", images, size, generator)?;
    let mut spec = config.model.clone();
    if spec.classes.len() < dataset.classes().len() {
        spec.classes = dataset.classes().to_vec();
    }
    let mut model = TrainingModel::new(&spec, config, device)?;
    let loader = Loader::new(Recipe::new(config, dataset, spec), config.run.workers)?.for_device(device);
    set_cudnn_benchmark(device, &config.run, &[loader.recipe()]);
    let loader_images_per_second = loading_speed(&loader, config.run.workers, batch_size)?;
    let (mut trained, communication) = train_alone_and_together(&mut model, group, &loader, config, args.steps)?;
    if device.is_cuda() {
        // Waiting for the GPU after each stage takes time of its own.
        model.time_device();
        trained.seconds = train(&mut model, group, &loader, config, args.steps.div_ceil(4))?.seconds;
    }
    let Trained { seconds, images_per_second, input, early_memory, .. } = trained;
    Ok(Measured {
        machine: Machine::new(),
        device: args.device.to_string(),
        batch_size: batch_size * config.optimizer.gradient_accumulation_steps * group.world_size(),
        input,
        steps: args.steps,
        seconds,
        images_per_second,
        world_size: group.world_size(),
        communication,
        loader_images_per_second,
        memory_mib: [early_memory, memory()],
    })
}

/// Images per second of the loader without training.
fn loading_speed(loader: &Loader, workers: usize, batch_size: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    // At least two for each worker.
    let batches = BATCHES.max(2 * workers) as u64;
    let mut loaded = 0;
    for batch in loader.batches(requests(batches, batch_size)) {
        loaded += batch?.indices.len();
    }
    Ok(loaded as f64 / start.elapsed().as_secs_f64())
}

/// The steps of all processes together, and what that costs, for which each also makes them alone.
fn train_alone_and_together(
    model: &mut TrainingModel,
    group: &Rc<ProcessGroup>,
    loader: &Loader,
    config: &TrainConfig,
    steps: u64,
) -> anyhow::Result<(Trained, Option<Communication>)> {
    group.barrier()?;
    let alone = train(model, &ProcessGroup::alone(), loader, config, steps)?;
    if group.world_size() == 1 {
        return Ok((alone, None));
    }
    model.join(group.clone())?;
    let together = train(model, group, loader, config, steps)?;
    let communication = Communication {
        seconds: together.communication,
        fraction: together.communication / together.step,
        efficiency: alone.step / together.step,
    };
    Ok((together, Some(communication)))
}

/// Results of training steps.
struct Trained {
    /// Mean times of the stages of a step.
    seconds: StageSeconds,
    /// Mean duration of a step, in seconds.
    step: f64,
    /// Mean time in collective operations in a step, in seconds.
    communication: f64,
    /// Of all ranks.
    images_per_second: f64,
    /// Height and width of the network's input.
    input: [usize; 2],
    /// Memory of this process after a tenth of the steps, in MiB.
    early_memory: Option<u64>,
}

/// Makes `measured` steps, after those for warm-up, with the other ranks of `group`.
fn train(
    model: &mut TrainingModel,
    group: &ProcessGroup,
    loader: &Loader,
    config: &TrainConfig,
    measured: u64,
) -> anyhow::Result<Trained> {
    let per_step = config.optimizer.gradient_accumulation_steps;
    let steps = WARM_UP + measured;
    let mut batches = loader.batches(requests(steps * per_step as u64, config.run.batch_size.images()));
    let mut seconds = StageSeconds::default();
    let (mut input, mut early_memory) = ([0, 0], None);
    let (mut images, mut start, mut communicated) = (0, Instant::now(), Duration::ZERO);
    for step in 0..steps {
        if step == WARM_UP {
            (seconds, images, start) = (StageSeconds::default(), 0, Instant::now());
            communicated = group.communication_time();
        }
        if step == WARM_UP + measured / 10 {
            early_memory = memory();
        }
        let waiting = Instant::now();
        let own = batches.by_ref().take(per_step).collect::<anyhow::Result<Vec<_>>>();
        let waited = waiting.elapsed().as_secs_f64();
        let normalizer = config.loss.normalizer;
        let totals = |batches: &Vec<Batch>| StepTotals::of(batches, normalizer);
        let (own, totals) = StepTotals::over_ranks(group, own, |_| false, totals)?;
        let at = SchedulePosition { step, steps, epoch: 0, patience: Patience::default() };
        let result = model.step_unless(&own, totals, &at, &Interrupt::default())?;
        ensure!(result.is_finite(), "the loss is not finite; lower `optimizer.learning_rate`");
        seconds += StageSeconds { data: waited, ..result.seconds };
        images += totals.images;
        input = own[0].images.size();
    }
    let elapsed = start.elapsed().as_secs_f64();
    let communication = (group.communication_time() - communicated).as_secs_f64();
    Ok(Trained {
        seconds: seconds.mean(measured),
        step: elapsed / measured as f64,
        communication: communication / measured as f64,
        images_per_second: images as f64 / elapsed,
        input,
        early_memory,
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
    if let Some(Communication { seconds, fraction, efficiency }) = &measured.communication {
        table += &format!(
            "\n{} processes: {:.1} ms of a step are communication ({:.1} %), efficiency {:.1} %",
            measured.world_size,
            1e3 * seconds,
            100.0 * fraction,
            100.0 * efficiency
        );
    }
    if let [Some(early), Some(late)] = measured.memory_mib {
        table += &format!("\nmemory: {early} MiB after 10 % of the steps, {late} MiB at the end");
    }
    table
}
