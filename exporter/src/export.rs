//! The export: trace, fold, encode, write, verify, convert to precision and variant, compare, commit.

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
use crate::precision::{Comparison, Converted, Precision, PrecisionError, PrecisionOptions, check, convert};
use crate::proof::{Differences, ProofError, prove};
use crate::trace::trace;

/// Maximum size of a protocol buffer in bytes.
const MAX_BYTES: usize = i32::MAX as usize;

/// Error of a larger file.
const TOO_LARGE: &str = "an ONNX file cannot exceed 2 GB; store the weights in a separate file with --external-data";

/// Error of a larger float32 file to compare with.
const TOO_LARGE_TO_COMPARE: &str = "an ONNX file cannot exceed 2 GB, so the plain float32 file to compare with cannot be \
                                    written; omit --precision, --input-size, --batch-size and --top-k";

/// Options of an export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Precision of the network.
    pub precision: PrecisionOptions,
    /// Variant of the file.
    pub form: FormOptions,
    /// Options of the file that do not change what it computes.
    pub file: FileOptions,
    /// Data set to measure the file's AP on; not measured if absent.
    pub accuracy: Option<Accuracy>,
    /// Maximum loss of AP against float32; no limit if absent.
    pub max_ap_drop: Option<f64>,
}

/// Result of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// Size of the file in bytes, with external data.
    pub bytes: usize,
    /// Differences of the float32 file in ONNX Runtime from libtorch, on the checkpoint's probe.
    pub differences: Differences,
    /// Comparison with float32; `None` if the precision is fp32.
    pub precision_report: Option<PrecisionReport>,
    /// Differences from the plain file; `None` if this is the plain file.
    pub form_differences: Option<FormDifferences>,
    /// The AP of the file, in [0, 1], if it was measured.
    pub ap: Option<f64>,
}

/// Comparison of an fp16 or int8 file with the float32 file.
#[derive(Clone, Debug, PartialEq)]
pub struct PrecisionReport {
    /// Layers that stay in float32, and the sensitivity of each layer.
    pub converted: Converted,
    /// Differences between the two files.
    pub comparison: Comparison,
    /// The AP of the float32 file, in [0, 1], if it was measured.
    pub fp32_ap: Option<f64>,
}

/// Why no file was written. An existing file of the same name stays unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights do not fit the spec.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file cannot be written.
    #[error("cannot write the file")]
    Io(#[from] io::Error),
    /// The file does not reproduce libtorch's outputs.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The network cannot be converted to the precision, or loses too much.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The variant cannot be exported.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The AP cannot be measured.
    #[error("cannot measure the AP")]
    Accuracy(#[from] AccuracyError),
    /// The AP drops by more than allowed.
    #[error(
        "AP drops from {expected:.4} in fp32 to {found:.4} in {precision}, by more than --max-ap-drop {max_drop}; no \
         file was written. Keep the layers that --sensitivity lists first in float32, with --keep-float"
    )]
    ApDrop {
        /// Precision of the file.
        precision: Precision,
        /// AP of the file.
        found: f64,
        /// AP of the float32 file.
        expected: f64,
        /// Maximum drop.
        max_drop: f64,
    },
}

