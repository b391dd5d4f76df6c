//! The engine: an ONNX file of ours in a session of ONNX Runtime.

mod memory;
mod outputs;
mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use models::ModelSpec;
use ndarray::{Array4, ArrayView3, ArrayView4, Axis};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{DynValue, Outlet, TensorElementType, TensorRef, ValueType};
use serde::Serialize;

pub use outputs::{CandidateOutputs, DenseOutputs, Outputs};
pub(crate) use start::session;
pub use start::{ShapeProfile, TensorrtOptions};

use crate::library::{self, LibraryError};
use crate::provider::Provider;
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
    /// Threads of its own that a run uses, at least 1. If absent, all engines of the process share as many as there are cores.
    pub threads: Option<usize>,
    /// Processors, from 0, to which these threads are bound, one for each but the caller's; none are bound if empty.
    pub affinity: Vec<usize>,
    /// Most bytes of a card's memory that CUDA's arena takes; what it needs if absent.
    pub cuda_memory: Option<usize>,
    /// Whether CUDA records a run and replays it, which saves the time of starting each of its kernels. For a file that fixes the
    /// shape of its input.
    pub cuda_graphs: bool,
    /// How TensorRT runs.
    pub tensorrt: TensorrtOptions,
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
    /// An option that does not fit the others.
    #[error("{option} cannot be used with provider `{provider}`: {reason}")]
    Option {
        /// What was asked for.
        option: &'static str,
        /// The provider.
        provider: Provider,
        /// Why not.
        reason: &'static str,
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
    /// The file was exported for inputs of another size.
    #[error(
        "input is {}x{}, and the model takes {}x{} (height x width) alone; resize by its spec, or export it without \
         --input-size", .found[0], .found[1], .expected[0], .expected[1]
    )]
    Size {
        /// Height and width of the input.
        found: [usize; 2],
        /// Height and width that the file fixes.
        expected: [usize; 2],
    },
    /// The file was exported for fewer pictures at a time.
    #[error(
        "{found} pictures are more than the {most} that the model takes at a time; run fewer, or export it with another --batch"
    )]
    Batch {
        /// Pictures of the input.
        found: usize,
        /// Pictures that the file fixes.
        most: usize,
    },
    /// Scores of all anchors were asked of a file that does not have them.
    #[error(
        "the model hands over only its best candidates; export it without --top-k to have the scores of all anchors"
    )]
    OnlyCandidates,
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
    runner: Mutex<Runner>,
    contract: Contract,
    provider: Provider,
    version: &'static str,
    library_time: Duration,
    about: About,
    passed_over: PassedOver,
}

/// A session, and where its inputs and outputs lie.
#[derive(Debug)]
struct Runner {
    session: Session,
    /// That of a graphics card; the processor reads and writes any.
    memory: Option<Memory>,
}

/// What a file says about itself besides the spec.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// What the network is called.
    pub graph: String,
    /// The program that wrote the file.
    pub producer: String,
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
    /// Where it comes from, by keys.
    pub metadata: BTreeMap<String, String>,
}

/// An input or an output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its elements, such as `f32`.
    pub element: String,
    /// Its shape; a side that is absent is any.
    pub shape: Vec<Option<usize>>,
}

/// What a file of ours promises.
#[derive(Clone, Debug, PartialEq)]
struct Contract {
    spec: ModelSpec,
    /// Candidates of each level that the file hands over; a score of everything if absent.
    top_k: Option<usize>,
    /// Number of pictures that the file fixes.
    batch: Option<usize>,
    /// Height and width that the file fixes.
    size: Option<[usize; 2]>,
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
        let (session, provider, passed_over) = match options.provider {
            Provider::Auto => first_that_starts(&model, options, commit)?,
            provider => (session(&model, options, commit)?, provider, PassedOver::new()),
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
        if options.cuda_graphs && (contract.size.is_none() || contract.batch.is_none()) {
            let reason =
                "the model takes inputs of any shape, and a graph has one; export it with --input-size and --batch";
            return Err(EngineError::Option { option: "a CUDA graph", provider, reason });
        }
        let memory = match provider {
            Provider::Cuda { device } | Provider::Tensorrt { device } => {
                Some(Memory::new(Place::cuda(device), options.cuda_graphs))
            }
            _ => None,
        };
        let version = &loaded.library.version;
        let runner = Mutex::new(Runner { session, memory });
        Ok(Self { runner, contract, provider, version, library_time, about, passed_over })
    }

