//! The export: trace, fold, encode, write, verify, convert to precision and variant, compare, commit.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use models::{Checkpoint, ModelSpec, Provenance, WeightsError};
use ndarray::ArrayD;
use runtime::EngineOptions;

use crate::accuracy::{Accuracy, AccuracyError};
use crate::fold::fold_batch_norms;
use crate::form::{self, FormDifferences, FormError, FormOptions};
use crate::heads::HeadValues;
use crate::model::{Encoded, FileOptions, encode};
use crate::onnx::GraphProto;
use crate::output::OutputFile;
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
    file: OutputFile,
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
        let written = WrittenModel::new(encoded, &file)?;
        let differences = prove(&file.path(), &heads, &spec, &probe, engine)?;
        let ap = measure(&file.path())?;
        file.commit(written.data.as_deref())?;
        let bytes = written.bytes;
        return Ok(Exported { bytes, differences, precision_report: None, form_differences: None, ap });
    }

    let path = file.path();
    let fp32_file = file.folder().join("fp32.onnx");
    write_temporary(&fp32_file, &to_bytes(graph.clone(), &plain_spec, &provenance))?;
    let differences = prove(&fp32_file, &heads, &plain_spec, &probe, engine)?;

    let converted = match precision {
        Precision::Fp32 => None,
        _ => Some(convert(&mut graph, &spec, &options.precision, engine)?),
    };
    let converted_heads = HeadValues::of(&graph);
    // Images of all sizes need a file with dynamic sizes, with which the file itself is compared below.
    let plain_file = match converted {
        Some(_) if !options.form.is_free() => {
            let path = file.folder().join("plain.onnx");
            write_temporary(&path, &to_bytes(graph.clone(), &plain_spec, &provenance))?;
            Some(path)
        }
        _ => None,
    };
    options.form.apply(&mut graph, &spec);
    let encoded = encode(graph, &spec, &provenance, precision, &options.file);
    let written = WrittenModel::new(encoded, &file)?;

    let report = converted.map(|converted| {
        let model = plain_file.as_ref().unwrap_or(&path);
        let (fp32, file) = ((fp32_file.as_path(), &heads), (model.as_path(), &converted_heads));
        let comparison = check(fp32, file, &spec, &options.precision, engine)?;
        Ok::<_, ExportError>(PrecisionReport { converted, comparison, fp32_ap: measure(&fp32_file)? })
    });
    let precision_report = report.transpose()?;
    let form_differences = (!options.form.is_free()).then(|| {
        let model = plain_file.as_ref().unwrap_or(&fp32_file);
        form::check(model, &path, &probe.images, precision.rounding(), engine)
    });
    let form_differences = form_differences.transpose()?;
    let ap = measure(&path)?;
    let fp32_ap = precision_report.as_ref().and_then(|report| report.fp32_ap);
    if let (Some(expected), Some(found), Some(max_drop)) = (fp32_ap, ap, options.max_ap_drop)
        && expected - found > max_drop
    {
        return Err(ExportError::ApDrop { precision, found, expected, max_drop });
    }
    file.commit(written.data.as_deref())?;
    Ok(Exported { bytes: written.bytes, differences, precision_report, form_differences, ap })
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

fn to_bytes(graph: GraphProto, spec: &ModelSpec, provenance: &Provenance) -> Vec<u8> {
    encode(graph, spec, provenance, Precision::Fp32, &FileOptions::default()).model
}

fn folded(spec: &ModelSpec, tensors: BTreeMap<String, ArrayD<f32>>) -> Result<GraphProto, WeightsError> {
    let mut graph = trace(spec, tensors)?;
    fold_batch_norms(&mut graph);
    Ok(graph)
}

/// Writes a plain float32 or converted file to compare with.
fn write_temporary(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE_TO_COMPARE));
    }
    fs::write(path, bytes)
}

/// A model on disk that is not committed yet.
struct WrittenModel {
    /// Size of model and external data.
    bytes: usize,
    /// Name of the external data file.
    data: Option<String>,
}

impl WrittenModel {
    fn new(encoded: Encoded, file: &OutputFile) -> io::Result<Self> {
        let Encoded { model, external } = encoded;
        if model.len() > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
        }
        let data_bytes = external.as_ref().map_or(Ok(0), |external| external.write(file.folder()))?;
        fs::write(file.path(), &model)?;
        Ok(Self { bytes: model.len() + data_bytes, data: external.map(|external| external.name) })
    }
}
