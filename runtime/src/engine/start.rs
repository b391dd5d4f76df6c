//! Starting a session: threads, and the provider, which is used or is an error.

use std::env;
use std::fs;
use std::path::PathBuf;

use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::{EngineError, EngineOptions, IMAGES, words};
use crate::library::{self, Library};
use crate::machine;
use crate::provider::{OpenvinoDevice, Provider};

/// How TensorRT runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorrtOptions {
    /// Folder for the engines that it builds and for its timings; `retinanet/tensorrt` in the user's folder of caches if absent.
    pub cache: Option<PathBuf>,
    /// The inputs that the engine is built for, if the file does not fix them.
    pub profile: Option<ShapeProfile>,
    /// Whether it may compute in 16 bits what the file has in 32.
    pub fp16: bool,
}

/// The smallest, the usual and the largest input: images, height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeProfile {
    /// No side is smaller.
    pub least: [usize; 3],
    /// What the engine is made fastest for.
    pub usual: [usize; 3],
    /// No side is larger.
    pub most: [usize; 3],
}

/// Whether operators that a GPU's provider does not have may run on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    Allowed,
    /// It is [`EngineError::Fallback`] where there are some.
    Refused,
}

/// A session of ONNX Runtime; `model` stands for what it runs in messages. The provider is not [`Provider::Auto`].
pub(crate) fn session(
    model: &str,
    options: &EngineOptions,
    fallback: Fallback,
    commit: impl FnOnce(&mut SessionBuilder) -> ort::Result<Session>,
) -> Result<Session, EngineError> {
    options.check()?;
    let provider = options.provider;
    let loaded = library::load(options.onnxruntime.as_deref())?;
    let session_error = |error: ort::Error| match error.code() {
        ort::ErrorCode::InvalidProtobuf => {
            EngineError::Foreign { model: model.to_owned(), reason: "it is no ONNX file".to_owned() }
        }
        _ if is_fallback(error.message()) => EngineError::Fallback { model: model.to_owned(), provider },
        _ => EngineError::Session { model: model.to_owned(), provider, reason: words(&error) },
    };
    let mut builder = Session::builder(&loaded.environment).map_err(session_error)?;
    if let Some(threads) = options.threads {
        builder = in_own_threads(builder, threads, &options.affinity).map_err(session_error)?;
    }
    let is_on_gpu = provider.is_nvidia();
    if is_on_gpu && fallback == Fallback::Refused {
        builder = without_fallback(builder).map_err(session_error)?;
    }
    builder = register(builder, options, &loaded.library)?;
    commit(&mut builder).map_err(session_error)
}

fn without_fallback(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    Ok(builder.with_config_entry("session.disable_cpu_ep_fallback", "1")?)
}

/// Whether ONNX Runtime refuses to run some of a model on the CPU.
fn is_fallback(message: &str) -> bool {
    message.contains("fallback to CPU EP has been explicitly disabled")
}

/// Without this, all sessions of the process share the threads that ONNX Runtime started with.
fn in_own_threads(builder: SessionBuilder, threads: usize, affinity: &[usize]) -> ort::Result<SessionBuilder> {
    let builder = builder.with_independent_thread_pool()?.with_intra_threads(threads)?;
    if affinity.is_empty() {
        return Ok(builder);
    }
    // ONNX Runtime counts CPUs from 1, and not the thread that calls.
    let cpus: Vec<_> = affinity.iter().map(|cpu| (cpu + 1).to_string()).collect();
    Ok(builder.with_config_entry("session.intra_op_thread_affinities", cpus.join(";"))?)
}

impl EngineOptions {
    /// More threads than the largest machines have cores.
    pub const MOST_THREADS: usize = 1024;

    /// The options with a provider that [`Provider::Auto`] stands for: those of CUDA only where that is it.
    pub(super) fn on(&self, provider: Provider) -> Self {
        let options = Self { provider, ..self.clone() };
        match (self.provider, provider) {
            (Provider::Auto, Provider::Cuda { .. }) => options,
            (Provider::Auto, _) => Self { cuda_memory: None, cuda_graphs: false, no_tf32: false, ..options },
            _ => options,
        }
    }

