//! Starting a session: threads and provider. A provider that does not work is an error; nothing falls back silently.

use std::env;
use std::fs;
use std::path::PathBuf;

use models::onnx_contract::IMAGES;
use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::error::{EngineError, ort_message};
use super::memory::without_capture;
use super::options::{EngineOptions, ShapeProfile, TensorrtOptions};
use crate::library::{self, Library};
use crate::provider::{OpenvinoDevice, Provider};

/// Whether operators that a provider does not support may run on ONNX Runtime's own CPU provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    Allowed,
    /// Such operators are an [`EngineError::Fallback`].
    Forbidden,
}

/// Starts a session of ONNX Runtime. `model` names the model in messages. The provider must not be [`Provider::Auto`].
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
            EngineError::NotExported { model: model.to_owned(), reason: "it is not an ONNX file".to_owned() }
        }
        _ if is_fallback(error.message()) => EngineError::Fallback { model: model.to_owned(), provider },
        _ => EngineError::Session { model: model.to_owned(), provider, reason: ort_message(&error) },
    };
    let mut builder = Session::builder(&loaded.environment).map_err(session_error)?;
    if let Some(threads) = options.threads {
        builder = with_own_threads(builder, threads, &options.affinity).map_err(session_error)?;
    }
    if !matches!(provider, Provider::Cpu | Provider::Auto) && fallback == Fallback::Forbidden {
        builder = without_fallback(builder).map_err(session_error)?;
    }
    let _guard = provider.is_nvidia().then(without_capture);
    builder = register(builder, options, &loaded.library)?;
    commit(&mut builder).map_err(session_error)
}

fn without_fallback(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    Ok(builder.with_config_entry("session.disable_cpu_ep_fallback", "1")?)
}

/// Whether ONNX Runtime's message says that an operator would need the forbidden fallback to the CPU.
fn is_fallback(message: &str) -> bool {
    message.contains("fallback to CPU EP has been explicitly disabled")
}

/// Gives the session its own thread pool. Without this, all sessions of the process share ONNX Runtime's global pool.
fn with_own_threads(builder: SessionBuilder, threads: usize, affinity: &[usize]) -> ort::Result<SessionBuilder> {
    let builder = builder.with_independent_thread_pool()?.with_intra_threads(threads)?;
    if affinity.is_empty() {
        return Ok(builder);
    }
    // ONNX Runtime counts CPUs from 1, and the list excludes the calling thread.
    let cpus: Vec<_> = affinity.iter().map(|cpu| (cpu + 1).to_string()).collect();
    Ok(builder.with_config_entry("session.intra_op_thread_affinities", cpus.join(";"))?)
}

/// Registers the provider with the session. Starting the session fails if the provider does not work.
fn register(
    builder: SessionBuilder,
    options: &EngineOptions,
    library: &Library,
) -> Result<SessionBuilder, EngineError> {
    let provider = options.provider;
    let error = |reason: String| EngineError::Provider { provider, reason };
    let (providers, remedy) = match provider {
        Provider::Cpu | Provider::Auto => return Ok(builder),
        Provider::Cuda { device } => (
            cuda(device, options, library),
            "it needs NVIDIA's driver, CUDA 13 and cuDNN 9; `make setup CUDA=1` installs the last two",
        ),
        Provider::Tensorrt { device } => (
            tensorrt(device, options, library),
            "it needs NVIDIA's driver, CUDA 13, cuDNN 9, and TensorRT 10 (libnvinfer.so.10, libnvonnxparser.so.10) in the \
             library path; pip's `tensorrt-cu13` wheel contains it",
        ),
        Provider::Openvino { device } => {
            (openvino(device, options), "it needs OpenVINO's libraries next to ONNX Runtime's, and the device's driver")
        }
    };
    let registered = builder.with_execution_providers(providers.map_err(error)?);
    registered.map_err(|failure| error(format!("{}; {remedy}", ort_message(&failure))))
}

/// Builds of ONNX Runtime with CUDA and TensorRT.
const NVIDIA_BUILDS: &str = "`make setup CUDA=1`, or pip's `onnxruntime-gpu` wheel and ORT_DYLIB_PATH";

