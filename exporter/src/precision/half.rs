//! Half precision: weights and computation in float16, inputs and outputs in float32.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;

use super::layers::{Layers, layer_of};
use super::range::Range;
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto};

/// Operators that run in float16. The others are few and cheap: the variance of a norm layer would overflow, and a
/// float16 sigmoid would make high scores equal.
const OPERATORS: [&str; 9] = ["Add", "Concat", "Conv", "MaxPool", "Mul", "Relu", "Reshape", "Resize", "Transpose"];

/// Maximum absolute value, where measured, of values in float16: an eighth of float16's maximum, since other images
/// have larger values.
const LIMIT: f32 = 65504.0 / 8.0;

/// The values that must be measured to find those that would overflow.
pub(super) fn values_to_measure(graph: &GraphProto) -> BTreeSet<&str> {
    let nodes = graph.node.iter().filter(|node| OPERATORS.contains(&node.op_type.as_str()));
    nodes
        .flat_map(|node| node.input.iter().chain(&node.output))
        .map(String::as_str)
        .filter(|name| !name.is_empty() && graph.constant(name).is_none())
        .filter(|name| graph.input.iter().all(|value| value.name != *name))
        .collect()
}

/// Converts `graph` to float16, except nodes that would overflow according to `ranges`, and the layers in `keep_float`.
/// Returns the names of the convolutions that stay in float32.
pub(super) fn to_half(graph: &mut GraphProto, ranges: &BTreeMap<String, Range>, keep_float: &Layers) -> Vec<String> {
    let half: Vec<bool> = graph.node.iter().map(|node| is_half(graph, node, ranges, keep_float)).collect();
    let convolutions = graph.node.iter().zip(&half).filter(|(node, half)| node.op_type == "Conv" && !**half);
    let float_convolutions = convolutions.map(|(node, _)| node.name.clone()).collect();
    halve_constants(graph, &half);

    let mut in_half = BTreeSet::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut cast = BTreeSet::new();
    for (mut node, half) in std::mem::take(&mut graph.node).into_iter().zip(half) {
        for input in data_inputs(&mut node) {
            if input.is_empty() || graph.constant(input).is_some() || in_half.contains(input) == half {
                continue;
            }
            let name = format!("{input}.{}", if half { "half" } else { "float" });
            if cast.insert(name.clone()) {
                nodes.push(NodeProto::cast(input, &name, if half { DataType::Float16 } else { DataType::Float }));
            }
            *input = name;
        }
        let is_output = graph.output.iter().any(|value| value.name == node.output[0]);
        if half && is_output {
            let halved = format!("{}.half", node.output[0]);
            let output = std::mem::replace(&mut node.output[0], halved);
            let float = NodeProto::cast(&node.output[0], &output, DataType::Float);
            nodes.extend([node, float]);
        } else {
            if half {
                in_half.insert(node.output[0].clone());
            }
            nodes.push(node);
        }
    }
    graph.node = nodes;
    graph.drop_unused_constants();
    float_convolutions
}

/// Whether `node` can run in float16.
fn is_half(graph: &GraphProto, node: &NodeProto, ranges: &BTreeMap<String, Range>, keep_float: &Layers) -> bool {
    let fits = |name: &String| match (graph.constant(name), ranges.get(name)) {
        (Some(constant), _) => constant.floats().is_none_or(|values| values.iter().all(|value| value.abs() <= LIMIT)),
        (_, Some(range)) => range.max_abs() <= LIMIT,
        // The input images, with values of a few units, and omitted inputs.
        (None, None) => true,
    };
    OPERATORS.contains(&node.op_type.as_str())
        && layer_of(graph, node).is_none_or(|layer| !keep_float.contain(layer))
        && node.input.iter().chain(&node.output).all(fits)
}

/// Converts the constants of the nodes marked in `half` to float16. A constant that other nodes read, too, is copied.
fn halve_constants(graph: &mut GraphProto, half: &[bool]) {
    let reading = |half_nodes: bool| -> BTreeSet<String> {
        let nodes = graph.node.iter().zip(half).filter(|(_, half)| **half == half_nodes);
        let mut nodes: Vec<_> = nodes.map(|(node, _)| node.clone()).collect();
        nodes.iter_mut().flat_map(data_inputs).map(|input| input.clone()).collect()
    };
    let (halves, floats) = (reading(true), reading(false));
    let mut renamed = BTreeMap::new();
    for name in halves {
        let Some(constant) = graph.constant(&name) else { continue };
        let Some(values) = constant.floats() else { continue };
        let values: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
        let new_name = if floats.contains(&name) { format!("{name}.half") } else { name.clone() };
        let halved = TensorProto::new(new_name, constant.dims.clone(), values);
        renamed.insert(name, graph.add_constant(halved));
    }
    for (node, _) in graph.node.iter_mut().zip(half).filter(|(_, half)| **half) {
        for input in data_inputs(node) {
            if let Some(copy) = renamed.get(input) {
                input.clone_from(copy);
            }
        }
    }
}