    /// An option that the provider has no use for is a mistake to mend.
    fn check(&self) -> Result<(), EngineError> {
        let provider = self.provider;
        let unfit = |option, reason: &str| EngineError::Option { option, provider, reason: reason.to_owned() };
        let tensorrt = matches!(provider, Provider::Tensorrt { .. });
        if self.cuda_memory.is_some() && !matches!(provider, Provider::Cuda { .. }) {
            return Err(unfit("a limit of CUDA's memory", "only `cuda` has it"));
        }
        if self.cuda_graphs && !matches!(provider, Provider::Cuda { .. }) {
            return Err(unfit("a CUDA graph", "only `cuda` has it"));
        }
        if self.no_tf32 && !matches!(provider, Provider::Cuda { .. }) {
            return Err(unfit("full precision in place of TF32", "only `cuda` has it"));
        }
        if self.tensorrt != TensorrtOptions::default() && !tensorrt {
            return Err(unfit("an option of TensorRT", "only `tensorrt` has it"));
        }
        let Some(threads) = self.threads else {
            return match self.affinity.is_empty() {
                true => Ok(()),
                false => Err(unfit("an affinity", "it needs the number of threads, too")),
            };
        };
        if !(1..=Self::MOST_THREADS).contains(&threads) {
            return Err(unfit(
                "such a number of threads",
                &format!("{threads} is not between 1 and {}", Self::MOST_THREADS),
            ));
        }
        if !self.affinity.is_empty() && self.affinity.len() != threads - 1 {
            return Err(unfit(
                "an affinity",
                "it needs one CPU fewer than there are threads, as one thread is the caller's",
            ));
        }
        // ONNX Runtime would go on without.
        if let Some(missing) = self.affinity.iter().find(|cpu| !machine::has_cpu(**cpu)) {
            return Err(unfit("an affinity", &format!("CPU {missing} is none that this program may use")));
        }
        Ok(())
    }
}

/// Makes the session use the provider, or fail.
fn register(
    builder: SessionBuilder,
    options: &EngineOptions,
    library: &Library,
) -> Result<SessionBuilder, EngineError> {
    let provider = options.provider;
    let error = |reason: String| EngineError::Provider { provider, reason };
    let cuda = |device: u16| {
        let cuda = ep::CUDA::default()
            .with_device_id(device.into())
            // Doubling would take memory that a new size of input does not need.
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            // cuDNN 9's heuristic B, its best one. Neither search is kept for shapes of input that come back.
            .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
            // Tensor cores compute in this layout; otherwise each convolution is transposed there and back.
            .with_prefer_nhwc(true)
            .with_fuse_conv_bias(true)
            .with_tf32(!options.no_tf32);
        let cuda = cuda.with_cuda_graph(options.cuda_graphs);
        match options.cuda_memory {
            Some(bytes) => cuda.with_memory_limit(bytes),
            None => cuda,
        }
    };
    let (providers, remedy): (Vec<ExecutionProviderDispatch>, _) = match provider {
        Provider::Cpu | Provider::Auto => return Ok(builder),
        Provider::Cuda { device } => {
            demand::<ep::CUDA>("`make setup CUDA=1`, or pip's `onnxruntime-gpu` wheel and ORT_DYLIB_PATH")
                .map_err(error)?;
            library.preload_cuda();
            // ONNX Runtime starts without it, and fails at the first convolution.
            library::demand(
                "libcudnn.so.9",
                "cuDNN 9; `make setup CUDA=1` brings it, as does pip's `nvidia-cudnn-cu13` wheel",
            )
            .map_err(error)?;
            let cuda = cuda(device).build().error_on_failure();
            (vec![cuda], "it needs NVIDIA's driver, and CUDA 13 and cuDNN 9, which `make setup CUDA=1` brings")
        }
        Provider::Tensorrt { device } => {
            demand::<ep::TensorRT>("`make setup CUDA=1`, or pip's `onnxruntime-gpu` wheel and ORT_DYLIB_PATH")
                .map_err(error)?;
            library.preload_cuda();
            library.preload_tensorrt();
            let tensorrt = tensorrt(device, &options.tensorrt).map_err(error)?.build().error_on_failure();
            // What TensorRT does not know is CUDA's.
            let cuda = cuda(device).build().error_on_failure();
            (
                vec![tensorrt, cuda],
                "it needs NVIDIA's driver, CUDA 13, cuDNN 9, and TensorRT 10 (libnvinfer.so.10, libnvonnxparser.so.10) on the loader's \
                 path; pip's `tensorrt-cu13` wheel has it",
            )
        }
        Provider::Openvino { device } => {
            demand::<ep::OpenVINO>(
                "pip's `onnxruntime-openvino` wheel, and name its capi/libonnxruntime.so.* with ORT_DYLIB_PATH",
            )
            .map_err(error)?;
            let openvino = ep::OpenVINO::default().with_device_type(match device {
                OpenvinoDevice::Cpu => "CPU",
                OpenvinoDevice::Gpu => "GPU",
                OpenvinoDevice::Npu => "NPU",
            });
            let openvino = match options.threads {
                Some(threads) => openvino.with_num_threads(threads),
                None => openvino,
            };
            (
                vec![openvino.build().error_on_failure()],
                "it needs OpenVINO's libraries beside ONNX Runtime's, and the device's driver",
            )
        }
    };
    builder.with_execution_providers(providers).map_err(|failure| error(format!("{}; {remedy}", words(&failure))))
}

