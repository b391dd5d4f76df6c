//! Precision: what the numbers of the network are, and what fewer bits cost.

mod layers;
mod range;
mod calibration;
mod quantize;
mod half;
mod sensitivity;
mod comparison;

use std::fmt;
use std::path::{Path, PathBuf};

use models::ModelSpec;
use ndarray::Array4;
use runtime::EngineOptions;

use crate::graph::Graph;
use crate::proof::{Differences, OFFSET_TOLERANCE, SCORE_TOLERANCE};
use calibration::{Inputs, measure};
use comparison::compare;
use quantize::Quantization;

pub use calibration::{CalibrationError, pictures};
pub use comparison::Comparison;
pub use layers::{Layers, UnknownLayer};
pub use range::RangeRule;
pub use sensitivity::Sensitivity;

/// Convolutions that lose most by 8 bits: the first, which sees pixels, and the last two, whose numbers are the answer.
const FLOAT_LAYERS: [&str; 3] = ["conv1", "classificationModel.output", "regressionModel.output"];

/// Pictures on which a file of fewer bits is compared with that of 32.
const COMPARED_PICTURES: usize = 8;

/// How far scores may be off in 16 bits. They tell one number in a thousand or so apart, in every of some seventy layers.
const HALF_SCORE_TOLERANCE: f32 = 0.02;

/// How far offsets may be off in 16 bits.
const HALF_OFFSET_TOLERANCE: f32 = 0.1;

/// Pictures on which the sensitivity of every single layer is measured.
const SENSITIVITY_PICTURES: usize = 4;

/// What the numbers of the network are. Inputs and outputs are 32-bit floating point in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floating point, as in training.
    #[default]
    Fp32,
    /// 16-bit floating point, but for what would overflow.
    Fp16,
    /// 8-bit integers, but for the layers that lose most by it.
    Int8,
}

impl Precision {
    /// How far two files of the same network may be apart that differ in nothing but the order of summation.
    pub(crate) fn rounding(self) -> Differences {
        match self {
            Self::Fp32 => Differences { scores: SCORE_TOLERANCE, offsets: OFFSET_TOLERANCE },
            Self::Fp16 => Differences { scores: HALF_SCORE_TOLERANCE, offsets: HALF_OFFSET_TOLERANCE },
            // What falls to the other side of a half is another integer in all layers after it.
            Self::Int8 => Differences { scores: 0.1, offsets: 0.5 },
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
    /// Pictures whose numbers say what the ranges are; int8 needs some.
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
    /// There are no pictures to measure on.
    #[error("int8 takes its ranges from pictures; name some with --calibrate")]
    NoPictures,
    /// The file says something else than that of 32 bits.
    #[error(
        "{precision} differs from fp32 too much: scores by {:.1e}, offsets by {:.1e} (fp16 is allowed \
         {HALF_SCORE_TOLERANCE:e} and {HALF_OFFSET_TOLERANCE:e}); no file was written. --keep-float keeps layers in 32 bits",
        .comparison.largest.scores, .comparison.largest.offsets
    )]
    Differs {
        /// What was asked for.
        precision: Precision,
        /// By how much.
        comparison: Comparison,
    },
}

/// What became of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    /// Convolutions that stay in 32 bits.
    pub float_layers: Vec<String>,
    /// What every layer loses by 8 bits, the worst first; empty if that was not asked for.
    pub sensitivity: Vec<Sensitivity>,
}

/// Gives `graph`, whose batch normalizations are folded, its precision. `probe` counts among the pictures for fp16, which
/// needs no others.
pub(crate) fn lower(
    graph: &mut Graph,
    spec: &ModelSpec,
    probe: &Array4<f32>,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Lowered, PrecisionError> {
    options.keep_float.check(graph)?;
    let pictures = &options.calibration[..];
    match options.precision {
        Precision::Fp32 => Ok(Lowered::default()),
        Precision::Fp16 => {
            let inputs = Inputs { probe: Some(probe), pictures, spec };
            let seen = measure(graph, &half::measured(graph), inputs, engine)?;
            let ranges = seen.iter().map(|(name, histogram)| (name.clone(), histogram.seen())).collect();
            let float_layers = half::to_half(graph, &ranges, &options.keep_float);
            Ok(Lowered { float_layers, sensitivity: Vec::new() })
        }
        Precision::Int8 => {
            if pictures.is_empty() {
                return Err(PrecisionError::NoPictures);
            }
            let inputs = Inputs { probe: None, pictures, spec };
            let kept: Layers = FLOAT_LAYERS.into_iter().chain(options.keep_float.names()).collect();
            let chosen = Quantization::new(graph, &kept);
            let all = Quantization::new(graph, &Layers::default());
            // A layer that is alone may need the range of what has another value's when all are rounded.
            let values = if options.sensitivity { all.rounded() } else { chosen.ranged() };
            let seen = measure(graph, &values, inputs, engine)?;
            let ranges = seen.iter().map(|(name, histogram)| (name.clone(), histogram.range(options.ranges))).collect();
            let sensitivity = if options.sensitivity {
                let few = pictures.len().min(SENSITIVITY_PICTURES);
                sensitivity::measure(graph, &ranges, Inputs { pictures: &pictures[..few], ..inputs }, engine)?
            } else {
                Vec::new()
            };
            chosen.apply(graph, &ranges);
            let float_layers = Layers::all(graph).names().map(str::to_owned).collect();
            Ok(Lowered { float_layers, sensitivity })
        }
    }
}

/// Compares the file `lowered` with `full`, that of 32 bits.
///
/// # Errors
/// When ONNX Runtime does not take it, it says something that is no number, or, in 16 bits, is too far off.
pub(crate) fn check(
    full: &Path,
    lowered: &Path,
    spec: &ModelSpec,
    probe: &Array4<f32>,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Comparison, PrecisionError> {
    let precision = options.precision;
    let pictures = &options.calibration[..options.calibration.len().min(COMPARED_PICTURES)];
    // Calibrated ranges are those of pictures; the probe is noise.
    let probe = (precision == Precision::Fp16).then_some(probe);
    let comparison = compare(full, lowered, Inputs { probe, pictures, spec }, engine)?;
    let Comparison { largest: Differences { scores, offsets }, .. } = comparison;
    let fits = match precision {
        Precision::Fp16 => scores <= HALF_SCORE_TOLERANCE && offsets <= HALF_OFFSET_TOLERANCE,
        Precision::Fp32 | Precision::Int8 => scores.is_finite() && offsets.is_finite(),
    };
    if fits { Ok(comparison) } else { Err(PrecisionError::Differs { precision, comparison }) }
}
