//! `runtime bench`: where the time of a detection goes, and how many images a second are to be had.

mod stages;
mod throughput;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use runtime::drivers::Drivers;
use runtime::output::{ReportWriter, aligned};
use runtime::pipeline::PipelineOptions;
use runtime::progress::say;
use runtime::{Provider, drawn, image_file, inputs, library, machine};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model_args::ModelArgs;
use crate::rule_args::RuleArgs;
use crate::up_to;
use stages::{Stages, Start};
use throughput::Throughput;

/// Measure the speed of a model on this machine.
///
/// Prints the time from start to first detection, the time of each stage for single images, and the throughput of
/// `runtime detect` in images per second.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Image files, folders and patterns, used in turn [default: four generated JPEG files].
    #[arg(value_name = "PATHS", help_heading = "Input")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    rules: RuleArgs,

    /// Size of the generated images, in pixels.
    #[arg(long, help_heading = "Input", value_name = "WIDTHxHEIGHT", default_value = "1280x960", value_parser = parse_size)]
    size: (u32, u32),

    /// Images per measurement.
    #[arg(long, help_heading = "Measurement", value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(19))]
    runs: NonZeroUsize,

    /// Warm-up images before each measurement.
    #[arg(long, help_heading = "Measurement", value_name = "N", default_value_t = 3)]
    warm_up: usize,

    /// Batch sizes to measure the throughput with.
    #[arg(long, help_heading = "Measurement", value_name = "N,..", value_delimiter = ',', default_value = "1,4")]
    #[arg(value_parser = up_to(PipelineOptions::MOST_BATCH))]
    batch_sizes: Vec<usize>,

    /// Numbers of threads to measure the throughput with [default: --threads].
    #[arg(long, help_heading = "Measurement", value_name = "N,..", value_delimiter = ',')]
    thread_counts: Vec<NonZeroUsize>,

    /// Also write the numbers as JSON; `-` writes them to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (16..=16384).contains(side));
    let size = text.split_once('x').and_then(|(width, height)| side(width).zip(side(height)));
    size.ok_or_else(|| "expected pixels such as 1280x960, from 16 to 16384".to_owned())
}

/// What was measured.
#[derive(Serialize)]
struct Measured {
    setup: Setup,
    start: Start,
    stages: Stages,
    throughput: Vec<Throughput>,
    /// Memory of the program at the end, in MiB, and the largest it had.
    memory_mib: [Option<u64>; 2],
}

/// What must be alike for two measurements to be compared.
#[derive(Serialize)]
struct Setup {
    runtime: &'static str,
    onnxruntime: String,
    provider: String,
    /// GPUs and their software, if one computes.
    drivers: Option<Drivers>,
    cpu: Option<String>,
    cores: usize,
    model: PathBuf,
    model_bytes: u64,
    model_sha256: String,
    /// Of the first image: height, width.
    input: [usize; 2],
    classes: usize,
    score_threshold: f32,
    images: usize,
    /// Whether they were drawn, and how large: width, height.
    drawn: Option<(u32, u32)>,
    runs: usize,
    warm_up: usize,
}

