//! The engine: an ONNX file of ours in a session of ONNX Runtime.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use models::ModelSpec;
use ndarray::{ArrayView3, ArrayView4, Ix3};
use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, Tensor, TensorElementType, TensorRef, ValueType};

use crate::library::{self, LibraryError, Loaded};
use crate::provider::Provider;

/// The key in an ONNX file's `metadata_props` under which the spec stands, as YAML.
pub const SPEC_KEY: &str = "retinanet.spec";

/// The network's input, `[N, 3, H, W]`.
pub const IMAGES: &str = "images";

/// The network's first output, `[N, A, K]`.
pub const CLASSIFICATION: &str = "classification";

/// The network's second output, `[N, A, 4]`.
pub const REGRESSION: &str = "regression";

/// The network halves its input five times and adds the halves up again, so sides must be multiples of this.
const SIDE_MULTIPLE: usize = 32;

/// How an engine runs.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// What computes the network.
    pub provider: Provider,
    /// Threads of the processor that one run uses; as many as it has cores if absent.
    pub threads: Option<usize>,
    /// File of ONNX Runtime's library; searched for as [`crate::library::find`] says if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// Why an engine cannot be had, or cannot run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// ONNX Runtime's library.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The file cannot be read.
    #[error("cannot read model `{model}`: {reason}; name a file that `exporter --out FILE.onnx` wrote")]
    Read {
        /// The file.
        model: String,
        /// What the system says.
        reason: String,
    },
    /// Not an ONNX file, or one of other making.
    #[error("`{model}` is no detector of ours: {reason}; name a file that `exporter --out FILE.onnx` wrote")]
    Foreign {
        /// The file.
        model: String,
        /// What is missing or different.
        reason: String,
    },
    /// The provider that was named does not work here.
    #[error("provider `{provider}` cannot start: {reason}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// What is missing, and what to do.
        reason: String,
    },
    /// ONNX Runtime refuses to make a session.
    #[error("ONNX Runtime cannot load `{model}` on `{provider}`: {reason}")]
    Session {
        /// The file.
        model: String,
        /// What was to run it.
        provider: Provider,
        /// ONNX Runtime's words.
        reason: String,
    },
    /// The input does not have a shape that the network takes.
    #[error("input has shape {found:?}, expected [N, 3, H, W] with H and W multiples of {SIDE_MULTIPLE}, nothing zero")]
    Input {
        /// The shape.
        found: Vec<usize>,
    },
    /// ONNX Runtime stopped.
    #[error("ONNX Runtime failed on an input of shape {shape:?}: {reason}")]
    Run {
        /// The input's shape.
        shape: Vec<usize>,
        /// ONNX Runtime's words.
        reason: String,
    },
    /// The network computed something of another shape than its file promises.
    #[error("output `{name}` has shape {found:?}, expected {expected:?}; export the model again")]
    Output {
        /// Name of the output.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits the input and the spec.
        expected: Vec<usize>,
    },
}

/// A detector's network, ready to run. It may be shared between threads; their runs take turns, because ONNX Runtime's
/// providers are not all safe to enter twice, and one run uses all cores anyway.
#[derive(Debug)]
pub struct Engine {
    session: Mutex<Session>,
    spec: ModelSpec,
    provider: Provider,
}

/// What the network says about a batch, in ONNX Runtime's own memory.
#[derive(Debug)]
pub struct Outputs {
    scores: Tensor<f32>,
    offsets: Tensor<f32>,
}

impl Outputs {
    /// The scores: `[N, anchors, classes]`, in [0, 1].
    pub fn scores(&self) -> ArrayView3<'_, f32> {
        rank_three(&self.scores)
    }

    /// The offsets: `[N, anchors, 4]`.
    pub fn offsets(&self) -> ArrayView3<'_, f32> {
        rank_three(&self.offsets)
    }
}

fn rank_three(tensor: &Tensor<f32>) -> ArrayView3<'_, f32> {
    tensor.extract_array().into_dimensionality::<Ix3>().expect("the rank was checked when the outputs were taken")
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
        commit: impl FnOnce(&mut SessionBuilder) -> ort::Result<Session>,
    ) -> Result<Self, EngineError> {
        let session = session(&model, options, commit)?;
        let spec = read_spec(&session).map_err(|reason| EngineError::Foreign { model, reason })?;
        Ok(Self { session: Mutex::new(session), spec, provider: options.provider })
    }

    /// The spec that the file carries.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What computes the network.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Runs the network on a batch of preprocessed pictures, `[N, 3, H, W]` with H and W multiples of 32.
    ///
    /// # Errors
    /// When the input has another shape, and when ONNX Runtime fails.
    pub fn run(&self, images: ArrayView4<f32>) -> Result<Outputs, EngineError> {
        let shape = images.shape().to_vec();
        let sides_fit = shape[2..].iter().all(|side| *side > 0 && side.is_multiple_of(SIDE_MULTIPLE));
        if shape[0] == 0 || shape[1] != 3 || !sides_fit {
            return Err(EngineError::Input { found: shape });
        }
        let run_error = |error: ort::Error| EngineError::Run { shape: shape.clone(), reason: words(&error) };
        let images = images.as_standard_layout();
        let input = TensorRef::from_array_view(&images).map_err(run_error)?;

        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outputs = session.run(ort::inputs![IMAGES => input]).map_err(run_error)?;
        let mut take = |name: &'static str| {
            let value = outputs.remove(name).expect("the file's outputs were checked when it was opened");
            value.downcast::<ort::value::TensorValueType<f32>>().map_err(run_error)
        };
        let outputs = Outputs { scores: take(CLASSIFICATION)?, offsets: take(REGRESSION)? };
        outputs.check(shape[0], self.spec.class_count())?;
        Ok(outputs)
    }
}

