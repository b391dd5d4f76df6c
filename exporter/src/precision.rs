//! Precision: what the numbers of the network are, and what fewer bits cost.

mod layers;
mod range;
mod calibration;
mod quantize;
mod half;
mod sensitivity;
mod comparison;

use std::fmt;
use std::path::PathBuf;

use models::ModelSpec;
use runtime::EngineOptions;

use crate::form::FormDifferences;
use crate::graph::Graph;
use calibration::{Inputs, measure};
use comparison::{File, compare};
pub(crate) use half::cast_node;
use quantize::Quantization;

pub use calibration::{CalibrationError, images};
pub use comparison::{Comparison, Difference, Limits};
pub use layers::{Layers, UnknownLayer};
pub use range::RangeRule;
pub use sensitivity::Sensitivity;

/// Convolutions that lose most by 8 bits: the first, which sees pixels, and the last two, whose numbers are the answer.
const FLOAT_LAYERS: [&str; 3] = ["conv1", "classificationModel.output", "regressionModel.output"];

/// Drawn images: for the ranges of fp16 where no others are given, and for every comparison.
const DRAWN: u32 = 4;

/// Images on which a file of fewer bits is compared with that of 32.
const COMPARED_IMAGES: usize = 8;

/// Images on which the sensitivity of every single layer is measured.
const SENSITIVITY_IMAGES: usize = 4;

/// How far fp16 may be off. A product of 16 bits is off by up to 2^-11, in some seventy layers by 0.0024 if at random. Measured:
/// the demo after 1, 3 and 7 epochs 0.0020, 0.0016 and 0.0011, and all detections; random weights 0.0008 in ResNet-50 (of its
/// hundreds of equal scores 90 % of the detections) and 0.0013 in ResNet-101.
const FP16_LIMITS: Limits = Limits { spread: 0.01, size: 1.0 / 2048.0, agreement: 0.75 };

/// How far int8 may be off. Measured on the demo after 1, 3 and 7 epochs: with ranges of 100 images 0.028 to 0.034, of one image
/// 0.024 to 0.033, by `entropy` 0.025 to 0.046, each time with 99 % of the detections or more. With `percentile:99.9`, which
/// costs four points of AP on blood cells, 0.083 to 0.198. With broken ranges, those of one black or one gray image, 0.196 to
/// 0.396, and down to 54 % of the detections.
const INT8_LIMITS: Limits = Limits { spread: 0.1, size: 0.0, agreement: 0.75 };

/// What the numbers of the network are. Inputs and outputs are 32-bit floating point in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    Fp32,
    /// 16-bit floating point, except where it would overflow.
    Fp16,
    /// 8-bit integers, except in the layers that would lose most.
    Int8,
}

impl Precision {
    /// How far two files of the same network may be apart that differ in nothing but the order of summation.
    pub(crate) fn rounding(self) -> FormDifferences {
        match self {
            Self::Fp32 => FormDifferences { scores: 1e-4, offsets: 1e-3 },
            Self::Fp16 => FormDifferences { scores: 0.02, offsets: 0.1 },
            // What falls to the other side of a half is another integer in all layers after it.
            Self::Int8 => FormDifferences { scores: 0.1, offsets: 0.5 },
        }
    }

    /// How far a file may be from that of 32 bits.
    pub fn limits(self) -> Limits {
        match self {
            Self::Fp32 => Limits { spread: 0.0, size: 0.0, agreement: 1.0 },
            Self::Fp16 => FP16_LIMITS,
            Self::Int8 => INT8_LIMITS,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        })
    }
}

/// How the network gets its precision.
#[derive(Clone, Debug)]
pub struct PrecisionOptions {
    /// What its numbers shall be.
    pub precision: Precision,
    /// Images whose numbers say what the ranges are; int8 needs some.
    pub calibration: Vec<PathBuf>,
    /// How ranges follow from these numbers; for int8.
    pub ranges: RangeRule,
    /// Layers that stay in 32 bits, beside those that lose most.
    pub keep_float: Layers,
    /// Whether to measure what every layer loses by 8 bits.
    pub sensitivity: bool,
}

