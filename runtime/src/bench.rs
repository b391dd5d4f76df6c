//! `runtime bench`: the time of each stage of a detection, and the throughput in images per second.

mod stages;
mod table;
mod throughput;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use runtime::drivers::Drivers;
use runtime::output::ReportWriter;
use runtime::progress::say;
use runtime::{Detector, drawn, image_file, inputs, interrupt, machine};
use schemars::JsonSchema;
use serde::Serialize;

use crate::detector_args::{DetectorArgs, MAX_BATCH};
use crate::info::fingerprint;
use crate::value_parsers::{size, up_to};
use stages::{Stages, Start};
use throughput::Throughput;

/// Measure the speed of a model on this machine.
///
/// Prints the time from start to first detection, the time of each stage for single images, and the throughput of
/// `runtime detect` in images per second.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Image files, folders and patterns, used in turn [default: four generated JPEG files].
    #[arg(value_name = "PATHS")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    detector: DetectorArgs,

    /// Size of the generated images, in pixels.
    #[arg(long, help_heading = "Input", value_name = "WIDTHxHEIGHT", default_value = "1280x960", value_parser = |text: &str| size(text, [16, 16384]))]
    size: (u32, u32),

    /// Images per measurement.
    #[arg(long, help_heading = "Measurement", value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(19))]
    runs: NonZeroUsize,

    /// Warm-up images before each measurement.
    #[arg(long, help_heading = "Measurement", value_name = "N", default_value_t = 3)]
    warm_up: usize,

    /// Batch sizes to measure the throughput with.
    #[arg(long, help_heading = "Measurement", value_name = "N,..", value_delimiter = ',', default_value = "1,4")]
    #[arg(value_parser = up_to(MAX_BATCH))]
    batch_sizes: Vec<NonZeroUsize>,

    /// Numbers of threads to measure the throughput with [default: --threads].
    #[arg(long, help_heading = "Measurement", value_name = "N,..", value_delimiter = ',')]
    thread_counts: Vec<NonZeroUsize>,

    /// Also write the numbers as JSON; `-` writes them to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// The measurements.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Measurements {
    /// The conditions.
    setup: Setup,
    /// From the start to the first detection.
    start: Start,
    /// The stages of single images.
    stages: Stages,
    /// Many images, for each number of threads and each batch size.
    throughput: Vec<Throughput>,
    /// Resident memory at the end and peak resident memory, in MiB.
    memory_mib: [Option<u64>; 2],
}

/// The conditions of a measurement; two measurements are comparable if these are equal.
#[derive(Serialize, JsonSchema)]
struct Setup {
    /// Version of this program.
    runtime: &'static str,
    /// Version of ONNX Runtime.
    onnxruntime: String,
    /// The provider and its device.
    provider: String,
    /// GPUs and NVIDIA's software, if the provider runs on an NVIDIA GPU.
    drivers: Option<Drivers>,
    /// Name of the CPU.
    cpu: Option<String>,
    /// Number of cores that this program may use.
    cores: usize,
    /// The ONNX file.
    model: PathBuf,
    /// Its size, without external data.
    model_bytes: u64,
    /// Its SHA-256, in hexadecimal.
    model_sha256: String,
    /// Height and width of the network's input for the first image.
    input: [u32; 2],
    /// Number of classes.
    classes: usize,
    /// Only scores above this become detections.
    score_threshold: f32,
    /// Number of image files, used in turn.
    images: usize,
    /// Width and height of the images, if they were generated.
    generated: Option<(u32, u32)>,
    /// Images per measurement.
    runs: usize,
    /// Images before each measurement.
    warm_up: usize,
}

/// Runs the benchmark and prints the results.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let writer = ReportWriter::open(args.json.as_deref())?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder for generated images")?;
    interrupt::delete_at_exit(folder.path());
    let files =
        if args.paths.is_empty() { generate(folder.path(), args.size)? } else { inputs::expand(&args.paths, false)? };

    let (detector, start) = Start::measure(|| args.detector.open(args.detector.options()), &files[0])?;
    say(format_args!("first detection after {:.0} ms; measuring the stages", start.total_ms));
    let stages = Stages::measure(&detector, &files, args.warm_up, args.runs.get())?;
    let setup = Setup::new(args, &detector, &files)?;
    let max_batch = detector.engine().batch().unwrap_or(usize::MAX);
    drop(detector);

    let throughput = measure_throughput(args, &files, max_batch)?;
    let memory_mib = [machine::memory(), machine::peak_memory()];
    let measurements = Measurements { setup, start, stages, throughput, memory_mib };
    Ok(writer.publish(&measurements, &measurements.table())?)
}

