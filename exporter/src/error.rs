//! Errors of an export.

use std::io;

use models::WeightsError;
use models::spec::SpecError;
use runtime::{CheckReport, EngineError, Provider};

use crate::inputs::MeasureError;
use crate::precision::{Precision, UnknownLayer};
use crate::verify::{Comparison, Differences, Limits, VariantDifferences};

/// Why no file was written. An existing file of the same name stays unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights do not fit the spec.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file cannot be written.
    #[error("cannot write the file")]
    Io(#[from] io::Error),
    /// The spec does not allow the variant.
    #[error("the checkpoint's spec does not allow this variant; change --input-size")]
    Spec(#[from] SpecError),
    /// An end-to-end file of a spec with soft-NMS.
    #[error(
        "--end-to-end applies greedy NMS, but the checkpoint's spec has soft-NMS (`postprocessing.soft_nms`); omit \
         --end-to-end"
    )]
    SoftNms,
    /// A file that reads bytes, of a spec whose resized pixels are no bytes.
    #[error(
        "--input uint8 needs a spec with `preprocessing.round_pixels: true`; this one's resized pixels are not whole numbers, \
         so that bytes would give other detections: omit --input"
    )]
    UnroundedPixels,
    /// A layer to keep in float32 does not exist.
    #[error(transparent)]
    Layer(#[from] UnknownLayer),
    /// int8 without calibration images.
    #[error("int8 needs calibration images; pass some with --calibrate")]
    NoImages,
    /// Activations or the AP cannot be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// ONNX Runtime is missing, or cannot run the file.
    #[error("cannot verify the export")]
    Engine(#[from] EngineError),
    /// The outputs differ from libtorch's by more than rounding errors.
    #[error(
        "ONNX Runtime does not reproduce libtorch's outputs in the checkpoint's probe: its error is {0}; no file was \
         written. The weights may contain NaN or have changed after training: export another checkpoint of the run"
    )]
    NotReproduced(Differences),
    /// The scores differ from the sigmoid of the logits.
    #[error(
        "scores differ from the sigmoid of libtorch's logits by {0:.1e}; no file was written. This is a bug in the \
         exporter or in ONNX Runtime: please report it"
    )]
    Scores(f64),
    /// The probe's expected outputs are constant.
    #[error(
        "the network's outputs in the checkpoint's probe are constant, so the export cannot be verified; no file was \
         written. The weights are broken: export another checkpoint of the run"
    )]
    ConstantProbe,
    /// The file differs too much from the float32 file.
    #[error(
        "{precision} differs too much from fp32: {comparison}; limits are {} standard deviations for logits and offsets \
         in the worst image, and {:.0} % of the detections; no file was written. Pass other or more images with \
         --calibrate, or keep layers in float32 with --keep-float; --sensitivity lists the layers that lose most in \
         int8",
        Limits::of(*.precision).std, 100.0 * Limits::of(*.precision).agreement
    )]
    PrecisionDiffers {
        /// Precision of the file.
        precision: Precision,
        /// Its differences.
        comparison: Box<Comparison>,
    },
    /// The outputs differ from those of the plain file.
    #[error(
        "the file differs from an export without the flags of \"Model inputs and outputs\" by {0}; no file was written. \
         This is a bug in the exporter or in ONNX Runtime: omit these flags"
    )]
    VariantDiffers(VariantDifferences),
    /// A provider computes wrong numbers.
    #[error(
        "provider `{provider}` computes wrong numbers on this machine: {report}; no file was written. Update its libraries or \
         driver, or omit it from --prove"
    )]
    Provider {
        /// The provider.
        provider: Provider,
        /// Its differences.
        report: Box<CheckReport>,
    },
    /// The AP drops by more than allowed.
    #[error(
        "AP drops from {expected:.4} in fp32 to {found:.4} in {precision}, by more than --max-ap-drop {max_drop}; no \
         file was written. Keep the layers that --sensitivity lists first in float32, with --keep-float"
    )]
    ApDrop {
        /// Precision of the file.
        precision: Precision,
        /// AP of the file.
        found: f64,
        /// AP of the float32 file.
        expected: f64,
        /// Maximum drop.
        max_drop: f64,
    },
}
