//! The export: trace, fold, encode, write, verify, convert to precision and variant, compare, commit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use models::onnx_contract::{CHECK_KEY, PROVEN_KEY};
use models::{Checkpoint, HeadOutputs, ModelSpec, Provenance, WeightsError};
use ndarray::ArrayD;
use runtime::{Check, Engine, EngineOptions, Provider};

use crate::accuracy::Accuracy;
use crate::error::ExportError;
use crate::fold::fold_batch_norms;
use crate::inputs::OnProgress;
use crate::model::{Encoded, FileOptions, encode, metadata};
use crate::onnx::GraphProto;
use crate::output::OutputFile;
use crate::precision::{Converted, Precision, PrecisionOptions};
use crate::trace::trace;
use crate::triton;
use crate::variant::VariantOptions;
use crate::verify::{
    Comparison, Differences, Limits, NetworkFile, ProviderCheck, VariantDifferences, Verifier, checked_values,
};

/// Maximum size of a protocol buffer in bytes.
const MAX_BYTES: usize = i32::MAX as usize;

/// Error of a larger file.
const TOO_LARGE: &str = "an ONNX file cannot exceed 2 GB; store the weights in a separate file with --external-data";

/// Error of a larger file to compare with.
const TOO_LARGE_TO_COMPARE: &str = "an ONNX file cannot exceed 2 GB, so the plain file to compare with cannot be written; \
                                    omit --precision and the flags of \"Model inputs and outputs\"";

/// Options of an export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Precision of the network.
    pub precision: PrecisionOptions,
    /// Variant of the file.
    pub variant: VariantOptions,
    /// Options of the file that do not change what it computes.
    pub file: FileOptions,
    /// Data set to measure the file's AP on; not measured if absent.
    pub accuracy: Option<Accuracy>,
    /// Maximum loss of AP against float32; no limit if absent.
    pub max_ap_drop: Option<f64>,
    /// Providers to prove the file on.
    pub providers: Vec<Provider>,
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
    pub variant_differences: Option<VariantDifferences>,
    /// The AP of the file, in [0, 1], if it was measured.
    pub ap: Option<f64>,
    /// Differences of the file on each of the providers, or why the provider does not work on this machine.
    pub proven: Vec<ProviderCheck>,
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

/// Exports a checkpoint to `file`, verifies the file, and commits it. Long steps call `on_progress` for every image.
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
    on_progress: OnProgress,
) -> Result<Exported, ExportError> {
    let Checkpoint { spec: plain_spec, provenance, tensors, probe } = checkpoint;
    let ExportOptions { precision: conversion, variant, accuracy, max_ap_drop, .. } = options;
    let precision = conversion.precision;
    if precision == Precision::Int8 && conversion.calibration.is_empty() {
        return Err(ExportError::NoImages);
    }
    let spec = variant.spec(&plain_spec)?;
    let mut graph = folded(&plain_spec, tensors)?;
    conversion.keep_float.check(&graph)?;
    let verifier = Verifier { engine, probe: &probe };
    let image = Check::image(&spec.preprocessing, variant.size());
    if precision == Precision::Fp32 && variant.is_free() {
        let model = NetworkFile::new(file.path(), &graph);
        write_config(&graph, &file)?;
        let outputs = checked_values(&graph);
        let mut written = WrittenModel::new(encode(graph, &spec, &provenance, precision, &options.file), &file)?;
        let (differences, expected) = verifier.prove(&model, &spec, &image)?;
        written.append_check(outputs, &expected, precision, &file)?;
        let ap = match accuracy {
            Some(accuracy) => Some(accuracy.of(&model.path, engine, on_progress)?),
            None => None,
        };
        let proven = written.prove_on(&options.providers, verifier, &file)?;
        file.commit(written.data.as_deref())?;
        let bytes = written.bytes;
        return Ok(Exported { bytes, differences, precision_report: None, variant_differences: None, ap, proven });
    }

    let temporary = |name: &str, graph: &GraphProto| -> Result<NetworkFile, ExportError> {
        let path = file.folder().join(name);
        write(&path, &to_bytes(graph.clone(), &plain_spec, &provenance), TOO_LARGE_TO_COMPARE)?;
        Ok(NetworkFile::new(path, graph))
    };
    let fp32 = temporary("fp32.onnx", &graph)?;
    let (differences, expected) = verifier.prove(&fp32, &plain_spec, &image)?;
    let converted = conversion.convert(&mut graph, &spec, engine, on_progress)?;
    // Images of all sizes need a file with dynamic sizes, with which the file itself is compared below.
    let plain = match (precision, variant.is_free()) {
        (Precision::Fp32, _) => None,
        (_, true) => Some(NetworkFile::new(file.path(), &graph)),
        (_, false) => Some(temporary("plain.onnx", &graph)?),
    };
    let converted_graph = graph.clone();
    variant.apply(&mut graph, &spec);
    write_config(&graph, &file)?;
    let outputs = checked_values(&graph);
    let mut written = WrittenModel::new(encode(graph, &spec, &provenance, precision, &options.file), &file)?;
    written.append_check(outputs, &expected, precision, &file)?;

    let comparison = match &plain {
        Some(plain) => Some(verifier.compare_precision(&fp32, plain, &spec, conversion)?),
        None => None,
    };
    let plain = plain.as_ref().unwrap_or(&fp32);
    let variant_differences = match variant.is_free() {
        true => None,
        false => {
            let with_threshold = |score_threshold: f32| {
                let (mut graph, mut spec) = (converted_graph.clone(), spec.clone());
                spec.postprocessing.score_threshold = score_threshold;
                variant.apply(&mut graph, &spec);
                let options = FileOptions { external_data: None, ..options.file.clone() };
                encode(graph, &spec, &provenance, precision, &options).model
            };
            let with_threshold: Option<&dyn Fn(f32) -> Vec<u8>> =
                if variant.selects() { Some(&with_threshold) } else { None };
            Some(verifier.compare_variant(&plain.path, &file.path(), precision, with_threshold)?)
        }
    };
    let [mut fp32_ap, mut ap] = [None; 2];
    if let Some(accuracy) = accuracy {
        if comparison.is_some() {
            fp32_ap = Some(accuracy.of(&fp32.path, engine, on_progress)?);
        }
        ap = Some(accuracy.of(&file.path(), engine, on_progress)?);
    }
    if let (Some(expected), Some(found), &Some(max_drop)) = (fp32_ap, ap, max_ap_drop)
        && expected - found > max_drop
    {
        return Err(ExportError::ApDrop { precision, found, expected, max_drop });
    }
    let proven = written.prove_on(&options.providers, verifier, &file)?;
    file.commit(written.data.as_deref())?;
    let precision_report = comparison.map(|comparison| PrecisionReport { converted, comparison, fp32_ap });
    Ok(Exported { bytes: written.bytes, differences, precision_report, variant_differences, ap, proven })
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

/// Writes the bytes of an ONNX file. `too_large` is the error of a file that exceeds the format.
fn write(path: &Path, bytes: &[u8], too_large: &str) -> io::Result<()> {
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large));
    }
    fs::write(path, bytes)
}

