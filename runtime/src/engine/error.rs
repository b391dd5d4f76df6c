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
    /// The GPU's provider lacks some of the model's operators, which were not to run on the CPU.
    #[error("some operators of `{model}` are none of provider `{provider}`")]
    Fallback {
        /// The file.
        model: String,
        /// The provider.
        provider: Provider,
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
    /// The file was exported for fewer images at a time.
    #[error(
        "{found} images are more than the {most} that the model takes at a time; run fewer, or export it with another --batch-size"
    )]
    Batch {
        /// Images of the input.
        found: usize,
        /// Images that the file fixes.
        most: usize,
    },
    /// Scores of all anchors were asked of a file that does not have them.
    #[error(
        "the model hands over only its best candidates; export it without --top-k to have the scores of all anchors"
    )]
    OnlyCandidates,
    /// The network needs more memory than there is.
    #[error("not enough memory for an input of shape {shape:?}: {reason}; run fewer images at a time, or smaller ones")]
    Memory {
        /// The input's shape.
        shape: Vec<usize>,
        /// ONNX Runtime's words.
        reason: String,
    },
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

impl EngineError {
    /// Why a run on an input of this shape failed.
    pub(crate) fn run(shape: &[usize], error: &ort::Error) -> Self {
        let (shape, reason) = (shape.to_vec(), words(error));
        match of_memory(&reason) {
            Some(reason) => Self::Memory { shape, reason: reason.to_owned() },
            None => Self::Run { shape, reason },
        }
    }
}

/// The part of a reason that says that memory is wanting.
fn of_memory(reason: &str) -> Option<&str> {
    // ONNX Runtime's arena, its limit, CUDA, cuDNN, cuBLAS and C++ say it differently.
    const WORDS: [&str; 6] = [
        "Failed to allocate memory",
        "Available memory of",
        "out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ];
    WORDS.iter().find_map(|words| Some(&reason[reason.find(words)?..]))
}

/// What ONNX Runtime says, on one line and without the place in its source.
pub(crate) fn words<R>(error: &ort::Error<R>) -> String {
    plain(error.message())
}

fn plain(message: &str) -> String {
    // `file.cc:1988 function [ONNXRuntimeError] : 1 : FAIL : words`
    let message = message
        .rsplit_once("[ONNXRuntimeError] : ")
        .map_or(message, |(_, status)| status.splitn(3, " : ").last().unwrap_or(status));
    // `function CUDA failure 2: out of memory ; GPU=0 ; hostname=.. ; file=.. ; line=.. ; expr=..`
    let message = message.split_once(" ; GPU=").map_or(message, |(failure, _)| {
        let library = failure.find(" failure ").and_then(|end| failure[..end].rfind(' '));
        library.map_or(failure, |space| &failure[space..])
    });
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_without_the_place_in_the_source() {
        let cases = [
            ("it is broken", "it is broken"),
            ("a.cc:9 Load [ONNXRuntimeError] : 1 : FAIL : it is\n broken", "it is broken"),
            (
                "options.h:187 Parse Failed to parse \"device_id\": CUDA failure 100: no device ; GPU=-1 ; hostname=vm ; line=69",
                "CUDA failure 100: no device",
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(plain(message), expected);
        }
    }

    #[test]
    fn want_of_memory_is_told_from_other_reasons() {
        let arena = "Status Message: a.cc:360 f() Failed to allocate memory for requested buffer of size 9";
        assert_eq!(of_memory(arena), Some("Failed to allocate memory for requested buffer of size 9"));
        assert_eq!(of_memory("CUDA failure 2: out of memory"), Some("out of memory"));
        let cudnn = "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED";
        assert_eq!(of_memory(cudnn), Some("CUDNN_STATUS_ALLOC_FAILED"));
        assert_eq!(of_memory("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"), Some("CUBLAS_STATUS_ALLOC_FAILED"));
        assert_eq!(of_memory("it is broken"), None);
    }
}
