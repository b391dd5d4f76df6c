//! Errors of opening and running a detector.

use models::RgbViewError;

use crate::engine::EngineError;
use crate::rules::RuleError;
use crate::views::TilingError;

/// Error of opening or running a [`Detector`](crate::Detector).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectorError {
    /// The network cannot be opened, or cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A rule is invalid, or does not fit the model.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The tiling is invalid.
    #[error(transparent)]
    Tiling(#[from] TilingError),
    /// The image has no pixels.
    #[error(transparent)]
    Image(#[from] RgbViewError),
    /// The file fixes a smaller batch size.
    #[error(
        "a batch size of {requested} exceeds the model's of {max}; lower it, or export the model with a larger one"
    )]
    Batch {
        /// The requested maximum.
        requested: usize,
        /// The file's batch size.
        max: usize,
    },
    /// The network's number of anchors differs from its spec's.
    #[error(
        "the model has {found} anchors for an input of {width}x{height}, but its spec has {expected}; export it again"
    )]
    Anchors {
        /// Anchors of the network.
        found: usize,
        /// Anchors of the spec.
        expected: usize,
        /// Width of the input, in pixels.
        width: usize,
        /// Height of the input, in pixels.
        height: usize,
    },
    /// The network outputs an invalid anchor or class index.
    #[error(
        "the model outputs anchor {anchor} and class {class}, but for an input of {width}x{height} its spec has {anchors} \
         anchors and {classes} classes; export it again"
    )]
    Candidate {
        /// Anchor index from the network.
        anchor: i64,
        /// Class index from the network.
        class: i64,
        /// Number of anchors in the spec.
        anchors: usize,
        /// Number of classes in the spec.
        classes: usize,
        /// Width of the input, in pixels.
        width: usize,
        /// Height of the input, in pixels.
        height: usize,
    },
    /// The network outputs 2^32 scores per image or more.
    #[error("the model outputs {0} scores per image, expected fewer than 2^32; use a smaller input or fewer classes")]
    Scores(usize),
}
