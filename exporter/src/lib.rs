//! Exports a checkpoint to an ONNX file, and verifies it against libtorch's outputs before it gets its name.
//!
//! The network of `models` runs on values that record each operation ([`trace`]); batch norms are folded into the
//! convolutions before them ([`fold_batch_norms`]); graph and spec are encoded as an ONNX file; and ONNX Runtime must
//! reproduce the outputs in the checkpoint's probe with it. [`export`] does all of it.

mod trace;
mod graph;
mod fold;
mod precision;
mod variant;
mod opset;
mod external;
mod output;
mod triton;
mod model;
mod onnx;
mod inputs;
mod verify;
mod accuracy;
mod error;
mod export;
mod summary;
mod describe;
#[cfg(test)]
mod testing;

pub use accuracy::Accuracy;
pub use describe::{DescribeError, describe};
pub use error::ExportError;
pub use export::{ExportOptions, Exported, PrecisionReport, export, to_onnx};
pub use fold::fold_batch_norms;
pub use inputs::{MeasureError, OnProgress, images};
pub use model::FileOptions;
pub use onnx::GraphProto;
pub use opset::Opset;
pub use output::OutputFile;
pub use precision::{Converted, Layers, Precision, PrecisionOptions, Sensitivity, UnknownLayer};
pub use summary::{Summary, with_commas};
pub use trace::trace;
pub use variant::{InputSize, InputType, VariantOptions};
pub use verify::{
    Comparison, Difference, Differences, HeadReader, HeadValues, Limits, NetworkOutputs, ProviderCheck, TOLERANCE,
    VariantDifferences,
};