/// The inputs that have the node's precision. The scales of a Resize and the shape of a Reshape do not.
fn data_inputs(node: &mut NodeProto) -> impl Iterator<Item = &mut String> {
    let count = if matches!(node.op_type.as_str(), "Resize" | "Reshape") { 1 } else { node.input.len() };
    node.input.iter_mut().take(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{folded, spec, zeros};
    use models::spec::{NormKind, NormSpec};

    fn halved(large: &[&str], keep_float: &[&str]) -> (GraphProto, Vec<String>) {
        let mut spec = spec(18, NormKind::FrozenBatch);
        spec.heads.norm = Some(NormSpec { kind: NormKind::Group, groups: 8, ..NormSpec::default() });
        let mut graph = folded(&spec, zeros(&spec));
        let names = values_to_measure(&graph).into_iter().map(str::to_owned);
        let range = |name: String| {
            let high = if large.contains(&name.as_str()) { 9000.0 } else { 8000.0 };
            (name, Range { low: -1.0, high })
        };
        let ranges = names.map(range).collect();
        let float = to_half(&mut graph, &ranges, &keep_float.iter().copied().collect());
        (graph, float)
    }

    /// Whether each value is float16. Asserts that all inputs of a node have the same precision.
    fn precisions(graph: &GraphProto) -> BTreeMap<String, bool> {
        let mut half: BTreeMap<String, bool> = graph.input.iter().map(|value| (value.name.clone(), false)).collect();
        for constant in &graph.initializer {
            half.insert(constant.name.clone(), constant.elements::<f16>().is_some());
        }
        for node in &graph.node {
            let inputs: BTreeSet<bool> = data_inputs(&mut node.clone()).map(|input| half[input.as_str()]).collect();
            assert_eq!(inputs.len(), 1, "{} reads both precisions", node.name);
            let is_half = node.attribute("to").map_or(inputs.contains(&true), |to| to.i == Some(10));
            half.insert(node.output[0].clone(), is_half);
        }
        half
    }

    #[test]
    fn network_is_float16_and_its_inputs_and_outputs_are_float32() {
        let (graph, float) = halved(&[], &[]);
        let half = precisions(&graph);
        assert!(!half["images"] && !half["classification"] && !half["regression"]);
        assert!(half["layer1.0.bn1"] && half["conv1.weight"] && half["regressionModel.output.bias"]);
        assert!(!half["scales.1.1.2.2"], "the scales of a Resize are always float32");
        assert!(float.is_empty());
        let cast = |node: &&NodeProto| node.op_type == "Cast";
        let normalizations = graph.node.iter().filter(|node| node.op_type == "InstanceNormalization").count();
        assert_eq!(normalizations, 2 * 4 * 5);
        assert_eq!(graph.node.iter().filter(cast).count(), 1 + 2 + 2 * normalizations, "no redundant casts");
    }

    #[test]
    fn overflowing_values_and_their_readers_stay_float32() {
        let (graph, float) = halved(&["layer2.0.bn1.relu"], &[]);
        let half = precisions(&graph);
        assert_eq!(float, ["layer2.0.conv2"]);
        assert!(!half["layer2.0.bn1.relu"] && half["layer2.0.bn1"]);
    }

    #[test]
    fn keep_float_layers_stay_float32_and_shared_constants_are_copied() {
        let (graph, float) = halved(&["regressionModel.conv1_2"], &["fpn.P3_2", "layer4.1"]);
        let half = precisions(&graph);
        assert_eq!(float, ["layer4.1.conv1", "layer4.1.conv2", "fpn.P3_2", "regressionModel.conv1_2"]);
        assert!(!half["fpn.P3_2.weight"] && !half["layer4.1.conv1.weight"]);
        assert!(!half["regressionModel.conv1.weight"] && half["regressionModel.conv1.weight.half"]);
    }
}
