//! Precision: conversion of the network to fp16 or int8.

mod layers;
mod range;
mod calibration;
mod logits;
mod quantize;
mod half;
mod sensitivity;

use std::fmt;
use std::path::PathBuf;

use models::ModelSpec;
use runtime::EngineOptions;

use crate::inputs::{DRAWN_IMAGES, Inputs, MeasureError, OnProgress};
use crate::onnx::GraphProto;
use calibration::measure;
use quantize::Quantization;

pub use layers::{Layers, UnknownLayer};
pub use sensitivity::Sensitivity;

/// Convolutions that lose most in int8: the first, whose input is the image, and the last of the boxes.
const FLOAT_LAYERS: [&str; 2] = ["conv1", "regressionModel.output"];

/// Maximum number of calibration images on which the sensitivity of the layers is measured.
const SENSITIVITY_IMAGES: usize = 4;

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

/// Result of a conversion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Convolutions that stay in float32.
    pub float_layers: Vec<String>,
    /// Sensitivity of each layer, the most sensitive first; empty if not requested.
    pub sensitivity: Vec<Sensitivity>,
}

impl PrecisionOptions {
    /// The lowest logit of the converted network: lower ones become this one.
    pub(crate) fn lowest_logit(&self, spec: &ModelSpec) -> f32 {
        let is_quantized = self.precision == Precision::Int8 && !self.keep_float.contain(logits::LAYER);
        if is_quantized { logits::lowest(spec) } else { f32::NEG_INFINITY }
    }

    /// Converts `graph`, whose batch norms are folded and whose layers include [`keep_float`](Self::keep_float), to the
    /// precision. Without images of [`calibration`](Self::calibration), fp16 uses drawn ones.
    pub(crate) fn convert(
        &self,
        graph: &mut GraphProto,
        spec: &ModelSpec,
        engine: &EngineOptions,
        on_progress: OnProgress,
    ) -> Result<Converted, MeasureError> {
        let files = &self.calibration[..];
        let inputs = Inputs { files, drawn: if files.is_empty() { DRAWN_IMAGES } else { 0 }, spec };
        match self.precision {
            Precision::Fp32 => Ok(Converted::default()),
            Precision::Fp16 => {
                let ranges = measure(graph, &half::values_to_measure(graph), inputs, engine, on_progress)?;
                let float_layers = half::to_half(graph, &ranges, &self.keep_float);
                Ok(Converted { float_layers, sensitivity: Vec::new() })
            }
            Precision::Int8 => {
                let float_layers: Layers = FLOAT_LAYERS.into_iter().chain(self.keep_float.names()).collect();
                let selected = Quantization::new(graph, &float_layers);
                let all = Quantization::new(graph, &Layers::default());
                // A layer quantized alone may need the range of a value that otherwise uses the range of another one.
                let values = if self.sensitivity { all.quantized_values() } else { selected.ranged_values() };
                let mut ranges = measure(graph, &values, inputs, engine, on_progress)?;
                logits::set_range(graph, &mut ranges, spec);
                let sensitivity = if self.sensitivity {
                    let inputs = Inputs { files: &files[..files.len().min(SENSITIVITY_IMAGES)], ..inputs };
                    sensitivity::measure(graph, &ranges, inputs, engine, on_progress)?
                } else {
                    Vec::new()
                };
                selected.apply(graph, &ranges);
                let float_layers = Layers::all(graph).names().map(str::to_owned).collect();
                Ok(Converted { float_layers, sensitivity })
            }
        }
    }
}
