//! The export: trace, fold, encode, write, verify, convert to precision and variant, compare, commit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use models::onnx_contract::{CHECK_KEY, PROVEN_KEY};
use models::{Checkpoint, HeadOutputs, ModelSpec, Provenance, WeightsError};
use ndarray::{Array3, ArrayD};
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
    let ExportOptions { precision: conversion, variant, .. } = options;
    if conversion.precision == Precision::Int8 && conversion.calibration.is_empty() {
        return Err(ExportError::NoImages);
    }
    let spec = &variant.spec(&plain_spec)?;
    let graph = folded(&plain_spec, tensors)?;
    conversion.keep_float.check(&graph)?;
    let verifier = Verifier { engine, probe: &probe };
    let export = Export { options, spec, provenance: &provenance, verifier, file };
    if conversion.precision == Precision::Fp32 && variant.is_free() {
        export.plain(graph, on_progress)
    } else {
        export.converted(graph, on_progress)
    }
}

/// An export whose options have been checked.
struct Export<'a> {
    options: &'a ExportOptions,
    /// The spec of the file, and of those with which it is compared.
    spec: &'a ModelSpec,
    provenance: &'a Provenance,
    verifier: Verifier<'a>,
    file: OutputFile,
}

impl Export<'_> {
    /// Exports the plain float32 file.
    fn plain(self, graph: GraphProto, on_progress: OnProgress) -> Result<Exported, ExportError> {
        let model = NetworkFile::new(self.file.path(), &graph);
        let (mut written, outputs) = self.write(graph)?;
        let (differences, expected) = self.verifier.prove(&model, self.spec, &self.image())?;
        written.append_check(outputs, &expected, (Precision::Fp32, f32::NEG_INFINITY), &self.file)?;
        let ap = self.measure_ap(&model.path, on_progress)?;
        let (bytes, proven) = self.commit(written)?;
        Ok(Exported { bytes, differences, precision_report: None, variant_differences: None, ap, proven })
    }

    /// Exports a file of another precision or variant, and compares it with the plain float32 file.
    fn converted(self, mut graph: GraphProto, on_progress: OnProgress) -> Result<Exported, ExportError> {
        let ExportOptions { precision: conversion, variant, .. } = self.options;
        let precision = conversion.precision;
        let fp32 = self.temporary("fp32.onnx", &graph)?;
        let (differences, expected) = self.verifier.prove(&fp32, self.spec, &self.image())?;
        let converted = conversion.convert(&mut graph, self.spec, self.verifier.engine, on_progress)?;
        // Images of all sizes need a file with dynamic sizes, with which the file itself is compared below.
        let plain = match (precision, variant.is_free()) {
            (Precision::Fp32, _) => None,
            (_, true) => Some(NetworkFile::new(self.file.path(), &graph)),
            (_, false) => Some(self.temporary("plain.onnx", &graph)?),
        };
        let converted_graph = graph.clone();
        variant.apply(&mut graph, self.spec);
        let (mut written, outputs) = self.write(graph)?;
        written.append_check(outputs, &expected, (precision, conversion.lowest_logit(self.spec)), &self.file)?;

        let comparison = match &plain {
            Some(plain) => Some(self.verifier.compare_precision(&fp32, plain, self.spec, conversion)?),
            None => None,
        };
        let variant_differences = match variant.is_free() {
            true => None,
            false => Some(self.compare_variant(plain.as_ref().unwrap_or(&fp32), &converted_graph)?),
        };
        let fp32_ap = match &comparison {
            Some(_) => self.measure_ap(&fp32.path, on_progress)?,
            None => None,
        };
        let ap = self.measure_ap(&self.file.path(), on_progress)?;
        if let (Some(expected), Some(found), Some(max_drop)) = (fp32_ap, ap, self.options.max_ap_drop)
            && expected - found > max_drop
        {
            return Err(ExportError::ApDrop { precision, found, expected, max_drop });
        }
        let precision_report = comparison.map(|comparison| PrecisionReport { converted, comparison, fp32_ap });
        let (bytes, proven) = self.commit(written)?;
        Ok(Exported { bytes, differences, precision_report, variant_differences, ap, proven })
    }

    /// The image of the file's check.
    fn image(&self) -> Array3<f32> {
        Check::image(&self.spec.preprocessing, self.options.variant.size())
    }

    /// Writes a plain file to compare with.
    fn temporary(&self, name: &str, graph: &GraphProto) -> Result<NetworkFile, ExportError> {
        let path = self.file.folder().join(name);
        write(&path, &to_bytes(graph.clone(), self.spec, self.provenance), TOO_LARGE_TO_COMPARE)?;
        Ok(NetworkFile::new(path, graph))
    }

    /// Writes the file. Also returns the outputs of its check.
    fn write(&self, graph: GraphProto) -> io::Result<(WrittenModel, Vec<u8>)> {
        if let Some(name) = self.file.model_name() {
            fs::write(self.file.config(), triton::config(name, &graph))?;
        }
        let outputs = checked_values(&graph);
        let precision = self.options.precision.precision;
        let encoded = encode(graph, self.spec, self.provenance, precision, &self.options.file);
        Ok((WrittenModel::new(encoded, &self.file)?, outputs))
    }

    /// Compares the file with the plain one of its precision, which has the graph `plain_graph`.
    fn compare_variant(
        &self,
        plain: &NetworkFile,
        plain_graph: &GraphProto,
    ) -> Result<VariantDifferences, ExportError> {
        let ExportOptions { precision: PrecisionOptions { precision, .. }, variant, file, .. } = self.options;
        let with_threshold = |score_threshold: f32| {
            let (mut graph, mut spec) = (plain_graph.clone(), self.spec.clone());
            spec.postprocessing.score_threshold = score_threshold;
            variant.apply(&mut graph, &spec);
            let options = FileOptions { external_data: None, ..file.clone() };
            encode(graph, &spec, self.provenance, *precision, &options).model
        };
        let with_threshold: Option<&dyn Fn(f32) -> Vec<u8>> =
            if variant.selects() { Some(&with_threshold) } else { None };
        self.verifier.compare_variant(&plain.path, &self.file.path(), *precision, with_threshold)
    }

    /// The AP of a file, if it is to be measured.
    fn measure_ap(&self, model: &Path, on_progress: OnProgress) -> Result<Option<f64>, ExportError> {
        match &self.options.accuracy {
            Some(accuracy) => Ok(Some(accuracy.of(model, self.verifier.engine, on_progress)?)),
            None => Ok(None),
        }
    }

    /// Proves the file on providers, and gives it its name. Returns its size, and the proofs.
    fn commit(self, mut written: WrittenModel) -> Result<(usize, Vec<ProviderCheck>), ExportError> {
        let proven = written.prove_on(&self.options.providers, self.verifier, &self.file)?;
        self.file.commit(written.data.as_deref())?;
        Ok((written.bytes, proven))
    }
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

    /// Appends the check to the file's metadata: `expected` is what float32 computes for its image, without logits below
    /// `lowest`, and `outputs` adds the values to compare with it.
    fn append_check(
        &mut self,
        outputs: Vec<u8>,
        expected: &HeadOutputs,
        (precision, lowest): (Precision, f32),
        file: &OutputFile,
    ) -> io::Result<()> {
        let logits: Vec<f32> = expected.logits.iter().map(|logit| logit.max(lowest)).collect();
        let offsets: Vec<f32> = expected.offsets.iter().copied().collect();
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
