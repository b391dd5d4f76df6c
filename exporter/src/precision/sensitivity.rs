//! Sensitivity: what each layer loses by 8 bits, when it alone has them.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Axis;
use runtime::progress::Progress;
use runtime::{ActivationReader, CLASSIFICATION, EngineOptions, REGRESSION};

use super::calibration::{CalibrationError, Inputs};
use super::layers::Layers;
use super::quantize::Quantization;
use super::range::Range;
use crate::graph::Graph;
use crate::model::encode_with_outputs;

/// What a layer loses: the error of the network's outputs as a share of their size, both as the root of the mean square.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// The layer.
    pub layer: String,
    /// Of the scores.
    pub scores: f64,
    /// Of the offsets.
    pub offsets: f64,
}

/// Every convolution of `graph`, the one that loses most first. `ranges` are those of all values that may be rounded.
pub(super) fn measure(
    graph: &Graph,
    ranges: &BTreeMap<String, Range>,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<Vec<Sensitivity>, CalibrationError> {
    let expected = answers(graph.clone(), inputs, engine)?;
    let all = Layers::all(graph);
    let mut progress = Progress::new(Some(all.names().count() * inputs.count()), false);
    let mut measured = Vec::new();
    for layer in all.names() {
        let mut single = graph.clone();
        Quantization::new(graph, &all.without(layer)).apply(&mut single, ranges);
        let found = answers(single, inputs, engine)?;
        let error = |output: &str| relative_error(&expected[output], &found[output]);
        let (scores, offsets) = (error(CLASSIFICATION), error(REGRESSION));
        measured.push(Sensitivity { layer: layer.to_owned(), scores, offsets });
        (0..inputs.count()).for_each(|_| progress.advance());
    }
    let worse = |layer: &Sensitivity| layer.scores.max(layer.offsets);
    measured.sort_by(|a, b| worse(b).total_cmp(&worse(a)));
    Ok(measured)
}

/// What the network says of all inputs, by the names of its outputs.
fn answers(
    graph: Graph,
    inputs: Inputs,
    engine: &EngineOptions,
) -> Result<BTreeMap<String, Vec<f32>>, CalibrationError> {
    let outputs = BTreeSet::from([CLASSIFICATION, REGRESSION]);
    let mut reader = ActivationReader::from_bytes("the network", &encode_with_outputs(graph, &outputs), engine)?;
    let mut answers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for input in inputs.each() {
        let images = input?.pixels.insert_axis(Axis(0));
        reader.read(images.view(), |name, values| answers.entry(name.to_owned()).or_default().extend(values))?;
    }
    Ok(answers)
}

fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let size: f64 = expected.iter().map(|value| square(*value)).sum();
    let error: f64 = expected.iter().zip(found).map(|(expected, found)| square(expected - found)).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}
