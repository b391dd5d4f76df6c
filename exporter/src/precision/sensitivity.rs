//! Sensitivity: the error of the network's outputs when only one layer is quantized to int8.

use std::collections::BTreeMap;

use models::Preprocessed;
use models::onnx_contract::{CLASSIFICATION, REGRESSION};
use ndarray::Axis;
use runtime::{ActivationReader, EngineOptions};

use super::calibration::encode_with_outputs;
use super::layers::Layers;
use super::quantize::Quantization;
use super::range::Range;
use crate::inputs::{Inputs, MeasureError, OnProgress};
use crate::onnx::GraphProto;

/// Sensitivity of a layer: RMS error of the network's outputs, divided by their RMS.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Name of the layer.
    pub layer: String,
    /// Relative error of the scores.
    pub scores: f64,
    /// Relative error of the offsets.
    pub offsets: f64,
}

/// Sensitivity of every convolution of `graph`, the most sensitive first. `ranges` has all values that can be quantized.
pub(super) fn measure(
    graph: &GraphProto,
    ranges: &BTreeMap<String, Range>,
    inputs: Inputs,
    engine: &EngineOptions,
    on_progress: OnProgress,
) -> Result<Vec<Sensitivity>, MeasureError> {
    let inputs: Vec<_> = inputs.each().collect::<Result<_, _>>()?;
    let expected = run(graph.clone(), &inputs, engine)?;
    let all = Layers::all(graph);
    let mut measured = Vec::new();
    let (layers, images) = (all.names().count(), inputs.len());
    for (index, layer) in all.names().enumerate() {
        let mut single = graph.clone();
        Quantization::new(graph, &all.without(layer)).apply(&mut single, ranges);
        let found = run(single, &inputs, engine)?;
        let error = |output: &str| relative_error(&expected[output], &found[output]);
        let (scores, offsets) = (error(CLASSIFICATION), error(REGRESSION));
        measured.push(Sensitivity { layer: layer.to_owned(), scores, offsets });
        (1..=images).for_each(|image| on_progress(index * images + image, layers * images));
    }
    let max_error = |layer: &Sensitivity| layer.scores.max(layer.offsets);
    measured.sort_by(|a, b| max_error(b).total_cmp(&max_error(a)));
    Ok(measured)
}

/// Outputs of the network for all inputs, by name.
fn run(
    graph: GraphProto,
    inputs: &[Preprocessed],
    engine: &EngineOptions,
) -> Result<BTreeMap<String, Vec<f32>>, MeasureError> {
    let bytes = encode_with_outputs(graph, [CLASSIFICATION, REGRESSION].map(str::to_owned));
    let mut reader = ActivationReader::from_bytes("the network", &bytes, engine)?;
    let mut outputs: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for input in inputs {
        let images = input.pixels.view().insert_axis(Axis(0));
        reader.read(images, |name, values| outputs.entry(name.to_owned()).or_default().extend(values))?;
    }
    Ok(outputs)
}

fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let sum: f64 = expected.iter().map(|value| square(*value)).sum();
    let error: f64 = expected.iter().zip(found).map(|(expected, found)| square(expected - found)).sum();
    if error == 0.0 { 0.0 } else { (error / sum).sqrt() }
}
