//! The engine: an ONNX file of ours in a session of ONNX Runtime.

mod about;
mod contract;
mod error;
mod memory;
mod outputs;
mod start;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use models::ModelSpec;
use ndarray::{Array4, ArrayView3, ArrayView4, Axis};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{DynValue, TensorRef};

pub use about::{About, Port};
pub use error::EngineError;
pub(crate) use error::words;
pub use outputs::{CandidateOutputs, DenseOutputs, Outputs};
pub(crate) use start::{Fallback, session};
pub use start::{ShapeProfile, TensorrtOptions};

use crate::library;
use crate::provider::Provider;
use crate::trial::smoke_test;
use contract::Contract;
use memory::{Memory, Place};

/// The key in an ONNX file's `metadata_props` under which the spec stands, as YAML.
pub const SPEC_KEY: &str = "retinanet.spec";

/// The key under which an ONNX file says that it hands over only candidates: how many of each level.
pub const TOP_K_KEY: &str = "retinanet.top_k";

/// The network's input, `[N, 3, H, W]`.
pub const IMAGES: &str = "images";

/// The network's first output, `[N, A, K]`.
pub const CLASSIFICATION: &str = "classification";

/// The network's second output, `[N, A, 4]`; of a file that hands over candidates the fourth, `[N, M, 4]`.
pub const REGRESSION: &str = "regression";

/// The first output of a file that hands over candidates: their scores, `[N, M]`.
pub const CANDIDATE_SCORES: &str = "scores";

/// Its second output: the rows of their anchors among all anchors, `[N, M]`.
pub const CANDIDATE_ANCHORS: &str = "anchors";

/// Its third output: their classes, `[N, M]`.
pub const CANDIDATE_CLASSES: &str = "classes";

/// The network halves its input five times and adds the halves up again, so sides must be multiples of this.
const SIDE_MULTIPLE: usize = 32;

/// How an engine runs.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// What computes the network.
    pub provider: Provider,
    /// Threads of its own that a run uses, from 1 to [`EngineOptions::MOST_THREADS`]. If absent, all engines of the process share as
    /// many as there are cores.
    pub threads: Option<usize>,
    /// CPUs, from 0, to which these threads are bound, one for each but the caller's; none are bound if empty.
    pub affinity: Vec<usize>,
    /// GPU memory limit for CUDA's arena, in bytes; what it needs if absent.
    pub cuda_memory: Option<usize>,
    /// Whether CUDA records a run and replays it, which saves the time of starting each of its kernels. For a file that fixes the
    /// shape of its input.
    pub cuda_graphs: bool,
    /// Whether `cuda` computes convolutions of 32 bits in full, rather than in TF32, whose mantissas have 10 bits and which ONNX
    /// Runtime takes where the GPU has it.
    pub no_tf32: bool,
    /// How TensorRT runs.
    pub tensorrt: TensorrtOptions,
    /// File of ONNX Runtime's library; searched for as [`crate::library::find`] says if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// A detector's network, ready to run. It may be shared between threads; their runs take turns, because ONNX Runtime's
/// providers are not all safe to enter twice, and one run uses all cores anyway.
#[derive(Debug)]
pub struct Engine {
    runner: Mutex<Runner>,
    contract: Contract,
    provider: Provider,
    version: &'static str,
    library_time: Duration,
    about: About,
    skipped_providers: SkippedProviders,
}

/// A session, and where its inputs and outputs lie.
#[derive(Debug)]
struct Runner {
    session: Session,
    /// That of a GPU; the CPU reads and writes any.
    memory: Option<Memory>,
}

impl Engine {
    /// Opens an ONNX file that the exporter wrote.
    ///
    /// # Errors
    /// When ONNX Runtime is not found, the file cannot be read or is not ours, or the provider does not work here.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, EngineError> {
        let path = path.as_ref();
        let model = path.display().to_string();
        // ONNX Runtime reads the file itself, which saves a copy; only the system says plainly why it cannot be read.
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

    /// Opens an ONNX file that is still in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn from_bytes(name: &str, bytes: &[u8], options: &EngineOptions) -> Result<Self, EngineError> {
        Self::commit(name.to_owned(), options, |builder| builder.commit_from_memory(bytes))
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
            match session(&model, &options, Fallback::Refused, &commit) {
                // Only those that hand over candidates compute shapes, which is the CPU's work.
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
        let about = About::read(&session).map_err(|reason| EngineError::Foreign { model: model.clone(), reason })?;
        let contract = Contract::read(&session).map_err(|reason| EngineError::Foreign { model, reason })?;
        if matches!(provider, Provider::Tensorrt { .. })
            && contract.size.is_none()
            && options.tensorrt.profile.is_none()
        {
            let reason = "the model takes inputs of any size, and an engine is built for known ones; say which with --tensorrt-profile, \
                          or export the model with --input-size";
            return Err(EngineError::Provider { provider, reason: reason.to_owned() });
        }
        if let (true, Some(reason)) = (options.cuda_graphs, contract.against_graphs()) {
            return Err(EngineError::Option { option: "a CUDA graph", provider, reason: reason.to_owned() });
        }
        if is_partly_on_cpu && contract.top_k.is_none() {
            let reason =
                "some of the model's operators would run on the CPU; a newer ONNX Runtime may have them".to_owned();
            return Err(EngineError::Provider { provider, reason });
        }
        let memory = match provider {
            Provider::Cuda { device } | Provider::Tensorrt { device } => {
                Some(Memory::new(Place::cuda(device, &session), options.cuda_graphs))
            }
            _ => None,
        };
        let version = &loaded.library.version;
        let runner = Mutex::new(Runner { session, memory });
        Ok(Self { runner, contract, provider, version, library_time, about, skipped_providers })
    }

