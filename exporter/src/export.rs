//! The export: trace, fold, encode, write, prove, lower the precision, give the file its form, compare, keep.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use models::{AtomicFile, Checkpoint, ModelSpec, Provenance, WeightsError};
use ndarray::ArrayD;
use runtime::EngineOptions;
use tempfile::NamedTempFile;

use crate::accuracy::{Accuracy, AccuracyError};
use crate::external::ExternalFile;
use crate::fold::fold_batch_norms;
use crate::form::{self, FormDifferences, FormError, FormOptions};
use crate::graph::Graph;
use crate::heads::HeadValues;
use crate::model::{Encoded, FileOptions, encode};
use crate::precision::{Comparison, Converted, Precision, PrecisionError, PrecisionOptions, check, lower};
use crate::proof::{Differences, ProofError, prove};
use crate::trace::trace;

/// Bytes that a protocol buffer may have.
const LARGEST: usize = i32::MAX as usize;

/// What to do with more.
const TOO_LARGE: &str = "no ONNX file may have more than 2 GB; --external-data puts the weights into a file beside it";

/// What can't be done with more.
const TOO_LARGE_TO_COMPARE: &str = "no ONNX file may have more than 2 GB, and only up to that a network can be compared with \
                                    itself in 32 bits: leave out --precision, --input-size, --batch-size and --top-k";

/// What is exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// What the numbers of the network are.
    pub precision: PrecisionOptions,
    /// Which sizes are free, and how much is handed over.
    pub form: FormOptions,
    /// What the file is like.
    pub file: FileOptions,
    /// Data to measure the file's AP on.
    pub accuracy: Option<Accuracy>,
    /// How much smaller than that of 32 bits the AP may be.
    pub max_ap_drop: Option<f64>,
}

/// What came of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// Size of the file in bytes.
    pub bytes: usize,
    /// How far ONNX Runtime is from libtorch on the checkpoint's probe, in 32 bits.
    pub differences: Differences,
    /// What fewer bits did; none where there are 32.
    pub converted: Option<Loss>,
    /// How far the file is from one of free form; none where it is one.
    pub formed: Option<FormDifferences>,
    /// The AP of the file, in [0, 1], if it was measured.
    pub ap: Option<f64>,
}

/// What fewer bits did.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Which layers they did not reach.
    pub converted: Converted,
    /// How far the file is from that of 32 bits.
    pub comparison: Comparison,
    /// The AP of the file of 32 bits, if it was measured.
    pub ap: Option<f64>,
}

/// Why there is no file. What had the target's name before still has it.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights are not those of the spec's network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file can't be written.
    #[error("cannot write the file")]
    Io(#[from] io::Error),
    /// The file does not compute what libtorch computed.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The network can't have the precision.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The file can't have its form.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The AP can't be measured.
    #[error("cannot measure the AP")]
    Accuracy(#[from] AccuracyError),
    /// The AP is too small.
    #[error(
        "{precision} has an AP of {found:.4}, fp32 of {expected:.4}; more than the {allowed} is lost that --max-ap-drop \
         allows, so no file was written. --sensitivity lists the layers that lose most, --keep-float keeps them as they are"
    )]
    Drop {
        /// What was asked for.
        precision: Precision,
        /// Its AP.
        found: f64,
        /// That of 32 bits.
        expected: f64,
        /// How much less would do.
        allowed: f64,
    },
}

