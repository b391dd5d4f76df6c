//! From a checkpoint to an ONNX file that is proven equal to what libtorch computed, before it gets its name.
//!
//! The network of `models` runs on values that record what happens to them ([`trace`]); batch normalizations become part
//! of the convolutions before them ([`fold_batch_norms`]); the graph and the spec become a file ([`encode`]); and the file
//! computes the checkpoint's probe in ONNX Runtime ([`prove`]). [`export`] does all of it.

mod trace;
mod graph;
mod fold;
mod precision;
mod form;
mod opset;
mod external;
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
pub use export::{ExportError, ExportOptions, Exported, Loss, export, to_onnx};
pub use fold::fold_batch_norms;
pub use form::{FormDifferences, FormError, FormOptions, InputSize};
pub use graph::{Attribute, Constant, ElementType, Elements, Graph, Node, Port, Side};
pub use heads::{Answer, HeadReader, HeadValues};
pub use model::FileOptions;
pub use opset::Opset;
pub use precision::{
    CalibrationError, Comparison, Converted, Difference, Layers, Limits, Precision, PrecisionError, PrecisionOptions,
    RangeRule, Sensitivity, UnknownLayer, images,
};
pub use proof::{Differences, ProofError, TOLERANCE, prove};
pub use summary::{Summary, grouped};
pub use trace::trace;
