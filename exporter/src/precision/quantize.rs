//! Quantization to 8-bit integers. <https://arxiv.org/abs/1712.05877>
//!
//! The graph says what is an integer by pairs of QuantizeLinear and DequantizeLinear, which engines fuse with the
//! operation between them, and which are a plain rounding to those that don't. A convolution reads such a pair and writes
//! one, so that sums, poolings and enlargements between convolutions become integers too. A weight is rounded once, with a
//! scale for each of its channels, however many levels of the pyramid it serves; what flows has a scale for each level.
//!
//! What is rounded keeps its name and adds to it: `x` becomes `x.quantized` with `x.scale` and `x.zero_point`, and in
//! floating point again `x.dequantized`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::layers::{Layers, weight_of};
use super::range::Range;
use crate::graph::{Attribute, Constant, Elements, Graph, Node};

/// Largest quantized weight. -128 is left out, so that a weight and its negative are rounded alike.
const WEIGHT_LIMIT: f32 = 127.0;

/// Largest quantized bias: an eighth of what 32 bits hold, which leaves room for the sum that it is added to.
const BIAS_LIMIT: f32 = (1 << 28) as f32;

/// Which parts of a graph become integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quantization {
    /// Convolutions, by their places among the nodes.
    convolutions: BTreeSet<usize>,
    /// The values that become integers, each with the one whose scale it has: itself, or what it merely rearranges.
    values: BTreeMap<String, String>,
}

impl Quantization {
    /// All of `graph` but the layers in `kept`, whose convolutions stay in floating point.
    pub(crate) fn new(graph: &Graph, kept: &Layers) -> Self {
        let readers = graph.readers();
        let relus = graph.nodes.iter().filter(|node| node.operator == "Relu" && readers[node.inputs[0].as_str()] == 1);
        let relus: HashMap<&str, &str> = relus.map(|node| (node.inputs[0].as_str(), node.output.as_str())).collect();
        // A rectification that alone reads what a node computes is one with it.
        let result = |node: &Node| (*relus.get(node.output.as_str()).unwrap_or(&node.output.as_str())).to_owned();

        let is_quantized = |node: &Node| weight_of(graph, node).is_some_and(|layer| !kept.contain(layer));
        let convolutions = (0..).zip(&graph.nodes).filter(|(_, node)| is_quantized(node)).map(|(index, _)| index);
        let convolutions: BTreeSet<usize> = convolutions.collect();
        let mut values = BTreeMap::new();
        for node in convolutions.iter().map(|index| &graph.nodes[*index]) {
            for name in [node.inputs[0].clone(), result(node)] {
                values.insert(name.clone(), name);
            }
        }
        for node in &graph.nodes {
            let inputs = node.inputs.iter().filter(|name| !name.is_empty() && !graph.initializers.contains_key(*name));
            let sources: Option<Vec<_>> = inputs.map(|name| values.get(name).cloned()).collect();
            match (node.operator, sources.as_deref()) {
                ("Add", Some([_, _])) => {
                    let name = result(node);
                    values.insert(name.clone(), name);
                }
                ("MaxPool" | "Resize", Some([source])) => {
                    values.insert(node.output.clone(), source.clone());
                }
                _ => {}
            }
        }
        Self { convolutions, values }
    }

    /// The values whose ranges it takes.
    pub(crate) fn ranged(&self) -> BTreeSet<&str> {
        self.values.values().map(String::as_str).collect()
    }

    /// The values that it rounds: more than those whose ranges it takes.
    pub(crate) fn rounded(&self) -> BTreeSet<&str> {
        self.values.keys().map(String::as_str).collect()
    }

