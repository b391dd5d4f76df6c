//! Errors of opening and running an engine.

use std::any::Any;

use models::onnx_contract::SIDE_MULTIPLE;

use super::input::PixelType;
use crate::library::LibraryError;
use crate::provider::Provider;

/// Error of opening or running an [`Engine`](crate::Engine).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// ONNX Runtime's library cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The file cannot be read.
    #[error("cannot read model `{model}`: {reason}; pass a file written by `exporter --out FILE.onnx`")]
    Read {
        /// The file.
        model: String,
        /// The operating system's reason.
        reason: String,
    },
    /// Not an ONNX file, or not one that `exporter` wrote.
    #[error(
        "`{model}` is not a RetinaNet written by `exporter`: {reason}; pass a file written by `exporter --out FILE.onnx`"
    )]
    NotExported {
        /// The file.
        model: String,
        /// What is missing or different.
        reason: String,
    },
    /// The provider does not work on this machine.
    #[error("provider `{provider}` cannot start: {reason}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// What is missing and how to install it.
        reason: String,
    },
    /// The provider does not support some of the model's operators, and running them on the CPU was forbidden.
    #[error("provider `{provider}` does not support some operators of `{model}`")]
    Fallback {
        /// The file.
        model: String,
        /// The provider.
        provider: Provider,
    },
    /// An option is invalid, or does not fit the provider or the model.
    #[error("cannot use `{option}` with provider `{provider}`: {reason}")]
    Option {
        /// The command-line flag that sets the option.
        option: &'static str,
        /// The provider.
        provider: Provider,
        /// Why not.
        reason: String,
    },
    /// ONNX Runtime cannot create a session.
    #[error("ONNX Runtime cannot load `{model}` on `{provider}`: {reason}")]
    Session {
        /// The file.
        model: String,
        /// The provider.
        provider: Provider,
        /// ONNX Runtime's message.
        reason: String,
    },
    /// The network does not accept inputs of this shape.
    #[error(
        "input has shape {found:?}, expected [N, 3, H, W], or [N, H, W, 3] of bytes, with N at least 1 and H and W positive \
         multiples of {SIDE_MULTIPLE}"
    )]
    Input {
        /// Shape of the input.
        found: Vec<usize>,
    },
    /// The network reads pixels of another type.
    #[error("the model reads pixels as {expected:?}; prepare the images for `Engine::pixel_type`")]
    Pixels {
        /// What it reads.
        expected: PixelType,
    },
    /// The file was exported for inputs of another size.
    #[error(
        "input is {}x{}, but the model accepts only {}x{} (height x width); resize as in its spec, or export it without \
         --input-size", .found[0], .found[1], .expected[0], .expected[1]
    )]
    Size {
        /// Height and width of the input.
        found: [usize; 2],
        /// Height and width that the file fixes.
        expected: [usize; 2],
    },
    /// The file was exported for a smaller batch.
    #[error(
        "{found} images exceed the model's batch size of {max}; run fewer, or export it with a larger --batch-size"
    )]
    Batch {
        /// Number of images in the input.
        found: usize,
        /// Batch size that the file fixes.
        max: usize,
    },
    /// The scores of all anchors were requested from a file that outputs only candidates.
    #[error(
        "the model does not output the scores of all anchors; export it without --top-k and --end-to-end to get them"
    )]
    OnlyCandidates,
    /// The network needs more memory than is available.
    #[error("not enough memory for an input of shape {shape:?}: {reason}; run fewer images at a time, or smaller ones")]
    Memory {
        /// Shape of the input.
        shape: Vec<usize>,
        /// ONNX Runtime's message.
        reason: String,
    },
    /// ONNX Runtime failed.
    #[error("ONNX Runtime failed on an input of shape {shape:?}: {reason}")]
    Run {
        /// Shape of the input.
        shape: Vec<usize>,
        /// ONNX Runtime's message.
        reason: String,
    },
    /// A fault of this crate or of `ort`.
    #[error("the engine failed with a fault of its own: {reason}; please report this together with the image")]
    Panicked {
        /// The message of the panic.
        reason: String,
    },
    /// The threads of the engines have ended.
    #[error("the detector's engine has stopped; open the model again")]
    Stopped,
    /// Nobody waits for the result any more.
    #[error("the request was canceled or its time is over")]
    Canceled,
    /// An output has another shape than the file declares.
    #[error("output `{name}` has shape {found:?}, expected {expected:?}; export the model again")]
    Output {
        /// Name of the output.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the input and the spec.
        expected: Vec<usize>,
    },
}

impl EngineError {
    /// The error of a run that panicked with this payload.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked { reason: text.unwrap_or_else(|| "it panicked without a message".to_owned()) }
    }

    /// The error of a failed run on an input of this shape.
    pub(crate) fn run(shape: &[usize], error: &ort::Error) -> Self {
        let (shape, reason) = (shape.to_vec(), ort_message(error));
        match out_of_memory_reason(&reason) {
            Some(reason) => Self::Memory { shape, reason: reason.to_owned() },
            None => Self::Run { shape, reason },
        }
    }
}

/// The part of a message that reports a lack of memory; `None` if the failure has another cause.
fn out_of_memory_reason(reason: &str) -> Option<&str> {
    // The texts of ONNX Runtime's arena, of its limit, and of CUDA, cuDNN, cuBLAS and C++.
    const TEXTS: [&str; 6] = [
        "Failed to allocate memory",
        "Available memory of",
        "out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ];
    TEXTS.iter().find_map(|text| Some(&reason[reason.find(text)?..]))
}

/// ONNX Runtime's message on one line, without the position in its source code.
pub(crate) fn ort_message<R>(error: &ort::Error<R>) -> String {
    clean(error.message())
}

fn clean(message: &str) -> String {
    // `file.cc:1988 function [ONNXRuntimeError] : 1 : FAIL : message`
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
    fn message_omits_the_position_in_the_source_code() {
        let cases = [
            ("it is broken", "it is broken"),
            ("a.cc:9 Load [ONNXRuntimeError] : 1 : FAIL : it is\n broken", "it is broken"),
            (
                "options.h:187 Parse Failed to parse \"device_id\": CUDA failure 100: no device ; GPU=-1 ; hostname=vm ; line=69",
                "CUDA failure 100: no device",
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(clean(message), expected);
        }
    }

    #[test]
    fn out_of_memory_is_distinguished_from_other_failures() {
        let arena = "Status Message: a.cc:360 f() Failed to allocate memory for requested buffer of size 9";
        assert_eq!(out_of_memory_reason(arena), Some("Failed to allocate memory for requested buffer of size 9"));
        assert_eq!(out_of_memory_reason("CUDA failure 2: out of memory"), Some("out of memory"));
        let cudnn = "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED";
        assert_eq!(out_of_memory_reason(cudnn), Some("CUDNN_STATUS_ALLOC_FAILED"));
        assert_eq!(
            out_of_memory_reason("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
            Some("CUBLAS_STATUS_ALLOC_FAILED")
        );
        assert_eq!(out_of_memory_reason("it is broken"), None);
    }
}
