//! Why weights of other projects are refused.

use super::Kind;
use crate::checkpoint::TensorProblems;
use crate::spec::SpecError;
use crate::weights::WeightsError;

/// Why a file can't be imported.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// Nothing shows what the file is.
    #[error("nothing in it says which network it is{stranger}; it holds {names}; kinds: {}", Kind::ALL.map(Kind::name).join(", "))]
    Unknown {
        /// What it could be, if that is known.
        stranger: String,
        /// Some of its tensors.
        names: String,
    },
    /// The file is not of the kind that was said.
    #[error("it has no tensor `{tensor}`, which {kind} has; it holds {names}")]
    Absent {
        /// What was said.
        kind: Kind,
        /// The tensor by which the kind is known.
        tensor: &'static str,
        /// Some of its tensors.
        names: String,
    },
    /// The file holds several networks.
    #[error("it holds several networks of the kind {kind}: {places}; say which one with --key")]
    Several {
        /// What they are.
        kind: Kind,
        /// Where they are.
        places: String,
    },
    /// Two names in the file mean the same.
    #[error("`{first}` and `{second}` are both `{name}` of our network")]
    Twice {
        /// Our name.
        name: String,
        /// The one name.
        first: String,
        /// The other one.
        second: String,
    },
    /// The backbone is none of ours.
    #[error(
        "its backbone has {blocks:?} {} blocks in its stages, which no ResNet of depth 18, 34, 50, 101 or 152 has",
        if *bottleneck { "bottleneck" } else { "basic" }
    )]
    Depth {
        /// Blocks of the four stages.
        blocks: [usize; 4],
        /// Of which kind.
        bottleneck: bool,
    },
    /// The file has other anchors than its kind.
    #[error(
        "it has {found} anchors per cell, {kind} has {expected}; which anchors these are is not in the file, so it can't be \
         imported"
    )]
    Anchors {
        /// What it is.
        kind: Kind,
        /// Anchors of the kind.
        expected: usize,
        /// Rows of the boxes' output, divided by four.
        found: usize,
    },
    /// The file has no output that stands for a class, or too many.
    #[error("it has {found} outputs per anchor, of which none is a class, or which no network has")]
    Outputs {
        /// Rows of the scores' output, divided by anchors.
        found: usize,
    },
    /// The number of classes is not what a person says.
    #[error("the file has {outputs} classes, the list of classes {listed}")]
    Classes {
        /// Outputs per anchor, without background.
        outputs: usize,
        /// Classes that were given.
        listed: usize,
    },
    /// The tensors are not those of the network.
    #[error(
        "its tensors are not those of {kind}; {matched} are:{problems}{}",
        if problems.unexpected.is_empty() { "" } else { "\nshould the unexpected ones make no difference, --drop PREFIX leaves them out" }
    )]
    Tensors {
        /// What it is.
        kind: Kind,
        /// How many tensors fit.
        matched: usize,
        /// All of the differences, with names in the file.
        problems: TensorProblems,
    },
    /// A tensor that holds no real numbers.
    #[error("tensor `{name}` holds numbers of type {number}, expected F32, F64, F16 or BF16")]
    Number {
        /// Its name in the file.
        name: String,
        /// What its numbers are.
        number: String,
    },
    /// Numbers that no network can work with.
    #[error("tensor `{name}` holds {what}")]
    Values {
        /// Its name in the file.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The sizes make no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The sizes make no network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
