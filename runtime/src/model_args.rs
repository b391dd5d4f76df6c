//! Arguments of the model and its provider.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Result;
use models::spec::{PostprocessingSpec, Suppression};
use runtime::progress::{detail, say, warn};
use runtime::{Detector, DetectorOptions, EngineOptions, Provider, ShapeProfile, TensorrtOptions, machine};

/// Arguments of the model and its provider.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// ONNX file written by `exporter`.
    #[arg(long, short, value_name = "FILE", default_value = "retinanet.onnx", help_heading = "Model")]
    model: PathBuf,

    /// Where to run the network: cpu, cuda[:N], tensorrt[:N], openvino[:cpu|gpu|npu] or auto.
    ///
    /// N is the GPU's number, from 0. `auto` takes the first of cuda, openvino and cpu that works and prints which one. A
    /// provider that does not work is an error; `runtime doctor` shows what is missing.
    #[arg(long, value_name = "NAME", default_value_t, help_heading = "Provider")]
    provider: Provider,

    /// ONNX Runtime library to load [default: $ORT_DYLIB_PATH, then next to the program, .deps above it, the system's].
    #[arg(long, value_name = "FILE", help_heading = "Provider")]
    onnxruntime: Option<PathBuf>,

    /// GPU memory limit for CUDA's arena, in MiB [default: no limit].
    #[arg(long, value_name = "MIB", help_heading = "Provider")]
    cuda_memory: Option<NonZeroUsize>,

    /// Record the network as a CUDA graph and replay it, to save kernel launches. Needs a model exported with --input-size
    /// and --batch-size.
    #[arg(long, help_heading = "Provider")]
    cuda_graphs: bool,

    /// Let CUDA compute float32 convolutions in full precision instead of TF32 (Ampere and newer; slower).
    #[arg(long, help_heading = "Provider")]
    no_tf32: bool,

    /// Folder of TensorRT's engine cache [default: retinanet/tensorrt in the user's cache folder].
    #[arg(long, value_name = "DIR", help_heading = "Provider")]
    tensorrt_cache: Option<PathBuf>,

    /// TensorRT optimization profile: minimum, optimal and maximum input as IMAGESxHEIGHTxWIDTH, such as
    /// 1x608x608,1x640x832,4x1024x1024. Only for models with free input sizes.
    #[arg(long, value_name = "MIN,OPT,MAX", value_parser = parse_profile, help_heading = "Provider")]
    tensorrt_profile: Option<ShapeProfile>,

    /// Let TensorRT compute in float16.
    #[arg(long, help_heading = "Provider")]
    tensorrt_fp16: bool,

    /// Threads that compute the network on the CPU [default: one per core].
    #[arg(long, value_name = "N", help_heading = "Performance")]
    threads: Option<NonZeroUsize>,

    /// CPUs to bind these threads to, from 0: one fewer than --threads, since the calling thread is not bound.
    #[arg(long, value_name = "N,..", value_delimiter = ',', requires = "threads", help_heading = "Performance")]
    affinity: Vec<usize>,
}

impl ModelArgs {
    /// The options of the engine that these arguments set.
    pub(crate) fn engine(&self) -> EngineOptions {
        EngineOptions {
            provider: self.provider,
            threads: self.threads.map(NonZeroUsize::get),
            affinity: self.affinity.clone(),
            cuda_memory: self.cuda_memory.map(|mebibytes| mebibytes.get().saturating_mul(1 << 20)),
            cuda_graphs: self.cuda_graphs,
            no_tf32: self.no_tf32,
            tensorrt: TensorrtOptions {
                cache: self.tensorrt_cache.clone(),
                profile: self.tensorrt_profile,
                fp16: self.tensorrt_fp16,
            },
            onnxruntime: self.onnxruntime.clone(),
        }
    }

    /// Opens the model with these options, and prints where it runs.
    pub(crate) fn open(&self, options: DetectorOptions) -> Result<Detector> {
        self.open_file(&self.model, options)
    }

    /// Opens another model with these options.
    pub(crate) fn open_file(&self, model: &Path, options: DetectorOptions) -> Result<Detector> {
        if matches!(self.provider, Provider::Tensorrt { .. }) {
            say(format_args!("tensorrt: building an engine that is not in the cache can take minutes"));
        }
        let threads = options.engine.threads;
        let detector = Detector::open(model, options)?;
        let cores = machine::cores();
        if let Some(threads) = threads.filter(|threads| *threads > cores) {
            warn(format_args!("{threads} threads on {cores} cores slow each other down; use at most {cores}"));
        }
        if self.provider == Provider::Auto {
            say(format_args!("auto: using {}", detector.engine().provider()));
            for (provider, reason) in detector.engine().skipped_providers() {
                say(format_args!("auto: skipped {provider}: {reason}"));
            }
        }
        self.print_details(model, &detector, threads.unwrap_or(cores));
        Ok(detector)
    }

    /// What `--verbose` prints about the model and where it runs.
    fn print_details(&self, model: &Path, detector: &Detector, threads: usize) {
        let (engine, spec) = (detector.engine(), detector.spec());
        detail(format_args!("library: {}", engine.library()));
        detail(format_args!("model: `{}`, {}, {} classes", model.display(), engine.info().graph, spec.class_count()));
        detail(format_args!("provider: {}, {threads} CPU threads", engine.provider()));
        let PostprocessingSpec {
            score_threshold,
            nms_threshold,
            soft_nms,
            suppression,
            top_k,
            max_detections,
            clip: _,
        } = &spec.postprocessing;
        let limit = |limit: &Option<usize>| limit.map_or_else(|| "all".to_owned(), |limit| limit.to_string());
        let nms =
            soft_nms.map_or_else(|| format!("NMS IoU {nms_threshold}"), |sigma| format!("soft-NMS sigma {sigma}"));
        detail(format_args!(
            "thresholds: score {score_threshold}, {nms} {}, top {} per level, {} detections per image",
            if *suppression == Suppression::PerClass { "per class" } else { "across classes" },
            limit(top_k),
            limit(max_detections)
        ));
    }

    /// Number of threads that compute the network; `None` for one per core.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads
    }

    /// Path of the model.
    pub(crate) fn path(&self) -> &Path {
        &self.model
    }
}

fn parse_profile(text: &str) -> Result<ShapeProfile, String> {
    let shape = |text: &str| {
        let numbers: Vec<usize> = text.split('x').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let [images, height, width] = numbers.try_into().ok()?;
        let fits = images > 0 && [height, width].iter().all(|side: &usize| *side > 0 && side.is_multiple_of(32));
        fits.then_some([images, height, width])
    };
    let shapes: Option<Vec<_>> = text.split(',').map(shape).collect();
    let [min, opt, max] = shapes
        .and_then(|shapes| shapes.try_into().ok())
        .ok_or("expected three times IMAGESxHEIGHTxWIDTH, with height and width multiples of 32")?;
    let ascends = |low: [usize; 3], high: [usize; 3]| low.iter().zip(high).all(|(low, high)| *low <= high);
    match ascends(min, opt) && ascends(opt, max) {
        true => Ok(ShapeProfile { min, opt, max }),
        false => Err("expected MIN <= OPT <= MAX in images, height and width".to_owned()),
    }
}
