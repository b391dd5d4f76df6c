//! Exports a checkpoint to an ONNX file, and verifies it against libtorch's outputs before it gets its name.
//!
//! The network of `models` runs on values that record each operation ([`trace`]); batch norms are folded into the
//! convolutions before them ([`fold_batch_norms`]); graph and spec are encoded as an ONNX file; and ONNX Runtime must
//! reproduce the outputs in the checkpoint's probe with it ([`prove`]). [`export`] does all of it.

mod trace;
mod graph;
mod fold;
mod precision;
mod form;
mod opset;
mod external;
mod output;
mod model;
mod onnx;
mod heads;
mod proof;
mod accuracy;
mod export;
mod summary;
mod describe;
#[cfg(test)]
mod testing;

pub use accuracy::{Accuracy, AccuracyError};
pub use describe::{DescribeError, describe};
pub use export::{ExportError, ExportOptions, Exported, PrecisionReport, export, to_onnx};
pub use fold::fold_batch_norms;
pub use form::{FormDifferences, FormError, FormOptions, InputSize};
pub use heads::{HeadReader, HeadValues, NetworkOutputs};
pub use model::FileOptions;
pub use onnx::GraphProto;
pub use opset::Opset;
pub use output::OutputFile;
pub use precision::{
    CalibrationError, Comparison, Converted, Difference, Layers, Limits, Precision, PrecisionError, PrecisionOptions,
    Sensitivity, UnknownLayer, images,
};
pub use proof::{Differences, ProofError, TOLERANCE, prove};
pub use summary::{Summary, grouped};
pub use trace::trace;