impl Default for PrecisionOptions {
    fn default() -> Self {
        Self {
            precision: Precision::default(),
            calibration: Vec::new(),
            ranges: RangeRule::DEFAULT,
            keep_float: Layers::default(),
            sensitivity: false,
        }
    }
}

/// Why a network can't have fewer bits.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// Its numbers can't be measured.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A layer to keep is not there.
    #[error(transparent)]
    Layer(#[from] UnknownLayer),
    /// There are no images to measure on.
    #[error("int8 takes its ranges from images; name some with --calibrate")]
    NoImages,
    /// The file computes something else than that of 32 bits.
    #[error(
        "{precision} differs from fp32 too much, in {comparison}; allowed are {} of the spread of logits and offsets in the worst \
         image, and {:.0} % of the detections; no file was written. --calibrate names other images, or more, --keep-float keeps \
         layers in 32 bits, and --sensitivity lists those that lose most by 8",
        .precision.limits().spread, 100.0 * .precision.limits().agreement
    )]
    Differs {
        /// What was asked for.
        precision: Precision,
        /// By how much.
        comparison: Box<Comparison>,
    },
}

/// What became of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Convolutions that stay in 32 bits.
    pub float_layers: Vec<String>,
    /// What every layer loses by 8 bits, the worst first; empty if that was not asked for.
    pub sensitivity: Vec<Sensitivity>,
}

/// Gives `graph`, whose batch normalizations are folded, its precision.
pub(crate) fn lower(
    graph: &mut Graph,
    spec: &ModelSpec,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Converted, PrecisionError> {
    options.keep_float.check(graph)?;
    let files = &options.calibration[..];
    let inputs = Inputs { files, drawn: if files.is_empty() { DRAWN } else { 0 }, spec };
    match options.precision {
        Precision::Fp32 => Ok(Converted::default()),
        Precision::Fp16 => {
            let seen = measure(graph, &half::measured(graph), inputs, engine)?;
            let ranges = seen.iter().map(|(name, histogram)| (name.clone(), histogram.seen())).collect();
            let float_layers = half::to_half(graph, &ranges, &options.keep_float);
            Ok(Converted { float_layers, sensitivity: Vec::new() })
        }
        Precision::Int8 => {
            if files.is_empty() {
                return Err(PrecisionError::NoImages);
            }
            let kept: Layers = FLOAT_LAYERS.into_iter().chain(options.keep_float.names()).collect();
            let chosen = Quantization::new(graph, &kept);
            let all = Quantization::new(graph, &Layers::default());
            // A layer that is alone may need the range of what has another value's when all are rounded.
            let values = if options.sensitivity { all.rounded() } else { chosen.ranged() };
            let seen = measure(graph, &values, inputs, engine)?;
            let ranges = seen.iter().map(|(name, histogram)| (name.clone(), histogram.range(options.ranges))).collect();
            let sensitivity = if options.sensitivity {
                let few = files.len().min(SENSITIVITY_IMAGES);
                sensitivity::measure(graph, &ranges, Inputs { files: &files[..few], ..inputs }, engine)?
            } else {
                Vec::new()
            };
            chosen.apply(graph, &ranges);
            let float_layers = Layers::all(graph).names().map(str::to_owned).collect();
            Ok(Converted { float_layers, sensitivity })
        }
    }
}

/// Compares a file of fewer bits with that of 32, on images of `--calibrate` and on drawn ones: what images are like that
/// the ranges do not come from, the former can't show.
///
/// # Errors
/// When ONNX Runtime does not take it, or it is too far off.
pub(crate) fn check(
    full: File,
    converted: File,
    spec: &ModelSpec,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Comparison, PrecisionError> {
    let few = options.calibration.len().min(COMPARED_IMAGES);
    let inputs = Inputs { files: &options.calibration[..few], drawn: DRAWN, spec };
    let comparison = compare(full, converted, inputs, engine)?;
    if options.precision.limits().allow(&comparison) {
        Ok(comparison)
    } else {
        Err(PrecisionError::Differs { precision: options.precision, comparison: Box::new(comparison) })
    }
}