/// Exports a checkpoint to `file`, verifies the file, and commits it.
///
/// For float32, no step leaves two copies of the weights in memory: they move from the checkpoint into the graph and
/// into the file, and are freed before ONNX Runtime loads its own copy.
///
/// # Errors
/// When the weights do not fit the spec, the file cannot be written, the verification fails, the network cannot be
/// converted to the precision or loses too much by it, or the AP cannot be measured.
pub fn export(
    checkpoint: Checkpoint,
    mut file: AtomicFile,
    options: &ExportOptions,
    engine: &EngineOptions,
) -> Result<Exported, ExportError> {
    let Checkpoint { spec: plain_spec, provenance, tensors, probe } = checkpoint;
    let precision = options.precision.precision;
    let spec = options.form.spec(&plain_spec)?;
    let mut graph = folded(&plain_spec, tensors)?;
    let heads = HeadValues::of(&graph);
    let measure = |model: &Path| options.accuracy.as_ref().map(|accuracy| accuracy.of(model, engine)).transpose();
    if precision == Precision::Fp32 && options.form.is_free() {
        let encoded = encode(graph, &spec, &provenance, precision, &options.file);
        let written = WrittenModel::new(encoded, &mut file)?;
        let differences = prove(file.path(), &heads, &spec, &probe, engine)?;
        let ap = measure(file.path())?;
        file.commit()?;
        let bytes = written.keep();
        return Ok(Exported { bytes, differences, precision_report: None, form_differences: None, ap });
    }

    let folder = file.path().parent().unwrap_or(Path::new("."));
    let fp32_file = TemporaryModel::new("fp32", folder, &to_bytes(graph.clone(), &plain_spec, &provenance))?;
    let differences = prove(fp32_file.path(), &heads, &plain_spec, &probe, engine)?;

    let converted = match precision {
        Precision::Fp32 => None,
        _ => Some(convert(&mut graph, &spec, &options.precision, engine)?),
    };
    let converted_heads = HeadValues::of(&graph);
    // Images of all sizes need a file with dynamic sizes, with which the file itself is compared below.
    let plain_file = match converted {
        Some(_) if !options.form.is_free() => {
            Some(TemporaryModel::new("free", folder, &to_bytes(graph.clone(), &plain_spec, &provenance))?)
        }
        _ => None,
    };
    options.form.apply(&mut graph, &spec);
    let encoded = encode(graph, &spec, &provenance, precision, &options.file);
    let written = WrittenModel::new(encoded, &mut file)?;

    let report = converted.map(|converted| {
        let model = plain_file.as_ref().map_or(file.path(), TemporaryModel::path);
        let (fp32, file) = ((fp32_file.path(), &heads), (model, &converted_heads));
        let comparison = check(fp32, file, &spec, &options.precision, engine)?;
        Ok::<_, ExportError>(PrecisionReport { converted, comparison, fp32_ap: measure(fp32_file.path())? })
    });
    let precision_report = report.transpose()?;
    let form_differences = (!options.form.is_free()).then(|| {
        let model = plain_file.as_ref().unwrap_or(&fp32_file).path();
        form::check(model, file.path(), &probe.images, precision.rounding(), engine)
    });
    let form_differences = form_differences.transpose()?;
    let ap = measure(file.path())?;
    let fp32_ap = precision_report.as_ref().and_then(|report| report.fp32_ap);
    if let (Some(expected), Some(found), Some(max_drop)) = (fp32_ap, ap, options.max_ap_drop)
        && expected - found > max_drop
    {
        return Err(ExportError::ApDrop { precision, found, expected, max_drop });
    }
    file.commit()?;
    Ok(Exported { bytes: written.keep(), differences, precision_report, form_differences, ap })
}

/// The bytes of the plain float32 ONNX file, not verified.
///
/// # Errors
/// When a tensor is missing or has the wrong shape, or the spec has no classes or an unknown depth.
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

/// A model on disk that is deleted when dropped.
struct TemporaryModel(NamedTempFile);

impl TemporaryModel {
    fn new(name: &str, folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE_TO_COMPARE));
        }
        let mut file = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".partial").tempfile_in(folder)?;
        file.write_all(bytes)?;
        Ok(Self(file))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A model on disk that is not committed yet.
struct WrittenModel {
    bytes: usize,
    external: Option<ExternalFile>,
}

impl WrittenModel {
    fn new(encoded: Encoded, file: &mut AtomicFile) -> io::Result<Self> {
        let Encoded { model, external } = encoded;
        let folder = file.path().parent().unwrap_or(Path::new("."));
        let external = external.map(|external| external.write(folder)).transpose()?;
        if model.len() > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
        }
        file.write_all(&model)?;
        file.flush()?;
        Ok(Self { bytes: model.len(), external })
    }

    /// Keeps the external data. Returns the size of model and external data in bytes.
    fn keep(self) -> usize {
        self.bytes + self.external.map_or(0, ExternalFile::keep)
    }
}
