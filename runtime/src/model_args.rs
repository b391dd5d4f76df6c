//! The arguments that say which model runs, and on what.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use runtime::progress::say;
use runtime::{
    Detector, DetectorError, DetectorOptions, EngineOptions, Provider, Rules, ShapeProfile, TensorrtOptions,
    ViewOptions, machine,
};

/// Which model runs, and on what.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model: an ONNX file that `exporter` wrote.
    #[arg(long, value_name = "FILE", default_value = "retinanet.onnx")]
    model: PathBuf,

    /// What computes the network: cpu, cuda, tensorrt, openvino or auto.
    ///
    /// A named one is used, or the program fails and says what is missing. `cuda:1` and `tensorrt:1` are the second GPU,
    /// `openvino:gpu` and `openvino:npu` other devices than the CPU. `auto` takes the first that starts of cuda, openvino and
    /// cpu, and says which; `runtime doctor` shows what each lacks.
    #[arg(long, value_name = "NAME", default_value_t)]
    provider: Provider,

    /// Threads that compute the network. [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// CPUs, from 0, to which these threads are bound: one fewer than threads, as one is the caller's.
    #[arg(long, value_name = "N,..", value_delimiter = ',', requires = "threads")]
    affinity: Vec<usize>,

    /// GPU memory limit for CUDA's arena, in MiB.
    #[arg(long, value_name = "MIB")]
    cuda_memory: Option<NonZeroUsize>,

    /// Let `cuda` record a run and replay it, which saves the time of starting each of its kernels. For models exported with
    /// --input-size and --batch.
    #[arg(long)]
    cuda_graphs: bool,

    /// Let `cuda` compute convolutions of 32 bits in full. By default it takes TF32, whose mantissas have 10 bits in place of 23,
    /// on GPUs that have it (Ampere and newer), which is several times as fast.
    #[arg(long)]
    no_tf32: bool,

    /// Folder where `tensorrt` keeps the engines that it builds. [default: retinanet/tensorrt in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    tensorrt_cache: Option<PathBuf>,

    /// Smallest, usual and largest input for `tensorrt`: images, height and width of each, as 1x608x608,1x640x832,4x1024x1024.
    /// For models that do not fix them.
    #[arg(long, value_name = "LEAST,USUAL,MOST", value_parser = parse_profile)]
    tensorrt_profile: Option<ShapeProfile>,

    /// Let `tensorrt` compute in 16 bits.
    #[arg(long)]
    tensorrt_fp16: bool,

    /// Library of ONNX Runtime. [default: ORT_DYLIB_PATH, else what is found beside the program, in `.deps` above it, or in
    /// the system]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the model.
    pub(crate) fn open(&self, rules: Rules, views: ViewOptions) -> Result<Detector, DetectorError> {
        self.open_with(self.threads, rules, views)
    }

    /// As [`ModelArgs::open`], with so many threads; as many as there are cores if absent.
    pub(crate) fn open_with(
        &self,
        threads: Option<NonZeroUsize>,
        rules: Rules,
        views: ViewOptions,
    ) -> Result<Detector, DetectorError> {
        if matches!(self.provider, Provider::Tensorrt { .. }) {
            say(format_args!(
                "tensorrt: an engine that its cache does not have is built first, which can take minutes"
            ));
        }
        let engine = EngineOptions {
            provider: self.provider,
            threads: threads.map(NonZeroUsize::get),
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
        };
        let detector = Detector::open(&self.model, DetectorOptions { engine, rules, views })?;
        let cores = machine::cores();
        if let Some(threads) = threads.filter(|threads| threads.get() > cores) {
            say(format_args!("warning: {threads} threads on {cores} cores wait for each other; fewer are faster"));
        }
        if self.provider == Provider::Auto {
            say(format_args!("auto: {}", detector.engine().provider()));
            for (provider, reason) in detector.engine().skipped_providers() {
                say(format_args!("auto: not {provider}: {reason}"));
            }
        }
        Ok(detector)
    }

    /// Threads that compute the network; as many as there are cores if absent.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads
    }

    /// ONNX Runtime's library, where it was named.
    pub(crate) fn library(&self) -> Option<&Path> {
        self.onnxruntime.as_deref()
    }

    /// The model's file.
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
    let [least, usual, most] = shapes
        .and_then(|shapes| shapes.try_into().ok())
        .ok_or("expected three of IMAGESxHEIGHTxWIDTH, with sides that are multiples of 32")?;
    let ascends = |low: [usize; 3], high: [usize; 3]| low.iter().zip(high).all(|(low, high)| *low <= high);
    match ascends(least, usual) && ascends(usual, most) {
        true => Ok(ShapeProfile { least, usual, most }),
        false => Err("expected nothing of the first to exceed the second, and of the second the third".to_owned()),
    }
}
