//! Errors of importing weights of other projects.

use super::kind::Kind;
use crate::checkpoint::TensorProblems;
use crate::spec::{SpecError, preset_names};
use crate::weights::WeightsError;

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The kind is not recognized.
    #[error("unknown kind of weights{guess}; it contains {names}; kinds: {}", Kind::ALL.map(Kind::name).join(", "))]
    Unknown {
        /// What it looks like, as part of the message; empty if unknown.
        guess: String,
        /// Names of some of its tensors.
        names: String,
    },
    /// The file is not of the requested kind.
    #[error("it has no tensor `{tensor}`, which {kind} requires; it contains {names}")]
    Absent {
        /// The requested kind.
        kind: Kind,
        /// The tensor by which the kind is recognized.
        tensor: &'static str,
        /// Names of some of its tensors.
        names: String,
    },
    /// The file contains several networks.
    #[error("it contains several networks of kind {kind}: {places}")]
    Several {
        /// Their kind.
        kind: Kind,
        /// Their entries in the file.
        places: String,
    },
    /// Two names in the file have the same name in our network.
    #[error("`{first}` and `{second}` both map to `{name}`")]
    Twice {
        /// Our name.
        name: String,
        /// One name in the file.
        first: String,
        /// The other one.
        second: String,
    },
    /// The backbone is not supported.
    #[error(
        "its backbone has stages of {blocks:?} {} blocks, expected those of {}",
        if *bottleneck { "bottleneck" } else { "basic" }, preset_names().join(", ")
    )]
    Depth {
        /// Blocks of the four stages.
        blocks: [usize; 4],
        /// Whether they are bottleneck blocks.
        bottleneck: bool,
    },
    /// The file has another number of anchors than its kind.
    #[error(
        "it has {found} anchors per cell, {kind} has {expected}; other anchors cannot be imported, because their sizes and \
         ratios are not in the file"
    )]
    Anchors {
        /// Its kind.
        kind: Kind,
        /// Anchors of the kind.
        expected: usize,
        /// Output channels of the box head, divided by four.
        found: usize,
    },
    /// No output belongs to a class, or there are too many.
    #[error("it has {found} outputs per anchor: none of them belongs to a class, or the number is implausible")]
    Outputs {
        /// Output channels of the classification head, divided by anchors per cell.
        found: usize,
    },
    /// The number of classes is not that of the given list.
    #[error("it has {outputs} {}, but {listed} classes are listed", if *background { "outputs besides the background" } else { "outputs per anchor" })]
    Classes {
        /// Outputs per anchor, without the background if there is one.
        outputs: usize,
        /// Whether there is a background.
        background: bool,
        /// Classes in the list.
        listed: usize,
    },
    /// It is unknown whether output 0 is a class or a background.
    #[error(
        "it has {outputs} outputs per anchor: {outputs} classes with labels from 0, or {} with labels from 1 and a background \
         that was never trained; the file does not say which",
        outputs - 1
    )]
    Background {
        /// Outputs per anchor, at least two.
        outputs: usize,
    },
    /// The labels in the file are not those of its outputs.
    #[error("its `{place}` names the outputs {found}, but it has {outputs} per anchor; expected 0 to {}", outputs.saturating_sub(1))]
    Labels {
        /// Where the labels stand.
        place: String,
        /// The outputs that they name.
        found: String,
        /// Outputs per anchor.
        outputs: usize,
    },
    /// The tensors do not match those of the network.
    #[error("its tensors do not match kind {kind} ({matched} do):{problems}")]
    Tensors {
        /// Its kind.
        kind: Kind,
        /// Number of tensors that match.
        matched: usize,
        /// All of the differences, with names in the file.
        problems: TensorProblems,
    },
    /// A tensor is not of a floating-point type.
    #[error("tensor `{name}` has type {dtype}, expected F32, F64, F16 or BF16")]
    Dtype {
        /// Its name in the file.
        name: String,
        /// Type of its values.
        dtype: String,
    },
    /// A tensor contains values that no network can use.
    #[error("tensor `{name}` contains {what}")]
    Values {
        /// Its name in the file.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The spec read from names and shapes is invalid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No network can be built from the spec.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
