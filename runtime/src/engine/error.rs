//! Why an engine cannot be had, or cannot run.

use super::SIDE_MULTIPLE;
use crate::library::LibraryError;
use crate::provider::Provider;

/// Why an engine cannot be had, or cannot run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// ONNX Runtime's library.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The file cannot be read.
    #[error("cannot read model `{model}`: {reason}; name a file that `exporter --out FILE.onnx` wrote")]
    Read {
        /// The file.
        model: String,
        /// What the system says.
        reason: String,
    },
    /// Not an ONNX file, or one of other making.
    #[error("`{model}` is no detector of ours: {reason}; name a file that `exporter --out FILE.onnx` wrote")]
    Foreign {
        /// The file.
        model: String,
        /// What is missing or different.
        reason: String,
    },
    /// The provider that was named does not work here.
    #[error("provider `{provider}` cannot start: {reason}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// What is missing, and what to do.
        reason: String,
    },
    /// An option that does not fit the others.
    #[error("{option} cannot be used with provider `{provider}`: {reason}")]
    Option {
        /// What was asked for.
        option: &'static str,
        /// The provider.
        provider: Provider,
        /// Why not.
        reason: String,
    },
    /// ONNX Runtime refuses to make a session.
    #[error("ONNX Runtime cannot load `{model}` on `{provider}`: {reason}")]
    Session {
        /// The file.
        model: String,
        /// What was to run it.
        provider: Provider,
        /// ONNX Runtime's words.
        reason: String,
    },
    /// The input does not have a shape that the network takes.
    #[error("input has shape {found:?}, expected [N, 3, H, W] with H and W multiples of {SIDE_MULTIPLE}, nothing zero")]
    Input {
        /// The shape.
        found: Vec<usize>,
    },
    /// The file was exported for inputs of another size.
    #[error(
        "input is {}x{}, and the model takes {}x{} (height x width) alone; resize by its spec, or export it without \
         --input-size", .found[0], .found[1], .expected[0], .expected[1]
    )]
    Size {
        /// Height and width of the input.
        found: [usize; 2],
        /// Height and width that the file fixes.
        expected: [usize; 2],
    },
    /// The file was exported for fewer pictures at a time.
    #[error(
        "{found} pictures are more than the {most} that the model takes at a time; run fewer, or export it with another --batch"
    )]
    Batch {
        /// Pictures of the input.
        found: usize,
        /// Pictures that the file fixes.
        most: usize,
    },
    /// Scores of all anchors were asked of a file that does not have them.
    #[error(
        "the model hands over only its best candidates; export it without --top-k to have the scores of all anchors"
    )]
    OnlyCandidates,
    /// ONNX Runtime stopped.
    #[error("ONNX Runtime failed on an input of shape {shape:?}: {reason}")]
    Run {
        /// The input's shape.
        shape: Vec<usize>,
        /// ONNX Runtime's words.
        reason: String,
    },
    /// The network computed something of another shape than its file promises.
    #[error("output `{name}` has shape {found:?}, expected {expected:?}; export the model again")]
    Output {
        /// Name of the output.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits the input and the spec.
        expected: Vec<usize>,
    },
}

/// What ONNX Runtime says, on one line and without the place in its source.
pub(crate) fn words<R>(error: &ort::Error<R>) -> String {
    let message = error.message();
    // `file.cc:1988 function [ONNXRuntimeError] : 1 : FAIL : words`
    let message = message
        .rsplit_once("[ONNXRuntimeError] : ")
        .map_or(message, |(_, status)| status.splitn(3, " : ").last().unwrap_or(status));
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