impl Outputs {
    fn check(&self, batch: usize, classes: usize) -> Result<(), EngineError> {
        let sizes = |tensor: &Tensor<f32>| tensor.shape().iter().map(|size| *size as usize).collect::<Vec<_>>();
        let (scores, offsets) = (sizes(&self.scores), sizes(&self.offsets));
        let anchors = scores.get(1).copied().unwrap_or(0);
        for (name, found, width) in [(CLASSIFICATION, scores, classes), (REGRESSION, offsets, 4)] {
            let expected = vec![batch, anchors, width];
            if found != expected {
                return Err(EngineError::Output { name, found, expected });
            }
        }
        Ok(())
    }
}

/// A session of ONNX Runtime; `model` stands for what it runs in messages.
pub(crate) fn session(
    model: &str,
    options: &EngineOptions,
    commit: impl FnOnce(&mut SessionBuilder) -> ort::Result<Session>,
) -> Result<Session, EngineError> {
    let provider = options.provider;
    let loaded = library::load(options.onnxruntime.as_deref())?;
    let session_error = |error: ort::Error| match error.code() {
        ort::ErrorCode::InvalidProtobuf => {
            EngineError::Foreign { model: model.to_owned(), reason: "it is no ONNX file".to_owned() }
        }
        _ => EngineError::Session { model: model.to_owned(), provider, reason: words(&error) },
    };
    let mut builder = Session::builder(&loaded.environment).map_err(session_error)?;
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads).map_err(|error| session_error(error.into()))?;
    }
    builder = register(builder, provider, loaded)?;
    commit(&mut builder).map_err(session_error)
}

/// Makes the session use the provider, or fail.
fn register(builder: SessionBuilder, provider: Provider, loaded: &Loaded) -> Result<SessionBuilder, EngineError> {
    let Provider::Cuda { device } = provider else {
        return Ok(builder);
    };
    let provider_error = |reason: String| EngineError::Provider { provider, reason };
    if !ep::CUDA::is_available().map_err(|error| provider_error(words(&error)))? {
        let reason = "this build of ONNX Runtime is for the processor alone; install the one for CUDA with \
                      `make setup CUDA=1`, or pip's `onnxruntime-gpu` wheel and ORT_DYLIB_PATH";
        return Err(provider_error(reason.to_owned()));
    }
    loaded.library.preload_cuda();
    let cuda = ep::CUDA::default()
        .with_device_id(device.into())
        // The exhaustive search costs seconds for every new size of input, and finds nothing faster.
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        .build()
        .error_on_failure();
    builder.with_execution_providers([cuda]).map_err(|error| {
        provider_error(format!(
            "{}; it needs NVIDIA's driver, and CUDA 13 and cuDNN 9, which `make setup CUDA=1` brings",
            words(&error)
        ))
    })
}

/// What ONNX Runtime says, on one line and without the place in its source.
pub(crate) fn words<R>(error: &ort::Error<R>) -> String {
    let message = error.message();
    // `file.cc:1988 function [ONNXRuntimeError] : 1 : FAIL : words`
    let message = message
        .rsplit_once("[ONNXRuntimeError] : ")
        .map_or(message, |(_, status)| status.splitn(3, " : ").last().unwrap_or(status));
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The spec of a file that is ours; otherwise what is missing or different.
fn read_spec(session: &Session) -> Result<ModelSpec, String> {
    let metadata = session.metadata().map_err(|error| words(&error))?;
    let text = metadata.custom(SPEC_KEY).ok_or_else(|| format!("it carries no `{SPEC_KEY}`"))?;
    let spec = ModelSpec::from_yaml(&text).map_err(|error| format!("its `{SPEC_KEY}` is broken: {error}"))?;
    let classes = spec.class_count();
    if classes == 0 {
        return Err(format!("its `{SPEC_KEY}` names no classes"));
    }
    check_tensors("input", session.inputs(), &[(IMAGES, &[None, Some(3), None, None])])?;
    let outputs: [(&str, &[Option<usize>]); 2] =
        [(CLASSIFICATION, &[None, None, Some(classes)]), (REGRESSION, &[None, None, Some(4)])];
    check_tensors("output", session.outputs(), &outputs)?;
    Ok(spec)
}

/// Checks that there are exactly these tensors, of 32-bit floats, with these sizes; `None` is any size, and a size that
/// the file leaves open is checked when the network runs.
fn check_tensors(kind: &str, found: &[Outlet], expected: &[(&str, &[Option<usize>])]) -> Result<(), String> {
    let names = found.iter().map(|outlet| format!("`{}`", outlet.name())).collect::<Vec<_>>().join(", ");
    if found.len() != expected.len() {
        return Err(format!("it has {} {kind}s ({names}), expected {}", found.len(), expected.len()));
    }
    for (name, sizes) in expected {
        let outlet = found.iter().find(|outlet| outlet.name() == *name);
        let Some(outlet) = outlet else {
            return Err(format!("it has no {kind} `{name}`, only {names}"));
        };
        let fits = match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => {
                shape.len() == sizes.len()
                    && shape.iter().zip(*sizes).all(|(found, expected)| {
                        *found < 0 || expected.is_none_or(|expected| usize::try_from(*found) == Ok(expected))
                    })
            }
            _ => false,
        };
        if !fits {
            let sizes = sizes.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string()));
            let sizes = sizes.collect::<Vec<_>>().join(", ");
            return Err(format!("its {kind} `{name}` is {}, expected 32-bit floats [{sizes}]", outlet.dtype()));
        }
    }
    Ok(())
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
}