    /// Makes integers of them in `graph`, the one that [`Quantization::new`] saw.
    ///
    /// # Panics
    /// When `ranges` lacks one of [`ranged`](Self::ranged).
    pub(crate) fn apply(&self, graph: &mut Graph, ranges: &BTreeMap<String, Range>) {
        let scales: BTreeMap<&str, Scale> =
            self.ranged().into_iter().map(|name| (name, Scale::of(ranges[name]))).collect();
        for (name, Scale { step, zero_point }) in &scales {
            let [scale, zero] = scale_names(name);
            graph.initializers.insert(scale, Constant::scalar(Elements::Float(vec![*step])));
            graph.initializers.insert(zero, Constant::scalar(Elements::Byte(vec![*zero_point])));
        }
        let input_steps = self.convolutions.iter().map(|index| {
            let input = &graph.nodes[*index].inputs[0];
            (*index, scales[self.values[input].as_str()].step)
        });
        let input_steps: BTreeMap<usize, f32> = input_steps.collect();
        let weight_steps = quantize_weights(graph, &input_steps);

        let mut nodes = Vec::with_capacity(4 * graph.nodes.len());
        for port in graph.inputs.iter().filter(|port| self.values.contains_key(port.name)) {
            nodes.extend(self.round(port.name));
        }
        let mut done = BTreeSet::new();
        for (index, mut node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
            for input in node.inputs.iter_mut().filter(|input| self.values.contains_key(*input)) {
                *input = format!("{input}.dequantized");
            }
            if let Some(input_step) = input_steps.get(&index) {
                let weight = node.inputs[1].clone();
                if let Some(bias) = node.inputs.get(2) {
                    let level = format!("{}.bias", node.name);
                    quantize_bias(graph, bias, &level, *input_step, &weight_steps[&weight]);
                    node.inputs[2] = format!("{level}.dequantized");
                    nodes.push(dequantize_channels(&level));
                }
                node.inputs[1] = format!("{weight}.dequantized");
                if done.insert(weight.clone()) {
                    nodes.push(dequantize_channels(&weight));
                }
            }
            let output = node.output.clone();
            nodes.push(node);
            if self.values.contains_key(&output) {
                nodes.extend(self.round(&output));
            }
        }
        graph.nodes = nodes;
        graph.drop_unused_constants();
    }

    /// The pair that rounds a value.
    fn round(&self, name: &str) -> [Node; 2] {
        let scale = scale_names(&self.values[name]);
        let node = |operator, verb: &str, input: String, result: &str| Node {
            name: format!("{name}.{verb}"),
            operator,
            inputs: std::iter::once(input).chain(scale.clone()).collect(),
            output: format!("{name}.{result}"),
            attributes: Vec::new(),
        };
        [
            node("QuantizeLinear", "quantize", name.to_owned(), "quantized"),
            node("DequantizeLinear", "dequantize", format!("{name}.quantized"), "dequantized"),
        ]
    }
}

/// Between numbers and integers from 0 to 255: `number = step * (integer - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    step: f32,
    zero_point: u8,
}

impl Scale {
    fn of(range: Range) -> Self {
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let step = (high - low) / 255.0;
        // What is always zero needs no step; any other would do.
        let step = if step > 0.0 { step } else { 1.0 };
        Self { step, zero_point: (-low / step).round() as u8 }
    }
}

/// The names of a value's scale.
fn scale_names(name: &str) -> [String; 2] {
    [format!("{name}.scale"), format!("{name}.zero_point")]
}

/// A constant that has a scale for each of its first axis' places, in floating point again.
fn dequantize_channels(name: &str) -> Node {
    let [scale, zero_point] = scale_names(name);
    Node {
        name: format!("{name}.dequantize"),
        operator: "DequantizeLinear",
        inputs: vec![format!("{name}.quantized"), scale, zero_point],
        output: format!("{name}.dequantized"),
        attributes: vec![("axis", Attribute::Int(0))],
    }
}

/// Adds the rounded weights of the convolutions whose inputs have these steps. Returns the step of each channel, by the
/// weight's name.
fn quantize_weights(graph: &mut Graph, input_steps: &BTreeMap<usize, f32>) -> BTreeMap<String, Vec<f32>> {
    let mut steps: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (index, input_step) in input_steps {
        let inputs = &graph.nodes[*index].inputs;
        let channels = channels(&graph.initializers[&inputs[1]]);
        let steps = steps.entry(inputs[1].clone()).or_insert_with(|| channels.map(weight_step).collect());
        let biases = inputs.get(2).and_then(|bias| graph.initializers[bias].as_floats()).unwrap_or_default();
        // A bias is rounded in steps of weight times input: where weights are as good as zero, these must not be so small
        // that no integer holds the bias.
        for (step, bias) in steps.iter_mut().zip(biases) {
            *step = step.max(bias.abs() / (input_step * BIAS_LIMIT));
        }
    }
    for (name, steps) in &steps {
        let constant = &graph.initializers[name];
        let rounded = channels(constant).zip(steps).flat_map(|(values, step)| {
            values.iter().map(move |value| (value / step).round_ties_even().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) as i8)
        });
        let rounded = Constant { elements: Elements::SignedByte(rounded.collect()), shape: constant.shape.clone() };
        let zeros = Elements::SignedByte(vec![0; steps.len()]);
        insert_quantized(graph, name, rounded, steps.clone(), zeros);
    }
    steps
}

