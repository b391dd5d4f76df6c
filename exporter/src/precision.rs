//! Precision: conversion of the network to fp16 or int8, and comparison with float32.

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
use crate::onnx::GraphProto;
use calibration::{Inputs, measure};
use comparison::{File, compare};
use quantize::Quantization;

pub use calibration::{CalibrationError, images};
pub use comparison::{Comparison, Difference, Limits};
pub use layers::{Layers, UnknownLayer};
pub use sensitivity::Sensitivity;

/// Convolutions that lose most in int8: the first, whose input is the image, and the last two, which compute the
/// outputs.
const FLOAT_LAYERS: [&str; 3] = ["conv1", "classificationModel.output", "regressionModel.output"];

/// Number of drawn images: for the ranges of fp16 without calibration images, and for every comparison.
const DRAWN_IMAGES: u32 = 4;

/// Maximum number of calibration images on which a file is compared with the float32 file.
const COMPARED_IMAGES: usize = 8;

/// Maximum number of calibration images on which the sensitivity of the layers is measured.
const SENSITIVITY_IMAGES: usize = 4;

/// Limits of fp16. A float16 product has an error of up to 2^-11; random errors of some seventy layers add up to
/// 0.0024. Measured: the demo after 1, 3 and 7 epochs 0.0020, 0.0016 and 0.0011, and all detections match; random
/// weights 0.0008 in ResNet-50 (with hundreds of equal scores, so that 90 % of the detections match) and 0.0013 in
/// ResNet-101.
const FP16_LIMITS: Limits = Limits { std: 0.01, rms: 1.0 / 2048.0, agreement: 0.75 };

/// Limits of int8. Measured on the demo after 1, 3 and 7 epochs: with ranges of 100 images 0.028 to 0.034, of one image
/// 0.024 to 0.033, and at least 99 % of the detections match. With wrong ranges, from one black or one gray image, 0.196 to
/// 0.396, and as few as 54 % of the detections match.
const INT8_LIMITS: Limits = Limits { std: 0.1, rms: 0.0, agreement: 0.75 };

/// Precision of the network. Inputs and outputs are always float32.
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
    /// Tolerance for two files of the same network that differ only in the order of summation.
    pub(crate) fn rounding(self) -> FormDifferences {
        match self {
            Self::Fp32 => FormDifferences { scores: 1e-4, offsets: 1e-3 },
            Self::Fp16 => FormDifferences { scores: 0.02, offsets: 0.1 },
            // A value close to half an integer may be rounded differently, which changes all later layers.
            Self::Int8 => FormDifferences { scores: 0.1, offsets: 0.5 },
        }
    }

    /// Maximum differences of a file from the float32 file.
    pub fn limits(self) -> Limits {
        match self {
            Self::Fp32 => Limits { std: 0.0, rms: 0.0, agreement: 1.0 },
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

/// Options of the conversion to a precision.
#[derive(Clone, Debug, Default)]
pub struct PrecisionOptions {
    /// Precision of the network.
    pub precision: Precision,
    /// Images on which the ranges of activations are measured; required for int8.
    pub calibration: Vec<PathBuf>,
    /// Layers that stay in float32, in addition to those that always do.
    pub keep_float: Layers,
    /// Whether to measure the sensitivity of each layer to int8.
    pub sensitivity: bool,
}

/// Why a network cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// Its activations cannot be measured.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A layer to keep in float32 does not exist.
    #[error(transparent)]
    Layer(#[from] UnknownLayer),
    /// int8 without calibration images.
    #[error("int8 needs calibration images; pass some with --calibrate")]
    NoImages,
    /// The file differs too much from the float32 file.
    #[error(
        "{precision} differs too much from fp32: {comparison}; limits are {} standard deviations for logits and offsets \
         in the worst image, and {:.0} % of the detections; no file was written. Pass other or more images with \
         --calibrate, or keep layers in float32 with --keep-float; --sensitivity lists the layers that lose most in \
         int8",
        .precision.limits().std, 100.0 * .precision.limits().agreement
    )]
    Differs {
        /// Precision of the file.
        precision: Precision,
        /// Its differences.
        comparison: Box<Comparison>,
    },
}

/// Result of a conversion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Convolutions that stay in float32.
    pub float_layers: Vec<String>,
    /// Sensitivity of each layer, the most sensitive first; empty if not requested.
    pub sensitivity: Vec<Sensitivity>,
}

/// Converts `graph`, whose batch norms are folded, to the precision.
pub(crate) fn convert(
    graph: &mut GraphProto,
    spec: &ModelSpec,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Converted, PrecisionError> {
    options.keep_float.check(graph)?;
    let files = &options.calibration[..];
    let inputs = Inputs { files, drawn: if files.is_empty() { DRAWN_IMAGES } else { 0 }, spec };
    match options.precision {
        Precision::Fp32 => Ok(Converted::default()),
        Precision::Fp16 => {
            let ranges = measure(graph, &half::values_to_measure(graph), inputs, engine)?;
            let float_layers = half::to_half(graph, &ranges, &options.keep_float);
            Ok(Converted { float_layers, sensitivity: Vec::new() })
        }
        Precision::Int8 => {
            if files.is_empty() {
                return Err(PrecisionError::NoImages);
            }
            let float_layers: Layers = FLOAT_LAYERS.into_iter().chain(options.keep_float.names()).collect();
            let selected = Quantization::new(graph, &float_layers);
            let all = Quantization::new(graph, &Layers::default());
            // A layer quantized alone may need the range of a value that otherwise uses the range of another one.
            let values = if options.sensitivity { all.quantized_values() } else { selected.ranged_values() };
            let ranges = measure(graph, &values, inputs, engine)?;
            let sensitivity = if options.sensitivity {
                let count = files.len().min(SENSITIVITY_IMAGES);
                sensitivity::measure(graph, &ranges, Inputs { files: &files[..count], ..inputs }, engine)?
            } else {
                Vec::new()
            };
            selected.apply(graph, &ranges);
            let float_layers = Layers::all(graph).names().map(str::to_owned).collect();
            Ok(Converted { float_layers, sensitivity })
        }
    }
}

/// Compares a converted file with the float32 file, on calibration images and on drawn ones, since the ranges were not
/// measured on the latter.
///
/// # Errors
/// When ONNX Runtime cannot run one of them, or the differences exceed the limits of the precision.
pub(crate) fn check(
    fp32: File,
    converted: File,
    spec: &ModelSpec,
    options: &PrecisionOptions,
    engine: &EngineOptions,
) -> Result<Comparison, PrecisionError> {
    let count = options.calibration.len().min(COMPARED_IMAGES);
    let inputs = Inputs { files: &options.calibration[..count], drawn: DRAWN_IMAGES, spec };
    let comparison = compare(fp32, converted, inputs, engine)?;
    if options.precision.limits().allow(&comparison) {
        Ok(comparison)
    } else {
        Err(PrecisionError::Differs { precision: options.precision, comparison: Box::new(comparison) })
    }
}