fn cuda(device: u16, options: &EngineOptions, library: &Library) -> Result<Vec<ExecutionProviderDispatch>, String> {
    require_provider::<ep::CUDA>(NVIDIA_BUILDS)?;
    library.preload_cuda();
    // Without cuDNN, ONNX Runtime starts but fails at the first convolution.
    let remedy = "install cuDNN 9 with `make setup CUDA=1` or pip's `nvidia-cudnn-cu13` wheel";
    library::require("libcudnn.so.9", remedy)?;
    Ok(vec![cuda_options(device, options)])
}

fn cuda_options(device: u16, options: &EngineOptions) -> ExecutionProviderDispatch {
    let cuda = ep::CUDA::default()
        .with_device_id(device.into())
        // The default, doubling the arena, would reserve memory that a new input size does not need.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // cuDNN 9's heuristic B, its best one. No search caches its results for input shapes that recur.
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        // Tensor cores compute in NHWC; otherwise each convolution transposes its input and output.
        .with_prefer_nhwc(true)
        .with_fuse_conv_bias(true)
        .with_tf32(!options.no_tf32)
        .with_cuda_graph(options.cuda_graphs);
    let cuda = match options.cuda_memory {
        Some(bytes) => cuda.with_memory_limit(bytes),
        None => cuda,
    };
    cuda.build().error_on_failure()
}

fn tensorrt(device: u16, options: &EngineOptions, library: &Library) -> Result<Vec<ExecutionProviderDispatch>, String> {
    require_provider::<ep::TensorRT>(NVIDIA_BUILDS)?;
    library.preload_cuda();
    library.preload_tensorrt();
    let tensorrt = tensorrt_options(device, &options.tensorrt)?.build().error_on_failure();
    // CUDA runs the operators that TensorRT does not support.
    Ok(vec![tensorrt, cuda_options(device, options)])
}

fn openvino(device: OpenvinoDevice, options: &EngineOptions) -> Result<Vec<ExecutionProviderDispatch>, String> {
    require_provider::<ep::OpenVINO>(
        "pip's `onnxruntime-openvino` wheel, with ORT_DYLIB_PATH set to its capi/libonnxruntime.so.*",
    )?;
    let openvino = ep::OpenVINO::default().with_device_type(device.to_string().to_uppercase());
    let openvino = match options.threads {
        Some(threads) => openvino.with_num_threads(threads),
        None => openvino,
    };
    Ok(vec![openvino.build().error_on_failure()])
}

/// Checks that this build of ONNX Runtime includes the provider; `remedy` names builds that do.
fn require_provider<P: ExecutionProvider>(remedy: &str) -> Result<(), String> {
    match P::is_available() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("this build of ONNX Runtime does not include it; install one that does: {remedy}")),
        Err(error) => Err(ort_message(&error)),
    }
}

fn tensorrt_options(device: u16, options: &TensorrtOptions) -> Result<ep::TensorRT, String> {
    let cache = match &options.cache {
        Some(cache) => cache.clone(),
        None => cache_folder().ok_or("the user has no cache folder; pass --tensorrt-cache")?.join("retinanet/tensorrt"),
    };
    fs::create_dir_all(&cache)
        .map_err(|error| format!("cannot create its cache folder `{}`: {error}", cache.display()))?;
    let tensorrt = ep::TensorRT::default()
        .with_device_id(device.into())
        .with_fp16(options.fp16)
        .with_engine_cache(true)
        .with_engine_cache_path(cache.display())
        .with_timing_cache(true)
        .with_timing_cache_path(cache.display());
    let Some(ShapeProfile { min, opt, max }) = options.profile else { return Ok(tensorrt) };
    let shape = |[images, height, width]: [usize; 3]| format!("{IMAGES}:{images}x3x{height}x{width}");
    Ok(tensorrt
        .with_profile_min_shapes(shape(min))
        .with_profile_opt_shapes(shape(opt))
        .with_profile_max_shapes(shape(max)))
}

/// The user's cache folder. <https://specifications.freedesktop.org/basedir-spec/latest/>
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_fallback_is_distinguished_from_other_failures() {
        // onnxruntime/core/session/inference_session.cc
        let message = "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been \
                       explicitly disabled by the user.";
        assert!(is_fallback(message) && !is_fallback("CUDA failure 2: out of memory"));
    }
}