/// Adds a bias as integers under `name`, in steps of input times weight.
fn quantize_bias(graph: &mut Graph, bias: &str, name: &str, input_step: f32, weight_steps: &[f32]) {
    let steps: Vec<f32> = weight_steps.iter().map(|step| step * input_step).collect();
    let values = graph.initializers[bias].as_floats().unwrap_or_default();
    let rounded = values.iter().zip(&steps).map(|(value, step)| (value / step).round_ties_even() as i32).collect();
    let rounded = Constant { shape: vec![steps.len()], elements: Elements::ShortInt(rounded) };
    let zeros = Elements::ShortInt(vec![0; steps.len()]);
    insert_quantized(graph, name, rounded, steps, zeros);
}

fn insert_quantized(graph: &mut Graph, name: &str, rounded: Constant, steps: Vec<f32>, zeros: Elements) {
    let [scale, zero_point] = scale_names(name);
    graph.initializers.insert(zero_point, Constant { shape: vec![steps.len()], elements: zeros });
    graph.initializers.insert(scale, Constant::floats(steps));
    graph.initializers.insert(format!("{name}.quantized"), rounded);
}

/// The weights of each output channel.
fn channels(weight: &Constant) -> impl Iterator<Item = &[f32]> {
    let values = weight.as_floats().unwrap_or_default();
    values.chunks_exact((values.len() / weight.shape[0].max(1)).max(1))
}

