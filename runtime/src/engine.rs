//! The engine: an exported RetinaNet in a session of ONNX Runtime.

mod contract;
mod error;
mod input;
mod memory;
mod model_info;
mod options;
mod outputs;
mod start;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use models::ModelSpec;
use models::onnx_contract::{IMAGES, SIZES};
use ndarray::ArrayView4;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorRef};

pub use error::EngineError;
pub(crate) use error::ort_message;
pub use input::{Input, PixelType, Pixels};
pub(crate) use memory::{CAPTURE_RUN, without_capture};
pub use model_info::{ModelInfo, ValueInfo};
pub use options::{EngineOptions, ShapeProfile, TensorrtOptions};
pub use outputs::{CandidateOutputs, DenseOutputs, DetectionOutputs, Outputs};
pub(crate) use start::{Fallback, session};

use crate::library::{self, Library};
use crate::provider::Provider;
use crate::smoke_test::smoke_test;
use contract::{Contract, OutputKind};
use memory::{IoBuffers, MemoryLocations};

/// A network that is ready to run. Threads can share it; their runs take turns, because not all of ONNX Runtime's
/// providers support concurrent runs, and one run uses all cores anyway.
#[derive(Debug)]
pub struct Engine {
    runner: Mutex<Runner>,
    contract: Contract,
    provider: Provider,
    library: &'static Library,
    library_time: Duration,
    info: ModelInfo,
    skipped_providers: SkippedProviders,
}

/// ONNX Runtime's setting for the folder of external data of a file in memory.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A session and the buffers of its inputs and outputs.
#[derive(Debug)]
struct Runner {
    /// `None` when it is dropped.
    session: Option<Session>,
    /// Buffers that a GPU can access; `None` on the CPU, which can access all memory.
    buffers: Option<IoBuffers>,
    /// Whether the network also reads [`SIZES`].
    reads_sizes: bool,
}