/// Writes the checkpoint's detector into `file`, proves it, and gives it its name.
///
/// No two copies of the weights outlive a step in 32 bits: they move from the checkpoint into the graph and into the file,
/// and are gone before ONNX Runtime loads its own.
///
/// # Errors
/// When the weights do not fit the spec, the file can't be written, the proof fails, the network can't have the precision,
/// or loses too much by it.
pub fn export(
    checkpoint: Checkpoint,
    mut file: AtomicFile,
    options: &ExportOptions,
    engine: &EngineOptions,
) -> Result<Exported, ExportError> {
    let Checkpoint { spec: trained, provenance, tensors, probe } = checkpoint;
    let precision = options.precision.precision;
    let spec = options.form.spec(&trained)?;
    let mut graph = folded(&trained, tensors)?;
    let heads = HeadValues::of(&graph);
    let measure = |model: &Path| options.accuracy.as_ref().map(|accuracy| accuracy.of(model, engine)).transpose();
    if precision == Precision::Fp32 && options.form.is_free() {
        let encoded = encode(graph, &spec, &provenance, precision, &options.file);
        let written = Written::new(encoded, &mut file)?;
        let differences = prove(file.path(), &heads, &spec, &probe, engine)?;
        let ap = measure(file.path())?;
        file.commit()?;
        return Ok(Exported { bytes: written.keep(), differences, converted: None, formed: None, ap });
    }

    let folder = file.path().parent().unwrap_or(Path::new("."));
    let full = Unnamed::new("fp32", folder, &to_bytes(graph.clone(), &trained, &provenance))?;
    let differences = prove(full.path(), &heads, &trained, &probe, engine)?;

    let converted = match precision {
        Precision::Fp32 => None,
        _ => Some(lower(&mut graph, &spec, &options.precision, engine)?),
    };
    let lowered_heads = HeadValues::of(&graph);
    // Images of all sizes go through a file of free form; the file itself is then compared with that.
    let free = match converted {
        Some(_) if !options.form.is_free() => {
            Some(Unnamed::new("free", folder, &to_bytes(graph.clone(), &trained, &provenance))?)
        }
        _ => None,
    };
    options.form.apply(&mut graph, &spec);
    let encoded = encode(graph, &spec, &provenance, precision, &options.file);
    let written = Written::new(encoded, &mut file)?;

    let loss = converted.map(|converted| {
        let model = free.as_ref().map_or(file.path(), Unnamed::path);
        let (full_file, file) = ((full.path(), &heads), (model, &lowered_heads));
        let comparison = check(full_file, file, &spec, &options.precision, engine)?;
        Ok::<_, ExportError>(Loss { converted, comparison, ap: measure(full.path())? })
    });
    let loss = loss.transpose()?;
    let formed = (!options.form.is_free()).then(|| {
        let model = free.as_ref().unwrap_or(&full).path();
        form::check(model, file.path(), &probe.images, precision.rounding(), engine)
    });
    let formed = formed.transpose()?;
    let ap = measure(file.path())?;
    let full_ap = loss.as_ref().and_then(|loss| loss.ap);
    if let (Some(expected), Some(found), Some(allowed)) = (full_ap, ap, options.max_ap_drop)
        && expected - found > allowed
    {
        return Err(ExportError::Drop { precision, found, expected, allowed });
    }
    file.commit()?;
    Ok(Exported { bytes: written.keep(), differences, converted: loss, formed, ap })
}

/// The bytes of an ONNX file of 32 bits, unproven.
///
/// # Errors
/// When a tensor is missing or misshapen, or the spec has no classes or an unknown depth.
pub fn to_onnx(
    spec: &ModelSpec,
    tensors: BTreeMap<String, ArrayD<f32>>,
    provenance: &Provenance,
) -> Result<Vec<u8>, WeightsError> {
    Ok(to_bytes(folded(spec, tensors)?, spec, provenance))
}

fn to_bytes(graph: Graph, spec: &ModelSpec, provenance: &Provenance) -> Vec<u8> {
    encode(graph, spec, provenance, Precision::Fp32, &FileOptions::default()).model
}

fn folded(spec: &ModelSpec, tensors: BTreeMap<String, ArrayD<f32>>) -> Result<Graph, WeightsError> {
    let mut graph = trace(spec, tensors)?;
    fold_batch_norms(&mut graph);
    Ok(graph)
}

/// A model on the disk that goes away again.
struct Unnamed(NamedTempFile);

impl Unnamed {
    fn new(word: &str, folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        if bytes.len() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE_TO_COMPARE));
        }
        let mut file = tempfile::Builder::new().prefix(&format!(".{word}.")).suffix(".partial").tempfile_in(folder)?;
        file.write_all(bytes)?;
        Ok(Self(file))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A model on the disk that has no name yet.
struct Written {
    bytes: usize,
    external: Option<ExternalFile>,
}

impl Written {
    fn new(encoded: Encoded, file: &mut AtomicFile) -> io::Result<Self> {
        let Encoded { model, external } = encoded;
        let folder = file.path().parent().unwrap_or(Path::new("."));
        let external = external.map(|external| external.write(folder)).transpose()?;
        if model.len() > LARGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
        }
        file.write_all(&model)?;
        file.flush()?;
        Ok(Self { bytes: model.len(), external })
    }

    /// Keeps what is beside the model. Says the size of both.
    fn keep(self) -> usize {
        self.bytes + self.external.map_or(0, ExternalFile::keep)
    }
}
