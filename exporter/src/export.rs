//! The export: trace, fold, encode, write, prove, keep.

use std::collections::BTreeMap;
use std::io::{self, Write};

use models::{AtomicFile, Checkpoint, ModelSpec, Provenance, WeightsError};
use ndarray::ArrayD;
use runtime::EngineOptions;

use crate::fold::fold_batch_norms;
use crate::model::encode;
use crate::proof::{Differences, ProofError, prove};
use crate::trace::trace;

/// What came of an export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exported {
    /// Size of the file in bytes.
    pub bytes: usize,
    /// How far ONNX Runtime is from libtorch on the checkpoint's probe.
    pub differences: Differences,
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
}

/// Writes the checkpoint's detector into `file`, proves it, and gives it its name.
///
/// No two copies of the weights outlive a step: they move from the checkpoint into the graph and into the file, and are
/// gone before ONNX Runtime loads its own.
///
/// # Errors
/// When the weights do not fit the spec, the file can't be written, or the proof fails.
pub fn export(checkpoint: Checkpoint, mut file: AtomicFile, engine: &EngineOptions) -> Result<Exported, ExportError> {
    let Checkpoint { spec, provenance, tensors, probe } = checkpoint;
    let model = to_onnx(&spec, tensors, &provenance)?;
    file.write_all(&model)?;
    file.flush()?;
    let bytes = model.len();
    drop(model);
    let differences = prove(file.path(), &probe, engine)?;
    file.commit()?;
    Ok(Exported { bytes, differences })
}

/// The bytes of an ONNX file, unproven.
///
/// # Errors
/// When a tensor is missing or misshapen, or the spec has no classes or an unknown depth.
pub fn to_onnx(
    spec: &ModelSpec,
    tensors: BTreeMap<String, ArrayD<f32>>,
    provenance: &Provenance,
) -> Result<Vec<u8>, WeightsError> {
    let mut graph = trace(spec, tensors)?;
    fold_batch_norms(&mut graph);
    Ok(encode(graph, spec, provenance))
}
