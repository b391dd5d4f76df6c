//! Sensitivity: the error of the network's outputs when only one layer is quantized to int8.

use std::collections::{BTreeMap, BTreeSet};

use models::onnx_contract::{CLASSIFICATION, REGRESSION};
use ndarray::Axis;
use runtime::progress::Progress;
use runtime::{ActivationReader, EngineOptions};

use super::calibration::{CalibrationError, Inputs};
use super::layers::Layers;
use super::quantize::Quantization;
use super::range::Range;
use crate::model::encode_with_outputs;
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
) -> Result<Vec<Sensitivity>, CalibrationError> {
    let expected = run(graph.clone(), inputs, engine)?;
    let all = Layers::all(graph);
    let mut progress = Progress::new(Some(all.names().count() * inputs.count()), false);
    let mut measured = Vec::new();
    for layer in all.names() {
        let mut single = graph.clone();
        Quantization::new(graph, &all.without(layer)).apply(&mut single, ranges);
        let found = run(single, inputs, engine)?;
        let error = |output: &str| relative_error(&expected[output], &found[output]);
        let (scores, offsets) = (error(CLASSIFICATION), error(REGRESSION));
        measured.push(Sensitivity { layer: layer.to_owned(), scores, offsets });
        (0..inputs.count()).for_each(|_| progress.advance());
    }
    let max_error = |layer: &Sensitivity| layer.scores.max(layer.offsets);
    measured.sort_by(|a, b| max_error(b).total_cmp(&max_error(a)));
    Ok(measured)
}

/// Outputs of the network for all inputs, by name.
fn run(
    graph: GraphProto,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<BTreeMap<String, Vec<f32>>, CalibrationError> {
    let names = BTreeSet::from([CLASSIFICATION, REGRESSION]);
    let mut reader = ActivationReader::from_bytes("the network", &encode_with_outputs(graph, &names), engine)?;
    let mut outputs: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for input in inputs.each() {
        let images = input?.pixels.insert_axis(Axis(0));
        reader.read(images.view(), |name, values| outputs.entry(name.to_owned()).or_default().extend(values))?;
    }
    Ok(outputs)
}

fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let sum: f64 = expected.iter().map(|value| square(*value)).sum();
    let error: f64 = expected.iter().zip(found).map(|(expected, found)| square(expected - found)).sum();
    if error == 0.0 { 0.0 } else { (error / sum).sqrt() }
}