/// That the library has the provider.
fn demand<P: ExecutionProvider>(remedy: &str) -> Result<(), String> {
    match P::is_available() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("this build of ONNX Runtime does not have it; install one that has: {remedy}")),
        Err(error) => Err(words(&error)),
    }
}

fn tensorrt(device: u16, options: &TensorrtOptions) -> Result<ep::TensorRT, String> {
    let cache = match &options.cache {
        Some(cache) => cache.clone(),
        None => caches().ok_or("there is no folder for its engines; name one")?.join("retinanet/tensorrt"),
    };
    fs::create_dir_all(&cache)
        .map_err(|error| format!("the folder for its engines, `{}`, cannot be made: {error}", cache.display()))?;
    let tensorrt = ep::TensorRT::default()
        .with_device_id(device.into())
        .with_fp16(options.fp16)
        .with_engine_cache(true)
        .with_engine_cache_path(cache.display())
        .with_timing_cache(true)
        .with_timing_cache_path(cache.display());
    let Some(ShapeProfile { least, usual, most }) = options.profile else { return Ok(tensorrt) };
    let shape = |[images, height, width]: [usize; 3]| format!("{IMAGES}:{images}x3x{height}x{width}");
    Ok(tensorrt
        .with_profile_min_shapes(shape(least))
        .with_profile_opt_shapes(shape(usual))
        .with_profile_max_shapes(shape(most)))
}

/// <https://specifications.freedesktop.org/basedir-spec/latest/>
fn caches() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: &EngineOptions) -> String {
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn options_that_the_provider_does_not_have_are_refused() {
        let cuda_memory = Some(1 << 30);
        let cuda = EngineOptions { provider: Provider::Cuda { device: 0 }, cuda_memory, ..EngineOptions::default() };
        assert!(cuda.check().is_ok());
        assert!(refused(&EngineOptions { provider: Provider::Cpu, ..cuda }).contains("only `cuda` has it"));
        assert!(refused(&EngineOptions { no_tf32: true, ..EngineOptions::default() }).contains("only `cuda` has it"));
        assert!(
            refused(&EngineOptions { cuda_graphs: true, ..EngineOptions::default() }).contains("only `cuda` has it")
        );
        let tensorrt = TensorrtOptions { fp16: true, ..TensorrtOptions::default() };
        assert!(refused(&EngineOptions { tensorrt, ..EngineOptions::default() }).contains("only `tensorrt` has it"));
    }

    #[test]
    fn an_affinity_is_for_all_threads_but_the_callers() {
        let options = |threads, affinity: &[usize]| EngineOptions {
            threads,
            affinity: affinity.to_vec(),
            ..EngineOptions::default()
        };
        let cpu = (0..).find(|cpu| machine::has_cpu(*cpu)).unwrap();
        assert!(options(Some(2), &[cpu]).check().is_ok() && options(Some(1), &[]).check().is_ok());
        assert!(refused(&options(None, &[cpu])).contains("number of threads"));
        assert!(refused(&options(Some(3), &[cpu])).contains("one CPU fewer"));
        #[cfg(target_os = "linux")]
        assert!(refused(&options(Some(2), &[123_456])).contains("CPU 123456"));
    }

    #[test]
    fn auto_has_the_options_of_cuda_only_on_cuda() {
        let auto = EngineOptions {
            provider: Provider::Auto,
            cuda_memory: Some(1 << 30),
            no_tf32: true,
            ..EngineOptions::default()
        };
        assert!(auto.on(Provider::Cpu).check().is_ok());
        assert!(auto.on(Provider::Cuda { device: 0 }).no_tf32);
    }

    #[test]
    fn refused_fallback_is_told_from_other_failures() {
        // onnxruntime/core/session/inference_session.cc
        let message = "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been \
                       explicitly disabled by the user.";
        assert!(is_fallback(message) && !is_fallback("CUDA failure 2: out of memory"));
    }

    #[test]
    fn no_threads_and_too_many_are_refused() {
        for threads in [0, EngineOptions::MOST_THREADS + 1, usize::MAX] {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            assert!(refused(&options).contains(&format!("{threads} is not between")));
        }
    }
}