/// Measures, and prints.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let folder = tempfile::tempdir().context("cannot make a folder for drawn images")?;
    let files =
        if args.paths.is_empty() { draw(folder.path(), args.size)? } else { inputs::expand(&args.paths, false)? };
    let runs = args.runs.get();

    let (detector, start) = Start::measure(|| args.model.open(args.rules.rules(None), args.rules.views()), &files[0])?;
    say(format_args!("first detection after {:.0} ms; measuring stages", start.total_ms));
    let (stages, input) = Stages::measure(&detector, &files, args.warm_up, runs)?;
    let bytes =
        fs::read(args.model.path()).with_context(|| format!("cannot read `{}`", args.model.path().display()))?;
    let setup = Setup {
        runtime: env!("CARGO_PKG_VERSION"),
        onnxruntime: detector.engine().version().to_owned(),
        provider: detector.engine().provider().to_string(),
        drivers: drivers(&args.model, detector.engine().provider())?,
        cpu: machine::cpu(),
        cores: machine::cores(),
        model: args.model.path().to_owned(),
        model_bytes: bytes.len() as u64,
        model_sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        input,
        classes: detector.spec().class_count(),
        score_threshold: detector.spec().postprocessing.score_threshold,
        images: files.len(),
        drawn: args.paths.is_empty().then_some(args.size),
        runs,
        warm_up: args.warm_up,
    };
    drop(detector);

    let threads: Vec<_> = match &args.thread_counts[..] {
        [] => vec![args.model.threads()],
        threads => threads.iter().copied().map(Some).collect(),
    };
    let mut measured = Vec::new();
    for threads in threads {
        let detector = args.model.open_with(threads, args.rules.rules(None), args.rules.views())?;
        for batch in &args.batch_sizes {
            if detector.engine().batch().is_some_and(|most| *batch > most) {
                continue;
            }
            say(format_args!("measuring {batch} at a time"));
            measured.push(Throughput::measure(&detector, &files, args.warm_up, runs, *batch, threads)?);
        }
    }
    let memory_mib = [machine::memory(), machine::peak_memory()];
    let measured = Measured { setup, start, stages, throughput: measured, memory_mib };
    Ok(writer.publish(&measured, &measured.table())?)
}

fn drivers(model: &ModelArgs, provider: Provider) -> Result<Option<Drivers>> {
    match provider {
        Provider::Cuda { .. } | Provider::Tensorrt { .. } => {
            Ok(Some(Drivers::find(&library::find(model.library())?.path)))
        }
        _ => Ok(None),
    }
}

/// Files of drawn images.
fn draw(folder: &Path, (width, height): (u32, u32)) -> Result<Vec<PathBuf>> {
    let files = (0..4).map(|number| {
        let path = folder.join(format!("{number}.jpg"));
        let image = drawn::image(number, width, height);
        image_file::write(&path, &image).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    });
    files.collect()
}

impl Measured {
    /// The numbers for people, without the last line's end.
    fn table(&self) -> String {
        let Setup { runtime, onnxruntime, provider, cpu, cores, .. } = &self.setup;
        let cpu = cpu.as_deref().unwrap_or("unknown CPU");
        let Setup { model, model_bytes, model_sha256, input: [height, width], classes, .. } = &self.setup;
        let images = match self.setup.drawn {
            Some((width, height)) => format!("drawn JPEG files of {width}x{height}"),
            None => format!("{} files in turns", self.setup.images),
        };
        let known = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        let gpu = self.setup.drivers.as_ref().map_or_else(String::new, |drivers| {
            let Drivers { gpus, kernel, cuda_runtime, cudnn, .. } = drivers;
            let [kernel, cuda, cudnn] = [kernel, cuda_runtime, cudnn].map(known);
            format!("; {}, driver {kernel}, CUDA {cuda}, cuDNN {cudnn}", gpus.join(", "))
        });
        let mut text = format!(
            "runtime {runtime}, ONNX Runtime {onnxruntime} on {provider}; {cpu}, {cores} cores{gpu}\n\
             {}: {:.1} MB, SHA-256 {}, {classes} classes; input {height}x{width} of {images}\n\n{}\n\n{}\n\n{}",
            model.display(),
            *model_bytes as f64 / 1e6,
            &model_sha256[..12],
            self.start.table(),
            self.stages.table(),
            throughput::table(&self.throughput),
        );
        if let [Some(now), Some(most)] = self.memory_mib {
            text += &format!("\n\nmemory: {now} MiB, {most} MiB at most");
        }
        text
    }
}

/// A time for people.
fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// The time that something takes, in milliseconds, and what it gives.
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let result = work();
    (milliseconds(started.elapsed()), result)
}

/// A table whose first row is the head.
fn tabulate<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    aligned([head.map(str::to_owned)].into_iter().chain(rows).map(Vec::from))
}