impl Setup {
    fn new(args: &BenchArgs, detector: &Detector, files: &[PathBuf]) -> Result<Self> {
        let (engine, spec, model) = (detector.engine(), detector.spec(), args.detector.model.path());
        let (width, height) = image_file::size(&files[0])?;
        let placement = spec.preprocessing.place(width, height);
        let (model_bytes, model_sha256) = fingerprint(model)?;
        Ok(Self {
            runtime: env!("CARGO_PKG_VERSION"),
            onnxruntime: engine.library().version.clone(),
            provider: engine.provider().to_string(),
            drivers: engine.provider().is_nvidia().then(|| Drivers::find(&engine.library().path)),
            cpu: machine::cpu(),
            cores: machine::cores(),
            model: model.to_owned(),
            model_bytes,
            model_sha256,
            input: [placement.padded_height, placement.padded_width],
            classes: spec.class_count(),
            score_threshold: spec.postprocessing.score_threshold,
            images: files.len(),
            generated: args.paths.is_empty().then_some(args.size),
            runs: args.runs.get(),
            warm_up: args.warm_up,
        })
    }
}

/// Measures the throughput with each number of threads and each batch size up to `max_batch`.
fn measure_throughput(args: &BenchArgs, files: &[PathBuf], max_batch: usize) -> Result<Vec<Throughput>> {
    let threads: Vec<_> = match &args.thread_counts[..] {
        [] => vec![args.detector.model.threads()],
        threads => threads.iter().copied().map(Some).collect(),
    };
    ensure!(
        args.batch_sizes.iter().any(|batch| batch.get() <= max_batch),
        "the model takes at most {max_batch} images per run; omit --batch-sizes, or pass smaller ones"
    );
    let mut throughput = Vec::new();
    for threads in threads {
        for batch in args.batch_sizes.iter().filter(|batch| batch.get() <= max_batch) {
            let mut options = args.detector.options();
            options.engine.threads = threads.map(NonZeroUsize::get);
            options.max_batch = Some(*batch);
            let detector = args.detector.open(options)?;
            let workers = args.detector.workers(&detector);
            say(format_args!("measuring the throughput with batch size {batch}"));
            let settings = [threads.map_or_else(machine::cores, NonZeroUsize::get), batch.get()];
            let images = [args.warm_up, args.runs.get()];
            throughput.push(Throughput::measure(&detector, files, images, workers, settings)?);
        }
    }
    Ok(throughput)
}

/// Writes JPEG files with generated images to a folder.
fn generate(folder: &Path, (width, height): (u32, u32)) -> Result<Vec<PathBuf>> {
    let files = (0..4).map(|number| {
        let path = folder.join(format!("{number}.jpg"));
        let image = drawn::image(number, width, height);
        image_file::write(&path, &image).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    });
    files.collect()
}

impl Measurements {
    /// The text output, without a final newline.
    fn table(&self) -> String {
        let Setup { runtime, onnxruntime, provider, cpu, cores, .. } = &self.setup;
        let cpu = cpu.as_deref().unwrap_or("unknown CPU");
        let Setup { model, model_bytes, model_sha256, input: [height, width], classes, .. } = &self.setup;
        let images = match self.setup.generated {
            Some((width, height)) => format!("generated JPEG files of {width}x{height}"),
            None => format!("{} files, used in turn", self.setup.images),
        };
        let known = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        let gpu = self.setup.drivers.as_ref().map_or_else(String::new, |drivers| {
            let Drivers { gpus, driver, cuda_runtime, cudnn, .. } = drivers;
            let [driver, cuda, cudnn] = [driver, cuda_runtime, cudnn].map(known);
            format!("; {}, driver {driver}, CUDA {cuda}, cuDNN {cudnn}", gpus.join(", "))
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
        if let [Some(now), Some(peak)] = self.memory_mib {
            text += &format!("\n\nmemory: {now} MiB, peak {peak} MiB");
        }
        text
    }
}
