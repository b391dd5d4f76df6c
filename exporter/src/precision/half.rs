//! Half precision: weights and computation in float16, inputs and outputs in float32.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;

use super::layers::{Layers, layer_of};
use super::range::Range;
use crate::graph::{Attribute, Constant, Elements, Graph, Node};
use crate::onnx::DataType;

/// Operators that run in float16. The others are few and cheap: the variance of a norm layer would overflow, and a
/// float16 sigmoid would make high scores equal.
const OPERATORS: [&str; 9] = ["Add", "Concat", "Conv", "MaxPool", "Mul", "Relu", "Reshape", "Resize", "Transpose"];

/// Maximum absolute value, where measured, of values in float16: an eighth of float16's maximum, since other images
/// have larger values.
const LIMIT: f32 = 65504.0 / 8.0;

/// The values that must be measured to find those that would overflow.
pub(super) fn values_to_measure(graph: &Graph) -> BTreeSet<&str> {
    let nodes = graph.nodes.iter().filter(|node| OPERATORS.contains(&node.operator));
    nodes
        .flat_map(|node| node.inputs.iter().chain([&node.output]))
        .map(String::as_str)
        .filter(|name| !name.is_empty() && !graph.initializers.contains_key(*name))
        .filter(|name| graph.inputs.iter().all(|port| port.name != *name))
        .collect()
}

/// Converts `graph` to float16, except nodes that would overflow according to `ranges`, and the layers in `keep_float`.
/// Returns the names of the convolutions that stay in float32.
pub(super) fn to_half(graph: &mut Graph, ranges: &BTreeMap<String, Range>, keep_float: &Layers) -> Vec<String> {
    let half: Vec<bool> = graph.nodes.iter().map(|node| is_half(graph, node, ranges, keep_float)).collect();
    let convolutions = graph.nodes.iter().zip(&half).filter(|(node, half)| node.operator == "Conv" && !**half);
    let float_convolutions = convolutions.map(|(node, _)| node.name.clone()).collect();
    halve_constants(graph, &half);

    let mut in_half = BTreeSet::new();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    let mut cast = BTreeSet::new();
    for (mut node, half) in std::mem::take(&mut graph.nodes).into_iter().zip(half) {
        for input in data_inputs(&mut node) {
            if input.is_empty() || graph.initializers.contains_key(input) || in_half.contains(input) == half {
                continue;
            }
            let name = format!("{input}.{}", if half { "half" } else { "float" });
            if cast.insert(name.clone()) {
                nodes.push(cast_node(input, &name, half));
            }
            *input = name;
        }
        let is_output = graph.outputs.iter().any(|port| port.name == node.output);
        if half && is_output {
            let halved = format!("{}.half", node.output);
            let output = std::mem::replace(&mut node.output, halved);
            let float = cast_node(&node.output, &output, false);
            nodes.extend([node, float]);
        } else {
            if half {
                in_half.insert(node.output.clone());
            }
            nodes.push(node);
        }
    }
    graph.nodes = nodes;
    graph.drop_unused_constants();
    float_convolutions
}

/// Whether `node` can run in float16.
fn is_half(graph: &Graph, node: &Node, ranges: &BTreeMap<String, Range>, keep_float: &Layers) -> bool {
    let fits = |name: &String| match (graph.initializers.get(name), ranges.get(name)) {
        (Some(constant), _) => {
            constant.as_floats().is_none_or(|values| values.iter().all(|value| value.abs() <= LIMIT))
        }
        (_, Some(range)) => range.max_abs() <= LIMIT,
        // The input images, with values of a few units, and omitted inputs.
        (None, None) => true,
    };
    OPERATORS.contains(&node.operator)
        && layer_of(graph, node).is_none_or(|layer| !keep_float.contain(layer))
        && node.inputs.iter().chain([&node.output]).all(fits)
}

/// Converts the constants of the nodes marked in `half` to float16. A constant that other nodes read, too, is copied.
fn halve_constants(graph: &mut Graph, half: &[bool]) {
    let reading = |half_nodes: bool| -> BTreeSet<String> {
        let nodes = graph.nodes.iter().zip(half).filter(|(_, half)| **half == half_nodes);
        let mut nodes: Vec<_> = nodes.map(|(node, _)| node.clone()).collect();
        nodes.iter_mut().flat_map(data_inputs).map(|input| input.clone()).collect()
    };
    let (halves, floats) = (reading(true), reading(false));
    let mut renamed = BTreeMap::new();
    for name in halves {
        let Some(values) = graph.initializers.get(&name).and_then(Constant::as_floats) else { continue };
        let values = values.iter().map(|value| f16::from_f32(*value)).collect();
        let constant = Constant { shape: graph.initializers[&name].shape.clone(), elements: Elements::Half(values) };
        if floats.contains(&name) {
            let copy = format!("{name}.half");
            renamed.insert(name, copy.clone());
            graph.initializers.insert(copy, constant);
        } else {
            graph.initializers.insert(name, constant);
        }
    }
    for (node, _) in graph.nodes.iter_mut().zip(half).filter(|(_, half)| **half) {
        for input in data_inputs(node) {
            if let Some(copy) = renamed.get(input) {
                input.clone_from(copy);
            }
        }
    }
}

/// The inputs that have the node's precision. The scales of a Resize and the shape of a Reshape do not.
fn data_inputs(node: &mut Node) -> impl Iterator<Item = &mut String> {
    let count = if matches!(node.operator, "Resize" | "Reshape") { 1 } else { node.inputs.len() };
    node.inputs.iter_mut().take(count)
}

/// A node that casts a value to float16 or to float32.
pub(crate) fn cast_node(input: &str, output: &str, to_half: bool) -> Node {
    let data_type = if to_half { DataType::Float16 } else { DataType::Float };
    Node {
        name: format!("{output}.cast"),
        operator: "Cast",
        inputs: vec![input.to_owned()],
        output: output.to_owned(),
        further: Vec::new(),
        attributes: vec![("to", Attribute::Int(data_type as i64))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold_batch_norms;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::{NormKind, NormSpec};

    fn halved(large: &[&str], keep_float: &[&str]) -> (Graph, Vec<String>) {
        let mut spec = spec(18, NormKind::FrozenBatch);
        spec.heads.norm = Some(NormSpec { kind: NormKind::Group, groups: 8, ..NormSpec::default() });
        let mut graph = trace(&spec, zeros(&spec)).unwrap();
        fold_batch_norms(&mut graph);
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
    fn precisions(graph: &Graph) -> BTreeMap<String, bool> {
        let mut half: BTreeMap<String, bool> = graph.inputs.iter().map(|port| (port.name.to_owned(), false)).collect();
        for (name, constant) in &graph.initializers {
            half.insert(name.clone(), matches!(constant.elements, Elements::Half(_)));
        }
        for node in &graph.nodes {
            let inputs: BTreeSet<bool> = data_inputs(&mut node.clone()).map(|input| half[input.as_str()]).collect();
            assert_eq!(inputs.len(), 1, "{} reads both precisions", node.name);
            let is_half = match node.attributes.iter().find(|(name, _)| *name == "to") {
                Some((_, Attribute::Int(to))) => *to == 10,
                _ => inputs.contains(&true),
            };
            half.insert(node.output.clone(), is_half);
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
        let cast = |node: &&Node| node.operator == "Cast";
        let normalizations = graph.nodes.iter().filter(|node| node.operator == "InstanceNormalization").count();
        assert_eq!(normalizations, 2 * 4 * 5);
        assert_eq!(graph.nodes.iter().filter(cast).count(), 1 + 2 + 2 * normalizations, "no redundant casts");
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