/// Writes the configuration of a model in a repository.
fn write_config(graph: &GraphProto, file: &OutputFile) -> io::Result<()> {
    match file.model_name() {
        Some(name) => fs::write(file.config(), triton::config(name, graph)),
        None => Ok(()),
    }
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
        let data_bytes = external.as_ref().map_or(Ok(0), |external| external.write(file.folder()))?;
        write(&file.path(), &model, TOO_LARGE)?;
        Ok(Self { bytes: model.len() + data_bytes, data: external.map(|external| external.name) })
    }

    /// Appends the check to the file's metadata: `expected` is what float32 computes for its image, and `outputs` adds the values
    /// to compare with it.
    fn append_check(
        &mut self,
        outputs: Vec<u8>,
        expected: &HeadOutputs,
        precision: Precision,
        file: &OutputFile,
    ) -> io::Result<()> {
        let [logits, offsets] =
            [&expected.logits, &expected.offsets].map(|rows| rows.iter().copied().collect::<Vec<_>>());
        let check = Check::new(outputs, &logits, &offsets, Limits::on_any_provider(precision));
        self.append(file, [(CHECK_KEY.to_owned(), check.to_json()?)])
    }

    /// Proves the file on providers, and appends the results to its metadata.
    fn prove_on(
        &mut self,
        providers: &[Provider],
        verifier: Verifier,
        file: &OutputFile,
    ) -> Result<Vec<ProviderCheck>, ExportError> {
        let proven = verifier.prove_on(providers, |options| Check::run(&file.path(), options))?;
        let version = match providers {
            [] => return Ok(proven),
            _ => Engine::open(file.path(), verifier.engine)?.library().version.clone(),
        };
        let entries = proven.iter().filter_map(|(provider, report)| {
            let report = report.as_ref().ok()?;
            Some((format!("{PROVEN_KEY}{provider}"), format!("ONNX Runtime {version}: {report}")))
        });
        self.append(file, entries)?;
        Ok(proven)
    }

    /// Appends entries to the file's metadata. Nothing else in the file changes.
    fn append(&mut self, file: &OutputFile, entries: impl IntoIterator<Item = (String, String)>) -> io::Result<()> {
        let entries = metadata(entries);
        self.bytes += entries.len();
        File::options().append(true).open(file.path())?.write_all(&entries)
    }
}