impl Engine {
    /// Opens an ONNX file that `exporter` wrote.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, the file cannot be read or was not written by `exporter`, or the provider does
    /// not work on this machine.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, EngineError> {
        let path = path.as_ref();
        let model = path.display().to_string();
        // ONNX Runtime reads the file itself, which saves a copy. The file is opened here first because the operating
        // system's reason for a failure is clearer than ONNX Runtime's.
        let readable = std::fs::File::open(path).and_then(|file| file.metadata());
        match readable {
            Err(error) => return Err(EngineError::Read { model, reason: error.to_string() }),
            Ok(metadata) if metadata.is_dir() => {
                return Err(EngineError::Read { model, reason: "it is a folder".to_owned() });
            }
            Ok(_) => {}
        }
        Self::commit(model, options, |builder| builder.commit_from_file(path))
    }

    /// Opens an ONNX file in memory; `name` names it in messages.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn from_bytes(name: &str, bytes: &[u8], options: &EngineOptions) -> Result<Self, EngineError> {
        Self::commit(name.to_owned(), options, |builder| builder.commit_from_memory(bytes))
    }

    /// As [`Engine::from_bytes`]; external data are in `folder`.
    pub(crate) fn from_bytes_in(
        name: &str,
        bytes: &[u8],
        folder: Option<&Path>,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.to_string_lossy().into_owned();
        Self::commit(name.to_owned(), options, |builder| {
            let builder = builder.clone().with_config_entry(EXTERNAL_DATA_FOLDER, &folder);
            builder?.commit_from_memory(bytes)
        })
    }

    fn commit(
        model: String,
        options: &EngineOptions,
        commit: impl Fn(&mut SessionBuilder) -> ort::Result<Session>,
    ) -> Result<Self, EngineError> {
        let started = Instant::now();
        let loaded = library::load(options.onnxruntime.as_deref())?;
        let library_time = started.elapsed();
        let start = |provider| {
            let options = options.on(provider);
            match session(&model, &options, Fallback::Forbidden, &commit) {
                // Models that select candidates compute shapes, which always runs on the CPU.
                Err(EngineError::Fallback { .. }) => Ok((session(&model, &options, Fallback::Allowed, &commit)?, true)),
                session => Ok((session?, false)),
            }
        };
        let ((session, is_partly_on_cpu), provider, skipped_providers) = match options.provider {
            Provider::Auto => {
                // A provider may start and fail at its first convolution, as CUDA does without cuDNN.
                let works = |provider| smoke_test(&options.on(provider)).map(drop);
                first_that_works(start, works)?
            }
            provider => (start(provider)?, provider, SkippedProviders::new()),
        };
        let not_exported = |reason| EngineError::NotExported { model: model.clone(), reason };
        let _guard = provider.is_nvidia().then(without_capture);
        // Declared after the guard, so closed before it ends if the file is refused.
        let session = session;
        let info = ModelInfo::read(&session).map_err(not_exported)?;
        let contract = Contract::read(&session).map_err(not_exported)?;
        // `auto` drops the options of CUDA on other providers.
        let options = options.on(provider);
        check_options(&options, &contract)?;
        if is_partly_on_cpu {
            check_cpu_operators(provider, &contract)?;
        }
        let buffers = match provider {
            Provider::Cuda { device } | Provider::Tensorrt { device } => {
                Some(IoBuffers::new(MemoryLocations::cuda(device, &session), options.cuda_graphs))
            }
            _ => None,
        };
        let runner = Mutex::new(Runner { session: Some(session), buffers, reads_sizes: contract.reads_sizes });
        Ok(Self { runner, contract, provider, library: &loaded.library, library_time, info, skipped_providers })
    }

    /// This engine instead of one that was opened before: what [`Provider::Auto`] skipped, and the time of the library, are
    /// those of the earlier one.
    pub(crate) fn replacing(self, earlier: Self) -> Self {
        Self { library_time: earlier.library_time, skipped_providers: earlier.skipped_providers, ..self }
    }

    /// The spec in the file.
    pub fn spec(&self) -> &ModelSpec {
        &self.contract.spec
    }

    /// Maximum number of candidates per feature level that the file selects; `None` if it outputs the scores of all
    /// anchors.
    pub fn top_k(&self) -> Option<usize> {
        match self.contract.outputs {
            OutputKind::Dense => None,
            OutputKind::Candidates { top_k } | OutputKind::Detections { top_k, .. } => Some(top_k),
        }
    }

    /// Maximum number of detections per image of an end-to-end file; `None` if the file does not apply NMS itself.
    pub fn max_detections(&self) -> Option<usize> {
        match self.contract.outputs {
            OutputKind::Detections { max, .. } => Some(max),
            OutputKind::Dense | OutputKind::Candidates { .. } => None,
        }
    }

    /// Type of the pixels that the file reads.
    pub fn pixel_type(&self) -> PixelType {
        self.contract.pixels
    }

    /// Batch size that the file fixes; `None` for any.
    pub fn batch(&self) -> Option<usize> {
        self.contract.batch
    }

    /// Input height and width that the file fixes; `None` for any multiples of 32.
    pub fn size(&self) -> Option<[usize; 2]> {
        self.contract.size
    }

    /// The provider in use; never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Providers that [`Provider::Auto`] tried before [`Engine::provider`], and why each failed.
    pub fn skipped_providers(&self) -> &[(Provider, String)] {
        &self.skipped_providers
    }

    /// Description of the file apart from its spec.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The ONNX Runtime that runs the network.
    pub fn library(&self) -> &'static Library {
        self.library
    }

    /// Time to find and start ONNX Runtime; nearly zero if an earlier engine of the process did so.
    pub fn library_time(&self) -> Duration {
        self.library_time
    }

    /// Runs the network on a batch of preprocessed images without padding, `[N, 3, H, W]` with H and W multiples of 32. If
    /// the file fixes the batch size, a smaller batch is padded with zeros; the outputs omit the padding.
    ///
    /// # Errors
    /// When the file does not accept the input's type or shape, and when ONNX Runtime fails.
    pub fn run(&self, images: ArrayView4<f32>) -> Result<Outputs, EngineError> {
        let inputs: Vec<_> = images.outer_iter().map(Input::from).collect();
        self.run_inputs(&inputs.iter().collect::<Vec<_>>(), 0)
    }

    /// Runs the network on an input and returns the values of these float32 outputs, of the first image of the batch.
    pub(crate) fn read_values(&self, input: &Input, outputs: &[&'static str]) -> Result<Vec<Vec<f32>>, EngineError> {
        let shape = self.contract.shape(&[input], 0)?;
        let run_error = |error: ort::Error| EngineError::run(&shape, &error);
        let mut runner = self.runner.lock().unwrap_or_else(PoisonError::into_inner);
        let values = runner.run(&[input], shape, outputs).map_err(run_error)?;
        let read = |value: &DynValue| {
            let (_, values) = value.try_extract_tensor::<f32>().map_err(run_error)?;
            Ok(values[..values.len() / shape[0]].to_vec())
        };
        values.iter().map(read).collect()
    }

    /// Runs the network on inputs of one size, with the batch padded with zeros to at least `batch` images. For GPUs, on
    /// which every new input shape costs as much as many runs: <https://github.com/microsoft/onnxruntime/issues/23006>.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_inputs(&self, inputs: &[&Input], batch: usize) -> Result<Outputs, EngineError> {
        let shape = self.contract.shape(inputs, batch)?;
        let run_error = |error: ort::Error| EngineError::run(&shape, &error);
        let mut runner = self.runner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = |outputs: &[&'static str]| runner.run(inputs, shape, outputs).map_err(run_error);
        let (batch, count) = (shape[0], inputs.len());
        match self.contract.outputs {
            OutputKind::Dense => {
                let outputs = run(&DenseOutputs::NAMES)?;
                DenseOutputs::new(outputs, batch, count, self.spec(), run_error).map(Outputs::Dense)
            }
            OutputKind::Candidates { .. } => {
                let outputs = run(&CandidateOutputs::NAMES)?;
                CandidateOutputs::new(outputs, batch, count, run_error).map(Outputs::Candidates)
            }
            OutputKind::Detections { max, .. } => {
                let outputs = run(&DetectionOutputs::NAMES)?;
                DetectionOutputs::new(outputs, batch, count, max, run_error).map(Outputs::Detections)
            }
        }
    }
}