    /// The spec that the file carries.
    pub fn spec(&self) -> &ModelSpec {
        &self.contract.spec
    }

    /// How many candidates of each level the file hands over; a score for everything if absent.
    pub fn top_k(&self) -> Option<usize> {
        self.contract.top_k
    }

    /// The number of pictures that the file computes at a time; any if absent.
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
    pub fn passed_over(&self) -> &[(Provider, String)] {
        &self.passed_over
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

    /// Runs the network on a batch of preprocessed pictures, `[N, 3, H, W]` with H and W multiples of 32. Where the file fixes
    /// the number of pictures, fewer are filled up with zeros, of which the outputs say nothing.
    ///
    /// # Errors
    /// When the input has another shape than the file takes, and when ONNX Runtime fails.
    pub fn run(&self, images: ArrayView4<f32>) -> Result<Outputs, EngineError> {
        let pictures: Vec<_> = images.outer_iter().collect();
        self.run_each(&pictures)
    }

    /// As [`Engine::run`], on pictures `[3, H, W]` of one size that lie apart.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_each(&self, pictures: &[ArrayView3<f32>]) -> Result<Outputs, EngineError> {
        let Contract { spec, top_k, .. } = &self.contract;
        let shape = self.contract.shape(pictures)?;
        let run_error = |error: ort::Error| EngineError::Run { shape: shape.to_vec(), reason: words(&error) };
        let mut runner = self.runner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run = |names: &[&'static str]| runner.run(pictures, shape, names).map_err(run_error);
        let (batch, count) = (shape[0], pictures.len());
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
    /// Runs on pictures that make an input of this shape, with zeros for those that are missing, and gives the outputs of these names.
    fn run(
        &mut self,
        pictures: &[ArrayView3<f32>],
        shape: [usize; 4],
        outputs: &[&'static str],
    ) -> ort::Result<Vec<DynValue>> {
        let Self { session, memory } = self;
        if let Some(memory) = memory {
            return memory.run(session, pictures, shape, outputs);
        }
        let filled;
        let images = match pictures {
            [picture] if shape[0] == 1 && picture.is_standard_layout() => picture.view().insert_axis(Axis(0)),
            pictures => {
                let mut images = Array4::zeros(shape);
                images.outer_iter_mut().zip(pictures).for_each(|(mut image, picture)| image.assign(picture));
                filled = images;
                filled.view()
            }
        };
        let mut values = session.run(ort::inputs![IMAGES => TensorRef::from_array_view(images)?])?;
        Ok(outputs.iter().filter_map(|name| values.remove(*name)).collect())
    }
}

/// Providers that do not start, and why.
type PassedOver = Vec<(Provider, String)>;

/// A session on the first provider that starts, which that is, and why those before do not.
fn first_that_starts(
    model: &str,
    options: &EngineOptions,
    commit: impl Fn(&mut SessionBuilder) -> ort::Result<Session>,
) -> Result<(Session, Provider, PassedOver), EngineError> {
    let mut passed_over = PassedOver::new();
    for provider in Provider::BEFORE_CPU {
        match session(model, &EngineOptions { provider, ..options.clone() }, &commit) {
            Ok(session) => return Ok((session, provider, passed_over)),
            Err(EngineError::Provider { reason, .. } | EngineError::Session { reason, .. }) => {
                passed_over.push((provider, reason));
            }
            Err(error) => return Err(error),
        }
    }
    let options = EngineOptions { provider: Provider::Cpu, ..options.clone() };
    Ok((session(model, &options, commit)?, Provider::Cpu, passed_over))
}

impl About {
    fn read(session: &Session) -> Result<Self, String> {
        let file = session.metadata().map_err(|error| words(&error))?;
        let keys = file.custom_keys().map_err(|error| words(&error))?;
        let metadata = keys.into_iter().filter(|key| key != SPEC_KEY);
        Ok(Self {
            graph: file.name().unwrap_or_default(),
            producer: file.producer().unwrap_or_default(),
            inputs: session.inputs().iter().map(Port::of).collect(),
            outputs: session.outputs().iter().map(Port::of).collect(),
            metadata: metadata.filter_map(|key| Some((key.clone(), file.custom(&key)?))).collect(),
        })
    }
}

impl Port {
    fn of(outlet: &Outlet) -> Self {
        let (element, shape) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                (ty.to_string(), shape.iter().map(|side| usize::try_from(*side).ok()).collect())
            }
            other => (format!("{other:?}"), Vec::new()),
        };
        Self { name: outlet.name().to_owned(), element, shape }
    }
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

impl Contract {
    /// The contract of a file that is ours; otherwise what is missing or different.
    fn read(session: &Session) -> Result<Self, String> {
        let metadata = session.metadata().map_err(|error| words(&error))?;
        let text = metadata.custom(SPEC_KEY).ok_or_else(|| format!("it carries no `{SPEC_KEY}`"))?;
        let spec = ModelSpec::from_yaml(&text).map_err(|error| format!("its `{SPEC_KEY}` is broken: {error}"))?;
        let classes = spec.class_count();
        if classes == 0 {
            return Err(format!("its `{SPEC_KEY}` names no classes"));
        }
        let top_k = metadata.custom(TOP_K_KEY).map(|text| {
            text.parse().map_err(|_| format!("its `{TOP_K_KEY}` is `{text}`, expected how many candidates a level has"))
        });
        let top_k = top_k.transpose()?;

        let (float, int) = (TensorElementType::Float32, TensorElementType::Int64);
        check_tensors("input", session.inputs(), &[(IMAGES, float, &[None, Some(3), None, None])])?;
        let outputs: &[(&str, TensorElementType, &[Option<usize>])] = match top_k {
            None => {
                &[(CLASSIFICATION, float, &[None, None, Some(classes)]), (REGRESSION, float, &[None, None, Some(4)])]
            }
            Some(_) => &[
                (CANDIDATE_SCORES, float, &[None, None]),
                (CANDIDATE_ANCHORS, int, &[None, None]),
                (CANDIDATE_CLASSES, int, &[None, None]),
                (REGRESSION, float, &[None, None, Some(4)]),
            ],
        };
        check_tensors("output", session.outputs(), outputs)?;

        let [batch, height, width] = fixed_sides(&session.inputs()[0]);
        let size = match (height, width) {
            (Some(height), Some(width)) => Some([height, width]),
            (None, None) => None,
            _ => return Err("it fixes one side of its input alone".to_owned()),
        };
        let said = spec.preprocessing.input_size.map(|sides| sides.map(|side| side as usize));
        if size.is_some() && size != said {
            return Err(format!("its input is {size:?}, its spec says {said:?} (height, width)"));
        }
        Ok(Self { spec, top_k, batch, size })
    }

    /// The shape of the input as the file takes it.
    fn shape(&self, pictures: &[ArrayView3<f32>]) -> Result<[usize; 4], EngineError> {
        let count = pictures.len();
        let (channels, height, width) = pictures.first().map_or((0, 0, 0), ArrayView3::dim);
        let fits = [height, width].iter().all(|side| *side > 0 && side.is_multiple_of(SIDE_MULTIPLE));
        if channels != 3 || !fits || pictures.iter().any(|picture| picture.dim() != (channels, height, width)) {
            return Err(EngineError::Input { found: vec![count, channels, height, width] });
        }
        if let Some(expected) = self.size.filter(|size| *size != [height, width]) {
            return Err(EngineError::Size { found: [height, width], expected });
        }
        match self.batch {
            Some(most) if count > most => Err(EngineError::Batch { found: count, most }),
            batch => Ok([batch.unwrap_or(count), channels, height, width]),
        }
    }
}

/// The number of pictures, the height and the width that an input fixes.
fn fixed_sides(input: &Outlet) -> [Option<usize>; 3] {
    let ValueType::Tensor { shape, .. } = input.dtype() else { return [None; 3] };
    [0, 2, 3].map(|axis| shape.get(axis).and_then(|size| usize::try_from(*size).ok()))
}

/// Checks that there are exactly these tensors, with these elements and sizes; `None` is any size, and a size that
/// the file leaves open is checked when the network runs.
fn check_tensors(
    kind: &str,
    found: &[Outlet],
    expected: &[(&str, TensorElementType, &[Option<usize>])],
) -> Result<(), String> {
    let names = found.iter().map(|outlet| format!("`{}`", outlet.name())).collect::<Vec<_>>().join(", ");
    if found.len() != expected.len() {
        return Err(format!("it has {} {kind}s ({names}), expected {}", found.len(), expected.len()));
    }
    for (name, element, sizes) in expected {
        let outlet = found.iter().find(|outlet| outlet.name() == *name);
        let Some(outlet) = outlet else {
            return Err(format!("it has no {kind} `{name}`, only {names}"));
        };
        let fits = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } if ty == element => {
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
            return Err(format!("its {kind} `{name}` is {}, expected {element} [{sizes}]", outlet.dtype()));
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