    /// The spec that the file carries.
    pub fn spec(&self) -> &ModelSpec {
        &self.contract.spec
    }

    /// How many candidates of each level the file hands over; a score for everything if absent.
    pub fn top_k(&self) -> Option<usize> {
        self.contract.top_k
    }

    /// The number of images that the file computes at a time; any if absent.
    pub fn batch(&self) -> Option<usize> {
        self.contract.batch
    }

    /// Height and width that the file takes; any multiples of 32 if absent.
    pub fn size(&self) -> Option<[usize; 2]> {
        self.contract.size
    }

    /// What computes the network; never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// What [`Provider::Auto`] could not have before it came to [`Engine::provider`], and why.
    pub fn skipped_providers(&self) -> &[(Provider, String)] {
        &self.skipped_providers
    }

    /// What the file says about itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The version of ONNX Runtime, such as `1.30.0`.
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// How long it took to find and start ONNX Runtime; next to nothing when an earlier engine of the process had done so.
    pub fn library_time(&self) -> Duration {
        self.library_time
    }

    /// Runs the network on a batch of preprocessed images, `[N, 3, H, W]` with H and W multiples of 32. Where the file fixes
    /// the number of images, fewer are filled up with zeros, of which the outputs say nothing.
    ///
    /// # Errors
    /// When the input has another shape than the file takes, and when ONNX Runtime fails.
    pub fn run(&self, images: ArrayView4<f32>) -> Result<Outputs, EngineError> {
        let each: Vec<_> = images.outer_iter().collect();
        self.run_each(&each)
    }

    /// As [`Engine::run`], on images `[3, H, W]` of one size that lie apart.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_each(&self, images: &[ArrayView3<f32>]) -> Result<Outputs, EngineError> {
        self.run_padded(images, 0)
    }

    /// As [`Engine::run_each`], with zeros in place of the images that are missing to `batch` of them. For a GPU, on which every
    /// new shape of input costs as much as many runs: <https://github.com/microsoft/onnxruntime/issues/23006>.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_padded(&self, images: &[ArrayView3<f32>], batch: usize) -> Result<Outputs, EngineError> {
        let Contract { spec, top_k, .. } = &self.contract;
        let shape = self.contract.shape(images, batch)?;
        let run_error = |error: ort::Error| EngineError::run(&shape, &error);
        let mut runner = self.runner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = |names: &[&'static str]| runner.run(images, shape, names).map_err(run_error);
        let (batch, count) = (shape[0], images.len());
        match top_k {
            None => DenseOutputs::take(run(&DenseOutputs::NAMES)?, batch, count, spec, run_error).map(Outputs::Dense),
            Some(_) => {
                let outputs = run(&CandidateOutputs::NAMES)?;
                CandidateOutputs::take(outputs, batch, count, run_error).map(Outputs::Candidates)
            }
        }
    }
}

impl Runner {
    /// Runs on images that make an input of this shape, with zeros for those that are missing, and gives the outputs of these names.
    fn run(
        &mut self,
        images: &[ArrayView3<f32>],
        shape: [usize; 4],
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        let Self { session, memory } = self;
        if let Some(memory) = memory {
            return memory.run(session, images, shape, outputs);
        }
        let filled;
        let input = match images {
            [image] if shape[0] == 1 && image.is_standard_layout() => image.view().insert_axis(Axis(0)),
            images => {
                let mut input = Array4::zeros(shape);
                input.outer_iter_mut().zip(images).for_each(|(mut slot, image)| slot.assign(image));
                filled = input;
                filled.view()
            }
        };
        let mut values = session.run(ort::inputs![IMAGES => TensorRef::from_array_view(input)?])?;
        Ok(outputs.iter().filter_map(|name| values.remove(*name)).collect())
    }
}

/// Providers that do not work, and why.
type SkippedProviders = Vec<(Provider, String)>;

/// What the first provider that `start`s and `works` gives, which that is, and why those before do not.
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
    fn an_engine_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Engine>();
        shared::<EngineError>();
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = Engine::open("nonexistent.onnx", &EngineOptions::default()).unwrap_err();
        assert!(matches!(error, EngineError::Read { .. }));
        assert!(error.to_string().contains("`nonexistent.onnx`"), "{error}");
    }

    #[test]
    fn a_folder_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let error = Engine::open(folder.path(), &EngineOptions::default()).unwrap_err();
        assert!(error.to_string().contains("it is a folder"), "{error}");
    }

    #[test]
    fn auto_takes_the_first_provider_that_computes_something() {
        let fails = |provider| EngineError::Provider { provider, reason: "libcudnn.so.9 is missing".to_owned() };
        let [cuda, openvino] = Provider::BEFORE_CPU;
        let start = |provider| Ok(format!("{provider}"));
        // CUDA starts, and does not compute.
        let works = |provider| if provider == cuda { Err(fails(provider)) } else { Ok(()) };
        let (started, provider, skipped) = first_that_works(start, works).unwrap();
        assert_eq!((started.as_str(), provider), ("openvino:cpu", openvino));
        assert_eq!(skipped, [(cuda, "libcudnn.so.9 is missing".to_owned())]);
        let (_, provider, skipped) = first_that_works(start, |provider| Err(fails(provider))).unwrap();
        assert_eq!((provider, skipped.len()), (Provider::Cpu, 2));
        // What is wrong with the model is no reason to try another.
        let broken = |_| Err::<(), _>(EngineError::OnlyCandidates);
        assert!(matches!(first_that_works(broken, |_| Ok(())), Err(EngineError::OnlyCandidates)));
    }
}