impl Runner {
    /// Runs the network on a batch of this shape: the inputs, padded with zeros. Returns the outputs with these names.
    fn run(&mut self, inputs: &[&Input], shape: [usize; 4], outputs: &[&'static str]) -> ort::Result<Vec<DynValue>> {
        let Self { session: Some(session), buffers, reads_sizes } = self else {
            unreachable!("only dropping it takes the session")
        };
        let sizes = match reads_sizes {
            true => Some(Tensor::from_array(input::sizes(inputs, shape[0]))?),
            false => None,
        };
        let floats: Vec<_> = inputs.iter().filter_map(|input| input.floats()).collect();
        let bytes: Vec<_> = inputs.iter().filter_map(|input| input.bytes()).collect();
        if let Some(buffers) = buffers {
            return buffers.run(session, (&floats, &bytes), sizes.as_ref(), shape, outputs);
        }
        let (float_batch, byte_batch);
        let images: SessionInputValue = if bytes.is_empty() {
            float_batch = input::batch(&floats, shape);
            TensorRef::from_array_view(&float_batch)?.into()
        } else {
            byte_batch = input::batch(&bytes, shape);
            TensorRef::from_array_view(&byte_batch)?.into()
        };
        let mut values = vec![(IMAGES, images)];
        values.extend(sizes.map(|sizes| (SIZES, sizes.into())));
        let mut values = session.run(values)?;
        Ok(outputs.iter().filter_map(|name| values.remove(*name)).collect())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // A session frees memory of its GPU.
        let _guard = self.buffers.take().map(|_| without_capture());
        self.session = None;
    }
}

/// Rejects options of the provider that do not fit the file.
fn check_options(options: &EngineOptions, contract: &Contract) -> Result<(), EngineError> {
    let provider = options.provider;
    let needs_profile = matches!(provider, Provider::Tensorrt { .. }) && contract.size.is_none();
    if needs_profile && options.tensorrt.profile.is_none() {
        let reason = "the model accepts inputs of any size, but TensorRT needs to know the sizes; pass \
                      --tensorrt-profile, or export the model with --input-size";
        return Err(EngineError::Provider { provider, reason: reason.to_owned() });
    }
    match contract.cuda_graph_obstacle().filter(|_| options.cuda_graphs) {
        Some(reason) => Err(EngineError::Option { option: "--cuda-graphs", provider, reason: reason.to_owned() }),
        None => Ok(()),
    }
}

/// Allows ONNX Runtime to run some operators on the CPU only where they compute shapes.
fn check_cpu_operators(provider: Provider, contract: &Contract) -> Result<(), EngineError> {
    if contract.outputs == OutputKind::Dense && contract.pixels == PixelType::Float {
        let reason = "some of the model's operators would run on the CPU; try a newer ONNX Runtime".to_owned();
        return Err(EngineError::Provider { provider, reason });
    }
    tracing::info!("{provider}: ONNX Runtime runs operators that compute shapes on the CPU; -v prints its report");
    Ok(())
}

/// Providers that do not work, with the reasons.
type SkippedProviders = Vec<(Provider, String)>;

/// Starts the first provider for which `works` and `start` succeed, the CPU last. Returns what `start` returned, the
/// provider, and the providers that failed.
fn first_that_works<S>(
    start: impl Fn(Provider) -> Result<S, EngineError>,
    works: impl Fn(Provider) -> Result<(), EngineError>,
) -> Result<(S, Provider, SkippedProviders), EngineError> {
    let mut skipped = SkippedProviders::new();
    for provider in Provider::BEFORE_CPU {
        match works(provider).and_then(|()| start(provider)) {
            Ok(started) => return Ok((started, provider, skipped)),
            Err(EngineError::Provider { reason, .. } | EngineError::Session { reason, .. }) => {
                skipped.push((provider, reason));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((start(Provider::Cpu)?, Provider::Cpu, skipped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_can_share_an_engine() {
        fn assert_send_and_sync<T: Send + Sync>() {}
        assert_send_and_sync::<Engine>();
        assert_send_and_sync::<EngineError>();
    }

    #[test]
    fn missing_file_is_an_error_that_names_it() {
        let error = Engine::open("nonexistent.onnx", &EngineOptions::default()).unwrap_err();
        assert!(matches!(error, EngineError::Read { .. }));
        assert!(error.to_string().contains("`nonexistent.onnx`"), "{error}");
    }

    #[test]
    fn folder_is_rejected_as_model() {
        let folder = tempfile::tempdir().unwrap();
        let error = Engine::open(folder.path(), &EngineOptions::default()).unwrap_err();
        assert!(error.to_string().contains("it is a folder"), "{error}");
    }

    #[test]
    fn auto_uses_the_first_provider_that_runs() {
        let fails = |provider| EngineError::Provider { provider, reason: "libcudnn.so.9 is missing".to_owned() };
        let [cuda, openvino] = Provider::BEFORE_CPU;
        let start = |provider| Ok(format!("{provider}"));
        // CUDA starts but fails to compute.
        let works = |provider| if provider == cuda { Err(fails(provider)) } else { Ok(()) };
        let (started, provider, skipped) = first_that_works(start, works).unwrap();
        assert_eq!((started.as_str(), provider), ("openvino:cpu", openvino));
        assert_eq!(skipped, [(cuda, "libcudnn.so.9 is missing".to_owned())]);
        let (_, provider, skipped) = first_that_works(start, |provider| Err(fails(provider))).unwrap();
        assert_eq!((provider, skipped.len()), (Provider::Cpu, 2));
        // An error in the model does not make `auto` try the next provider.
        let broken = |_| Err::<(), _>(EngineError::OnlyCandidates);
        assert!(matches!(first_that_works(broken, |_| Ok(())), Err(EngineError::OnlyCandidates)));
    }
}