fn weight_step(channel: &[f32]) -> f32 {
    let largest = channel.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    if largest > 0.0 { largest / WEIGHT_LIMIT } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold_batch_norms;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::NormKind;

    /// The graph of a small network whose weights are all different, folded.
    fn graph() -> Graph {
        let spec = spec(18, NormKind::FrozenBatch);
        let mut tensors = zeros(&spec);
        for (index, value) in tensors.values_mut().flat_map(|tensor| tensor.iter_mut()).enumerate() {
            *value = (index as f32).sin() * 0.1;
        }
        tensors.iter_mut().filter(|(name, _)| name.ends_with("running_var")).for_each(|(_, tensor)| tensor.fill(1.0));
        let mut graph = trace(&spec, tensors).unwrap();
        fold_batch_norms(&mut graph);
        graph
    }

    fn quantized(kept: &[&str]) -> Graph {
        let mut graph = graph();
        let quantization = Quantization::new(&graph, &kept.iter().copied().collect());
        let range = |(index, name): (usize, &str)| (name.to_owned(), Range { low: -1.0, high: 1.0 + index as f32 });
        let ranges = quantization.ranged().into_iter().enumerate().map(range).collect();
        quantization.apply(&mut graph, &ranges);
        graph
    }

    fn node<'a>(graph: &'a Graph, name: &str) -> &'a Node {
        graph.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node `{name}`"))
    }

    fn floats<'a>(graph: &'a Graph, name: &str) -> &'a [f32] {
        graph.initializers[name].as_floats().unwrap()
    }

    #[test]
    fn a_convolution_reads_integers_and_writes_them_with_its_rectification() {
        let graph = quantized(&[]);
        let conv = node(&graph, "layer1.0.conv1");
        let parts = ["bn1.relu.max_pool", "layer1.0.conv1.weight", "layer1.0.conv1.bias"];
        assert_eq!(conv.inputs, parts.map(|part| format!("{part}.dequantized")));
        assert_eq!(node(&graph, "layer1.0.bn1.relu").inputs, [conv.output.as_str()], "not rounded in between");
        let rounding = node(&graph, "layer1.0.bn1.relu.quantize");
        let value = "layer1.0.bn1.relu";
        assert_eq!(rounding.inputs, [value, "layer1.0.bn1.relu.scale", "layer1.0.bn1.relu.zero_point"]);
        assert_eq!(node(&graph, "layer1.0.conv2").inputs[0], "layer1.0.bn1.relu.dequantized");
        assert!(graph.nodes.iter().all(|node| node.inputs.iter().all(|input| input != "layer1.0.conv1.weight")));
        assert!(!graph.initializers.contains_key("layer1.0.conv1.weight"));
    }

    #[test]
    fn sums_poolings_and_enlargements_are_integers_too() {
        let graph = quantized(&[]);
        let sum = node(&graph, "layer1.0.bn2.add");
        assert!(sum.inputs.iter().all(|input| input.ends_with(".dequantized")), "{sum:?}");
        for (name, source) in [("bn1.relu.max_pool", "bn1.relu"), ("fpn.P5_1.upsample2x", "fpn.P5_1")] {
            assert_eq!(node(&graph, name).inputs[0], format!("{source}.dequantized"));
            let rounding = node(&graph, &format!("{name}.quantize"));
            assert_eq!(rounding.inputs[1], format!("{source}.scale"), "what is only rearranged keeps its scale");
        }
    }

    #[test]
    fn a_shared_weight_is_rounded_once_and_each_level_has_its_range() {
        let graph = quantized(&[]);
        let readers = |name: &str| graph.nodes.iter().filter(|node| node.inputs.iter().any(|i| i == name)).count();
        assert_eq!(readers("regressionModel.conv2.weight.quantized"), 1);
        assert_eq!(readers("regressionModel.conv2.weight.dequantized"), 5);
        let levels = ["", "_1", "_2", "_3", "_4"].map(|level| format!("regressionModel.conv2{level}"));
        let inputs = levels.each_ref().map(|level| node(&graph, level).inputs[0].replace(".dequantized", ".scale"));
        let steps: BTreeSet<_> = inputs.iter().map(|scale| floats(&graph, scale)[0].to_bits()).collect();
        assert_eq!(steps.len(), 5);
        for (level, input) in levels.iter().zip(&inputs) {
            let bias = floats(&graph, &format!("{level}.bias.scale"));
            let weight = floats(&graph, "regressionModel.conv2.weight.scale");
            let input = floats(&graph, input)[0];
            assert!(bias.iter().zip(weight).all(|(bias, weight)| *bias == weight * input));
        }
    }

    #[test]
    fn weights_and_biases_are_off_by_half_a_step_at_most() {
        let (before, after) = (self::graph(), quantized(&[]));
        for (name, original) in
            ["layer3.1.conv2.weight", "layer3.1.conv2.bias"].map(|name| (name, floats(&before, name)))
        {
            let steps = floats(&after, &format!("{name}.scale"));
            let rounded: Vec<f32> = match &after.initializers[&format!("{name}.quantized")].elements {
                Elements::SignedByte(values) => values.iter().map(|value| f32::from(*value)).collect(),
                Elements::ShortInt(values) => values.iter().map(|value| *value as f32).collect(),
                other => panic!("{other:?}"),
            };
            let per_channel = rounded.len() / steps.len();
            for ((rounded, original), index) in rounded.iter().zip(original).zip(0..) {
                let step = steps[index / per_channel];
                assert!((rounded * step - original).abs() <= 0.501 * step, "{name} {index}");
            }
        }
    }

    #[test]
    fn a_bias_survives_a_channel_without_weights() {
        let mut graph = graph();
        let quantization = Quantization::new(&graph, &Layers::default());
        let ranges = quantization.ranged().into_iter().map(|name| (name.to_owned(), Range { low: 0.0, high: 1e-3 }));
        let ranges = ranges.collect();
        let Elements::Float(weights) = &mut graph.initializers.get_mut("fpn.P6.weight").unwrap().elements else {
            panic!()
        };
        weights.iter_mut().for_each(|weight| *weight = 1e-20);
        graph.initializers.insert("fpn.P6.bias".to_owned(), Constant::floats(vec![-7.0; 32]));
        quantization.apply(&mut graph, &ranges);
        let Elements::ShortInt(values) = &graph.initializers["fpn.P6.bias.quantized"].elements else { panic!() };
        for (value, step) in values.iter().zip(floats(&graph, "fpn.P6.bias.scale")) {
            assert!((*value as f32 * step + 7.0).abs() < 1e-5);
        }
    }

    #[test]
    fn kept_layers_read_what_was_rounded_and_are_not_rounded_themselves() {
        let graph = quantized(&["conv1", "layer1.0", "regressionModel.output"]);
        assert_eq!(node(&graph, "conv1").inputs, ["images", "conv1.weight", "conv1.bias"]);
        assert_eq!(node(&graph, "layer1.0.conv1").inputs[0], "bn1.relu.max_pool", "nothing there is rounded");
        let output = node(&graph, "regressionModel.output_2");
        assert!(output.inputs[0].ends_with(".dequantized") && output.inputs[1] == "regressionModel.output.weight");
        assert!(graph.nodes.iter().all(|node| !node.name.starts_with("regressionModel.output.quantize")));
    }

    #[test]
    fn zero_is_an_integer_and_ends_are_reached() {
        for (low, high) in [(0.0, 6.0), (-1.0, 3.0), (-4.0, 0.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0), (-1e-30, 1e30)]
        {
            let Scale { step, zero_point } = Scale::of(Range { low, high });
            assert!(step > 0.0 && step.is_finite());
            let number = |integer: f32| step * (integer - f32::from(zero_point));
            assert!(number(0.0) <= low.min(0.0) + 0.51 * step && number(255.0) >= high.max(0.0) - 0.51 * step);
        }
        assert_eq!(Scale::of(Range { low: 0.0, high: 2.55 }).zero_point, 0, "a rectified value loses no integer");
    }
}
